"""Who the client is: whom a trusted proxy speaks for, and nobody whom anybody else says."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.forwarded import (
    MOST_PROXIES,
    Caller,
    Origin,
    TrustedProxies,
    forwarded,
    is_loopback,
    node_address,
    x_forwarded_for,
)
from gateway.headers import Headers

HERE, PROXY, OTHER_PROXY, CLIENT, LIAR = "127.0.0.1", "10.0.0.1", "10.0.0.2", "203.0.113.9", "198.51.100.66"
TRUSTED = TrustedProxies([HERE, "10.0.0.0/8", "fd00::/8"])


def xff(*lines: str) -> Headers:
    return [(b"accept", b"*/*"), *((b"x-forwarded-for", line.encode("latin1")) for line in lines)]


def std(*lines: str) -> Headers:
    return [(b"forwarded", line.encode("latin1")) for line in lines]


# -- whose word counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "peer", "headers", "address"),
    [
        ("nothing is said", PROXY, [], PROXY),
        ("a stranger says it", LIAR, xff(CLIENT), LIAR),
        ("a stranger says it in the standard's way", LIAR, std(f"for={CLIENT}"), LIAR),
        ("a proxy says it", PROXY, xff(CLIENT), CLIENT),
        ("a proxy says it in the standard's way", PROXY, std(f"for={CLIENT}"), CLIENT),
        ("a proxy on this machine", HERE, xff(CLIENT), CLIENT),
        ("its address written as IPv6", "::ffff:10.0.0.1", xff(CLIENT), CLIENT),
        ("its address with a zone", "fd00::1%eth0", xff(CLIENT), CLIENT),
        ("two proxies", PROXY, xff(f"{CLIENT}, {OTHER_PROXY}"), CLIENT),
        ("two proxies, a line each", PROXY, xff(CLIENT, OTHER_PROXY), CLIENT),
        ("two proxies, a line each, in the standard's way", PROXY, std(f"for={CLIENT}", f"for={OTHER_PROXY}"), CLIENT),
        ("the client has lied to the proxy", PROXY, xff(f"{LIAR}, {CLIENT}"), CLIENT),
        ("with a line of its own", PROXY, xff(LIAR, CLIENT), CLIENT),
        ("as a trusted proxy", PROXY, xff(f"{LIAR}, {OTHER_PROXY}, {CLIENT}"), CLIENT),
        ("in the standard's way", PROXY, std(f"for={LIAR}, for={CLIENT}"), CLIENT),
        ("with a quote that does not end", PROXY, std(f'for={LIAR};by="', f"for={CLIENT}"), PROXY),
        ("with what is no address", PROXY, xff(f"nonsense, {CLIENT}"), CLIENT),
        ("a proxy does not know", PROXY, xff(f"{LIAR}, unknown"), PROXY),
        ("a proxy hides its client", PROXY, std("for=_hidden"), PROXY),
        ("a proxy behind a proxy hides its client", PROXY, xff(f"{LIAR}, _x, {OTHER_PROXY}"), OTHER_PROXY),
        ("a proxy says other things only", PROXY, std("proto=https;by=10.0.0.1"), PROXY),
        ("a proxy says nobody", PROXY, xff(""), PROXY),
        ("all are proxies: the first asked", PROXY, xff(f"10.0.0.7, {OTHER_PROXY}"), "10.0.0.7"),
        ("both ways, the same", PROXY, [*xff(CLIENT), *std(f'for="{CLIENT}:4711"')], CLIENT),
        ("both ways: one of them is the client's own", PROXY, [*xff(CLIENT), *std(f"for={LIAR}")], PROXY),
        ("both ways: whichever it is", PROXY, [*xff(LIAR), *std(f"for={CLIENT}")], PROXY),
        ("another header", PROXY, [(b"x-real-ip", CLIENT.encode())], PROXY),
        ("IPv6", PROXY, xff("2001:DB8::9"), "2001:db8::9"),
        ("IPv4 written as IPv6", PROXY, xff(f"::ffff:{CLIENT}"), CLIENT),
    ],
)
def test_the_client(why: str, peer: str, headers: Headers, address: str) -> None:
    assert TRUSTED.origin(peer, headers).address == address, why
    assert Caller(peer, TRUSTED).of(headers) == address, why


@pytest.mark.parametrize(
    ("why", "peer", "headers", "own"),
    [
        ("a program on this machine", HERE, [], True),
        ("another machine", CLIENT, [], False),
        ("through a proxy here", HERE, xff(HERE), True),
        ("through a proxy here, in the standard's way", HERE, std('for="[::1]:4711"'), True),
        ("through two proxies here", HERE, xff(f"{HERE}, {HERE}"), True),
        ("another machine through a proxy here", HERE, xff(CLIENT), False),
        ("it says it were here", HERE, xff(f"{HERE}, {CLIENT}"), False),
        ("a loopback address of another machine", PROXY, xff(HERE), False),
        ("a loopback address of another machine, behind a proxy here", HERE, xff(f"{HERE}, {PROXY}"), False),
        ("a proxy here does not know", HERE, xff(f"{HERE}, unknown"), False),
        ("a proxy here says nobody", HERE, xff(""), False),
        ("a proxy here, and two answers", HERE, [*xff(HERE), *std(f"for={CLIENT}")], False),
        ("a proxy here that names itself alone", HERE, [(b"via", b"1.1 proxy")], False),
        ("a proxy here that is not trusted", "127.0.0.2", xff("127.0.0.2"), False),
        ("a proxy here that is not trusted, and says little", "127.0.0.2", [(b"x-forwarded-proto", b"https")], False),
    ],
)
def test_what_is_this_machines_own(why: str, peer: str, headers: Headers, own: bool) -> None:
    found = TRUSTED.origin(peer, headers)
    assert found.own is own, why


def test_nobody_is_trusted_unless_it_is_said() -> None:
    for headers in (xff(CLIENT), std(f"for={CLIENT}")):
        assert TrustedProxies().origin(HERE, headers) == Origin(HERE, own=False)


def test_who_is_trusted_may_change_while_a_connection_is_open() -> None:
    proxies = TrustedProxies()
    caller = Caller(PROXY, proxies)
    assert caller.of(xff(CLIENT)) == PROXY
    proxies.settle([PROXY])
    assert caller.of(xff(CLIENT)) == CLIENT
    proxies.settle([OTHER_PROXY])
    assert caller.of(xff(CLIENT)) == PROXY


@pytest.mark.parametrize("headers", [xff, std])
def test_a_list_without_end_is_not_looked_through(headers: object) -> None:
    proxies = [f"10.1.0.{number}" for number in range(MOST_PROXIES)]
    listed = (
        xff(", ".join([LIAR, *proxies])) if headers is xff else std(", ".join(f"for={a}" for a in [LIAR, *proxies]))
    )
    assert TRUSTED.origin(HERE, listed) == Origin(proxies[0], own=False)
    here = xff(", ".join([HERE] * (MOST_PROXIES + 1)))
    assert TRUSTED.origin(HERE, here) == Origin(HERE, own=False)


# -- how it is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.43", "192.0.2.43"),
        ("192.0.2.43:47011", "192.0.2.43"),
        ("192.0.2.43:_port", "192.0.2.43"),
        ("2001:db8:cafe::17", "2001:db8:cafe::17"),
        ("[2001:db8:cafe::17]", "2001:db8:cafe::17"),
        ("[2001:db8:cafe::17]:4711", "2001:db8:cafe::17"),
        ("[2001:db8:cafe::17]:_a.b-c_", "2001:db8:cafe::17"),
        ("::ffff:192.0.2.43", "192.0.2.43"),
        *((text, None) for text in (
            "", "unknown", "_hidden", "_SEVKISEK", "localhost", "192.0.2", "192.0.2.256", "192.0.2.043", "1.2.3.4:",
            "1.2.3.4:123456", "1.2.3.4:x", "[1.2.3.4]", "[::1", "::1]", "[::1]x", "[::1]:", "2001:db8::1:::", ":",
            "[:]", "fe80::1%eth0", "fe80::1%<script>", "1.2.3.4 ", "1.2.3.4\n", "\u0661.2.3.4", '"1.2.3.4"', "1" * 5000,
        )),
    ],
)  # fmt: skip
def test_a_node(text: str, address: str | None) -> None:
    found = node_address(text)
    assert (None if found is None else str(found)) == address


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("", [""]),
        ("1.1.1.1", ["1.1.1.1"]),
        ("1.1.1.1,2.2.2.2", ["1.1.1.1", "2.2.2.2"]),
        (" 1.1.1.1 ,\t2.2.2.2 ", ["1.1.1.1", "2.2.2.2"]),
        ("1.1.1.1,,", ["1.1.1.1", "", ""]),
    ],
)
def test_x_forwarded_for(text: str, nodes: list[str]) -> None:
    assert x_forwarded_for(text) == nodes


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("for=192.0.2.60;proto=http;by=203.0.113.43", ["192.0.2.60"]),
        ('For="[2001:db8:cafe::17]:4711"', ["[2001:db8:cafe::17]:4711"]),
        ("for=192.0.2.43, for=198.51.100.17", ["192.0.2.43", "198.51.100.17"]),
        ('for=_gazonk, FOR="_x", for=unknown', ["_gazonk", "_x", "unknown"]),
        ('by="a,b;for=1.1.1.1";for=2.2.2.2', ["2.2.2.2"]),
        (r'for="1\.1.1.\1"', ["1.1.1.1"]),
        ("for=1.1.1.1; proto=https , for=2.2.2.2", ["1.1.1.1", "2.2.2.2"]),
        ("for=1.1.1.1;;by=x;", ["1.1.1.1"]),
        (",, for=1.1.1.1,", ["1.1.1.1"]),
        ("proto=https", [None]),
        ("for=1.1.1.1;for=2.2.2.2", [None]),
        ("for=1.1.1.1;for=1.1.1.1, for=2.2.2.2", [None, "2.2.2.2"]),
        ("", []),
        (",;", []),
        # not of the standard's form: nobody can say where its elements end
        *((text, [None]) for text in (
            "1.1.1.1", "for", "for=", "for =1.1.1.1", "for= 1.1.1.1", "for=[::1]", "for=1.1.1.1:80", 'for="1.1.1.1',
            'for="1.1.1.1"x', "for=1.1.1.1 for=2.2.2.2", "for=1.1.1.1, =", 'for=1.1.1.1;by=", for=2.2.2.2', "for=\xe9",
            'for="\\',
        )),
    ],
)  # fmt: skip
def test_forwarded(text: str, nodes: list[str | None]) -> None:
    assert forwarded(text) == nodes


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::1%lo", True), ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("localhost", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_loopback(address: str | None, loopback: bool) -> None:
    assert is_loopback(address) is loopback


# -- whatever is sent --------------------------------------------------------------------------------------------------

LATIN1 = st.text(st.characters(max_codepoint=255), max_size=60)
WORDS = st.lists(
    st.sampled_from(["for=", "by=", HERE, PROXY, LIAR, "::1", "[", "]", ":", ",", ";", '"', "\\", " ", "_x", "unknown"])
    | LATIN1,
    max_size=12,
).map("".join)
BEFORE = st.builds(lambda name, text: (name, text.encode("latin1")),
                   st.sampled_from([b"forwarded", b"x-forwarded-for"]), WORDS)  # fmt: skip


@given(st.lists(BEFORE, max_size=4))
def test_whom_a_stranger_names_never_counts(headers: Headers) -> None:
    assert TRUSTED.origin(LIAR, headers) == Origin(LIAR, own=False)


@given(st.lists(WORDS, max_size=3))
@example(['for=1.1.1.1;by="'])
def test_what_a_client_wrote_before_a_proxy_added_it_changes_nothing(lies: list[str]) -> None:
    """X-Forwarded-For: whatever stood there before. Forwarded: the same, or the proxy alone is known."""
    assert TRUSTED.origin(HERE, xff(*lies, CLIENT)) == Origin(CLIENT, own=False)
    assert TRUSTED.origin(HERE, xff(", ".join([*lies, CLIENT]))) == Origin(CLIENT, own=False)
    for added in (f"for={CLIENT}", f'for="{CLIENT}:4711"', f"for={CLIENT};proto=https;by=_x"):
        for sent in (std(*lies, added), std(", ".join([*lies, added]))):
            assert TRUSTED.origin(HERE, sent) in (Origin(CLIENT, own=False), Origin(HERE, own=False))


@given(WORDS)
def test_no_text_does_more_than_name_nobody(text: str) -> None:
    for nodes in (x_forwarded_for(text), forwarded(text)):
        for node in nodes:
            assert node is None or node_address(node) is None or node_address(str(node_address(node))) is not None


@given(st.ip_addresses(), st.none() | st.integers(0, 65535))
def test_an_address_reads_back_with_and_without_its_port(address: object, port: int | None) -> None:
    mapped = getattr(address, "ipv4_mapped", None) or address
    bracketed = f"[{address}]" if ":" in str(address) else str(address)
    node = bracketed if port is None else f"{bracketed}:{port}"
    assert node_address(node) == node_address(str(address)) == mapped
    assert forwarded(f'for="{node}"') == [node]
