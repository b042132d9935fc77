"""The errors that cross a boundary, each with what the boundary does about it."""

from __future__ import annotations

from collections.abc import Mapping


class ParleyError(Exception):
    """The base of everything raised on purpose."""


class Transient(ParleyError):
    """The world is not ready (database, broker or peer away): the same call may succeed later."""


class Unprocessable(ParleyError):
    """This message can never be handled: it is parked with `reason`, a stable code and a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class IllegalTransition(ParleyError):
    """A state machine was asked for a move that its NEXT table does not have."""


class Problem(ParleyError):
    """An HTTP answer in RFC 9457 form; raised anywhere below a route, rendered by one middleware."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def not_found(what: str) -> Problem:
    """A foreign id and an unknown id get the same answer."""
    return Problem(404, f"{what}_not_found", f"There is no such {what}.")
