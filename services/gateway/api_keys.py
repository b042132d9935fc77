"""API keys: a prefix that names the kind, a random secret, and a checksum that rejects typos without a look-up."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Scope: TypeAlias = Literal["account", "admin"]

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BASE: Final = len(_ALPHABET)
_SECRET_LENGTH: Final = 43  # 43 base62 digits hold 256 bits
_CHECKSUM_LENGTH: Final = 6
_PREFIX_BY_SCOPE: Final[dict[Scope, str]] = {"account": "pk_live_", "admin": "pa_live_"}
_PATTERN: Final = re.compile(
    rf"(pk_live_|pa_live_)([0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})"
)


@dataclass(frozen=True)
class NewKey:
    """A key at the moment it is made: the only time that its text exists outside its owner's hands."""

    text: str
    secret_hash: bytes
    last_four: str


def new_key(scope: Scope, pepper: str) -> NewKey:
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
    body = _PREFIX_BY_SCOPE[scope] + secret
    text = body + _checksum(body)
    return NewKey(text, hash_key(text, pepper), text[-4:])


def is_well_formed(text: str) -> bool:
    """Whether `text` has the form of a key and its checksum is right; says nothing about its existence."""
    match = _PATTERN.fullmatch(text)
    return match is not None and _checksum(match[1] + match[2]) == match[3]


def hash_key(text: str, pepper: str) -> bytes:
    """What is stored of a key. A slow hash adds nothing to a secret of 256 random bits."""
    return hmac.digest(pepper.encode(), text.encode(), hashlib.sha256)


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        digits = _ALPHABET[value % _BASE] + digits
        value //= _BASE
    return digits
