"""Class weights by frequency: exact counts, made once, kept by the run."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from trainer import (
    balance,
    checkpoint_folder,
    config,
    data,
    job,
    records,
    step,
    task,
)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [([6, 3, 1], [10 / 18, 10 / 9, 10 / 3]), ([4, 0], [0.5, 0]), ([0, 0], [0, 0])],
)
def test_weights_are_one_over_the_share_of_the_class(pixels, expected):
    assert balance.by_frequency(pixels) == pytest.approx(expected)


@pytest.fixture
def command(shapes, tmp_path, tiny_unet):
    """Returns the command of a run on 5 examples, some of whose pixels are ignored."""
    return [
        *(f"--data_dir={shapes(train=7, test=2)}", "--dataset=shapes"),
        *("--image_feature=photo", "--mask_feature=labels", "--ignore_id=255"),
        *(
            "--class_names=ground,disc",
            "--val_fraction=0.3",
            f"--job_dir={tmp_path}/run",
        ),
        *("--global_batch_size=2", "--image_size=32", "--noexport", "--num_pictures=1"),
        *("--class_weights=frequency", "--eval_every_steps=9"),
    ]


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_each_pixel_of_train_that_counts_is_counted_once(
    command, replicas, cache, monkeypatch
):
    # They are made once a process, by conftest.
    monkeypatch.setattr(
        tf.config, "set_logical_device_configuration", lambda cpu, devices: None
    )
    more = [f"--num_cpu_devices={replicas}", f"--cache={cache}"]
    settings = config.from_args([*command, *more])
    run = job.prepare(settings, config.directories(settings, {}))
    train, expected = run.dataset.train, np.zeros(256, int)
    reader = data.examples_of(run.dataset, 32, "none")["train"]
    for id in train.ids.tolist():
        _, mask = records.decode(run.dataset, tf.constant(reader.serialized(id)), 32)
        expected += np.bincount(mask.numpy().ravel(), minlength=256)
    assert len(train.ids) == 5 and expected[255] and expected[:2].all()
    found = balance.class_weights(run, lambda: None)
    assert found == balance.by_frequency(expected[:2].tolist())
    assert run.state["class_weights"] == found


def test_a_run_steps_by_its_settings_and_does_not_count_again_when_it_goes_on(
    command, tmp_path, monkeypatch
):
    seen, make = [], step.make_train_steps

    def recorded(*args, loss: functools.partial, **settings):
        seen.append(loss.keywords)
        return make(*args, loss=loss, **settings)

    def counted(*_):
        raise AssertionError("counted again")

    monkeypatch.setattr(step, "make_train_steps", recorded)
    command += ["--loss=cross_entropy+0.5*dice+focal", "--focal_gamma=1"]
    command += ["--label_smoothing=0.1"]
    assert task.main([*command, "--total_steps=1"]) == 0
    monkeypatch.setattr(balance, "_pixels", counted)
    assert task.main([*command, "--total_steps=2"]) == 0
    saved = checkpoint_folder.load_latest(str(tmp_path / "run" / "checkpoints")).state
    expected = {
        "terms": {"cross_entropy": 1.0, "dice": 0.5, "focal": 1.0},
        "focal_gamma": 1.0,
        "label_smoothing": 0.1,
        "class_weights": saved["class_weights"],
    }
    assert seen == [expected, expected] and len(saved["class_weights"]) == 2


def test_given_weights_are_those_of_the_loss_and_none_are_none(command):
    for given, expected in (("--class_weights=3,0.5", [3, 0.5]), (None, None)):
        args = [arg for arg in command if not arg.startswith("--class_weights")]
        settings = config.from_args([*args, *([given] if given else [])])
        run = job.prepare(settings, config.directories(settings, {}))
        assert balance.class_weights(run, lambda: None) == expected
