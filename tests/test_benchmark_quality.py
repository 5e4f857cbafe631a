"""The benchmark of quality: which minute counts, and what the table says."""

import json
import pathlib
import sys

import pytest

from benchmarks import quality

SCRIPT = """
import time
print("[5] of 20: loss=0.9, 20 images/s, 1 min left")
for step, value in ((10, 0.5), (20, 0.75)):
    print(f"[{step}] val_loss=0.6 val_mean_iou={value:.4f} val_pixel_accuracy=0.8", flush=True)
    time.sleep(0.6)
"""


def test_validations_are_told_with_their_minute(tmp_path: pathlib.Path):
    log = tmp_path / "log"
    minutes, told = quality.timed([sys.executable, "-c", SCRIPT], log)
    assert [value for _, value in told] == [0.5, 0.75]
    assert 0.009 < told[1][0] - told[0][0] < minutes < 1
    assert log.read_text(encoding="utf-8").count("\n") == 3
    assert quality.reached(told, 0.6) == told[1][0]
    assert quality.reached(told, 0.76) is None


def test_a_run_that_fails_is_an_error_with_its_last_words(tmp_path: pathlib.Path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such data')"]
    with pytest.raises(RuntimeError, match="exit code 1(?s:.)*no such data"):
        quality.timed(command, tmp_path / "log")


@pytest.mark.slow
def test_a_run_is_judged_at_the_tutorials_size_whatever_it_sees(tmp_path, pets):
    from trainer import evaluate, task

    job_dir, at = tmp_path / "job", f"--at={quality.SIZE}"
    small = ("--image_size=32", "--encoder_alpha=0.35", "--encoder_weights=none")
    steps = ("--total_steps=2", "--batch_size=2", "--val_fraction=0.4")
    places = (f"--data_dir={pets(6, n_test=3)}", f"--job_dir={job_dir}", "--noexport")
    assert task.main([*places, *small, *steps]) == 0
    found = quality.result("best", tmp_path)
    assert found["examples"] == 3
    for flags, name in (([], "mean_iou"), (["--tta=flip"], "mirrored_mean_iou")):
        assert evaluate.main([f"--job_dir={job_dir}", at, *flags]) == 0
        path = job_dir / f"evaluation-test-128{'-flip' if flags else ''}.json"
        judged = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        assert found[name] == judged["mean_iou"]


def test_minutes_are_set_beside_the_tutorials():
    test = {"mean_iou": 0.7, "pixel_accuracy": 0.9, "loss": 1.0}
    best = {**test, "mean_iou": 0.8, "mirrored_mean_iou": 0.81}
    runs = {
        "tutorial": {"minutes": 16.0, "told": [], "test": test},
        "best": {"minutes": 12.0, "told": [(1.0, 0.69), (2.0, 0.7)], "test": best},
        "ours": {"minutes": 8.0, "told": [(1.0, 0.69)], "test": test},
    }
    found = quality.rows(runs)
    assert found["best"]["minutes_to_tutorials"] == 2.0
    assert found["best"]["to_tutorials_over_its"] == 0.125
    assert found["best"]["minutes_over_tutorials"] == 0.75
    assert found["ours"]["minutes_to_tutorials"] is None
    assert "loss" not in found["best"]
    lines = quality.table(found).splitlines()
    assert lines[3] == "| best | 12.0 | 2.0 | 0.8000 | 0.8100 | 0.9000 | - | - | - |"
    assert lines[4].startswith("| ours | 8.0 | - | 0.7000 | - | 0.9000 |")


def test_each_run_is_a_command_that_the_trainer_takes(tmp_path: pathlib.Path):
    from trainer import config

    for name in quality.RUNS:
        _, _, module, *flags = quality.command(name, "DIR", tmp_path)
        if module == "trainer.task":
            settings = config.from_args(flags)
            assert settings.data_dir == "DIR"
            assert settings.train_encoder == (name != "ours")
        else:
            assert module == "benchmarks.tutorial" and name == "tutorial"
