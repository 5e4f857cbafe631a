"""A folder of images and masks becomes a data set that a run trains on."""

import io
import json
import os
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from conftest import draw
from PIL import Image

from trainer import bucket, command, dataset, examine, masks, prepare, shards, task
from trainer.examples import Examples

CLASSES = "--class_names=ground,disc"
VOID = 255


@pytest.fixture
def folder(tmp_path):
    """Writes photos p0.jpg, p1.jpg, ... and their masks, by the flags that name them."""

    def write(count=8, ids=(1, 0, VOID), mask_name="{}.png", encode=Image.fromarray):
        rng = np.random.default_rng(0)
        masks = {}
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
        for index in range(count):
            image, mask = draw(rng, ids)
            Image.fromarray(image).save(tmp_path / "images" / f"p{index}.jpg")
            path = tmp_path / "masks" / mask_name.format(f"p{index}")
            encode(mask[..., 0]).save(path)
            masks[f"p{index}.jpg"] = mask[..., 0]
        return masks

    return write


def run(tmp_path, *flags, name="mine"):
    return prepare.main(
        [
            f"--images={tmp_path / 'images'}",
            f"--masks={tmp_path / 'masks'}",
            f"--data_dir={tmp_path / 'tfds'}",
            f"--name={name}",
            *flags,
        ]
    )


def opened(tmp_path, **settings):
    settings = {"val_fraction": 0.3, **settings}
    return dataset.open_dataset("mine", data_dir=str(tmp_path / "tfds"), **settings)


def stored(split):
    """Returns image bytes and mask, by file name, of a split."""
    feature = tf.io.FixedLenFeature((), tf.string)
    features = dict(file_name=feature, image=feature, mask=feature)
    examples, found = Examples(split.files, split.file_lengths, None), {}
    for id in split.ids.tolist():
        one = tf.io.parse_single_example(examples.serialized(id), features)
        mask = tf.io.decode_png(one["mask"], channels=1)[..., 0].numpy()
        found[one["file_name"].numpy().decode()] = (one["image"].numpy(), mask)
    return found


def names(split):
    return sorted(stored(split)) if split else []


def coloured(colours):
    """Returns an encoder of masks as RGB pictures, id by id."""

    def encode(mask):
        picture = np.zeros((*mask.shape, 3), np.uint8)
        for id, colour in colours.items():
            picture[mask == id] = colour
        return Image.fromarray(picture)

    return encode


def indexed(mask):
    picture = Image.fromarray(mask, "L").copy()
    picture.putpalette([value for id in range(256) for value in (id, 255 - id, 7)])
    return picture


def one_bit(mask):
    return Image.fromarray(mask == 1)


def test_prepared_data_trains_without_a_word_about_its_masks(
    tmp_path, folder, tiny_unet, capsys
):
    folder(count=9)
    assert run(tmp_path, CLASSES) == 0
    assert "--dataset=mine" in capsys.readouterr().out
    flags = ["--dataset=mine", f"--data_dir={tmp_path / 'tfds'}", "--image_size=32"]
    flags += [f"--job_dir={tmp_path / 'job'}", "--batch_size=2", "--total_steps=2"]
    assert task.main(flags) == 0
    result = json.loads((tmp_path / "job" / "result.json").read_text())
    assert {"iou/ground", "iou/disc"} <= result["test"].keys()


def test_images_are_kept_byte_for_byte_and_masks_pixel_for_pixel(tmp_path, folder):
    masks = folder()
    assert run(tmp_path, CLASSES, "--test_fraction=0.25", "--val_fraction=0.25") == 0
    data = opened(tmp_path)
    assert data.class_names == ("ground", "disc")
    assert data.ignore_id == VOID
    assert data.version == "1.0.0"
    parts = [stored(split) for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [4, 2, 2]
    found = parts[0] | parts[1] | parts[2]
    assert found.keys() == masks.keys()
    for name, (image, mask) in found.items():
        assert image == (tmp_path / "images" / name).read_bytes()
        assert np.array_equal(mask, masks[name])


def test_settings_of_the_run_go_before_what_the_data_says(tmp_path, folder):
    folder()
    assert run(tmp_path, CLASSES) == 0
    data = opened(tmp_path, class_names=("floor", "ball"), ignore_id=254)
    assert (data.class_names, data.ignore_id) == (("floor", "ball"), 254)
    assert data.mask_feature == "mask"


def test_shards_are_alike_in_size(tmp_path, folder):
    folder(count=8)
    assert run(tmp_path, CLASSES, "--shards=3", "--test_fraction=0") == 0
    split = opened(tmp_path, val_fraction=0.4).train
    assert sorted(split.file_lengths) == [2, 3, 3]


@pytest.mark.parametrize(
    "ids, mask_name, encode, flags",
    [
        ((1, 0, VOID), "{}.png", indexed, [CLASSES]),
        ((1, 0, VOID), "{}.tif", Image.fromarray, [CLASSES]),
        ((1, 0, 0), "{}.gif", indexed, [CLASSES]),
        ((1, 0, 0), "{}.png", one_bit, [CLASSES]),
        ((1, 0, VOID), "{}_mask.png", indexed, [CLASSES, "--mask_suffix=_mask"]),
        (
            (1, 0, VOID),
            "{}_mask.gif",
            coloured({0: 0, 1: 255, VOID: 0}),
            ["--layout=carvana"],
        ),
        (
            (1, 0, VOID),
            "{}.png",
            coloured({0: (1, 2, 3), 1: (4, 5, 6), VOID: 9}),
            ["--colors={}/map.txt"],
        ),
    ],
    ids=["indexed", "tiff", "gif", "one bit", "suffix", "carvana", "class map"],
)
def test_masks_of_all_kinds_come_back_as_class_ids(
    tmp_path, folder, ids, mask_name, encode, flags
):
    masks = folder(3, ids, mask_name, encode)
    text = "1,2,3 ground\n4,5,6 disc\n9,9,9 ignored\n"
    (tmp_path / "map.txt").write_text(text, encoding="utf-8-sig")  # As Windows writes.
    assert run(tmp_path, *(flag.format(tmp_path) for flag in flags)) == 0
    data = opened(tmp_path, val_fraction=0.5)
    if "--layout=carvana" in flags:
        assert data.class_names == ("background", "car")
        masks = {name: np.where(mask == VOID, 0, mask) for name, mask in masks.items()}
    found = stored(data.train) | stored(data.val) | stored(data.test)
    for name, mask in masks.items():
        assert np.array_equal(found[name][1], mask)


@pytest.mark.parametrize(
    "text, got",
    [
        ("", "none"),
        ("# R,G,B NAME\n\n", "none"),
        ("0,0,0 ignored\n", "none"),
        ("0,0,0 ignored\n1,2,3 disc\n4,5,6 disc\n", "disc"),
    ],
    ids=["empty", "comment", "ignored", "one class"],
)
def test_a_class_map_of_less_than_two_classes_is_refused(
    tmp_path, folder, capsys, text, got
):
    folder(1)
    path = tmp_path / "map.txt"
    path.write_text(text)
    assert run(tmp_path, f"--colors={path}") == command.REFUSED
    rule = "colors must name at least two classes, in lines R,G,B NAME, got"
    assert capsys.readouterr().err == f"segtrainer: {rule} {got} in {path}\n"


def test_ids_from_1_on_are_refused_with_the_way_out(tmp_path, folder, capsys):
    folder(3, ids=(2, 1, 1))
    assert run(tmp_path, CLASSES) == command.REFUSED
    told = "p0.png: must have ids 0..1 or 255, ignored, got 2; if ids start at 1, add "
    assert told + "--mask_offset=-1" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_ids_are_moved_by_the_offset_and_another_ignored_id_becomes_255(
    tmp_path, folder, mode
):
    masks = folder(
        3, (2, 1, 0), encode=lambda mask: Image.fromarray(mask).convert(mode)
    )
    flags = (CLASSES, "--mask_offset=-1", "--ignore_id=0", "--test_fraction=0")
    assert run(tmp_path, *flags) == 0
    data = opened(tmp_path, val_fraction=0.5)
    for name, (_, mask) in (stored(data.train) | stored(data.val)).items():
        assert np.array_equal(mask, masks[name] - np.uint8(1))


def test_lists_split_and_leave_out_what_they_do_not_name(tmp_path, folder):
    folder(6)
    (tmp_path / "masks" / "p5.png").unlink()
    flags = [CLASSES]
    for split, text in (("train", "p0\np1.jpg\n"), ("val", "p2"), ("test", "p4\n\n")):
        # As Windows writes it.
        (tmp_path / split).write_text(text, encoding="utf-8-sig")
        flags.append(f"--{split}_list={tmp_path / split}")
    assert run(tmp_path, *flags) == 0
    data = opened(tmp_path)
    assert names(data.train) == ["p0.jpg", "p1.jpg"]
    assert names(data.val) == ["p2.jpg"]
    assert names(data.test) == ["p4.jpg"]


@pytest.mark.parametrize(
    "flag, what", [("train_list", "the list of train"), ("colors", "colors")]
)
def test_a_file_of_utf_16_is_refused_with_the_way_out(
    tmp_path, folder, capsys, flag, what
):
    folder(1)
    path = tmp_path / "saved"
    path.write_text("p0\n", encoding="utf-16")  # By an editor of Windows.
    assert run(tmp_path, f"--{flag}={path}") == command.REFUSED
    told = f"segtrainer: {what} must be text in UTF-8, got {path}; save it so\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    "flag, reason",
    [
        ("--val_fraction=0.2", "val_fraction must be left out where it cuts nothing"),
        ("--test_fraction=0.2", "test_fraction must be left out where it cuts nothing"),
        ("--test_fraction=0", None),
    ],
)
def test_fractions_that_would_cut_nothing_are_refused(
    tmp_path, folder, capsys, flag, reason
):
    folder(4)
    flags = [CLASSES, flag]
    for split, text in (("train", "p0\np1"), ("val", "p2\np3")):
        (tmp_path / split).write_text(text)
        flags.append(f"--{split}_list={tmp_path / split}")
    assert run(tmp_path, *flags) == (command.REFUSED if reason else 0)
    if reason:
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and reason in err
        assert "got 0.2 with the splits of lists" in err
    else:
        assert opened(tmp_path).test is None


def test_no_two_splits_share_a_group(tmp_path, folder):
    folder(12)
    for index in range(12):
        for name, ending in (("images", "jpg"), ("masks", "png")):
            old = tmp_path / name / f"p{index}.{ending}"
            old.rename(tmp_path / name / f"car{index % 4}_{index}.{ending}")
    flags = ("--group=(car.)_", "--val_fraction=0.25", "--test_fraction=0.25")
    assert run(tmp_path, CLASSES, *flags) == 0
    data = opened(tmp_path)
    parts = [
        {name[:4] for name in names(split)}
        for split in (data.train, data.val, data.test)
    ]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert len(set().union(*parts)) == 4


def test_an_image_whose_group_is_empty_is_one_of_no_group(tmp_path, folder, capsys):
    folder(4)
    flags = ("--group=(p[0-2])|^p", "--val_fraction=0.25")
    assert run(tmp_path, CLASSES, *flags) == command.REFUSED
    out = capsys.readouterr().out
    assert f"image of no group (1)\n  {tmp_path / 'images' / 'p3.jpg'}" in out


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)


def test_a_turned_image_is_stored_upright_where_asked(tmp_path, folder):
    folder(4)
    image, mask = tmp_path / "images" / "p0.jpg", tmp_path / "masks" / "p0.png"
    turned(image, 6)
    upright = Image.open(mask).transpose(Image.Transpose.ROTATE_270)
    upright.save(mask)
    assert run(tmp_path, CLASSES, "--turn_images", "--test_fraction=0") == 0
    data = opened(tmp_path)
    stored_image, _ = (stored(data.train) | stored(data.val))["p0.jpg"]
    assert tf.io.decode_png(stored_image).shape[:2] == upright.size[::-1]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_turned_tiff_is_refused_or_stored_upright_where_asked(
    tmp_path, folder, capsys, compression
):
    """Pillow turns it while it reads it, and drops the tag."""
    folder(4)
    old, mask = tmp_path / "images" / "p0.jpg", tmp_path / "masks" / "p0.png"
    pixels, exif = np.asarray(Image.open(old)), Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(pixels)
    image.save(old.with_suffix(".tif"), exif=exif, compression=compression)
    old.unlink()
    Image.open(mask).transpose(Image.Transpose.ROTATE_270).save(mask)
    assert run(tmp_path, CLASSES, "--test_fraction=0") == command.REFUSED
    assert "p0.tif: has orientation 6: its mask may be" in capsys.readouterr().out
    assert run(tmp_path, CLASSES, "--test_fraction=0", "--turn_images") == 0
    data = opened(tmp_path)
    found, _ = (stored(data.train) | stored(data.val))["p0.tif"]
    assert np.array_equal(tf.io.decode_png(found), np.rot90(pixels, -1))


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_a_mask_that_exif_turns_is_refused(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "m", kind, exif=exif)
    with pytest.raises(ValueError, match="has orientation 3.*; turn its pixels"):
        masks.read_mask(str(tmp_path / "m"), coloured=False)


def test_pictures_whose_names_are_no_utf_8_are_named(tmp_path, folder, capsys):
    folder(4)
    for name, ending in (("images", b"jpg"), ("masks", b"png")):
        of = os.fsencode(tmp_path / name)
        os.rename(of + b"/p0." + ending, of + b"/M\xfcnchen." + ending)
    pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/\xfc.txt")).touch()
    assert run(tmp_path, CLASSES) == command.REFUSED
    out = capsys.readouterr().out
    assert "defect: name not in UTF-8 (2)\n" in out
    for name in (r"images/M\xfcnchen.jpg", r"masks/M\xfcnchen.png"):
        assert f"  {tmp_path}/{name}: rename it\n" in out
    assert f"  {tmp_path}/images/" + r"\xfc.txt: is left out" in out


def test_files_that_cannot_be_opened_are_named_like_all_that_is_wrong(
    tmp_path, folder, capsys
):
    folder(4)
    image, mask = tmp_path / "images" / "p0.jpg", tmp_path / "masks" / "p1.png"
    for path in (image, mask):
        path.unlink()
        path.symlink_to(tmp_path / "gone")
    (tmp_path / "images" / "p2.jpg").write_bytes(b"no picture")
    assert run(tmp_path, CLASSES) == command.REFUSED
    told = capsys.readouterr().out
    assert "defect: unreadable image (2)" in told and "p2.jpg: " in told
    assert f"{image}: No such file or directory\n" in told
    assert f"{mask}: No such file or directory\n" in told


def test_exif_that_says_nothing_turns_nothing(tmp_path, folder):
    folder(4)
    for orientation, name in ((0, "p0.jpg"), (9, "p1.jpg")):
        turned(tmp_path / "images" / name, orientation)
    before = (tmp_path / "images" / "p1.jpg").read_bytes()
    assert run(tmp_path, CLASSES, "--turn_images", "--test_fraction=0") == 0
    data = opened(tmp_path)
    assert (stored(data.train) | stored(data.val))["p1.jpg"][0] == before


def test_a_turned_image_of_16_bits_keeps_its_upper_ones():
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # Upside down.
    Image.fromarray(deep).save(file, "PNG", exif=exif)
    found = tf.io.decode_png(masks.stored_image(file.getvalue(), turn=True), channels=1)
    assert np.array_equal(found[..., 0], deep[::-1, ::-1] >> 8)


def test_ids_of_a_grey_tiff_of_4_bits_are_those_of_the_file(tmp_path):
    tags = (
        (256, 4),
        (257, 1),
        (258, 4),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
    )
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags]
    entries.append(struct.pack("<HHII", 279, 4, 1, 2))
    pixels = bytes([0x01, 0x2F])  # 0, 1, 2, 15.
    whole = struct.pack("<2sHI", b"II", 42, 10) + pixels
    whole += struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    (tmp_path / "mask.tif").write_bytes(whole)
    found = masks.read_mask(str(tmp_path / "mask.tif"), coloured=False)
    assert found.tolist() == [[0, 1, 2, 15]]


def spoil(folder: pathlib.Path) -> dict[str, str]:
    """Makes every kind of defect in a folder of 12 pairs; returns file by kind."""
    images, masks = folder / "images", folder / "masks"
    (masks / "p0.png").unlink()
    (images / "p1.jpg").unlink()
    Image.open(masks / "p2.png").crop((0, 0, 20, 20)).save(masks / "p2.png")
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(masks / "p3.png")
    (images / "p4.jpg").write_bytes(b"no picture")
    (masks / "p5.png").write_bytes((masks / "p5.png").read_bytes()[:40])
    Image.open(images / "p6.jpg").save(images / "p6.png")
    (images / "p7.jpg").write_bytes((images / "p8.jpg").read_bytes())
    (masks / "p7.png").write_bytes((masks / "p8.png").read_bytes())
    turned(images / "p9.jpg", 6)
    (images / "p10.jpg").write_bytes(b"")
    Image.open(images / "p11.jpg").convert("L").save(images / "p11.jpg")
    (folder / "train").write_text(
        "".join(f"p{i}\n" for i in range(12) if i not in (1, 8))
    )
    (folder / "val").write_text("p8\np3\nabsent\n")
    return {
        "defect: image without mask": "images/p0.jpg",
        "defect: listed image absent": "val",
        "defect: sizes differ": "masks/p2.png",
        "defect: unknown class": "masks/p3.png",
        "defect: unreadable image": "images/p4.jpg",
        "defect: unreadable mask": "masks/p5.png",
        "defect: duplicate name": "images/p6.png",
        "defect: same image in two splits": "images/p8.jpg",
        "defect: turned by EXIF": "images/p9.jpg",
        "defect: empty file": "images/p10.jpg",
        "defect: listed twice": "val",
        "defect: group in two splits": "images/p",
        "warning: grey image": "images/p11.jpg",
        "warning: class without pixels": "masks",
    }


def test_every_kind_of_defect_is_named_with_its_file_and_nothing_is_written(
    tmp_path, folder, capsys
):
    folder(12)
    expected = spoil(tmp_path)
    flags = (
        "--class_names=ground,disc,sky",
        f"--train_list={tmp_path / 'train'}",
        f"--val_list={tmp_path / 'val'}",
        "--group=p",
    )
    assert run(tmp_path, *flags) == command.REFUSED
    out, err = capsys.readouterr()
    for kind, file in expected.items():
        assert kind in out, f"{kind} is not told"
        told = out[out.index(kind) :].splitlines()[1:]
        below = [line for line in told if line.startswith("  ")]
        assert str(tmp_path / file) in below[0], told[0]
    assert err.count("\n") == 1 and "nothing was written" in err
    assert not (tmp_path / "tfds").exists()


def test_masks_without_image_are_named(tmp_path, folder, capsys):
    folder(3)
    (tmp_path / "images" / "p1.jpg").unlink()
    assert run(tmp_path, CLASSES) == command.REFUSED
    out = capsys.readouterr().out
    assert f"mask without image (1)\n  {tmp_path / 'masks' / 'p1.png'}:" in out


def test_masks_may_lie_beside_the_images(tmp_path, folder):
    folder(4, mask_name="{}_mask.png")
    for path in (tmp_path / "masks").iterdir():
        path.rename(tmp_path / "images" / path.name)
    masks = f"--masks={tmp_path / 'images'}"
    assert run(tmp_path, CLASSES, masks) == command.REFUSED
    assert run(tmp_path, CLASSES, masks, "--mask_suffix=_mask") == 0


def test_masks_may_lie_in_a_folder_of_the_images(tmp_path, folder):
    folder(4)
    (tmp_path / "masks").rename(tmp_path / "images" / "masks")
    assert run(tmp_path, CLASSES, f"--masks={tmp_path / 'images' / 'masks'}") == 0


def test_layout_voc_leaves_out_images_without_mask(tmp_path, folder):
    folder(4, encode=indexed)
    (tmp_path / "masks" / "p0.png").unlink()
    assert run(tmp_path, "--layout=voc", "--test_fraction=0") == 0
    data = opened(tmp_path)
    assert len(data.class_names) == 21 and data.class_names[1] == "aeroplane"
    assert {*names(data.train), *names(data.val)} == {"p1.jpg", "p2.jpg", "p3.jpg"}


def test_lists_of_images_without_masks_leave_nothing_to_train_on(
    tmp_path, folder, capsys
):
    folder(3, encode=indexed)
    for name in ("p0", "p1"):
        (tmp_path / "masks" / f"{name}.png").unlink()
    (tmp_path / "list").write_text("p0\np1\n")
    flags = ("--layout=voc", f"--train_list={tmp_path / 'list'}")
    assert run(tmp_path, *flags) == command.REFUSED
    assert "empty train split" in capsys.readouterr().out
    assert not (tmp_path / "tfds").exists()


def test_the_same_image_twice_in_a_split_is_a_warning(tmp_path, folder, capsys):
    folder(4)
    for name, ending in (("images", "jpg"), ("masks", "png")):
        copy = (tmp_path / name / f"p0.{ending}").read_bytes()
        (tmp_path / name / f"p1.{ending}").write_bytes(copy)
    assert run(tmp_path, CLASSES, "--test_fraction=0") == 0
    assert "warning: same image twice (1)" in capsys.readouterr().out


def test_an_empty_folder_is_refused(tmp_path, folder, capsys):
    folder(0)
    assert run(tmp_path, CLASSES) == command.REFUSED
    assert "empty folder (2)" in capsys.readouterr().out


def test_binary_masks_whose_class_is_white_are_refused_with_the_way_out(
    tmp_path, folder, capsys
):
    folder(3, ids=(255, 0, 0))
    assert run(tmp_path, CLASSES) == command.REFUSED
    assert "if 255 means a class, give --colors=FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ids", "flags", "told"),
    [
        (
            (2, 3, 3),
            ["--class_names=a,b,c", "--mask_offset=-1"],
            "no mask has a; if ids start at 2, give --mask_offset=-2",
        ),
        (
            (1, 3, 0),
            ["--class_names=a,b,c", "--mask_offset=-1", "--ignore_id=0"],
            "no mask has b",
        ),
    ],
)
def test_the_way_out_goes_with_the_flags_that_were_given(
    tmp_path, folder, capsys, ids, flags, told
):
    folder(3, ids=ids)
    run(tmp_path, *flags)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.endswith(told) for line in lines), lines


def test_colours_without_pixels_are_told_without_a_way_out_that_is_none(
    tmp_path, folder, capsys
):
    folder(3, encode=coloured({1: (1, 1, 1), 0: (2, 2, 2), VOID: (3, 3, 3)}))
    lines = ("9,9,9 never", "1,1,1 disc", "2,2,2 ground", "3,3,3 ignored")
    (tmp_path / "map.txt").write_text("\n".join(lines))
    assert run(tmp_path, f"--colors={tmp_path / 'map.txt'}") == 0
    assert "no mask has never\n" in capsys.readouterr().out


def test_a_data_set_that_is_there_is_refused(tmp_path, folder, capsys):
    folder(4)
    assert run(tmp_path, CLASSES) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "tfds").rglob("*") if p.is_file()}
    assert run(tmp_path, CLASSES) == command.REFUSED
    assert "name must be new, got mine" in capsys.readouterr().err
    after = {p: p.read_bytes() for p in (tmp_path / "tfds").rglob("*") if p.is_file()}
    assert after == before


def test_nothing_is_left_where_writing_fails(tmp_path, folder, capsys, monkeypatch):
    folder(4)

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(shards.tfds.folder_dataset, "write_metadata", full)
    assert run(tmp_path, CLASSES) == command.FAILED
    assert capsys.readouterr().err.endswith(
        "No space left on device; nothing was written\n"
    )
    assert not (tmp_path / "tfds").exists()


def test_a_bucket_gets_the_description_last(tmp_path, folder, monkeypatch):
    folder(4)
    monkeypatch.setattr(shards.files, "remote", lambda path: True)
    monkeypatch.setattr(bucket, "check", lambda *_: None)
    copied = []

    def copy(source, target):
        copied.append(os.path.basename(target))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        pathlib.Path(target).write_bytes(pathlib.Path(source).read_bytes())

    monkeypatch.setattr(shards.files, "copy", copy)
    assert run(tmp_path, CLASSES) == 0
    assert copied[-1] == "dataset_info.json"
    assert len(opened(tmp_path).test.ids) == 1


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--name=Mine"], "name must be of lower-case letters"),
        (["--name=mnist"], "name must be no data set of TFDS' own"),
        (["--images=nowhere"], "images must be a folder on this machine, got nowhere"),
        (["--colors=nowhere"], "colors must be a file, got nowhere"),
        (
            ["--colors=map.txt", "--mask_offset=-1"],
            "mask_offset is for masks of ids, got -1 with colors",
        ),
        (["--data_dir=gs:/pets"], "data_dir must be a path such as gs://BUCKET/FOLDER"),
        (["--val_list=nowhere"], "val_list must be a file"),
        (["--val_fraction=0.6", "--test_fraction=0.5"], "must leave examples to train"),
        (["--group=("], "group must be a regular expression"),
        (["--group=p"], "group needs a validation split"),
        (["--class_names=one"], "class_names must be at least two names"),
        (["--class_names=a, b"], "class_names must have no blanks around a name"),
        (["--imges=x"], "imges"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    tmp_path, folder, capsys, flags, reason
):
    folder(1)
    assert run(tmp_path, *flags) == command.REFUSED
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and reason in err
    assert not (tmp_path / "tfds").exists()


def test_a_file_in_the_place_of_the_data_set_is_refused_before_a_picture_is_read(
    tmp_path, folder, capsys, monkeypatch
):
    folder(1)
    monkeypatch.setattr(examine, "listed", None)
    (tmp_path / "tfds").write_text("mine")
    assert run(tmp_path, CLASSES) == command.REFUSED
    assert "data_dir must be a directory, got the file" in capsys.readouterr().err
    assert (tmp_path / "tfds").read_text() == "mine"


def test_help_shows_every_flag(capsys):
    assert prepare.main(["--help"]) == 0
    assert "--mask_suffix" in capsys.readouterr().out
