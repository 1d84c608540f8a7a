"""What a person reads when the first workers are ready: where things are, and what to type next."""

from typing import TextIO

import structlog
import trio

from supervisor.config import Settings
from supervisor.locate import Ollama
from supervisor.operator import Operator
from supervisor.output import forget

log = structlog.get_logger("chimera")

POLL_S = 0.1
READY = {"IDLE", "BUSY"}


async def welcome(settings: Settings, operator: Operator, ollama: Ollama, out: TextIO) -> None:
    """Wait until every worker has settled, or failed while another is ready; then say so, once."""
    while not _settled(operator):
        await trio.sleep(POLL_S)
    try:
        print(text(settings, operator, ollama), file=out, flush=True)
    except OSError as error:  # a full disk, a pipe that nobody reads: no reason not to serve
        forget(out)
        log.warning("the welcome could not be written", cause=error.strerror)


def _settled(operator: Operator) -> bool:
    states = {row["state"] for row in operator.instances()}
    # one that fails again and again does not keep the others from being welcomed
    return not states & {"STARTING", "WARMING", "STOPPING"} and ("BACKOFF" not in states or bool(states & READY))


def text(settings: Settings, operator: Operator, ollama: Ollama) -> str:
    """Return the welcome."""
    rows = operator.instances()
    ready = [row for row in rows if row["state"] in READY]
    lines = ["", f"Chimera is ready: {len(ready)} worker{'' if len(ready) == 1 else 's'} at {settings.shown_url}"]
    for row in rows:
        place = f"GPU {row['gpu']['index']} {row['gpu']['name']}" if row["gpu"] else "CPU"
        how = " ".join(row["models"]) if row["state"] in READY else f"({row['state']})"
        lines.append(f"  {row['id']:<5} {place}, port {row['port']}, {row['slots']} slots{', ' if how else ''}{how}")
    unplaced = operator.gpus()["unplaced"]
    lines += [f"  {fault}" for fault in unplaced]
    if not rows:
        lines.append(f"  {'' if unplaced else 'the saved fleet is empty; '}add a worker with: chimera spawn")
    if ollama.embedded:
        lines.append(f"  (the CPU build of Ollama with {ollama.embedded.model}; install Ollama itself to use GPUs)")
    url = settings.shown_url
    env = "" if url == "http://127.0.0.1:8000" else f"CHIMERA_URL={url} "
    if settings.tls_cert:
        env += f"CHIMERA_CA={settings.tls_cert} "
    lines += [
        "Try, in another terminal:",
        f'  {env}./client.sh generate --prompt "Why is the sky blue?"',
        f"  {env}./client.sh list",
        "  make status",
        f"Any Ollama client: OLLAMA_HOST={url}    Any OpenAI client: base_url={url}/v1",
        "Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)
