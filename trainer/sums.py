"""Sums that come out the same, bit for bit, on 1, 2 or 4 replicas.

A float32 sum over all examples at once rounds otherwise where replicas share them, and
training blows the difference up: to 1e-4 of the loss within 20 steps. So examples are
summed in groups, and groups and replicas two and two: the same numbers in the same order,
as long as `GROUP` divides the examples of each replica.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

GROUP = 16  # Examples.
# Beyond this number of replicas, workers on CPUs add in a ring too: what each of them
# receives would grow with their number.
IN_PAIRS = 4


def exact() -> bool:
    """Returns whether sums are made to come out the same: everywhere but on a TPU.

    There float64 is emulated, and each further pass over the examples costs memory
    traffic, which is what limits the step.
    """
    return not isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def on_cpu() -> bool:
    """Returns whether replicas compute on CPUs."""
    return exact() and not tf.config.list_logical_devices("GPU")


def in_pairs(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the sum of values of one shape, added two and two."""
    shape = tf.shape(values[0])
    rows = [tf.reshape(value, (1, -1)) for value in values]
    while len(rows) > 1:
        # As a bias: Grappler would make one flat sum of plain additions, in another order.
        pairs = zip(rows[::2], rows[1::2], strict=False)  # An odd one waits.
        waiting = rows[len(rows) // 2 * 2 :]
        rows = [tf.nn.bias_add(a, b[0]) for a, b in pairs] + waiting
    return tf.reshape(rows[0], shape)


def groups(*examples: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
    """Returns examples, each (N, ...), cut into groups along N.

    There is one group of all where `GROUP` does not divide N or `exact` is false.
    """
    n = examples[0].shape[0]
    if not exact() or n is None or n % GROUP:
        return [examples]
    split = (tf.split(values, n // GROUP) for values in examples)
    return list(zip(*split, strict=True))


def of_groups(gradient: Callable[..., tf.Tensor], *examples: tf.Tensor) -> tf.Tensor:
    """Returns a gradient, summed over groups of examples.

    Args:
        gradient: Sum over the examples it is given, of any shape.
        *examples: (N, ...), cut into `groups`.
    """
    return in_pairs([gradient(*part) for part in groups(*examples)])


def over_replicas(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the sum of each value over all replicas; each of them must ask.

    Workers on CPUs would add in a ring, where each part of a value is added in another
    order. So they get all values, and add them two and two.
    """
    context = tf.distribute.get_replica_context()
    strategy, replicas = context.strategy, context.num_replicas_in_sync
    in_pairs_too = (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and "CPU" in strategy.extended.worker_devices[0]
        and replicas <= IN_PAIRS
    )
    if not in_pairs_too:
        return context.all_reduce("sum", list(values))
    flat = tf.concat([tf.reshape(value, [-1]) for value in values], axis=0)
    rows = tf.unstack(context.all_gather(flat[tf.newaxis], axis=0), num=replicas)
    parts = tf.split(in_pairs(rows), [value.shape.num_elements() for value in values])
    return [
        tf.reshape(part, value.shape) for part, value in zip(parts, values, strict=True)
    ]
