"""Saves in the background: one at a time, none fails unseen."""

import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from trainer import checkpoint_folder, saving
from trainer.saver import Saver


def test_a_run_that_loses_its_lease_in_a_save_changes_no_more(tmp_path):
    def save(step: int, looks: int) -> None:
        """Saves; the lease is lost at the look after so many."""
        left = iter(range(looks))

        def fence() -> None:
            if next(left, None) is None:
                raise OSError("the lease is lost")

        job = SimpleNamespace(
            directories=SimpleNamespace(checkpoints=str(tmp_path)),
            settings=SimpleNamespace(keep_checkpoints=1, best_metric="val_loss"),
            variables={"a": keras.Variable(np.zeros(3, "float32"))},
            state={"step": step, "evaluations": []},
            damaged=set(),
            fence=fence,
        )
        saving.save(job)()  # type: ignore[arg-type]

    save(1, looks=9)
    for looks, last, latest in (
        (0, "step-00000002.npz", "step-00000001"),
        (1, "step-00000002.npz.sha256", "step-00000001"),
        (2, "step-00000002.npz.sha256", "step-00000002"),
    ):
        with pytest.raises(OSError, match="the lease is lost"):
            save(2, looks)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names[-1] == last and "step-00000001.npz" in names
        assert checkpoint_folder.pointer(str(tmp_path))["latest"] == latest
    save(2, looks=9)
    assert not (tmp_path / "step-00000001.npz").exists()


def test_the_run_goes_on_while_a_save_is_under_way():
    written, go_on = [], threading.Event()
    with Saver() as saver:
        saver.start(lambda: go_on.wait(10) and written.append("a"))
        saver.check()  # Waits for nothing.
        assert written == []
        go_on.set()
    assert written == ["a"]


def test_there_is_one_save_at_a_time_and_its_works_come_in_turn():
    running, order = [], []

    def work(name: str) -> None:
        assert running == []
        running.append(name)
        order.append(name)
        running.remove(name)

    with Saver() as saver:
        for save in "abc":
            saver.start(lambda s=save: work(f"{s}1"), lambda s=save: work(f"{s}2"))
    assert order == ["a1", "a2", "b1", "b2", "c1", "c2"]


def failing() -> None:
    raise OSError("no room")


def until_done(saver: Saver) -> None:
    for _ in range(1000):
        saver.check()
        threading.Event().wait(0.01)


@pytest.mark.parametrize("seen_by", ["start", "wait", "leaving", "check"])
def test_a_failed_save_is_raised_once_and_what_came_after_it_is_left_undone(seen_by):
    after = []
    with pytest.raises(OSError, match="no room"), Saver() as saver:
        saver.start(failing, lambda: after.append("pointer"))
        if seen_by == "start":
            saver.start(lambda: after.append("next"))
        elif seen_by == "wait":
            saver.wait()
        elif seen_by == "check":
            until_done(saver)
    assert after == []
    saver.check()


def test_a_failed_save_never_hides_what_stopped_the_run(caplog):
    with pytest.raises(FloatingPointError), Saver() as saver:
        saver.start(failing)
        raise FloatingPointError


def test_each_work_is_done_only_while_no_other_run_may_write():
    lost, done = threading.Event(), []

    def fence() -> None:
        if lost.is_set():
            raise OSError("the lease is lost")

    def work(name: str) -> None:
        done.append(name)
        lost.set()

    with pytest.raises(OSError, match="lease"), Saver(fence) as saver:
        saver.start(lambda: work("data"), lambda: work("digest"))
        saver.wait()
    assert done == ["data"]


def test_a_run_that_lost_its_lease_does_not_wait_for_its_save():
    lost, go_on, done = threading.Event(), threading.Event(), []

    def fence() -> None:
        if lost.is_set():
            raise OSError("the lease is lost")

    def work() -> None:
        go_on.wait(30)
        done.append("data")

    with pytest.raises(OSError, match="lease"), Saver(fence) as saver:
        saver.start(work, lambda: done.append("digest"))
        lost.set()
        fence()
    assert not go_on.is_set() and done == []
    go_on.set()
