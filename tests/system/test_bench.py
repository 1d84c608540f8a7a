"""`make bench`, as short as it can be: measurements are made, every answer comes, and it can fail.

What its figures are means nothing here. Where nginx or HAProxy is not installed, Chimera and the plain proxy are
compared all the same. All of it is on one stage, since Chimera takes seconds to start.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.bench import cost, growth, saturation
from scripts.bench.cost import Sample, rows_of, unary
from scripts.bench.measurement import Options, Record, save
from scripts.bench.peer import Peer, installed
from scripts.bench.peers import Chimera, HaProxy, Nginx, Plain, peers
from scripts.bench.report import write
from scripts.bench.stage import Stage, stage
from scripts.bench.workers import Spec

SPEC = Spec(64)
LATE = Chimera(SPEC, name="late", program=(str(Path(__file__).parents[1] / "fakes" / "slow_chimera.py"),))
QUICK = Options(rounds=1, quick=True, say=lambda _: None)


@pytest.fixture(scope="module")
def on() -> Iterator[Stage]:
    """All sides that are installed, and a Chimera that is 5 ms late."""
    with stage([*installed(peers(SPEC))[0], LATE], 2, SPEC) as made:
        yield made


@pytest.fixture(scope="module")
def one_stage(on: Stage) -> Iterator[pytest.MonkeyPatch]:
    """Have measurements find their sides on it, and be as short as they can."""

    @contextmanager
    def shared(wanted: Sequence[Peer], count: int, spec: Spec) -> Iterator[Stage]:
        names = [peer.name for peer in wanted]
        yield Stage(tuple(side for side in on.sides if side.name in names), on.worker_pids)

    with pytest.MonkeyPatch.context() as patch:
        for module in (cost, growth, saturation):
            patch.setattr(module, "stage", shared)
        patch.setattr(cost, "STREAMS", (1,))
        patch.setattr(growth, "WAITING", (20,))
        patch.setattr(saturation, "peers", lambda spec: [Plain(), Chimera(spec)])
        patch.setattr(saturation, "next_rate", lambda tried, first: None if tried else first)
        yield patch


@pytest.fixture(scope="module")
def made(one_stage: pytest.MonkeyPatch) -> Record:
    """What `cost` finds."""
    return cost.measure(QUICK)


def is_there(program: str) -> bool:
    return bool(shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin"))


def sides_of(record: Record) -> set[str]:
    return {row["side"] for row in record.figures["rows"]}


def faults_of(record: Record) -> list[tuple[str, list[str]]]:
    return [(row["side"], row["faults"]) for row in record.figures["rows"] if row["failed"]]


def test_chimera_and_the_plain_proxy_are_compared_whatever_is_installed(made: Record) -> None:
    assert faults_of(made) == []
    assert sides_of(made) >= {"direct", "Quart + httpx", "Chimera"}
    assert all(row["cpu_us"] > 0 for row in made.figures["rows"] if row["side"] != "direct")
    assert all(row["per_s"] > 0 for row in made.figures["rows"])


@pytest.mark.parametrize("peer", [Nginx(), HaProxy()], ids=lambda peer: peer.name)
def test_what_is_installed_is_compared_and_what_is_not_is_a_line(made: Record, peer: Peer) -> None:
    if not is_there(peer.name.lower()):
        assert any(line.startswith(f"{peer.name} is left out") for line in made.left_out)
        pytest.skip(f"{peer.name} is not installed: apt install haproxy nginx-light")
    assert peer.name in sides_of(made)
    assert made.versions[peer.name]


def test_ratios_are_to_haproxy(made: Record) -> None:
    if not is_there("haproxy"):
        pytest.skip("HAProxy is not installed: apt install haproxy nginx-light")
    assert made.figures["criteria"]["request_times_haproxy"] > 0


def test_the_report_of_a_real_record(made: Record, tmp_path: Path) -> None:
    save(made, tmp_path / "cost.json")
    write(tmp_path, None, lambda _: None)
    page = (tmp_path / "README.md").read_text()
    assert "](cost-request.svg)" in page
    assert "cost: not shown" not in page


def test_growth(one_stage: pytest.MonkeyPatch) -> None:
    record = growth.measure(QUICK)
    assert faults_of(record) == []
    assert "Chimera" in sides_of(record)


def test_saturation(one_stage: pytest.MonkeyPatch) -> None:
    record = saturation.measure(QUICK)
    assert sides_of(record) == {"Quart + httpx", "Chimera"}
    assert all(row["steps"] for row in record.figures["rows"])


def test_a_gateway_that_sleeps_5_ms_is_reported_slower(on: Stage) -> None:
    """The one question that cannot be asked without time. A sleep is never shorter than it says; more rounds are made
    while the machine has other things to do."""
    both = Stage(tuple(side for side in on.sides if side.name in ("Chimera", "late")), ())
    rounds: list[dict[str, Sample]] = []
    while len(rounds) < 15:
        rounds.append({side.name: unary(side, 1, 0.2) for side in both.turns(len(rounds))})
        added = {row.side: row.added_first_byte_p50_ms for row in rows_of("unary", 1, rounds)}
        if len(rounds) >= 3 and added["late"] > added["Chimera"] + 2.5:
            return
    raise AssertionError(f"not seen: {added}")
