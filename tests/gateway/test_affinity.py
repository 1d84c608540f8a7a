"""Which worker still holds a prompt's beginning: a model of Ollama's caches, slot by slot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.affinity import BLOCK_BYTES, LONG_BLOCKS, MOST_BLOCKS, NO_PREFIX, Affinity, Kept, Life, Prefix, prefix_of

A: Life = ("a", 1)
B: Life = ("b", 2)


def prompt(*words: str, continues: bool = True) -> Prefix:
    """A prompt of one block a word."""
    return prefix_of("m", [b"".join(word.encode().ljust(BLOCK_BYTES) for word in words)], continues=continues)


def asked(affinity: Affinity, life: Life, prefix: Prefix, slots: int = 2, model: str = "m") -> None:
    affinity.ended(affinity.given(life, model, slots, prefix))


# -- beginnings ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_two_prompts_share_as_many_numbers_as_they_share_blocks(one: bytes, other: bytes) -> None:
    chains = [prefix_of("m", [text], continues=False).chain for text in (one, other)]
    shared = next((n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    for number, (x, y) in enumerate(zip(*chains, strict=False)):
        if (number + 1) * BLOCK_BYTES <= shared:
            assert x == y


def test_what_is_short_has_none_and_what_is_long_an_end() -> None:
    assert prefix_of("m", [b"x" * (BLOCK_BYTES - 1)], continues=True) == NO_PREFIX
    assert len(prefix_of("m", [b"x" * BLOCK_BYTES * 2 * MOST_BLOCKS], continues=False).chain) == MOST_BLOCKS


def test_another_model_is_another_cache() -> None:
    text = [b"x" * BLOCK_BYTES]
    assert prefix_of("m", text, continues=True).chain != prefix_of("n", text, continues=True).chain


# -- who holds them --------------------------------------------------------------------------------------------------


def test_the_next_turn_goes_where_the_last_one_was() -> None:
    affinity = Affinity()
    asked(affinity, A, prompt("hello"))
    asked(affinity, B, prompt("other"))
    assert affinity.holders(prompt("hello", "again"), {A, B}) == {A}
    assert affinity.holders(prompt("other", "again"), {A, B}) == {B}
    assert affinity.holders(prompt("new"), {A, B}) == frozenset()


def test_the_longest_beginning_counts() -> None:
    affinity = Affinity()
    asked(affinity, A, prompt("rules", "one"))
    asked(affinity, B, prompt("rules", "two"))
    assert affinity.holders(prompt("rules", "two", "more"), {A, B}) == {B}
    assert affinity.holders(prompt("rules", "three"), {A, B}) == {A, B}
    assert affinity.holders(prompt("rules", "two", "more"), {A}) == {A}, "only who can take it counts"


def test_short_instructions_that_all_share_send_nobody_anywhere() -> None:
    affinity = Affinity()
    rules = [f"rule {number}" for number in range(LONG_BLOCKS)]
    asked(affinity, A, prompt(*rules))
    assert affinity.holders(prompt(*rules[:-1], "question", continues=False), {A, B}) == frozenset()
    assert affinity.holders(prompt(*rules, "question", continues=False), {A, B}) == {A}


def test_a_third_prompt_takes_the_slot_used_longest_ago() -> None:
    affinity = Affinity()
    for words in ("one", "two", "three"):
        asked(affinity, A, prompt(words))
    assert [bool(affinity.holders(prompt(words), {A})) for words in ("one", "two", "three")] == [False, True, True]


def test_a_conversation_keeps_its_slot() -> None:
    affinity = Affinity()
    asked(affinity, A, prompt("one"))
    asked(affinity, A, prompt("two"))
    for turn in range(5):
        asked(affinity, A, prompt("one", *(f"turn {number}" for number in range(turn))))
    assert affinity.holders(prompt("two"), {A}) == {A}


def test_a_slot_at_work_takes_no_other_prompt() -> None:
    affinity = Affinity()
    affinity.given(A, "m", 2, prompt("at work"))
    asked(affinity, A, prompt("one"))
    asked(affinity, A, prompt("two"))
    assert affinity.holders(prompt("at work"), {A}) == {A}
    assert affinity.holders(prompt("one"), {A}) == frozenset()


@pytest.mark.parametrize("how", ["worker", "model"])
def test_what_is_gone_is_held_by_nobody(how: str) -> None:
    affinity = Affinity()
    asked(affinity, A, prompt("one"))
    if how == "worker":
        affinity.forget(A)
    else:
        affinity.holds_only(A, {"another"})
    assert affinity.holders(prompt("one"), {A}) == frozenset()
    assert affinity._where == {}


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B]), st.lists(st.sampled_from("abc"), max_size=4), st.integers(0, 3)), max_size=40
    )
)
def test_it_never_keeps_more_than_the_slots_and_nothing_of_what_is_gone(
    steps: list[tuple[Life, list[str], int]],
) -> None:
    affinity, running = Affinity(), list[Kept]()
    for life, words, what in steps:
        if what == 3:
            affinity.forget(life)
            running = [kept for kept in running if kept.life != life]
        elif what == 2 and running:
            affinity.ended(running.pop(0))
        elif sum(kept.life == life for kept in running) < 2:
            running.append(affinity.given(life, "m", 2, prompt(*words)))
        caches = [caches for models in affinity._by_life.values() for caches in models.values()]
        assert all(0 < len(known) <= 2 for known in caches)
    kept = {one for models in affinity._by_life.values() for known in models.values() for one in known}
    assert {one for holders in affinity._where.values() for one in holders} == {one for one in kept if one.chain}
