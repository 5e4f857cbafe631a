"""Stored examples by id: read once with a cache, and no more held back than wanted."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from trainer.examples import Examples


@pytest.fixture
def stored(tmp_path):
    """Returns files of 5 and 3 examples, which say where they are: b"1/2"."""
    files = []
    for shard, length in enumerate((5, 3)):
        files.append(str(tmp_path / f"part-{shard}.tfrecord"))
        with tf.io.TFRecordWriter(files[-1]) as writer:
            for i in range(length):
                writer.write(f"{shard}/{i}".encode())
    return files


NAMES = [b"0/0", b"0/1", b"0/2", b"0/3", b"0/4", b"1/0", b"1/1", b"1/2"]


@pytest.fixture
def reads(monkeypatch):
    """Counts the records read from each file."""
    counts: collections.Counter = collections.Counter()
    read_next = Examples._read_next

    def counted(self, shard, id):
        counts[shard] += 1
        read_next(self, shard, id)

    monkeypatch.setattr(Examples, "_read_next", counted)
    return counts


@pytest.mark.parametrize("cache_size", [None, 2])
def test_example_of_each_id_is_the_stored_one(stored, cache_size):
    for ids in (range(8), range(7, -1, -1), [3, 3, 6, 0, 6]):
        examples = Examples(stored, [5, 3], cache_size)
        assert [examples.serialized(id) for id in ids] == [NAMES[id] for id in ids]


def test_with_a_cache_each_example_is_read_once_in_many_epochs(stored, reads):
    examples = Examples(stored, [5, 3], cache_size=2)
    examples.want(np.arange(8))
    rng = np.random.default_rng(0)
    for epoch in range(4):
        for id in rng.permutation(8):
            record = examples.serialized(id)
            assert record == (b"" if epoch else NAMES[id])
            if record:
                image = np.full((2, 2, 3), id, np.uint8)
                examples.put(id, image, image[..., 0] + 100)
            image, mask = examples.get(id)
            assert (image == id).all() and (mask == id + 100).all()
    assert reads == {0: 5, 1: 3}
    assert not examples._pending


def test_memory_is_for_those_that_may_be_kept_only(stored):
    kept = np.array([6, 1])
    examples = Examples(stored, [5, 3], cache_size=2, kept=kept)
    assert examples._images.shape == (2, 2, 2, 3)
    for id in kept:
        assert examples.serialized(id) == NAMES[id]
        examples.put(id, np.full((2, 2, 3), id), np.full((2, 2), id))
    for id in kept:
        image, mask = examples.get(id)
        assert (image == id).all() and (mask == id).all()


def test_an_example_that_is_not_decoded_yet_is_given_again_without_reading(
    stored, reads
):
    examples = Examples(stored, [5, 3], cache_size=2)
    assert [examples.serialized(2), examples.serialized(2)] == [b"0/2"] * 2
    assert reads == {0: 3}


def test_without_a_cache_each_epoch_reads_each_file_once(stored, reads):
    examples = Examples(stored, [5, 3], cache_size=None)
    rng = np.random.default_rng(0)
    for _ in range(3):
        examples.want(np.arange(8))
        for id in rng.permutation(8):
            assert examples.serialized(id) == NAMES[id]
        assert not examples._pending
    assert reads == {0: 15, 1: 9}


@pytest.mark.parametrize("cache_size", [2, None])
def test_what_is_only_looked_at_is_not_read_again(stored, reads, cache_size):
    examples = Examples(stored, [5, 3], cache_size)
    examples.want(np.arange(8))
    for _ in range(2):
        assert [examples.serialized(id, keep=True) for id in (3, 6)] == [b"0/3", b"1/1"]
    examples.want(np.arange(8))
    assert [examples.serialized(id) for id in range(8)] == NAMES
    assert reads == {0: 5, 1: 3}


def test_reading_holds_back_only_what_is_wanted(stored):
    examples = Examples(stored, [5, 3], cache_size=None)
    examples.want(np.array([1, 3, 4, 5]))
    assert examples.serialized(3) == b"0/3"
    assert set(examples._pending) == {1}
    assert examples.serialized(1) == b"0/1"
    assert examples.serialized(4) == b"0/4"
    assert set(examples._pending) == set()


def test_reading_stops_at_the_example_that_was_asked_for(stored, reads):
    Examples(stored, [5, 3], cache_size=None).serialized(1)
    assert reads == {0: 2}


def test_a_file_with_too_few_examples_is_named(stored):
    examples = Examples(stored, [5, 4], cache_size=None)
    assert examples.serialized(7) == b"1/2"
    with pytest.raises(ValueError, match=r"part-1\.tfrecord must hold 4 .*got 3"):
        examples.serialized(8)


def test_a_file_cut_short_is_named_with_the_last_good_example(stored):
    with open(stored[0], "rb") as file:
        data = file.read()
    with open(stored[0], "wb") as file:
        file.write(data[:-3])
    examples = Examples(stored, [5, 3], cache_size=None)
    assert examples.serialized(3) == b"0/3"
    with pytest.raises(
        ValueError, match=r"part-0\.tfrecord cannot be read .*example 4"
    ):
        examples.serialized(4)
    assert examples.serialized(5) == b"1/0"


def test_a_missing_file_is_named(stored):
    examples = Examples([stored[0], stored[1] + ".gone"], [5, 3], cache_size=None)
    with pytest.raises(ValueError, match=r"part-1\.tfrecord\.gone"):
        examples.serialized(6)


def test_name_says_where_an_example_is(stored):
    examples = Examples(stored, [5, 3], cache_size=None)
    assert examples.name(4) == f"example 4 of {stored[0]}"
    assert examples.name(5) == f"example 0 of {stored[1]}"
