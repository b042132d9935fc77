"""Everything the Stripe process remembers: objects by kind, events, and who is told of a change."""

import copy
import time
from typing import Any

from deploy.local.standins.gates import Gates
from deploy.local.standins.rules import Rules
from deploy.local.standins.stripe import catalog
from deploy.local.standins.stripe.call_log import ApiCall, CallLog, CallMatch, Fault, no_key
from deploy.local.standins.stripe.delivery import Deliveries
from deploy.local.standins.stripe.errors import missing
from deploy.local.standins.stripe.idempotency import Keys
from deploy.local.standins.stripe.ids import Ids
from deploy.local.standins.stripe.treatment import Settings
from deploy.local.standins.stripe.versions import Versions
from deploy.local.standins.waiting import Watch

Object = dict[str, Any]


class State:
    def __init__(self, settings: Settings, log_calls_max: int) -> None:
        self.watch = Watch()
        self.log = CallLog(log_calls_max, self.watch)
        self.gates: Gates[ApiCall] = Gates(CallMatch, self.log.held)
        self._first_settings = copy.deepcopy(settings)
        self.deliveries = Deliveries(copy.deepcopy(settings), self.watch)
        self._start()

    def _start(self) -> None:
        self.ids = Ids()
        self.versions = Versions()
        self.keys: frozenset[str] | None = None  # None accepts any key that is not empty
        self.clock_offset_seconds = 0
        self.faults: Rules[ApiCall, Fault] = Rules(CallMatch, Fault, no_key)
        self.idempotency = Keys()
        self.objects: dict[str, dict[str, Object]] = {}
        self.checkout_params: dict[str, Object] = {}  # what a session was asked for and does not show
        self.entitled: dict[str, list[str]] = {}  # customer -> lookup keys set by hand
        self.features_of_product = copy.deepcopy(catalog.FEATURES)
        self.last_entitlements: dict[str, list[str]] = {}
        for product in catalog.products(self.now()):
            self.put("product", product)
        for price in catalog.prices(self.now()):
            self.put("price", price)

    def reset(self) -> None:
        self._start()
        self.gates.open_all()
        self.log.clear()
        self.deliveries.reset(copy.deepcopy(self._first_settings))

    def now(self) -> int:
        return int(time.time()) + self.clock_offset_seconds

    def put(self, kind: str, item: Object) -> Object:
        self.objects.setdefault(kind, {})[item["id"]] = item
        return item

    def all(self, kind: str) -> list[Object]:
        """Newest first, as Stripe lists."""
        return list(reversed(self.objects.get(kind, {}).values()))

    def get(self, kind: str, identity: str, param: str = "id") -> Object:
        item = self.objects.get(kind, {}).get(identity)
        if item is None:
            raise missing(kind, identity, param)
        return item

    def customer(self, identity: str, param: str = "id") -> Object:
        """A customer that is not deleted."""
        customer = self.get("customer", identity, param)
        if customer.get("deleted"):
            raise missing("customer", identity, param)
        return customer

    def find(self, identity: str) -> Object | None:
        return next((items[identity] for items in self.objects.values() if identity in items), None)

    def emit(self, event_type: str, item: Object, previous: Object | None = None, request: str | None = None) -> Object:
        """Record the event of a change, as a copy of the object now, and hand it to the deliveries."""
        data: Object = {"object": copy.deepcopy(item)}
        if previous is not None:
            data["previous_attributes"] = previous
        event: Object = {
            "id": self.ids.new("evt"),
            "object": "event",
            "api_version": None,
            "created": self.now(),
            "data": data,
            "livemode": False,
            "pending_webhooks": 1 if self.deliveries.settings.url else 0,
            "request": {"id": request, "idempotency_key": None},
            "type": event_type,
        }
        self.put("event", event)
        self.deliveries.add(event, lambda: self.versions.event(event))
        self.watch.changed()
        return event

    def counters(self) -> dict[str, int]:
        return self.log.counters() | self.deliveries.counters() | {"events": len(self.objects.get("event", {}))}
