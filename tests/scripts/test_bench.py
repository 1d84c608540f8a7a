"""What `make bench` reckons, and that it can fail; the measurement itself needs HAProxy and minutes."""

import pytest
from click.testing import CliRunner

from scripts.bench import __main__ as bench
from scripts.bench import haproxy as peer
from scripts.bench.conversations import Round, Talk, median_ms


def a_round(*first_token_s: float) -> Round:
    return Round((Talk(list(first_token_s)),), 1.0)


def test_the_first_turn_does_not_count() -> None:
    assert median_ms([a_round(9.0, 0.1, 0.2), a_round(9.0, 0.3)]) == pytest.approx(200)


def test_haproxy_gives_no_worker_more_than_its_slots() -> None:
    text = peer.config(8080, [11500, 11501], slots=2)
    assert "balance leastconn" in text
    assert "option http-no-delay" in text, "else it holds the first bytes back"
    assert "option abortonclose" in text, "else it has workers answer those who have left"
    assert [line.split() for line in text.splitlines() if "server w" in line] == [
        ["server", "w1", "127.0.0.1:11500", "maxconn", "2"],
        ["server", "w2", "127.0.0.1:11501", "maxconn", "2"],
    ]


def test_without_haproxy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    result = CliRunner().invoke(bench.main, ["conversations"])
    assert (result.exit_code, "apt install haproxy" in result.output) == (1, True)
