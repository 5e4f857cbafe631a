"""The trials of a tuning job as the service tells them become a table."""

import math

import pytest

from deploy import trials
from tests.vertex.trials import trial


def job(*found: dict) -> dict:
    """Returns a tuning job with trials, as the service tells of it."""
    metrics = [{"metricId": "val_loss", "goal": "MINIMIZE"}, {"metricId": "other"}]
    pool = {"containerSpec": {"args": ["--epochs=3"]}}
    spec = {"workerPoolSpecs": [pool]}
    study = {"metrics": metrics}
    return {"studySpec": study, "trialJobSpec": spec, "trials": list(found)}


def test_the_metric_of_the_search_counts_among_several():
    one = trial(1, "SUCCEEDED", {"seed": 3.0}, {"other": 0.1, "val_loss": 0.5}, step=8)
    assert trials.summary(job(one)).splitlines() == [
        "trial  state      val_loss  step  seed",
        "1      succeeded  0.5000    8     3",
        "best: trial 1; to train it again, give after --: --epochs=3 --seed=3",
    ]


@pytest.mark.parametrize("value", [math.nan, "NaN", math.inf])
def test_a_trial_without_a_finite_metric_is_never_the_best(value):
    bad = trial(1, "SUCCEEDED", {"seed": 1.0}, {"val_loss": value})
    good = trial(2, "SUCCEEDED", {"seed": 2.0}, {"val_loss": 0.5})
    lines = trials.summary(job(bad, good)).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["2", "1"]
    assert lines[3].startswith("best: trial 2;")
    assert len(trials.summary(job(bad)).splitlines()) == 2  # No best.


def test_a_job_without_trials_has_a_table_without_rows():
    assert trials.summary(job()) == "trial  state  val_loss  step"
