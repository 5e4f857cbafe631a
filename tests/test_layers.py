"""BatchNorm sees the examples of all replicas."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import runs
from trainer import layers

KINDS = {
    "the decoders'": layers.SyncBatchNorm,
    "the encoders'": functools.partial(
        keras.layers.BatchNormalization, synchronized=True
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_is_that_of_one_device_with_the_examples_of_all_replicas(kind):
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 3, 5)).astype(np.float32)
    x[2:] += 10  # What a replica sees alone is nothing like the whole.

    def seen(replicas):
        strategy = runs.mirrored(replicas)
        with strategy.scope():
            norm = KINDS[kind]()
            norm.build(x.shape)

        def part(context):
            return np.split(x, replicas)[context.replica_id_in_sync_group]

        parts = strategy.experimental_distribute_values_from_function(part)

        @tf.function
        def step(parts):
            return strategy.run(lambda x: norm(x, training=True), args=(parts,))

        made = strategy.experimental_local_results(step(parts))
        moving = (norm.moving_mean, norm.moving_variance)
        return np.concatenate(made), *map(keras.ops.convert_to_numpy, moving)

    for ours, theirs in zip(seen(2), seen(1), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
