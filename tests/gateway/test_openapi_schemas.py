"""The shapes of the published document."""

from gateway.openapi_schemas import SCHEMAS, STRING, about, listed, or_null, ref, shape


def test_a_shape_requires_all_of_its_fields_but_the_optional_ones() -> None:
    made = shape("a thing", name=STRING, note=STRING, optional=("note",))
    assert made == {
        "type": "object", "description": "a thing", "properties": {"name": STRING, "note": STRING},
        "required": ["name"],
    }  # fmt: skip


def test_small_shapes_are_made_of_others() -> None:
    assert listed(ref("Xid")) == {"type": "array", "items": {"$ref": "#/components/schemas/Xid"}}
    assert or_null(STRING) == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert about("who", STRING) == {"type": "string", "description": "who"}
    assert STRING == {"type": "string"}


def test_every_answer_may_grow() -> None:
    closed = {name for name, schema in SCHEMAS.items() if schema.get("additionalProperties") is False}
    assert closed == {"Spawn", "Prune", "KeyFields"}
