"""What is refused before anything is started, each in a sentence that says what to do."""

import os
import socket
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.database import Database, url_of
from supervisor.doctor import Verdict
from supervisor.errors import StartRefused
from supervisor.root_refusals import database_for, examine_database, opened_keys, refuse_taken_primary_port, sockets_of
from tests.fakes.serving import free_port
from tests.fakes.settings import load


def test_a_free_port_is_listened_on() -> None:
    port = free_port()
    sockets = sockets_of(load(GATEWAY_PORT=str(port)), {})
    try:
        assert [sock.getsockname() for sock in sockets] == [("127.0.0.1", port)]
    finally:
        for sock in sockets:
            sock.close()


def test_a_taken_port_is_refused_with_its_holder_and_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartRefused) as gateway:
            sockets_of(load(GATEWAY_PORT=str(port)), {})
        with pytest.raises(StartRefused) as primary:
            refuse_taken_primary_port(load(OLLAMA_PORT=str(port)))
    assert str(gateway.value).startswith(f"cannot listen on 127.0.0.1:{port}: ")
    assert f"(process {os.getpid()} (" in str(gateway.value)
    assert str(gateway.value).endswith("has it); set GATEWAY_PORT (or GATEWAY_HOST) to another")
    assert str(primary.value).startswith(f"port {port} is in use by process {os.getpid()} (")
    assert "OLLAMA_PORT" in str(primary.value)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartRefused, match=r"cannot listen on 192\.0\.2\.1:8000: .*GATEWAY_HOST"):
        sockets_of(load(GATEWAY_HOST="192.0.2.1"), {})  # RFC 5737: nobody's


def test_a_free_primary_port_is_no_fault() -> None:
    refuse_taken_primary_port(load(OLLAMA_PORT=str(free_port())))


# -- the database ----------------------------------------------------------------------------------------------------


def test_a_database_that_is_not_there_will_be_made_and_nothing_is_made_by_looking(tmp_path: Path) -> None:
    settings = load(STATE_DIR=str(tmp_path))
    assert database_for(settings).endswith("it will be made")
    assert [finding.verdict for finding in examine_database(settings)] == [Verdict.OK]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_a_fault_to_the_doctor_and_none_to_a_start(tmp_path: Path) -> None:
    (tmp_path / "chimera.db").write_bytes(b"no database")
    settings = load(STATE_DIR=str(tmp_path))
    assert "it is damaged" in database_for(settings)
    (finding,) = examine_database(settings)
    assert (finding.verdict, "DATABASE_URL" in finding.advice) == (Verdict.FAULT, True)


def test_a_database_of_a_newer_version_refuses_the_start(tmp_path: Path) -> None:
    database = Database(url_of(None, tmp_path))
    database.open()
    with database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'of_tomorrow'"))
    settings = load(STATE_DIR=str(tmp_path))
    for tried in (opened_keys, database_for):
        with pytest.raises(StartRefused, match="version of Chimera"):
            tried(settings)
