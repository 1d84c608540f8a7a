"""Models that end the workers that load them."""

from gateway.lethal import FIRST_PAUSE_S, FORGOTTEN_S, LONGEST_PAUSE_S, LethalModels


def test_one_death_is_chance_two_in_a_row_are_the_models() -> None:
    models = LethalModels()
    models.ended_a_worker("m", 0.0)
    assert models.paused_s("m", 0.0) is None
    models.ended_a_worker("m", 1.0)
    assert models.paused_s("m", 1.0) == FIRST_PAUSE_S
    assert models.paused_s("other", 1.0) is None
    assert models.paused_s("m", 1.0 + FIRST_PAUSE_S) is None


def test_after_a_pause_one_more_death_is_enough_for_a_longer_one() -> None:
    models, now, pauses = LethalModels(), 0.0, []
    models.ended_a_worker("m", now)
    for _ in range(7):
        models.ended_a_worker("m", now)
        pauses.append(models.paused_s("m", now))
        now += pauses[-1] or 0.0
    assert pauses == [30, 60, 120, 240, 480, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_one_that_answers_is_well() -> None:
    models = LethalModels()
    models.ended_a_worker("m", 0.0)
    models.answered("m")
    models.ended_a_worker("m", 1.0)
    assert models.paused_s("m", 1.0) is None


def test_what_was_long_ago_is_forgotten() -> None:
    models = LethalModels()
    models.ended_a_worker("m", 0.0)
    models.ended_a_worker("m", FORGOTTEN_S + 1.0)
    assert models.paused_s("m", FORGOTTEN_S + 1.0) is None
