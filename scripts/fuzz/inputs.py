"""Inputs, made as the grammar of each target has them and then spoilt a little (hypothesis strategies of bytes)."""

import json
from typing import Any

from hypothesis import strategies as st

from scripts.fuzz.corpus import TOKENS

TEXT = st.text(st.characters(), max_size=40)  # halves of characters too
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**400, float("inf"), 1e308])
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
TOKEN = st.sampled_from(TOKENS)

_FIELDS = [
    "model", "Model", "MODEL", "name", "prompt", "Prompt", "messages", "MeSsages", "stream", "keep_alive",
    "Keep_Alive", "options", "system", "context", "input", "insecure", "images", "format", "num_ctx", "gpu", "count",
    "slots", "ids", "wait", "idle", "force", "size", "size_vram", "expires_at", "models", "status", "digest", "total",
    "completed", "error", "version", "workers", "workers_setting", "next_number", "me\u017fsages", "\u212aeep_alive",
]  # fmt: skip
_NAME = st.one_of(st.sampled_from(_FIELDS), TEXT)
_VALUE = st.one_of(
    JSON, st.sampled_from(["tiny", "", "0", "0s", "-1", "5m", "cpu", "GPU-1"]),
    st.lists(st.dictionaries(st.sampled_from(["role", "content", *_FIELDS]), JSON, max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["num_ctx", "num_gpu", "NUM_CTX", "temperature"]), JSON, max_size=3),
)  # fmt: skip


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """JSON objects with the fields that matter, some twice, in ASCII or not, with space and junk around them."""
    pairs = draw(st.lists(st.tuples(_NAME, _VALUE), max_size=7))
    ascii_only = draw(st.booleans())

    def written(value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    inner = b",".join(written(name) + b":" + written(value) for name, value in pairs)
    before, after = (
        draw(st.sampled_from([b"", b"", b"", b" \n", b"\xef\xbb\xbf"])),
        draw(st.one_of(st.just(b""), TOKEN)),
    )
    return before + b"{" + inner + b"}" + after


VALUES = JSON.map(lambda value: json.dumps(value).encode())
DEEP = st.builds(
    lambda count, open_, inner: open_ * count + inner,
    st.sampled_from([10, 1000, 5000]), st.sampled_from([b"[", b'{"a":', b'{"model":[', b"[{}"]), VALUES,
)  # fmt: skip
NOISE = st.one_of(st.binary(max_size=64), st.lists(TOKEN, max_size=8).map(b"".join))
BODIES = st.one_of(objects(), VALUES, DEEP, NOISE)

_HEADERS = [
    b"host", b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"te", b"trailer", b"upgrade",
    b"authorization", b"x-request-id", b"x-chimera-queue", b"expect", b"origin", b"sec-fetch-site", b"forwarded",
    b"via", b"x-forwarded-for", b"cookie", b"x-api-key", b"content-type", b"accept-encoding", b"proxy-connection",
    b"accept",
]  # fmt: skip
_HEADER_VALUES = [
    b"close", b"keep-alive, x-secret", b"chunked", b"gzip, chunked", b"identity", b"0", b"5", b"-1", b"5, 5", b"+5",
    b"Bearer a-token", b"bearer  a-token ", b"Bearer", b"100-continue", b"localhost", b"127.0.0.1:80", b"[::1]:80",
    b"[", b"http://localhost", b"http://evil.example", b"null", b"cross-site", b"h2c", b"websocket", b"a" * 200,
    b"fe80::1%lo", b"application/json", b"multipart/form-data; boundary=x",
]  # fmt: skip
HEADER = st.tuples(
    st.one_of(st.sampled_from(_HEADERS), st.sampled_from(_HEADERS).map(bytes.title), st.binary(max_size=12)),
    st.sampled_from([b": ", b":", b" : ", b":\t", b""]),
    st.one_of(st.sampled_from(_HEADER_VALUES), TOKEN, st.binary(max_size=20)),
).map(b"".join)  # fmt: skip
HEADS = st.lists(HEADER, max_size=8).map(b"\n".join)

_NODES = [
    b"for=", b"For=\"", b"by=_x", b"proto=https", b";", b",", b", ", b"\"", b"\\", b"127.0.0.1", b"10.0.0.1",
    b"[::1]:80", b"::ffff:10.0.0.1", b"unknown", b"_hidden", b"203.0.113.1", b":_p",
]  # fmt: skip
_NODE_LIST = st.lists(st.one_of(st.sampled_from(_NODES), TOKEN), max_size=8).map(b"".join)
PROXIED = st.lists(
    st.builds(lambda name, text: name + b": " + text,
              st.sampled_from([b"forwarded", b"x-forwarded-for", b"via", b"accept"]), _NODE_LIST), max_size=4,
).map(b"\n".join)  # fmt: skip

QUERY = st.lists(
    st.tuples(st.sampled_from([b"count", b"gpu", b"slots", b"wait", b"ids", b"force", b"idle"]),
              st.one_of(TOKEN, st.sampled_from([b"1", b"0", b"cpu", b"true", b"a,b"])))
    .map(b"=".join), max_size=4,
).map(b"&".join)  # fmt: skip
ADMIN = st.tuples(st.one_of(BODIES, st.just(b"")), QUERY).map(b"\0".join)

_SETTINGS = [
    b"WORKERS", b"WORKER_ENV", b"ADMIN_TOKEN", b"GATEWAY_PORT", b"OLLAMA_PORT", b"WORKER_PORT_BASE", b"GATEWAY_HOST",
    b"QUEUE_TIMEOUT_S", b"MAX_BODY_BYTES", b"QUEUE_BYTES", b"REQUIRED_MODEL", b"LOG_LEVEL", b"STATE_DIR",
    b"OLLAMA_BIN", b"OLLAMA_MODELS", b"TLS_CERT", b"WORKER_SLOTS", b"LOAD_OPTIONS", b"GATEWAY_PROT", b"OLLAMA_DEBUG",
    b"CHIMERA_URL",
]  # fmt: skip
_SETTINGS_VALUES = [
    b"auto", b"gpu:0=1,cpu=2", b"cpu=1000000", b"cpu=", b"A=1,B=a,b", b"K=secret-of-many-letters", b"8000", b"11500",
    b"65536", b"1e3", b"nan", b"1GiB", b"-1", b"/tmp", b"relative", b"localhost", b"[::1]", b"'quoted",
    b'"two\nlines"', b"${HOME}", b"secret of many letters", "\u017fecret-of-many-letters".encode(),
]  # fmt: skip
DOTENV = st.lists(
    st.tuples(st.one_of(st.sampled_from(_SETTINGS), NOISE), st.sampled_from([b"=", b" = ", b"", b":"]),
              st.one_of(st.sampled_from(_SETTINGS_VALUES), NOISE)).map(b"".join), max_size=6,
).map(b"\n".join)  # fmt: skip

_KERNEL = [
    b"0::/system.slice/chimera.service", b"4:memory:/a", b"36 35 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    b"36 35 0:30 /a /mnt\\040x rw shared:1 - cgroup2 none rw", b"oom_kill 3", b"oom_kill 99999999999999999999",
    b"6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,task=ollama,pid=4711,uid=0",
    b"3,1,2,-;Memory cgroup out of memory: Killed process 4711 (ollama) total-vm:1kB", b"0::/", b"0::",
    b" - cgroup2 ",
]  # fmt: skip
KERNEL = st.lists(st.one_of(st.sampled_from(_KERNEL), NOISE), max_size=6).map(b"\n".join)
_LOGGED = [
    b'level=INFO source=types.go:131 msg="inference compute" id=0 library=cpu total="8 GiB"',
    b'msg="inference compute" id=GPU-1 library=cuda', b"inference compute", b' library="cuda', b"\r", b"\xe2\x80\xa8",
]  # fmt: skip
LOGGED = st.lists(st.one_of(st.sampled_from(_LOGGED), NOISE), max_size=8).map(b"\n".join)

_SAID = [
    b'"prompt_eval_count":7,', b'"eval_count": 123456789', b'"completion_tokens":99999999999999999999', b'"usage":{',
    b'{"error":"an error was encountered while running the model: unexpected EOF"}', b"error loading model",
    b'Post \\"http://127.0.0.1:40343/load\\": EOF', b"data: [DONE]\n\n", b"llama runner process has terminated",
]  # fmt: skip
SAID = st.lists(st.one_of(st.sampled_from(_SAID), NOISE), max_size=8).map(b"".join)

_LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 100 Continue", b"HTTP/1.1 102 Processing", b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 500 Internal Server Error", b"HTTP/1.1 503 Service Unavailable", b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 999 ?", b"HTTP/1.1 99 ?", b"HTTP/2 200",
    b"HTTP/1.1 200", b"ICY 200 OK",
]  # fmt: skip
_ANSWER_HEADERS = [
    b"content-length: 5", b"content-length: 0", b"content-length: -1", b"content-length: 99999999999999999999",
    b"content-length: 5\r\ncontent-length: 6", b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked",
    b"content-type: application/x-ndjson", b"content-type: text/event-stream", b"content-type: application/json",
    b"connection: close", b"connection: content-length", b"connection: upgrade", b"upgrade: websocket", b"x: \x01",
    b"set-cookie: a=b", b"x-request-id: theirs", b"x:"+b"a" * 70_000, b" folded", b"content-encoding: gzip",
    b"date: x",
]  # fmt: skip
_ANSWER_BODIES = [
    b"", b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\n", b"ffffffffffffffffff\r\nx",
    b"5;a=b\r\nhello", b"1\r\na\r\n" * 500, b'{"error":"unexpected EOF"}', b'{"models":[{"name":"a","size":"x"}]}',
    b"0\r\nx: y\r\n\r\n", b"x" * 70_000,
]  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """HTTP/1.1 answers, good and bad, one after the other."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, 3))):
        lines = [draw(st.sampled_from(_LINES)), *draw(st.lists(st.sampled_from(_ANSWER_HEADERS), max_size=5))]
        end = draw(st.sampled_from([b"\r\n\r\n", b"\r\n\r\n", b"\n\n", b"\r\n", b""]))
        times = draw(st.sampled_from([1, 1, 1, 1, 400]))
        parts.append((b"\r\n".join(lines) + end) * (times if sum(map(len, lines)) < 200 else 1))
        parts.append(b"".join(draw(st.lists(st.sampled_from(_ANSWER_BODIES), max_size=4))))
    return b"".join(parts)


ANSWERS = st.one_of(answers(), answers(), NOISE)
