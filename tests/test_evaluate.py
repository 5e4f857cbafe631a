"""A run's model judged after the run: the figures of the run itself, and by hand."""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import one_layer
from PIL import Image

from trainer import (
    boundaries,
    checkpoint_folder,
    dataset,
    evaluate,
    inference,
    metrics,
    model,
    pipeline,
    records,
    scoring,
    task,
    trained,
)
from trainer.examples import Examples

SIZE, NAMES = 32, ["ground", "disc"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, shapes):
    """Trains a model of one layer once, on shapes with ignored pixels; its job_dir."""
    data_dir = shapes(train=10, test=7, extra=3)
    job_dir = tmp_path_factory.mktemp("run")
    places = (f"--data_dir={data_dir}", f"--job_dir={job_dir}", "--dataset=shapes")
    masks = ("--image_feature=photo", "--mask_feature=labels", "--ignore_id=255")
    steps = ("--total_steps=6", "--eval_every_steps=2", "--batch_size=2")
    more = (f"--image_size={SIZE}", "--val_fraction=0.4", "--learning_rate=0.01")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "build_unet", one_layer)
        names = f"--class_names={','.join(NAMES)}"
        assert task.main([*places, *masks, *steps, *more, names]) == 0
        yield job_dir


@pytest.fixture
def run(made, tmp_path, tiny_unet):
    """Returns a copy of that run, of the test's own."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def evaluated(run: pathlib.Path, *flags: str, name: str = "evaluation-test") -> dict:
    """Returns what an evaluation writes, by its file's name."""
    assert evaluate.main([f"--job_dir={run}", *flags]) == 0
    return json.loads((run / f"{name}.json").read_text())


def result(run: pathlib.Path) -> dict:
    return json.loads((run / "result.json").read_text())


def opened(run: pathlib.Path) -> dataset.Dataset:
    return trained.open_dataset(trained.load(str(run)).settings)


def stored(run: pathlib.Path, split: str = "test"):
    """Yields image and mask of each example, at its own size."""
    of = opened(run)
    part = getattr(of, split)
    examples = Examples(part.files, part.file_lengths, None)
    for id in part.ids:
        image, mask = records.decode_whole(
            of, tf.constant(examples.serialized(int(id)))
        )
        yield image.numpy(), mask.numpy()[..., 0]


def counted(pairs) -> list:
    """Returns the confusion matrix of (mask, prediction) pairs, pixel by pixel."""
    confusion = np.zeros((2, 2), np.int64)
    for mask, prediction in pairs:
        for true in (0, 1):
            for given in (0, 1):
                confusion[true, given] += ((mask == true) & (prediction == given)).sum()
    return confusion.tolist()


def shrunk(image: np.ndarray) -> np.ndarray:
    square = tf.image.resize(image, (SIZE, SIZE), method="bilinear")
    return np.clip(np.rint(square), 0, 255).astype(np.float32)


def test_a_run_whose_encoder_was_fetched_is_judged_without_fetching(run):
    written = json.loads((run / "config.json").read_text())
    written["settings"] |= {"encoder_alpha": 0.5, "download": True}
    (run / "config.json").write_text(json.dumps(written))
    assert evaluated(run)["examples"] == 7


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16, "1e12"])
def test_at_the_models_size_figures_are_those_of_the_run(run, batch_size):
    found = evaluated(run, f"--batch_size={batch_size}")
    expected = result(run)["test"]
    del expected["loss"]
    assert expected == {name: found["metrics"][name] for name in expected}
    assert found["examples"] == 7
    assert found["step"] == result(run)["best"]["step"]


def test_the_means_are_over_the_classes(run):
    found = evaluated(run)["metrics"]
    dice = [found[f"dice/{name}"] for name in NAMES]
    assert found["mean_dice"] == pytest.approx(sum(dice) / 2)


@pytest.mark.parametrize("flip", [False, True])
def test_at_the_original_size_each_stored_pixel_is_counted_but_the_ignored(run, flip):
    network = trained.load(str(run)).model
    pairs, pixels, ignored = [], 0, 0
    for image, mask in stored(run):
        seen = shrunk(image)[None]
        probabilities = tf.nn.softmax(network(seen))
        if flip:
            mirrored = tf.nn.softmax(network(seen[:, :, ::-1]))
            probabilities = (probabilities + mirrored[:, :, ::-1]) / 2
        own = tf.image.resize(probabilities, mask.shape)[0]
        pairs.append((mask, np.argmax(own, -1)))
        pixels += mask.size
        ignored += (mask == 255).sum()
    assert ignored > 0
    flags = ["--at=original", *(["--tta=flip"] if flip else [])]
    name = "evaluation-test-original" + ("-flip" if flip else "")
    for batch_size in (1, 3, 16):
        found = evaluated(run, *flags, f"--batch_size={batch_size}", name=name)
        assert found["confusion"] == counted(pairs)
        assert np.sum(found["confusion"]) == pixels - ignored


def test_at_any_size_masks_are_resized_and_probabilities_after_the_model(run):
    network = trained.load(str(run)).model
    for side in (20, 48):
        pairs = []
        for image, mask in stored(run):
            own = tf.image.resize(
                tf.nn.softmax(network(shrunk(image)[None])), [side] * 2
            )
            small = tf.image.resize(mask[..., None], [side] * 2, method="nearest")
            pairs.append((small[..., 0].numpy(), np.argmax(own[0], -1)))
        found = evaluated(run, f"--at={side}", name=f"evaluation-test-{side}")
        assert found["confusion"] == counted(pairs)
        assert found["at"] == str(side)
    assert (
        evaluated(run, f"--at={SIZE}", name=f"evaluation-test-{SIZE}")["metrics"]
        == (evaluated(run)["metrics"])
    )


def test_boundaries_are_those_of_each_example_summed(tmp_path, tiny_unet, pets):
    flags = [f"--job_dir={tmp_path}", f"--data_dir={pets(6, n_test=3)}"]
    flags += ["--total_steps=1", "--batch_size=2", f"--image_size={SIZE}"]
    assert task.main([*flags, "--val_fraction=0.4"]) == 0
    found = evaluated(tmp_path, "--at=original", name="evaluation-test-original")
    network = trained.load(str(tmp_path)).model
    counts = np.zeros((3, 4), np.int64)
    for image, mask in stored(tmp_path):
        own = tf.image.resize(tf.nn.softmax(network(shrunk(image)[None])), mask.shape)
        counts += boundaries.counts(mask, np.argmax(own[0], -1), 3)
    assert counts[:, boundaries.TRUE].all()
    expected = boundaries.summary(counts, ["pet", "background", "border"])
    assert expected == {name: found["metrics"][name] for name in expected}
    assert {one["file_name"] for one in found["worst"]} == {
        *("test_0.jpg", "test_1.jpg", "test_2.jpg")
    }


def test_where_all_seams_are_ignored_boundaries_say_nothing(run, capsys):
    found = evaluated(run, "--at=original", name="evaluation-test-original")
    names = ["mean_boundary_f", "boundary_f/ground", "boundary_f/disc"]
    assert [found["metrics"][name] for name in names] == [None] * 3
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "test, 7 examples, original size:"
    assert table[1].split() == ["class", "IoU", "Dice", "boundary", "F"]
    assert table[3].startswith("disc") and table[3].endswith(" -")


def test_windows_slide_over_the_stored_pixels(run):
    network = trained.load(str(run)).model
    see = inference.make_probabilities(network)
    for overlap, name in ((0.5, ""), (0.75, "-overlap0.75")):
        pairs = [
            (mask, np.argmax(inference.slide(see, image, SIZE, overlap=overlap), -1))
            for image, mask in stored(run)
        ]
        name = f"evaluation-test-original-slide{name}"
        flags = ("--at=original", "--window=slide", f"--overlap={overlap}")
        for batch_size in (1, 4):
            found = evaluated(run, *flags, f"--batch_size={batch_size}", name=name)
            assert found["confusion"] == counted(pairs)
            assert found["overlap"] == overlap


def test_val_is_what_the_run_held_out(run):
    found = evaluated(run, "--split=val", name="evaluation-val")
    expected = result(run)["best"]
    for name in ("mean_iou", "pixel_accuracy", *(f"iou/{name}" for name in NAMES)):
        assert found["metrics"][name] == expected[f"val_{name}"]
    assert found["examples"] == 4


def test_train_is_without_what_was_held_out(run):
    found = evaluated(run, "--split=train", name="evaluation-train")
    assert found["examples"] == 6
    of = opened(run)
    assert not set(of.train.ids) & set(of.val.ids)
    network = trained.load(str(run)).model
    pairs = []
    for image, mask in stored(run, "train"):
        small = tf.image.resize(mask[..., None], (SIZE, SIZE), method="nearest")
        logits = network(shrunk(image)[None])[0]
        pairs.append((small[..., 0].numpy(), np.argmax(logits, -1)))
    assert found["confusion"] == counted(pairs)


def test_another_split_is_taken_as_it_is_stored(run):
    assert evaluated(run, "--split=extra", name="evaluation-extra")["examples"] == 3


def test_of_a_limited_split_the_first_of_each_shard_are_taken(run):
    found = evaluated(run, "--limit_examples=2", name="evaluation-test-first2")
    assert found["examples"] == 2
    assert 0 < np.sum(found["confusion"]) <= 2 * SIZE**2


def test_the_latest_checkpoint_is_that_of_the_last_step(run):
    at = checkpoint_folder.pointer(str(run / "checkpoints"))
    checkpoint_folder.move_pointer(
        str(run / "checkpoints"), latest=at["latest"], best="step-00000004"
    )
    assert evaluated(run)["step"] == 4
    latest = evaluated(run, "--checkpoint=latest", name="evaluation-test-latest")
    assert latest["step"] == 6


def test_the_worst_are_those_of_the_lowest_mean_iou(run):
    found = evaluated(
        run, "--at=original", "--worst=3", name="evaluation-test-original"
    )
    network = trained.load(str(run)).model
    ious = []
    for image, mask in stored(run):
        own = tf.image.resize(tf.nn.softmax(network(shrunk(image)[None])), mask.shape)
        confusion = np.array(counted([(mask, np.argmax(own[0], -1))]))
        ious.append(metrics.summary(confusion, NAMES)["mean_iou"])
    assert [one["mean_iou"] for one in found["worst"]] == sorted(ious)[:3]
    worst = found["worst"][0]
    of = opened(run).test
    examples = Examples(of.files, of.file_lengths, None)
    assert worst["stored_as"] == examples.name(int(np.argmin(ious)))
    picture = run / "pictures" / "evaluation-test-original.png"
    assert found["picture"] == str(picture)
    with Image.open(picture) as drawn:
        width, height = drawn.size
    assert width > 4 * 256 and 3 * 256 < height < 5 * 256


def test_none_is_drawn_where_none_is_asked_for(run):
    found = evaluated(run, "--worst=0")
    assert found["worst"] == [] and found["picture"] is None
    assert not (run / "pictures" / "evaluation-test.png").exists()


def test_an_earlier_picture_goes_and_anothers_stays(run, tmp_path, refused):
    picture = run / "pictures" / "evaluation-test.png"
    for worst, drawn in ((2, True), (0, False), (1, True), (3, True)):
        assert bool(evaluated(run, f"--worst={worst}")["picture"]) == drawn
        assert picture.exists() == drawn
    mine = tmp_path / "out" / "pictures" / "evaluation-test.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    flags = (f"--job_dir={run}", f"--output_dir={tmp_path / 'out'}")
    for more in ("--worst=1", "--worst=0"):
        told = refused(*flags, more, main=evaluate.main)
        assert told.startswith(f"{mine} must be of {tmp_path}/out/evaluation-test.json")
        assert mine.read_text() == "mine"
    mine.unlink()
    assert evaluate.main([*flags, "--worst=0"]) == 0
    mine.write_text("mine")
    assert "does not name; remove it, or give another" in refused(
        *flags, main=evaluate.main
    )


def test_ways_of_looking_do_not_write_over_one_another(run):
    before = {path.name for path in run.iterdir()}
    for flags in (
        [],
        ["--tta=flip"],
        ["--at=original"],
        ["--at=original", "--tta=flip", "--window=slide"],
        ["--checkpoint=latest"],
        ["--split=val"],
        ["--limit_examples=1"],
        [],
    ):
        assert evaluate.main([f"--job_dir={run}", *flags]) == 0
    assert {path.name for path in run.iterdir()} - before == {
        *("evaluation-test.json", "evaluation-test-flip.json"),
        *("evaluation-test-original.json", "evaluation-test-original-flip-slide.json"),
        *("evaluation-test-latest.json", "evaluation-val.json"),
        "evaluation-test-first1.json",
    }


def test_other_data_do_not_write_over_an_evaluation(run, shapes, tmp_path, refused):
    evaluated(run)
    before = (run / "evaluation-test.json").read_text()
    flags = (f"--job_dir={run}", f"--data_dir={shapes(train=10, test=2, seed=1)}")
    told = refused(*flags, main=evaluate.main)
    assert "evaluation-test.json must be of data_dir" in told
    assert told.endswith("give another --output_dir")
    assert (run / "evaluation-test.json").read_text() == before
    out = tmp_path / "out"
    assert evaluate.main([*flags, f"--output_dir={out}"]) == 0
    assert json.loads((out / "evaluation-test.json").read_text())["examples"] == 2
    assert (out / "pictures" / "evaluation-test.png").exists()
    (run / "evaluation-val.json").write_text("a note of mine")
    told = refused(f"--job_dir={run}", "--split=val", main=evaluate.main)
    assert "got one of another program" in told
    assert (run / "evaluation-val.json").read_text() == "a note of mine"


def test_other_runs_do_not_write_over_an_evaluation(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "other")
    out = f"--output_dir={tmp_path / 'out'}"
    for path in (run, f"{run}/"):
        assert evaluate.main([f"--job_dir={path}", out]) == 0
    told = refused(f"--job_dir={tmp_path / 'other'}", out, main=evaluate.main)
    assert "evaluation-test.json must be of job_dir" in told


def test_a_place_is_the_same_however_it_is_called(
    run, shapes, tmp_path, monkeypatch, refused
):
    data_dir = pathlib.Path(shapes(train=10, test=2, seed=1))
    out = f"--output_dir={tmp_path / 'out'}"
    monkeypatch.chdir(tmp_path)
    relative = f"--data_dir={os.path.relpath(data_dir, tmp_path)}"
    for called in (f"--data_dir={data_dir}", f"--data_dir={data_dir}/", relative):
        assert evaluate.main([f"--job_dir={run}", out, called]) == 0
        assert evaluate.main(["--job_dir=run", out, called]) == 0
    path = tmp_path / "out" / "evaluation-test.json"
    written = json.loads(path.read_text())
    written["data_dir"] += "/"  # As it was before.
    path.write_text(json.dumps(written))
    assert evaluate.main(["--job_dir=run", out, relative]) == 0
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(run, tmp_path / "elsewhere" / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    flags = ("--job_dir=run", out, f"--data_dir={data_dir}")
    assert "must be of job_dir" in refused(*flags, main=evaluate.main)


def test_a_run_is_evaluated_where_its_data_have_moved_to(run, tmp_path, refused):
    settings = trained.load(str(run)).settings
    moved = shutil.copytree(str(settings.data_dir), tmp_path / "moved")
    written = json.loads((run / "config.json").read_text())
    written["settings"]["data_dir"] = "/nowhere/at/all"
    (run / "config.json").write_text(json.dumps(written))
    told = refused(f"--job_dir={run}", main=evaluate.main)
    assert told.startswith(
        "data_dir must be a directory, got /nowhere/at/all: there is "
    )
    assert told.endswith("--data_dir=...")
    expected = result(run)["test"]["mean_iou"]
    found = evaluated(run, f"--data_dir={moved}")
    assert found["metrics"]["mean_iou"] == expected


def test_what_cannot_be_evaluated_is_refused(run, tmp_path, shapes, pets, refused):
    def told(*flags: str, job_dir: object = run) -> str:
        return refused(f"--job_dir={job_dir}", *flags, main=evaluate.main)

    before = sorted(path.name for path in run.rglob("*"))
    assert refused(main=evaluate.main) == "job_dir must be given: --job_dir=..."
    assert "must hold a run" in told(job_dir=tmp_path / "none")
    assert told("--split=valid") == (
        "split must be a split of shapes, got 'valid'; it has train, test, extra"
    )
    assert told("--window=slide").endswith("got slide; add --at=original")
    other = shapes(train=8, test=2)
    assert "split val must be what the run cut" in told(
        "--split=val", f"--data_dir={other}"
    )
    assert "must hold the TFDS data set shapes" in told(f"--data_dir={pets(4)}")
    assert told("--window=slide", "--at=64").endswith("got slide; add --at=original")
    assert told("--overlap=0.3", "--at=original").startswith(
        "overlap must be given with --window=slide, got 0.3 with whole; add --window="
    )
    for at in ("both", "0", "12.5", "10000"):
        assert "at must be model, original or a side" in told(f"--at={at}")
    assert "worst must be at most 64" in told("--worst=65")
    (tmp_path / "file").write_text("")
    assert "output_dir must be a directory" in told(f"--output_dir={tmp_path / 'file'}")
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_run_without_test_split_is_told_what_there_is(run, tmp_path, shapes, refused):
    data_dir = shapes(train=10)
    told = refused(f"--job_dir={run}", f"--data_dir={data_dir}", main=evaluate.main)
    assert told == "split must be a split of shapes, got 'test'; it has train"


def test_other_classes_than_the_models_are_refused(run, refused):
    written = json.loads((run / "config.json").read_text())
    written["settings"]["class_names"] = ["disc", "ground"]
    (run / "config.json").write_text(json.dumps(written))
    told = refused(f"--job_dir={run}", main=evaluate.main)
    assert "the model's classes, ground, disc, got" in told
    assert told.endswith("with disc, ground")


def test_a_damaged_example_stops_it_and_is_named(run, tmp_path, capsys):
    source = str(trained.load(str(run)).settings.data_dir)
    moved = pathlib.Path(shutil.copytree(source, tmp_path / "moved"))
    [file, *_] = sorted(moved.rglob("*-test.tfrecord-*"))
    found = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(file)) as writer:
        for index, record in enumerate(found):
            cut = record.replace(b"IDAT", b"IDXX") if index == 1 else record
            writer.write(cut)
    capsys.readouterr()
    assert evaluate.main([f"--job_dir={run}", f"--data_dir={moved}"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert f"example 1 of {file} cannot be decoded" in err.splitlines()[-1]
    assert not (run / "evaluation-test.json").exists()


def test_few_examples_are_in_memory_at_once(run, monkeypatch):
    monkeypatch.setattr(pipeline, "THREADS", 1)
    of = opened(run)
    many = dataclasses.replace(of.test, ids=np.tile(of.test.ids, 6))
    reads = []

    def look(examples):
        assert len(examples) <= 2
        reads.extend(examples)
        yield from (np.zeros(one.mask.shape, np.uint8) for one in examples)

    scored = scoring.run(of, many, look, SIZE, 2, at=None)
    next(scored)
    assert len(reads) <= 4
    assert len(list(scored)) == len(many.ids) - 1


def test_a_run_in_a_bucket_is_evaluated_there(run, gcs, gcs_bucket, gcs_here, tmp_path):
    where = f"gs://{gcs_bucket}"
    gcs.upload(run, f"{where}/run")
    gcs.upload(str(trained.load(str(run)).settings.data_dir), f"{where}/data")
    flags = (f"--job_dir={where}/run", f"--data_dir={where}/data")
    assert evaluate.main([*flags, "--at=original", "--worst=2"]) == 0
    path = f"{where}/run/evaluation-test-original.json"
    with tf.io.gfile.GFile(path) as file:
        found = json.load(file)
    here = evaluated(run, "--at=original", name="evaluation-test-original")
    assert found["confusion"] == here["confusion"]
    assert "run/pictures/evaluation-test-original.png" in gcs.names(gcs_bucket, "run/")
