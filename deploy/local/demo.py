"""One request from accept to charge, shown so that a reader learns what the system did with it."""

import time
from collections.abc import Mapping
from typing import Any

from deploy.local.plain_http import ask
from deploy.local.seed import Account, SeedError

QUESTION = "In one sentence: what does a message broker do?"
TERMINAL = ("completed", "incomplete", "failed", "cancelled", "refused")
REQUEST_SECONDS = 120
CHARGE_SECONDS = 10
PATIENCE_SECONDS = 2
"""How long nothing is said of a request that has not ended."""
LINE_CHARACTERS = 120


def show_one_request(base: str, account: Account) -> None:
    session = ask("POST", f"{base}/v1/sessions", key=account.key, body={})
    print(f"\nPOST /v1/sessions -> {session['id']}")
    path = f"/v1/sessions/{session['id']}/requests"
    accepted = ask("POST", base + path, key=account.key, body={"input": QUESTION})
    print(f"POST {path} -> 202 {accepted['id']} {accepted['status']}")
    request = _await_end(base, account, accepted["id"])
    _print_request(request)
    _print_timeline(_timeline(base, account, request["id"]))


def _await_end(base: str, account: Account, request_id: str) -> dict[str, Any]:
    """Polls as a client would, until the request is terminal and, where one is due, its charge is known."""
    began = told_at = time.monotonic()
    charge_deadline = None
    while True:
        request: dict[str, Any] = ask("GET", f"{base}/v1/requests/{request_id}", key=account.key)
        now = time.monotonic()
        if request["status"] in TERMINAL:
            charge_deadline = charge_deadline or now + CHARGE_SECONDS
            if request.get("charge") or now > charge_deadline:
                return request
        elif now > began + REQUEST_SECONDS:
            _print_timeline(_timeline(base, account, request_id))
            raise SeedError(f"request {request_id} is still {request['status']} after {REQUEST_SECONDS} s")
        elif now > told_at + PATIENCE_SECONDS:
            told_at = now
            waits = f", waiting on {request['waiting_on']}" if request["waiting_on"] else ""
            print(f"  {request['status']} after {now - began:.0f} s{waits}", flush=True)
        time.sleep((request.get("poll_after_ms") or 250) / 1000)


def _print_request(request: Mapping[str, Any]) -> None:
    print(f"GET /v1/requests/{request['id']} -> {request['status']}\n")
    if request.get("output"):
        print(f"  input   {QUESTION}\n  output  {request['output']['text']}")
    if request.get("error"):
        print(f"  error   {request['error']['code']}: {request['error']['message']}")
    print(f"  usage   {request.get('usage')}\n  charge  {request.get('charge')}")


def _timeline(base: str, account: Account, request_id: str) -> list[Mapping[str, Any]]:
    entries: list[Mapping[str, Any]]
    entries = ask("GET", f"{base}/v1/requests/{request_id}/timeline", key=account.key)["entries"]
    return entries


def _print_timeline(entries: list[Mapping[str, Any]]) -> None:
    print("\n  timeline")
    for entry in entries:
        clock = entry["at"].partition("T")[2][:12]
        data = " ".join(f"{name}={_short(value)}" for name, value in entry["data"].items() if value is not None)
        line = data if len(data) <= LINE_CHARACTERS else data[: LINE_CHARACTERS - 3] + "..."
        print(f"  {clock:<13} {entry['service']:<13} {entry['type']:<18} {line}")


def _short(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value
