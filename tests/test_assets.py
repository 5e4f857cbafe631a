"""What ships inside the package: the sample of real data and the encoder's weights."""

import hashlib
import pathlib
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import trainer
from benchmarks import make_sample

ASSETS = pathlib.Path(trainer.__file__).parent / "assets"
SAMPLE = ASSETS / "sample"
VERSION = SAMPLE / "oxford_iiit_pet" / "4.0.0"
WEIGHTS = ASSETS / "weights" / "mobilenet_v2_1.0_224_no_top.weights.h5"
WEIGHTS_SHA256 = "67f237619be09c65ee1b7bc5aba641fe2eedae49d43e46c286c0ba55480122dc"


def sample(split: str) -> list[dict]:
    builder = tfds.builder("oxford_iiit_pet", data_dir=SAMPLE)
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


def test_sample_is_at_most_4_mb():
    size = sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file())
    assert size <= 4e6


def test_sample_opens_by_name_and_by_directory():
    by_name = tfds.builder("oxford_iiit_pet", data_dir=SAMPLE).info
    by_directory = tfds.builder_from_directory(VERSION).info
    for info in (by_name, by_directory):
        assert str(info.version) == "4.0.0"
        assert info.splits["train"].shard_lengths == [37] * 5
        assert info.splits["test"].shard_lengths == [37] * 2
        assert info.features["label"].num_classes == 37


@pytest.mark.parametrize(("split", "per_breed"), [("train", 5), ("test", 2)])
def test_sample_has_what_its_info_says_and_every_breed_alike(split, per_breed):
    examples = sample(split)
    assert len(examples) == 37 * per_breed
    assert set(Counter(int(e["label"]) for e in examples).values()) == {per_breed}
    assert len({e["file_name"] for e in examples}) == len(examples)
    assert {int(e["species"]) for e in examples} == {0, 1}


def test_train_and_test_share_no_photograph():
    train, test = ({e["file_name"] for e in sample(s)} for s in ("train", "test"))
    assert not train & test


def test_sample_masks_hold_trimap_ids_and_fit_their_images():
    for example in sample("train") + sample("test"):
        mask = example["segmentation_mask"]
        assert mask.shape[:2] == example["image"].shape[:2]
        assert set(np.unique(mask)) <= {1, 2, 3}


def test_licences_and_citation_lie_beside_what_they_cover():
    notice = (SAMPLE / "NOTICE.md").read_text(encoding="utf-8")
    for words in ("CC BY-SA 4.0", "remain their owners'", "parkhi12a", "185 train"):
        assert words in notice
    info = tfds.builder_from_directory(VERSION).info
    assert "CC BY-SA 4.0" in info.redistribution_info.license
    assert "parkhi12a" in info.citation
    weights_notice = (WEIGHTS.parent / "NOTICE.md").read_text(encoding="utf-8")
    for words in ("MIT License", "Apache License 2.0", WEIGHTS_SHA256):
        assert " ".join(words.split()) in " ".join(weights_notice.split())


def test_weights_are_the_file_that_the_notice_names():
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == WEIGHTS_SHA256


def test_a_sample_of_the_sample_copies_examples_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(make_sample, "SHARDS", {"train": 2, "test": 1})
    directory = make_sample.make_sample(str(SAMPLE), str(tmp_path))

    def records(folder: pathlib.Path, split: str) -> list[bytes]:
        files = sorted(str(path) for path in folder.glob(f"*-{split}.tfrecord-*"))
        return list(tf.data.TFRecordDataset(files).as_numpy_iterator())

    # The first shards of the sample are what fewer shards would have been, so the
    # choice neither depends on the source's shards nor on their order.
    assert records(directory, "train") == records(VERSION, "train")[: 2 * 37]
    assert records(directory, "test") == records(VERSION, "test")[:37]
    assert tfds.builder_from_directory(directory).info.splits.total_num_examples == 111


def test_a_label_with_too_few_examples_is_refused():
    records = list(
        tf.data.TFRecordDataset(
            [str(path) for path in VERSION.glob("*-test.tfrecord-*")]
        ).as_numpy_iterator()
    )
    with pytest.raises(ValueError, match="needs 3 examples.*got 2 of label 0"):
        make_sample.shards_by_class(records, 3)
