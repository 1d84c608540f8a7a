"""The Quart-Trio application: admin, health, metrics, its own description; and the words for what it does not have."""

import logging
from collections.abc import Callable

from quart import Request, Response
from quart_trio import QuartTrio
from werkzeug.exceptions import BadHost, HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from gateway.access import AccessLog
from gateway.admin import DOMAINS_KEY, PROXIES_KEY, TOKEN_KEY, FleetAdmin, answered, make_admin
from gateway.admin_access import PREFIX, following
from gateway.admin_keys import make_key_pages
from gateway.admission import Admission
from gateway.forwarded import TrustedProxies
from gateway.keyring import Keyring
from gateway.metrics import Metrics
from gateway.openapi import document
from gateway.traefik import NO_DOMAINS, Domains


class Pages(QuartTrio):
    """Quart, with an access line for the admin API.

    Quart finds out that a Host is no name only outside of what it has for errors.
    """

    def __init__(self, name: str, access: Callable[[], AccessLog | None]) -> None:
        """`access` says who writes access lines now; None: nobody."""
        super().__init__(name, static_folder=None)  # else it has a route for files, of which there are none
        self._access = access

    async def handle_request(self, request: Request) -> Response | WerkzeugResponse:
        """As Quart has it; a request to the admin API is followed, and its answer says under which id."""
        if not request.path.startswith(PREFIX):
            return await self._handled(request)
        peer, proxies = str((request.scope.get("client") or ("",))[0]), self.config[PROXIES_KEY]
        headers = [(name.lower(), value) for name, value in request.scope["headers"]]
        with following(self._access, proxies, request.method, request.path, peer, headers) as asked:
            answer = await self._handled(request)
            answer.headers["X-Request-Id"] = asked.id
            asked.status, asked.answer_bytes = answer.status_code, answer.content_length or 0
            return answer

    async def _handled(self, request: Request) -> Response | WerkzeugResponse:
        """As Quart has it; a Host with a label that is empty or too long (RFC 1035, 2.3.4) is refused with 400."""
        try:
            return await super().handle_request(request)
        except BadHost:
            return answered({"error": "Host is no host name or address"}, 400)


def make_app(
    fleet: FleetAdmin, admission: Admission, metrics: Metrics, admin_token: str | None, keyring: Keyring | None = None,
    proxies: TrustedProxies | None = None, domains: Domains = NO_DOMAINS,
    access: Callable[[], AccessLog | None] = lambda: None,
) -> QuartTrio:  # fmt: skip
    """Return the application. Forwarded paths never come here: gateway.asgi answers them.

    `access` says who writes an access line for each request to the admin API; None: nobody.
    """
    app = Pages(__name__, access)
    app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024  # admin bodies are small
    logging.getLogger(__name__).setLevel(logging.WARNING)
    app.config[TOKEN_KEY] = admin_token
    app.config[PROXIES_KEY] = proxies or TrustedProxies()
    app.config[DOMAINS_KEY] = domains
    admin = make_admin(fleet, admission)
    admin.register_blueprint(make_key_pages(keyring or Keyring()))
    app.register_blueprint(admin)

    @app.get("/healthz")
    async def healthz() -> Response:
        return answered({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = len(admission.ready())
        return answered({"ready_workers": ready}, 200 if ready else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        queue = admission.queue()
        text = metrics.render(
            queue["depth"], fleet.instances(), fleet.gpus()["gpus"], queue_bytes=queue["bytes"],
            queue_size=queue["size"], queue_limit_bytes=queue["size_bytes"], queue_oldest_s=queue["oldest_s"],
        )  # fmt: skip
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return answered(document())

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> Response:
        answer = answered({"error": (error.name or "error").lower()}, error.code or 500)
        for name, value in error.get_headers():
            if name.lower() in ("allow", "retry-after"):
                answer.headers[name] = value
        return answer

    return app
