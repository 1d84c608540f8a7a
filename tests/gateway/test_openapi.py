"""The published document says what there is: every route of the application, every forwarded path, and nothing else."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from gateway.admission import Admission
from gateway.app import make_app
from gateway.metrics import Metrics
from gateway.ollama import FORWARDED, Answerer, answerer
from gateway.openapi import document
from tests.fakes.fleet_admin import FakeFleet

METHODS = {"get", "post", "put", "patch", "delete", "head"}


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation of the document, by method and path."""
    return {
        (method.upper(), path): operation
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


OPERATIONS = operations()


def routes() -> set[tuple[str, str]]:
    """Every route of the application, as OpenAPI writes it. HEAD and OPTIONS come with GET, and are not told."""
    app = make_app(FakeFleet(), Admission(4, 300.0, lambda: 0.5), Metrics(), None)
    return {
        (method, re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", str(rule)))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def example(path: str) -> str:
    return re.sub(r"{\w+}", "x", path)


def values(node: object) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(node, dict):
        yield node
        for inner in node.values():
            yield from values(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from values(inner)


def test_every_route_of_the_application_stands_in_it_and_no_other() -> None:
    told = {(method, path) for method, path in OPERATIONS if answerer(method, example(path)) is Answerer.GATEWAY}
    missing, surplus = sorted(routes() - told), sorted(told - routes())
    assert not missing, f"routes that gateway/openapi_admin.py does not tell of; add a row to OWN_PATHS: {missing}"
    assert not surplus, f"rows of OWN_PATHS in gateway/openapi_admin.py for which there is no route: {surplus}"


def test_every_forwarded_path_stands_in_it_and_no_other() -> None:
    told = {path for method, path in OPERATIONS if answerer(method, path) is Answerer.WORKER}
    assert told == FORWARDED, "gateway/openapi_ollama.py has a row in _WORKERS_PATHS for each of FORWARDED"


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS), ids=" ".join)
def test_an_operations_tag_says_who_answers(method: str, path: str) -> None:
    who = {
        Answerer.WORKER: "inference", Answerer.PRIMARY: "models", Answerer.FLEET: "fleet",
        Answerer.GATEWAY: "admin" if path.startswith("/admin/") else "health",
    }  # fmt: skip
    assert OPERATIONS[method, path]["tags"] == [who[answerer(method, example(path))]]


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS), ids=" ".join)
def test_each_parameter_of_a_path_is_described(method: str, path: str) -> None:
    given = [*document()["paths"][path].get("parameters", ()), *OPERATIONS[method, path].get("parameters", ())]
    assert {one["name"] for one in given if one["in"] == "path"} == set(re.findall(r"{(\w+)}", path))


def test_the_admin_api_alone_wants_the_token() -> None:
    guarded = {path for (_, path), operation in OPERATIONS.items() if operation["security"]}
    assert guarded == {path for _, path in OPERATIONS if path.startswith("/admin/")}


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere() -> None:
    made = document()
    names = {node["$ref"].removeprefix("#/components/schemas/") for node in values(made) if "$ref" in node}
    assert names <= set(made["components"]["schemas"])


def test_it_is_openapi_and_each_operation_can_be_tried() -> None:
    schema = schemathesis.openapi.from_dict(document())
    schema.validate()
    assert len(list(schema.get_all_operations())) == len(OPERATIONS)


async def test_anybody_may_read_it() -> None:
    app = make_app(FakeFleet(), Admission(4, 300.0, lambda: 0.5), Metrics(), "a token")
    answer = await app.test_client().get("/openapi.json")
    assert (answer.status_code, json.loads(await answer.get_data())) == (200, document())
