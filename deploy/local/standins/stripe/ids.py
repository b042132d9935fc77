"""Ids in Stripe's form: a prefix and letters that rise with every object."""

import hashlib
import itertools
import time

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Ids:
    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        # The same numbers after a restart must not be the same objects: a service may have kept the old ones.
        self._start = time.time_ns()

    def new(self, prefix: str) -> str:
        digest = hashlib.sha256(f"{self._start}:{next(self._numbers)}:{prefix}".encode()).digest()
        return f"{prefix}_" + "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:24])
