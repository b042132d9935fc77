"""What the provider saw: permitted calls only, each with its row, in their session's order, with the right prompt."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from tests.support.faults.evidence import Evidence, Row
from tests.support.faults.load import Post
from tests.support.faults.report import Violation

Call = dict[str, Any]

CLOCK_SLACK_SECONDS = 0.05
"""Instants of the database's clock, sampled by a service, against this process's."""
GONE_SLACK_SECONDS = 1.0
"""Until the provider notices that a caller has left."""
_PERMITS = ("ALLOW", "ALLOW_GRACE")


def each_call_belongs_to_a_request(evidence: Evidence) -> Iterator[Violation]:
    markers = {post.marker for post in evidence.posts if post.request_ids}
    for call in evidence.calls:
        if call["marker"] not in markers:
            yield Violation("unexpected", str(call["marker"]), "the provider was called for no accepted request")


def each_call_was_permitted(evidence: Evidence) -> Iterator[Violation]:
    permitted: dict[str, float] = {}
    for row in evidence.rows["decisions"]:
        if row["decision"] in _PERMITS:
            at = row["decided_at"].timestamp()
            permitted[row["request_id"]] = min(at, permitted.get(row["request_id"], math.inf))
    for request_id, calls in calls_by_request(evidence).items():
        decided = permitted.get(request_id)
        if decided is None:
            yield Violation("unexpected", request_id, "called without a decision that permits it")
        elif calls[0]["started"] < decided - CLOCK_SLACK_SECONDS:
            yield Violation("unexpected", request_id, "called before the decision that permits it")


def each_call_has_its_attempt(evidence: Evidence) -> Iterator[Violation]:
    """The k-th call needs k attempts that were written before it."""
    attempts = evidence.by_request("attempts")
    for request_id, calls in calls_by_request(evidence).items():
        starts = sorted(row["started_at"].timestamp() for row in attempts.get(request_id, ()))
        for number, call in enumerate(calls, start=1):
            written = sum(start <= call["started"] + CLOCK_SLACK_SECONDS for start in starts)
            if written < number:
                early = [f"{start - call['started']:.3f}" for start in starts[written:]]
                text = f"call {number} was made when {written} attempts were written; others {early} s after it"
                yield Violation("unexpected", request_id, text)
                break


def no_call_undercuts_a_retry_after(evidence: Evidence) -> Iterator[Violation]:
    """The request that was told to wait waits by the provider's own clock. What others do meanwhile: buckets.py."""
    attempts = evidence.by_request("attempts")
    for request_id, calls in calls_by_request(evidence).items():
        told = [row["retry_after_seconds"] for row in attempts.get(request_id, ()) if row["retry_after_seconds"]]
        for before, after in itertools.pairwise(calls):
            if before["status"] == 429 and told and after["started"] - before["ended"] < min(told):
                text = f"called again {after['started'] - before['ended']:.2f} s after a 429 that said {min(told)}"
                yield Violation("unexpected", request_id, text)


def calls_of_a_session_follow_each_other(evidence: Evidence) -> Iterator[Violation]:
    """A worker that was lost may still have its call open: nobody can end that but itself. And what a frozen wire
    delivers after we have given the call up arrives whenever the wire thaws."""
    attempts = evidence.by_request("attempts")
    lost = {row["request_id"] for row in evidence.rows["tasks"] if row["workers_lost"] > 0}
    abandoned = {row["request_id"] for row in evidence.rows["results"] if row["ended_by"] == "session.abandoned"}
    seqs = {row["id"]: row["seq"] for row in evidence.rows["requests"]}
    for calls in _calls_by_session(evidence).values():
        kept = [
            (request_id, call)
            for request_id, call in calls
            if request_id not in lost | abandoned and not _arrived_late(call, attempts.get(request_id, ()))
        ]
        for (request_id, before), (next_id, after) in itertools.pairwise(kept):
            if seqs[next_id] < seqs[request_id]:
                yield Violation("unexpected", next_id, f"called after {request_id}, which is a later turn")
            slack = GONE_SLACK_SECONDS if before["outcome"] == "client_gone" else 0.0
            if before["ended"] is None or after["started"] < before["ended"] - slack:
                yield Violation("unexpected", next_id, f"its call overlaps the one of {request_id}")


def _arrived_late(call: Call, attempts: Sequence[Row]) -> bool:
    """Whether each attempt had ended before the provider saw the call."""
    ends = [row["ended_at"] for row in attempts]
    return (
        ends != [] and None not in ends and call["started"] > max(end.timestamp() for end in ends) + CLOCK_SLACK_SECONDS
    )


def each_prompt_holds_the_turns_before_it(evidence: Evidence) -> Iterator[Violation]:
    requests = {row["id"]: row for row in evidence.rows["requests"]}
    turns: defaultdict[str, list[Row]] = defaultdict(list)
    for row in sorted(evidence.rows["results"], key=lambda row: row["seq"]):
        if row["status"] in ("completed", "incomplete"):
            turns[row["session_id"]].append(row)
    for request_id, calls in calls_by_request(evidence).items():
        request = requests.get(request_id)
        if request is None:
            continue
        earlier = [row for row in turns[request["session_id"]] if row["seq"] < request["seq"]]
        expected = [pair for row in earlier for pair in _said(row)] + _texts(request["input"])
        for call in calls:
            said = [(message["role"], message["content"]) for message in call["messages"] or ()]
            if said != expected:
                text = f"its prompt has {len(said)} messages, {len(expected)} were expected: {said[-3:]}"
                yield Violation("unexpected", request_id, text)
                break


def _said(row: Row) -> list[tuple[str, str]]:
    output = row["message"]["output"]
    return _texts(row["input"]) + _texts(output["items"] if output else ())


def _texts(items: Sequence[Row]) -> list[tuple[str, str]]:
    return [(item["role"], item["content"]) for item in items if item["type"] == "message"]


def calls_by_request(evidence: Evidence) -> dict[str, list[Call]]:
    """Oldest first."""
    request_of = _request_of(evidence.posts)
    found: defaultdict[str, list[Call]] = defaultdict(list)
    for call in sorted(evidence.calls, key=lambda call: call["started"]):
        if call["marker"] in request_of:
            found[request_of[call["marker"]]].append(call)
    return found


def _calls_by_session(evidence: Evidence) -> dict[str, list[tuple[str, Call]]]:
    sessions = {row["id"]: row["session_id"] for row in evidence.rows["requests"]}
    found: defaultdict[str, list[tuple[str, Call]]] = defaultdict(list)
    for request_id, calls in calls_by_request(evidence).items():
        if request_id in sessions:
            found[sessions[request_id]] += [(request_id, call) for call in calls]
    return {session: sorted(calls, key=lambda entry: entry[1]["started"]) for session, calls in found.items()}


def _request_of(posts: Sequence[Post]) -> dict[str, str]:
    return {post.marker: next(iter(post.request_ids)) for post in posts if post.request_ids}


CHECKS = (
    each_call_belongs_to_a_request,
    each_call_was_permitted,
    each_call_has_its_attempt,
    no_call_undercuts_a_retry_after,
    calls_of_a_session_follow_each_other,
    each_prompt_holds_the_turns_before_it,
)
