"""The web application: routes that only read. Nothing here changes a pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replicator.escape import ascii_json, escaped
from replicator.monitoring.board import Board
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
Endpoint = Callable[[Request], Any]
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
    return _application(_routes(_renderer(), lambda _: monitor), hosts, lambda: [monitor])


def application_of_several(board: Board, hosts: list[str]) -> Starlette:
    """An overview, and below the name of each pipeline what ``application`` has for one."""
    render = _renderer()

    def of_pipeline(request: Request) -> Monitor:
        monitor = board.find(request.path_params["pipeline"])
        if monitor is None:
            raise HTTPException(404)
        return monitor

    async def overview(_: Request) -> Response:
        return HTMLResponse(render("board.html", views=[view(monitor) for monitor in board.monitors]))

    async def metrics(_: Request) -> Response:
        return Response(board.metrics(), headers={"content-type": PROMETHEUS})

    async def healthz(_: Request) -> Response:
        return _verdict(board.health())

    async def readyz(_: Request) -> Response:
        return _verdict(board.readiness())

    async def status(_: Request) -> Response:
        return _json(board.status())

    own = {"/": overview, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz, "/status.json": status}
    each = Mount("/{pipeline}", routes=_routes(render, of_pipeline))
    return _application([*_gets({**own, **_assets()}), each], hosts, lambda: board.monitors)


def _routes(render: Callable[..., str], monitor_of: Callable[[Request], Monitor]) -> list[BaseRoute]:
    """What there is about one pipeline."""

    async def page(request: Request) -> Response:
        return HTMLResponse(render("page.html", view=view(monitor_of(request))))

    async def fragment(request: Request) -> Response:
        return HTMLResponse(render("fragment.html", view=view(monitor_of(request))))

    async def metrics(request: Request) -> Response:
        return Response(monitor_of(request).metrics.text(), headers={"content-type": PROMETHEUS})

    async def healthz(request: Request) -> Response:
        return _verdict(monitor_of(request).health())

    async def readyz(request: Request) -> Response:
        return _verdict(monitor_of(request).readiness())

    async def status(request: Request) -> Response:
        return _json(monitor_of(request).status())

    own = {"/": page, "/fragment": fragment, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz}
    return _gets({**own, "/status.json": status, **_assets()})


def _assets() -> dict[str, Endpoint]:
    return {f"/{name}": _asset(name, kind) for name, kind in ASSETS.items()}


def _gets(endpoints: Mapping[str, Endpoint]) -> list[BaseRoute]:
    return [Route(path, endpoint, methods=["GET"]) for path, endpoint in endpoints.items()]


def _application(routes: list[BaseRoute], hosts: list[str], monitors: Callable[[], Sequence[Monitor]]) -> Starlette:
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        lifespan=_sampling(monitors),
    )


def _sampling(
    monitors: Callable[[], Sequence[Monitor]],
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    """Keeps the histories while the application runs."""

    async def sample() -> None:
        while True:
            for monitor in monitors():
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


def _renderer() -> Callable[..., str]:
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
    templates = {name: environment.get_template(name) for name in ("page.html", "fragment.html", "board.html")}
    return lambda name, **values: templates[name].render(values)


def _verdict(verdict: Verdict) -> Response:
    return _json({"ok": verdict.ok, "reason": escaped(verdict.reason)}, 200 if verdict.ok else 503)


def _json(value: object, status: int = 200) -> Response:
    return Response(ascii_json(json.dumps(value)) + "\n", status, media_type="application/json")


def _asset(name: str, kind: str) -> Callable[[Request], Any]:
    content = (_PAGES / name).read_bytes()

    async def asset(request: Request) -> Response:
        return Response(content, media_type=kind)

    return asset
