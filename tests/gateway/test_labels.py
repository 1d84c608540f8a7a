"""Labels that stay few."""

import pytest

from gateway.labels import (
    DOOR_REASONS,
    OTHER,
    ModelLabels,
    door_reason,
    known_method,
    known_route,
    route_label,
    status_label,
)
from gateway.ollama import Answerer


@pytest.mark.parametrize(
    ("who", "path", "label"),
    [
        (Answerer.WORKER, "/api/chat", "/api/chat"),
        (Answerer.PRIMARY, "/api/chat", "/api/chat"),  # with another method: still that path
        (Answerer.PRIMARY, "/api/tags", "primary"),
        (Answerer.FLEET, "/api/ps", "fleet"),
    ],
)
def test_a_route_is_a_path_of_ours_or_who_answers(who: Answerer, path: str, label: str) -> None:
    assert route_label(who, path) == label


@pytest.mark.parametrize(("status", "label"), [(200, "200"), (0, "0"), (99, "0"), (600, "0"), (-5, "0")])
def test_a_status_is_one_of_http(status: int, label: str) -> None:
    assert status_label(status) == label


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/api/chat", "/api/chat"),
        ("/api/tags", "/api/tags"),
        ("/api/blobs/sha256:1", "/api/blobs/{digest}"),
        ("/v1/models/m", "/v1/models/{model}"),
        ("/api/unheard-of", None),
    ],
)
def test_a_route_with_a_name_in_it_has_a_placeholder(path: str, route: str | None) -> None:
    assert known_route(path) == route


def test_methods_are_those_of_http() -> None:
    assert (known_method("POST"), known_method("BREW")) == ("POST", "_OTHER")


def test_a_model_is_a_label_when_it_is_here_and_stays_one() -> None:
    here = {"a:latest"}
    labels = ModelLabels(lambda: here)
    assert [labels.of(name) for name in ("a", "a:latest", "A", "b")] == ["a:latest", "a:latest", OTHER, OTHER]
    here.clear()
    assert labels.of("a") == "a:latest", "it was unloaded; its counter goes on"


def test_there_are_never_more_models_than_agreed() -> None:
    labels = ModelLabels(lambda: [f"{number}:x" for number in range(100)], most=3)
    assert {labels.of(f"{number}:x") for number in range(100)} == {"0:x", "1:x", "2:x", OTHER}


def test_without_a_word_on_what_is_here_no_model_is_a_label() -> None:
    assert ModelLabels().of("a") == OTHER


def test_a_refusal_at_the_door_has_one_of_few_reasons() -> None:
    assert {door_reason(status) for status in range(1000)} == {*DOOR_REASONS.values(), OTHER}
