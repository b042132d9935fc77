"""What each service is wired to receive, read from its own `build`: nothing is started, nothing is repeated here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from aiohttp import web

from deploy.local.environment import SERVICES
from deploy.local.stack import Stack
from shared.http import HttpServer
from shared.messaging.consumer import Consumer
from shared.runtime import App


def apps(stack: Stack) -> Iterator[App]:
    """Each service as its process of this stack has built it."""
    for service in SERVICES:
        settings_class = importlib.import_module(f"services.{service}.config").Settings
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stack.processes[service].environ.items():
                patch.setenv(name, value)
            yield importlib.import_module(f"services.{service}.app").build(settings_class())


def received(stack: Stack) -> set[str]:
    """The types of message that have a handler anywhere."""
    consumers = [resource for app in apps(stack) for resource in app.resources if isinstance(resource, Consumer)]
    return {event_type for consumer in consumers for event_type in consumer._handlers}


def changing_endpoints(stack: Stack) -> set[str]:
    """`POST /v1/sessions`: every method and path of every HTTP API that is not there to read."""
    return {
        f"{route.method} {route.resource.canonical}"
        for app in apps(stack)
        for resource in app.resources
        if isinstance(resource, HttpServer)
        for route in _routes(resource._app)
        if route.method not in ("GET", "HEAD") and route.resource is not None
    }


def _routes(app: web.Application) -> list[web.AbstractRoute]:
    return list(app.router.routes())
