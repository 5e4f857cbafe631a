"""One of TFDS' own data sets is fetched into a data directory, whole or not at all."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import draw

from trainer import bucket, command, dataset, prepare, shards


class TinyMasks(tfds.core.GeneratorBasedBuilder):
    """A data set of TFDS' kind, made in a moment, downloading nothing."""

    VERSION = tfds.core.Version("2.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "mask": tfds.features.Image(shape=(None, None, 1), dtype=np.uint8),
            }
        )
        return self.dataset_info_from_configs(features=features, description="Discs.")

    def _split_generators(self, dl_manager):
        archives = pathlib.Path(dl_manager.download_dir)
        archives.mkdir(parents=True, exist_ok=True)
        (archives / "archive").write_text("as if downloaded")
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        rng = np.random.default_rng(count)
        for index in range(count):
            image, mask = draw(rng, ids=(1, 0, 2))
            yield index, {"image": image, "mask": mask}


def run(data_dir, *flags, name="tiny_masks"):
    return prepare.main([f"--dataset={name}", f"--data_dir={data_dir}", *flags])


def sizes(data_dir):
    data = dataset.open_dataset(
        *("tiny_masks",),
        data_dir=str(data_dir),
        mask_feature="mask",
        class_names=("ground", "disc", "border"),
        val_fraction=0.34,
    )
    return [len(split.ids) for split in (data.train, data.val, data.test)]


def refusal(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_a_data_set_of_tfds_is_fetched_whole(tmp_path, capsys):
    assert run(tmp_path / "tfds") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}/tfds/tiny_masks/2.0.0\ntrain on it:\n")
    assert f"--dataset=tiny_masks --data_dir={tmp_path}/tfds --mask_feature=..." in out
    assert sizes(tmp_path / "tfds") == [4, 2, 2]
    # Neither archives nor anything unfinished stays beside it.
    assert os.listdir(tmp_path / "tfds") == ["tiny_masks"]
    assert os.listdir(tmp_path / "tfds" / "tiny_masks") == ["2.0.0"]


def test_what_is_downloaded_is_kept_where_asked(tmp_path):
    assert run(tmp_path / "tfds", f"--download_dir={tmp_path / 'kept'}") == 0
    kept = os.listdir(tmp_path / "kept")
    assert "archive" in kept and not [n for n in kept if n.startswith(".incomplete")]
    assert sizes(tmp_path / "tfds") == [4, 2, 2]


def test_a_data_set_that_is_there_is_not_fetched_again(tmp_path, capsys, monkeypatch):
    assert run(tmp_path / "tfds") == 0
    capsys.readouterr()
    monkeypatch.delattr(TinyMasks, "_split_generators")
    assert run(tmp_path / "tfds") == command.REFUSED
    assert (
        f"dataset must be new to data_dir, got tiny_masks, which {tmp_path}/tfds/"
        "tiny_masks/2.0.0 holds already; train on it: python -m trainer.task"
    ) in refusal(capsys)


def test_what_lies_where_a_data_set_is_to_be_is_refused_before_it_is_fetched(
    tmp_path, capsys, monkeypatch
):
    place = tmp_path / "tfds" / "tiny_masks" / "2.0.0"
    place.mkdir(parents=True)
    (place / "part").write_text("of a copy")
    monkeypatch.delattr(TinyMasks, "_split_generators")
    assert run(tmp_path / "tfds") == command.REFUSED
    assert f"something else in {place}; move that away" in refusal(capsys)
    assert os.listdir(place) == ["part"]


@pytest.mark.parametrize(
    "mishap, reason",
    [
        (tfds.core.download.util.DownloadError, "no answer"),
        (OSError, "no answer"),
        (AssertionError, "no answer"),
        (KeyboardInterrupt, "interrupted; nothing was written"),
    ],
    ids=["of TFDS", "network", "of the builder", "Ctrl-C"],
)
def test_nothing_is_left_where_fetching_fails(
    tmp_path, capsys, monkeypatch, mishap, reason
):
    def generate(_, count):
        yield 0, {"image": np.zeros((4, 4, 3), "u1"), "mask": np.zeros((4, 4, 1), "u1")}
        raise mishap("no answer\nfrom there")

    monkeypatch.setattr(TinyMasks, "_generate_examples", generate)
    code = run(tmp_path / "tfds")
    said = refusal(capsys)
    assert reason in said and said.endswith("; nothing was written\n")
    if mishap is KeyboardInterrupt:
        assert code == command.INTERRUPTED
    else:
        assert code == command.FAILED
        assert "TFDS could not prepare tiny_masks: no answer" in said
    assert not (tmp_path / "tfds").exists()


def test_a_data_set_is_fetched_into_a_bucket(
    tmp_path, capsys, gcs, gcs_here, gcs_bucket
):
    data_dir = f"gs://{gcs_bucket}/data"
    assert run(data_dir, f"--download_dir={tmp_path / 'kept'}") == 0
    names = gcs.names(gcs_bucket, "data/")
    assert {name.removeprefix("data/tiny_masks/2.0.0/") for name in names} == {
        *("dataset_info.json", "features.json"),
        *(f"tiny_masks-{s}.tfrecord-00000-of-00001" for s in ("train", "test")),
    }
    assert sizes(data_dir) == [4, 2, 2]
    kept = os.listdir(tmp_path / "kept")
    assert "archive" in kept and not [n for n in kept if n.startswith(".incomplete")]
    capsys.readouterr()
    assert run(data_dir) == command.REFUSED
    assert f"which {data_dir}/tiny_masks/2.0.0 holds already" in refusal(capsys)


def test_a_copy_that_fails_leaves_nothing_in_the_bucket(
    tmp_path, capsys, monkeypatch, gcs, gcs_here, gcs_bucket
):
    copy = shards.files.copy

    def full(source, target):
        if target.endswith(shards.LAST):
            raise OSError("no space")
        copy(source, target)

    monkeypatch.setattr(shards.files, "copy", full)
    assert run(f"gs://{gcs_bucket}/data") == command.FAILED
    assert "no space; nothing was written" in refusal(capsys)
    assert not gcs.names(gcs_bucket, "data/")


def test_a_bucket_is_asked_before_anything_is_downloaded(
    capsys, monkeypatch, gcs_here, gcs
):
    monkeypatch.delattr(TinyMasks, "_split_generators")
    monkeypatch.setattr(bucket, "SECONDS", 1.0)
    assert run("gs://of-nobody/data") == command.REFUSED
    assert "there is no bucket of-nobody" in refusal(capsys)


@pytest.mark.parametrize(
    "name, flags, reason",
    [
        ("oxford_pets", [], "dataset must be one of TFDS' own, got oxford_pets: Datas"),
        ("tiny_masks:9.9.9", [], "cannot be loaded at version 9.9.9, only: 2.0.0"),
        ("tiny_masks", ["--name=mine"], "dataset must be given without name, which is"),
        ("tiny_masks", ["--images=x"], "dataset must be given without images"),
        ("tiny_masks", ["--download_dir=gs://b/x"], "must be a folder on this machine"),
    ],
)
def test_what_cannot_be_fetched_is_refused_in_one_line(
    tmp_path, capsys, name, flags, reason
):
    assert run(tmp_path / "tfds", *flags, name=name) == command.REFUSED
    assert reason in refusal(capsys)
    assert not (tmp_path / "tfds").exists()


def test_a_folder_of_downloads_is_for_data_sets_of_tfds(capsys):
    assert prepare.main(["--download_dir=x"]) == command.REFUSED
    assert "download_dir must be given with dataset" in refusal(capsys)
