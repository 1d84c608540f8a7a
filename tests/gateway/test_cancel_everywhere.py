"""A request that is cut off at any of its waits leaves nothing behind: every wait there is, one by one.

Each scenario is carried out once for every wait that it has, and cut off there: by cancellation of the exchange or of
the front, or by the client that leaves. Afterwards (`Stage.nothing_is_left`): no lease, no ticket and nobody who holds
one, the worker's connection closed (in the pool only if its answer was complete), no worker blamed, no pull, no file
descriptor; and the next request is answered.
"""

import gc
from collections.abc import Iterator

import pytest
from trio.testing import wait_all_tasks_blocked

from gateway import body as body_module
from gateway import fleetwide as fleetwide_module
from gateway import outgoing as outgoing_module
from gateway import stream as stream_module
from gateway.errors import Dialect
from gateway.request import Request
from tests.fakes.cut import Visit, Wait, modules, waits_of
from tests.fakes.examples import thorough
from tests.fakes.reply import RecordingReply
from tests.fakes.stage import Scenario, Stage, Way, carry_out
from tests.fakes.worker_server import NDJSON, Conversation, dies, hangs, says, sends, starts

BIG = 256 * 1024
LINE = b'{"response":"a"}\n'
DONE = b'{"done":true}\n'
DIED = b'{"error":"an error was encountered while running the model: unexpected EOF"}'

SCENARIOS: dict[str, tuple[Scenario, tuple[Way, ...]]] = {}


def inference(scenario: Scenario) -> Scenario:
    """A scenario of a request that a worker answers."""
    SCENARIOS[scenario.__name__] = (scenario, tuple(Way))
    return scenario


def other(scenario: Scenario) -> Scenario:
    """A scenario of a request that something else than `Exchange.infer` answers."""
    SCENARIOS[scenario.__name__] = (scenario, (Way.FRONT, Way.LEAVE, Way.EXPRESS, Way.EXPRESS_LEAVE))
    return scenario


def express(scenario: Scenario) -> Scenario:
    """A scenario of something that only the express lane waits for."""
    SCENARIOS[scenario.__name__] = (scenario, (Way.EXPRESS, Way.EXPRESS_LEAVE))
    return scenario


def head(*headers: str, status: int = 200) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Fine", *headers, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = head(f"content-type: {NDJSON}", "transfer-encoding: chunked")
END = b"0\r\n\r\n"
# A stream as a model makes it: the head when the prompt is computed, then one token after the other.
TOKENS = sends(CHUNKED, chunk(LINE), chunk(LINE), chunk(DONE), END)


# -- a worker answers ------------------------------------------------------------------------------------------------


@inference
async def an_answer_that_streams(stage: Stage) -> None:
    """Connecting, prefill (no head yet), between head and first chunk, mid-stream, and at the end."""
    await stage.worker("a", TOKENS)


@inference
async def an_answer_in_one_piece(stage: Stage) -> None:
    """stream:false, its body in two parts."""
    body = b'{"model":"m","stream":false,"messages":[{"role":"user","content":"hello"}]}'
    stage.body = body
    await stage.worker("a", sends(head("content-length: 13"), b'{"done"', b":true}"))


@inference
async def an_answer_after_early_hints(stage: Stage) -> None:
    """A 1xx before the head."""
    await stage.worker("a", sends(head(status=103), CHUNKED, chunk(DONE) + END))


@inference
async def a_big_body(stage: Stage) -> None:
    """More than the connection takes at once."""
    stage.narrow()
    stage.body = b'{"model":"m","messages":[{"content":"%b"}]}' % (b"x" * BIG)
    await stage.worker("a", TOKENS)


@express
async def a_client_that_reads_slowly(stage: Stage) -> None:
    """More than is kept for it."""
    stage.slow_reader = True
    for name in ("BUFFER_BYTES", "ROOM_BYTES"):
        stage.patch.setattr(outgoing_module, name, 100)
    await stage.worker("a", sends(CHUNKED, chunk(LINE * 8_000), chunk(LINE * 8_000), chunk(DONE), END))


@inference
async def a_pooled_connection(stage: Stage) -> None:
    """One that served before, and one that its worker closes just when it is taken from the pool."""
    server = await stage.worker("a", says(DONE), dies, TOKENS)
    await _before(stage)
    assert server.connections == 1


async def _before(stage: Stage) -> None:
    """Have a request answered before the one that is looked at."""
    await stage._through_the_exchange()


# -- the queue -------------------------------------------------------------------------------------------------------


@inference
async def waiting_in_the_queue(stage: Stage) -> None:
    """For the slot of another request."""
    await stage.worker("a", TOKENS)
    stage.beside(lambda: _hold(stage))


@other
async def waiting_in_the_queue_and_told_of_its_place(stage: Stage) -> None:
    stage.headers.append(("x-chimera-queue", "1"))
    await waiting_in_the_queue(stage)


async def _hold(stage: Stage) -> None:
    admission = stage.hall.admission
    async with admission.lease(admission.ticket("m")):
        await wait_all_tasks_blocked(0.001)  # the request waits for the slot, or is gone


@inference
async def waiting_in_vain(stage: Stage) -> None:
    """No worker comes in time."""
    stage.hall.admission.queue_timeout_s = 0.01
    stage.status = 503


@inference
async def turned_away(stage: Stage) -> None:
    """At once."""
    stage.hall.admission.shut()
    stage.status = 503


# -- a worker fails --------------------------------------------------------------------------------------------------


@inference
async def a_worker_that_is_lost(stage: Stage) -> None:
    """Before its first byte; another one answers."""
    stage.faults = {"a": 1}
    await stage.worker("a", dies)
    await stage.worker("b", TOKENS)


@inference
async def a_worker_that_takes_no_connection(stage: Stage) -> None:
    stage.faults = {"a": 1}
    stage.dead_worker("a")
    await stage.worker("b", TOKENS)


@inference
async def a_worker_that_accepts_too_slowly(stage: Stage) -> None:
    stage.faults = {"a": 1}
    stage.deaf_worker("a")
    await stage.worker("b", TOKENS)


@inference
async def a_worker_that_is_silent(stage: Stage) -> None:
    """No first byte in time; another one answers."""

    async def patience(talk: Conversation) -> None:
        stage.hall.patience()
        await hangs(talk)

    stage.faults = {"a": 1}
    stage.hall.patience(first_byte_timeout_s=0.005)
    await stage.worker("a", patience)
    await stage.worker("b", TOKENS)


@inference
async def a_worker_that_refuses(stage: Stage) -> None:
    stage.faults = {"a": 1}
    await stage.worker("a", says(b'{"error":"busy"}', status=503))
    await stage.worker("b", TOKENS)


@inference
async def a_runner_that_died(stage: Stage) -> None:
    """Told in two parts; the only worker is asked once more."""
    stage.faults = {"a": 1}
    told = sends(head(f"content-length: {len(DIED)}", status=500), DIED[:20], DIED[20:])
    await stage.worker("a", told, TOKENS)


@inference
async def a_pause_before_another_chance(stage: Stage) -> None:
    """The only worker was lost; it is back before the pause is over."""

    async def replaced(talk: Conversation) -> None:
        stage.hall.admission.worker_lost("a")
        stage.hall.admission.worker_ready("a", port=second.port, slots=1, models=frozenset(), cordoned=False)
        await talk.die()

    stage.faults = {"a": 1}
    second = await stage.worker("a", TOKENS)
    await stage.worker("a", replaced)


@inference
async def a_pause_in_vain(stage: Stage) -> None:
    """The only worker was lost, and nobody comes: the client is told."""
    stage.faults = {"a": 2}
    stage.status = 502
    await stage.worker("a", dies)


@inference
async def an_answer_that_breaks(stage: Stage) -> None:
    """A stream: it ends with an error line."""
    stage.faults = {"a": 0}
    await stage.worker("a", starts(LINE, then=dies))


@inference
async def an_answer_of_known_length_that_breaks(stage: Stage) -> None:
    """It is cut."""
    stage.faults = {"a": 0}
    stage.whole = False
    half = sends(head("content-length: 100"), b'{"half":')

    async def breaks(talk: Conversation) -> None:
        await half(talk)
        await talk.die()

    await stage.worker("a", breaks)


@inference
async def an_answer_that_falls_silent(stage: Stage) -> None:
    stage.faults = {"a": 0}
    stage.hall.patience(stall_timeout_s=0.005)

    async def silent(talk: Conversation) -> None:
        await talk.send(CHUNKED + chunk(LINE))  # together: the patience with the first byte is another one
        await hangs(talk)

    await stage.worker("a", silent)


# -- all workers at once ---------------------------------------------------------------------------------------------


def _load(stage: Stage, body: bytes = b'{"model":"m"}') -> None:
    stage.target, stage.body = "/api/generate", body


@other
async def a_load_everywhere(stage: Stage) -> None:
    _load(stage)
    for name in "abc":
        await stage.worker(name, TOKENS)


@other
async def an_unload_where_it_is_loaded(stage: Stage) -> None:
    _load(stage, b'{"model":"m","keep_alive":0}')
    for name in "ab":
        await stage.worker(name, TOKENS)
        stage.hall.admission.worker_models(name, frozenset({"m:latest"}))


@other
async def a_load_with_no_worker_there(stage: Stage) -> None:
    """It waits in the queue as any request does."""
    _load(stage)

    async def comes() -> None:
        await wait_all_tasks_blocked(0.001)
        await stage.worker("a", TOKENS)

    stage.beside(comes)


@other
async def a_load_that_all_workers_are_lost_over(stage: Stage) -> None:
    _load(stage)
    stage.status = 502
    await stage.worker("a", dies)
    stage.dead_worker("b")


@other
async def which_models_are_loaded(stage: Stage) -> None:
    """/api/ps, of workers that answer, die and are not there."""
    stage.method, stage.target, stage.body = "GET", "/api/ps", b""
    models = b'{"models":[{"name":"m:latest","size":1}]}'
    await stage.worker("a", sends(head(f"content-length: {len(models)}"), models[:9], models[9:]))
    await stage.worker("b", dies)
    stage.dead_worker("c")


@other
async def which_models_are_loaded_on_a_worker_that_is_silent(stage: Stage) -> None:
    stage.method, stage.target, stage.body = "GET", "/api/ps", b""
    stage.patch.setattr(fleetwide_module, "PS_TIMEOUT_S", 0.005)
    await stage.worker("a", hangs)


# -- the primary -----------------------------------------------------------------------------------------------------


@other
async def an_answer_of_the_primary(stage: Stage) -> None:
    stage.method, stage.target, stage.body = "GET", "/api/tags", b""
    await stage.primary(sends(head("content-length: 13"), b'{"models":', b"[]}"))


@other
async def a_request_that_only_the_primary_can_refuse(stage: Stage) -> None:
    stage.body = b'{"no":"model"}'
    stage.status = 400
    await stage.primary(says(b'{"error":"model is required"}', status=400))


@other
async def a_primary_that_is_away(stage: Stage) -> None:
    stage.method, stage.target, stage.body = "GET", "/api/tags", b""
    stage.status = 503


@other
async def a_primary_that_is_lost(stage: Stage) -> None:
    stage.target, stage.body = "/api/push", b"{}"
    stage.faults = {"primary": 0}
    await stage.primary(starts(LINE, then=dies))


@other
async def an_upload(stage: Stage) -> None:
    """A blob, streamed through."""
    _upload(stage)
    stage.status = 201
    await stage.primary(sends(head("content-length: 0", status=201)))


@other
async def an_upload_of_known_length(stage: Stage) -> None:
    _upload(stage)
    stage.chunked = False
    stage.status = 201
    await stage.primary(sends(head("content-length: 0", status=201)))


@other
async def an_upload_that_is_refused_early(stage: Stage) -> None:
    """Its rest is read, and thrown away."""

    async def refuses(talk: Conversation) -> None:
        await says(b"no", "connection: close", status=400)(talk)
        await talk.die()

    _upload(stage)
    stage.status = 400
    await stage.primary(refuses, refuses_early=True)


def _upload(stage: Stage) -> None:
    stage.narrow()
    stage.target, stage.body, stage.chunked = "/api/blobs/sha256:1", b"x" * BIG, True


@other
async def a_body_that_is_too_large(stage: Stage) -> None:
    stage.body, stage.chunked = b"x" * 1000, True
    stage.max_body_bytes = 999
    stage.status = 413


@other
async def a_body_that_is_too_large_by_far(stage: Stage) -> None:
    """Its rest is not even read."""
    await a_body_that_is_too_large(stage)
    stage.max_body_bytes = 400
    stage.patch.setattr(body_module, "DISCARD_BYTES", 1)
    stage.patch.setattr(stream_module, "LINGER_S", 0.01)  # the client does not close before the gateway does


# -- pulls -----------------------------------------------------------------------------------------------------------

MANIFEST = b'{"status":"pulling manifest"}\n'
SUCCESS = b'{"status":"success"}\n'
PULL = sends(CHUNKED, chunk(MANIFEST), chunk(SUCCESS[:9]), chunk(SUCCESS[9:]), END)


def _pull(stage: Stage, body: bytes = b'{"model":"m"}') -> None:
    stage.target, stage.body = "/api/pull", body


@other
async def a_pull(stage: Stage) -> None:
    _pull(stage)
    await stage.primary(PULL)


@other
async def a_pull_without_a_stream(stage: Stage) -> None:
    _pull(stage, b'{"model":"m","stream":false}')
    await stage.primary(PULL)


@other
async def a_pull_that_somebody_else_wants_too(stage: Stage) -> None:
    """It goes on for the other one."""
    _pull(stage)
    await stage.primary(PULL)

    async def somebody_else() -> None:
        reply = RecordingReply()
        request = Request("POST", "/api/pull", b"/api/pull", [], Dialect.OLLAMA, "req-2")
        await stage.pulls.answer(request, b'{"model":"m"}', reply)
        assert (reply.body, reply.ended) == (MANIFEST + SUCCESS, True)

    stage.goes_on = True
    stage.beside(somebody_else)


@other
async def a_pull_that_the_primary_refuses(stage: Stage) -> None:
    _pull(stage)
    stage.status = 404
    error = b'{"error":"no such model"}'
    await stage.primary(sends(head(f"content-length: {len(error)}", status=404), error[:9], error[9:]))


@other
async def a_pull_without_a_stream_that_the_primary_refuses(stage: Stage) -> None:
    await a_pull_that_the_primary_refuses(stage)
    _pull(stage, b'{"model":"m","stream":false}')


@other
async def a_pull_out_of_the_ordinary(stage: Stage) -> None:
    """It goes to the primary as it is."""
    _pull(stage, b'{"model":"m","of":"tomorrow"}')
    await stage.primary(PULL)


@other
async def a_pull_that_is_lost_before_its_first_byte(stage: Stage) -> None:
    _pull(stage, b'{"model":"m","stream":false}')
    stage.status = 503
    await stage.primary(dies)


@other
async def a_pull_that_breaks(stage: Stage) -> None:
    _pull(stage)
    await stage.primary(starts(MANIFEST, then=dies))


# -- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def young() -> None:
    """Let the garbage collector look at nothing but what these tests make: it is asked after every run."""
    gc.collect()
    gc.freeze()


def to_try() -> Iterator[tuple[str, Way]]:
    """Return each scenario with each way; in `make check` every second pair, so that each has its turn."""
    for number, (name, (_, ways)) in enumerate(SCENARIOS.items()):
        for turn, way in enumerate(ways, number):
            if thorough() or turn % 2 == 0:
                yield name, way


@pytest.mark.parametrize(
    ("name", "way"), list(to_try()), ids=lambda value: value.name.lower() if isinstance(value, Way) else value
)
async def test_cut_off_at_any_wait_a_request_leaves_nothing_behind(name: str, way: Way, young: None) -> None:
    scenario, _ = SCENARIOS[name]
    to_do = (await carry_out(scenario, way, None)).met()
    assert to_do
    done: set[Visit] = set()
    tries = 3  # what comes after what is the network's choice: a wait may not be met in each run
    while to_do:
        target = to_do.pop()
        if not thorough() and target[1] > 1:
            continue  # what is met again is met for the first time too
        for _ in range(tries):
            cut = await carry_out(scenario, way, target)
            to_do |= cut.met() - done - {target}
            if cut.done:
                done.add(target)
                break
    assert done


# Modules whose waits are not a request's.
ELSEWHERE = {
    "admin": "the operator's requests; they take no slot",
    "admin_keys": "the operator's requests; they take no slot",
    "answering": "a connection's; they end with it: tests/gateway/test_answering.py",
    "app": "health and metrics",
    "connections": "the shutdown's",
    "door": "connections, before and after their requests: tests/gateway/test_door.py",
    "key_store": "the operator's changes, and one task that writes when keys were used",
    "keyring": "the operator's changes, and one task that writes when keys were used",
    "outgoing": "a connection's; they end with it: tests/gateway/test_outgoing.py",
    "page": "it holds nothing that could be left: tests/gateway/test_page.py",
    "stream": "a connection's; they end with it: tests/gateway/test_stream.py",
    "tracing": "the shutdown's; spans are made in one step and sent by a thread",
}
_LITTLE = "a connection with nothing under way takes so little at once"
# Waits that no request can be cut off at, and why.
UNREACHABLE = {
    "admission.Admission.wait_drained: await self._drained.setdefault(worker_id, trio.Event()).wait()": "a drain's",
    "admission.Admission.wait_all_drained: await self.wait_drained(worker.id)": "the shutdown's",
    "asgi.AsgiLane.__call__: await self._pages(scope, receive, send)": "a page's, in Quart",
    "leaving.Leaving.run: await self._readiness.run()": "the gateway's own life",
    "upstream.Upstream.run: async with trio.open_nursery() as nursery:": "the gateway's own life",
    "front.Front._serve: async with aclosing(body.stream()) as parts:": "what it closes does not wait any more",
    "pulls.Pulls.run: async with trio.open_nursery() as nursery:": "the gateway's own life",
    "pulls.Pulls.run: await trio.sleep_forever()": "the gateway's own life",
    "upstream.Upstream._send_parts: async with aclosing(framed(body, headers)) as parts:": "as above",
    "upstream.Upstream._send_parts: await link.send(head, trio.current_time() + self._first_byte_timeout_s)": _LITTLE,
    "upstream._send_whole: await link.send(head + body, due)": _LITTLE,
    "upstream._send_whole: await link.send(head, due)": _LITTLE,
}


async def test_each_wait_of_the_gateway_is_met_by_a_scenario(young: None) -> None:
    met: set[Wait] = set()
    for scenario, ways in SCENARIOS.values():
        for way in ways:
            met |= {wait for stack in (await carry_out(scenario, way, None)).visits for wait in stack}
    waits = [wait for module in modules() if module not in ELSEWHERE for wait in waits_of(module)]
    missed = {str(wait): wait.name for wait in waits if wait not in met}
    assert [where for where, name in missed.items() if name not in UNREACHABLE] == [], "it wants a scenario"
    assert UNREACHABLE.keys() - set(missed.values()) == set(), "it is not there any more, or met"
