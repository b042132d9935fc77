"""JSON over HTTP by the standard library: what the launcher needs to watch and seed a stack, from synchronous code."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

TIMEOUT_SECONDS = 70


class CallError(Exception):
    """The call was refused or not answered; the text has the method, the URL and the reason."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def call(method: str, url: str, *, key: str = "", body: object = None, form: Mapping[str, str] | None = None) -> Reply:
    """Any answer is a reply, an error status too; CallError where there is no answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    content = None
    if form is not None:
        content, headers["Content-Type"] = urlencode(form).encode(), "application/x-www-form-urlencoded"
    elif body is not None:
        content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    request = urllib.request.Request(url, data=content, headers=headers, method=method)
    try:
        with _opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return Reply(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read())
    except OSError as error:
        raise CallError(f"{method} {url}: {error}") from error


def ask(method: str, url: str, *, key: str = "", body: object = None, form: Mapping[str, str] | None = None) -> Any:
    """The JSON of a 2xx; CallError for everything else."""
    reply = call(method, url, key=key, body=body, form=form)
    if not 200 <= reply.status < 300:
        raise CallError(f"{method} {url}: {reply.status} {reply.body.decode(errors='replace')[:500]}")
    return reply.json() if reply.body else None


def answers_ok(url: str) -> bool:
    try:
        return call("GET", url).status == 200
    except CallError:
        return False


# Everything asked here listens on this machine: a proxy set in the environment must not see it.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
