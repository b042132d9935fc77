"""The SQL of billing, one class for each group of tables and one method for each query."""

from __future__ import annotations

from dataclasses import dataclass

from services.billing.store.checkouts import CheckoutStore
from services.billing.store.decisions import DecisionStore
from services.billing.store.events import EventStore
from services.billing.store.facts import FactStore
from services.billing.store.holds import HoldStore
from services.billing.store.records import RecordStore
from shared.postgres import Database


@dataclass(frozen=True)
class Stores:
    """All of them over one database."""

    events: EventStore
    facts: FactStore
    decisions: DecisionStore
    checkouts: CheckoutStore
    holds: HoldStore
    records: RecordStore


def build_stores(database: Database) -> Stores:
    return Stores(
        events=EventStore(database),
        facts=FactStore(database),
        decisions=DecisionStore(database),
        checkouts=CheckoutStore(database),
        holds=HoldStore(database),
        records=RecordStore(database),
    )
