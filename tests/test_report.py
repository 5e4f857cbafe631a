"""What a run writes for people and tuners, and that a restart doubles none of it."""

import functools
import json
import os
import pathlib
import platform
import sys

import numpy as np
import pytest

from tests.runs import events
from trainer import report, run_files

PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def reporter(reporter_in, tmp_path):
    """Makes reporters of one job_dir on the disk."""
    return functools.partial(reporter_in, str(tmp_path))


@pytest.fixture
def reporter_in():
    """Makes reporters of a job_dir; each is closed at the end."""
    made = []

    def make(job_dir, step=0, hp_metric=None, evaluations=()):
        made.append(
            report.Reporter(
                job_dir=job_dir,
                log_dir=f"{job_dir}/logs",
                step=step,
                total_steps=100,
                global_batch_size=8,
                hp_metric=hp_metric,
                evaluations=list(evaluations),
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def evaluation(step, **values):
    return {
        "step": step,
        "val_loss": 0.5,
        "val_mean_iou": 0.25,
        "val_pixel_accuracy": 0.75,
        **values,
    }


def rows(tmp_path):
    text = (tmp_path / "metrics.jsonl").read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def told(path=None):
    """Returns (step, value) of each line of the tuner's file."""
    lines = pathlib.Path(os.environ["CLOUD_ML_HP_METRIC_FILE"]).read_text().splitlines()
    parsed = [json.loads(line) for line in lines]
    return [(int(line["global_step"]), float(line["val_loss"])) for line in parsed]


# ---------------------------------------------------------------------------
# metrics.jsonl


def test_rows_are_written_as_they_come_one_a_line(reporter, tmp_path):
    one = reporter()
    one.train({"step": 2, "loss": 1.5})
    assert rows(tmp_path) == [{"kind": "train", "step": 2, "loss": 1.5}]
    one.evaluation(evaluation(4, **{"val_iou/pet": None}))
    assert rows(tmp_path)[1] == {"kind": "eval", **evaluation(4), "val_iou/pet": None}
    assert one.rows == rows(tmp_path)


@pytest.mark.parametrize("step", [0, 2, 4, 6])
def test_a_restart_keeps_the_rows_up_to_its_step(reporter, tmp_path, step):
    one = reporter()
    for at in (2, 4, 6):
        one.train({"step": at, "loss": 1.0})
    again = reporter(step)
    assert [row["step"] for row in rows(tmp_path)] == [
        s for s in (2, 4, 6) if s <= step
    ]
    assert again.rows == rows(tmp_path)


@pytest.mark.parametrize(
    "torn", ['{"kind": "tr', '{"kind": "train", "step": 4', "\x00"]
)
def test_a_torn_last_line_is_dropped_and_the_next_row_is_whole(
    reporter, tmp_path, torn
):
    reporter().train({"step": 2, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    reporter(4).train({"step": 6, "loss": 0.5})
    assert [row["step"] for row in rows(tmp_path)] == [2, 6]


def test_a_row_without_its_newline_is_whole_and_is_kept(reporter, tmp_path):
    reporter().train({"step": 2, "loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    reporter(2).train({"step": 4, "loss": 0.5})
    assert [row["step"] for row in rows(tmp_path)] == [2, 4]


def test_of_a_job_dir_without_rows_none_are_read(tmp_path):
    assert run_files.read_rows(str(tmp_path), up_to_step=10) == []


# ---------------------------------------------------------------------------
# TensorBoard


def test_numbers_of_a_row_become_events_of_its_step(reporter, tmp_path):
    one = reporter()
    one.train({"step": 2, "loss": 1.5, "learning_rate": 0.1})
    one.evaluation(evaluation(4, **{"val_iou/pet": None}))
    tags = set(events(tmp_path / "logs"))
    assert {("loss", 2), ("learning_rate", 2), ("val_loss", 4)} <= tags
    assert not {tag for tag, _ in tags} & {"step", "kind", "val_iou/pet"}


def test_a_run_leaves_the_events_of_another_in_its_log_dir_alone(tmp_path):
    made = dict(step=0, total_steps=9, global_batch_size=1, hp_metric=None)
    logs = str(tmp_path / "logs")
    for name in ("one", "two"):
        job_dir = tmp_path / name
        job_dir.mkdir()
        run = report.Reporter(
            job_dir=str(job_dir), log_dir=logs, evaluations=[], **made
        )
        run.train({"step": 5, "loss": 1.0})
        run.close()
    assert events(tmp_path / "logs") == {("loss", 5): 2}


def test_a_restart_doubles_no_event_where_its_job_dir_is_called_otherwise(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    made = dict(total_steps=9, global_batch_size=1, hp_metric=None, evaluations=[])
    (tmp_path / "run").mkdir()
    for job_dir, step in ((str(tmp_path / "run"), 0), ("run/", 2)):
        run = report.Reporter(job_dir=job_dir, log_dir="logs", step=step, **made)
        run.train({"step": 5, "loss": 1.0})
        run.close()
    assert events(tmp_path / "logs") == {("loss", 5): 1}


def test_an_evaluation_that_no_checkpoint_knows_is_made_again(reporter, tmp_path):
    one = reporter()
    one.evaluation(evaluation(4, val_loss=0.5))
    one.close()
    assert reporter(4).rows == []
    assert rows(tmp_path) == []


def test_a_restart_doubles_no_event(reporter, tmp_path):
    one = reporter()
    for at in (2, 4, 6):
        one.train({"step": at, "loss": 1.0})
        one.picture(f"step-{at:08d}", PICTURE, at)
    again = reporter(4, evaluations=[evaluation(4)])
    again.train({"step": 6, "loss": 1.0})
    again.picture("step-00000006", PICTURE, 6)
    again.close()
    found = events(tmp_path / "logs")
    tags = [(tag, at) for tag in ("loss", "predictions") for at in (2, 4, 6)]
    assert found == dict.fromkeys(tags, 1)


def test_an_evaluation_that_is_made_again_is_shown_once(reporter, tmp_path):
    one = reporter()
    one.train({"step": 4, "loss": 1.0})
    one.evaluation(evaluation(4))
    one.picture("step-00000004", PICTURE, 4)
    one.time_spent(4, {"goodput": 0.5, "seconds_of": {"stepping": 1.0}})
    shown = events(tmp_path / "logs")
    again = reporter(4)  # A checkpoint of step 4 that knows of no evaluation.
    assert events(tmp_path / "logs") == {("loss", 4): 1}
    again.evaluation(evaluation(4))
    again.picture("step-00000004", PICTURE, 4)
    again.time_spent(4, {"goodput": 0.25, "seconds_of": {"stepping": 1.0}})
    assert events(tmp_path / "logs") == shown


def test_pictures_of_the_beginning_are_not_doubled_by_a_restart_at_step_0(
    reporter, tmp_path
):
    for _ in range(2):
        one = reporter()
        one.picture("augmented", PICTURE, 0)
        one.picture("step-00000000", PICTURE, 0)
        found = events(tmp_path / "logs")
    assert found == {("augmented", 0): 1, ("predictions", 0): 1}


def test_pictures_of_the_end_are_not_doubled_by_a_restart_at_the_last_step(
    reporter, tmp_path
):
    for step in (0, 100):
        one = reporter(step, evaluations=[evaluation(100)])
        if not step:
            one.picture("step-00000100", PICTURE, 100)
            one.picture("curves", PICTURE, 100)
        one.picture("predictions", PICTURE, 100)
        found = events(tmp_path / "logs")
    assert len(found) == 3 and set(found.values()) == {1}, found


def test_a_picture_is_where_its_path_says(reporter, tmp_path):
    path = reporter().picture("curves", PICTURE, 1)
    assert path == str(tmp_path / "pictures" / "curves.png")
    assert path == run_files.picture_path(str(tmp_path), "curves")
    assert pathlib.Path(path).read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------
# The tuner


def test_in_a_trial_the_tuner_is_told_each_evaluation_once(reporter):
    one = reporter(hp_metric="val_loss")
    one.train({"step": 1, "loss": 3.0})
    one.evaluation(evaluation(2, val_loss=0.5))
    assert told() == [(2, 0.5)]
    one.evaluation(evaluation(4, val_loss=0.25))
    assert told() == [(2, 0.5), (4, 0.25)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_the_tuner_is_told_finite_values_only(reporter, value):
    one = reporter(hp_metric="val_loss")
    one.evaluation(evaluation(2, val_mean_iou=0.5))
    one._tuner.tell_all([evaluation(4, val_loss=value)])
    assert told() == [(2, 0.5)]


def test_outside_a_trial_nothing_is_made_for_a_tuner(reporter, tmp_path):
    reporter().evaluation(evaluation(2))
    assert not (tmp_path / "hypertune").exists()


def test_a_restart_tells_the_tuner_again_what_its_file_has_lost(reporter, tmp_path):
    earlier = [evaluation(2, val_loss=0.5), evaluation(4, val_loss=0.25)]
    one = reporter(4, hp_metric="val_loss", evaluations=earlier)
    one.evaluation(evaluation(6, val_loss=0.125))
    assert told() == [(2, 0.5), (4, 0.25), (6, 0.125)]
    assert [row["step"] for row in rows(tmp_path)] == [6]  # no row is doubled


# ---------------------------------------------------------------------------
# JSON files


def test_config_json_tells_settings_versions_and_host(tmp_path):
    job_dir = tmp_path / "new" / "run"
    run_files.write_config(str(job_dir), {"seed": 3}, step=0, total_steps=9, replicas=2)
    found = json.loads((job_dir / "config.json").read_text())
    assert found["program"] == "segtrainer"
    assert found["settings"] == {"seed": 3}
    assert found["replicas"] == 2
    assert found["python"] == platform.python_version()
    assert found["command"] == sys.argv
    assert found["packages"]["numpy"] == np.__version__
    assert found["host"]
    assert {"keras"} <= set(found["packages"])


def test_result_and_failed_json_are_read_as_they_were_written(tmp_path):
    assert run_files.read_result(str(tmp_path)) == {}
    assert run_files.read_failed(str(tmp_path)) == {}
    run_files.write_result(str(tmp_path), {"step": 4})
    run_files.write_failed(str(tmp_path), step=3, reason="why", cloud_job_id=None)
    assert run_files.read_result(str(tmp_path)) == {"step": 4}
    assert run_files.read_failed(str(tmp_path))["reason"] == "why"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (8.4, "8 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (180, "3 min"),
        (59.4 * 60, "59 min"),
        (59.6 * 60, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (36 * 3600, "36 h 0 min"),
    ],
)
def test_a_duration_reads_as_people_say_it(seconds, text):
    assert report.duration(seconds) == text


# ---------------------------------------------------------------------------
# Progress


def test_without_a_terminal_a_line_comes_every_ten_seconds(
    reporter, monkeypatch, caplog
):
    now = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    lines = []
    monkeypatch.setattr(
        report.logging, "info", lambda text, *values: lines.append(text % values)
    )
    one = reporter()
    for step, seconds in ((1, 1), (2, 9.9), (3, 10), (4, 15), (5, 20)):
        now[0] = seconds
        one.progress(step, 0.5, 16.0)
    assert lines == [
        "[3] of 100: loss=0.5000, 16 images/s, 48 s left",
        "[5] of 100: loss=0.5000, 16 images/s, 48 s left",
    ]


def test_a_run_that_lost_its_lease_writes_no_rows_over_anothers(tmp_path):
    def lost() -> None:
        raise OSError("the lease is lost")

    theirs = tmp_path / "metrics.jsonl"
    theirs.write_text('{"kind": "train", "step": 7}\n')
    places = dict(job_dir=str(tmp_path), log_dir=str(tmp_path / "logs"))
    with pytest.raises(OSError, match="lost"):
        report.Reporter(
            **places,
            **dict(step=0, total_steps=9, global_batch_size=8, hp_metric=None),
            evaluations=[],
            fence=lost,
        )
    assert theirs.read_text() == '{"kind": "train", "step": 7}\n'


def test_to_a_bucket_nothing_is_written_until_the_run_saves(
    gcs, gcs_bucket, gcs_here, reporter_in
):
    one = reporter_in(f"gs://{gcs_bucket}/run")
    begun = set(gcs.names(gcs_bucket))
    one.train({"step": 2, "loss": 1.5})
    path = one.picture("curves", PICTURE, 2)
    assert set(gcs.names(gcs_bucket)) == begun
    for work in one.flush():
        work()
    assert gcs.get(path).startswith(b"\x89PNG")
    [row] = gcs.get(f"gs://{gcs_bucket}/run/metrics.jsonl").decode().splitlines()
    assert json.loads(row) == {"kind": "train", "step": 2, "loss": 1.5}
    [log] = gcs.names(gcs_bucket, "run/logs/")
    assert len(gcs.get(f"gs://{gcs_bucket}/{log}")) > 100
    # What did not change since is not written again.
    assert len(one.flush()) < 3
