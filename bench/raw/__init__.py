"""The raw pipeline: the job alone, without any promise. Frozen: it is the yardstick, so it does not change.

client -> front: POST, one confirmed publish to a quorum queue, 202
          worker: one provider call through shared/http_client.py, streamed, one confirmed publish, ack
          store: one insert, ack, a hint that wakes the front
client -> front: GET by key from the database; with `wait` it is answered when the row is there

No accounts, sessions, order, billing, retries, limits, deadlines, event log, deduplication or healing. It waits as
Parley does, for a poll that asks again would cost the raw pipeline more: register, read, sleep until woken, read.
"""
