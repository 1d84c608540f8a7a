"""A tiny registry of models on loopback, as `ollama pull` asks one (the OCI distribution API): manifests and blobs.

Like the real one it redirects to another host for a blob's bytes: Ollama 0.5.4 does not take them from the same one.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PATH = re.compile(r"/(?:v2/(?P<name>[\w.-]+/[\w.-]+)/manifests/(?P<tag>[\w.-]+)|.*blobs/(?P<digest>sha256:[0-9a-f]+))")


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Registry:
    """What it has, and what it was asked for."""

    port: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, model: bytes) -> str:
        """Offer a model of one file; return the name that `ollama pull --insecure` takes."""
        config = {"model_format": "gguf", "model_family": "llama", "rootfs": {"type": "layers"}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self._layer("application/vnd.docker.container.image.v1+json", json.dumps(config).encode()),
            "layers": [self._layer("application/vnd.ollama.image.model", model)],
        }
        self.manifests[f"{name}:latest"] = json.dumps(manifest).encode()
        return f"127.0.0.1:{self.port}/{name}"

    def _layer(self, media_type: str, data: bytes) -> dict[str, object]:
        self.blobs[_digest(data)] = data
        return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}

    def find(self, path: str) -> bytes | None:
        """Return what a path names, if it is there."""
        self.asked.append(path)
        found = _PATH.fullmatch(path)
        if found is None:
            return None
        if found["digest"]:
            return self.blobs.get(found["digest"])
        return self.manifests.get(f"{found['name']}:{found['tag']}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        found = self.registry.find(self.path)
        if found is None:
            self._answer(b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', 404)
        elif self.path.startswith("/v2/") and "/blobs/" in self.path:
            self._answer(b"", 307, ("Location", f"http://localhost:{self.registry.port}/{self.path[4:]}"))
        elif part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self._answer(found[int(part[1]) : int(part[2]) + 1], 206)
        else:
            self._answer(found)

    def _answer(self, data: bytes, status: int = 200, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        length = len(self.registry.find(self.path) or b"") if self.command == "HEAD" else len(data)
        for name, value in (*headers, ("Content-Length", str(length))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes its connection is no error."""


@contextmanager
def registry() -> Iterator[Registry]:
    """Serve a registry on a port of its own for the block."""
    made = Registry()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": made}))
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
