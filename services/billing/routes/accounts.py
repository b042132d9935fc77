"""What other services ask about an account: eligibility, usage, and the way to Stripe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web

from services.billing.deciding import Deciding
from services.billing.purchasing import Purchasing
from services.billing.routes.owner import account_in_path
from services.billing.schemas import CheckoutAsked, EligibilityAnswer, PortalAsked
from services.billing.store.records import PeriodUse, RecordStore
from shared.contracts.billing import EligibilityChanged, UsageReport
from shared.http import json_response, read_model


class AccountRoutes:
    """Everything under /internal/accounts."""

    def __init__(
        self,
        deciding: Deciding,
        purchasing: Purchasing,
        records: RecordStore,
        *,
        announce: Callable[[Sequence[EligibilityChanged]], None],
    ) -> None:
        self._deciding = deciding
        self._purchasing = purchasing
        self._records = records
        self._announce = announce

    def routes(self) -> list[web.RouteDef]:
        account = "/internal/accounts/{account_id}"
        return [
            web.get(f"{account}/eligibility", self.eligibility),
            web.get(f"{account}/usage", self.usage),
            web.post(f"{account}/checkout", self.checkout),
            web.post(f"{account}/portal", self.portal),
        ]

    async def eligibility(self, request: web.Request) -> web.Response:
        account_id = account_in_path(request)
        answer, changes = await self._deciding.answer(account_id)
        self._announce(changes)
        if not answer.decision.permits:
            await self._purchasing.look_for_payment(account_id)
        eligibility = answer.decision.eligibility()
        return json_response(
            EligibilityAnswer(
                **dict(eligibility), account_id=account_id, sequence=answer.sequence, decided_at=answer.decided_at
            )
        )

    async def usage(self, request: web.Request) -> web.Response:
        account_id = account_in_path(request)
        answer, changes = await self._deciding.answer(account_id)
        self._announce(changes)
        decision = answer.decision
        period = decision.period
        use = await self._records.select_period_use(account_id, period.start) if period is not None else None
        use = use or PeriodUse(decision.granted_tokens, settled=0, held=0, requests_charged=0)
        return json_response(
            UsageReport(
                plan=decision.plan,
                period_start=period.start if period is not None else None,
                period_end=period.end if period is not None else None,
                granted_tokens=decision.granted_tokens,
                settled_tokens=use.settled,
                held_tokens=use.held,
                requests_charged=use.requests_charged,
            )
        )

    async def checkout(self, request: web.Request) -> web.Response:
        account_id = account_in_path(request)
        return json_response(
            {"url": await self._purchasing.checkout(account_id, await read_model(request, CheckoutAsked))}
        )

    async def portal(self, request: web.Request) -> web.Response:
        account_id = account_in_path(request)
        asked = await read_model(request, PortalAsked)
        return json_response({"url": await self._purchasing.portal(account_id, asked.return_url)})
