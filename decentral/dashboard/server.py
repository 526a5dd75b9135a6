"""Serves the page and what it shows, on a thread of its own with its own event loop: training waits for no browser.

Read-only: there is nothing here that a request could change. It is the one module that needs the extra ``dashboard``.
"""

import secrets
import threading
import time
from http import HTTPStatus

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from decentral.dashboard import page
from decentral.dashboard.place import Place
from decentral.monitor.history import History

#: At a time; who comes then is told to come again.
_MAX_REQUESTS = 32
_CLOSE_S = 3.0
_MIN_GZIP_BYTES = 1000
_HEADERS = {
    "Content-Security-Policy": page.POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server:
    """The page at a place, until ``close``.

    Args:
        history: what is shown.
        place: where; closed with it.
    """

    def __init__(self, history: History, place: Place) -> None:
        self.url = place.url
        config = uvicorn.Config(
            app(history, place),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_REQUESTS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._place = place
        self._thread = threading.Thread(
            target=self._server.run, args=([place.listener],), name="decentral-dashboard", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End it. Idempotent."""
        self._server.should_exit = True
        self._thread.join(_CLOSE_S)
        self._place.listener.close()


def app(history: History, place: Place) -> Starlette:
    """The page's routes: itself, its files, and ``api/state``, which docs/dashboard.md describes."""

    async def index(request: Request) -> Response:
        return HTMLResponse(page.live_page(place.token))

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (*page.STYLES, *page.SCRIPTS):
            return PlainTextResponse("There is no such file.", HTTPStatus.NOT_FOUND)
        return Response(page.read(name), media_type=page.TYPES[name.rpartition(".")[2]])

    async def state(request: Request) -> Response:
        since = request.query_params.get("since", "0")
        number = int(since) if since.isascii() and since.isdecimal() and len(since) < 16 else 0
        return JSONResponse({**history.state(number), "now": round(time.time(), 1)})

    return Starlette(
        routes=[Route("/", index), Route("/static/{name}", static), Route("/api/state", state)],
        middleware=[Middleware(_Guard, place=place), Middleware(GZipMiddleware, minimum_size=_MIN_GZIP_BYTES)],
    )


class _Guard:
    """Lets nothing through that is not for this place or lacks its token; tells browsers what the page may do."""

    def __init__(self, app: ASGIApp, place: Place) -> None:
        self._app, self._place = app, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(scope) or self._app
        await answer(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """What is said to who may not ask; ``None`` if it may."""
        if not self._place.admits(Headers(scope=scope).get("host", "")):
            text = "This is not the name of this machine. Use its IP address."
            return PlainTextResponse(text, HTTPStatus.MISDIRECTED_REQUEST)
        given = QueryParams(scope["query_string"]).get("token", "")
        if self._place.token and not secrets.compare_digest(given.encode(), self._place.token.encode()):
            text = "The token is missing or wrong. Open the whole address that the worker has printed."
            return PlainTextResponse(text, HTTPStatus.FORBIDDEN)
        return None
