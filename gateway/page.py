"""The web page's site on the gateway's port: which requests are for it, and what it says while there is no page."""

import json

from gateway.asgi import App, Message, Receive, Send
from gateway.front import Front
from gateway.headers import value_of
from gateway.hosts import Site, site_of

NO_PAGE = "Chimera has no web page yet; this name is TRAEFIK_FRONTEND_DOMAIN, and the API answers at every other"


class ByHost:
    """The ASGI application that has others answer: `page` at the page's names (`Front.page_names`), else `api`."""

    def __init__(self, front: Front, api: App, page: App) -> None:
        self._front = front
        self._api = api
        self._page = page

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, as the site that it is for answers it."""
        names = self._front.page_names
        if names and scope["type"] == "http" and site_of(value_of(scope["headers"], b"host"), names) is Site.PAGE:
            await self._page(scope, receive, send)
        else:
            await self._api(scope, receive, send)


async def no_page(scope: Message, receive: Receive, send: Send) -> None:
    """Say that there is no page. GET /healthz says that the site is served, for whoever checks that."""
    healthy = scope["path"] == "/healthz" and scope["method"] in ("GET", "HEAD")
    body = json.dumps({"status": "ok"} if healthy else {"error": NO_PAGE}).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200 if healthy else 404, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
