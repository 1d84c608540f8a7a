"""Keys in the database, in SQLite as it is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.database import DatabaseFault, open_database
from gateway.key_store import KeyStore
from gateway.keys import Key
from gateway.limits import Limits

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEW = Key("", "laptop", "chimera-AAAA", Limits(2, 60, 2_000_000_000), 9, True, AT, b"\x00\xffdigest")


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(open_database(None, tmp_path))


def test_a_key_comes_back_as_it_was_with_its_id(store: KeyStore) -> None:
    assert store.load() == []
    key = store.add(NEW)
    assert key == replace(NEW, id="k1")
    assert store.load() == [key]
    assert (key.digest, store.load()[0].digest) == (NEW.digest, NEW.digest)


def test_a_key_without_limits_has_none(store: KeyStore) -> None:
    store.add(replace(NEW, limits=Limits(), models=False))
    assert (store.load()[0].limits, store.load()[0].models) == (Limits(), False)


def test_what_changes_is_kept_and_nothing_else(store: KeyStore) -> None:
    key, other = store.add(NEW), store.add(replace(NEW, digest=b"other"))
    changed = replace(key, name="desk", limits=Limits(tokens_per_minute=5), priority=0, models=False)
    store.change(changed)
    assert store.load() == [changed, other]


def test_a_revoked_key_counts_no_more_and_its_id_is_never_anothers(store: KeyStore) -> None:
    store.add(NEW)
    store.revoke("k1", AT)
    assert store.load() == []
    assert store.add(replace(NEW, digest=b"other")).id == "k2"


def test_when_keys_were_last_used_is_kept_of_all_at_once(store: KeyStore) -> None:
    store.add(NEW)
    store.add(replace(NEW, digest=b"other"))
    store.used({"k1": AT + timedelta(days=1), "k2": AT})
    assert [key.last_used_at for key in store.load()] == [AT + timedelta(days=1), AT]


def test_two_keys_never_have_the_same_hash(store: KeyStore) -> None:
    store.add(NEW)
    with pytest.raises(DatabaseFault):
        store.add(NEW)


def test_a_database_that_went_away_is_a_fault(store: KeyStore, tmp_path: Path) -> None:
    (tmp_path / "chimera.db").unlink()
    (tmp_path / "chimera.db").mkdir()
    for call in (store.load, lambda: store.add(NEW), lambda: store.used({"k1": AT})):
        with pytest.raises(DatabaseFault, match="cannot be used"):
            call()
