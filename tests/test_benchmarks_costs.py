"""The benchmarks of input, start and growth: the figures made of what is measured."""

import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from benchmarks import growth, repeated, start, watch
from benchmarks import input as input_pipeline


@pytest.mark.slow
def test_each_way_of_reading_photographs_is_measured(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for index in range(12):
        image = rng.integers(0, 256, (40, 50, 3), np.uint8)
        mask = rng.integers(1, 4, (40, 50), np.uint8)
        for kind, pixels, ending in (("images", image, "jpg"), ("masks", mask, "png")):
            path = tmp_path / "folder" / kind / f"{index}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "data").mkdir()
    input_pipeline.prepare(tmp_path / "folder", tmp_path / "data", 240)
    for name, value in (("BATCH_SIZE", 4), ("IMAGE_SIZE", 32), ("WARM_BATCHES", 1)):
        monkeypatch.setattr(input_pipeline, name, value)
    rates = input_pipeline.measure(tmp_path / "data", rounds=2, batches=1)
    assert rates.keys() == {"limit", "cold", "cached", "augmented"}
    assert all(len(found) == 2 and min(found) > 0 for found in rates.values())


def test_input_is_compared_with_the_limit_of_the_same_round():
    rates = {
        "limit": [100.0, 400.0, 200.0],
        "cold": [90.0, 200.0, 180.0],
        "cached": [500.0, 400.0, 1000.0],
        "augmented": [300.0, 400.0, 100.0],
    }
    found = input_pipeline.compare(rates, step=30.0)
    assert found["over_limit"] == {"cold": 0.9, "cached": 5.0, "augmented": 1.0}
    assert found["augmented_over_step"] == 10.0
    assert found["goals_met"] == {"cold": True, "augmented": True}
    assert not any(
        input_pipeline.compare(rates | {"cold": [60.0, 200.0, 100.0]}, step=31.0)[
            "goals_met"
        ].values()
    )


def test_the_step_to_keep_up_with_is_the_fastest_of_ours():
    cases = {
        "a": {"side": "ours", "images_per_second": 60.0},
        "b": {"side": "ours", "images_per_second": 80.0},
        "c": {"side": "compiled", "images_per_second": 90.0},
    }
    assert input_pipeline.kept_rate({"cases": cases}) == 80.0


def test_start_is_what_a_run_adds_to_the_import_of_the_same_turn():
    bare = [{"total_seconds": s, "peak_memory_gib": 0.5} for s in (4.0, 8.0, 5.0)]
    short = [{"seconds_to_first_step": s} for s in (14.0, 21.0, 18.0)]
    found = start.compare(bare, short, [])
    assert found["seconds_over_import"] == 13.0
    assert found["goals_met"] == {"seconds": False}
    found = start.compare(bare, short, [{"peak_memory_gib": 1.5}])
    assert found["gigabytes_over_import"] == pytest.approx(2**30 / 1e9)
    assert found["goals_met"] == {"seconds": False, "memory": True}


def test_what_a_process_needed_is_told_with_its_own_words(tmp_path: pathlib.Path):
    code = (
        "import json, pathlib, sys; job = pathlib.Path(sys.argv[1]); job.mkdir();"
        "text = json.dumps({'seconds_to_first_step': 3});"
        "(job / 'result.json').write_text(text)"
    )
    found = start.run([sys.executable, "-c", code, str(tmp_path / "job")], tmp_path)
    assert found["seconds_to_first_step"] == 3
    assert found["total_seconds"] > 0 and found["peak_memory_gib"] > 0
    assert not list(tmp_path.iterdir())


def test_a_data_set_is_as_large_as_asked_for_and_has_the_examples_of_another(
    pets, tmp_path: pathlib.Path
):
    source = pathlib.Path(pets(3), "oxford_iiit_pet", "4.0.0")
    repeated.write(source, tmp_path, {"train": 8, "test": 2})
    info = tfds.builder_from_directory(tmp_path / "oxford_iiit_pet" / "4.0.0").info
    before = tfds.builder_from_directory(source).info
    assert info.splits["train"].shard_lengths == [2, 2, 2, 2]
    assert info.splits["test"].shard_lengths == [1, 1]

    def records(split):
        files = [str(path) for path in split.filepaths]
        return list(tf.data.TFRecordDataset(files).as_numpy_iterator())

    stored = records(before.splits["train"])
    assert records(info.splits["train"]) == (stored * 3)[:8]


# ---------------------------------------------------------------------------
# What grows

STATUS = "Name:\tpython\nVmPeak:\t 900 kB\nVmRSS:\t     512 kB\nThreads:\t7\n"


def test_memory_and_threads_are_read_of_the_status_of_a_process():
    assert watch.resident_bytes(STATUS) == 512 * 1024
    assert watch.threads(STATUS) == 7


def test_the_latest_step_is_that_of_the_last_whole_row():
    assert watch.latest_step("") == 0
    rows = '{"step": 10}\n{"step": 20}\n{"step": 3'
    assert watch.latest_step(rows) == 20


def test_growth_is_told_for_1000_steps_of_the_time_that_counts():
    samples = [
        {"step": s, "resident_bytes": 100 + s / 100} for s in range(0, 5001, 500)
    ]
    samples[0]["resident_bytes"] = 10**6  # While it starts.
    steady = watch.training(samples, 2000, 5000)
    assert [steady[0]["step"], steady[-1]["step"]] == [2000, 4500]
    assert watch.slope(steady, "resident_bytes") == pytest.approx(10)
    assert watch.slope(steady[:1], "resident_bytes") == 0


def test_what_grows_by_more_than_its_share_is_named():
    def of(per_thousand: float) -> list[dict]:
        return [
            {"step": s, "resident_bytes": 1000 + per_thousand * s / 1000, "threads": 9}
            for s in range(2000, 5000, 100)
        ]

    flat, grown = growth.growth(of(1), 3000), growth.growth(of(50), 3000)
    assert flat["resident_bytes"]["flat"] and flat["threads"]["flat"]
    assert growth.growing({"steps": {"grew": flat}}) == []
    [line] = growth.growing({"steps": {"grew": grown}})
    assert line == "steps: resident_bytes by 50 in 1,000 steps"


def test_more_data_must_not_cost_more_for_each_example():
    def of(seconds: list[float]) -> list[dict]:
        return [{"seconds_per_example": s, "peak_memory_bytes": 2} for s in seconds]

    runs = {1: of([1.0, 2.0, 3.0]), 2: of([1.0, 2.1, 3.0]), 4: of([1.1, 2.0, 3.3])}
    ratios = growth.over_the_least(runs)
    costs = [ratios[times]["seconds_per_example"] for times in runs]
    assert costs == pytest.approx([1, 1, 1.1])
    [line] = growth.growing({"data": {"over_the_least": ratios}})
    assert line == "seconds per example with 4 times the data: 1.10"


@pytest.mark.parametrize("count", [0, 1, 60, 61, 355])
def test_a_result_holds_few_of_a_runs_samples_from_its_first_on(count):
    samples = [{"step": step} for step in range(count)]
    kept = growth.thinned(samples)
    assert kept[:1] == samples[:1]
    assert min(count, 30) <= len(kept) <= growth.KEPT
