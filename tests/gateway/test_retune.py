"""A running gateway is given other values, which count from the next request on."""

from dataclasses import replace

import trio

from gateway.access import AccessLog, json_line
from gateway.admin import TOKEN_KEY
from gateway.admission import Admission
from gateway.app import make_app
from gateway.book import Book
from gateway.connections import Connections
from gateway.exchange import Exchange
from gateway.front import Front
from gateway.keyring import Keyring
from gateway.metrics import Metrics
from gateway.pulls import Pulls
from gateway.retune import Tunable, Tuning
from gateway.traefik import Domains
from gateway.upstream import Upstream
from tests.fakes.fleet_admin import FakeFleet
from tests.gateway.test_admin import LOCAL

TUNING = Tuning(
    queue_size=7, queue_bytes=5000, queue_timeout_s=9.0, max_body_bytes=4000, pin_load_options=True, max_connections=5,
    admin_token="new", api_keys_required=True, trusted_proxies=("127.0.0.1",),
    domains=Domains(("api.example",), ("page.example",)), access=None,
)  # fmt: skip


class Silent:
    """Hears of no worker."""

    def no_progress(self, worker_id: str, ready_at: float, phase: str, silent_s: float) -> None:
        """It does not matter."""

    def runner_died(self, worker_id: str, ready_at: float) -> None:
        """It does not matter."""


def gateway() -> Tunable:
    admission, metrics, keyring = Admission(4, 300.0, lambda: 0.5), Metrics(), Keyring()
    upstream = Upstream(first_byte_timeout_s=1, stall_timeout_s=1)
    exchange = Exchange(admission, upstream, metrics, 1, Silent())
    book = Book(metrics)
    front = Front(exchange, Pulls(exchange), metrics, max_body_bytes=1000, keyring=keyring, book=book)
    pages = make_app(FakeFleet(), admission, metrics, "old", keyring, front.proxies)
    return Tunable(admission, front, book, Connections(100), pages, keyring)


async def test_each_value_arrives_where_it_is_looked_at() -> None:
    it = gateway()
    it.retune(TUNING)
    dispatcher = it.admission.dispatcher
    assert (dispatcher.queue_size, dispatcher.queue_bytes, it.admission.queue_timeout_s) == (7, 5000, 9.0)
    assert (it.front._max_body_bytes, it.front._pin_load_options, it.front._reading.most_bytes) == (4000, True, 5000)
    assert it.front.page_names == {b"page.example"}
    assert (it.connections.bound, it.keyring.required, it.book.access) == (5, True, None)
    it.retune(replace(TUNING, max_body_bytes=9000, access=(log := AccessLog(print, "on", form=json_line, now=print))))  # type: ignore[arg-type]
    assert it.front._reading.most_bytes == 9000
    assert it.book.access is log


async def test_the_admin_token_is_another_from_one_request_to_the_next() -> None:
    it = gateway()
    client = it.pages.test_client()

    async def status(token: str | None) -> int:
        headers = {"host": "127.0.0.1:8000"} | ({"authorization": f"Bearer {token}"} if token else {})
        answer = await client.get("/admin/instances", headers=headers, scope_base=LOCAL["scope_base"])
        return answer.status_code

    assert [await status(token) for token in ("old", "new", None)] == [200, 401, 401]
    it.retune(TUNING)
    assert [await status(token) for token in ("old", "new", None)] == [401, 200, 401]
    it.retune(replace(TUNING, admin_token=None))
    assert it.pages.config[TOKEN_KEY] is None
    assert await status(None) == 200  # this machine itself


async def test_a_proxy_is_believed_from_one_request_to_the_next() -> None:
    it = gateway()
    it.retune(replace(TUNING, admin_token=None, trusted_proxies=()))
    client = it.pages.test_client()

    async def status() -> int:
        headers = {"host": "127.0.0.1:8000", "x-forwarded-for": "127.0.0.1"}
        answer = await client.get("/admin/instances", headers=headers, scope_base=LOCAL["scope_base"])
        return answer.status_code

    assert await status() == 403
    it.retune(replace(TUNING, admin_token=None))
    assert await status() == 200


async def test_other_names_are_told_of_from_one_request_to_the_next() -> None:
    it = gateway()
    it.retune(replace(TUNING, admin_token=None, domains=Domains()))
    assert (await it.pages.test_client().get("/admin/traefik", **LOCAL)).status_code == 404
    it.retune(replace(TUNING, admin_token=None))
    assert b"api.example" in await (await it.pages.test_client().get("/admin/traefik", **LOCAL)).get_data()


async def test_a_ticket_that_waits_already_stays_in_a_queue_that_has_become_too_small() -> None:
    it = gateway()
    it.admission.fleet_wanted(1)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            async with it.admission.lease(it.admission.ticket("m")):
                await trio.sleep_forever()

        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        it.retune(replace(TUNING, queue_size=1))
        await trio.testing.wait_all_tasks_blocked()
        assert it.admission.queue()["depth"] == 3
        nursery.cancel_scope.cancel()
