"""Who may administer."""

import pytest

from gateway.auth import is_local_name, refusal
from gateway.forwarded import Origin, TrustedProxies
from gateway.headers import Headers

HOST: Headers = [(b"host", b"127.0.0.1:8000")]
HERE, PROXY = "127.0.0.1", "127.0.0.2"


def origin(peer: str, headers: Headers) -> Origin:
    """Where a request comes from while one proxy of this machine is trusted."""
    return TrustedProxies([PROXY]).origin(peer, headers)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (b"Bearer s3cret", None),
        (b"bearer s3cret", None),
        (b"Bearer  s3cret ", None),
        (b"Bearer wrong", 401),
        (b"Bearer s3cre", 401),
        (b"Bearer s3crett", 401),
        (b"Bearer", 401),
        (b"Bearer ", 401),
        (b"Basic s3cret", 401),
        (b"s3cret", 401),
        (b"Bearer \xff\xfe", 401),
        (None, 401),
    ],
)
@pytest.mark.parametrize("peer", [HERE, "192.0.2.7"])
def test_with_a_token_the_token_decides(authorization: bytes | None, status: int | None, peer: str) -> None:
    headers = [*HOST, *([(b"authorization", authorization)] if authorization is not None else [])]
    said = refusal(headers, origin(peer, headers), "s3cret")
    assert (said.status if said else None) == status


def test_an_empty_token_lets_nobody_in() -> None:
    for authorization in (b"Bearer", b"Bearer ", b""):
        assert refusal([*HOST, (b"authorization", authorization)], Origin(HERE, own=True), "") is not None


@pytest.mark.parametrize(
    ("why", "peer", "headers"),
    [
        ("curl on this machine", HERE, HOST),
        ("curl on this machine, IPv6", "::1", [(b"host", b"[::1]:8000")]),
        ("HTTP/1.0", HERE, []),
        ("localhost", HERE, [(b"host", b"localhost:8000")]),
        ("localhost without a port", HERE, [(b"host", b"LOCALHOST.")]),
        ("a name of this machine's own", HERE, [(b"host", b"chimera.localhost:8000")]),
        ("another loopback address", "127.8.8.8", HOST),
        ("through a trusted proxy", PROXY, [*HOST, (b"x-forwarded-for", b"127.0.0.1")]),
        ("with the address of a trusted proxy", PROXY, HOST),
        ("the page of this machine", HERE, [*HOST, (b"origin", b"http://127.0.0.1:8000")]),
        ("the page of this machine by name", HERE, [*HOST, (b"origin", b"http://localhost:8080")]),
        ("typed into the browser", HERE, [*HOST, (b"sec-fetch-site", b"none")]),
        ("its own page's script", HERE, [*HOST, (b"sec-fetch-site", b"same-origin")]),
    ],
)
def test_without_a_token_this_machine_may(why: str, peer: str, headers: Headers) -> None:
    assert refusal(headers, origin(peer, headers), None) is None, why


@pytest.mark.parametrize(
    ("why", "peer", "headers"),
    [
        ("another machine", "192.0.2.7", HOST),
        ("another machine, IPv6", "2001:db8::1", HOST),
        ("nobody known", "", HOST),
        ("no address", "unix:/run/x", HOST),
        ("a proxy", HERE, [*HOST, (b"x-forwarded-for", b"192.0.2.7")]),
        ("a proxy, even for this machine", HERE, [*HOST, (b"forwarded", b"for=127.0.0.1")]),
        ("a proxy that names itself", HERE, [*HOST, (b"via", b"1.1 proxy")]),
        ("a proxy of another kind", HERE, [*HOST, (b"x-real-ip", b"127.0.0.1")]),
        ("another machine through a trusted proxy", PROXY, [*HOST, (b"x-forwarded-for", b"192.0.2.7")]),
        ("a trusted proxy that does not know", PROXY, [*HOST, (b"x-forwarded-for", b"127.0.0.1, unknown")]),
        ("a page of another site", HERE, [*HOST, (b"origin", b"https://evil.example")]),
        ("a page of another site that has only an address", HERE, [*HOST, (b"origin", b"http://203.0.113.7")]),
        ("a page of another machine nearby", HERE, [*HOST, (b"origin", b"http://192.168.1.5:8000")]),
        ("a page of nowhere", HERE, [*HOST, (b"origin", b"null")]),
        ("a page that looks local", HERE, [*HOST, (b"origin", b"http://localhost.evil.example")]),
        ("a picture on another site", HERE, [*HOST, (b"sec-fetch-site", b"cross-site")]),
        ("a page of another port", HERE, [*HOST, (b"sec-fetch-site", b"same-site")]),
        ("DNS rebinding", HERE, [(b"host", b"evil.example:8000")]),
        ("DNS rebinding of a look-alike", HERE, [(b"host", b"127.0.0.1.evil.example")]),
        ("an empty name", HERE, [(b"host", b"")]),
    ],
)
def test_without_a_token_nobody_else_may(why: str, peer: str, headers: Headers) -> None:
    said = refusal(headers, origin(peer, headers), None)
    assert said is not None, why
    assert said.status == 403


def test_who_comes_through_a_proxy_that_nobody_declared_is_told_what_to_do() -> None:
    headers = [*HOST, (b"x-forwarded-for", b"192.0.2.7")]
    said = refusal(headers, origin(HERE, headers), None)
    assert said is not None
    assert "ADMIN_TOKEN" in said.sentence
    assert "TRUSTED_PROXIES" in said.sentence


def test_the_machines_own_name_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box7")
    assert is_local_name(b"box7:8000")
    assert not is_local_name(b"box8:8000")
    monkeypatch.setattr("socket.gethostname", lambda: "")
    assert not is_local_name(b"")
