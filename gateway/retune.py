"""What of a running gateway can be set anew: one place that knows where each value is looked at."""

from dataclasses import dataclass

from quart import Quart

from gateway.access import AccessLog
from gateway.admin import DOMAINS_KEY, TOKEN_KEY
from gateway.admission import Admission
from gateway.book import Book
from gateway.connections import Connections, fit_descriptors
from gateway.front import Front
from gateway.hosts import names_of
from gateway.keyring import Keyring
from gateway.traefik import Domains


@dataclass(frozen=True, slots=True)
class Tuning:
    """The values. `access` None: no line for each request."""

    queue_size: int
    queue_bytes: int
    queue_timeout_s: float
    max_body_bytes: int
    pin_load_options: bool
    max_connections: int
    admin_token: str | None
    api_keys_required: bool
    trusted_proxies: tuple[str, ...]
    domains: Domains
    access: AccessLog | None


@dataclass(frozen=True, slots=True)
class Tunable:
    """The parts of a running gateway that look at them."""

    admission: Admission
    front: Front
    book: Book
    connections: Connections
    pages: Quart
    keyring: Keyring

    def retune(self, tuning: Tuning) -> None:
        """Let new values count, from the next request on: one under way, or in the queue, has been let in already.

        A plain call: no request sees some of them new and others old.
        """
        self.admission.queue_timeout_s = tuning.queue_timeout_s
        self.admission.dispatcher.queue_size = tuning.queue_size
        self.admission.dispatcher.queue_bytes = tuning.queue_bytes
        self.front.settle(
            max_body_bytes=tuning.max_body_bytes, pin_load_options=tuning.pin_load_options,
            page_names=names_of(tuning.domains.page),
        )  # fmt: skip
        self.book.access = tuning.access
        self.connections.bound = fit_descriptors(tuning.max_connections)
        self.pages.config[TOKEN_KEY] = tuning.admin_token
        self.pages.config[DOMAINS_KEY] = tuning.domains
        self.keyring.required = tuning.api_keys_required
        self.front.proxies.settle(tuning.trusted_proxies)
