"""A proposed ending, whoever proposes it, and the result that it becomes where it is the first. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime

from shared.contracts.content import (
    Failure,
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    Outcome,
    Output,
    RefusalItem,
    Usage,
)
from shared.contracts.gateway import SessionAbandoned
from shared.contracts.orchestrator import AttemptRecord, SessionEnded, WaitRecord
from shared.contracts.results import RESULT_BY_STATUS, ProposedBy, ResultEnded


@dataclass(frozen=True)
class Proposal:
    """What results needs of an ending. `digest` is equal for repeats of the same proposal only."""

    proposed_by: ProposedBy
    digest: str
    request_id: str
    account_id: str
    session_id: str
    seq: int
    status: Outcome
    ended_at: datetime
    input: tuple[Item, ...] = ()
    output: Output | None = None
    error: Failure | None = None
    usage: Usage | None = None
    model: str | None = None
    started_at: datetime | None = None
    final_attempt: int = 0
    attempts: tuple[AttemptRecord, ...] = ()
    waits: tuple[WaitRecord, ...] = ()


def of_ended(message: SessionEnded) -> Proposal:
    """The orchestrator's proposal, for a turn that it owned."""
    return replace(
        _proposal(message, "session.ended", message.ended_at),
        input=message.input,
        output=message.output,
        usage=message.usage,
        model=message.model,
        started_at=message.started_at,
        final_attempt=message.final_attempt,
        attempts=message.attempts,
        waits=message.waits,
    )


def of_abandoned(message: SessionAbandoned) -> Proposal:
    """The gateway's proposal, for a request that never ran or is overdue."""
    return _proposal(message, "session.abandoned", message.abandoned_at)


def _proposal(message: SessionEnded | SessionAbandoned, proposed_by: ProposedBy, ended_at: datetime) -> Proposal:
    """What both say."""
    return Proposal(
        proposed_by=proposed_by,
        digest=_digest(message),
        request_id=message.request_id,
        account_id=message.account_id,
        session_id=message.session_id,
        seq=message.seq,
        status=message.status,
        ended_at=ended_at,
        error=message.error,
    )


def result_of(proposal: Proposal, *, cursor: int, attempt_heard: int) -> ResultEnded:
    """The result as it is stored and published; `attempt_heard` is the last attempt that the log knows."""
    return RESULT_BY_STATUS[proposal.status](
        request_id=proposal.request_id,
        account_id=proposal.account_id,
        session_id=proposal.session_id,
        seq=proposal.seq,
        cursor=cursor,
        status=proposal.status,
        output=proposal.output,
        error=proposal.error,
        usage=proposal.usage,
        model=proposal.model,
        # An overdue request is abandoned without its ledger: its progress is all that tells of a call.
        provider_called=proposal.started_at is not None or bool(proposal.attempts) or attempt_heard > 0,
        started_at=proposal.started_at,
        ended_at=proposal.ended_at,
        ended_by=proposal.proposed_by,
    )


def output_bytes(output: Output | None) -> int:
    """UTF-8 bytes of what the model produced: its text, refusals and function arguments."""
    if output is None:
        return 0
    return sum(len(_produced(item).encode()) for item in output.items)


def _produced(item: Item) -> str:
    match item:
        case MessageItem():
            return item.content
        case RefusalItem():
            return item.refusal
        case FunctionCallItem():
            return item.arguments
        case FunctionCallOutputItem():
            return item.output


def _digest(message: SessionEnded | SessionAbandoned) -> str:
    # Its place in a trace is no part of what is proposed: each delivery of the same has another.
    return hashlib.sha256(message.model_dump_json(exclude={"traceparent"}).encode()).hexdigest()
