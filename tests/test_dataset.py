"""What a data set is: its splits, the cut for validation, its features and classes."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import PET_FEATURES, draw, write_tfds

from trainer import dataset
from trainer.examples import Examples

SHAPES = dict(
    image_feature="photo",
    mask_feature="labels",
    class_names=("ground", "disc"),
    ignore_id=255,
)


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "Failed to get url https://example.org/a. HTTP code: 404.\n",
            "Failed to get url https://example.org/a. HTTP code: 404",
        ),
        (" ", "DownloadError"),
    ],
    ids=["text", "blank"],
)
def test_a_download_that_fails_is_told_in_one_line(tmp_path, monkeypatch, text, told):
    class DownloadError(Exception):
        """As TFDS', of no kind of Python's own."""

    def failing(*_):
        raise DownloadError(text)

    builder = tfds.core.DatasetBuilder
    monkeypatch.setattr(builder, "download_and_prepare", failing)
    with pytest.raises(OSError) as mishap:
        dataset.open_dataset(
            "oxford_iiit_pet", data_dir=str(tmp_path), download=True, val_fraction=0.3
        )
    assert str(mishap.value) == f"TFDS could not prepare oxford_iiit_pet: {told}"


def open_pets(data_dir, **settings):
    settings = {"val_fraction": 0.3, **settings}
    return dataset.open_dataset("oxford_iiit_pet", data_dir=data_dir, **settings)


def open_shapes(data_dir, **settings):
    settings = {"val_fraction": 0.3, **SHAPES, **settings}
    return dataset.open_dataset("shapes", data_dir=data_dir, **settings)


def file_names(split):
    """Returns the names that the examples of a split were stored under."""
    examples = Examples(split.files, split.file_lengths, None)
    feature = {"file_name": tf.io.FixedLenFeature((), tf.string)}
    return [
        tf.io.parse_single_example(examples.serialized(id), feature)["file_name"]
        .numpy()
        .decode()
        for id in split.ids.tolist()
    ]


def test_validation_is_the_head_of_each_shard_and_train_the_rest(pets):
    opened = open_pets(pets(20, shards=2), val_fraction=0.2)
    heads = [0, 1, 10, 11]
    assert opened.val.ids.tolist() == heads
    assert file_names(opened.val) == [f"train_{i}.jpg" for i in heads]
    rest = [i for i in range(20) if i not in heads]
    assert file_names(opened.train) == [f"train_{i}.jpg" for i in rest]
    assert opened.train.shard_lengths == [8, 8]
    assert opened.val.shard_lengths == [2, 2]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shards", [1, 3])
def test_train_and_validation_are_all_of_the_split_and_share_nothing(
    pets, fraction, shards
):
    opened = open_pets(pets(20, shards=shards), val_fraction=fraction)
    both = np.concatenate([opened.train.ids, opened.val.ids])
    assert sorted(both.tolist()) == list(range(20))
    assert len(opened.val.ids) == pytest.approx(20 * fraction, abs=shards / 2)


def test_test_is_never_cut(pets):
    opened = open_pets(pets(6, n_test=5), val_fraction=0.5)
    assert opened.test.ids.tolist() == [0, 1, 2, 3, 4]
    assert file_names(opened.test) == [f"test_{i}.jpg" for i in range(5)]


def test_own_validation_split_is_used_and_train_stays_whole(shapes):
    opened = open_shapes(shapes(train=6, validation=3, test=4), val_fraction=0.5)
    assert opened.val.name == "validation"
    assert [len(s.ids) for s in (opened.train, opened.val, opened.test)] == [6, 3, 4]
    assert not set(opened.val.files) & set(opened.train.files)


def test_val_split_train_cuts_even_where_there_is_a_validation_split(shapes):
    data_dir = shapes(train=6, validation=3, test=4)
    opened = open_shapes(data_dir, val_split="train", val_fraction=0.5)
    assert opened.val.files == opened.train.files
    assert [len(opened.train.ids), len(opened.val.ids)] == [2, 4]  # of shards of 3


def test_splits_can_be_chosen_by_name(shapes):
    opened = open_shapes(
        shapes(fit=4, choose=3, report=2),
        train_split="fit",
        val_split="choose",
        test_split="report",
    )
    splits = (opened.train, opened.val, opened.test)
    assert [s.name for s in splits] == ["fit", "choose", "report"]
    assert [len(s.ids) for s in splits] == [4, 3, 2]


def test_a_data_set_without_test_split_reports_nothing(shapes):
    data_dir = shapes(train=6)
    assert open_shapes(data_dir).test is None
    with pytest.raises(ValueError, match="got 'held_out'; it has train"):
        open_shapes(data_dir, test_split="held_out")


def test_test_split_none_leaves_test_alone(pets):
    assert open_pets(pets(6), test_split="none").test is None


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_limits_take_the_first_examples_of_each_shard(pets, limit):
    data_dir = pets(20, n_test=8, shards=2)
    opened = open_pets(
        data_dir,
        val_fraction=0.3,
        limit_train_examples=limit,
        limit_eval_examples=limit,
    )
    expected = {1: [0], 3: [0, 1, 10], 5: [0, 1, 2, 10, 11]}[limit]
    assert opened.val.ids.tolist() == expected
    assert opened.train.ids.tolist() == [id + 3 for id in expected]
    in_test = {1: [0], 3: [0, 1, 4], 5: [0, 1, 2, 4, 5]}[limit]
    assert opened.test.ids.tolist() == in_test


def test_a_limit_above_what_there_is_takes_all(pets):
    opened = open_pets(pets(6, n_test=3), limit_eval_examples=99)
    assert len(opened.test.ids) == 3


def test_oxford_pets_need_no_description(pets):
    opened = open_pets(pets(6))
    assert (opened.image_feature, opened.mask_feature) == ("image", "segmentation_mask")
    assert opened.class_names == ("pet", "background", "border")
    assert (opened.mask_offset, opened.ignore_id) == (-1, None)
    assert set(opened.features) == {"image", "segmentation_mask"}
    assert (opened.name, opened.version) == ("oxford_iiit_pet", "4.0.0")


def test_without_data_dir_it_is_the_bundled_sample_of_real_pets():
    opened = open_pets(None)
    assert all(file.startswith(dataset.SAMPLE_DIR) for file in opened.train.files)
    total = sum(len(s.ids) for s in (opened.train, opened.val, opened.test))
    assert 200 <= total <= 300


def test_flags_describe_any_other_data_set(shapes):
    opened = open_shapes(shapes(), mask_offset=-2)
    assert (opened.image_feature, opened.mask_feature) == ("photo", "labels")
    assert opened.class_names == ("ground", "disc")
    assert (opened.mask_offset, opened.ignore_id) == (-2, 255)


def test_flags_go_before_what_is_known(pets):
    opened = open_pets(pets(6), class_names=["a", "b", "c"], ignore_id=3, mask_offset=0)
    assert opened.class_names == ("a", "b", "c")
    assert (opened.mask_offset, opened.ignore_id) == (0, 3)


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "shapes"])
def test_directory_of_one_version_is_a_data_dir_too(pets, shapes, name):
    data_dir = pets(6) if name == "oxford_iiit_pet" else shapes(train=6, test=4)
    settings = {"val_fraction": 0.3, **({} if name == "oxford_iiit_pet" else SHAPES)}
    version_dir = os.path.join(data_dir, name, "4.0.0")
    for directory in (data_dir, version_dir):
        opened = dataset.open_dataset(name, data_dir=directory, **settings)
        assert (opened.name, opened.version) == (name, "4.0.0")
        assert [len(opened.train.ids), len(opened.test.ids)] == [4, 4]
        assert os.path.dirname(opened.train.files[0]) == version_dir


def test_a_folder_of_one_version_is_compared_with_what_is_asked(pets):
    folder = os.path.join(pets(6), "oxford_iiit_pet", "4.0.0")
    # By a run from before, or to judge a model on another data set of its classes.
    opened = dataset.open_dataset("cars", data_dir=folder, val_fraction=0.3)
    for name in ("oxford_iiit_pet", "OxfordIiitPet", "oxford_iiit_pet:4.*.*"):
        dataset.check_asked(name, opened)
    for name in ("cars", "oxford_iiit_pet:4.1.0", "no.name"):
        with pytest.raises(ValueError, match="; give --dataset=oxford_iiit_pet$"):
            dataset.check_asked(name, opened)


def write_pictures(data_dir, image_feature, mask_feature, image_of):
    """Writes a data set "pictures" with these features; `image_of` makes the image."""
    features = tfds.features.FeaturesDict(
        {"image": image_feature, "mask": mask_feature, "text": tfds.features.Text()}
    )

    def example(rng, split, index):
        image, mask = draw(rng, ids=(0, 1, 2))
        return {"image": image_of(image), "mask": mask, "text": "x"}

    return write_tfds(data_dir, "pictures", features, {"train": 4}, example, 1, 0)


PICTURES = dict(mask_feature="mask", class_names=("a", "b", "c"), val_fraction=0.3)
MASK = tfds.features.Image(shape=(None, None, 1))


def test_grey_images_are_taken(tmp_path):
    grey = tfds.features.Image(shape=(None, None, 1))
    data_dir = write_pictures(tmp_path, grey, MASK, lambda image: image[..., :1])
    opened = dataset.open_dataset("pictures", data_dir=data_dir, **PICTURES)
    assert opened.features["image"].shape == (None, None, 1)


def test_images_of_16_bits_are_refused(tmp_path):
    deep = tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)
    data_dir = write_pictures(
        tmp_path, deep, MASK, lambda image: image[..., :1].astype(np.uint16)
    )
    with pytest.raises(ValueError, match="image_feature must .*uint8, got .*uint16"):
        dataset.open_dataset("pictures", data_dir=data_dir, **PICTURES)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_feature": None}, "mask_feature must be given for shapes.*photo"),
        ({"class_names": None}, "class_names must be given for shapes"),
        ({"image_feature": "picture"}, "image_feature must .*'picture'.*labels"),
        ({"mask_feature": "lables"}, "mask_feature must .*'lables'.*labels"),
        ({"mask_feature": "photo"}, "mask_feature must be a picture of one channel"),
        ({"train_split": "fit"}, "train_split must be .* got 'fit'; it has "),
        ({"val_split": "choose"}, "val_split must be .* got 'choose'; it has "),
        ({"val_fraction": 0.01}, "val_fraction must leave examples to both sides"),
    ],
)
def test_what_does_not_fit_the_data_set_is_refused(shapes, settings, words):
    with pytest.raises(ValueError, match=words) as refusal:
        open_shapes(shapes(train=6, test=4), **settings)
    assert "\n" not in str(refusal.value)


def test_a_feature_that_is_no_picture_is_refused(pets):
    with pytest.raises(ValueError, match="image_feature must .*'species'"):
        open_pets(pets(6), image_feature="species")


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "shapes"])
def test_a_directory_without_the_data_set_is_refused_with_what_is_in_it(tmp_path, name):
    (tmp_path / "something").mkdir()
    with pytest.raises(ValueError, match=f"{name}.*something in it") as refusal:
        dataset.open_dataset(name, data_dir=str(tmp_path), **SHAPES)
    assert "\n" not in str(refusal.value)


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data_dir must be a directory.*none"):
        open_pets(str(tmp_path / "no"))


def test_a_missing_file_of_a_split_is_named(pets):
    data_dir = pets(6)
    gone = open_pets(data_dir).train.files[1]
    os.remove(gone)
    with pytest.raises(ValueError, match=f"{gone} is missing"):
        open_pets(data_dir)


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "shapes"])
@pytest.mark.parametrize(
    "changed, words",
    [
        ({"fileFormat": "riegeli"}, "in files of tfrecord, got riegeli"),
        ({"splits": []}, "data_dir must hold the TFDS data set .*; prepare it there"),
    ],
    ids=["format", "splits"],
)
def test_files_of_another_format_or_of_no_split_are_refused(
    pets, shapes, name, changed, words
):
    data_dir = pets(6) if name == "oxford_iiit_pet" else shapes()
    [path] = pathlib.Path(data_dir).glob("*/*/dataset_info.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    for directory in (data_dir, path.parent):
        with pytest.raises(ValueError, match=words):
            dataset.open_dataset(name, data_dir=str(directory), **SHAPES)


def test_files_of_a_format_that_is_not_told_are_tfrecord(pets):
    """As TFDS wrote them before it knew any other."""
    data_dir = pets(6)
    [path] = pathlib.Path(data_dir).glob("*/*/dataset_info.json")
    about = json.loads(path.read_text())
    del about["fileFormat"]
    path.write_text(json.dumps(about))
    for directory in (data_dir, path.parent):
        assert len(open_pets(str(directory)).test.ids) == 4


def test_a_split_without_examples_is_refused(tmp_path):
    def example(rng, split, index):
        image, mask = draw(rng, ids=(1, 2, 3))
        return {
            "file_name": "x",
            "head_bbox": tfds.features.BBox(0.0, 0.0, 0.0, 0.0),
            "image": image,
            "label": 0,
            "segmentation_mask": mask,
            "species": 0,
        }

    splits = {"test": 2}
    data_dir = write_tfds(
        tmp_path, "oxford_iiit_pet", PET_FEATURES, splits, example, 1, 0
    )
    with pytest.raises(ValueError, match="got 'train'; it has test"):
        open_pets(data_dir)
