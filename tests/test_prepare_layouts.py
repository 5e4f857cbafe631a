"""Pictures that lie as well-known data sets have them become a data set."""

import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import draw
from PIL import Image

from trainer import command, dataset, prepare

SEED = 0


def write(root, images, masks, names, ids):
    """Writes a picture and its mask for each name, into folders by their patterns."""
    for name in names:
        # Each name has its own picture, wherever it is.
        rng = np.random.default_rng([SEED, *f"{images}{name}".encode()])
        image, mask = draw(rng, ids)
        for pattern, pixels in ((images, image), (masks, mask[..., 0])):
            path = root / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def run(tmp_path, layout, *flags):
    return prepare.main(
        [
            *(f"--layout={layout}", f"--root={tmp_path / 'root'}", "--name=mine"),
            *(f"--data_dir={tmp_path / 'tfds'}", *flags),
        ]
    )


def opened(tmp_path):
    return dataset.open_dataset(
        "mine", data_dir=str(tmp_path / "tfds"), val_fraction=0.5
    )


def names(split):
    """Returns the file names of a split."""
    features = {"file_name": tf.io.FixedLenFeature((), tf.string)}
    records = list(tf.data.TFRecordDataset(split.files))
    chosen = [records[id] for id in split.ids.tolist()]
    return sorted(
        tf.io.parse_single_example(r, features)["file_name"].numpy().decode()
        for r in chosen
    )


def refusal(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


@pytest.fixture
def oxford(tmp_path):
    """Writes the two archives of Oxford-IIIT Pet, unpacked; returns their folder."""
    root = tmp_path / "root"
    cats = [f"Abyssinian_{n}" for n in range(8)]
    trimaps = "annotations/trimaps/{}.png"
    write(root, "images/{}.jpg", trimaps, cats, ids=(1, 2, 3))
    for name in cats:  # What macOS leaves beside each file.
        (root / f"annotations/trimaps/._{name}.png").write_bytes(b"\0\5\26\7")
    (root / "images" / "Abyssinian_0.mat").write_bytes(b"matlab")
    head = "#Image CLASS-ID SPECIES BREED ID\n"
    lists = {"trainval": cats[:4], "test": cats[4:7], "list": cats[:7]}
    for name, listed in lists.items():
        lines = "".join(f"{cat} 1 1 1\n" for cat in listed)
        (root / f"annotations/{name}.txt").write_text(head + lines)
    return root


def test_oxford_pets_are_split_by_their_own_lists(tmp_path, oxford, capsys):
    assert run(tmp_path, "oxford") == 0
    assert "warning: no picture (1)" in capsys.readouterr().out
    data = opened(tmp_path)
    assert data.class_names == ("pet", "background", "border")
    train = names(data.train) + names(data.val)
    assert sorted(train) == [f"Abyssinian_{n}.jpg" for n in range(4)]
    assert names(data.test) == [f"Abyssinian_{n}.jpg" for n in (4, 5, 6)]


def test_validation_may_be_cut_from_the_train_of_a_list(tmp_path, oxford):
    assert run(tmp_path, "oxford", "--val_fraction=0.25") == 0
    data = opened(tmp_path)
    assert [len(s.ids) for s in (data.train, data.val, data.test)] == [3, 1, 3]


def test_nine_tenths_of_a_list_may_be_cut_for_no_test_is(tmp_path, oxford):
    mine = f"--train_list={oxford / 'annotations' / 'list.txt'}"
    assert run(tmp_path, "oxford", mine, "--val_fraction=0.9") == 0
    data = opened(tmp_path)
    assert (len(data.train.ids), len(data.val.ids)) == (1, 6)


def test_lists_of_the_user_go_before_those_of_the_layout(tmp_path, oxford):
    lists = oxford / "annotations"
    mine = (
        f"--train_list={lists / 'test.txt'}",
        f"--val_list={lists / 'trainval.txt'}",
    )
    assert run(tmp_path, "oxford", *mine) == 0
    data = opened(tmp_path)
    assert [len(data.train.ids), len(data.val.ids), data.test] == [3, 4, None]


def test_a_root_without_what_the_layout_has_is_refused(tmp_path, oxford, capsys):
    (oxford / "annotations" / "test.txt").unlink()
    assert run(tmp_path, "oxford") == command.REFUSED
    rule = "root must hold annotations/test.txt, as layout oxford has it, got "
    assert rule in refusal(capsys)


def test_voc_has_its_lists_in_its_root(tmp_path):
    root = tmp_path / "root"
    photos = [f"2007_{n}" for n in range(5)]
    write(
        *(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", photos),
        ids=(12, 0, 255),
    )
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(photos[:3]))
    (lists / "val.txt").write_text("\n".join(photos[3:]))
    assert run(tmp_path, "voc") == 0
    data = opened(tmp_path)
    assert (len(data.train.ids), len(data.val.ids)) == (3, 2)


def test_an_image_that_a_list_of_voc_names_and_has_no_mask_is_told(tmp_path, capsys):
    root = tmp_path / "root"
    photos = [f"p{n}" for n in range(5)]
    place = (root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png")
    write(*place, photos, ids=(12, 0, 255))
    (root / "SegmentationClass" / "p0.png").unlink()
    (root / "SegmentationClass" / "p4.png").unlink()  # In no list.
    (tmp_path / "mine.txt").write_text("p0\np1\np2\n")
    lists = (f"--train_list={tmp_path / 'mine.txt'}", "--test_fraction=0")
    assert run(tmp_path, "voc", *lists) == 0
    told = capsys.readouterr().out
    assert "warning: image without mask (1)" in told and "p0.jpg" in told
    assert len(opened(tmp_path).train.ids) + len(opened(tmp_path).val.ids) == 2


@pytest.fixture
def nnunet(tmp_path):
    """Returns a writer of an nnU-Net data set; its arguments replace what is sound."""
    root = tmp_path / "root"

    def make(labels=None, cases=6, **more):
        tr = [f"case_{n}" for n in range(cases)]
        write(root, "imagesTr/{}_0000.png", "labelsTr/{}.png", tr, ids=(1, 0, 2))
        labels = labels or {"background": 0, "cell": 1, "ignore": 2}
        (root / "dataset.json").write_text(json.dumps({"labels": labels, **more}))
        return root

    return make


def test_nnunet_has_its_classes_in_dataset_json_and_test_in_labels_ts(tmp_path, nnunet):
    root = nnunet(file_ending=".png")
    # A case of test may have the name of one of train.
    ts = ["case_0", "case_1"]
    write(root, "imagesTs/{}_0000.png", "labelsTs/{}.png", ts, ids=(1, 0, 2))
    assert run(tmp_path, "nnunet", "--val_fraction=0.34") == 0
    data = opened(tmp_path)
    assert (data.class_names, data.ignore_id) == (("background", "cell"), 255)
    assert [len(s.ids) for s in (data.train, data.val, data.test)] == [4, 2, 2]
    assert names(data.test) == [f"imagesTs/{name}_0000.png" for name in ts]


def test_an_ignored_id_other_than_that_of_dataset_json_is_refused(
    tmp_path, nnunet, capsys
):
    nnunet()
    assert run(tmp_path, "nnunet", "--ignore_id=7") == command.REFUSED
    rule = "ignore_id is for masks of which nothing tells it, got 7 with layout nnunet"
    assert f"{rule}, whose files tell 2; leave it out" in refusal(capsys)
    assert run(tmp_path, "nnunet", "--ignore_id=2") == 0


def test_nnunet_without_labels_of_test_is_cut(tmp_path, nnunet):
    root = nnunet()
    write(root, "imagesTs/{}_0000.png", "unseen/{}.png", ["other"], ids=(1, 0, 2))
    assert run(tmp_path, "nnunet") == 0
    data = opened(tmp_path)
    assert len(data.test.ids) == 1
    assert names(data.test)[0].startswith("imagesTr/")


@pytest.mark.parametrize(
    "file, reason",
    [
        ("imagesTr/case_0_0001.png", "must have one file for each case, CASE_0000"),
        ("imagesTr/case_0_0000.nii.gz", "must have pictures, such as PNG"),
        ("labelsTr/case_0.nii", "must have pictures, such as PNG"),
    ],
)
def test_channels_and_volumes_of_nnunet_are_refused(
    tmp_path, nnunet, capsys, file, reason
):
    root = nnunet()
    (root / file).write_bytes(b"")
    assert run(tmp_path, "nnunet") == command.REFUSED
    said = refusal(capsys)
    assert reason in said and str(root / file) in said


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "cell": 2},
        {"background": 0, "cell": 1, "ignore": 3},
        {"0": "background", "1": "cell"},
        {"background": 0, "whole": [1, 2]},
        ["background"],
    ],
    ids=["gap", "ignore not highest", "version 1", "region", "no names"],
)
def test_labels_that_are_no_ids_from_0_on_are_refused(tmp_path, nnunet, capsys, labels):
    nnunet(labels, cases=1)
    assert run(tmp_path, "nnunet") == command.REFUSED
    assert "labels must name ids from 0 on" in refusal(capsys)


def test_more_classes_than_ids_have_room_for_are_refused(tmp_path, nnunet, capsys):
    nnunet({f"l{id}": id for id in range(256)}, cases=1)
    assert run(tmp_path, "nnunet") == command.REFUSED
    assert "class_names must be at most 255" in refusal(capsys)


def test_a_case_of_nnunet_without_its_channel_is_named(tmp_path, nnunet, capsys):
    root = nnunet()
    (root / "imagesTr/case_3_0000.png").rename(root / "imagesTr/case_3.png")
    assert run(tmp_path, "nnunet") == command.REFUSED
    assert "imagesTr/case_3.png: its name lacks _0000" in capsys.readouterr().out


@pytest.fixture
def mmseg(tmp_path):
    """Writes folders of MMSegmentation; returns their root."""
    root = tmp_path / "root"
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        folders = f"img_dir/{split}/{{}}.jpg", f"ann_dir/{split}/{{}}.png"
        # The same names in each split.
        towns = [f"ulm/{n}" for n in range(count)]
        write(root, *folders, towns, ids=(1, 0, 255))
    return root


def test_mmseg_is_split_by_its_folders(tmp_path, mmseg):
    assert run(tmp_path, "mmseg", "--class_names=road,sky") == 0
    data = opened(tmp_path)
    assert [len(s.ids) for s in (data.train, data.val, data.test)] == [4, 2, 3]
    assert names(data.val) == ["val/ulm/0.jpg", "val/ulm/1.jpg"]


@pytest.mark.parametrize("name", ["val_fraction", "test_fraction"])
def test_fractions_beside_folders_that_are_the_splits_are_refused(
    tmp_path, mmseg, capsys, name
):
    assert run(tmp_path, "mmseg", f"--{name}=0.5") == command.REFUSED
    rule = f"{name} must be left out where it cuts nothing, got 0.5"
    assert f"{rule} with the splits of layout mmseg" in refusal(capsys)


def test_a_test_without_masks_is_left_out_with_a_word(tmp_path, mmseg, capsys):
    (mmseg / "ann_dir" / "test").rename(mmseg / "unseen")
    assert run(tmp_path, "mmseg", "--class_names=road,sky") == 0
    assert "warning: split without masks (1)" in capsys.readouterr().out
    assert opened(tmp_path).test is None


def test_a_group_in_folders_of_two_splits_is_a_leak(tmp_path, mmseg, capsys):
    flags = ("--class_names=road,sky", "--group=(.*)/")
    assert run(tmp_path, "mmseg", *flags) == command.REFUSED
    assert "defect: group in two splits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "layout, flags, reason",
    [
        (
            "folders",
            [],
            "root must be given with a layout that names the folders in it",
        ),
        ("mmseg", ["--images=x"], "images must not be given with root or layout mmseg"),
        ("mmseg", ["--train_list=setup.py"], "whose folders are the splits"),
        ("mmseg", [], "root must hold img_dir, as layout mmseg has it, got"),
        ("nnunet", [], "root must hold dataset.json, as layout nnunet has it, got"),
        ("nnunet", ["--mask_suffix=_m"], "mask_suffix must not be given with layout"),
        (
            "oxford",
            ["--root=nowhere"],
            "root must be a folder on this machine, got now",
        ),
    ],
)
def test_layouts_that_cannot_be_are_refused_in_one_line(
    tmp_path, capsys, layout, flags, reason
):
    (tmp_path / "root").mkdir()
    assert run(tmp_path, layout, *flags) == command.REFUSED
    assert reason in refusal(capsys)
    assert not (tmp_path / "tfds").exists()


def test_a_layout_with_folders_of_its_own_needs_a_root(capsys):
    flags = ["--layout=nnunet", "--data_dir=tfds", "--name=mine"]
    assert prepare.main(flags) == command.REFUSED
    assert "root must be given: --root=..." in refusal(capsys)


def test_help_says_which_names_each_layout_expects(capsys):
    assert prepare.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("trimaps/NAME.png", "CASE_0000.png", "ann_dir/SPLIT/NAME.png"):
        assert name in shown
