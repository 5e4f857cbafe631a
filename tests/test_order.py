"""The order of examples: permutations that seed and epoch alone decide, endlessly."""

import itertools

import numpy as np
import pytest

from trainer import order

LENGTHS = [[1], [5], [1, 1, 1], [10, 3, 0, 7], [2] * 40, list(range(1, 21))]


def epoch_order(lengths, seed=0, epoch=0, window=1000):
    return order.epoch_order(lengths, seed=seed, epoch=epoch, window=window)


def shards_of(ids, lengths):
    return np.searchsorted(np.cumsum(lengths), ids, side="right")


def stream(lengths, start, count, **settings):
    """Returns `count` pairs (epoch, example) of the endless order."""
    parts = order.endless(lengths, start=start, **settings)
    pairs = ((epoch, int(id)) for epoch, ids in parts for id in ids)
    return list(itertools.islice(pairs, count))


@pytest.mark.parametrize("window", [1, 2, 1000])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_epoch_holds_each_example_once(lengths, window):
    for seed, epoch in itertools.product(range(3), range(3)):
        ids = epoch_order(lengths, seed, epoch, window)
        assert ids.dtype == np.int64
        np.testing.assert_array_equal(np.sort(ids), np.arange(sum(lengths)))


def test_order_follows_from_seed_and_epoch_alone():
    np.random.seed(1)
    first = epoch_order([30, 20], seed=5, epoch=7)
    np.random.seed(2)
    np.testing.assert_array_equal(first, epoch_order([30, 20], seed=5, epoch=7))
    others = [(5, 8), (6, 7), (7, 5)]
    found = {epoch_order([30, 20], seed, epoch).tobytes() for seed, epoch in others}
    assert len(found | {first.tobytes()}) == 4


def test_order_is_the_same_in_every_version():
    # A run that goes on after an upgrade must see the examples that it has not seen.
    expected = [2, 4, 0, 6, 3, 5, 1]
    assert epoch_order([4, 3], seed=1, epoch=2).tolist() == expected


def test_every_epoch_has_an_order_of_its_own():
    found = {epoch_order([20, 20], epoch=epoch).tobytes() for epoch in range(50)}
    assert len(found) == 50


@pytest.mark.parametrize("window", [1, 3, 10])
def test_no_example_comes_before_those_of_its_shard_a_window_earlier(window):
    lengths = [40, 25]
    moved = False
    for seed in range(20):
        ids = epoch_order(lengths, seed, window=window)
        shard = shards_of(ids, lengths)
        for number, first in enumerate([0, 40]):
            taken = ids[shard == number] - first
            turn = np.argsort(taken)  # of example i
            moved |= not (np.diff(turn) > 0).all()
            for i in range(window, lengths[number]):
                assert turn[: i - window + 1].max() < turn[i]
    assert moved == (window > 1)


def test_a_shard_no_longer_than_the_window_is_shuffled_whole():
    orders = [epoch_order([4], seed, window=4).tolist() for seed in range(400)]
    assert len({tuple(ids) for ids in orders}) == 24
    at_first = np.bincount([ids[0] for ids in orders], minlength=4)
    assert (at_first > 60).all()


def test_streams_take_turns_while_they_last():
    lengths = [5, 5, 2]
    shard = shards_of(epoch_order(lengths, seed=3), lengths)
    assert [sorted(shard[i : i + 3]) for i in (0, 3)] == [[0, 1, 2]] * 2
    assert [sorted(shard[i : i + 2]) for i in (6, 8, 10)] == [[0, 1]] * 3


def test_no_more_shards_are_open_at_once_than_there_are_streams():
    lengths = [6] * 50
    shard = shards_of(epoch_order(lengths, seed=1), lengths)
    first = [np.flatnonzero(shard == s)[0] for s in range(50)]
    last = [np.flatnonzero(shard == s)[-1] for s in range(50)]
    for at in range(len(shard)):
        is_open = [a <= at <= b for a, b in zip(first, last, strict=True)]
        assert sum(is_open) <= order.STREAMS


@pytest.mark.parametrize("lengths", LENGTHS)
def test_order_from_a_position_is_the_tail_of_the_order_from_the_start(lengths):
    total = sum(lengths)
    settings = dict(seed=2, window=4)
    whole = stream(lengths, 0, 4 * total + 5, **settings)
    for start in range(0, 3 * total + 2, max(1, total // 30)):
        tail = stream(lengths, start, total + 3, **settings)
        assert tail == whole[start : start + total + 3]


def test_epochs_follow_each_other_without_a_gap_or_a_repeat():
    pairs = stream([3, 4], 0, 21, seed=0, window=1000)
    assert [epoch for epoch, _ in pairs] == [0] * 7 + [1] * 7 + [2] * 7
    for epoch in range(3):
        ids = [id for e, id in pairs if e == epoch]
        assert ids == epoch_order([3, 4], epoch=epoch).tolist()


# ---------------------------------------------------------------------------
# Several workers


def first_steps(lengths, size, count, start=0):
    """Returns epochs and examples of the first steps, (count, size) each."""
    parts = order.steps(lengths, seed=1, window=1000, start=start, size=size)
    found: list = [[], []]
    while len(found[0]) < count:
        for rows, more in zip(found, next(parts), strict=True):
            rows.extend(more)
    return (np.array(rows[:count]) for rows in found)


@pytest.mark.parametrize("size", [1, 2, 4, 12, 100])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_step_takes_what_the_order_gives_it(lengths, size):
    epochs, examples = first_steps(lengths, size, 9)
    expected = stream(lengths, 0, 9 * size, seed=1, window=1000)
    for step in range(9):
        pairs = zip(epochs[step].tolist(), examples[step].tolist(), strict=True)
        assert sorted(pairs) == sorted(expected[step * size : (step + 1) * size])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_run_that_starts_at_a_step_goes_on_as_one_that_came_there(lengths):
    whole = [part[5:] for part in first_steps(lengths, 4, 12)]
    late = list(first_steps(lengths, 4, 7, start=20))
    np.testing.assert_array_equal(whole, late)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_workers_share_a_step_without_gap_or_overlap(lengths, workers):
    _, examples = first_steps(lengths, 12, 7)
    parts = [order.part(examples, worker, workers) for worker in range(workers)]
    assert {part.shape for part in parts} == {(7, 12 // workers)}
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), examples)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_with_as_many_alike_shards_as_workers_each_reads_its_own(workers):
    lengths = [50] * workers
    _, examples = first_steps(lengths, 4 * workers, 40)
    for worker in range(workers):
        own = shards_of(order.part(examples, worker, workers).ravel(), lengths)
        assert set(own) == {worker}


def read_by(lengths, workers, size=32):
    return order.times_read(lengths, seed=1, window=1000, size=size, workers=workers)


def test_how_often_the_examples_are_read_is_counted():
    assert read_by([320] * 4, 1) == pytest.approx(1, abs=0.01)
    assert read_by([320] * 4, 4) == pytest.approx(1, abs=0.01)
    assert read_by([320] * 4, 2) == pytest.approx(1, abs=0.01)
    # All read the only shard; of unlike ones, the heads of a few.
    assert read_by([640], 2) == pytest.approx(2, abs=0.02)
    assert 1 < read_by([331, 328, 330, 327], 4) < 1.5
