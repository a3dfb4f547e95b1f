"""The web application: five routes that only read. Nothing here changes a pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replicator.escape import ascii_json, escaped
from replicator.monitoring.health import Verdict
from replicator.monitoring.history import EVERY
from replicator.monitoring.monitor import Monitor
from replicator.monitoring.view import view

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
ASSETS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_PAGES = resources.files("replicator.monitoring") / "pages"


class _Headers:
    """Adds HEADERS to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def application(monitor: Monitor, hosts: list[str]) -> Starlette:
    """``hosts``: the names by which it may be asked for, so that no other site's page can read it through a name that
    it points to this machine ("*": any).
    """
    render = _renderer()

    async def page(request: Request) -> Response:
        return HTMLResponse(render("page.html", monitor))

    async def fragment(request: Request) -> Response:
        return HTMLResponse(render("fragment.html", monitor))

    async def metrics(request: Request) -> Response:
        return Response(monitor.metrics.text(), headers={"content-type": PROMETHEUS})

    async def healthz(request: Request) -> Response:
        return _verdict(monitor.health())

    async def readyz(request: Request) -> Response:
        return _verdict(monitor.readiness())

    async def status(request: Request) -> Response:
        return _json(monitor.status())

    routes: dict[str, Callable[[Request], Any]] = {
        "/": page,
        "/fragment": fragment,
        "/metrics": metrics,
        "/healthz": healthz,
        "/readyz": readyz,
        "/status.json": status,
        **{f"/{name}": _asset(name, kind) for name, kind in ASSETS.items()},
    }
    return Starlette(
        routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        lifespan=_sampling(monitor),
    )


def _sampling(monitor: Monitor) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    """Keeps the history while the application runs."""

    async def sample() -> None:
        while True:
            monitor.sample()
            await asyncio.sleep(EVERY)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(sample())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    return lifespan


def _renderer() -> Callable[[str, Monitor], str]:
    """Everything that a template prints is escaped twice: active characters, then HTML."""
    environment = Environment(
        loader=FunctionLoader(lambda name: (_PAGES / name).read_text()),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = lambda points: ascii_json(json.dumps(points))
    templates = {name: environment.get_template(name) for name in ("page.html", "fragment.html")}
    return lambda name, monitor: templates[name].render(view=view(monitor))


def _verdict(verdict: Verdict) -> Response:
    return _json({"ok": verdict.ok, "reason": escaped(verdict.reason)}, 200 if verdict.ok else 503)


def _json(value: object, status: int = 200) -> Response:
    return Response(ascii_json(json.dumps(value)) + "\n", status, media_type="application/json")


def _asset(name: str, kind: str) -> Callable[[Request], Any]:
    content = (_PAGES / name).read_bytes()

    async def asset(request: Request) -> Response:
        return Response(content, media_type=kind)

    return asset
