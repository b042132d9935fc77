"""The gateway: the front door. HTTP in, commands out.

owns       accounts, API keys, sessions, requests as their owners see them, idempotency keys, a copy of eligibility
receives   result.completed | incomplete | failed | refused | cancelled, result.updated, eligibility.changed
publishes  session.requested, session.cancel_requested, session.abandoned; requests.moved (best effort)
serves     the public API under /v1
"""
