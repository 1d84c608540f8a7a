"""Which site a Host leads to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hosts import Site, names_of, site_of

PAGES = names_of(["chimera.example.com", "xn--bcher-kva.example"])


@pytest.mark.parametrize(
    ("host", "site"),
    [
        (b"chimera.example.com", Site.PAGE),
        (b"chimera.example.com:443", Site.PAGE),
        (b"chimera.example.com:8000", Site.PAGE),
        (b"chimera.example.com:", Site.PAGE),
        (b"CHIMERA.Example.COM", Site.PAGE),
        (b"chimera.example.com.", Site.PAGE),
        (b"Chimera.example.com.:8000", Site.PAGE),
        (b"xn--bcher-kva.example", Site.PAGE),
        (b"api.example.com", Site.API),
        (b"example.com", Site.API),
        (b"a.chimera.example.com", Site.API),
        (b"chimera.example.com.evil.example", Site.API),
        (b"chimera.example.com..", Site.API),
        (b"evil-chimera.example.com", Site.API),
        (b"localhost:8000", Site.API),
        (b"127.0.0.1:8000", Site.API),
        (b"[::1]:8000", Site.API),
        (b"[::1]", Site.API),
        (b"::1", Site.API),
        (b"192.0.2.7", Site.API),
        (b"", Site.API),
        (b":8000", Site.API),
        (None, Site.API),
    ],
)
def test_only_the_pages_own_names_lead_to_the_page(host: bytes | None, site: Site) -> None:
    assert site_of(host, PAGES) is site
    assert site_of(host, frozenset()) is Site.API


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?){0,3}", fullmatch=True)


@given(NAMES, st.lists(NAMES, max_size=3), st.integers(0, 65535) | st.none(), st.booleans(), st.booleans())
def test_port_case_and_last_dot_never_matter(
    name: str, pages: list[str], port: int | None, capital: bool, dot: bool
) -> None:
    asked = (name.upper() if capital else name) + ("." if dot else "") + ("" if port is None else f":{port}")
    assert site_of(asked.encode(), names_of(pages)) is (Site.PAGE if name in pages else Site.API)


@given(st.binary(max_size=40))
def test_whatever_is_sent_leads_somewhere(host: bytes) -> None:
    assert site_of(host, PAGES) in Site
