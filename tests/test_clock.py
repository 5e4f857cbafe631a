"""What became of a run's time adds up, over all its restarts."""

import time

import pytest

from trainer.clock import USES, Clock


@pytest.fixture
def now(monkeypatch):
    """Returns a clock that stands still but for what is added to it."""
    at = [1000.0]
    monkeypatch.setattr(time, "time", lambda: at[0])
    monkeypatch.setattr(time, "monotonic", lambda: at[0])
    return at


def test_each_second_of_a_run_goes_to_one_use(now):
    seconds_of: dict[str, float] = {}
    now[0] += 5
    clock = Clock(8, 1000.0, seconds_of)
    now[0] += 7
    clock.tick(1, 7.0, 0.5)  # Compiles.
    now[0] += 2
    clock.tick(4, 2.0, 0.25)
    with clock.spent("evaluating"):
        now[0] += 3
    with clock.spent("saving"):
        now[0] += 1
    assert seconds_of == {
        "starting": 5.0,
        "compiling": 7.0,
        "stepping": 1.75,
        "waiting_for_data": 0.25,
        "evaluating": 3.0,
        "saving": 1.0,
        "exporting": 0.0,
        "lost_to_restarts": 0.0,
    }
    assert set(USES) < set(seconds_of)
    told = clock.goodput()
    assert told["seconds"] == now[0] - 1000.0 == 18.0
    assert told["goodput"] == 1.75 / 18
    assert clock.save_wait_seconds == 1.0
    assert clock.images_per_second() == 16.0


def test_what_came_after_the_save_that_a_run_goes_on_from_is_lost(now):
    seconds_of = {use: 1.0 for use in USES}
    now[0] = 1070.0
    clock = Clock(8, 1060.0, seconds_of, time_saved=1000.0)
    assert seconds_of["lost_to_restarts"] == 60.0
    assert seconds_of["starting"] == 11.0
    assert clock.goodput()["seconds"] == len(USES) + 60 + 10


def test_a_clock_that_was_set_back_loses_nothing(now):
    seconds_of: dict[str, float] = {}
    Clock(8, 1000.0, seconds_of, time_saved=1010.0)
    assert seconds_of["lost_to_restarts"] == 0.0
