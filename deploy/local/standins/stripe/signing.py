"""The Stripe-Signature header: `t=<unix seconds>,v1=<HMAC-SHA256 of "t.body" in hex>`."""

import hashlib
import hmac


def signature(body: bytes, secret: str, timestamp: int) -> str:
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def header(body: bytes, secrets: list[str], timestamp: int) -> str:
    """One v1 for each secret, as during a rotation."""
    return ",".join([f"t={timestamp}", *(f"v1={signature(body, secret, timestamp)}" for secret in secrets)])
