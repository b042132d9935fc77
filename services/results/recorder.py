"""Writes what arrives, one transaction for a batch: progress into the logs, the first ending as the end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final, Protocol

from services.results.event_log import Head, RequestLog, Texts, first_cursor
from services.results.proposal import Proposal, result_of
from services.results.store.logs import LogStore
from services.results.store.results import Ending, ResultStore, Stored
from shared.contracts.orchestrator import SessionProgressed
from shared.contracts.results import ResultEnded, ResultUpdated
from shared.metrics import counter
from shared.postgres import Connection, Database

_events_stored = counter("results_log_events", "Entries added to event logs.")
_events_refused = counter("results_log_events_refused", "Progress not taken, by reason.", ("reason",))
_results_stored = counter("results_stored", "Requests ended, by status and who proposed it.", ("status", "ended_by"))
_late_kept = counter("results_late_proposals", "Endings that came after the end and differed from it.")


_UNHEARD: Final = timedelta(seconds=0.3)
"""A call that was over by then has rarely told of itself: it is announced after a quarter of a second."""


class _OfRequest(Protocol):
    @property
    def request_id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def seq(self) -> int: ...


class Recorder:
    """Every batch first locks the heads of its requests, in the order of their ids: a log has one writer at a time.

    But for endings of requests that nothing was heard of: who inserts a head is its writer until he commits, so head,
    log and result of these are one statement.
    """

    def __init__(self, database: Database, logs: LogStore, results: ResultStore) -> None:
        self._database = database
        self._logs = logs
        self._results = results

    async def record_progress(self, messages: Sequence[SessionProgressed]) -> list[ResultUpdated]:
        """What waiting readers should hear of, once it is committed."""
        async with self._database.transaction() as connection:
            logs = await self._lock_logs(connection, messages)
            news = {message.request_id: message for message in messages if logs[message.request_id].take(message)}
            await self._write(connection, [log for log in logs.values() if log.added])
        _count_progress(logs.values())
        return [_updated(logs[request_id].head, message) for request_id, message in news.items()]

    async def record_endings(self, proposals: Sequence[Proposal]) -> list[ResultEnded]:
        """The one ending of each request that was proposed, as stored: by this proposal or an earlier one."""
        stored = await self._end_unheard([one for one in _first_of_each(proposals) if _is_likely_unheard(one)])
        left = [one for one in proposals if one.request_id not in stored or one.digest != stored[one.request_id].digest]
        if left:
            stored |= await self._end_or_keep_late(left)
        return [stored[request_id].result for request_id in sorted(stored)]

    async def _end_unheard(self, proposals: Sequence[Proposal]) -> dict[str, Stored]:
        """End those without a head, and leave the others as they are."""
        if not proposals:
            return {}
        endings: list[Ending] = []
        for proposal in sorted(proposals, key=lambda one: one.request_id):
            log = RequestLog(_fresh_head(proposal))
            endings.append((log, proposal, _close(log, proposal, Texts())))
        ended = _stored(endings, await self._results.insert_endings_if_unheard(endings))
        _count_endings(ended, late_kept=0)
        return ended

    async def _end_or_keep_late(self, proposals: Sequence[Proposal]) -> dict[str, Stored]:
        async with self._database.transaction() as connection:
            logs = await self._lock_logs(connection, proposals)
            ended = await self._end(connection, _first_of_each(proposals), logs)
            ended_before = sorted(logs.keys() - ended.keys())
            stored = await self._results.select_stored(connection, ended_before) if ended_before else {}
            stored |= ended
            late = [proposal for proposal in proposals if proposal.digest != stored[proposal.request_id].digest]
            late_kept = await self._results.insert_late_if_absent(connection, late) if late else 0
        _count_endings(ended, late_kept)
        return stored

    async def _lock_logs(self, connection: Connection, subjects: Sequence[_OfRequest]) -> dict[str, RequestLog]:
        heads = await self._lock_heads(connection, {subject.request_id: subject for subject in subjects})
        gapped = [head for head in heads if head.stored_cursor > head.visible_cursor]
        beyond = await self._logs.select_cursors_beyond_gap(connection, gapped) if gapped else {}
        return {head.request_id: RequestLog(head, beyond.get(head.request_id, ())) for head in heads}

    async def _lock_heads(self, connection: Connection, subjects: Mapping[str, _OfRequest]) -> list[Head]:
        request_ids = sorted(subjects)
        heads = await self._logs.select_heads_for_update_if_all_there(connection, request_ids)
        if not heads:
            # Nothing is locked yet: who inserts while he holds rows may wait for one who waits for them.
            fresh = [_fresh_head(subjects[request_id]) for request_id in request_ids]
            await self._logs.insert_heads_if_absent(connection, fresh)
            heads = await self._logs.select_heads_for_update_if_all_there(connection, request_ids)
        return heads

    async def _end(
        self, connection: Connection, proposals: Sequence[Proposal], logs: Mapping[str, RequestLog]
    ) -> dict[str, Stored]:
        """End those that are still open; whose row is inserted here has ended by this proposal."""
        proposals = [proposal for proposal in proposals if not logs[proposal.request_id].head.closed]
        if not proposals:
            return {}
        said = await self._read_said(connection, [logs[proposal.request_id].head for proposal in proposals])
        endings: list[Ending] = []
        for proposal in proposals:
            log = logs[proposal.request_id]
            endings.append((log, proposal, _close(log, proposal, said.get(proposal.request_id, Texts()))))
        await self._cut(connection, [log for log, _, _ in endings])
        return _stored(endings, await self._results.insert_results_if_absent(connection, endings))

    async def _read_said(self, connection: Connection, heads: Sequence[Head]) -> dict[str, Texts]:
        with_text = [head for head in heads if head.visible_cursor > first_cursor(head.attempt)]
        return await self._logs.select_visible_texts(connection, with_text) if with_text else {}

    async def _write(self, connection: Connection, logs: Sequence[RequestLog]) -> None:
        await self._cut(connection, logs)
        if logs:
            await self._logs.insert_events_and_update_heads_if_open(connection, logs)

    async def _cut(self, connection: Connection, logs: Sequence[RequestLog]) -> None:
        """Before anything is added: it may take the place of what goes."""
        cut = [log for log in logs if log.cut_after is not None]
        if cut:
            await self._logs.delete_events_beyond_cuts(connection, cut)


def _stored(endings: Sequence[Ending], inserted: Collection[str]) -> dict[str, Stored]:
    return {
        proposal.request_id: Stored(proposal.digest, result)
        for _, proposal, result in endings
        if proposal.request_id in inserted
    }


def _fresh_head(subject: _OfRequest) -> Head:
    return Head(subject.request_id, subject.account_id, subject.session_id, subject.seq)


def _first_of_each(proposals: Sequence[Proposal]) -> list[Proposal]:
    first: dict[str, Proposal] = {}
    for proposal in proposals:
        first.setdefault(proposal.request_id, proposal)
    return list(first.values())


def _is_likely_unheard(proposal: Proposal) -> bool:
    """A guess: where it is wrong, a statement more is asked."""
    return not proposal.waits and proposal.ended_at - (proposal.started_at or proposal.ended_at) < _UNHEARD


def _close(log: RequestLog, proposal: Proposal, said: Texts) -> ResultEnded:
    log.close(proposal.status, proposal.output, proposal.error, proposal.final_attempt, at=proposal.ended_at, said=said)
    return result_of(proposal, cursor=log.head.visible_cursor, attempt_heard=log.head.attempt)


def _updated(head: Head, message: SessionProgressed) -> ResultUpdated:
    return ResultUpdated(
        request_id=head.request_id,
        account_id=head.account_id,
        session_id=head.session_id,
        seq=head.seq,
        cursor=head.visible_cursor,
        at=message.at,
        attempt=head.attempt,
        waiting_on=message.waiting_on,
    )


def _count_progress(logs: Iterable[RequestLog]) -> None:
    for log in logs:
        _events_stored.inc(len(log.added))
        for reason, events in log.refused.items():
            _events_refused.labels(reason).inc(events)


def _count_endings(ended: Mapping[str, Stored], late_kept: int) -> None:
    _late_kept.inc(late_kept)
    for stored in ended.values():
        _results_stored.labels(stored.result.status, stored.result.ended_by).inc()
