"""An exported model gives the masks of predict, whole or not at all, wherever it is put."""

import base64
import io
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks import export as benchmark
from tests import cluster
from trainer import (
    checkpoint,
    config,
    export,
    exporting,
    model,
    pictures,
    placing,
    predict,
    task,
    trained,
)

SMALL = [
    *("--image_size=32", "--limit_train_examples=8", "--limit_eval_examples=2"),
    *("--num_pictures=1", "--total_steps=1", "--batch_size=2", "--val_fraction=0.25"),
]
SIZES = [
    *((40, 50), (61, 33), (9, 7), (32, 32), (1, 1), (100, 31), (33, 200), (64, 64)),
    *((31, 33), (3, 90), (128, 96), (200, 150)),
]


BUILD_UNET = model.build_unet  # `run` puts a small one in its place.


def build(*, image_size: int, num_classes: int, seed: int, **_) -> keras.Model:
    """Returns a model of one layer, in the precision that was set before."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((image_size, image_size, 3))
    convolution = keras.layers.Conv2D(num_classes, 3, padding="same", name="logits")
    return keras.Model(image, convolution(image))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains a model of one layer for a step, once, and exports it; returns its job_dir."""
    job_dir = str(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "build_unet", build)
        assert task.main([f"--job_dir={job_dir}", *SMALL]) == 0
        yield job_dir


@pytest.fixture
def tree():
    """Returns the paths and contents of all files below a folder."""

    def read(folder: pathlib.Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read


def write_photos(folder: pathlib.Path) -> None:
    """Writes upright JPEG and PNG files of many sizes and of every mode."""
    rng, folder = np.random.default_rng(0), pathlib.Path(folder)
    folder.mkdir()
    modes = ["RGB", "RGB", "L", "LA", "P", "RGBA", "1", "CMYK"]
    for index, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
        pixels = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
        mode = modes[index % len(modes)]
        ending = ".jpg" if index % 2 and mode in ("RGB", "CMYK") else ".png"
        Image.fromarray(pixels).convert(mode).save(folder / f"{index:02d}{ending}")
    deep = rng.integers(0, 65536, (20, 30), np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")


# Runs without this package: what is None cannot be imported.
SERVED = """
import sys; sys.modules["trainer"] = None
import pathlib
import tensorflow as tf
folder, photos, out = map(pathlib.Path, sys.argv[1:])
served = tf.saved_model.load(str(folder)).signatures["serving_default"]
paths = sorted(photos.iterdir())
while paths:
    some, paths = paths[:len(paths) // 2 + 1], paths[len(paths) // 2 + 1:]
    files = tf.constant([path.read_bytes() for path in some])
    for path, mask in zip(some, served(image_bytes=files)["mask_bytes"].numpy()):
        (out / path.with_suffix(".png").name).write_bytes(mask)
"""


def assert_served_as_predicted(job_dir, folder, tmp_path: pathlib.Path) -> None:
    photos, served, predicted = (
        tmp_path / n for n in ("photos", "served", "predicted")
    )
    write_photos(photos)
    served.mkdir()
    subprocess.run(
        [sys.executable, "-c", SERVED, str(folder), str(photos), str(served)],
        check=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    flags = [f"--job_dir={job_dir}", f"--output_dir={predicted}", "--batch_size=5"]
    assert predict.main([*flags, "--nooverlays", str(photos)]) == 0
    names = sorted(path.name for path in predicted.glob("*.png"))
    assert len(names) == len(SIZES) + 1
    for name in names:
        with Image.open(served / name) as ours, Image.open(predicted / name) as theirs:
            assert ours.mode == "L"
            np.testing.assert_array_equal(ours, theirs, name)


def test_masks_are_those_of_predict_in_a_process_without_this_package(run, tmp_path):
    folder = pathlib.Path(run, "export", "1")
    assert_served_as_predicted(run, folder, tmp_path)


def test_the_benchmark_compares_photographs_of_many_sizes(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(40, 50), (40, 50), (33, 20), (9, 7)]):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    names = [path.name for path in benchmark.chosen(str(folder), 3)]
    assert names == ["0.jpg", "2.jpg", "3.jpg"]
    found = benchmark.differing(run, f"{run}/export/1", str(folder), 4)
    assert (found["photographs"], found["sizes"], found["pixels_that_differ"]) == (
        4,
        3,
        0,
    )
    assert found["pixels"] == 2 * 40 * 50 + 33 * 20 + 9 * 7


@pytest.fixture(scope="module")
def served(run):
    """Returns the model that the run has exported."""
    return tf.saved_model.load(os.path.join(run, "export", "1"))


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_call_in_json_is_answered_in_json(served):
    """As TensorFlow Serving's REST interface reads and writes it, by its documents.

    Strings are {"b64": ...} in the request; an output whose name ends in _bytes is so in
    the answer, and an only output is not named there.
    """
    [(name, _)] = (
        served.signatures["serving_default"].structured_input_signature[1].items()
    )
    [output] = served.signatures["serving_default"].structured_outputs
    assert (name, output) == ("image_bytes", "mask_bytes")
    encoded = base64.b64encode(png(5, 8)).decode()
    body = json.dumps({"instances": [{name: {"b64": encoded}}] * 2})
    rows = [base64.b64decode(row[name]["b64"]) for row in json.loads(body)["instances"]]
    found = served.signatures["serving_default"](image_bytes=tf.constant(rows))
    masks = [{"b64": base64.b64encode(mask).decode()} for mask in found[output].numpy()]
    answer = json.loads(json.dumps({"predictions": masks}))
    for row in answer["predictions"]:
        mask = Image.open(io.BytesIO(base64.b64decode(row["b64"])))
        assert mask.size == (8, 5) and set(np.unique(mask)) <= {0, 1, 2}


def test_pixels_give_class_ids_and_probabilities_at_the_models_size(served):
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 25, 3), np.uint8)
    found = served.signatures["pixels"](images=tf.constant(images))
    ids, probabilities = found["class_ids"].numpy(), found["probabilities"].numpy()
    assert ids.dtype == np.uint8 and ids.shape == (3, 32, 32)
    assert probabilities.dtype == np.float32 and probabilities.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(ids, probabilities.argmax(-1))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_an_empty_batch_gets_an_empty_answer(served):
    masks = served.signatures["serving_default"](image_bytes=tf.zeros((0,), tf.string))
    assert masks["mask_bytes"].shape == (0,)
    none = served.signatures["pixels"](images=tf.zeros((0, 40, 25, 3), tf.uint8))
    assert none["class_ids"].shape == (0, 32, 32)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Input is empty"),
        (b"no picture", "Unknown image file format"),
        (png(40, 40)[:100], "Invalid PNG data"),
    ],
)
def test_a_damaged_image_fails_the_call_and_says_so(served, data, says):
    files = tf.constant([png(4, 4), data])
    with pytest.raises(tf.errors.InvalidArgumentError, match=says):
        served.signatures["serving_default"](image_bytes=files)


def test_model_json_tells_classes_inputs_metrics_and_where_it_comes_from(run):
    about = json.loads(pathlib.Path(run, "export/1/model.json").read_text())
    colours = pictures.palette(3).tolist()
    assert about["classes"] == [
        {"id": 0, "name": "pet", "colour": colours[0]},
        {"id": 1, "name": "background", "colour": colours[1]},
        {"id": 2, "name": "border", "colour": colours[2]},
    ]
    assert set(about["signatures"]) == {"serving_default", "pixels"}
    assert "image_bytes" in about["signatures"]["serving_default"]["inputs"]
    assert about["image_size"] == 32 and about["precision"] == "float32"
    assert about["litert"] == {}
    result = json.loads(pathlib.Path(run, "result.json").read_text())
    assert about["metrics"] == {"validation": result["best"], "test": result["test"]}
    where = about["provenance"]
    assert where["step"] == 1 and where["job_dir"] == run
    assert where["checkpoint"] == f"{run}/checkpoints/step-00000001.npz"
    assert where["settings"] == config.to_dict(trained.load(run).settings)
    assert tf.__version__ in where["exported_by"]["packages"].values()


def test_the_command_exports_what_the_run_did(run, tmp_path, tree, capsys):
    out = tmp_path / "out"
    assert export.main([f"--job_dir={run}", f"--output_dir={out}"]) == 0
    assert f"{out}/1: the model of step 1" in capsys.readouterr().out
    ours, theirs = tree(out / "1"), tree(pathlib.Path(run, "export", "1"))
    assert set(ours) == set(theirs)
    assert ours["model.json"] == theirs["model.json"]
    name = "variables/variables.data-00000-of-00001"
    assert ours[name] == theirs[name]
    assert [path.name for path in out.iterdir()] == ["1"]


@pytest.fixture
def whole_unet(monkeypatch):
    """Puts the U-Net back in the place of the model of one layer."""
    monkeypatch.setattr(model, "build_unet", BUILD_UNET)


def test_the_model_computes_in_the_precision_of_the_run_or_in_float32(whole_unet):
    settings = config.Config(image_size=32, precision="mixed_bfloat16")
    try:
        half = trained.build(settings, 3)
        named = checkpoint.named_variables(half)
        ours = trained.Trained(half, settings, ("a", "b", "c"), "", 1, {})
        assert exporting.in_precision(ours, "mixed_bfloat16") is half
        whole = exporting.in_precision(ours, "float32")
        assert {layer.compute_dtype for layer in whole.layers} == {"float32"}
        assert "bfloat16" in {layer.compute_dtype for layer in half.layers}
        found = checkpoint.values(checkpoint.named_variables(whole))
        for name, array in checkpoint.values(named).items():
            np.testing.assert_array_equal(found[name], array)
    finally:
        keras.config.set_dtype_policy("float32")


# ---------------------------------------------------------------------------
# Where it is put


def test_an_earlier_export_is_replaced_and_nothing_else(run, tmp_path, tree, capsys):
    out, args = tmp_path / "out", [f"--job_dir={run}", f"--output_dir={tmp_path}/out"]
    assert export.main([*args, "--litert=float"]) == 0
    assert (out / "1" / "model.tflite").exists()
    assert export.main(args) == 0
    assert not (out / "1" / "model.tflite").exists()
    (out / "1" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    capsys.readouterr()
    assert export.main(args) == 2
    told = capsys.readouterr().err
    assert "must be new or hold an earlier export" in told and "notes.txt" in told
    assert tree(tmp_path) == before
    with pytest.raises(ValueError, match="notes.txt"):  # It came after the look.
        placing.put(str(out / "1"), lambda folder: None)
    assert tree(tmp_path) == before


def test_the_command_to_serve_an_export_is_one_that_the_server_takes(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert export.main([f"--job_dir={run}", "--output_dir=my models/cars/"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1])
    base = f"{tmp_path}/my models/cars"
    assert command == ["tensorflow_model_server", f"--model_base_path={base}"]


def test_a_link_to_an_earlier_export_is_replaced_each_time(run, tmp_path):
    args = [f"--job_dir={run}", f"--output_dir={tmp_path}/out"]
    assert export.main(args) == 0
    (tmp_path / "out" / "1").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "1").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        assert export.main(args) == 0
        assert not (tmp_path / "out" / "1").is_symlink()
        assert os.listdir(tmp_path / "out") == ["1"]
    assert (tmp_path / "elsewhere" / "saved_model.pb").exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--job_dir={tmp}"], "job_dir must hold a run"),
        ([], "job_dir must be given"),
        (["--job_dir={run}", "--output_dir={tmp}/others"], "others/1/saved_model.pb"),
        (["--job_dir={run}", "--output_dir={tmp}/file"], "must be a directory"),
        (["--job_dir={run}", "--litert=half"], "litert must be one of"),
        (["--job_dir={run}", "--data_dir=d"], "data_dir must be given with litert"),
        (["--job_dir={run}", "--litert=int8", "--data_dir={tmp}/d"], "data_dir"),
        (
            ["--job_dir={run}", "--litert=float", "--calibration_examples=9"],
            "calibration_examples must be given with litert int8 or both, got 9 with",
        ),
        (["--job_dir={run}", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(
    run, tmp_path, tree, capsys, args, line
):
    (tmp_path / "others" / "1").mkdir(parents=True)
    (tmp_path / "others" / "1" / "saved_model.pb").write_bytes(b"another's")
    (tmp_path / "file").write_text("")
    before = tree(tmp_path)
    code = export.main([arg.format(run=run, tmp=tmp_path) for arg in args])
    told = capsys.readouterr().err
    assert code == 2 and line in told and len(told.splitlines()) == 1
    assert tree(tmp_path) == before


def test_a_killed_export_leaves_no_model_and_the_next_cleans_up(run, tmp_path):
    target, mine = tmp_path / "out" / "1", tmp_path / "out" / ".mine"
    script = (
        "import os, signal, sys; from trainer import placing\n"
        "def make(folder):\n"
        "    open(os.path.join(folder, 'saved_model.pb'), 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "placing.put(sys.argv[1], make)\n"
    )
    command = [sys.executable, "-c", script, str(target)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not target.exists()
    [left] = target.parent.iterdir()
    assert left.name == ".segtrainer-new-1"
    mine.write_text("")
    assert export.main([f"--job_dir={run}", f"--output_dir={target.parent}"]) == 0
    assert {path.name for path in target.parent.iterdir()} == {"1", ".mine"}


def test_an_export_that_stops_leaves_the_one_before(tmp_path, tree):
    def make(folder: str) -> None:
        pathlib.Path(folder, "saved_model.pb").write_text("new")
        pathlib.Path(folder, "model.json").write_text('{"program": "segtrainer"}')

    def lost() -> None:
        raise OSError("the lease is lost")

    with pytest.raises(OSError, match="lost"):
        placing.put(str(tmp_path / "out" / "1"), make, lost)
    assert list(tmp_path.iterdir()) == []
    placing.put(str(tmp_path / "1"), make)
    before = tree(tmp_path)
    with pytest.raises(OSError, match="lost"):
        placing.put(str(tmp_path / "1"), make, lost)
    assert tree(tmp_path) == before
    (tmp_path / "1").rename(tmp_path / ".segtrainer-old-1")  # By one that was killed.
    with pytest.raises(OSError, match="lost"):
        placing.put(str(tmp_path / "1"), make, lost)
    assert tree(tmp_path) == before


def test_in_a_bucket_the_model_is_the_last_to_come_and_the_first_to_go(
    run, gcs, gcs_bucket, gcs_here
):
    where = f"gs://{gcs_bucket}/out"
    args = [f"--job_dir={run}", f"--output_dir={where}"]
    assert export.main([*args, "--litert=float"]) == 0
    whole = set(gcs.names(gcs_bucket, "out/1/"))
    assert {"out/1/saved_model.pb", "out/1/model.tflite"} < whole
    seen = []

    def make(folder: str) -> None:
        for name in ("saved_model.pb", "variables/v", "a.pb"):
            pathlib.Path(folder, name).parent.mkdir(exist_ok=True)
            pathlib.Path(folder, name).write_text("new")
        pathlib.Path(folder, "model.json").write_text('{"program": "segtrainer"}')

    def fence() -> None:
        seen.append({name.removeprefix("out/1/") for name in gcs.names(gcs_bucket)})

    placing.put(f"{where}/1", make, fence)
    # At each of these moments a kill may come: no model, or a whole one, known as ours.
    for names in seen[1:]:
        assert "saved_model.pb" not in names
        assert "model.json" in names or not names
    assert gcs.get(f"{where}/1/saved_model.pb") == b"new"
    loaded = export.main(args)
    assert loaded == 2  # a.pb is none of ours.
    tf.io.gfile.remove(f"{where}/1/a.pb")
    assert export.main(args) == 0
    assert whole - {"out/1/model.tflite"} == set(gcs.names(gcs_bucket, "out/1/"))
    again = tf.saved_model.load(f"{where}/1").signatures["serving_default"]
    assert again(image_bytes=tf.constant([png(4, 4)]))["mask_bytes"].shape == (1,)


# ---------------------------------------------------------------------------
# In the end of a run


def test_in_a_job_of_vertex_ai_the_model_is_where_it_looks_for_it(
    tmp_path, tiny_unet, monkeypatch, capsys
):
    target = tmp_path / "base" / "model"
    target.mkdir(parents=True)
    monkeypatch.setenv("AIP_MODEL_DIR", f"{target}/")
    assert task.main(SMALL) == 0
    assert "model, to serve: " in capsys.readouterr().out
    assert {"saved_model.pb", "model.json", "variables"} <= set(os.listdir(target))
    assert not (tmp_path / "base" / "export").exists()
    assert not [name for name in os.listdir(tmp_path / "base") if "segtrainer" in name]
    result = json.loads((tmp_path / "base" / "result.json").read_text())
    assert result["export"] == f"{target}/" and result["seconds_of"]["exporting"] > 0


def test_what_is_in_the_way_of_the_export_is_told_before_training(
    tmp_path, tiny_unet, refused
):
    target = tmp_path / "run" / "export" / "1"
    target.mkdir(parents=True)
    (target / "saved_model.pb").write_bytes(b"another's")
    (tmp_path / "run" / "config.json").write_text('{"program": "segtrainer"}')
    line = refused(f"--job_dir={tmp_path}/run", *SMALL)
    assert line.startswith("export must be new or hold an earlier export")


def test_a_failed_export_keeps_the_run_which_the_same_command_finishes(
    tmp_path, tiny_unet, monkeypatch, capsys
):
    job_dir, args = tmp_path / "run", [f"--job_dir={tmp_path}/run", *SMALL]

    def full(*_) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exporting.serving, "save", full)
        assert task.main(args) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"segtrainer: no model could be exported to {job_dir}/export/1: No space left on "
        "device; step-00000001 is kept, the same command goes on from it"
    )
    assert not (job_dir / "export").exists() and not (job_dir / "result.json").exists()
    rows = (job_dir / "metrics.jsonl").read_bytes()
    assert task.main(args) == 0
    assert (job_dir / "export" / "1" / "saved_model.pb").exists()
    assert json.loads((job_dir / "result.json").read_text())["step"] == 1
    assert (job_dir / "metrics.jsonl").read_bytes() == rows


def test_noexport_exports_nothing(tmp_path, tiny_unet, capsys):
    assert task.main([f"--job_dir={tmp_path}/run", "--noexport", *SMALL]) == 0
    assert "to serve" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "export").exists()
    assert json.loads((tmp_path / "run/result.json").read_text())["export"] is None


def test_what_a_run_that_is_done_was_not_asked_for_is_made_when_it_is(
    tmp_path, tiny_unet, capfd
):
    flags = [f"--job_dir={tmp_path}/run", *SMALL]
    assert task.main([*flags, "--noexport", "--test_split=none"]) == 0
    first = json.loads((tmp_path / "run/result.json").read_text())
    assert task.main(flags) == 0
    assert "This run is done" not in capfd.readouterr().err
    assert (tmp_path / "run" / "export" / "1" / "saved_model.pb").exists()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["export"] and result["test"]["mean_iou"] is not None
    for name in ("total_seconds", "seconds_to_first_step", "peak_memory_bytes"):
        assert result[name] == first[name] > 0
    assert task.main(flags) == 0
    assert "This run is done" in capfd.readouterr().err


def test_of_two_replicas_the_same_is_exported_as_of_their_checkpoint(
    tmp_path, tiny_unet, tree, monkeypatch
):
    # They are made once a process, by conftest.
    monkeypatch.setattr(
        tf.config, "set_logical_device_configuration", lambda cpu, devices: None
    )
    job_dir = tmp_path / "run"
    args = ["--num_cpu_devices=2", "--global_batch_size=2"]
    assert task.main([f"--job_dir={job_dir}", *SMALL[:-2], SMALL[-1], *args]) == 0
    assert export.main([f"--job_dir={job_dir}", f"--output_dir={tmp_path}/out"]) == 0
    ours, theirs = tree(job_dir / "export"), tree(tmp_path / "out")
    for name in ("model.json", "variables/variables.data-00000-of-00001"):
        assert ours[f"1/{name}"] == theirs[f"1/{name}"]


@pytest.mark.slow
def test_the_chief_of_two_workers_exports_what_predict_computes(tmp_path, whole_unet):
    job_dir = tmp_path / "run"
    flags = [f"--job_dir={job_dir}", *SMALL, "--encoder_weights=none"]
    processes = cluster.start(2, flags, tmp_path / "log")
    assert cluster.end(processes) == [0, 0], (tmp_path / "log-0").read_text()
    assert_served_as_predicted(job_dir, job_dir / "export" / "1", tmp_path)
    told = [(tmp_path / f"log-{index}").read_text() for index in (0, 1)]
    assert not [text for text in told if "Traceback" in text]
