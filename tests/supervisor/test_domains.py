"""Host names in settings."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.domains import domains, in_both


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("api.example.com", ("api.example.com",)),
        ("API.Example.com.", ("api.example.com",)),
        (" a.example , b.example ,, A.example", ("a.example", "b.example")),
        ("box", ("box",)),
        ("1and1.example", ("1and1.example",)),
        ("xn--bcher-kva.example", ("xn--bcher-kva.example",)),
        ("a" * 63 + ".example", ("a" * 63 + ".example",)),
        (",", ()),
    ],
)
def test_names_are_read_as_a_host_header_has_them(text: str, names: tuple[str, ...]) -> None:
    assert domains(text) == names


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://api.example.com", "without https://, port and path"),
        ("api.example.com:8000", "without https://, port and path"),
        ("api.example.com/v1", "without https://, port and path"),
        ("[::1]", "without https://, port and path"),
        ("192.0.2.7", "is an address"),
        ("bücher.example", "write it in ASCII (xn--…)"),
        ("*.example.com", "is not a host name"),
        ("my_box.example", "is not a host name"),
        ("-a.example", "is not a host name"),
        ("a..example", "is not a host name"),
        ("a b.example", "is not a host name"),
        ("a" * 64 + ".example", "is not a host name"),
        (".".join(["a" * 60] * 5), "is not a host name"),
        ("good.example, bad_.example,b_", "'bad_.example' is not a host name such as api.example.org; 'b_' is not"),
    ],
)
def test_what_is_no_host_name_is_refused_with_what_to_write(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        domains(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_and_what_was_read_reads_as_the_same(text: str) -> None:
    try:
        names = domains(text)
    except ValueError:
        return
    assert isinstance(names, tuple)
    assert domains(",".join(names)) == names


def test_one_name_for_both_is_a_fault_each() -> None:
    assert in_both(("a", "b", "c"), ("c", "d", "a")) == [
        "TRAEFIK_FRONTEND_DOMAIN: c is in TRAEFIK_API_DOMAIN too; each needs names of its own",
        "TRAEFIK_FRONTEND_DOMAIN: a is in TRAEFIK_API_DOMAIN too; each needs names of its own",
    ]
