"""Batches: masks that keep their classes, one order whatever is cached or resumed."""

import dataclasses
import io
import itertools
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import config, data, dataset, feed, loading, order, records, streams
from trainer.examples import Examples

SIZE = 32
ALL = dict(
    flip=True,
    crop_scale_min=0.7,
    brightness=0.1,
    contrast=0.1,
    saturation=0.1,
    hue=0.02,
)


def open_pets(data_dir, **settings):
    settings = {"val_fraction": 0.3, **settings}
    return dataset.open_dataset("oxford_iiit_pet", data_dir=data_dir, **settings)


def open_shapes(data_dir, **settings):
    shapes = dict(
        image_feature="photo",
        mask_feature="labels",
        class_names=("ground", "disc"),
        ignore_id=255,
        val_fraction=0.3,
    )
    return dataset.open_dataset("shapes", data_dir=data_dir, **{**shapes, **settings})


def train_reader(opened, cache, augmentation=ALL):
    """Returns the reader of train as a run makes it."""
    size = data.train_size(SIZE, augmentation)
    return data.examples_of(opened, SIZE, cache, train_size=size)["train"]


def train(opened, count, *, start=0, batch_size=4, cache="memory", augmentation=ALL):
    """Returns the first `count` images and masks of the stream from `start` on."""
    examples = train_reader(opened, cache, augmentation)

    def stream(stop):
        return streams.train_batches(
            opened,
            examples,
            image_size=SIZE,
            batch_size=batch_size,
            seed=3,
            window=1000,
            start=start,
            augmentation=augmentation,
            stop=stop,
        )

    return taken(stream, count, batch_size)


def taken(stream, count, batch_size):
    """Returns the first `count` images and masks of an endless stream."""
    with streams.iterator(stream) as batches:
        parts = [next(batches) for _ in range(-(-count // batch_size))]
    image, mask = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return image, mask


def evaluated(opened, split, *, batch_size, replicas=1, cache="none", examples=None):
    """Returns the batches of a split."""
    examples = examples or data.examples_of(opened, SIZE, cache)[split]

    of_split = getattr(opened, split)
    turns = -(-len(of_split.ids) // (batch_size * replicas))

    def stream(stop):
        return streams.eval_batches(
            opened,
            of_split,
            examples,
            image_size=SIZE,
            batch_size=batch_size,
            batches=turns * replicas,
            stop=stop,
        )

    with streams.iterator(stream) as batches:
        return [(image.numpy(), mask.numpy()) for image, mask in batches]


def ids_of(opened, count):
    """Returns which examples the stream of `train` holds, in its order."""
    lengths, ids = opened.train.shard_lengths, []
    for epoch in range(-(-count // sum(lengths))):
        turn = order.epoch_order(lengths, seed=3, epoch=epoch, window=1000)
        ids += opened.train.ids[turn].tolist()
    return ids[:count]


# ---------------------------------------------------------------------------
# One example


def test_resized_mask_invents_no_class(pets):
    opened = open_pets(pets(4, n_test=8))
    [(_, mask)] = evaluated(opened, "test", batch_size=8)
    assert all(set(np.unique(m)) == {0, 1, 2} for m in mask)


def test_resized_mask_holds_stored_ids_of_the_nearest_pixels(pets):
    opened = open_pets(pets(4))
    record = data.examples_of(opened, SIZE, "none")["test"].serialized(0)
    stored = opened.features.deserialize_example(record)["segmentation_mask"].numpy()
    height, width = stored.shape[:2]
    rows = ((np.arange(SIZE) + 0.5) * height / SIZE).astype(int)
    columns = ((np.arange(SIZE) + 0.5) * width / SIZE).astype(int)
    _, mask = records.decode(opened, record, SIZE)
    np.testing.assert_array_equal(mask, stored[rows][:, columns, 0] - 1)


def test_resized_image_is_the_bilinear_one_rounded(pets):
    opened = open_pets(pets(4))
    record = data.examples_of(opened, SIZE, "none")["test"].serialized(0)
    stored = opened.features.deserialize_example(record)["image"]
    image, _ = records.decode(opened, record, SIZE)
    expected = tf.image.resize(stored, (SIZE, SIZE), method="bilinear")
    assert np.abs(image.numpy() - expected.numpy()).max() <= 0.501


def test_batches_are_uint8_squares(pets):
    opened = open_pets(pets(6))
    for image, mask in (
        train(opened, 4),
        train(opened, 4, cache="none", augmentation=None),
        evaluated(opened, "test", batch_size=4)[0],
    ):
        assert (image.shape, image.dtype) == ((4, SIZE, SIZE, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((4, SIZE, SIZE), np.uint8)
        assert image.max() > 100


def test_ignored_id_becomes_255_and_the_others_class_ids(shapes):
    opened = open_shapes(shapes(train=6, test=4))
    for _, mask in (
        train(opened, 4),
        evaluated(opened, "test", batch_size=4)[0],
    ):
        assert set(np.unique(mask)) == {0, 1, records.IGNORED}


def test_ignored_id_within_the_classes_becomes_255(pets):
    settings = dict(ignore_id=3, class_names=("pet", "background"))
    opened = open_pets(pets(6), **settings)
    [(_, mask)] = evaluated(opened, "test", batch_size=4)
    [(_, before)] = evaluated(open_pets(pets(6)), "test", batch_size=4)
    np.testing.assert_array_equal(mask, np.where(before == 2, 255, before))


def rewrite(file, index, change):
    """Changes one stored example: `change` gets its features by name."""
    stored = list(tf.data.TFRecordDataset(file).as_numpy_iterator())
    example = tf.train.Example.FromString(stored[index])
    change(example.features.feature)
    stored[index] = example.SerializeToString()
    with tf.io.TFRecordWriter(file) as writer:
        for record in stored:
            writer.write(record)


def png(mask):
    return tf.io.encode_png(mask.astype(np.uint8)).numpy()


def test_grey_images_become_three_equal_channels(pets):
    opened = open_pets(pets(4, n_test=1))

    def to_grey(feature):
        picture = tf.io.decode_image(feature["image"].bytes_list.value[0])[..., :1]
        feature["image"].bytes_list.value[:] = [tf.io.encode_png(picture).numpy()]

    rewrite(opened.test.files[0], 0, to_grey)
    grey = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    features = tfds.features.FeaturesDict({**opened.features, "image": grey})
    opened = dataclasses.replace(opened, features=features)
    [(image, _)] = evaluated(opened, "test", batch_size=1)
    assert image.shape == (1, SIZE, SIZE, 3)
    assert image.std() > 10 and (image == image[..., :1]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.uint32, np.int64, np.uint64])
def test_ids_of_any_integers_become_class_ids(pets, dtype):
    opened = open_pets(pets(4))
    ids = np.resize(np.array([1, 2, 3], dtype), (SIZE, SIZE, 1))
    image = np.zeros((*ids.shape[:2], 3), np.uint8)
    mask = tfds.features.Tensor(shape=ids.shape, dtype=dtype)
    features = tfds.features.FeaturesDict(
        {"image": opened.features["image"], "segmentation_mask": mask}
    )
    opened = dataclasses.replace(opened, features=features)
    example = features.encode_example({"image": image, "segmentation_mask": ids})
    stored = tf.constant(features.serialize_example(example))
    for _, found in (
        records.decode(opened, stored, SIZE),
        records.decode_whole(opened, stored),
    ):
        np.testing.assert_array_equal(np.reshape(found, (SIZE, SIZE)), ids[..., 0] - 1)


# ---------------------------------------------------------------------------
# The stream of training examples


def test_stream_holds_the_examples_of_the_order(pets):
    opened = open_pets(pets(12))
    image, mask = train(opened, 20, augmentation=None)
    examples = data.examples_of(opened, SIZE, "none")["train"]
    for id, one_image, one_mask in zip(ids_of(opened, 20), image, mask, strict=True):
        expected = records.decode(opened, examples.serialized(id), SIZE)
        np.testing.assert_array_equal(one_image, expected[0])
        np.testing.assert_array_equal(one_mask, expected[1])


@pytest.mark.parametrize("start", [0, 13])
def test_cached_batches_are_those_that_are_not_byte_for_byte(pets, start):
    opened = open_pets(pets(12, shards=3), val_fraction=0.25)
    assert len(opened.train.ids) == 9
    found = [
        [part.tobytes() for part in train(opened, 24, start=start, cache=cache)]
        for cache in ("memory", "none")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_stream_from_a_position_is_the_tail_of_the_stream_from_the_start(pets, cache):
    opened = open_pets(pets(12, shards=3), val_fraction=0.25)
    image, mask = train(opened, 30, cache=cache)
    for start in (1, 8, 9, 13, 18):
        count = 30 - start
        tail = train(opened, count, start=start, batch_size=count, cache=cache)
        np.testing.assert_array_equal(tail[0], image[start:])
        np.testing.assert_array_equal(tail[1], mask[start:])


@pytest.mark.parametrize("batch_size", [1, 5, 20])
def test_examples_and_augmentation_do_not_depend_on_the_batch_size(pets, batch_size):
    opened = open_pets(pets(12))
    expected = train(opened, 20, batch_size=4)
    found = train(opened, 20, batch_size=batch_size)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def pictures_of_each(opened, epochs, **settings):
    """Returns the different images of each example over some epochs."""
    count = epochs * len(opened.train.ids)
    image, _ = train(opened, count, **settings)
    found: dict = {}
    for id, one in zip(ids_of(opened, count), image, strict=True):
        found.setdefault(id, set()).add(one.tobytes())
    return found


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_augmentation_is_drawn_afresh_in_each_epoch(pets, cache):
    opened = open_pets(pets(6))
    found = pictures_of_each(opened, epochs=5, cache=cache)
    assert len(found) == len(opened.train.ids)
    assert all(len(pictures) == 5 for pictures in found.values())


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_without_augmentation_an_example_is_the_same_in_each_epoch(pets, cache):
    opened = open_pets(pets(6))
    found = pictures_of_each(opened, epochs=3, cache=cache, augmentation=None)
    assert all(len(pictures) == 1 for pictures in found.values())


def test_cached_examples_are_read_and_decoded_once(pets, monkeypatch):
    monkeypatch.setattr(loading, "CORES", 2)  # None comes again within as many.
    opened = open_pets(pets(12, shards=2))
    examples = data.examples_of(opened, SIZE, "memory")
    calls, batch_size = {"_read_next": 0, "put": 0}, len(opened.train.ids)

    def stream(stop):
        return streams.train_batches(
            opened,
            examples["train"],
            image_size=SIZE,
            batch_size=batch_size,
            seed=0,
            window=1000,
            start=0,
            augmentation=None,
            stop=stop,
        )

    for name in calls:
        method = getattr(Examples, name)

        def counted(self, *args, name=name, method=method):
            calls[name] += 1
            return method(self, *args)

        monkeypatch.setattr(Examples, name, counted)
    for _ in range(2):
        evaluated(opened, "val", batch_size=2, examples=examples["val"])
        taken(stream, count=3 * batch_size, batch_size=batch_size)
    assert calls == {"_read_next": 12, "put": 12}


def test_elements_go_one_by_one_while_what_is_kept_is_decoded(monkeypatch):
    monkeypatch.setattr(loading, "CORES", 2)
    elements = [(id, 0, b"x" if id == 1 else b"") for id in range(6)]
    ids = {
        kept: [chunk[0] for chunk in loading._chunks(iter(elements), kept)]
        for kept in (True, False)
    }
    assert ids == {True: [[0, 1], [2], [3], [4, 5]], False: [[0, 1, 2, 3, 4, 5]]}


def test_what_comes_before_a_damaged_file_is_still_given():
    def elements():
        yield from ((id, 0, b"") for id in range(loading.CHUNK + 2))
        raise ValueError("damaged")

    chunks = loading._chunks(elements(), kept=True)
    ids = [id for chunk in (next(chunks), next(chunks)) for id in chunk[0]]
    assert ids == list(range(loading.CHUNK + 2))
    with pytest.raises(ValueError, match="damaged"):
        next(chunks)


@pytest.mark.parametrize(
    ("offset", "ignored", "ids", "sound"),
    [
        (0, None, [0, 2], True),
        (0, None, [0, 3], False),
        (-1, None, [1, 3], True),
        (-1, None, [0, 3], False),
        (1, None, [0, 1], True),
        (1, None, [0, 255], False),
        (0, 255, [2, 255], True),
        (0, 255, [3, 255], False),
        (-1, 0, [0, 3], True),
        (-1, 0, [0, 4], False),
        (0, 300, [0, 2], True),
        (0, 300, [0, 44], False),
    ],
)
def test_ids_of_no_class_are_seen(pets, offset, ignored, ids, sound):
    opened = dataclasses.replace(
        open_pets(pets(4)), mask_offset=offset, ignore_id=ignored
    )
    stored = tf.constant(ids, tf.uint8, (1, 2, 1))
    assert bool(records._in_range(opened, stored)) is sound


def test_train_and_its_cut_share_the_cache_and_test_has_none(pets):
    opened = open_pets(pets(6))
    readers = data.examples_of(opened, SIZE, "memory")
    assert readers["train"] is readers["val"]
    assert readers["train"].cached and not readers["test"].cached
    readers = data.examples_of(opened, SIZE, "none")
    assert readers["train"] is not readers["val"]
    assert not any(reader.cached for reader in readers.values())


def test_where_training_crops_it_keeps_more_pixels_and_validation_its_own(pets):
    opened = open_pets(pets(6))
    size = data.train_size(SIZE, ALL)
    assert size > SIZE and data.train_size(SIZE, None) == SIZE
    readers = data.examples_of(opened, SIZE, "memory", train_size=size)
    assert readers["train"] is not readers["val"]
    plain = data.examples_of(opened, SIZE, "none")["val"]
    for _ in range(2):  # The second time from the cache.
        ours, theirs = (
            evaluated(opened, "val", batch_size=2, examples=examples)
            for examples in (readers["val"], plain)
        )
        for one, other in zip(ours, theirs, strict=True):
            for part, same in zip(one, other, strict=True):
                np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize(("free", "cached"), [(10**9, True), (10**4, False)])
def test_cache_auto_takes_memory_where_the_examples_fit(
    pets, monkeypatch, free, cached
):
    memory = type("Memory", (), {"available": free})
    monkeypatch.setattr(data.psutil, "virtual_memory", lambda: memory)
    readers = data.examples_of(open_pets(pets(6)), SIZE, "auto")
    assert readers["train"].cached is cached


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (
            {
                "memory.max": "1000\n",
                "memory.current": "900\n",
                "memory.stat": "anon 5\ninactive_file 300\n",
            },
            400,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "500",
                "memory/memory.usage_in_bytes": "600",
                "memory/memory.stat": "cache 7\ntotal_inactive_file 50\n",
            },
            0,
        ),
        ({"memory.max": "max\n", "memory.current": "9\n", "memory.stat": ""}, 5000),
        ({}, 5000),
    ],
)
def test_free_memory_is_that_of_the_container_where_it_has_less(
    tmp_path, monkeypatch, files, free
):
    memory = type("Memory", (), {"available": 5000})
    monkeypatch.setattr(data.psutil, "virtual_memory", lambda: memory)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert data._free_bytes(str(tmp_path)) == free


# ---------------------------------------------------------------------------
# The batches of an evaluation


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("num_examples", [1, 3, 4, 5, 7, 8, 9])
def test_every_example_is_evaluated_once_and_padding_is_ignored(
    pets, num_examples, cache
):
    opened = open_pets(pets(num_examples * 2, shards=1), val_fraction=0.5)
    examples = data.examples_of(opened, SIZE, cache)["val"]
    for _ in range(2):  # The second time from the cache, where there is one.
        batches = evaluated(opened, "val", batch_size=2, replicas=2, examples=examples)
        assert len(batches) == -(-num_examples // 4) * 2
        image, mask = (np.concatenate(part) for part in zip(*batches, strict=True))
        counted = (mask != records.IGNORED).any(axis=(1, 2))
        assert counted.tolist() == [True] * num_examples + [False] * (
            len(mask) - num_examples
        )
        expected = [
            records.decode(opened, record, SIZE)
            for record in tf.data.TFRecordDataset(opened.val.files).take(num_examples)
        ]
        for i, (one_image, one_mask) in enumerate(expected):
            np.testing.assert_array_equal(image[i], one_image)
            np.testing.assert_array_equal(mask[i], one_mask)


# ---------------------------------------------------------------------------
# What went wrong


def break_jpeg(feature):
    feature["image"].bytes_list.value[:] = [feature["image"].bytes_list.value[0][:40]]


def break_size(feature):
    mask = np.ones((20, 30, 1))
    feature["segmentation_mask"].bytes_list.value[:] = [png(mask)]


def break_ids(feature):
    stored = feature["segmentation_mask"].bytes_list.value[0]
    mask = tf.io.decode_image(stored).numpy()[..., :1]
    mask[5, 5] = 9
    feature["segmentation_mask"].bytes_list.value[:] = [png(mask)]


def remove_mask(feature):
    del feature["segmentation_mask"]


BROKEN = [
    (break_jpeg, "cannot be decoded"),
    (remove_mask, "cannot be decoded"),
    (break_size, r"mask of its image's size, got image .* and mask \(20, 30\)"),
    (break_ids, r"mask ids 1\.\.3, got \[.*9\]"),
]


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_a_bad_training_example_stops_the_stream_and_is_named(
    pets, change, words, cache
):
    opened = open_pets(pets(8, shards=2))
    rewrite(opened.train.files[1], 2, change)
    with pytest.raises(tf.errors.OpError):
        train(opened, 2 * len(opened.train.ids), cache=cache)
    examples = data.examples_of(opened, SIZE, cache)["train"]
    elements = data.train_elements(opened.train, examples, seed=3, window=1000, start=0)
    where = f"example 2 of {opened.train.files[1]}"
    with pytest.raises(ValueError, match=words) as refusal:
        records.explain(opened, examples, elements)
    assert where in str(refusal.value) and "\n" not in str(refusal.value)


def test_no_stream_is_tuned_by_a_thread_that_its_deletion_waits_for(pets, monkeypatch):
    opened = open_pets(pets(8, shards=2))
    examples = data.examples_of(opened, SIZE, "none")["train"]
    order = dict(image_size=SIZE, seed=3, window=1000, start=0, augmentation=ALL)
    made = [
        streams.train_batches(opened, examples, batch_size=2, **order),
        streams.eval_batches(
            opened, opened.val, examples, image_size=SIZE, batch_size=2
        ),
    ]
    read = tf.data.Dataset.as_numpy_iterator
    monkeypatch.setattr(
        tf.data.Dataset, "as_numpy_iterator", lambda ds: made.append(ds) or read(ds)
    )
    examples.serialized(0)
    assert len(made) == 3
    assert [ds.options().autotune.enabled for ds in made] == [False] * 3


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_look_ahead_sees_what_comes_and_changes_nothing(pets, cache):
    opened = open_pets(pets(8, shards=2))
    examples = train_reader(opened, cache)

    order = dict(image_size=SIZE, seed=3, window=1000, augmentation=ALL)
    looked_at = streams.first_train_examples(opened, examples, count=3, **order)
    assert [len(part) for part in looked_at] == [3, 3]

    def stream(stop):
        return streams.train_batches(
            opened, examples, batch_size=1, start=0, stop=stop, **order
        )

    for _ in range(2):  # Where there is a cache, the next look-ahead is into it.
        with streams.iterator(stream) as turns:
            for n in range(3):
                for ahead, part in zip(looked_at, next(turns), strict=True):
                    assert np.array_equal(ahead[n], part[0])
            [next(turns) for _ in range(len(opened.train.ids))]
        looked_at = streams.first_train_examples(opened, examples, count=3, **order)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_the_first_examples_of_a_split_are_those_that_are_judged(pets, cache):
    opened = open_pets(pets(8, shards=2, n_test=3))
    readers = data.examples_of(opened, SIZE, cache)

    def looked_at(split):
        return streams.first_eval_examples(
            opened, getattr(opened, split), readers[split], image_size=SIZE, count=2
        )

    for split in ("val", "test"):
        before = looked_at(split)
        [judged] = evaluated(opened, split, batch_size=3, examples=readers[split])
        for parts in zip(before, looked_at(split), judged, strict=True):
            assert len(parts[0]) == 2
            assert all(np.array_equal(part[:2], parts[0]) for part in parts)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_looks_ahead_for_others_examples_only_where_it_reads_them(
    monkeypatch, workers
):
    asked = []
    for name in ("first_train_examples", "first_eval_examples"):
        monkeypatch.setattr(streams, name, lambda *_, want, **__: asked.append(want))
    run = types.SimpleNamespace(
        settings=config.Config(),
        dataset=None,
        examples={"train": None, "val": None},
        workers=types.SimpleNamespace(count=workers),
    )
    feed.first_train_examples(run, 2)
    feed.first_eval_examples(run, None, "val", 2)
    assert asked == [workers == 1] * 2


@pytest.mark.parametrize("want", [True, False])
def test_a_look_ahead_of_one_of_several_workers_holds_nothing_back_for_the_others(
    pets, want
):
    opened = open_pets(pets(12, shards=1))
    readers = data.examples_of(opened, SIZE, "none", worker=0, workers=2)
    order = dict(image_size=SIZE, seed=3, window=1000, augmentation=None)
    streams.first_train_examples(opened, readers["train"], **order, count=2, want=want)
    streams.first_eval_examples(
        *(opened, opened.val, readers["val"]), image_size=SIZE, count=2, want=want
    )
    wanted = [int(reader._wanted.sum()) for reader in readers.values()]
    assert wanted == (
        [len(opened.train.ids), len(opened.val.ids), 0] if want else [2, 2, 0]
    )


@pytest.mark.parametrize("start", [0, 65])  # In the middle of a step across epochs.
@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_epoch_leaves_over_for_a_step_of_the_next_is_read_with_it(
    pets, monkeypatch, workers, start
):
    opened, reads = open_pets(pets(45, shards=3), val_fraction=0.2), []
    read_next = Examples._read_next
    monkeypatch.setattr(
        Examples, "_read_next", lambda *args: reads.append(1) or read_next(*args)
    )
    count, size, epochs = len(opened.train.ids), 8, 4
    assert count % size and count // size > 3
    for worker in range(workers):
        reads.clear()
        examples = data.examples_of(opened, SIZE, "none")["train"]
        order = dict(seed=3, window=2, start=start, step_size=size)
        elements = data.train_elements(
            opened.train, examples, **order, worker=worker, workers=workers
        )
        most = 0
        for _ in itertools.islice(elements, epochs * count // size * size // workers):
            most = max(most, len(examples._pending))
        # A file is read once an epoch, and once more where a run begins with what an
        # epoch left over; no more is held back than those and what shuffling takes.
        more = 1 if start else 0
        assert len(reads) <= (epochs + more) * sum(opened.train.file_lengths)
        assert most <= 3 * 2 + 2 * size


def test_what_fills_up_a_batch_is_not_read_again(pets, monkeypatch):
    opened, reads = open_pets(pets(6, n_test=4, shards=1)), []
    read_next = Examples._read_next

    def counted(self, shard, id):
        reads.append(id)
        read_next(self, shard, id)

    monkeypatch.setattr(Examples, "_read_next", counted)
    [(image, mask)] = evaluated(opened, "test", batch_size=7)
    assert reads == [0, 1, 2, 3] and len(image) == 7
    assert (mask[4:] == records.IGNORED).all()


def test_a_bad_example_is_named_in_a_split_larger_than_train(pets):
    opened = open_pets(pets(4, n_test=12))
    rewrite(opened.test.files[-1], 5, break_ids)
    with pytest.raises(tf.errors.OpError):
        evaluated(opened, "test", batch_size=4)
    examples = data.examples_of(opened, SIZE, "none")["test"]
    elements = data.eval_elements(opened.test, examples)
    with pytest.raises(ValueError, match=f"example 5 of {opened.test.files[-1]}"):
        records.explain(opened, examples, elements)


def test_ids_of_a_refusal_are_stored_ones_with_the_ignored_id(shapes):
    opened = open_shapes(shapes(train=6, test=4), ignore_id=254)
    examples = data.examples_of(opened, SIZE, "none")["test"]
    elements = data.eval_elements(opened.test, examples)
    with pytest.raises(ValueError, match=r"mask ids 0\.\.1 or 254, got \[255\]$"):
        records.explain(opened, examples, elements)


def test_a_file_cut_short_stops_the_stream_and_is_named(pets):
    opened = open_pets(pets(8, shards=2))
    with open(opened.train.files[1], "rb+") as file:
        file.truncate(file.seek(0, io.SEEK_END) - 5)
    with pytest.raises(tf.errors.OpError):
        train(opened, 2 * len(opened.train.ids))
    examples = data.examples_of(opened, SIZE, "memory")["train"]
    elements = data.train_elements(opened.train, examples, seed=3, window=1000, start=0)
    with pytest.raises(ValueError, match=f"{opened.train.files[1]} cannot be read"):
        records.explain(opened, examples, elements)


def test_sound_examples_are_not_complained_of(pets):
    opened = open_pets(pets(6))
    examples = data.examples_of(opened, SIZE, "none")["train"]
    elements = data.train_elements(opened.train, examples, seed=3, window=1000, start=0)
    records.explain(opened, examples, elements)


# ---------------------------------------------------------------------------
# Several workers


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_workers_read_their_own_files_once_and_the_one_they_share(
    pets, cache, monkeypatch
):
    opened = open_pets(pets(60, shards=5), val_fraction=0.2)
    opened_files: list[str] = []
    dataset_of = tf.data.TFRecordDataset

    def counted(path):
        opened_files.append(path)
        return dataset_of(path)

    epochs, size = 4, 10  # At each step two of each file.
    assert opened.train.shard_lengths == [10] * 5
    taken_ids = []
    for worker in range(2):
        readers = data.examples_of(opened, SIZE, cache, worker, 2)
        examples = readers["train"]
        monkeypatch.setattr(tf.data, "TFRecordDataset", counted)
        elements = data.train_elements(
            opened.train,
            examples,
            seed=3,
            window=1000,
            start=0,
            step_size=size,
            worker=worker,
            workers=2,
        )
        blank = np.zeros((SIZE, SIZE, 3), np.uint8)
        for id, epoch, serialized in itertools.islice(elements, epochs * 50 // 2):
            taken_ids.append((epoch, id))
            if cache == "memory" and serialized:
                examples.put(id, blank, blank[..., 0])
        monkeypatch.undo()
    assert sorted(taken_ids) == [
        (epoch, id) for epoch in range(epochs) for id in opened.train.ids
    ]
    times = 1 if cache == "memory" else epochs
    shared = opened.train.files[2]
    assert {file: opened_files.count(file) for file in opened.train.files} == {
        file: times * (2 if file == shared else 1) for file in opened.train.files
    }
