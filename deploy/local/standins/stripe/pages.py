"""Two plain pages, so that a person can walk through checkout and portal in a browser."""

from html import escape

from aiohttp import web

from deploy.local.standins.stripe import checkout, subscriptions
from deploy.local.standins.stripe.errors import StripeError
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<body style="font-family:sans-serif;max-width:32rem;margin:4rem auto"><h1>{title}</h1>{body}</body></html>"""


def _page(title: str, body: str, status: int = 200) -> web.Response:
    text = _PAGE.format(title=escape(title), body=body)
    return web.Response(status=status, text=text, content_type="text/html")


def _button(action: str, label: str) -> str:
    return f'<form method="post"><button name="action" value="{escape(action)}">{escape(label)}</button></form>'


class Pages:
    def __init__(self, state: State) -> None:
        self._state = state

    async def show_checkout(self, request: web.Request) -> web.Response:
        session = self._session("checkout.session", request)
        if session["status"] != "open":
            return _page("Checkout", f"<p>This session is {escape(session['status'])}.</p>")
        amount = f"<p>{session['amount_total'] / 100:.2f} {escape(session['currency'])}</p>"
        return _page("Checkout", amount + _button("pay", "Pay") + _button("cancel", "Go back"))

    async def act_on_checkout(self, request: web.Request) -> web.Response:
        session = self._session("checkout.session", request)
        if (await request.post()).get("action") != "pay":
            raise web.HTTPSeeOther(session["cancel_url"] or request.path)
        try:
            checkout.complete(self._state, session["id"], "paid")
        except StripeError as error:
            return _page("Checkout", f"<p>{escape(error.message)}</p>", error.status)
        target = (session["success_url"] or request.path).replace("{CHECKOUT_SESSION_ID}", session["id"])
        raise web.HTTPSeeOther(target)

    async def show_portal(self, request: web.Request) -> web.Response:
        session = self._session("billing_portal.session", request)
        mine = subscriptions.of_customer(self._state, session["customer"])
        rows = [f"<p>{escape(s['id'])}: {escape(s['status'])}</p>" + _button(s["id"], "Cancel") for s in mine]
        back = f'<p><a href="{escape(session["return_url"] or "")}">Back</a></p>'
        return _page("Billing portal", "".join(rows) + back)

    async def act_on_portal(self, request: web.Request) -> web.Response:
        session = self._session("billing_portal.session", request)
        chosen = str((await request.post()).get("action"))
        if any(s["id"] == chosen for s in subscriptions.of_customer(self._state, session["customer"])):
            subscriptions.cancel(self._state, Asked(), chosen)
        raise web.HTTPSeeOther(request.path)

    def _session(self, kind: str, request: web.Request) -> Object:
        session = self._state.objects.get(kind, {}).get(request.match_info["id"])
        if session is None:
            raise web.HTTPNotFound(text="no such session")
        return session


def add(app: web.Application, state: State) -> None:
    pages = Pages(state)
    app.router.add_get("/c/pay/{id}", pages.show_checkout)
    app.router.add_post("/c/pay/{id}", pages.act_on_checkout)
    app.router.add_get("/p/session/{id}", pages.show_portal)
    app.router.add_post("/p/session/{id}", pages.act_on_portal)
