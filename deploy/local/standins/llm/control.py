"""The provider's control port.

GET    /health                    {"ok": true}
POST   /reset                     rules, mix, default, gates, limits, keys, log and counters as at the start
GET    /rules  POST /rules  DELETE /rules      {"rules": [{"match": {...}, "steps": [behaviour...], "nth"?, "repeat"?}]}
PUT    /default                   a behaviour for every call without a rule; {} for the plain one
PUT    /mix    DELETE /mix        {"seed": 7, "faults": [{"probability": 0.1, "behaviour": {...}}]}
PUT    /limits                    {"requests_per_minute"?, "tokens_per_minute"?, "enforce"?}
PUT    /keys                      {"keys": [...]} required keys; {"keys": null} accepts any
PUT    /models                    {"models": [...]} listed, and others refused with 404
PUT    /gates/{name}              {"match": {...}} holds matching calls at arrival; {} waits for stalls that name it
POST   /gates/{name}/release      {"count": 1} lets some pass;  DELETE /gates/{name} opens it;  GET /gates
GET    /calls  DELETE /calls      ?marker= outcome= status= model= behaviour= key_hash= contains= after= limit=
GET    /counters                  ?marker=
POST   /await                     {"until": "in_flight >= 3", "marker"?, "timeout_seconds"?} 200, or 408 when late
"""

from aiohttp import web

from deploy.local.standins.control import ControlError, body_of, control_app, filled, number_of, timeout_of
from deploy.local.standins.llm.behaviour import Behaviour
from deploy.local.standins.llm.limits import Limits
from deploy.local.standins.llm.script import Mix
from deploy.local.standins.llm.state import State
from deploy.local.standins.waiting import condition

_CALLS_LIMIT = 1_000


class Control:
    def __init__(self, state: State) -> None:
        self._state = state

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def reset(self, _: web.Request) -> web.Response:
        self._state.reset()
        return web.json_response({"ok": True})

    async def list_rules(self, _: web.Request) -> web.Response:
        return web.json_response({"rules": self._state.script.rules.view()})

    async def add_rules(self, request: web.Request) -> web.Response:
        rules = (await body_of(request)).get("rules")
        if not isinstance(rules, list):
            raise ControlError('send {"rules": [...]}')
        return web.json_response({"rules": [self._state.script.rules.add(rule) for rule in rules]})

    async def delete_rules(self, _: web.Request) -> web.Response:
        self._state.script.rules.clear()
        return web.json_response({"ok": True})

    async def put_default(self, request: web.Request) -> web.Response:
        self._state.script.default = filled(Behaviour, await body_of(request))
        return web.json_response({"ok": True})

    async def put_mix(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        try:
            faults = [(float(f["probability"]), filled(Behaviour, f["behaviour"])) for f in body["faults"]]
            self._state.script.mix = Mix(int(body["seed"]), faults)
        except (KeyError, TypeError, ValueError) as error:
            raise ControlError(f"a mix is {{seed, faults: [{{probability, behaviour}}]}}: {error!r}") from None
        return web.json_response({"ok": True})

    async def delete_mix(self, _: web.Request) -> web.Response:
        self._state.script.mix = None
        return web.json_response({"ok": True})

    async def put_limits(self, request: web.Request) -> web.Response:
        self._state.limits = filled(Limits, await body_of(request))
        return web.json_response({"ok": True})

    async def put_keys(self, request: web.Request) -> web.Response:
        keys = (await body_of(request)).get("keys")
        self._state.keys = None if keys is None else frozenset(keys)
        return web.json_response({"ok": True})

    async def put_models(self, request: web.Request) -> web.Response:
        self._state.models = tuple((await body_of(request)).get("models", ()))
        self._state.models_checked = True
        return web.json_response({"ok": True})

    async def list_gates(self, _: web.Request) -> web.Response:
        return web.json_response({"gates": self._state.gates.view()})

    async def close_gate(self, request: web.Request) -> web.Response:
        self._state.gates.close(request.match_info["name"], (await body_of(request)).get("match"))
        return web.json_response({"ok": True})

    async def release_gate(self, request: web.Request) -> web.Response:
        count = int((await body_of(request)).get("count", 1))
        return web.json_response({"released": self._state.gates.release(request.match_info["name"], count)})

    async def open_gate(self, request: web.Request) -> web.Response:
        return web.json_response({"released": self._state.gates.open(request.match_info["name"])})

    async def list_calls(self, request: web.Request) -> web.Response:
        limit, after = number_of(request.query.get("limit"), _CALLS_LIMIT), number_of(request.query.get("after"), 0)
        return web.json_response({"calls": self._state.log.select(request.query, after, limit)})

    async def delete_calls(self, _: web.Request) -> web.Response:
        self._state.log.clear()
        return web.json_response({"ok": True})

    async def counters(self, request: web.Request) -> web.Response:
        return web.json_response(dict(self._state.log.counters(request.query.get("marker"))))

    async def wait(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        log, marker = self._state.log, body.get("marker")
        holds = condition(str(body.get("until")), lambda: log.counters(marker))
        reached = await log.watch.until(holds, timeout_of(body))
        return web.json_response(dict(log.counters(marker)), status=200 if reached else 408)


def control_routes(state: State) -> web.Application:
    control = Control(state)
    app = control_app()
    app.add_routes(
        [
            web.get("/health", control.health),
            web.post("/reset", control.reset),
            web.get("/rules", control.list_rules),
            web.post("/rules", control.add_rules),
            web.delete("/rules", control.delete_rules),
            web.put("/default", control.put_default),
            web.put("/mix", control.put_mix),
            web.delete("/mix", control.delete_mix),
            web.put("/limits", control.put_limits),
            web.put("/keys", control.put_keys),
            web.put("/models", control.put_models),
            web.get("/gates", control.list_gates),
            web.put("/gates/{name}", control.close_gate),
            web.post("/gates/{name}/release", control.release_gate),
            web.delete("/gates/{name}", control.open_gate),
            web.get("/calls", control.list_calls),
            web.delete("/calls", control.delete_calls),
            web.get("/counters", control.counters),
            web.post("/await", control.wait),
        ]
    )
    return app
