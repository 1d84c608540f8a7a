"""Benchmarks: Chimera next to its peers, in one run on this machine (make bench).

Timing on a busy machine is noise: what counts are ratios within one run, the two sides taking turns.
"""

import tempfile
from pathlib import Path

import click
import httpx
from rich.console import Console
from rich.table import Table

from scripts.bench import haproxy as peer
from scripts.bench.conversations import Round, median_ms, run_round, warm_up
from tests.fakes.chimera import chimera, free_ports

MODEL = "gemma3:270m"
WORKERS, SLOTS = 2, 2
PEER_PORT_FROM = 28_000


@click.group(help=__doc__)
def main() -> None:
    """The command."""


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds of each side.")
@click.option("--talks", type=click.IntRange(1), default=4, show_default=True, help="Conversations at once.")
@click.option("--turns", type=click.IntRange(2), default=5, show_default=True, help="Turns of each.")
@click.option("--words", type=click.IntRange(1), default=250, show_default=True, help="Words that each begins with.")
@click.option("--least", type=float, default=5.0, show_default=True, help="Exit 1 if Chimera is less times as fast.")
def conversations(rounds: int, talks: int, turns: int, words: int, least: float) -> None:
    """First token of later turns, real Ollama, two workers of two slots: Chimera and HAProxy leastconn."""
    console = Console()
    try:
        name = peer.version()
    except peer.NotInstalled as error:
        raise click.ClickException(str(error)) from error
    ours: list[Round] = []
    theirs: list[Round] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        settings = {"OLLAMA_BIN": "", "WORKERS": f"cpu={WORKERS}", "WORKER_SLOTS": str(SLOTS), "CANARY_AFTER_S": "0"}
        with chimera(folder, **settings, OLLAMA_MODELS=f"{folder}/models") as made:
            made.start().ready(WORKERS)
            rows = httpx.get(f"{made.url}/admin/instances", trust_env=False).json()["instances"]
            ports = [int(row["port"]) for row in rows]
            warm_up(ports, MODEL)
            (port,) = free_ports(1, PEER_PORT_FROM)
            with peer.haproxy(port, ports, SLOTS, folder) as url:
                for number in range(rounds):
                    for side, where in ((theirs, url), (ours, made.url)):
                        seed = number * 2 + (side is ours)  # nobody finds the other's prompts in a cache
                        side.append(run_round(where, MODEL, talks=talks, turns=turns, words=words, seed=seed))
                        console.print(f"round {number + 1}: {'Chimera' if side is ours else name}: "
                                      f"{median_ms(side[-1:]):.0f} ms, all in {side[-1].total_s:.1f} s")  # fmt: skip
    ratio = median_ms(theirs) / median_ms(ours)
    console.print(_table(name, theirs, ours, f"First token of turns 2 to {turns}: {talks} conversations, "
                                             f"{WORKERS} workers of {SLOTS} slots, {MODEL}"))  # fmt: skip
    console.print(f"Chimera: {ratio:.1f} times as fast to the first token (median)")
    if ratio < least:
        raise click.ClickException(f"less than {least:g} times")


def _table(name: str, theirs: list[Round], ours: list[Round], title: str) -> Table:
    table = Table("gateway", "median ms", "longest ms", "round s", title=title, title_justify="left")
    for who, rounds in ((f"{name}, leastconn", theirs), ("Chimera", ours)):
        longest = max(seconds for one in rounds for seconds in one.later_s) * 1000
        took = ", ".join(f"{one.total_s:.1f}" for one in rounds)
        table.add_row(who, f"{median_ms(rounds):.0f}", f"{longest:.0f}", took)
    return table


if __name__ == "__main__":
    main()
