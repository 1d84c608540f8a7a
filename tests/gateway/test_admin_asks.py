"""What the admin API is asked: in JSON, in the query, or in no form that is known."""

import pytest

from gateway.admin_asks import NotUnderstood, PruneAsk, SpawnAsk, line_count, truth, understood


@pytest.mark.parametrize(
    ("query", "body", "asked"),
    [
        ({}, b"", SpawnAsk()),
        ({}, b" \n", SpawnAsk()),
        ({}, b"{}", SpawnAsk()),
        ({}, b'{"gpu":0,"count":2,"slots":8}', SpawnAsk(0, 2, 8)),
        ({}, b'{"gpu":"GPU-1"}', SpawnAsk("GPU-1")),
        ({}, b'{"gpu":null,"slots":null}', SpawnAsk()),
        ({"count": "3", "wait": "1"}, b"", SpawnAsk(count=3, wait=True)),
        ({"gpu": "cpu"}, b"", SpawnAsk("cpu")),
        ({"wait": "1"}, b'{"count":2}', SpawnAsk(count=2, wait=True)),
        ({"count": "3"}, b'{"count":2}', SpawnAsk(count=2)),
    ],
)
def test_a_spawn_is_understood_in_json_and_in_the_query(query: dict[str, str], body: bytes, asked: SpawnAsk) -> None:
    assert understood(SpawnAsk, query, body) == asked


@pytest.mark.parametrize(
    ("query", "body", "asked"),
    [
        ({"ids": "a,b"}, b"", PruneAsk(ids=["a", "b"])),
        ({}, b'{"ids":["a"],"force":true}', PruneAsk(ids=["a"], force=True)),
        ({"idle": "true"}, b"", PruneAsk(idle=True)),
        ({"ids": ""}, b"", PruneAsk(ids=[])),  # none of them, not all of them
    ],
)
def test_a_prune_is_understood_in_json_and_in_the_query(query: dict[str, str], body: bytes, asked: PruneAsk) -> None:
    assert understood(PruneAsk, query, body) == asked


@pytest.mark.parametrize(
    ("query", "body", "word"),
    [
        ({"count": "many"}, b"", "count"),
        ({}, b'{"count":"many"}', "count"),
        ({}, b'{"count":1.5}', "count"),
        ({}, b'{"slots":[]}', "slots"),
        ({}, b'{"gpu":{}}', "gpu"),
        ({}, b'{"gpus":1}', "gpus"),
        ({"wait": "perhaps"}, b"", "wait"),
        ({}, b"[1]", "JSON object"),
        ({}, b"gpu=0", "not JSON"),
        ({}, b"\xff", "not JSON"),
        ({}, b"[" * 100_000, "not JSON"),
        ({}, b'{"\\ud800": null}', "half a character"),
        ({}, b'{"gpu": "\\udfff"}', "half a character"),
    ],
)
def test_what_is_not_understood_is_named(query: dict[str, str], body: bytes, word: str) -> None:
    with pytest.raises(NotUnderstood, match=word):
        understood(SpawnAsk, query, body)


def test_a_refusal_repeats_no_more_than_a_line_of_what_was_asked() -> None:
    with pytest.raises(NotUnderstood) as caught:
        understood(SpawnAsk, {"x" * 60_000: "1"}, b"")
    assert len(str(caught.value)) < 500
    assert "fields: gpu, count, slots, wait" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "on"),
    [(None, False), ("", True), ("1", True), ("TRUE", True), ("yes", True), ("0", False), ("no", False), ("2", False)],
)
def test_a_switch_is_on_when_it_is_there_and_says_nothing_else(text: str | None, on: bool) -> None:
    assert truth(text) is on


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("200", 200), ("100000", 100_000)])
def test_a_count_of_lines_is_a_number(text: str, count: int) -> None:
    assert line_count(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "100001", "1" * 5000])
def test_a_count_that_is_none_or_too_large_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(NotUnderstood, match=r"^n is "):
        line_count(text)
