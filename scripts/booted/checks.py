"""What is shown of the service, in order: each check adds one row. They build on each other, and stop at the first
that leaves nothing to go on with."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import trio

from scripts.booted.behind import behind_nginx
from scripts.booted.machine import SOURCE, Machine, NoMachine, passed_on
from scripts.booted.traffic import Fate, Traffic, whole
from scripts.faults.load import wait_until
from scripts.gpus.row import Row, Seen
from supervisor.embedded import MODEL, embedded_dir
from tests.fakes.chimera import free_ports

ENV_FILE = "/etc/chimera/chimera.env"
READY_TIMEOUT_S = 120.0
WATCHDOG_S = 30.0
REQUESTS_PER_S = 20.0
LONG_TOKENS = 80
DRAIN_TIMEOUT_S = 60
NEVER_FEWER = 1


class Stuck(Exception):
    """The checks cannot go on: what the next ones are about did not come about."""


class Service:
    """The service in a booted machine, asked from outside; and the rows so far."""

    def __init__(self, machine: Machine, tell: Callable[[Row], None]) -> None:
        self.machine = machine
        self.rows: list[Row] = []
        self._tell = tell
        self.before = frozenset(_named(machine))
        gateway, primary, *_ = free_ports(2 + 512)
        self.ports = {"GATEWAY_PORT": gateway, "OLLAMA_PORT": primary, "WORKER_PORT_BASE": primary + 1}
        self.url = f"http://127.0.0.1:{gateway}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def row(self, what: str, expected: str, seen: Seen, after_s: float = 0.0) -> None:
        """Add a row."""
        self.rows.append(Row(what, expected, seen.text, seen.good, after_s))
        self._tell(self.rows[-1])

    def settings(self, **names: object) -> None:
        """Write the settings' file, the operator's own lines alone."""
        text = "".join(f"{name}={value}\n" for name, value in {**self.ports, **names}.items())
        self.machine.path(ENV_FILE).write_text(text)

    def main_pid(self) -> str:
        """The main process, as the container numbers it."""
        return self.machine.properties("chimera", "MainPID").get("MainPID", "0")

    def status_text(self) -> str:
        """What STATUS= shows."""
        return self.machine.properties("chimera", "StatusText").get("StatusText", "")

    def ready(self) -> int:
        """How many workers are ready; none while nobody answers."""
        try:
            return int(self.client.get("/readyz", timeout=5).json()["ready_workers"])
        except (httpx.HTTPError, ValueError, KeyError):
            return 0

    def wait_ready(self, workers: int) -> float:
        """Return after how long so many workers are ready. Stuck when they are not."""
        began = time.monotonic()
        if not wait_until(lambda: self.ready() >= workers, READY_TIMEOUT_S, 0.2):
            raise Stuck(f"{self.ready()} of {workers} workers ready; {self.status_text()}\n{self.journal(30)}")
        return time.monotonic() - began

    def journal(self, lines: int) -> str:
        """The last lines that the service and systemd wrote of it."""
        return self.machine.run("journalctl", "-u", "chimera", "--no-pager", "-n", str(lines)).stdout

    def entries(self, *matches: str) -> list[dict[str, object]]:
        """What the service logged with these fields, NAME=value, in the journal's own form."""
        said = self.machine.run("journalctl", "-u", "chimera", "-o", "json", "--no-pager", *matches).stdout
        return [json.loads(line) for line in said.splitlines()]

    def pids(self) -> list[int]:
        """The workers' processes."""
        rows = self.client.get("/admin/instances").json()["instances"]
        return [row["pid"] for row in rows if row["pid"]]

    def orphans(self) -> list[str]:
        """Processes of the service's user that are not in the service's cgroup."""
        root = self.machine.path("/sys/fs/cgroup/system.slice/chimera.service")
        inside = {pid for file in root.rglob("cgroup.procs") for pid in file.read_text().split()}
        # cgroup.procs is read from here, and so has this machine's numbers: they are counted, not compared
        there = self.machine.processes("chimera")
        return [text for _, text in there] if len(there) != len(inside) else []


def carry_out(machine: Machine, environ: Mapping[str, str], tell: Callable[[Row], None]) -> list[Row]:
    """Carry out every check; return the rows. What cannot be gone on from is a row of its own."""
    service = Service(machine, tell)
    try:
        _seed(machine, environ)
        for check in CHECKS:
            check(service)
    except (Stuck, NoMachine) as error:
        service.row("the next check", "can be begun", Seen(str(error), good=False))
    return service.rows


def _seed(machine: Machine, environ: Mapping[str, str]) -> None:
    """Put the CPU build of Ollama where installing would put it, which saves its download."""
    source, target = embedded_dir(environ), machine.path("/opt/chimera/share/chimera/embedded")
    if source.is_dir():
        target.parent.mkdir(parents=True)
        shutil.copytree(source, target)


def installed(service: Service) -> None:
    """`make install`, twice."""
    run = service.machine.run
    first = run("make", "-C", SOURCE, "install", "PYTHON=/usr/bin/python3", check=False)
    if first.returncode:
        raise Stuck(f"make install: {first.stdout}{first.stderr}")
    before = _listing(service.machine)
    second = run("make", "-C", SOURCE, "install", "PYTHON=/usr/bin/python3", check=False)
    same = second.returncode == 0 and _listing(service.machine) == before
    service.row("make install, twice", "the second changes nothing", Seen(_last(second.stdout), same))
    service.settings(WORKERS="cpu=2", DRAIN_TIMEOUT_S=DRAIN_TIMEOUT_S, TRUSTED_PROXIES="127.0.0.1")
    checked = run("chimera", "upgrade-check", check=False)
    service.row("chimera upgrade-check", "accepts the settings",
                Seen((checked.stdout + checked.stderr).strip(), checked.returncode == 0))  # fmt: skip
    run("chimera", "units", "--write")


def _listing(machine: Machine) -> str:
    return machine.run("find", "/opt/chimera", "/etc/chimera", "/etc/systemd/system", "/usr/local/bin/chimera",
                       "-not", "-name", "__pycache__", "-not", "-name", "*.pyc",
                       "-not", "-path", "/etc/systemd/system", "-printf", "%p %m %u %T@\n").stdout  # fmt: skip


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("install:")]
    return lines[-1] if lines else text.strip()


def started(service: Service) -> None:
    """From `systemctl start` to ready; the status; a request."""
    began = time.monotonic()
    done = service.machine.run("systemctl", "start", "chimera", check=False)
    ready = service.ready()
    if done.returncode:
        raise Stuck(f"systemctl start chimera: {done.stderr}\n{service.journal(30)}")
    service.row("systemctl start chimera", "returns when a worker is ready", Seen(f"{ready} ready", ready >= 1),
                time.monotonic() - began)  # fmt: skip
    service.wait_ready(2)
    good = f"2 of 2 workers ready at {service.url}"
    wait_until(lambda: service.status_text() == good, 10)
    shown = service.machine.run("systemctl", "status", "chimera", "--no-pager", "--lines=0").stdout
    service.row("systemctl status chimera", good, Seen(service.status_text(), f'Status: "{good}"' in shown))
    answer = service.client.post("/api/generate", json={"model": MODEL, "prompt": "Hi", "options": {"num_predict": 4}})
    last = answer.content.strip().rpartition(b"\n")[2]
    service.row("a request", "200, whole", Seen(f"{answer.status_code}", answer.status_code == 200 and whole(last)))
    cgroups = sorted(path.name for path in service.machine.path("/sys/fs/cgroup/system.slice/chimera.service").iterdir()
                     if path.is_dir())  # fmt: skip
    service.row("cgroups", "one for each worker",
                Seen(", ".join(cgroups), cgroups == ["worker-primary", "worker-w1", "worker-w2"]))  # fmt: skip


def logged(service: Service) -> None:
    """The journal has each event's own fields, and each request's."""
    ready = service.entries("CHIMERA_WORKER=w1", "CHIMERA_EVENT=worker ready")
    asked = wait_until(lambda: service.entries("CHIMERA_PATH=/api/generate", "CHIMERA_STATUS=200"), 10) or []
    good = all(
        bool(group) and group[0].get("SYSLOG_IDENTIFIER") == "chimera" and group[0].get("PRIORITY") == "6"
        for group in (ready, asked)
    )
    service.row("journalctl -o json", "CHIMERA_WORKER of an event, CHIMERA_REQUEST of a request",
                Seen("; ".join(str(row.get("MESSAGE")) for row in (*ready[:1], *asked[:1])),
                     good and "CHIMERA_REQUEST" in asked[0]))  # fmt: skip


def diagnosed(service: Service) -> None:
    """`chimera doctor`, as root and as somebody who may see little."""
    for who, prefix in (("root", ()), ("nobody", ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"))):
        done = service.machine.run(*prefix, "chimera", "doctor", "--json", check=False)
        try:
            rows = json.loads(done.stdout)["findings"]
        except ValueError:
            raise Stuck(f"chimera doctor: {done.stdout}{done.stderr}") from None
        odd = [f"{row['check']}: {row['text']}" for row in rows if row["verdict"] != "ok"]
        seen = {row["check"]: row["text"] for row in rows}
        unseen = any("cannot be looked at" in text for text in odd)
        good = done.returncode == 0 and unseen is (who != "root") and "as chimera" in seen["service"]
        expected = "no fault" if who == "root" else "no fault, and what it cannot see"
        service.row(f"chimera doctor, as {who}", expected, Seen("; ".join(odd) or seen["service"], good))


def killed(service: Service) -> None:
    """`kill -9` of the main process."""
    _struck(service, signal.SIGKILL, "kill -9 of the main process", READY_TIMEOUT_S)


def stopped_dead(service: Service) -> None:
    """A main process that is stopped (SIGSTOP) does nothing any more, and does not end."""
    _struck(service, signal.SIGSTOP, "SIGSTOP of the main process", READY_TIMEOUT_S + 2 * WATCHDOG_S)


def _struck(service: Service, number: signal.Signals, what: str, within_s: float) -> None:
    before, began = service.main_pid(), time.monotonic()
    traffic = Traffic(service.url, MODEL)

    async def strike() -> None:
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic.run, 2.0, over)
            await trio.sleep(1)
            service.machine.run("kill", f"-{number.name.removeprefix('SIG')}", before)
            with trio.move_on_after(within_s):
                while not (await trio.to_thread.run_sync(_is_back, service, before)):
                    await trio.sleep(0.3)
            over.set()

    trio.run(strike)
    back = _is_back(service, before)
    result = "watchdog" if number is signal.SIGSTOP else "signal"
    said = f"Failed with result '{result}'" in service.journal(400)
    service.row(what, f"ended ({result}), and back by itself",
                Seen(f"{'back' if back else service.status_text()}; {result if said else 'no such result'}",
                     back and said), time.monotonic() - began)  # fmt: skip
    if not back:
        raise Stuck(service.journal(40))
    orphans = service.orphans()
    service.row(f"{what}: processes", "none outside the service", Seen(", ".join(orphans) or "none", not orphans))
    refused = traffic.fates[Fate.REFUSED]
    service.row(f"{what}: connections meanwhile", "wait, none is refused", Seen(traffic.text, refused == 0))


def _is_back(service: Service, before: str) -> bool:
    return service.main_pid() not in ("0", before) and service.ready() >= 2


def reloaded(service: Service) -> None:
    """Reload with a good file and with a bad one."""
    before, main = service.pids(), service.main_pid()
    fewest = 2
    service.settings(WORKERS="cpu=2", DRAIN_TIMEOUT_S=DRAIN_TIMEOUT_S, QUEUE_SIZE=77, WORKER_ENV="OLLAMA_DEBUG=1")
    done = service.machine.run("systemctl", "reload", "chimera", check=False)

    def renewed() -> bool:
        nonlocal fewest
        fewest = min(fewest, service.ready())
        now = service.pids()
        return len(now) == 2 and not set(now) & set(before) and service.ready() == 2

    came = bool(wait_until(renewed, READY_TIMEOUT_S, 0.1))
    size = service.client.get("/admin/instances").json()["queue"]["size"]
    same = service.main_pid() == main
    service.row("reload, a good file", "the queue is 77 at once, both workers are new, the process is the same",
                Seen(f"exit {done.returncode}, queue {size}, workers {'new' if came else 'old'}",
                     done.returncode == 0 and size == 77 and came and same))  # fmt: skip
    service.row("reload: workers ready meanwhile", "never fewer than 1 of 2", Seen(str(fewest), fewest >= NEVER_FEWER))
    service.settings(WORKERS="cpu=2", QUEUE_SIZE="many", DRAIN_TIMEOUT_S=0)
    pids = service.pids()
    bad = service.machine.run("systemctl", "reload", "chimera", check=False)
    text = service.journal(40)
    named = [name for name in ("QUEUE_SIZE", "DRAIN_TIMEOUT_S") if f"bad configuration: {name}" in text]
    size = service.client.get("/admin/instances").json()["queue"]["size"]
    kept = bad.returncode != 0 and len(named) == 2 and size == 77 and service.pids() == pids
    service.row("reload, a bad file", "fails, every fault named, nothing changed",
                Seen(f"exit {bad.returncode}, named {', '.join(named)}, queue {size}", kept))  # fmt: skip
    wait_until(lambda: "refused" in service.status_text(), 10)
    service.row(
        "reload, a bad file: status", "says it", Seen(service.status_text(), "refused" in service.status_text())
    )
    service.settings(WORKERS="cpu=2", DRAIN_TIMEOUT_S=DRAIN_TIMEOUT_S)
    service.machine.run("systemctl", "reload", "chimera")
    wait_until(lambda: not set(service.pids()) & set(pids), READY_TIMEOUT_S)
    service.wait_ready(2)


def restarted(service: Service) -> None:
    """A restart under load."""
    before, traffic = service.main_pid(), Traffic(service.url, MODEL)

    async def load() -> None:
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            begun = [trio.Event() for _ in range(2)]
            for event in begun:
                nursery.start_soon(traffic.stream, LONG_TOKENS, event)
            for event in begun:
                await event.wait()
            nursery.start_soon(traffic.run, REQUESTS_PER_S, over)
            await trio.sleep(3)
            await trio.to_thread.run_sync(service.machine.run, "systemctl", "restart", "chimera")
            await trio.sleep(5)
            over.set()

    began = time.monotonic()
    trio.run(load)
    refused, cut = traffic.fates[Fate.REFUSED], traffic.fates[Fate.CUT]
    wrong = traffic.fates[Fate.WRONG]
    other = service.main_pid() != before
    service.row(f"restart under {REQUESTS_PER_S:g} requests a second", "0 refused, 0 cut, 0 wrong",
                Seen(f"{traffic.text}{'; ' + traffic.why[0] if traffic.why else ''}",
                     other and not (refused or cut or wrong)), time.monotonic() - began)  # fmt: skip
    service.wait_ready(2)


def stopped(service: Service) -> None:
    """A stop leaves nothing running, and nobody at the door."""
    service.machine.run("systemctl", "stop", "chimera", check=False)
    left = service.machine.processes("chimera")
    states = [service.machine.run("systemctl", "is-active", unit, check=False).stdout.strip()
              for unit in ("chimera.service", "chimera.socket")]  # fmt: skip
    try:
        service.client.get("/healthz", timeout=5)
        door = "somebody answers"
    except httpx.ConnectError:
        door = "refused"
    except httpx.HTTPError as error:
        door = repr(error)
    good = not left and states == ["inactive", "inactive"] and door == "refused"
    service.row("systemctl stop chimera", "nothing runs, connections are refused",
                Seen(f"{len(left)} processes, {', '.join(states)}, {door}", good))  # fmt: skip


def misconfigured(service: Service) -> None:
    """A configuration that cannot be used is said once, and not tried again and again."""
    service.settings(WORKERS="many")
    done = service.machine.run("systemctl", "start", "chimera", check=False)
    time_out = time.monotonic() + 3
    wait_until(lambda: time.monotonic() > time_out, 5)
    seen = service.machine.properties("chimera", "NRestarts", "ExecMainStatus", "ActiveState", "StatusText")
    named = seen["StatusText"].startswith("bad configuration: WORKERS")
    good = done.returncode != 0 and seen["NRestarts"] == "0" and seen["ExecMainStatus"] == "78" and named
    service.row(
        "start with a bad file", "exit 78, not restarted, the fault in the status", Seen(json.dumps(seen), good)
    )
    service.settings(WORKERS="cpu=1")
    service.machine.run("systemctl", "reset-failed", "chimera")


def uninstalled(service: Service) -> None:
    """`make uninstall` of a service that runs leaves nothing, with KEEP=1 what the operator keeps."""
    run = service.machine.run
    run("systemctl", "start", "chimera")
    run("make", "-C", SOURCE, "uninstall", "KEEP=1")
    kept = [path for path in ("/etc/chimera/chimera.env", "/var/lib/chimera", "/var/log/chimera")
            if service.machine.path(path).exists()]  # fmt: skip
    running = service.machine.processes("chimera")
    service.row("make uninstall KEEP=1", "nothing runs; settings, state and logs stay",
                Seen(f"{len(running)} processes; {', '.join(kept)}", len(kept) == 3 and not running))  # fmt: skip
    run("make", "-C", SOURCE, "uninstall")
    # what came on the machine itself meanwhile, another test's folder for one, shows in the container too
    left = [path for path in _named(service.machine) if path not in service.before and not Path(path).exists()]
    users = [name for name in ("passwd", "group", "shadow", "gshadow")
             if "chimera" in service.machine.path(f"/etc/{name}").read_text()]  # fmt: skip
    service.row("make uninstall", "nothing is left", Seen(", ".join(left + users) or "nothing", not left + users))


def _named(machine: Machine) -> list[str]:
    """Return all that has Chimera's name on the container's own file system, but for the log that systemd keeps."""
    found = machine.run("find", "/", "-xdev", "-iname", "*chimera*", "-not", "-path", f"{SOURCE}*", check=False)
    return found.stdout.splitlines()


CHECKS: tuple[Callable[[Service], None], ...] = (
    installed, started, logged, diagnosed, behind_nginx, reloaded, restarted, killed, stopped_dead, stopped,
    misconfigured, uninstalled,
)  # fmt: skip


def boot(folder: Path, repository: Path) -> Machine:
    """Return a booted machine. Raises NoMachine."""
    machine = Machine(folder / "layers", repository, passed_on(os.environ))
    machine.boot()
    return machine
