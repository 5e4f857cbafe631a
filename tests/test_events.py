"""TensorBoard's events: each once, whatever a restart or a store of objects does."""

import numpy as np
import pytest

from tests import runs
from trainer import events, files

SUFFIX = ".0123.v2"
NOISE = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)


def up_to(step):
    """Returns what keeps the events of a step and before."""
    return lambda at, tags: at <= step


@pytest.fixture
def written(tmp_path):
    """Writes events of the steps 2, 4 and 6, and returns their file."""
    one = events.Events(str(tmp_path), SUFFIX)
    for step in (2, 4, 6):
        one.scalars({"step": step, "loss": 1.0})
    one.close()
    [path] = tmp_path.iterdir()
    return path


def test_trimming_removes_later_events_only(written):
    events.trim(str(written.parent), SUFFIX, up_to(4))
    assert runs.events(written.parent) == {("loss", 2): 1, ("loss", 4): 1}
    assert list(written.parent.iterdir()) == [written]


def test_a_folder_may_have_a_bracket_in_its_name(written):
    folder = written.parent / "lr[1e-3]"
    folder.mkdir()
    written.rename(folder / written.name)
    events.trim(str(folder), SUFFIX, up_to(4))
    assert {step for _, step in runs.events(folder)} == {2, 4}


def test_a_file_that_needs_no_trimming_is_left_as_it_is(written):
    before = written.stat()
    events.trim(str(written.parent), SUFFIX, up_to(6))
    after = written.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("cut", [1, 10, 20])
def test_trimming_removes_a_torn_tail_and_keeps_what_is_before(written, cut):
    written.write_bytes(written.read_bytes()[:-cut])
    events.trim(str(written.parent), SUFFIX, up_to(6))
    assert runs.events(written.parent) == {("loss", 2): 1, ("loss", 4): 1}


def test_what_is_told_is_on_a_disk_at_once(tmp_path):
    one = events.Events(str(tmp_path), SUFFIX)
    one.scalars({"step": 2, "kind": "train", "loss": 1.5, "val_iou/pet": None})
    one.image("curves", NOISE, 2)
    assert runs.events(tmp_path) == {("loss", 2): 1, ("curves", 2): 1}
    assert one.take() == {}
    one.close()


def test_a_store_of_objects_gets_files_of_bounded_size_each_event_once(tmp_path):
    one = events.Events("gs://bucket/logs", SUFFIX)
    store: dict[str, bytes] = {}
    for step in range(1, 11):  # A picture of noise takes a megabyte.
        one.scalars({"step": step, "loss": 1.0})
        one.image("predictions", NOISE, step)
        taken = one.take()
        assert len(taken) == 1  # Of the files before, nothing is written again.
        store |= taken
    one.close()
    assert 3 <= len(store) <= 5
    assert max(map(len, store.values())) < events.FILE_BYTES + 2 * NOISE.nbytes
    for path, content in store.items():
        assert path.startswith("gs://bucket/logs/events.out.tfevents.")
        (tmp_path / path.rsplit("/", 1)[1]).write_bytes(content)
    tags = ("loss", "predictions")
    expected = {(tag, step): 1 for tag in tags for step in range(1, 11)}
    assert runs.events(tmp_path) == expected


def test_events_in_a_bucket_are_trimmed_there(gcs, gcs_bucket, gcs_here, written):
    path = f"gs://{gcs_bucket}/logs/{written.name}"
    files.write(path, written.read_bytes())
    events.trim(f"gs://{gcs_bucket}/logs", SUFFIX, up_to(4))
    written.write_bytes(gcs.get(path))
    assert runs.events(written.parent) == {("loss", 2): 1, ("loss", 4): 1}
