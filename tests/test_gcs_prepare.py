"""A data set prepared in a bucket: TensorFlow's own gs:// code, for real."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import draw
from PIL import Image


@pytest.fixture
def command(tmp_path, gcs_bucket):
    """Returns the command that prepares a small folder in the bucket."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index in range(4):
        image, mask = draw(rng, ids=(1, 0, 255))
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.jpg")
        Image.fromarray(mask[..., 0]).save(tmp_path / "masks" / f"{index}.png")
    return [
        *(sys.executable, "-m", "trainer.prepare", f"--images={tmp_path / 'images'}"),
        *(f"--masks={tmp_path / 'masks'}", f"--data_dir=gs://{gcs_bucket}/tfds"),
        *("--name=mine", "--class_names=ground,disc"),
    ]


@pytest.mark.slow
def test_a_data_set_is_prepared_in_a_bucket_once(command, gcs, gcs_bucket):
    def run() -> subprocess.CompletedProcess:
        environment = {**os.environ, **gcs.environment}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stderr
    names = gcs.names(gcs_bucket, "tfds/mine/1.0.0/")
    assert {name.split("/")[-1] for name in names} == {
        *("dataset_info.json", "features.json", "mask.labels.txt", "metadata.json"),
        *("mine-train.tfrecord-00000-of-00001", "mine-test.tfrecord-00000-of-00001"),
    }
    again = run()
    assert again.returncode == 2
    assert "name must be new, got mine" in again.stderr
