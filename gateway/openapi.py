"""The published OpenAPI document: what Chimera answers over HTTP, at GET /openapi.json. Pure.

Put together from data: `openapi_admin` (Chimera's own paths), `openapi_ollama` (what goes to workers and the primary)
and `openapi_schemas` (the shapes both speak of). tests/gateway/test_openapi.py holds it to the code: each route of the
application and each forwarded path stands here, and nothing else does.
"""

from typing import Any

from gateway.openapi_admin import OWN_PATHS
from gateway.openapi_ollama import OLLAMA_PATHS
from gateway.openapi_schemas import SCHEMAS

# Of the HTTP interface, not of the program: it changes when a client has to.
API_VERSION = "1"

_ABOUT = """\
Chimera runs Ollama on every GPU of one machine, behind one address.

Ollama's, OpenAI's and Anthropic's paths are answered by Ollama itself: what is described of their bodies here is what
Chimera reads of them; everything else is passed on unchanged, and the answers come back as Ollama gave them. Any other
path under `/api/` or `/v1/`, such as a newer Ollama may bring, goes to the primary.

Every forwarded answer says its way in `X-Request-Id`, `X-Chimera-Worker`, `X-Chimera-Queue-Ms` and
`X-Chimera-Attempts`. A request with `X-Chimera-Queue: 1` is told its place in the queue by 102 answers.
"""


# What may befall any request before anybody looks at its path: gateway.head, gateway.framing, gateway.connections.
AT_THE_DOOR = {
    "400": "it is not HTTP as RFC 9112 has it, or may be read in two ways",
    "408": "its head did not come in time",
    "414": "its first line is too long",
    "431": "its head is too long",
    "501": "it has a transfer encoding that is not known here",
    "503": "there are as many connections as there may be; the body says so",
    "505": "it is of another version of HTTP",
}


def _with_the_doors_answers(paths: dict[str, Any]) -> dict[str, Any]:
    door = {
        status: {"description": said, "content": {"application/json": {"schema": {"type": "object"}}}}
        for status, said in AT_THE_DOOR.items()
    }
    return {
        path: {
            key: {**part, "responses": {**door, **part["responses"]}} if isinstance(part, dict) else part
            for key, part in item.items()
        }
        for path, item in paths.items()
    }


def document() -> dict[str, Any]:
    """Return the document (OpenAPI 3.1.0). A new one at each call; made of JSON values alone."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chimera", "version": API_VERSION, "description": _ABOUT, "license": {"name": "MIT"}},
        "servers": [{"url": "/", "description": "this gateway"}],
        "tags": [
            {"name": "inference", "description": "answered by a worker, through the queue"},
            {"name": "fleet", "description": "made of all workers' answers"},
            {"name": "models", "description": "answered by the primary, the owner of the model store"},
            {"name": "admin", "description": "what the operator sees and changes"},
            {"name": "health", "description": "for those who watch Chimera"},
        ],
        "paths": _with_the_doors_answers({**OLLAMA_PATHS, **OWN_PATHS}),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "admin": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "ADMIN_TOKEN. While none is set, the admin API answers this machine only.",
                }
            },
        },
    }
