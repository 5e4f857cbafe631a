"""Checkpoints: whole or passed over, with the last good ones and the best kept."""

import hashlib
import json
import os
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import checkpoint, checkpoint_folder, step

ARRAYS = {
    "model/kernel": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "model/norm/gamma": np.array([np.pi], np.float32),
    "optimizer/iteration": np.array(2**40, np.int64),
    "empty": np.zeros((0, 2), np.float32),
}


def state(at):
    return {"step": at, "best": None, "history": [{"step": 1, "val_loss": 0.1 + 0.2}]}


def save(directory, at, best=None):
    """Writes a checkpoint as a run does; returns its name."""
    name = checkpoint.save(str(directory), ARRAYS, state(at))
    checkpoint_folder.move_pointer(str(directory), latest=name, best=best or name)
    return name


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def is_whole(found, at):
    """Returns whether a checkpoint is, bit for bit, what `save` wrote."""
    assert found.state == state(at)
    assert found.arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found.arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(found.arrays[name], value, strict=True)
    return True


def test_saved_arrays_and_state_come_back_bit_for_bit(tmp_path):
    name = checkpoint.save(str(tmp_path / "new" / "c"), ARRAYS, state(520))
    assert name == "step-00000520"
    found = checkpoint.load(str(tmp_path / "new" / "c"), name)
    assert found.name == name and is_whole(found, 520)


def test_a_saved_model_and_optimizer_come_back_in_another_run():
    def make(seed):
        keras.utils.set_random_seed(seed)
        layers = [keras.Input((4,)), keras.layers.Dense(3, name="dense")]
        network = keras.Sequential(layers, name="network")
        optimizer = step.make_optimizer(
            network,
            name="adam",
            learning_rate=0.1,
            schedule="constant",
            warmup_steps=0,
            total_steps=9,
            weight_decay=0.0,
        )
        return network, optimizer

    network, optimizer = make(0)
    gradients = [tf.ones(v.shape) for v in network.trainable_variables]
    optimizer.apply(gradients, network.trainable_variables)
    variables = checkpoint.named_variables(network, optimizer)
    assert len(variables) == len(network.weights) + len(optimizer.variables)
    saved = checkpoint.values(variables)
    copied = {name: value.copy() for name, value in saved.items()}
    step_on = tf.function(
        lambda: optimizer.apply(gradients, network.trainable_variables)
    )
    step_on()
    after = checkpoint.values(variables)
    for name, value in saved.items():  # Not copied, and yet as it was.
        np.testing.assert_array_equal(value, copied[name])
    trained = f"model/{network.trainable_variables[0].path}"
    assert (after[trained] != copied[trained]).any()

    other, other_optimizer = make(1)
    others = checkpoint.named_variables(other, other_optimizer)
    assert others.keys() == variables.keys()
    checkpoint.assign(saved, others)
    assert int(other_optimizer.iterations) == 1
    other_optimizer.apply(gradients, other.trainable_variables)
    for name, value in checkpoint.values(others).items():
        np.testing.assert_array_equal(value, after[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.pop("b"), "must have b, got none"),
        (
            lambda arrays: arrays.update(b=np.zeros(3)),
            r"b must be .*\(2,\), got \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_set(change, words):
    variables = {name: keras.Variable(np.ones(2)) for name in "ab"}
    arrays = {name: np.zeros(2) for name in "ab"}
    change(arrays)
    with pytest.raises(ValueError, match=words):
        checkpoint.assign(arrays, variables)
    assert all((v.numpy() == 1).all() for v in variables.values())


def test_a_flipped_byte_anywhere_in_the_data_is_caught(tmp_path):
    name = save(tmp_path, 7)
    path = tmp_path / f"{name}.npz"
    data = path.read_bytes()
    positions = np.random.default_rng(0).choice(len(data), 40, replace=False)
    for at in [0, len(data) - 1, *positions.tolist()]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{path} must fit its digest"):
            checkpoint.load(str(tmp_path), name)
    path.write_bytes(data)
    assert is_whole(checkpoint.load(str(tmp_path), name), 7)


def test_a_flipped_byte_anywhere_in_the_digest_is_caught(tmp_path):
    name = save(tmp_path, 7)
    path = tmp_path / f"{name}.npz.sha256"
    data = path.read_bytes()
    # Behind the digest stands the file's name, for a person: it guards nothing.
    for at in range(65):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            if flipped.split()[0] == data.split()[0]:
                continue  # another blank
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match="must fit its digest"):
                checkpoint.load(str(tmp_path), name)


def test_a_flipped_byte_never_restores_anything_else(tmp_path):
    name = save(tmp_path, 7)
    path = tmp_path / f"{name}.npz.sha256"
    data = path.read_bytes()
    for at in range(65, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert is_whole(checkpoint.load(str(tmp_path), name), 7)


def test_a_checkpoint_cut_short_at_any_length_is_caught(tmp_path):
    name = save(tmp_path, 7)
    path = tmp_path / f"{name}.npz"
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"got {length} bytes"):
            checkpoint.load(str(tmp_path), name)


def test_a_digest_cut_short_at_any_length_is_caught(tmp_path):
    name = save(tmp_path, 7)
    path = tmp_path / f"{name}.npz.sha256"
    data = path.read_bytes()
    for length in range(64):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="must fit its digest"):
            checkpoint.load(str(tmp_path), name)


@pytest.mark.parametrize("suffix", [".npz", ".npz.sha256"])
def test_a_checkpoint_without_its_data_or_digest_does_not_count(tmp_path, suffix):
    name = save(tmp_path, 7)
    os.remove(tmp_path / f"{name}{suffix}")
    with pytest.raises(ValueError, match="must have its data and digest"):
        checkpoint.load(str(tmp_path), name)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_accepts_the_digest(tmp_path):
    name = save(tmp_path, 7)
    command = ["sha256sum", "-c", f"{name}.npz.sha256"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert printed.stdout.decode() == f"{name}.npz: OK\n"


def test_data_is_whole_before_the_digest_and_both_before_the_pointer(
    tmp_path, monkeypatch
):
    order: list[str] = []
    open_file = tf.io.gfile.GFile

    def opened(path, mode="r"):
        if "w" in mode:
            for before in order:
                assert (tmp_path / before).stat().st_size > 0
            order.append(os.path.basename(path).removesuffix(".tmp"))
        return open_file(path, mode)

    monkeypatch.setattr(tf.io.gfile, "GFile", opened)
    name = checkpoint.save(str(tmp_path), ARRAYS, state(3))
    assert checkpoint_folder.pointer(str(tmp_path)) == {}
    assert order == [f"{name}.npz", f"{name}.npz.sha256"]
    checkpoint_folder.move_pointer(str(tmp_path), latest=name, best=name)
    assert order[2:] == ["checkpoint.json"]
    assert checkpoint_folder.pointer(str(tmp_path)) == {"latest": name, "best": name}
    assert listing(tmp_path) == sorted(order)


def test_latest_is_the_newest_by_number(tmp_path):
    for at in (9, 99_999_999, 100_000_000, 10):
        save(tmp_path, at)
    newest = ["step-100000000", "step-99999999", "step-00000010", "step-00000009"]
    assert checkpoint_folder.names(str(tmp_path)) == newest
    assert is_whole(checkpoint_folder.load_latest(str(tmp_path)), 100_000_000)


def cut_data(path):
    path.write_bytes(path.read_bytes()[:-100])


def drop_digest(path):
    os.remove(f"{path}.sha256")


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_data, drop_digest, flip_byte])
def test_a_damaged_newest_is_passed_over_for_the_one_before_with_a_warning(
    tmp_path, caplog, damage
):
    for at in (5, 6, 7):
        save(tmp_path, at)
    for at in (7, 6):
        damage(tmp_path / f"step-{at:08d}.npz")
    with caplog.at_level("WARNING", logger="absl"):
        assert is_whole(checkpoint_folder.load_latest(str(tmp_path)), 5)
    lines = [record.getMessage() for record in caplog.records]
    assert [("step-00000007" in a, "step-00000006" in a) for a in lines] == [
        (True, False),
        (False, True),
    ]


def test_where_none_is_whole_it_is_refused(tmp_path):
    for at in (5, 6):
        cut_data(tmp_path / f"{save(tmp_path, at)}.npz")
    with pytest.raises(
        ValueError, match="got step-00000006, step-00000005, none whole"
    ):
        checkpoint_folder.load_latest(str(tmp_path))


def test_what_a_kill_left_of_the_very_first_save_is_passed_over(tmp_path):
    (tmp_path / "step-00000005.npz").write_bytes(b"PK torn")
    assert checkpoint_folder.load_latest(str(tmp_path)) is None


@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_without_checkpoints_has_no_latest(tmp_path, exists):
    directory = tmp_path / "c"
    if exists:
        directory.mkdir()
        (directory / "notes.npz").write_bytes(b"not ours")
    assert checkpoint_folder.load_latest(str(directory)) is None


@pytest.mark.parametrize("keep", [2, 3])
def test_pruning_keeps_the_newest_and_the_best_and_nothing_else(tmp_path, keep):
    for at in range(1, 8):
        save(tmp_path, at, best="step-00000002")
        checkpoint_folder.prune(str(tmp_path), keep)
    kept = [2, *range(8 - keep, 8)]
    names = [f"step-{at:08d}.npz{end}" for at in kept for end in ("", ".sha256")]
    assert listing(tmp_path) == sorted(["checkpoint.json", *names])


def test_pruning_touches_nothing_that_is_not_a_checkpoint(tmp_path):
    others = ["notes.txt", "step-1.npz", "step-00000001.npz.bak", "xstep-00000001.npz"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "step-00000001.npz").write_text("mine")
    for at in range(2, 7):
        save(tmp_path, at)
        checkpoint_folder.prune(str(tmp_path), 2)
    assert {*others, "folder"} <= set(listing(tmp_path))
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert listing(tmp_path / "folder") == ["step-00000001.npz"]
    assert not (tmp_path / "step-00000002.npz").exists()


def test_pruning_leaves_what_lies_behind_the_latest(tmp_path):
    for at in (1, 2, 3):
        save(tmp_path, at)
    flip_byte(tmp_path / "step-00000003.npz")
    checkpoint_folder.move_pointer(
        str(tmp_path), latest="step-00000002", best="step-00000002"
    )
    checkpoint_folder.prune(str(tmp_path), 2)
    assert checkpoint_folder.names(str(tmp_path)) == [
        f"step-{at:08d}" for at in (3, 2, 1)
    ]


def test_what_a_kill_left_takes_no_good_ones_place_in_pruning(tmp_path):
    # A run killed while it wrote step 3 went on from step 2, saved at 4.
    for at in (1, 2):
        save(tmp_path, at)
    (tmp_path / "step-00000003.npz").write_bytes(b"PK torn")
    save(tmp_path, 4)
    checkpoint_folder.prune(str(tmp_path), 2)
    whole = {p.name for p in tmp_path.glob("*.sha256")}
    assert whole == {"step-00000002.npz.sha256", "step-00000004.npz.sha256"}
    assert checkpoint_folder.names(str(tmp_path)) == ["step-00000004", "step-00000002"]


def test_pruning_deletes_the_digest_first(tmp_path, monkeypatch):
    for at in (1, 2, 3):
        save(tmp_path, at)
    removed: list[str] = []
    monkeypatch.setattr(tf.io.gfile, "remove", removed.append)
    checkpoint_folder.prune(str(tmp_path), 2)
    oldest = str(tmp_path / "step-00000001.npz")
    assert removed == [f"{oldest}.sha256", oldest]


@pytest.mark.parametrize("digest", [True, False])
def test_a_single_file_comes_back(tmp_path, digest):
    name = save(tmp_path / "c", 7)
    other = tmp_path / "step-00000001.npz"
    shutil.copy(tmp_path / "c" / f"{name}.npz", other)
    if digest:
        shutil.copy(tmp_path / "c" / f"{name}.npz.sha256", f"{other}.sha256")
    assert is_whole(checkpoint.load_file(str(other)), 7)


def not_a_zip(path):
    path.write_bytes(b"no checkpoint")


def other_arrays(path):
    np.savez(path, weights=np.ones(3))


def nothing(path):
    os.remove(path)


def foreign_with_digest(path):
    not_a_zip(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")


@pytest.mark.parametrize(
    "damage", [not_a_zip, other_arrays, nothing, cut_data, foreign_with_digest]
)
def test_a_file_that_is_no_whole_checkpoint_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / f"{save(tmp_path, 7)}.npz"
    os.remove(f"{path}.sha256")
    damage(path)
    with pytest.raises(ValueError) as refusal:
        checkpoint.load_file(str(path))
    assert path.stem in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_file_with_a_digest_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / f"{save(tmp_path, 7)}.npz"
    flip_byte(path)
    with pytest.raises(ValueError, match="must fit its digest"):
        checkpoint.load_file(str(path))


def test_state_is_kept_as_json_that_any_program_reads(tmp_path):
    name = save(tmp_path, 7)
    with np.load(tmp_path / f"{name}.npz") as file:
        assert json.loads(str(file["state"])) == state(7)
        np.testing.assert_array_equal(file["model/kernel"], ARRAYS["model/kernel"])
