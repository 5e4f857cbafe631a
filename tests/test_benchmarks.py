"""The benchmarks measure what they say."""

import importlib
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from benchmarks import (
    encoders,
    hlo,
    kill,
    machine,
    scale_dataset,
    scaling,
    side_by_side,
    stop,
    tpu_compile,
    tutorial,
)
from trainer import sums


def read(data_dir: str, split: str) -> list[dict]:
    builder = tfds.builder("oxford_iiit_pet", data_dir=data_dir)
    order = tfds.ReadConfig(interleave_cycle_length=1)
    ds = builder.as_dataset(split=split, read_config=order)
    return list(ds.as_numpy_iterator())


def test_scaled_copy_has_the_shorter_side_asked_for_and_the_same_mask_values(
    pets: Callable[..., str], tmp_path: pathlib.Path
):
    data_dir = pets(9, n_test=5)
    scale_dataset.scale_dataset(data_dir, str(tmp_path), shorter_side=40)
    shrunk = 0
    for split in ("train", "test"):
        for before, after in zip(
            read(data_dir, split), read(str(tmp_path), split), strict=True
        ):
            height, width, _ = before["image"].shape
            assert after["image"].shape[:2] == after["segmentation_mask"].shape[:2]
            if min(height, width) > 40:
                shrunk += 1
                assert min(after["image"].shape[:2]) == 40
                ratio = after["image"].shape[0] / after["image"].shape[1]
                assert ratio == pytest.approx(height / width, abs=0.03)
            else:
                np.testing.assert_array_equal(after["image"], before["image"])
                np.testing.assert_array_equal(
                    after["segmentation_mask"], before["segmentation_mask"]
                )
            assert set(np.unique(after["segmentation_mask"])) <= {1, 2, 3}
            for name in ("file_name", "head_bbox", "label", "species"):
                np.testing.assert_array_equal(after[name], before[name])
    assert shrunk


def test_scaled_copy_has_four_even_shards_a_split(
    pets: Callable[..., str], tmp_path: pathlib.Path
):
    scale_dataset.scale_dataset(pets(10, n_test=4), str(tmp_path), shorter_side=40)
    splits = tfds.builder("oxford_iiit_pet", data_dir=tmp_path).info.splits
    assert sorted(splits["train"].shard_lengths) == [2, 2, 3, 3]
    assert splits["test"].shard_lengths == [1, 1, 1, 1]


def test_scaled_copy_is_not_written_over_another(
    pets: Callable[..., str], tmp_path: pathlib.Path
):
    data_dir = pets(4)
    scale_dataset.scale_dataset(data_dir, str(tmp_path), shorter_side=40)
    with pytest.raises(ValueError, match="must not hold oxford_iiit_pet yet"):
        scale_dataset.scale_dataset(data_dir, str(tmp_path), shorter_side=40)


def test_scaling_without_a_data_set_names_the_way_out(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="--download makes it there"):
        scale_dataset.scale_dataset(
            str(tmp_path / "none"), str(tmp_path / "copy"), shorter_side=40
        )


def test_tutorial_model_has_the_published_number_of_parameters():
    model = tutorial.unet_model(3, image_size=128, encoder_weights=None)
    assert model.count_params() == 6_504_227
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trained == 4_660_323
    assert model.output_shape == (None, 128, 128, 3)


def test_tutorial_trains_on_masks_between_the_classes_and_is_judged_on_true_ones():
    datapoint = {
        "image": tf.constant(128, tf.uint8, (6, 6, 3)),
        "segmentation_mask": tf.constant([[[1], [3]] * 3] * 6, tf.uint8),
    }
    image, bilinear = tutorial.load_image(datapoint, 4, "bilinear")
    np.testing.assert_array_equal(image, np.zeros((4, 4, 3)))
    assert not set(np.unique(bilinear)) <= {0, 1, 2}
    _, nearest = tutorial.load_image(datapoint, 4, "nearest")
    assert set(np.unique(nearest)) == {0, 2}


def row(step: int, **values: float) -> str:
    return json.dumps({"kind": "train", "step": step, **values}) + "\n"


@pytest.fixture
def two_runs(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Two finished runs that are equal but for their clocks."""
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        checkpoints = tmp_path / name / "checkpoints"
        checkpoints.mkdir(parents=True)
        np.savez(
            checkpoints / "step-00000002.npz",
            kernel=np.arange(6, dtype=np.float32),
            state=np.array(
                json.dumps({"step": 2, "train_seconds": seconds, "job_dir": name})
            ),
        )
        pointer = json.dumps({"latest": "step-00000002", "best": "step-00000002"})
        (checkpoints / "checkpoint.json").write_text(pointer)
        rows = [row(step, loss=1 / step, seconds=seconds) for step in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(rows))
    return tmp_path / "a", tmp_path / "b"


def test_runs_that_differ_in_the_clock_alone_are_equal(two_runs):
    assert kill.same_checkpoints(*two_runs) == []
    assert kill.same_rows(*two_runs) == []


def test_one_flipped_bit_of_a_weight_is_seen(two_runs):
    a, b = (run / "checkpoints" / "step-00000002.npz" for run in two_runs)
    arrays: dict[str, Any] = dict(np.load(b))
    arrays["kernel"].view(np.uint8)[5] ^= 1
    np.savez(b, **arrays)
    assert kill.same_weights(a, b) == ["kernel"]
    assert kill.same_checkpoints(*two_runs) == ["step-00000002.npz: kernel"]


def test_another_state_beside_equal_weights_is_seen(two_runs):
    a, b = (run / "checkpoints" / "step-00000002.npz" for run in two_runs)
    arrays: dict[str, Any] = dict(np.load(b))
    np.savez(b, **arrays | {"state": np.array(json.dumps({"step": 3}))})
    assert kill.same_weights(a, b) == ["state"]


def test_weights_of_another_shape_type_or_name_differ(tmp_path: pathlib.Path):
    zeros = np.zeros(4, np.float32)
    np.savez(tmp_path / "a.npz", shape=zeros, kind=zeros, gone=zeros, same=zeros)
    np.savez(
        tmp_path / "b.npz",
        shape=zeros.reshape(2, 2),
        kind=zeros.astype(np.int32),
        new=zeros,
        same=zeros,
    )
    names = kill.same_weights(tmp_path / "a.npz", tmp_path / "b.npz")
    assert names == ["gone", "kind", "new", "shape"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(1, loss=1), row(2, loss=0.5), row(2, loss=0.5)], "2 rows, not 1"),
        ([row(1, loss=1)], "0 rows, not 1"),
        ([row(1, loss=1), row(2, loss=0.25)], "0.25"),
        ([row(step, loss=1 / step) for step in (1, 2, 3)], "1 rows, not 0"),
    ],
)
def test_doubled_missing_and_changed_rows_are_told(two_runs, rows, told):
    a, b = two_runs
    (b / "metrics.jsonl").write_text("".join(rows))
    [difference] = kill.same_rows(a, b)
    assert told in difference


JOB = """
import json, os, pathlib, sys, time
import numpy as np
checkpoints = pathlib.Path(sys.argv[1]) / "checkpoints"
checkpoints.mkdir(parents=True, exist_ok=True)
pointer = checkpoints / "checkpoint.json"
done = json.loads(pointer.read_text())["latest"] if pointer.exists() else "step-0"
for step in range(int(done[5:]) + 1, 11):
    name = f"step-{step:08}"
    with open(checkpoints / (name + ".npz"), "wb") as file:
        time.sleep(0.03)
        np.savez(file, step=step)
    (checkpoints / "new").write_text(json.dumps({"latest": name}))
    os.replace(checkpoints / "new", pointer)
"""


def test_killed_command_is_started_again_until_it_is_done(tmp_path: pathlib.Path):
    job_dir = tmp_path / "job"
    killed = kill.run_killed(
        [sys.executable, "-c", JOB, str(job_dir)],
        job_dir,
        kills=3,
        rng=random.Random(1),
        within_seconds=0.3,
    )
    assert 1 <= len(killed) <= 3
    assert kill.latest_step(job_dir) == 10
    assert not kill.save_cut_short(job_dir, 0)


def test_file_younger_than_the_pointer_is_a_save_cut_short(two_runs):
    job_dir, _ = two_runs
    assert not kill.save_cut_short(job_dir, 0)
    half = job_dir / "checkpoints" / "step-00000003.npz"
    half.write_bytes(b"half")
    later = half.stat().st_mtime_ns + 10**9  # the clock of files is coarse
    os.utime(half, ns=(later, later))
    assert kill.save_cut_short(job_dir, 0)
    # What an earlier kill left behind is not this one's.
    assert not kill.save_cut_short(job_dir, later)


def test_command_that_fails_by_itself_is_an_error_with_its_last_words(
    tmp_path: pathlib.Path,
):
    command = [sys.executable, "-c", "import sys; sys.exit('no such data')"]
    with pytest.raises(RuntimeError, match="exit code 1(?s:.)*no such data"):
        kill.run_killed(command, tmp_path / "job", 0, random.Random(0))
    with pytest.raises(RuntimeError, match="exit code 1(?s:.)*no such data"):
        side_by_side.measured(command, tmp_path / "log")


def test_ratio_is_the_median_over_the_pairs():
    keys = [key for key, _, _ in side_by_side.ROWS]
    pairs = [
        {"tutorial": dict.fromkeys(keys, a), "job": dict.fromkeys(keys, b)}
        for a, b in ((1.0, 2.0), (10.0, 10.0), (4.0, 12.0))
    ]
    comparison = side_by_side.compare(pairs)
    figures = {"tutorial": 4.0, "job": 10.0, "ratio": 2.0}
    assert comparison["images_per_second"] == figures
    lines = side_by_side.table(comparison).splitlines()
    assert "| images/s, median | 4.0 | 10.0 | 2.00 |" in lines


def test_peak_memory_is_that_of_the_child(tmp_path: pathlib.Path):
    """A process of its own measures: a child starts with its parent's peak."""
    script = (
        "import pathlib, sys; from benchmarks import side_by_side as s;"
        "c = [sys.executable, '-c', 'bytearray(int(sys.argv[1]))'];"
        "c[2] = 'import sys; ' + c[2]; log = pathlib.Path(sys.argv[1]);"
        "print(*(s.measured([*c, str(n)], log)['peak_memory_gib'] for n in (0, 2**28)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    output = subprocess.check_output(command, cwd=machine.REPOSITORY, text=True)
    small, large = map(float, output.split())
    assert large - small == pytest.approx(0.25, abs=0.02)


def test_shown_command_names_no_place_of_the_machine():
    command = ["/some/bin/python", "-m", "job", "--data_dir=/data", "--out=/data/run"]
    shown = machine.shown(command, {"/data": "DIR", "/data/run": "OUT"})
    assert shown == "python -m job --data_dir=DIR --out=OUT"


def test_results_are_added_to_those_of_the_same_machine_only(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_product_rate", lambda: 400e9)
    path, facts = tmp_path / "quality.json", machine.facts()
    # Another day, and a speed that wandered.
    same = facts | {"date": "2026-01-01", "matrix_product_gflops": 370}
    found = {"machine": same, "runs": {"tutorial": {}}}
    path.write_text(json.dumps(found))
    assert machine.kept(path) == found
    for other in ({"cpu": "another"}, {"matrix_product_gflops": 200}):
        path.write_text(json.dumps({"machine": facts | other}))
        [(name, value)] = other.items()
        with pytest.raises(ValueError, match=f"machine .*, got {name} {value}, here "):
            machine.kept(path)


@pytest.mark.parametrize(
    ("program", "flags"),
    [("quality", ["--data_dir=DIR", "--add"]), ("growth", ["--only", "steps"])],
)
def test_what_cannot_be_added_to_is_refused_in_a_line(
    program, flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [program, *flags])
    with pytest.raises(SystemExit, match="^2$"):
        importlib.import_module(f"benchmarks.{program}").main()
    assert f"{program}.json must be there" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------
# Several workers


def test_on_paper_a_ring_sends_the_gradient_nearly_twice():
    found = scaling.on_paper(0.010, weight_bytes=20_000_000, link=10e9, devices=4)
    # Three quarters of 20 MB, twice, at 10 GB/s: 3 ms.
    assert found["step_seconds"] == pytest.approx(0.013)
    assert found["efficiency"] == pytest.approx(10 / 13)
    assert scaling.on_paper(0.010, 20_000_000, 10e9, 1)["efficiency"] == 1


def test_bytes_of_the_loopback_are_counted_for_each_step():
    dev = (
        "Inter-|   Receive                    |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
        "  eth0: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n"
        "    lo: 700 9 0 0 0 0 0 0 800 9 0 0 0 0 0 0\n"
    )
    assert scaling.loopback_bytes(dev) == 800
    assert scaling.per_step([(5, 1000), (10, 3000), (25, 9000)]) == 400
    assert scaling.per_step([(5, 1000)]) == 0


def test_the_worst_time_to_leave_is_told_for_each_signal():
    tries = [
        {"signal": "SIGTERM", "seconds_to_leave": 2.0},
        {"signal": "SIGTERM", "seconds_to_leave": 3.5},
        {"signal": "SIGKILL", "seconds_to_leave": 9.0},
    ]
    assert stop.worst(tries, "SIGTERM") == 3.5
    assert stop.worst(tries, "SIGKILL") == 9.0


@pytest.mark.parametrize(
    ("shape", "bytes_each"),
    [
        ("f32[]", [4]),
        ("bf16[2,3]{1,0}", [12]),
        ("u8[5]{0:T(128)}", [128]),
        ("bf16[64,96]{1,0:T(8,128)(2,1)}", [64 * 128 * 2]),
        ("bf16[64,96]{0,1:T(8,128)(2,1)}", [128 * 96 * 2]),
        ("f32[3,3,9,200]{3,2,1,0:T(8,128)}", [9 * 16 * 256 * 4]),
        ("(f32[8]{0}, (s64[2]{0}, pred[]))", [32, 16, 1]),
    ],
)
def test_arrays_take_whole_tiles(shape, bytes_each):
    assert hlo.arrays(shape) == [(size, True) for size in bytes_each]


def test_arrays_in_the_fast_memory_are_not_in_hbm():
    shape = "(bf16[8]{0:T(128)S(1)}, bf16[8]{0:T(128)}, u32[]{:S(2)})"
    assert [in_hbm for _, in_hbm in hlo.arrays(shape)] == [False, True, False]


# The fusion's inside does not count. In HBM: image 64 x 128 x 2 = 16,384 bytes with its
# padding, sums 512, part 256 of them.
PROGRAM = """HloModule step, is_scheduled=true

%fused (p: f32[4096]) -> f32[4096] {
  %p = f32[4096]{0} parameter(0)
  ROOT %doubled = f32[4096]{0} add(%p, %p)
}

ENTRY %main (image: bf16[64,96]) -> (f32[128]) {
  %image = bf16[64,96]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %going = (bf16[64,96]{1,0:T(8,128)(2,1)S(1)}, bf16[64,96]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%image), cross_program_prefetch_index=0
  %near = bf16[64,96]{1,0:T(8,128)(2,1)S(1)} copy-done(%going)
  %sums = f32[128]{0:T(128)} fusion(%near, /*index=1*/%image), kind=kLoop, calls=%fused
  %cutting = ((f32[128]{0:T(128)}), f32[64]{0:T(64)S(1)}, s32[]{:S(2)}) slice-start(%sums), slice={[0:64]}
  %cut = f32[64]{0:T(64)S(1)} slice-done(%cutting)
  %one = f32[128]{0:T(128)S(1)} custom-call(%cut, %cut), custom_call_target="ConcatBitcast", backend_config={}
  %pair = (f32[128]{0:T(128)}, f32[128]{0:T(128)S(1)}) fusion(%one, %sums), kind=kLoop
  %first = f32[128]{0:T(128)} get-tuple-element(%pair), index=0
  ROOT %tuple = (f32[128]{0:T(128)}) tuple(%first)
}
"""


def test_hbm_bytes_are_those_that_operations_read_and_write_there():
    going = 16384
    summed = 16384 + 512
    cutting = 256
    pair = 512 + 512
    assert hlo.hbm_bytes(PROGRAM) == going + summed + cutting + pair


@pytest.mark.parametrize("operation", ["while", "call", "all-reduce-start"])
def test_programs_that_would_be_miscounted_are_refused(operation):
    program = PROGRAM.replace("} fusion(%near", f"}} {operation}(%near")
    with pytest.raises(ValueError, match=f"what {operation} moves: %sums"):
        hlo.hbm_bytes(program)


FIGURES = {
    "flops": 197e9,  # 1 ms
    "hbm_bytes": 1638e6,  # 2 ms
    "bytes_accessed": 3200e6,
    "argument_bytes": 6_000_000_000,
    "output_bytes": 5_000_000_000,
    "alias_bytes": 4_000_000_000,
    "temporary_bytes": 8_000_000_000,
    "code_bytes": 1_000_000_000,
}


def test_time_at_least_is_that_of_the_scarcer_of_arithmetic_and_memory():
    found = tpu_compile.limits(FIGURES, batch=64)
    assert found["compute_seconds"] == pytest.approx(0.001)
    assert found["memory_seconds"] == pytest.approx(0.002)
    assert found["seconds_at_least"] == found["memory_seconds"]
    assert found["bytes_accessed_per_image"] == 50e6
    assert found["hbm_bytes_per_image"] == 25_593_750
    found = tpu_compile.limits({**FIGURES, "flops": 197e10}, batch=64)
    assert found["seconds_at_least"] == found["compute_seconds"] == pytest.approx(0.01)


def test_what_aliases_an_argument_takes_no_room_of_its_own():
    found = tpu_compile.limits(FIGURES, batch=64)
    assert (found["bytes_held"], found["fits"]) == (16_000_000_000, True)
    more = {**FIGURES, "temporary_bytes": FIGURES["temporary_bytes"] + 1}
    assert not tpu_compile.limits(more, batch=64)["fits"]


def test_table_of_compiled_steps_has_a_row_for_each():
    case = {"step": "training", "precision": "float32", "batch": 64, **FIGURES}
    lines = tpu_compile.table([case | tpu_compile.limits(FIGURES, 64)]).splitlines()
    [row] = lines[2:]
    cells = "training float32 64 0.20 3.20 1.64 8.00 6000 5000 2.00 50.0 25.6 yes"
    assert row == f"| {cells.replace(' ', ' | ')} |"
    assert {line.count("|") for line in lines} == {len(tpu_compile.HEADINGS) + 1}


@pytest.mark.slow
def test_step_for_a_tpu_is_lowered_without_float64_and_ours_stays_exact():
    try:
        program = tpu_compile.stablehlo(
            lambda: tpu_compile.training("mixed_bfloat16", 32, image_size=32)
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert "tensor<32x32x32x3xui8>" in program and "xbf16>" in program
    assert "f64" not in program and "mhlo.copy" not in program
    assert sums.exact()


@pytest.mark.slow
def test_each_encoder_takes_turns_with_the_first():
    names = ["mobilenet_v2", "mobilenet_v3_small"]
    found = encoders.measure(names, rounds=2, steps=1, batch_size=2, image_size=32)
    assert [len(row["images_per_second"]) for row in found.values()] == [2, 2]
    first, second = found.values()
    assert (first["parameters"], first["trained_parameters"]) == (6_504_227, 4_660_323)
    assert first["over_the_first"] == 1
    assert 0 < second["trained_parameters"] < second["parameters"] < first["parameters"]
