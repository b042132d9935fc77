"""The orchestrator's SQL: one function per query, its guard in its name."""

from services.orchestrator.store.attempts import AttemptStore
from services.orchestrator.store.buckets import BucketStore
from services.orchestrator.store.endings import EndingStore, LockedTask
from services.orchestrator.store.tasks import Arrival, TaskStore
from services.orchestrator.store.workers import HeldTask, WorkerStore

__all__ = [
    "Arrival",
    "AttemptStore",
    "BucketStore",
    "EndingStore",
    "HeldTask",
    "LockedTask",
    "TaskStore",
    "WorkerStore",
]
