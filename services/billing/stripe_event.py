"""A stored event: something to look at in Stripe, and how far we are with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

Family = Literal["snapshot", "thin", "look"]


class EventState(StrEnum):
    """The same words stand in the CHECK of the table `stripe_events`."""

    RECEIVED = "received"
    FAILED = "failed"
    APPLIED = "applied"
    IGNORED = "ignored"
    DEAD = "dead"


NEXT: Final[Mapping[EventState, frozenset[EventState]]] = {
    # The worker applies it, ignores it with a reason, or fails and backs off.
    EventState.RECEIVED: frozenset({EventState.APPLIED, EventState.IGNORED, EventState.FAILED, EventState.DEAD}),
    # A later try; the last one that fails makes it dead.
    EventState.FAILED: frozenset({EventState.APPLIED, EventState.IGNORED, EventState.FAILED, EventState.DEAD}),
    # An operator's `reconcile` gives the dead another chance.
    EventState.DEAD: frozenset({EventState.RECEIVED}),
    EventState.APPLIED: frozenset(),
    EventState.IGNORED: frozenset(),
}


class EventMalformed(ValueError):
    """Signed, but not an event we can keep; the text says what is missing."""


@dataclass(frozen=True)
class StripeEvent:
    """What we keep of an event. It only says which object to look at: its own copy of the object is never applied."""

    event_id: str
    family: Family
    type: str
    livemode: bool | None
    api_version: str | None
    customer_id: str | None
    subscription_id: str | None
    charge_id: str | None = None
    raw: bytes | None = None
    secret_index: int | None = None


_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,255}")
_OBJECT_OF_FAMILY: Final = {"snapshot": "event", "thin": "v2.core.event"}

_LOOKED_AT: Final = frozenset({"customer", "subscription", "invoice", "checkout.session"})
"""Kinds of object whose events can mean that a subscription or its customer changed."""
_OF_A_CHARGE: Final = frozenset({"dispute", "refund", "radar.early_fraud_warning"})
"""Kinds that name the charge they are about."""


def parse_event(
    document: object,
    *,
    family: Literal["snapshot", "thin"],
    raw: bytes | None = None,
    secret_index: int | None = None,
) -> StripeEvent:
    """The event in a webhook's body, or in an answer of the events API (no `raw`). Raises EventMalformed."""
    if not isinstance(document, Mapping):
        raise EventMalformed("the body is not a JSON object")
    if document.get("object") != _OBJECT_OF_FAMILY[family]:
        raise EventMalformed(f"`object` is not {_OBJECT_OF_FAMILY[family]}")
    event_id, event_type = _id(document.get("id")), _id(document.get("type"))
    if event_id is None or event_type is None:
        raise EventMalformed("`id` and `type` must be ids of at most 255 letters, digits, dots and underscores")
    livemode, version = document.get("livemode"), document.get("api_version")
    customer_id, subscription_id, charge_id = _subject(document, family)
    return StripeEvent(
        event_id=event_id,
        family=family,
        type=event_type,
        livemode=livemode if isinstance(livemode, bool) else None,
        api_version=_id(version),
        customer_id=customer_id,
        subscription_id=subscription_id,
        charge_id=charge_id,
        raw=raw if raw is not None else json.dumps(document).encode(),
        secret_index=secret_index,
    )


def look_event(event_id: str, *, customer_id: str | None, subscription_id: str | None) -> StripeEvent:
    """A reason of our own to look at an object: a sweep found a difference, or a clock ran out."""
    return StripeEvent(event_id, "look", "parley.look", None, None, customer_id, subscription_id)


def _subject(document: Mapping[str, Any], family: str) -> tuple[str | None, str | None, str | None]:
    """The customer, the subscription and the charge that the event is about, as far as it says; none of them where it
    is about something else."""
    if family == "thin":
        related = document.get("related_object")
        related = related if isinstance(related, Mapping) else {}
        return *_customer_and_subscription(related.get("type"), related), None
    data = document.get("data")
    found = data.get("object") if isinstance(data, Mapping) else None
    if not isinstance(found, Mapping):
        raise EventMalformed("`data.object` is missing")
    # Most events about charges tell of payments as such, which their invoices tell of too.
    if document.get("type") == "charge.refunded":
        return None, None, _id(found.get("id"))
    if found.get("object") in _OF_A_CHARGE:
        return None, None, _id_of(found.get("charge"))
    return *_customer_and_subscription(found.get("object"), found), None


def _customer_and_subscription(kind: object, found: Mapping[str, Any]) -> tuple[str | None, str | None]:
    if kind not in _LOOKED_AT:
        return None, None
    if kind == "customer":
        return _id(found.get("id")), None
    customer_id = _id_of(found.get("customer"))
    return customer_id, _id(found.get("id")) if kind == "subscription" else None


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def _id_of(value: object) -> str | None:
    return _id(value.get("id") if isinstance(value, Mapping) else value)
