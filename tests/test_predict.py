"""Photographs of any kind and size become masks; what cannot be read is named."""

import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer import decoding, inference, overlay, pictures, predict, task, trained


@pytest.fixture
def run(pets, tiny_unet, tmp_path):
    """Trains a model of one layer for a step; returns its job_dir."""
    job_dir = str(tmp_path / "run")
    flags = (f"--data_dir={pets(4)}", "--image_size=32", "--val_fraction=0.5")
    assert (
        task.main([f"--job_dir={job_dir}", "--total_steps=1", "--batch_size=2", *flags])
        == 0
    )
    return job_dir


@pytest.fixture
def photos(tmp_path):
    """Returns a folder of photographs of different sizes, two of the same name."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name, size in {
        "a.png": (40, 50),
        "b.jpg": (61, 33),
        "sub/a.png": (9, 7),
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return folder


def predicted(run: str, out: pathlib.Path, *args: str) -> int:
    return predict.main([f"--job_dir={run}", f"--output_dir={out}", *args])


def file_of(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_each_photograph_gets_an_indexed_mask_of_its_size(
    run, photos, tmp_path, capsys
):
    out = tmp_path / "out"
    assert predicted(run, out, str(photos), "--batch_size=2") == 0
    assert "3 masks in" in capsys.readouterr().out
    model = trained.load(run)
    probabilities = inference.make_probabilities(model.model)
    for name in ("a.png", "b.jpg", "sub/a.png"):
        image = tf.io.decode_image((photos / name).read_bytes(), 3).numpy()
        [expected] = inference.whole(probabilities, [image], 32)
        stem = name.rsplit(".", 1)[0]
        mask = Image.open(out / f"{stem}.png")
        assert mask.mode == "P" and mask.size == image.shape[1::-1]
        np.testing.assert_array_equal(mask, np.argmax(expected, -1))
        assert Image.open(out / f"{stem}_overlay.jpg").size == mask.size
        assert mask.getpalette()[:9] == pictures.palette(3).ravel().tolist()
    classes = json.loads((out / "classes.json").read_text())["classes"]
    assert [c["name"] for c in classes] == ["pet", "background", "border"]


@pytest.mark.parametrize("more", ["--tta=flip", "--window=slide"])
def test_probabilities_are_those_of_the_mask(run, photos, tmp_path, more):
    out = tmp_path / "out"
    flags = ("--probabilities", "--nooverlays", more)
    assert predicted(run, out, *flags, str(photos / "a.png")) == 0
    found = np.load(out / "a.npz")["probabilities"]
    assert found.shape == (40, 50, 3) and found.dtype == np.float16
    np.testing.assert_allclose(found.sum(-1), 1, atol=2e-3)
    chosen = np.take_along_axis(
        found, np.asarray(Image.open(out / "a.png"))[..., None], 2
    )
    assert (chosen[..., 0] == found.max(-1)).all()
    assert sorted(p.name for p in out.iterdir()) == ["a.npz", "a.png", "classes.json"]


def test_what_cannot_be_read_is_named_and_the_rest_is_done(
    run, photos, tmp_path, capsys, caplog
):
    (photos / "cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:200])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.png").write_text("no picture")
    out = tmp_path / "out"
    assert predicted(run, out, str(photos)) == 1
    told = caplog.text + capsys.readouterr().err
    for name in ("cut.jpg", "empty.png: is empty", "text.png: is no JPEG", "3 of 6"):
        assert name in told
    assert len(list(out.rglob("*a.png"))) == 2 and not (out / "cut.png").exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nowhere.png"], "images must be files, folders"),
        ([], "images must be given"),
        (["{photos}", "--output_dir={photos}"], "must not be where an image"),
        (["{photos}", "{photos}/a.jpg"], "images must have different names"),
        (["{photos}", "--job_dir={photos}"], "job_dir must hold a run"),
    ],
)
def test_nothing_is_written_where_it_is_refused(
    run, photos, tmp_path, capsys, args, line
):
    if any("a.jpg" in arg for arg in args):
        (photos / "a.jpg").write_bytes((photos / "b.jpg").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    code = predicted(run, tmp_path / "out", *(a.format(photos=photos) for a in args))
    assert code == 2 and line in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_exif_says(orientation):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[274] = orientation
    data = file_of(pixels, "JPEG", quality=100, exif=exif)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    found = decoding.decode(data)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 8  # Of two JPEG decoders.


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_of_file_is_read(kind, channels):
    grey = np.arange(0, 240, 10, np.uint8).reshape(4, 6)
    pixels = grey if channels == 1 else np.stack([grey] * 3, -1)
    data = file_of(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decoding.decode(data), np.stack([grey] * 3, -1))


def test_edges_are_where_classes_meet():
    ids = np.zeros((5, 8), np.uint8)
    ids[:, 4:] = 1
    np.testing.assert_array_equal(
        overlay.edges(ids, 2), np.tile([0, 0, 1, 1, 1, 1, 0, 0], (5, 1)).astype(bool)
    )
