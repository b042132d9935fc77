"""Ask one question and follow its answer by polling, over a network that may drop at any moment.

    python examples/poll.py "Why is the sky blue?"

The text shows on stderr while it grows; what Parley stored goes to stdout. Only the standard library is used, and
three things make it safe to lose any connection at any byte:

- POSTs carry an Idempotency-Key that is made before the first try, so a repeat never runs or pays twice;
- GETs name the cursor of the last event that was seen, so a repeat goes on where the last answer ended;
- hanging up never cancels: the request runs on, and its log can be read for as long as it is kept.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shlex
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WAIT_SECONDS = 25
PAUSE_SECONDS_MAX = 5.0
LOCAL_ENV = Path(__file__).parents[1] / ".local" / "env"


class GaveUp(Exception):
    """Parley refused the call, or could not be reached for too long."""


class Client:
    """Repeats every call until it is answered: all of them may be repeated."""

    def __init__(self, base_url: str, api_key: str, *, patience_seconds: float) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise GaveUp(f"PARLEY_URL must start with http:// or https://, and is {base_url}")
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._patience_seconds = patience_seconds

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        # Made once for all tries of this call: that is the whole trick.
        return self._call("POST", path, {"Idempotency-Key": str(uuid.uuid4())}, json.dumps(body).encode())

    def get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path, {}, None)

    def _call(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> dict[str, Any]:
        headers |= {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._base_url + path, body, headers, method=method)  # noqa: S310
        gives_up_at = time.monotonic() + self._patience_seconds
        pause_seconds = 0.2
        while True:
            try:
                with urllib.request.urlopen(request, timeout=WAIT_SECONDS + 10) as response:  # noqa: S310
                    answer: dict[str, Any] = json.load(response)
                    return answer
            except urllib.error.HTTPError as error:
                reason, told_seconds = self._worth_repeating(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                # Refused, reset, timed out, or cut in the middle of the answer: the server may have acted or not.
                reason, told_seconds = str(getattr(error, "reason", error)) or type(error).__name__, 0.0
            if time.monotonic() > gives_up_at:
                raise GaveUp(f"no answer from {self._base_url} for {self._patience_seconds:g} s: {reason}")
            print(f"\n[{reason}: trying again]", file=sys.stderr)
            time.sleep(max(told_seconds, pause_seconds * random.uniform(0.5, 1.0)))
            pause_seconds = min(pause_seconds * 2, PAUSE_SECONDS_MAX)

    @staticmethod
    def _worth_repeating(error: urllib.error.HTTPError) -> tuple[str, float]:
        """What happened and how long to wait; raises where a repeat would get the same answer."""
        text = error.read().decode(errors="replace")
        if error.code != 429 and error.code < 500:
            raise GaveUp(f"{error.code} {text}") from None
        told = error.headers.get("Retry-After", "0")
        return f"HTTP {error.code}", float(told) if told.isdecimal() else 0.0


def follow(client: Client, request_id: str, cursor: int = 0) -> Iterator[dict[str, Any]]:
    """Every event after `cursor`, each once and in order, until the log is closed."""
    while True:
        page = client.get(f"/v1/requests/{request_id}/events?after={cursor}&wait={WAIT_SECONDS}")
        yield from page["events"]
        cursor = page["next"]
        if page["closed"]:
            return


def ask(client: Client, question: str, session_id: str | None) -> dict[str, Any]:
    """The request as it ended. Its text is shown while it grows."""
    if session_id is None:
        session_id = client.post("/v1/sessions", {})["id"]
    request_id = client.post(f"/v1/sessions/{session_id}/requests", {"input": question})["id"]
    print(f"[{request_id} in {session_id}]", file=sys.stderr)
    for event in follow(client, request_id):
        show(event)
    return client.get(f"/v1/requests/{request_id}")


def show(event: dict[str, Any]) -> None:
    match event["type"]:
        case "output.delta" | "refusal.delta":
            print(event["data"]["text"], end="", file=sys.stderr, flush=True)
        case "output.superseded":
            print("\n[that attempt failed; forget the text above]", file=sys.stderr)
        case "attempt.started":
            pass
        case closing:
            print(f"\n[{closing}]", file=sys.stderr)


def setting(name: str) -> str:
    """From the environment, or from the file that `make run` writes."""
    if name in os.environ:
        return os.environ[name]
    words = shlex.split(LOCAL_ENV.read_text(), comments=True) if LOCAL_ENV.exists() else []
    for word in words:
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    raise GaveUp(f"{name} is not set: start Parley with `make run`, or set it yourself")


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask one question and follow its answer by polling.")
    parser.add_argument("question")
    parser.add_argument("--session", help="go on with this conversation")
    parser.add_argument("--patience", type=float, default=300, help="seconds without any answer before giving up")
    arguments = parser.parse_args()
    try:
        client = Client(setting("PARLEY_URL"), setting("PARLEY_API_KEY"), patience_seconds=arguments.patience)
        request = ask(client, arguments.question, arguments.session)
    except GaveUp as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if request["output"] is None:
        print(f"{request['status']}: {request['error']}", file=sys.stderr)
        return 1
    print(request["output"]["text"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
