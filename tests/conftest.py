"""What every test gets: four virtual devices, a clean environment, small real data."""

import collections
import ipaddress
import os
import pathlib
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence

# TensorFlow reads these once, when imported; the second is what our commands set.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from benchmarks import scale_dataset
from tests.gcs import programs, server
from tests.vertex import server as vertex_server
from trainer import model, task
from trainer.shards import write_dataset

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)

SERVICE_PREFIXES = ("AIP_", "CLOUD_ML_", "TF_CONFIG", "CLUSTER_SPEC")
# A port that nobody listens on: libraries in C++ and child processes, which the patched
# socket does not reach, fail at once instead of leaving the machine.
NOWHERE = "http://127.0.0.1:9"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files of slow tests: a last long one would run by itself."""
    slow = collections.Counter(
        item.path for item in items if item.get_closest_marker("slow")
    )
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def log_of_each_test():
    """Takes back where a run sent its log lines: to a terminal that ends with a test."""
    logger = logging.get_absl_logger()
    before = (logger.handlers[:], logger.propagate)
    yield
    logger.handlers[:], logger.propagate = before


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Takes away what a cloud job would find, and keeps the tuner's file in tmp_path."""
    for name in [name for name in os.environ if name.startswith(SERVICE_PREFIXES)]:
        monkeypatch.delenv(name)
    metric_file = tmp_path / "hypertune" / "output.metrics"
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(metric_file))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, NOWHERE)
        monkeypatch.setenv(name.upper(), NOWHERE)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "localhost,127.0.0.1,::1")


def is_loopback(address: object) -> bool:
    """Returns whether a socket address, of any family, stays on this machine."""
    if not isinstance(address, tuple):
        return True  # a Unix domain socket has a path
    if address[0] == "localhost":
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses connections to anything but this machine."""

    def guarded(connect: Callable) -> Callable:
        def checked(self: socket.socket, address: object) -> object:
            if not is_loopback(address):
                raise OSError(f"tests must not use the network, got {address}")
            return connect(self, address)

        return checked

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))


PET_FEATURES = tfds.features.FeaturesDict(
    {
        "file_name": tfds.features.Text(),
        "head_bbox": tfds.features.BBoxFeature(),
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=37),
        "segmentation_mask": tfds.features.Image(
            shape=(None, None, 1), use_colormap=True
        ),
        "species": tfds.features.ClassLabel(names=["Cat", "Dog"]),
    }
)


def draw(rng: np.random.Generator, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture that can be learned: a disc, its border, the ground.

    Args:
        rng: Draws the size (33 to 64 pixels a side), the disc and the colours.
        ids: Stored ids of disc, ground and border.

    Returns:
        The image, (H, W, 3) uint8, and the mask, (H, W, 1) uint8.
    """
    height, width = (int(side) for side in rng.integers(33, 65, 2))
    rows, columns = np.mgrid[:height, :width]
    centre = rng.uniform(0.35, 0.65, 2) * (height, width)
    distance = np.hypot(rows - centre[0], columns - centre[1])
    radius = rng.uniform(0.2, 0.35) * min(height, width)
    kind = np.digitize(distance - radius, [-2, 2])  # 0 inside, 1 border, 2 outside
    colours = np.array([[200, 60, 60], [230, 230, 80], [60, 90, 200]])
    image = colours[kind] + rng.integers(-30, 31, (height, width, 3))
    disc, ground, border = ids
    mask = np.array([disc, border, ground])[kind]
    return np.clip(image, 0, 255).astype(np.uint8), mask[..., None].astype(np.uint8)


Draw = Callable[[np.random.Generator, str, int], dict]


def write_tfds(
    data_dir: pathlib.Path,
    name: str,
    features: tfds.features.FeaturesDict,
    splits: dict[str, int],
    example: Draw,
    shards: int,
    seed: int,
) -> str:
    """Returns `data_dir`, with a data set written into it that has no builder code.

    Args:
        data_dir: Where TFDS will look for `name`.
        name: Name of the data set; its version is 4.0.0, as that of oxford_iiit_pet.
        features: What its examples hold.
        splits: Number of examples of each split; one of none is not written.
        example: Makes the values of one example from (random numbers, split, index).
        shards: Number of files of each split, fewer where it has fewer examples.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    shards_of = {}
    for split, count in splits.items():
        values = [example(rng, split, index) for index in range(count)]
        records = [
            features.serialize_example(features.encode_example(value))
            for value in values
        ]
        if records:
            shards_of[split] = scale_dataset.deal(records, min(shards, count))
    write_dataset(data_dir / name / "4.0.0", name, shards_of, features)
    return str(data_dir)


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Writes small data sets by the contract of oxford_iiit_pet.

    `pets(n_train, n_test=4, shards=2, seed=0)` returns a data_dir. Images are JPEG and
    33 to 64 pixels a side, masks PNG of the same size with ids 1 pet, 2 background,
    3 border; sizes differ between examples. File names count within a split, in stored
    order: train_0.jpg, train_1.jpg, ...
    """

    def example(rng: np.random.Generator, split: str, index: int) -> dict:
        image, mask = draw(rng, ids=(1, 2, 3))
        return {
            "file_name": f"{split}_{index}.jpg",
            "head_bbox": tfds.features.BBox(0.0, 0.0, 0.0, 0.0),
            "image": image,
            "label": index % 37,
            "segmentation_mask": mask,
            "species": index % 2,
        }

    def write(n_train: int, n_test: int = 4, shards: int = 2, seed: int = 0) -> str:
        data_dir = tmp_path_factory.mktemp("pets")
        splits = {"train": n_train, "test": n_test}
        return write_tfds(
            data_dir, "oxford_iiit_pet", PET_FEATURES, splits, example, shards, seed
        )

    return write


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Writes small data sets named "shapes", which TFDS knows from their files alone.

    `shapes(train=8, test=4, shards=2, seed=0)` returns a data_dir; the keywords before
    `shards` are the splits, `validation=4` may be one. Features are `photo` (PNG) and
    `labels` with ids 0 ground, 1 disc and 255, ignored, between the two.
    """
    features = tfds.features.FeaturesDict(
        {
            "photo": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "labels": tfds.features.LabeledImage(
                labels=256, shape=(None, None, 1), encoding_format="png"
            ),
        }
    )

    def example(rng: np.random.Generator, split: str, index: int) -> dict:
        photo, labels = draw(rng, ids=(1, 0, 255))
        return {"photo": photo, "labels": labels}

    def write(shards: int = 2, seed: int = 0, **splits: int) -> str:
        data_dir = tmp_path_factory.mktemp("shapes")
        splits = splits or {"train": 8, "test": 4}
        return write_tfds(data_dir, "shapes", features, splits, example, shards, seed)

    return write


def one_layer(*, image_size: int, num_classes: int, seed: int, **_) -> keras.Model:
    """Returns a model of one layer, in the place of the U-Net, which takes seconds."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((image_size, image_size, 3))
    convolution = keras.layers.Conv2D(num_classes, 3, padding="same", name="logits")
    return keras.Model(image, convolution(image))


@pytest.fixture
def tiny_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a model of one layer in the place of the U-Net."""
    monkeypatch.setattr(model, "build_unet", one_layer)


@pytest.fixture(scope="session")
def gcs_of_session() -> Iterator[server.Server]:
    """Returns a Google Cloud Storage of our own, the same for all tests."""
    if reason := programs.missing():
        pytest.skip(reason)
    with server.serve() as running:
        yield running


@pytest.fixture
def gcs(gcs_of_session: server.Server) -> Iterator[server.Server]:
    """Returns a Google Cloud Storage of our own: no faults, no distance.

    Child processes find it by `gcs.environment`; `gcs_bucket` is a bucket of the test's
    own in it.
    """
    gcs_of_session.set_faults()
    yield gcs_of_session
    gcs_of_session.set_faults()


@pytest.fixture
def gcs_bucket(gcs: server.Server) -> Iterator[str]:
    """Returns the name of a bucket that is empty, and deleted in the end."""
    bucket = f"test-{uuid.uuid4().hex}"
    gcs.make_bucket(bucket)
    yield bucket
    gcs.delete_bucket(bucket)


@pytest.fixture
def gcs_here(gcs: server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leads this process to our own Google Cloud Storage, too."""
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def vertex_of_session() -> Iterator[vertex_server.Service]:
    """Returns a Vertex AI of our own, the same for all tests."""
    if reason := vertex_server.missing():
        pytest.skip(reason)
    with vertex_server.serve() as running:
        yield running


@pytest.fixture
def vertex(
    vertex_of_session: vertex_server.Service,
) -> Iterator[vertex_server.Service]:
    """Returns a Vertex AI of our own: no jobs, no requests, no faults.

    Clients find it by `vertex.address`, an api_endpoint for REST.
    """
    vertex_of_session.reset()
    yield vertex_of_session
    vertex_of_session.reset()


@pytest.fixture
def refused(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Returns the line with which a command is refused, its "segtrainer: " left out."""
    # TensorFlow's own lines are kept off the terminal only where nobody asked for them.
    monkeypatch.setattr(tf.get_logger(), "disabled", True)

    def run(*args: str, main: Callable[[Sequence[str]], int] = task.main) -> str:
        capfd.readouterr()  # What made the places wrote is not the command's.
        code = main(args)
        out, err = capfd.readouterr()
        assert (code, out) == (2, "")
        [line] = err.splitlines()
        assert line.startswith("segtrainer: ")
        assert not re.search(r"Traceback|Error:", line), line
        return line.removeprefix("segtrainer: ")

    return run
