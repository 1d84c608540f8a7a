"""A whole Chimera with fake workers that speaks HTTPS: commands, client.sh, renewals, reloads; and host names."""

import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.fakes.certificates import trusting, write_pair
from tests.fakes.chimera import ROOT, Chimera, wait_for
from tests.fakes.fake_ollama import write_control

GENERATE = {"model": "tiny", "prompt": "hello"}
ENDS = "chimera_tls_certificate_expires_timestamp_seconds "


def settings(faked: Chimera, **names: object) -> None:
    faked.folder.mkdir(exist_ok=True)
    (faked.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in names.items()))


def speaks_https(faked: Chimera) -> None:
    faked.url = faked.url.replace("http:", "https:")
    faked.client.close()
    faked.client = httpx.Client(base_url=faked.url, timeout=60, trust_env=False, verify=trusting(), http2=True)


@pytest.fixture
def secured(faked: Chimera, tmp_path: Path) -> Iterator[Chimera]:
    """Speaks HTTPS with a certificate of an authority that only the tests trust."""
    cert, key = write_pair(tmp_path)
    settings(faked, TLS_CERT=cert, TLS_KEY=key)
    speaks_https(faked)
    yield faked
    faked.clean_up()


def certificate_ends_at(secured: Chimera) -> float:
    (line,) = [line for line in secured.client.get("/metrics").text.splitlines() if line.startswith(ENDS)]
    return float(line.split()[1])


def serial(faked: Chimera) -> str:
    """The certificate that a new connection is shown."""
    return ssl.get_server_certificate(("127.0.0.1", faked.port))


def at_home(argv: list[str], environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a script of the repository."""
    return subprocess.run(argv, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)


def test_every_command_finds_and_trusts_it(secured: Chimera) -> None:
    try:
        began = secured.command("start")
        assert began.returncode == 0, began.stderr
        assert f"at {secured.url};" in began.stdout
        assert secured.url in secured.command("status").stdout
        spawned = secured.command("spawn", "--wait")
        assert (spawned.returncode, spawned.stderr) == (0, "")
        told = secured.command("env").stdout
        assert f"export CHIMERA_URL={secured.url}\n" in told
        assert f"export CHIMERA_CA={secured.folder}/server.pem\n" in told
        environ = secured.environ() | dict(line.removeprefix("export ").split("=", 1) for line in told.splitlines())
        trial = [sys.executable, "scripts/test_gateway.py", "--requests", "8", "--workers", "0"]
        words = (["list"], ["generate", "--prompt", "hello"], ["status"])
        for argv in (*(["./client.sh", *each] for each in words), trial):
            done = at_home(argv, environ)
            assert done.returncode == 0, (argv, done.stdout, done.stderr)
        del environ["CHIMERA_CA"]
        stranger = at_home(["./client.sh", "list"], environ)
        assert (stranger.returncode, stranger.stderr.count("\n")) == (1, 1)
        assert "CHIMERA_CA the file to trust" in stranger.stderr
    finally:
        assert "has stopped" in secured.command("stop").stdout


def test_its_own_commands_do_not_need_the_name_nor_read_the_key(secured: Chimera) -> None:
    cert, key = write_pair(secured.folder, "gpu.example.com")
    secured.client = httpx.Client(base_url=secured.url, timeout=60, trust_env=False, verify=False)
    secured.start().ready(2)
    key.rename(secured.folder / "away")
    assert secured.command("status").returncode == 0
    wait_for(lambda: "is not for 127.0.0.1" in secured.err())
    write_pair(secured.folder)  # what answers has another one for some seconds, and is somebody else as far as is known
    (secured.folder / "server.key").unlink()
    refused = secured.command("status")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "is not the certificate of TLS_CERT" in refused.stderr
    assert cert.exists()


def test_the_welcome_says_what_to_type(secured: Chimera) -> None:
    secured.start().ready(2)
    line = f"CHIMERA_URL={secured.url} CHIMERA_CA={secured.folder}/server.pem ./client.sh list"
    wait_for(lambda: line in secured.out())


def test_a_renewed_certificate_is_shown_and_a_bad_one_is_told(secured: Chimera) -> None:
    write_control(secured.folder / "control.json", tokens=100, token_s=0.1)
    secured.start().ready(2)
    before = serial(secured)
    with secured.client.stream("POST", "/api/generate", json=GENERATE) as answer:
        assert answer.http_version == "HTTP/2"
        lines = answer.iter_lines()
        next(lines)
        ends_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=40)
        write_pair(secured.folder, ends_at=ends_at)
        wait_for(lambda: serial(secured) != before)
        assert certificate_ends_at(secured) == ends_at.timestamp()
        assert '"done":true' in list(lines)[-1].replace(" ", "")
    renewed = serial(secured)
    kept = (secured.folder / "server.key").read_bytes()
    (secured.folder / "server.key").write_text("no key")
    wait_for(lambda: [event for event in secured.events() if event["event"] == "certificate_refused"])
    refused = secured.command("reload")
    assert refused.returncode == 78
    assert refused.stderr.startswith("chimera: bad configuration: TLS_KEY: ")
    assert serial(secured) == renewed
    assert "no key" not in secured.err()
    (secured.folder / "server.key").write_bytes(kept)
    assert secured.command("reload").returncode == 0


def test_https_is_switched_on_by_a_reload(faked: Chimera, tmp_path: Path) -> None:
    settings(faked, QUEUE_SIZE=9)
    faked.start().ready(2)
    plain = faked.client
    plain.get("/healthz")
    cert, key = write_pair(tmp_path)
    settings(faked, QUEUE_SIZE=9, TLS_CERT=cert, TLS_KEY=key)
    assert faked.command("reload").stdout == "in force: TLS_CERT, TLS_KEY\n"
    assert plain.get("/healthz").json() == {"status": "ok"}  # the connection from before goes on
    told = httpx.get(f"{faked.url}/healthz", trust_env=False)
    assert (told.status_code, "HTTPS" in told.text) == (400, True)
    faked.client = httpx.Client()
    plain.close()
    speaks_https(faked)
    assert faked.client.post("/api/generate", json=GENERATE | {"stream": False}).status_code == 200


def test_names_lead_to_the_api_or_to_the_page_from_a_reload_on(faked: Chimera) -> None:
    settings(faked, QUEUE_SIZE=9)
    faked.start().ready(2)
    page = {"host": "page.example.com:443"}
    assert faked.client.get("/api/version", headers=page).status_code == 200
    settings(faked, QUEUE_SIZE=9, TRAEFIK_API_DOMAIN="api.example.com", TRAEFIK_FRONTEND_DOMAIN="page.example.com")
    assert faked.command("reload").stdout == "in force: TRAEFIK_API_DOMAIN, TRAEFIK_FRONTEND_DOMAIN\n"
    assert faked.client.get("/api/version", headers=page).status_code == 404
    assert faked.client.get("/healthz", headers=page).status_code == 200
    for host in ("api.example.com", "localhost", "other.example"):
        assert faked.client.get("/api/version", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("command", ["config", "upgrade-check", "run", "start"])
def test_everything_that_is_wrong_is_told_at_once_with_status_78(faked: Chimera, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty.pem").touch()
    settings(faked, TLS_CERT=tmp_path / "none.pem", TLS_KEY=tmp_path / "empty.pem", QUEUE_SIZE="many",
             TRAEFIK_API_DOMAIN="http://a")  # fmt: skip
    done = faked.command(command)
    assert done.returncode == 78
    names = [line.removeprefix("chimera: bad configuration: ").split(":")[0] for line in done.stderr.splitlines()]
    assert sorted(names) == ["QUEUE_SIZE", "TLS_CERT", "TLS_KEY", "TRAEFIK_API_DOMAIN"]


def test_the_configuration_shows_what_others_will_find_wrong(secured: Chimera) -> None:
    (secured.folder / "server.key").chmod(0o644)
    done = secured.command("config")
    assert done.returncode == 0
    assert f"TLS_CERT={secured.folder}/server.pem\n" in done.stdout
    assert "# warning: TLS_KEY: " in done.stdout
