"""Photographs of any kind and size become masks; what cannot be read is named."""

import io
import json
import os
import pathlib
import shutil
import struct

import numpy as np
import pytest
import tensorflow as tf
from conftest import one_layer
from PIL import Image, ImageOps

from benchmarks import predict as benchmark
from trainer import (
    decoding,
    index,
    inference,
    model,
    overlay,
    photographs,
    pictures,
    pipeline,
    predict,
    resizing,
    task,
    trained,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains a model of one layer for a step, once; returns its job_dir."""
    job_dir = str(tmp_path_factory.mktemp("run"))
    flags = ("--image_size=32", "--limit_train_examples=8", "--limit_eval_examples=2")
    flags += ("--test_split=none", "--noexport")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "build_unet", one_layer)
        steps = ("--total_steps=1", "--batch_size=2")
        assert task.main([f"--job_dir={job_dir}", *steps, *flags]) == 0
        yield job_dir


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


def opened(path: pathlib.Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


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
    probabilities = inference.make_probabilities(trained.load(run).model)
    for name in ("a.png", "b.jpg", "sub/a.png"):
        image = tf.io.decode_image((photos / name).read_bytes(), 3).numpy()
        seen = probabilities(resizing.image(image, 32)[None])
        [expected] = tf.image.resize(seen, image.shape[:2], method="bilinear")
        stem = name.rsplit(".", 1)[0]
        mask = opened(out / f"{stem}.png")
        assert mask.mode == "P" and mask.size == image.shape[1::-1]
        np.testing.assert_array_equal(mask, np.argmax(expected, -1))
        assert opened(out / f"{stem}_overlay.jpg").size == mask.size
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
    chosen = np.take_along_axis(found, np.asarray(opened(out / "a.png"))[..., None], 2)
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


def test_what_cannot_be_written_is_named_and_the_rest_is_done(
    run, photos, tmp_path, capsys, caplog
):
    long = photos / f"{'a' * 246}.png"  # With _overlay.jpg it is no name of a file.
    shutil.copy(photos / "a.png", long)
    assert predicted(run, tmp_path / "out", str(photos)) == 1
    told = caplog.text + capsys.readouterr().err
    assert f"skipped {long}: " in told and "1 of 4 images could not be" in told
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert names == ["a.png", "a.png", "b.png"]
    index = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert index["images"].keys() == {"a", "b", "sub/a"}
    assert predicted(run, tmp_path / "bare", str(photos), "--nooverlays") == 0


@pytest.mark.parametrize("size, shrunk", [((66000, 8), 8), ((140000, 1), 1)])
def test_a_photograph_that_is_too_long_for_jpeg_has_a_shorter_overlay(
    run, photos, tmp_path, size, shrunk
):
    Image.new("RGB", size).save(photos / "LONG.png")
    assert predicted(run, tmp_path, str(photos)) == 0
    assert opened(tmp_path / "LONG.png").size == size
    assert opened(tmp_path / "LONG_overlay.jpg").size == (65500, shrunk)


def test_a_full_disk_is_not_taken_for_one_photographs_fault(
    run, photos, tmp_path, monkeypatch, capsys
):
    from trainer import files

    def full(path, data):
        raise tf.errors.ResourceExhaustedError(None, None, f"{path}; No space left")

    write = files.write
    monkeypatch.setattr(
        files, "write", lambda *a: (write if a[0].endswith(".json") else full)(*a)
    )
    assert predicted(run, tmp_path / "out", str(photos)) == 1
    assert capsys.readouterr().err.endswith("_overlay.jpg; No space left\n")
    told = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert not told["images"] and not told["endings"]  # None of them is ours.


def test_what_another_prediction_has_made_meanwhile_is_not_taken_back(tmp_path):
    index.write(str(tmp_path), {}, {}, {"a": "a.jpg", "b": "b.jpg"}, [".png", ".npz"])
    about = json.loads((tmp_path / "classes.json").read_text())
    about |= {"classes": [], "checkpoint": "c", "step": 1}
    (tmp_path / "classes.json").write_text(json.dumps(about))
    (tmp_path / "b.png").write_bytes(b"of another prediction")
    index.take_back(str(tmp_path), {}, ["a", "b"])
    left = json.loads((tmp_path / "classes.json").read_text())
    assert left == about | {"images": {"b": "b.jpg"}, "endings": {"b": [".png"]}}


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nowhere.png"], "images must be files, folders"),
        ([], "images must be given"),
        (["{photos}", "--output_dir={photos}"], "must not be where an image"),
        (["{photos}", "{photos}/a.jpg"], "images must have different names"),
        (["{photos}", "--job_dir={photos}"], "job_dir must hold a run"),
        (["{photos}", "--job_dir={photos}/a.png"], "job_dir must hold a run"),
        (
            ["{photos}", "--output_dir={photos}/b.jpg"],
            "directory, got the file {photos}",
        ),
        (["{photos}", "--output_dir={photos}/in_the_way"], "in_the_way/v"),
        (["{photos}/*.tif", "{photos}"], "{photos}/*.tif: nothing is there"),
        (["{photos}", "--window=slide", "--overlap=1"], "overlap must be at most 0.9"),
        (["{photos}", "--overlap=0.3"], "got 0.3 with whole; add --window=slide, or"),
        (["{photos}", "--tta=twice"], "tta must be one of none, flip"),
        (["{photos}", "--overlay"], "Unknown command line flag 'overlay'"),
    ],
)
def test_nothing_is_written_where_it_is_refused(
    run, photos, tmp_path, capsys, args, line
):
    if any("a.jpg" in arg for arg in args):
        (photos / "a.jpg").write_bytes((photos / "b.jpg").read_bytes())
    if any("in_the_way" in arg for arg in args):  # Of the second of two new folders.
        for name in ("u/x.png", "v/x.png"):
            (photos / name).parent.mkdir()
            shutil.copy(photos / "a.png", photos / name)
        (photos / "in_the_way").mkdir()
        (photos / "in_the_way" / "v").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    code = predicted(run, tmp_path / "out", *(a.format(photos=photos) for a in args))
    told = capsys.readouterr().err
    assert code == 2 and line.format(photos=photos) in told
    assert len(told.splitlines()) == 1 and "Traceback" not in told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_exif_says(orientation):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[274] = orientation
    data = file_of(pixels, "JPEG", quality=100, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    found = decoding.decode(data)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 8  # Of two JPEG decoders.


# How a picture is stored whose place EXIF tells so. Source: EXIF 2.32, tag 274,
# Orientation: where row 0 and column 0 are.
STORED = {
    0: lambda upright: upright,
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
    9: lambda upright: upright,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_of_each_orientation_comes_back_upright(kind, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    data = file_of(np.ascontiguousarray(STORED[orientation](upright)), kind, exif=exif)
    np.testing.assert_array_equal(decoding.decode(data), upright)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_of_file_is_read(kind, channels):
    grey = np.arange(0, 240, 10, np.uint8).reshape(4, 6)
    pixels = grey if channels == 1 else np.stack([grey] * 3, -1)
    data = file_of(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decoding.decode(data), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("bits", [16, 32])
def test_a_bmp_of_16_or_32_bits_is_read(bits):
    """As Pillow reads but does not write them: a red pixel, a blue one."""
    red_and_blue = struct.pack("<2H", 31 << 10, 31)
    if bits == 32:
        red_and_blue = bytes([0, 0, 255, 0, 255, 0, 0, 0])
    sizes = (40, 2, 1, 1, bits, 0, len(red_and_blue), 0, 0, 0, 0)
    head = struct.pack("<2sI2HI", b"BM", 54 + len(red_and_blue), 0, 0, 54)
    data = head + struct.pack("<I2i2H6I", *sizes) + red_and_blue
    np.testing.assert_array_equal(decoding.decode(data), [[[255, 0, 0], [0, 0, 255]]])


def test_edges_are_where_classes_meet():
    ids = np.zeros((5, 8), np.uint8)
    ids[:, 4:] = 1
    np.testing.assert_array_equal(
        overlay.edges(ids, 2), np.tile([0, 0, 1, 1, 1, 1, 0, 0], (5, 1)).astype(bool)
    )


def test_masks_are_those_of_a_graph_from_bytes_pixel_for_pixel(run, photos, tmp_path):
    probabilities = inference.make_probabilities(trained.load(run).model)

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
    def served(data):  # As an exported model does it, one file at a time.
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        seen = probabilities(resizing.image(image, 32)[tf.newaxis])[0]
        size = tf.shape(image)
        return tf.argmax(resizing.probabilities(seen, size[0], size[1]), -1)

    assert predicted(run, tmp_path / "out", str(photos)) == 0
    for name in ("a.png", "b.jpg", "sub/a.png"):
        mask = opened((tmp_path / "out" / name).with_suffix(".png"))
        expected = served((photos / name).read_bytes()).numpy()
        np.testing.assert_array_equal(mask, expected)


def test_the_mask_of_a_turned_photograph_is_upright(run, photos, tmp_path):
    pixels = np.asarray(opened(photos / "a.png"))
    exif = Image.Exif()
    exif[274] = 6  # To be turned clockwise: its left side is up.
    turned = file_of(np.rot90(pixels).copy(), "PNG", exif=exif)
    (photos / "turned.png").write_bytes(turned)
    assert predicted(run, tmp_path / "out", str(photos)) == 0
    upright, mask = (opened(tmp_path / "out" / f"{n}.png") for n in ("a", "turned"))
    np.testing.assert_array_equal(mask, upright)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_pixels_of_other_modes_become_red_green_and_blue(mode):
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(90)), -1)
    picture = Image.fromarray(image).convert(mode)
    data = io.BytesIO()
    kind, options = ("JPEG", {"quality": 100}) if mode == "CMYK" else ("PNG", {})
    picture.save(data, kind, **options)
    found = decoding.decode(data.getvalue()).astype(int)
    expected = np.asarray(picture.convert("RGB"))
    assert np.abs(found - expected).max() <= (8 if mode == "CMYK" else 0)


def test_sixteen_bits_become_eight_or_are_named():
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = decoding.decode(file_of(deep, "PNG"))
    np.testing.assert_array_equal(found, np.stack([deep >> 8] * 3, -1))
    with pytest.raises(ValueError, match="must have 8 bits a channel"):
        decoding.decode(file_of(deep, "TIFF"))


def test_a_photograph_of_several_frames_counts_with_the_first():
    for kind in ("MPO", "GIF", "TIFF", "WEBP"):
        first, second = (Image.new("RGB", (8, 8), name) for name in ("red", "blue"))
        data = io.BytesIO()
        first.save(data, kind, save_all=True, append_images=[second])
        [red, _, blue] = decoding.decode(data.getvalue())[4, 4]
        assert red > 200 and blue < 50, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_a_file_that_was_cut_is_told_in_one_line(kind, share):
    data = file_of(np.random.default_rng(0).integers(0, 256, (40, 40, 3), "u1"), kind)
    with pytest.raises(ValueError, match="is damaged|is no JPEG") as told:
        decoding.decode(data[: int(len(data) * share)])
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore")  # Of Pillow's, before it gives up.
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_of_wrong_content_has_pixels_or_is_told_in_one_line(kind):
    rng, told = np.random.default_rng(0), 0
    whole = file_of(rng.integers(0, 256, (24, 24, 3), "u1"), kind)
    for _ in range(200):
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, rng.choice([64, len(data)]), rng.integers(1, 9))
        data[places] = rng.integers(0, 256, len(places))
        try:
            assert decoding.decode(data.tobytes()).ndim == 3
        except ValueError as error:
            told += 1
            assert len(str(error).splitlines()) == 1
    assert told > 20


def names(*arguments: object, out: str = "out") -> list[str]:
    return [one.name for one in photographs.find([str(a) for a in arguments], out)]


def test_names_begin_below_the_folder_that_all_arguments_share(photos):
    assert names(photos) == ["a", "b", "sub/a"]
    assert names(photos / "b.jpg") == ["b"]
    assert names(photos / "sub", photos / "b.jpg") == ["sub/a", "b"]
    assert names(photos / "*.png") == ["a"]
    assert names(photos / "*" / "a.png", photos) == ["sub/a", "a", "b"]
    assert names(photos / "s*") == ["sub/a"]
    (photos / "scan[1].v2").write_bytes(b"?")
    assert names(photos / "scan[1].v2") == ["scan[1].v2"]


@pytest.mark.parametrize("below", ["", "/*.jpg", "/M\udcfcnchen.jpg"])
def test_a_name_that_is_no_utf_8_is_refused_and_told(photos, below):
    os.rename(photos / "b.jpg", os.fsencode(photos) + b"/M\xfcnchen.jpg")
    rule = r"names of files must be UTF-8, got .*M\\xfcnchen.jpg for .*; rename it"
    with pytest.raises(ValueError, match=rule):
        photographs.find([f"{photos}{below}"], "out")


def test_a_folder_gives_its_shown_pictures_and_no_masks_below_it(photos):
    for name in (".hidden.png", "notes.txt", ".git/c.png", "masks/a.png", "D.JPG"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"?")
    assert names(photos, out=str(photos / "masks")) == ["D", "a", "b", "sub/a"]
    assert names(photos / "masks", out=str(photos / "masks")) == ["a"]
    assert names(photos / "*", out=str(photos / "masks")) == names(
        photos / "*.*", photos / "sub", out="elsewhere"
    )
    assert names(photos / "[sm]*" / "*.png", out=str(photos / "masks")) == ["sub/a"]


@pytest.mark.parametrize("masks", ["masks", "."])
def test_what_a_prediction_has_made_is_no_photograph(
    run, photos, tmp_path, capsys, masks
):
    (photos / "a.png").unlink()
    (photos / "sub" / "a.png").rename(photos / "sub" / "c.BMP")
    kept = [str(photos / "b.jpg"), str(photos / "sub" / "c.BMP")]
    shutil.copy(photos / "b.jpg", photos / "own.jpg")
    assert predicted(run, photos / masks, *kept) == 0
    assert predicted(run, tmp_path / "out", str(photos)) == 0
    told = capsys.readouterr().err
    assert f"left out 4 files of a prediction in {photos}" in told
    index = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert sorted(index["images"].values()) == [*kept[:1], f"{photos}/own.jpg", kept[1]]
    assert names(photos / masks / "*.png") == ["b"]  # Who asks for it gets it.


def test_what_a_prediction_made_in_the_folder_above_is_no_photograph(run, photos):
    (photos / "other").mkdir()
    (photos / "b.jpg").rename(photos / "other" / "b.jpg")
    (photos / "sub" / "a.png").rename(photos / "sub" / "c.BMP")
    folders = [str(photos / "sub"), str(photos / "other")]
    for _ in range(2):
        assert predicted(run, photos, *folders) == 0
    index = json.loads((photos / "classes.json").read_text())
    assert index["images"].keys() == {"sub/c", "other/b"}


@pytest.mark.parametrize("out", ["photos", ".", ".."])
def test_a_folder_of_masks_that_holds_the_photographs_hides_none(photos, out):
    found = names(photos, out=str(photos.parent / out))
    assert found == ["a", "b", "sub/a"]


def test_only_an_earlier_prediction_is_written_over(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_text("drawn by hand")
    for left in ("b.png", "classes.json"):
        assert predicted(run, out, str(photos)) == 2
        assert "must hold no files but of an earlier" in capsys.readouterr().err
        assert (out / "b.png").read_text() == "drawn by hand", left
        (out / "classes.json").write_text('{"classes": ["cat"]}')  # Of a data set's.
    (out / "classes.json").unlink()
    assert (out / "b.png").read_text() == "drawn by hand"
    (out / "b.png").rename(out / "mine.txt")
    assert predicted(run, out, str(photos)) == 0
    first = (out / "b.png").read_bytes()
    (out / "b.png").write_text("cut short")
    assert predicted(run, out, str(photos)) == 0
    assert (out / "b.png").read_bytes() == first
    assert (out / "mine.txt").read_text() == "drawn by hand"
    # Of a photograph that came later, nothing was predicted.
    shutil.copy(photos / "b.jpg", photos / "c.jpg")
    (out / "c_overlay.jpg").write_text("drawn by hand")
    assert predicted(run, out, str(photos / "c.jpg")) == 2
    assert "c_overlay.jpg; give another" in capsys.readouterr().err
    assert (out / "c_overlay.jpg").read_text() == "drawn by hand"
    (out / "c_overlay.jpg").unlink()
    assert predicted(run, out, str(photos / "c.jpg")) == 0
    index = json.loads((out / "classes.json").read_text())
    assert index["images"] == {
        name.rsplit(".", 1)[0]: str(photos / name)
        for name in ("a.png", "b.jpg", "sub/a.png", "c.jpg")
    }
    index["classes"][0]["name"] = "cat"
    (out / "classes.json").write_text(json.dumps(index))
    assert predicted(run, out, str(photos)) == 2
    assert "with those of others; give another" in capsys.readouterr().err


def test_of_a_photograph_only_the_files_that_were_made_of_it_are_ours(
    run, photos, tmp_path, capsys
):
    out = tmp_path / "out"
    assert predicted(run, out, str(photos), "--nooverlays") == 0
    for mine in ("a.npz", "sub/a_overlay.jpg"):
        (out / mine).write_text("mine")
        assert predicted(run, out, str(photos), "--probabilities") == 2
        assert f"{mine}; give another" in capsys.readouterr().err
        assert (out / mine).read_text() == "mine"
        (out / mine).unlink()
    assert predicted(run, out, str(photos), "--probabilities") == 0
    assert predicted(run, out, str(photos), "--nooverlays") == 0
    assert predicted(run, out, str(photos), "--probabilities") == 0
    index = json.loads((out / "classes.json").read_text())
    assert index["endings"]["sub/a"] == [".npz", ".png", "_overlay.jpg"]


def test_of_a_photograph_that_was_skipped_no_file_is_ours(run, photos, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(photos, other)
    assert predicted(run, out, str(photos / "b.jpg")) == 0
    for name in ("a.png", "b.jpg"):
        (photos / name).write_bytes(b"")
    assert predicted(run, out, str(photos), "--probabilities") == 1
    index = json.loads((out / "classes.json").read_text())
    assert index["images"].keys() == {"b", "sub/a"}
    assert index["endings"]["b"] == [".png", "_overlay.jpg"]  # Of the time before.
    assert index["endings"].keys() == {"b", "sub/a"}
    (out / "a.png").write_text("drawn by hand")
    shutil.copytree(other, photos, dirs_exist_ok=True)
    assert predicted(run, out, str(photos)) == 2
    assert (out / "a.png").read_text() == "drawn by hand"
    (out / "a.png").unlink()
    assert predicted(run, out, str(photos)) == 0


def test_a_mask_is_not_written_over_by_that_of_another_photograph(
    run, photos, tmp_path, capsys
):
    out = tmp_path / "out"
    assert predicted(run, out, str(photos)) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert predicted(run, out, str(photos / "sub")) == 2
    told = capsys.readouterr().err
    assert f"{out} with that of {photos}/a.png for {photos}/sub/a.png; give" in told
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_predictions_side_by_side_keep_each_others_names(
    run, photos, tmp_path, monkeypatch
):
    out, load = tmp_path / "out", trained.load

    def load_while_another_predicts(*args):
        monkeypatch.setattr(trained, "load", load)
        assert predicted(run, out, str(photos / "b.jpg")) == 0
        return load(*args)

    monkeypatch.setattr(trained, "load", load_while_another_predicts)
    assert predicted(run, out, str(photos / "a.png")) == 0
    assert json.loads((out / "classes.json").read_text())["images"].keys() == {"a", "b"}


def test_with_nothing_to_read_no_mask_is_written(run, tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(b"")
    assert predicted(run, tmp_path / "out", str(tmp_path / "x.png")) == 1
    out, err = capsys.readouterr()
    assert "0 masks in" in out and "1 of 1 images could not be read" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["classes.json"]


def test_images_of_the_flag_and_of_the_rest_count_both(photos):
    from trainer import flags

    args = ["--images=x.png", "--job_dir=j", "y.png", "--output_dir=o", "z.png"]
    values = flags.read(args, predict.Prediction, rest="images")
    made = flags.make(predict.Prediction, values)
    assert made.images == ("x.png", "y.png", "z.png") and made.job_dir == "j"


def test_photographs_of_a_bucket_get_masks_there(
    run, photos, gcs, gcs_bucket, gcs_here
):
    gcs.upload(photos, f"gs://{gcs_bucket}/photos")
    gcs.put(f"gs://{gcs_bucket}/photos/cut.jpg", b"?")
    where = f"gs://{gcs_bucket}"
    args = (f"{where}/photos", f"{where}/photos/*.jpg", "--nooverlays")
    assert predict.main([f"--job_dir={run}", f"--output_dir={where}/out", *args]) == 1
    assert set(gcs.names(gcs_bucket, "out/")) == {
        *("out/a.png", "out/b.png", "out/sub/a.png", "out/classes.json"),
    }


def test_a_bucket_to_write_to_is_asked_before_the_model_is_loaded(
    photos, gcs, gcs_bucket, gcs_here, refused
):
    gcs.set_faults(denied={"storage.objects.create": "out/"})
    out = f"gs://{gcs_bucket}/out"
    args = ("--job_dir=none", f"--output_dir={out}", str(photos))
    told = refused(*args, main=predict.main)
    assert told.startswith(f"output_dir must be in a bucket that we may use, got {out}")
    assert not gcs.names(gcs_bucket, "")


def test_a_mask_that_cannot_be_written_stops_the_rest_in_one_line(
    run, photos, tmp_path, capsys
):
    out = tmp_path / "out"
    assert predicted(run, out, str(photos)) == 0
    (out / "b.png").unlink()
    (out / "b.png").mkdir()  # In the way of the next mask.
    capsys.readouterr()
    assert predicted(run, out, str(photos)) == 1
    told, err = capsys.readouterr()
    assert told == "" and "b.png" in err and "Traceback" not in err


def test_photographs_are_written_in_order_and_read_no_further_than_needed(tmp_path):
    ours = [
        photographs.Photograph(str(tmp_path / f"{i}.png"), f"{i}") for i in range(60)
    ]
    pixels = np.zeros((4, 4, 3), np.uint8)
    for value, one in enumerate(ours):
        pathlib.Path(one.path).write_bytes(file_of(pixels + value, "PNG"))
    asked = []

    def offered():
        for one in ours:
            asked.append(one)
            yield one

    def look(reads):
        assert len(reads) <= 7
        yield from (tf.fill((4, 4, 2), 0.5) for _ in reads)

    def write(read, seen):
        assert seen.shape == (4, 4, 2)
        return int(read.image.max())

    skipped = []
    made = pipeline.run(
        offered(), 4, 7, look, write, lambda *told: skipped.append(told)
    )
    assert next(made) == 0
    depth = 2 * min(pipeline.THREADS, os.cpu_count() or 1)
    assert len(asked) <= 2 * (depth + 7) + 1
    assert list(made) == list(range(1, 60)) and not skipped


def test_the_benchmark_counts_all_photographs_both_ways(run, photos, tmp_path):
    scratch = tmp_path / "scratch"
    found = benchmark.measure(run, str(photos), repeats=2, scratch=str(scratch))
    rates = found["images_per_second"]
    assert found["images"] == 3 and [len(x) for x in rates.values()] == [2, 2]
    ratios = [ours / bare for ours, bare in zip(*rates.values(), strict=True)]
    assert found["predict_over_model"] == pytest.approx(np.median(ratios))
    assert (scratch / "sub" / "a_overlay.jpg").exists()
