"""Chimera's own paths in the published document: what each may answer."""

import pytest
from msgspec.structs import fields

from gateway.admin import STATUS
from gateway.admin_asks import PruneAsk, SpawnAsk
from gateway.admin_keys import MOST, NAME_CHARACTERS, KeyAsk
from gateway.keys import MOST_PRIORITY
from gateway.openapi_admin import OWN_PATHS, admin, answers, query
from gateway.openapi_schemas import SCHEMAS, STATES
from supervisor.config_values import MOST_WORKERS
from supervisor.lifecycle import State


@pytest.mark.parametrize(("kind", "schema"), [(SpawnAsk, "Spawn"), (PruneAsk, "Prune"), (KeyAsk, "KeyFields")])
def test_what_may_be_asked_for_is_what_is_understood(kind: type, schema: str) -> None:
    assert set(SCHEMAS[schema]["properties"]) == {field.name for field in fields(kind)}
    assert SCHEMAS[schema]["additionalProperties"] is False


def test_the_states_are_those_of_the_lifecycle_as_they_are_shown() -> None:
    assert set(STATES) == {state.value for state in State} - {"READY", "GONE"} | {"IDLE", "BUSY"}


def test_no_more_workers_are_offered_than_there_may_be() -> None:
    assert SCHEMAS["Spawn"]["properties"]["count"]["maximum"] == MOST_WORKERS


def test_a_key_has_the_limits_that_are_understood() -> None:
    told = SCHEMAS["KeyFields"]["properties"]
    assert told["concurrency"]["maximum"] == MOST
    assert (told["name"]["maxLength"], told["priority"]["maximum"]) == (NAME_CHARACTERS, MOST_PRIORITY)


def test_spawning_may_be_refused_in_every_way_there_is() -> None:
    told = set(OWN_PATHS["/admin/instances/spawn"]["post"]["responses"])
    assert told >= {"202", "401", "403", *map(str, STATUS.values())}


def test_an_operation_is_guarded_and_says_so() -> None:
    made = admin("look", "Look", answers("it", {}), body="Spawn", query=(query("n", "how many", {}),))
    assert (made["security"], set(made["responses"])) == ([{"admin": []}], {"200", "401", "403"})
    assert made["requestBody"]["required"] is False
    assert made["parameters"][0]["in"] == "query"
