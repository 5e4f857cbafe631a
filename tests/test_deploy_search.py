"""A search runs here as it would there: trials side by side, a table and the best."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from deploy import local, local_search, replicas, side_by_side, trials
from deploy.order import Search, parallel
from deploy.space import Parameter
from deploy.study import Study

ROOT = pathlib.Path(local.__file__).parents[1]
SMALL = ["--image_size=32", "--noexport", "--num_pictures=1", "--test_split=none"]


def test_a_search_begins_in_a_new_folder_only(capsys, tmp_path):
    (tmp_path / "a" / "1").mkdir(parents=True)
    args = [f"--output_dir={tmp_path}", "--job_name=a", "--search=seed=1/2"]
    assert local.main(args) == 2
    assert "a search must begin in a new folder" in capsys.readouterr().err


def test_the_measurements_of_a_trial_are_those_of_its_metric(tmp_path):
    trial, told = tmp_path / "1", pathlib.Path(replicas.metric_file(f"{tmp_path}/1"))
    told.parent.mkdir(parents=True)
    rows = [
        {"kind": "eval", "step": 4, "val_loss": 0.5},
        {"kind": "train", "step": 8, "loss": 0.1},
        {"kind": "eval", "step": 8, "val_loss": None},
        *({"kind": "eval", "step": at, "val_loss": 0.75} for at in range(12, 600, 4)),
    ]
    written = "".join(f"{json.dumps(row)}\n" for row in rows)
    (trial / "metrics.jsonl").write_text(written)
    assert local_search.measurements(str(trial), "val_loss") == []  # None was told.
    told.write_text('{"global_step": "596", "val_loss": "0.75"}\n')
    found = local_search.measurements(str(trial), "val_loss")
    assert found[:2] == [(4, 0.5), (12, 0.75)] and len(found) == 148
    assert local_search.measurements(str(trial), "other") == []
    assert local_search.measurements(str(tmp_path / "none"), "val_loss") == []


class Trained:
    """Stands for a job: writes the metric that its settings earn, and ends."""

    def __init__(self, folder, args, trial, earn) -> None:
        self.settings = dict(zip(args[::2], args[1::2], strict=True))
        self._folder, self._trial, self._earn = folder, trial, earn

    def run(self) -> int:
        """Returns the exit code."""
        value = self._earn(self.settings)
        path = pathlib.Path(replicas.metric_file(f"{self._folder}/{self._trial}"))
        path.parent.mkdir(parents=True)
        if value is None:
            return 1
        path.write_text(json.dumps({"global_step": "9", "val_loss": str(value)}) + "\n")
        row = {"kind": "eval", "step": 9, "val_loss": value}
        (path.parents[1] / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return 0

    def stop(self) -> None:
        """Has nothing to end."""


def searched(tmp_path, capsys, parameters, earn, **settings) -> tuple:
    """Returns the exit code, the settings of all trials and the lines of a search."""
    study = Study("val_loss", "minimize", parameters, [])
    search, ran = Search(**settings), []

    def job(args, trial, slot):
        ran.append(Trained(tmp_path, args, trial, earn))
        return ran[-1]

    with side_by_side.running(parallel(search)) as jobs:
        code = local_search.run(study, search, str(tmp_path), jobs, job)
    return code, [one.settings for one in ran], capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("algorithm", ["bayesian", "random"])
def test_a_search_finds_good_settings_and_ends_with_the_best(
    algorithm, tmp_path, capsys
):
    rate = Parameter("learning_rate", ends=(1e-4, 1e-1), scale="log")
    size = Parameter("batch_size", values=(16.0, 32.0))

    def earn(settings) -> float:
        return abs(np.log10(float(settings["--learning_rate"])) + 3)

    code, ran, lines = searched(
        tmp_path, capsys, [rate, size], earn, trials=12, algorithm=algorithm
    )
    assert (code, len(ran)) == (0, 12)
    best = min(ran, key=earn)
    assert {one["--batch_size"] for one in ran} == {"16.0", "32.0"}
    assert lines[1].split()[2] == f"{earn(best):.4f}"
    assert lines[-1].startswith("best: trial ")
    assert f"--learning_rate={best['--learning_rate']}" in lines[-1]
    assert earn(best) < 0.5


def test_a_grid_is_tried_whole_and_once(tmp_path, capsys):
    steps = Parameter("warmup_steps", ends=(0, 2))
    kind = Parameter("optimizer", values=("adam", "adamw"))
    code, ran, _ = searched(
        tmp_path, capsys, [steps, kind], lambda _: 1.0, trials=50, algorithm="grid"
    )
    points = {tuple(one.values()) for one in ran}
    assert code == 0
    assert points == {(n, k) for n in "012" for k in ("adam", "adamw")}
    assert len(ran) == 6


def test_a_search_ends_after_too_many_failed_trials(tmp_path, capsys):
    code, ran, lines = searched(
        *(tmp_path, capsys, [Parameter("seed", ends=(0, 99))], lambda _: None),
        **dict(trials=20, parallel_trials=1, max_failed_trials=3),
    )
    assert (code, len(ran)) == (1, 3)
    assert [line.split()[1] for line in lines[1:]] == ["failed"] * 3


def test_a_reversed_scale_is_dense_at_its_high_end(tmp_path, capsys):
    one = Parameter("contrast", ends=(0.001, 0.9), scale="reverse_log")
    _, ran, _ = searched(
        tmp_path, capsys, [one], lambda _: 1.0, trials=40, algorithm="random"
    )
    values = [float(settings["--contrast"]) for settings in ran]
    assert 0.001 <= min(values) and max(values) <= 0.9
    assert np.median(values) > 0.8


def test_trials_without_a_last_word_are_never_the_best():
    found = [trials.Trial("1", "stopping", {}, 0.9), trials.Trial("2", "failed", {})]
    assert trials.best(found, "maximize") is None


@pytest.mark.slow
def test_a_search_of_six_trials_two_at_a_time_ends_with_table_and_best(tmp_path):
    search = ["--search=learning_rate=1e-4..1e-1:log,batch_size=8/16"]
    settings = ["--trials=6", "--parallel_trials=2", "--metric=val_mean_iou"]
    trainer = ["--total_steps=2", "--eval_every_steps=2", *SMALL]
    command = [sys.executable, "-m", "deploy.local", f"--output_dir={tmp_path}"]
    command += ["--job_name=find", *search, *settings, "--", *trainer]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    [header] = [i for i, line in enumerate(lines) if line.startswith("trial  ")]
    rows = [line.split() for line in lines[header + 1 : header + 7]]
    assert sorted(row[0] for row in rows) == list("123456")
    assert {row[1] for row in rows} == {"succeeded"}
    values = [float(row[2]) for row in rows]
    assert values == sorted(values, reverse=True)
    for row in rows:
        result = json.loads((tmp_path / "find" / row[0] / "result.json").read_text())
        assert f"{result['best']['val_mean_iou']:.4f}" == row[2]
    assert lines[header + 7].startswith(f"best: trial {rows[0][0]}; to train it again")
