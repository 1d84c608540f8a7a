"""Chimera behind nginx, HAProxy and Caddy, each with the configuration that scripts/proxy ships."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.fakes.chimera import Chimera, chimera, free_ports, wait_for
from tests.fakes.fake_ollama import add_model, write_control
from tests.fakes.proxies import NAME, PACKAGES, Place, client_of, program, proxy

GENERATE = {"model": "tiny", "prompt": "hello"}
MIB = 1024**2
# More than any bound of a body, in the proxies' configurations or in Chimera's.
BLOB_PARTS = 300
# Of this machine too, so that the proxy has a client whose address is not its own.
CLIENT, LIE = "127.0.0.9", "198.51.100.66"


class Fronted:
    """A running Chimera with a proxy in front of it."""

    def __init__(self, kind: str, made: Chimera, place: Place) -> None:
        self.kind, self.chimera, self.place = kind, made, place

    def client(self, *, http2: bool = False) -> httpx.Client:
        return client_of(self.place, http2=http2, address=CLIENT)

    def behave(self, **keys: object) -> None:
        write_control(self.chimera.folder / "control.json", **keys)

    def inflight(self) -> int:
        return sum(int(row["inflight"]) for row in self.chimera.instances())

    def access(self, request_id: str) -> dict[str, object]:
        """The line of the access log for a request."""

        def found() -> dict[str, object] | None:
            lines = [line for line in self.chimera.err().splitlines() if f'"request":"{request_id}"' in line]
            return json.loads(lines[-1]) if lines else None

        return wait_for(found)


@pytest.fixture(scope="module", params=sorted(PACKAGES))
def fronted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    kind = str(request.param)
    if program(kind) is None or program("openssl") is None:
        pytest.skip(f"{kind} or openssl is not installed: apt install {PACKAGES[kind]} openssl")
    folder = tmp_path_factory.mktemp(kind)
    with chimera(
        folder / "chimera", WORKERS="cpu=2", WORKER_SLOTS="1", REQUIRED_MODEL="tiny", ACCESS_LOG="on",
        TRUSTED_PROXIES="127.0.0.1", TRAEFIK_API_DOMAIN=NAME,
    ) as made:  # fmt: skip
        models = Path(made.env["OLLAMA_MODELS"])
        models.mkdir(parents=True)
        add_model(models, "tiny")
        made.start().ready(2)
        http_port, https_port = free_ports(2, made.primary_port + 600)
        place = Place(folder, http_port, https_port, made.port)
        with proxy(kind, place):
            yield Fronted(kind, made, place)


@pytest.fixture(autouse=True)
def as_usual(fronted: Fronted) -> Iterator[None]:
    """No test leaves its faults, or a request, to the next."""
    yield
    fronted.behave()
    wait_for(lambda: fronted.inflight() == 0)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions"])
def test_a_part_of_a_stream_is_here_before_there_is_a_next_one(fronted: Fronted, path: str, http2: bool) -> None:
    fronted.behave(hang_after=1)
    asked = GENERATE | {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    with fronted.client(http2=http2) as client, client.stream("POST", path, json=asked) as answer:
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        lines = answer.iter_lines()  # kept: without it the answer is closed
        assert "tok0" in next(lines)
        assert fronted.inflight() == 1


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_whoever_leaves_before_there_is_a_token_frees_the_worker(fronted: Fronted, version: str) -> None:
    fronted.behave(hang_after=0)
    place = fronted.place
    url = f"https://{NAME}:{place.https_port}"
    curl = subprocess.Popen(
        ["curl", "--silent", version, "--cacert", str(place.certificate), "--data", json.dumps(GENERATE),
         "--resolve", f"{NAME}:{place.https_port}:127.0.0.1", f"{url}/api/generate"],
    )  # fmt: skip
    try:
        wait_for(lambda: fronted.inflight() == 1)
    finally:
        curl.kill()
        curl.wait()
    wait_for(lambda: fronted.inflight() == 0)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_a_client_has_its_own_address_whatever_it_says_of_itself(fronted: Fronted, http2: bool) -> None:
    lies = {"X-Forwarded-For": LIE, "Forwarded": f"for={LIE}", "X-Real-IP": LIE, "X-Request-Id": f"lie-{http2}"}
    with fronted.client(http2=http2) as client:
        client.post("/api/generate", json=GENERATE, headers=lies).raise_for_status()
        assert fronted.access(f"lie-{http2}")["client"] == CLIENT
        client.get("/api/tags", headers={"X-Request-Id": f"plain-{http2}"}).raise_for_status()
        assert fronted.access(f"plain-{http2}")["client"] == CLIENT


@pytest.mark.parametrize(
    "path",
    ["/admin/instances", "/admin/traefik", "/%61dmin/instances", "//admin/instances", "/./admin/instances",
     "/x/../admin/instances", "/admin", "/metrics", "/%6detrics"],
)  # fmt: skip
def test_what_is_inside_is_not_reached_from_outside(fronted: Fronted, path: str) -> None:
    with fronted.client() as client:
        url = httpx.URL(str(client.base_url), raw_path=path.encode())
        answer = client.get(url, follow_redirects=True)
        assert answer.status_code == 404, answer.text  # Chimera itself would say 403
    assert fronted.chimera.client.get("/admin/instances").status_code == 200


def test_files_of_weights_go_up_unbounded_and_part_by_part(fronted: Fronted) -> None:
    part = bytes(MIB)
    digest = hashlib.sha256(part * BLOB_PARTS).hexdigest()
    blobs = Path(fronted.chimera.env["OLLAMA_MODELS"]) / "blobs"

    def parts() -> Iterator[bytes]:
        yield part
        wait_for(lambda: list(blobs.glob(f"sha256-{digest}-partial*")))  # the primary has it already
        for _ in range(BLOB_PARTS - 1):
            yield part

    with fronted.client() as client:
        answer = client.post(f"/api/blobs/sha256:{digest}", content=parts())
        assert answer.status_code == 201, answer.text
    (blobs / f"sha256-{digest}").unlink()


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_whoever_asks_for_the_place_in_the_queue_gets_the_answer_at_least(fronted: Fronted, http2: bool) -> None:
    fronted.behave(hang_after=1)
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        client = stack.enter_context(fronted.client(http2=http2))
        busy = [stack.enter_context(fronted.client()) for _ in range(2)]
        streams = [one.stream("POST", "/api/generate", json=GENERATE) for one in busy]
        held = [stream.__enter__().iter_lines() for stream in streams]
        assert all("tok0" in next(lines) for lines in held)
        fronted.behave()
        asked = pool.submit(lambda: client.post("/api/generate", json=GENERATE, headers={"X-Chimera-Queue": "1"}))
        wait_for(lambda: fronted.chimera.queue()["depth"] == 1)
        for stream in streams:
            stream.__exit__(None, None, None)
        answer = asked.result()
        assert answer.status_code == 200
        assert answer.text.rstrip().endswith("}")


def test_without_tls_the_client_is_sent_to_where_there_is(fronted: Fronted) -> None:
    answer = httpx.get(
        f"http://127.0.0.1:{fronted.place.http_port}/api/tags?a=b", headers={"host": NAME}, trust_env=False
    )
    assert answer.status_code == 308
    assert answer.headers["location"].startswith(f"https://{NAME}")
    assert answer.headers["location"].endswith("/api/tags?a=b")
