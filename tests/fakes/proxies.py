"""nginx, HAProxy and Caddy as Debian has them, each with the configuration that scripts/proxy ships.

What is changed in the shipped text is in one table for each: ports, files, and Chimera's address. A text that is not
there any more fails: what is tried is what is shipped.
"""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.fakes.chimera import ROOT, wait_for

SNIPPETS = ROOT / "scripts" / "proxy"
NAME = "chimera.example"
PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "caddy": "caddy"}
START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Place:
    """Where a proxy listens and where it finds what it needs. `pem` has certificate and key."""

    folder: Path
    http_port: int
    https_port: int
    chimera_port: int

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def pem(self) -> Path:
        return self.folder / "both.pem"


def program(kind: str) -> str | None:
    """Return where a proxy is; Debian puts it where only root looks."""
    return shutil.which(kind) or shutil.which(kind, path="/usr/sbin:/usr/local/sbin")


def make_certificate(place: Place) -> None:
    """Write a certificate for NAME, signed by itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}",
         "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", str(place.key), "-out", str(place.certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    place.pem.write_text(place.certificate.read_text() + place.key.read_text())


def fitted(text: str, changes: Mapping[str, str]) -> str:
    """Return a shipped text with what is of this machine. AssertionError when one of them is not there."""
    for shipped, here in changes.items():
        assert shipped in text, f"{shipped!r} is not in the shipped text any more"
        text = text.replace(shipped, here)
    return text


def nginx_conf(place: Place) -> str:
    return fitted(
        (SNIPPETS / "nginx.conf").read_text(),
        {
            "listen 80;": f"listen 127.0.0.1:{place.http_port};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{place.https_port} ssl http2;",
            "    listen [::]:80;\n": "",  # not every machine has IPv6
            "    listen [::]:443 ssl http2;\n": "",
            "/etc/ssl/certs/chimera.example.pem": str(place.certificate),
            "/etc/ssl/private/chimera.example.key": str(place.key),
            "127.0.0.1:8000": f"127.0.0.1:{place.chimera_port}",
        },
    )


def _nginx(place: Place) -> list[str]:
    temporary = "".join(
        f"{name}_temp_path {place.folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place.folder / "chimera.conf").write_text(nginx_conf(place))
    main = place.folder / "nginx.conf"
    main.write_text(
        f"daemon off; pid {place.folder}/nginx.pid; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} include {place.folder}/chimera.conf; }}\n"
    )
    return ["-e", str(place.folder / "error.log"), "-c", str(main)]


def _haproxy(place: Place) -> list[str]:
    file = place.folder / "haproxy.cfg"
    file.write_text(
        "global\n    maxconn 200\n\n"
        + fitted(
            (SNIPPETS / "haproxy.cfg").read_text(),
            {
                "bind :80\n": f"bind 127.0.0.1:{place.http_port}\n",
                "bind :443 ": f"bind 127.0.0.1:{place.https_port} ",
                "/etc/haproxy/chimera.example.pem": str(place.pem),
                "127.0.0.1:8000": f"127.0.0.1:{place.chimera_port}",
            },
        )
    )
    return ["-db", "-f", str(file)]


def _caddy(place: Place) -> list[str]:
    file = place.folder / "Caddyfile"
    own = "{\n\tadmin off\n\thttp_port %d\n\thttps_port %d\n\tservers {\n\t\tprotocols h1 h2\n\t}\n}\n\n"
    file.write_text(
        own % (place.http_port, place.https_port)
        + fitted(
            (SNIPPETS / "Caddyfile").read_text(),
            {
                f"\n{NAME} {{\n": f"\n{NAME} {{\n\tbind 127.0.0.1\n\ttls {place.certificate} {place.key}\n",
                "127.0.0.1:8000": f"127.0.0.1:{place.chimera_port}",
            },
        )
    )
    return ["run", "--adapter", "caddyfile", "--config", str(file)]


ARGUMENTS = {"nginx": _nginx, "haproxy": _haproxy, "caddy": _caddy}


@contextmanager
def proxy(kind: str, place: Place) -> Iterator[None]:
    """Run a proxy for the block, in the foreground and ended by its pid; it answers when the block begins."""
    found = program(kind)
    assert found is not None
    make_certificate(place)
    said = place.folder / "said.txt"
    home = {"HOME": str(place.folder), "XDG_DATA_HOME": str(place.folder), "XDG_CONFIG_HOME": str(place.folder)}
    with said.open("wb") as out:
        process = subprocess.Popen(
            [found, *ARGUMENTS[kind](place)], env=os.environ | home, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        with client_of(place) as client:

            def answers() -> bool:
                assert process.poll() is None, said.read_text()
                try:
                    return client.get("/healthz").status_code == 200
                except httpx.TransportError:
                    return False

            wait_for(answers, START_TIMEOUT_S)
        yield
    finally:
        process.terminate()
        process.wait()


def client_of(place: Place, *, http2: bool = False, address: str = "127.0.0.1") -> httpx.Client:
    """Return a client of the proxy, by its name and with TLS, from one of this machine's addresses."""
    context = ssl.create_default_context(cafile=str(place.certificate))
    transport = httpx.HTTPTransport(verify=context, http2=http2, local_address=address)
    return httpx.Client(
        base_url=f"https://127.0.0.1:{place.https_port}", transport=_Named(transport), timeout=60,
        headers={"host": NAME}, trust_env=False,
    )  # fmt: skip


class _Named(httpx.BaseTransport):
    """Asks for the certificate of NAME, whatever address is connected to."""

    def __init__(self, inner: httpx.HTTPTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": NAME}
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()
