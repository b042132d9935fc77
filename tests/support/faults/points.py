"""The crash points that each service has on its way (shared/failpoints.py)."""

from __future__ import annotations

from collections.abc import Mapping

POINTS: Mapping[str, tuple[str, ...]] = {
    "gateway": (
        "commit.accepts.before",
        "commit.accepts.after",
        "publish.session.requested.before",
        "publish.session.requested.after",
        "owed.session.requested.before_mark",
        "publish.session.cancel_requested.before",
        "publish.session.cancel_requested.after",
        "owed.session.cancel_requested.before_mark",
        "commit.endings.before",
        "commit.endings.after",
        "consume.gateway.results.before_ack",
    ),
    "orchestrator": (
        "consume.orchestrator.requests.before_ack",
        "consume.orchestrator.cancels.before_ack",
        "commit.attempts_started.before",
        "commit.attempts_started.after",
        "attempt.after_answer",
        "commit.tasks_concluded.before",
        "commit.tasks_concluded.after",
        "publish.session.ended.before",
        "publish.session.ended.after",
        "owed.session_endings.before_mark",
    ),
    "results": (
        "consume.results.endings.before_ack",
        "publish.result.completed.before",
        "publish.result.completed.after",
    ),
    "billing": (
        "commit.holds.before",
        "commit.holds.after",
        "consume.billing.results.before_ack",
    ),
}
