"""The orchestrator: gets an answer for each turn out of LLM providers that vary, fail, stall and limit.

Owns: tasks, attempts, waits, token buckets, cooldowns, workers (its own database).
Receives: `session.requested`, `session.cancel_requested`.
Publishes: `session.ended` (owed by the task's row), `session.progressed` (best effort).
Serves: health and metrics.
"""
