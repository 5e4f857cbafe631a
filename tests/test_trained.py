"""A run's model and data set, as its job_dir tells them."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import one_layer

from trainer import checkpoint, checkpoint_folder, config, dataset, model, task, trained


@pytest.fixture(scope="module")
def made(tmp_path_factory, pets):
    """Trains a model of one layer for three steps, once; returns its job_dir."""
    job_dir = tmp_path_factory.mktemp("run")
    flags = (f"--job_dir={job_dir}", f"--data_dir={pets(10)}", "--image_size=32")
    steps = ("--total_steps=3", "--eval_every_steps=1", "--batch_size=2")
    more = ("--val_fraction=0.4", "--keep_checkpoints=3", "--num_pictures=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "build_unet", one_layer)
        assert task.main([*flags, *steps, *more]) == 0
        yield job_dir


@pytest.fixture
def run(made, tmp_path, tiny_unet):
    """Returns a copy of that run whose best step is its second, whatever it was."""
    run = tmp_path / "run"
    shutil.copytree(made, run)
    checkpoint_folder.move_pointer(
        str(run / "checkpoints"), latest="step-00000003", best="step-00000002"
    )
    return run


@pytest.mark.parametrize(("which", "step"), [("best", 2), ("latest", 3)])
def test_the_model_is_that_of_the_step_asked_for(run, which, step):
    found = trained.load(str(run), which)
    path = run / "checkpoints" / f"step-{step:08d}.npz"
    assert (found.step, found.checkpoint) == (step, str(path))
    with np.load(path) as archive:
        for name, variable in checkpoint.named_variables(found.model).items():
            np.testing.assert_array_equal(variable.numpy(), archive[name])
    text = (run / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    [row] = [row for row in rows if row["kind"] == "eval" and row["step"] == step]
    assert found.validation == {k: v for k, v in row.items() if k != "kind"}


@pytest.mark.parametrize("error", [ValueError, tf.errors.NotFoundError])
def test_a_run_that_saves_while_it_is_read_is_read_again(run, monkeypatch, error):
    load, directory = checkpoint.load_judged, str(run / "checkpoints")

    errors = [error("gone") if error is ValueError else error(None, None, "gone")]

    def while_it_saves(*args: str) -> checkpoint.Checkpoint:
        if not errors:
            return load(*args)
        name = "step-00000003"
        checkpoint_folder.move_pointer(directory, latest=name, best=name)
        raise errors.pop()  # The best of before is deleted by then.

    monkeypatch.setattr(checkpoint, "load_judged", while_it_saves)
    assert trained.load(str(run)).step == 3
    (run / "checkpoints" / "step-00000003.npz").unlink()
    with pytest.raises(ValueError, match="must have its data and digest, got one only"):
        trained.load(str(run))


@pytest.mark.parametrize(
    "about",
    [{}, {"settings": [1]}, {"settings": {"epochs": 1}}, {"program": "segtrainer"}],
)
def test_a_config_of_another_program_is_no_run(tmp_path, about):
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"job_dir must hold a run, got .* without a"):
        trained.load(str(tmp_path))


def test_the_best_is_taken_where_nothing_is_said(run):
    assert trained.load(str(run)).step == 2


def test_settings_classes_and_examples_are_those_of_the_run(run):
    found = trained.load(str(run))
    assert found.class_names == ("pet", "background", "border")
    assert (found.settings.image_size, found.settings.batch_size) == (32, 2)
    assert found.examples == (3, 3, 4)
    image = tf.zeros((1, 32, 32, 3))
    assert found.model(image).shape == (1, 32, 32, 3)


def test_a_checkpoint_that_was_not_judged_has_no_validation(run):
    directory = str(run / "checkpoints")
    saved = checkpoint.load(directory, "step-00000003")
    state = {**saved.state, "step": 4}
    checkpoint.save(directory, saved.arrays, state)
    checkpoint_folder.move_pointer(
        directory, latest="step-00000004", best="step-00000002"
    )
    found = trained.load(str(run), "latest")
    assert found.step == 4 and found.validation == {}


def test_an_evaluation_that_came_after_the_save_is_the_checkpoints(run):
    directory = str(run / "checkpoints")
    saved = checkpoint.load(directory, "step-00000003")
    assert saved.state["evaluations"][-1]["step"] == 3
    state = {**saved.state, "evaluations": []}  # As a run that was told to stop saves.
    checkpoint.save(directory, saved.arrays, state)
    found = trained.load(str(run), "latest")
    assert found.validation == saved.state["evaluations"][-1]


def test_checkpoints_kept_elsewhere_are_found(run, tmp_path):
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    written = json.loads((run / "config.json").read_text())
    written["checkpoints"] = str(tmp_path / "elsewhere")
    (run / "config.json").write_text(json.dumps(written))
    assert trained.load(str(run)).checkpoint.startswith(str(tmp_path / "elsewhere"))
    del written["checkpoints"]  # As it was written once.
    written["settings"]["checkpoint_dir"] = str(tmp_path / "elsewhere")
    (run / "config.json").write_text(json.dumps(written))
    assert trained.load(str(run)).checkpoint.startswith(str(tmp_path / "elsewhere"))


def test_checkpoints_in_a_job_dir_move_with_it_also_where_they_were_named(
    run, tmp_path
):
    written = json.loads((run / "config.json").read_text())
    assert written["checkpoints"] is None
    written["settings"]["checkpoint_dir"] = str(run / "checkpoints")
    (run / "config.json").write_text(json.dumps(written))
    run.rename(tmp_path / "moved")
    found = trained.load(str(tmp_path / "moved"))
    assert found.checkpoint.startswith(str(tmp_path / "moved"))


@pytest.mark.parametrize("content", [None, "{}", "no JSON", '["settings"]'])
def test_a_folder_without_a_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="must hold a run, got .* train first"):
        trained.load(str(tmp_path))


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_without_a_checkpoint_is_refused(run, kept):
    shutil.rmtree(run / "checkpoints")
    if kept:
        (run / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="must hold a checkpoint, got .* none yet"):
        trained.load(str(run))


def test_a_damaged_checkpoint_is_refused_by_its_name(run):
    path = run / "checkpoints" / "step-00000002.npz"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"step-00000002"):
        trained.load(str(run))
    assert trained.load(str(run), "latest").step == 3


def test_a_checkpoint_that_was_deleted_is_refused(run):
    for path in (run / "checkpoints").glob("step-00000002*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"step-00000002"):
        trained.load(str(run))


def test_a_model_that_does_not_fit_is_refused(run):
    written = json.loads((run / "config.json").read_text())
    directory = str(run / "checkpoints")
    saved = checkpoint.load(directory, "step-00000003")
    state = {**saved.state, "step": 5, "class_names": ["one", "two"]}
    checkpoint.save(directory, saved.arrays, state)
    checkpoint_folder.move_pointer(
        directory, latest="step-00000005", best="step-00000005"
    )
    (run / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="must be of shape"):
        trained.load(str(run))


def test_the_data_set_is_cut_as_the_run_cut_it(run):
    found = trained.load(str(run))
    opened = trained.open_dataset(found.settings)
    parts = [*opened.train.shard_lengths, len(opened.val.ids)]
    assert found.examples == tuple(parts)
    assert opened.class_names == found.class_names


def test_the_data_lie_where_the_settings_say():
    assert trained.data_dir(config.Config()) is None
    assert trained.data_dir(config.Config(data_dir="/d")) == "/d"
    assert trained.data_dir(config.Config(try_gcs=True)) == dataset.PUBLIC_DIR
