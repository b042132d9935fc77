"""What clients saw: one log for everybody, each entry once, an end that never changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.support.faults.client import Event
from tests.support.faults.evidence import Evidence, output_text
from tests.support.faults.report import Violation
from tests.support.parley import TERMINAL


def no_client_met_what_it_should_not(evidence: Evidence) -> Iterator[Violation]:
    for problem in evidence.problems:
        yield Violation("unexpected", "client", problem)


def an_end_never_changes(evidence: Evidence) -> Iterator[Violation]:
    stored = {
        row["request_id"]: (row["status"], output_text(row["message"]["output"]) if row["message"]["output"] else None)
        for row in evidence.rows["results"]
    }
    for seen in evidence.seen:
        first = next((at for at, (status, _) in enumerate(seen.snapshots) if status in TERMINAL), None)
        if first is None:
            continue
        ends = set(seen.snapshots[first:])
        if ends != {stored.get(seen.request_id)}:
            text = f"{seen.reader} saw {sorted(map(str, ends))}, stored is {stored.get(seen.request_id)}"
            yield Violation("doubled", seen.request_id, text)


def all_see_the_same_log(evidence: Evidence) -> Iterator[Violation]:
    """Live readers, readers who were cut off and came back, and those who came late."""
    stored = {
        request_id: [Event(row["cursor"], row["type"], row["text"]) for row in rows]
        for request_id, rows in evidence.by_request("events").items()
    }
    for seen in evidence.seen:
        if not seen.events and not seen.closed:
            continue
        log = stored.get(seen.request_id, [])
        expected = log if seen.closed else log[: len(seen.events)]
        if seen.events != expected:
            text = f"{seen.reader} saw {_brief(seen.events)}, stored is {_brief(log)}"
            yield Violation("unexpected", seen.request_id, text)


def cursors_only_grow(evidence: Evidence) -> Iterator[Violation]:
    for seen in evidence.seen:
        cursors = [event.cursor for event in seen.events]
        if cursors != sorted(set(cursors)):
            yield Violation("unexpected", seen.request_id, f"{seen.reader} was given cursors {cursors}")


def deltas_make_the_output(evidence: Evidence) -> Iterator[Violation]:
    stored = {row["request_id"]: row for row in evidence.rows["results"]}
    for seen in evidence.seen:
        row = stored.get(seen.request_id)
        if not seen.closed or row is None:
            continue
        output = row["message"]["output"]
        assembled, text = assemble(seen.events), output_text(output) if output else ""
        if assembled != text:
            yield Violation("unexpected", seen.request_id, f"{seen.reader} assembled {assembled!r}, stored is {text!r}")
        if not seen.events or seen.events[-1].type != f"request.{row['status']}":
            yield Violation("unexpected", seen.request_id, f"{seen.reader} saw no request.{row['status']} at the end")


def assemble(events: Iterable[Event]) -> str:
    """As the API's documentation tells clients to."""
    text = ""
    for event in events:
        if event.type == "output.delta":
            text += event.text or ""
        elif event.type == "output.superseded":
            text = ""
    return text


def _brief(events: Iterable[Event]) -> list[tuple[int, str]]:
    return [(event.cursor, event.type) for event in events]


CHECKS = (
    no_client_met_what_it_should_not,
    an_end_never_changes,
    all_see_the_same_log,
    cursors_only_grow,
    deltas_make_the_output,
)
