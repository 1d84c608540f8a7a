"""The keys at start, whatever became of their file: put back from a copy, or none is known; nobody is let in by it."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from gateway.copies import Copies
from gateway.database import Database, DatabaseFault, url_of
from gateway.errors import KeyUnknown, dialect_of
from gateway.headers import Headers
from gateway.keyring import Keyring
from gateway.keys import Key, digest_of, make_secret
from gateway.limits import Limits
from gateway.ollama import Answerer
from gateway.request import Request
from gateway.rescue import Opened, open_keys
from supervisor.state_file import set_aside
from tests.fakes.examples import examples

SECRETS = [make_secret(bytes([number]) * 32) for number in range(3)]
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PATH = "/api/generate"


def new_key(number: int) -> Key:
    return Key("", f"n{number}", "chimera-AAAA", Limits(), 0, False, AT, digest_of(SECRETS[number].encode()))


def opened(folder: Path, written: str | None = None) -> Opened:
    return open_keys(written, folder, set_aside)


def known(folder: Path) -> list[str]:
    return [key.name for key in opened(folder).keys]


def lets_in(found: Opened, secret: str) -> bool:
    """Whether a gateway that requires keys gives a request with this one a place."""

    async def ask() -> bool:
        ring = Keyring(found.store, required=True, keys=found.keys)
        headers: Headers = [(b"authorization", f"Bearer {secret}".encode())]
        request = Request("POST", PATH, PATH.encode(), headers, dialect_of(PATH), "id-1", caller="192.0.2.1")
        try:
            ring.enter(request, Answerer.PRIMARY)
        except KeyUnknown:
            return False
        return True

    return trio.run(ask)


def asides(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".corrupt-" in path.name)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with two keys in its database, and the copies that were made meanwhile."""
    store = opened(tmp_path).store
    store.add(new_key(0))
    store.add(new_key(1))
    return tmp_path


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def a_byte_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def noise(path: Path) -> None:
    path.write_bytes(b"\xaa" * 20_000)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def a_wrong_page(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xaa" * (len(content) - 4096))


def another_format(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[18:20] = b"\x09\x09"  # SQLite would take it for one that it may only read
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "somebodys").touch()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement)

    return change


no_table, no_column = sql("DROP TABLE api_keys"), sql("ALTER TABLE api_keys DROP COLUMN priority")
no_version = sql("DROP TABLE alembic_version")
no_moment, no_number = sql("UPDATE api_keys SET created_at = 'noon'"), sql("UPDATE api_keys SET priority = 'high'")

DAMAGES = [
    empty, half, a_byte_short, noise, zeros, a_wrong_page, another_format, a_folder, a_pipe, no_table, no_column,
    no_version, no_moment, no_number,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_the_newest_copy_put_back(kept: Path, damage: Callable[[Path], None]) -> None:
    (newest, *_) = Copies(kept / "chimera.db").newest_first()
    damage(kept / "chimera.db")
    found = opened(kept)
    assert [key.name for key in found.keys] == ["n0", "n1"]
    assert [lets_in(found, secret) for secret in SECRETS] == [True, True, False]
    assert found.happened is not None
    assert found.happened.event == "keys_put_back"
    fields = found.happened.fields
    assert {"database": str(kept / "chimera.db"), "put_back": str(newest), "keys": 2}.items() <= fields.items()
    assert [fields["kept_as"]] == [str(path) for path in asides(kept) if path.suffix not in ("-wal", "-shm")]
    assert all("\n" not in str(field) for field in fields.values())
    assert opened(kept).happened is None, "the next start finds nothing wrong"
    found.store.add(new_key(2))
    assert known(kept) == ["n0", "n1", "n2"]


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not empty])
def test_without_a_copy_no_key_is_known_and_nobody_is_let_in(kept: Path, damage: Callable[[Path], None]) -> None:
    for copy in Copies(kept / "chimera.db").newest_first():
        copy.unlink()
    damage(kept / "chimera.db")
    found = opened(kept)
    assert found.keys == []
    assert not any(lets_in(found, secret) for secret in SECRETS)
    assert found.happened is not None
    assert found.happened.event == "keys_lost"
    assert "every request that needs one is refused: make keys anew" in found.happened.fields["advice"]
    assert len(asides(kept)) == 1
    found.store.add(new_key(2))
    assert known(kept) == ["n2"]


@pytest.mark.parametrize("damage", [noise, empty, no_moment])
def test_a_damaged_copy_is_passed_over_for_the_one_before(kept: Path, damage: Callable[[Path], None]) -> None:
    newest, before, *_ = Copies(kept / "chimera.db").newest_first()
    noise(kept / "chimera.db")
    damage(newest)
    found = opened(kept)
    assert found.happened is not None
    assert found.happened.fields["put_back"] == str(before)
    assert [key.name for key in found.keys] == ["n0"]


def test_a_revoked_key_does_not_come_back_with_a_copy(kept: Path) -> None:
    store = opened(kept).store
    store.revoke("k1", AT)
    noise(kept / "chimera.db")
    for copy in Copies(kept / "chimera.db").newest_first()[:1]:
        noise(copy)  # the newest is of no use, and no older one is left that has the key
    found = opened(kept)
    assert not lets_in(found, SECRETS[0])
    assert found.keys == []


def test_nor_does_a_right_that_was_taken_away(kept: Path) -> None:
    store = opened(kept).store
    key = store.add(replace(new_key(2), models=True))
    store.change(replace(key, models=False))
    assert len(Copies(kept / "chimera.db").newest_first()) == 1
    noise(kept / "chimera.db")
    assert [key.models for key in opened(kept).keys] == [False, False, False]


def test_a_kill_in_the_midst_of_a_revocation_and_damage_after_it_bring_no_key_back(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Database) -> None:
        raise KeyboardInterrupt

    store = opened(kept).store
    with monkeypatch.context() as patch:
        patch.setattr(Database, "transaction", killed)
        with pytest.raises(KeyboardInterrupt):
            store.revoke("k1", AT)
    noise(kept / "chimera.db")
    found = opened(kept)
    assert not lets_in(found, SECRETS[0])
    assert [key.name for key in found.keys] == ["n1"]


def test_a_revocation_that_the_database_refuses_is_in_no_copy(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: Database) -> None:
        raise DatabaseFault("it is locked")

    store = opened(kept).store
    with monkeypatch.context() as patch:
        patch.setattr(Database, "transaction", refuses)
        with pytest.raises(DatabaseFault):
            store.revoke("k1", AT)
    noise(kept / "chimera.db")
    assert [key.name for key in opened(kept).keys] == ["n0", "n1"]


def test_a_copy_that_cannot_be_made_fails_no_change(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = opened(kept).store
    monkeypatch.setattr(Copies, "make", full)
    store.revoke("k1", AT)
    assert [key.name for key in store.load()] == ["n1"]


def test_a_file_that_is_gone_is_begun_anew_and_said_but_not_put_back(kept: Path) -> None:
    (newest, *_) = Copies(kept / "chimera.db").newest_first()
    (kept / "chimera.db").unlink()
    found = opened(kept)
    assert found.keys == [], "who removes it may want the keys gone"
    assert found.happened is not None
    assert found.happened.event == "keys_gone"
    assert f"copy {newest} to {kept / 'chimera.db'}" in found.happened.fields["advice"]


def test_starts_alone_do_not_crowd_out_the_copies_of_keys_that_are_gone(kept: Path) -> None:
    (kept / "chimera.db").unlink()
    for _ in range(5):
        opened(kept)
    (kept / "chimera.db").unlink()
    copies = Copies(kept / "chimera.db")
    assert copies.put_back(copies.newest_first()[1])
    assert known(kept) == ["n0", "n1"]


def test_a_first_start_has_nothing_to_say(tmp_path: Path) -> None:
    assert opened(tmp_path).happened is None
    assert Copies(tmp_path / "chimera.db").newest_first() != []


def test_a_file_that_somebody_chose_and_that_was_never_ours_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("not a database, and dear to somebody")
    with pytest.raises(DatabaseFault, match="file is not a database; it is damaged: put a copy of it back"):
        opened(tmp_path, f"sqlite:///{tmp_path}/thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatabaseFault, match="No such file or directory; the file and its folder must be there"):
        opened(tmp_path / "none")


def test_a_file_that_somebody_chose_and_that_was_ours_is_put_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/my keys.db"
    opened(tmp_path, url).store.add(new_key(0))
    noise(tmp_path / "my keys.db")
    assert [key.name for key in opened(tmp_path, url).keys] == ["n0"]


def test_a_newer_chimeras_database_is_whole_and_left_alone(kept: Path) -> None:
    sql("UPDATE alembic_version SET version_num = '9999'")(kept / "chimera.db")
    with pytest.raises(DatabaseFault, match="is of another version of Chimera"):
        opened(kept)
    assert asides(kept) == []


def test_a_file_that_cannot_be_set_aside_is_one_line(kept: Path) -> None:
    def read_only(_path: Path, _companions: tuple[str, ...]) -> Path:
        raise OSError(30, "Read-only file system")

    noise(kept / "chimera.db")
    with pytest.raises(DatabaseFault) as refused:
        open_keys(None, kept, read_only)
    assert str(refused.value).endswith("and it could not be put back: Read-only file system")
    assert (kept / "chimera.db").read_bytes()[:1] == b"\xaa"


def test_the_tables_are_copied_before_they_change_and_stay_when_that_fails(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for copy in Copies(kept / "chimera.db").newest_first():
        copy.unlink()
    sql("UPDATE alembic_version SET version_num = '0000'")(kept / "chimera.db")  # as if there had been an older version

    def breaks(*_: object) -> None:
        raise sqlite3.OperationalError("the step went wrong")

    monkeypatch.setattr(command, "upgrade", breaks)
    with pytest.raises(sqlite3.OperationalError):
        opened(kept)
    (copy,) = Copies(kept / "chimera.db").newest_first()
    for path in (copy, kept / "chimera.db"):
        with Database(url_of(f"sqlite:///{path}", kept)).transaction() as connection:
            assert connection.execute(text("SELECT count(*) FROM api_keys")).scalar() == 2


def test_a_name_that_is_no_text_is_damage(kept: Path) -> None:
    """The driver says so with an error that is none of a database's."""
    with closing(sqlite3.connect(kept / "chimera.db")) as database:
        database.execute("PRAGMA writable_schema=ON")
        database.execute(
            "UPDATE sqlite_master SET name = CAST(x'ff6b' AS TEXT),"
            " sql = replace(sql, 'api_keys', CAST(x'ff6b' AS TEXT)) WHERE name = 'api_keys'"
        )
        database.commit()
    assert known(kept) == ["n0", "n1"]
    assert len(asides(kept)) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=examples(60))
@given(st.binary(max_size=400), st.integers(0, 30_000), st.booleans())
def test_whatever_is_written_into_the_file_chimera_starts_and_lets_no_stranger_in(
    kept: Path, written: bytes, at: int, cut: bool
) -> None:
    path = kept / "chimera.db"
    before = path.read_bytes()
    content = before[:at] + written + (b"" if cut else before[at + len(written) :])
    path.write_bytes(content)
    try:
        found = opened(kept)
    except DatabaseFault as fault:
        if "is of another version" not in str(fault):  # its number was hit, which shows as no damage
            raise
        path.write_bytes(before)
        return
    assert not lets_in(found, SECRETS[2])
    assert {key.name for key in found.keys} <= {"n0", "n1"} or found.happened is None
    if found.happened is None:
        path.write_bytes(before)
