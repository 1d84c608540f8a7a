"""The service behind nginx: as its package starts it, with the configuration that scripts/proxy ships."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.faults.load import wait_until
from scripts.gpus.row import Seen
from supervisor.embedded import MODEL
from tests.fakes.chimera import free_ports
from tests.fakes.proxies import Place, client_of, make_certificate, nginx_conf, program

if TYPE_CHECKING:
    from scripts.booted.checks import Service

CONF = "/etc/nginx/conf.d/chimera.conf"
# A client whose address is not the proxy's, and the one that it says it has.
CLIENT, LIE = "127.0.0.9", "198.51.100.66"
TOKENS = 80


def behind_nginx(service: "Service") -> None:
    """A stream, addresses and what is inside, seen through nginx; nginx and its files are gone afterwards."""
    if program("nginx") is None or program("openssl") is None:
        service.row(
            "behind nginx", "is shown where nginx is", Seen("not here: apt install nginx-light openssl", good=True)
        )
        return
    with tempfile.TemporaryDirectory(prefix="chimera-nginx-", dir="/var/tmp") as folder:
        http_port, https_port = free_ports(2, service.ports["WORKER_PORT_BASE"] + 600)
        place = Place(Path(folder), http_port, https_port, service.ports["GATEWAY_PORT"])
        make_certificate(place)
        inside = service.machine.path(folder)
        shutil.copytree(folder, inside, dirs_exist_ok=True)
        service.machine.path(CONF).write_text(nginx_conf(place))
        service.machine.run("rm", "-f", "/etc/nginx/sites-enabled/default")  # port 80 is this machine's
        started = service.machine.run("systemctl", "start", "nginx", check=False)
        service.row("nginx, from its package", "starts with scripts/proxy/nginx.conf",
                    Seen(started.stderr.strip() or "started", started.returncode == 0))  # fmt: skip
        try:
            if started.returncode == 0:
                _seen_through(service, place)
        finally:
            service.machine.run("systemctl", "stop", "nginx", check=False)
            service.machine.path(CONF).unlink()
            shutil.rmtree(inside)


def _seen_through(service: "Service", place: Place) -> None:
    lies = {"X-Forwarded-For": LIE, "Forwarded": f"for={LIE}", "X-Request-Id": "behind-nginx"}
    asked = {"model": MODEL, "prompt": "Hi", "options": {"num_predict": TOKENS}}
    with client_of(place, http2=True, address=CLIENT) as client:
        with client.stream("POST", "/api/generate", json=asked, headers=lies) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            rows = service.client.get("/admin/instances").json()["instances"]
            busy = sum(row["inflight"] for row in rows)
            last = [first, *lines][-1]
        whole = '"done":false' in first and '"done":true' in last
        seen = f"{answer.http_version}, {busy} under way at the first token, {'whole' if whole else 'not whole'}"
        service.row("a stream through nginx", "HTTP/2 over TLS; its first token is here before the next is made",
                    Seen(seen, answer.http_version == "HTTP/2" and busy == 1 and whole))  # fmt: skip
        told = wait_until(lambda: service.entries("CHIMERA_REQUEST=behind-nginx"), 10) or [
            {"CHIMERA_CLIENT": "no line"}
        ]
        named = str(told[0]["CHIMERA_CLIENT"])
        service.row("whose address is in the log", f"{CLIENT}, though the client says {LIE}",
                    Seen(named, named == CLIENT))  # fmt: skip
        status = client.get("/admin/instances").status_code
        service.row("the admin API through nginx", "404", Seen(str(status), status == 404))
