"""Requests for the page's own names, by a socket and through both lanes, while there is no page."""

import json

import pytest

from gateway import express
from gateway.hosts import names_of
from gateway.page import NO_PAGE
from tests.fakes.door import CHAT, House
from tests.fakes.worker_server import says

PAGE = "chimera.example.com"


@pytest.fixture
def routed(house: House) -> House:
    house.front.page_names = names_of([PAGE])
    return house


def get(path: str, host: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


@pytest.mark.parametrize("host", [PAGE, PAGE.upper() + ".:8000"])
async def test_every_path_of_the_page_says_that_there_is_none(routed: House, host: str) -> None:
    server = await routed.hall.worker("a", says(b"{}"))
    client = await routed.client()
    for path in ("/", "/admin/instances", "/api/ps", "/anything"):
        await client.send(get(path, host))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert json.loads(await client.until(b"\n")) == {"error": NO_PAGE}
    await client.send(get("/healthz", host))
    assert (await client.until(b'{"status": "ok"}\n')).startswith(b"HTTP/1.1 200")
    assert server.received == []


async def test_a_request_with_a_body_for_the_page_ends_nothing(routed: House) -> None:
    client = await routed.client()
    for _ in range(2):
        await client.send(
            f"POST /api/chat HTTP/1.1\r\nHost: {PAGE}\r\nContent-Length: {len(CHAT)}\r\n\r\n".encode() + CHAT
        )
        await client.until(NO_PAGE.encode())


@pytest.mark.parametrize("host", ["api.example.com", "localhost:8000", "127.0.0.1", "[::1]:8000", "evil.example"])
async def test_every_other_host_is_the_apis(routed: House, host: str) -> None:
    await routed.hall.worker("a", says(b'{"model":"m"}'))
    client = await routed.client()
    await client.send(f"POST /api/chat HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(CHAT)}\r\n\r\n".encode() + CHAT)
    await client.until(b'{"model":"m"}')
    await client.send(get("/healthz", host))
    await client.until(b'{"status": "ok"}\n')


async def test_one_connection_may_ask_for_both_sites(routed: House) -> None:
    await routed.hall.worker("a", says(b'{"model":"m"}'))
    client = await routed.client()
    await client.post("/api/chat", CHAT)
    await client.until(b'{"model":"m"}')
    await client.send(get("/api/chat", PAGE))
    await client.until(NO_PAGE.encode())
    await client.post("/api/chat", CHAT)
    await client.until(b'{"model":"m"}')


async def test_an_absolute_target_names_the_host(routed: House) -> None:
    """RFC 9112, 3.2.2: Host is then not looked at."""
    client = await routed.client()
    await client.send(f"GET http://{PAGE}/x HTTP/1.1\r\nHost: api.example.com\r\n\r\n".encode())
    await client.until(NO_PAGE.encode())


async def test_where_no_name_is_set_no_request_is_looked_at_for_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object) -> None:
        raise AssertionError("a call too much on the way of every request")

    monkeypatch.setattr(express, "site_of", looked)
    monkeypatch.setattr("gateway.page.site_of", looked)
    await house.hall.worker("a", says(b'{"model":"m"}'))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    await client.until(b'{"model":"m"}')
    await client.send(get("/healthz", PAGE))
    await client.until(b'{"status": "ok"}\n')
