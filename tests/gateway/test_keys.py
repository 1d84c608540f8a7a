"""API keys: their form, which header presents one, and how one is found again."""

import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import Headers, first_values
from gateway.keys import SECRET_BYTES, Key, KeyBook, digest_of, make_secret, presented, priority_of, shown
from gateway.limits import Limits

SECRET = make_secret(bytes(range(SECRET_BYTES)))
OTHER = make_secret(b"\xff" * SECRET_BYTES)
RANDOM = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def key(key_id: str = "k1", secret: str = SECRET) -> Key:
    return Key(
        key_id, "somebody", shown(secret), Limits(), 0, False, datetime(2026, 1, 1, tzinfo=UTC),
        digest_of(secret.encode()),
    )  # fmt: skip


def bearer(secret: str, scheme: str = "Bearer") -> Headers:
    return [(b"authorization", f"{scheme} {secret}".encode())]


def test_a_key_has_a_form_that_people_and_scanners_know() -> None:
    assert SECRET == "chimera-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert shown(SECRET) == "chimera-AAEC"


def test_what_is_kept_is_one_sha256() -> None:
    assert digest_of(b"x") == hashlib.sha256(b"x").digest()


def test_a_key_never_shows_its_hash() -> None:
    known = key()
    assert known.digest.hex() not in repr(known)
    assert repr(known.digest) not in repr(known)


@given(RANDOM)
def test_every_key_that_is_made_can_be_presented(random: bytes) -> None:
    secret = make_secret(random)
    for headers in (bearer(secret), [(b"x-api-key", secret.encode())]):
        found = presented(first_values(headers))
        assert found == secret.encode()


@pytest.mark.parametrize(
    ("why", "headers", "secret"),
    [
        ("OpenAI's and Ollama's clients", bearer(SECRET), SECRET),
        ("in any case", bearer(SECRET, "bearer"), SECRET),
        ("with spaces", bearer(f" {SECRET} "), SECRET),
        ("Anthropic's clients", [(b"x-api-key", SECRET.encode())], SECRET),
        ("one beside a client's default", [*bearer("unused"), (b"x-api-key", SECRET.encode())], SECRET),
        ("of two the first", [*bearer(SECRET), (b"x-api-key", OTHER.encode())], SECRET),
        ("not ours", bearer("sk-1234"), None),
        ("not ours, in its form but for its length", bearer(SECRET + "A"), None),
        ("cut", bearer(SECRET[:-1]), None),
        ("with a line end", bearer(SECRET[:-1] + "\n"), None),
        ("no ASCII", [(b"authorization", b"Bearer \xff\xfe")], None),
    ],
)
def test_which_header_gives_a_key(why: str, headers: Headers, secret: str | None) -> None:
    found = presented(first_values(headers))
    assert found == (b"" if secret is None else secret.encode()), why


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"")],
        bearer(SECRET, "Basic"),
        [(b"authorization", SECRET.encode())],
        [(b"x-api-key", b" ")],
        [(b"api-key", SECRET.encode()), (b"cookie", SECRET.encode())],
    ],
)
def test_what_presents_none(headers: Headers) -> None:
    assert presented(first_values(headers)) is None


def test_a_key_is_found_by_what_it_says_and_by_nothing_else() -> None:
    book = KeyBook([key(), key("k2", OTHER)])
    assert book.find(SECRET.encode()) == key()
    assert book.find(OTHER.encode()) == key("k2", OTHER)
    assert book.find(key().digest) is None, "a stolen hash is no key"
    assert book.find(SECRET[:-1].encode()) is None
    book.drop("k1")
    assert book.find(SECRET.encode()) is None
    assert [known.id for known in book.all()] == ["k2"]


def test_a_changed_key_takes_the_place_of_what_it_was() -> None:
    book = KeyBook([key()])
    changed = replace(key(), name="another name", limits=Limits(concurrency=1))
    book.put(changed)
    assert book.all() == [changed]
    assert book.find(SECRET.encode()) == book.get("k1") == changed


@given(st.lists(RANDOM, unique=True, max_size=8), RANDOM)
def test_only_the_keys_in_the_book_are_found(known: list[bytes], stranger: bytes) -> None:
    book = KeyBook(key(f"k{number}", make_secret(random)) for number, random in enumerate(known))
    for number, random in enumerate(known):
        found = book.find(make_secret(random).encode())
        assert found is not None
        assert found.id == f"k{number}"
    assert (book.find(make_secret(stranger).encode()) is None) == (stranger not in known)


def test_the_last_word_has_a_comparison_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert KeyBook([key()]).find(SECRET.encode()) is None
    assert compared == [(key().digest, key().digest)]


@pytest.mark.parametrize(
    ("asked", "most", "priority"),
    [
        (None, 9, 0), (b"0", 9, 0), (b"3", 9, 3), (b"9", 4, 4), (b"999999999", 9, 9), (b"5", 0, 0), (b" 2 ", 9, 2),
        (b"-1", 9, None), (b"high", 9, None), (b"", 9, None), (b"1.5", 9, None), (b"1" * 500, 9, None),
        ("٣".encode(), 9, None),
    ],
)  # fmt: skip
def test_a_priority_is_asked_for_in_a_header(asked: bytes | None, most: int, priority: int | None) -> None:
    assert priority_of({} if asked is None else {b"x-chimera-priority": asked}, most) == priority
