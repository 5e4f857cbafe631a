"""One step: loss, gradients, update, the same on any replicas.

Letters: N examples on one replica, S side of an image in pixels.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from trainer import averaging, losses, sums

# Logits (N, S, S, C) and mask (N, S, S) -> this replica's share of the loss, () float32.
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# Dynamic loss scale, after Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
FIRST_SCALE = 2.0**15
STEPS_TO_DOUBLE = 2000


class LossScale:
    """The factor that keeps float16 gradients from vanishing; one for all replicas.

    It doubles after `STEPS_TO_DOUBLE` steps with finite gradients; it halves, and the
    step is left out, when a gradient is not finite.
    """

    def __init__(self) -> None:
        self.scale = keras.Variable(FIRST_SCALE, trainable=False, name="scale")
        self.good_steps = keras.Variable(
            0, dtype="int32", trainable=False, name="good_steps"
        )
        self.variables = [self.scale, self.good_steps]

    def adjust(self, finite: tf.Tensor) -> None:
        """Changes the scale after a step whose gradients were finite or not."""
        good = tf.where(finite, self.good_steps.value + 1, 0)
        doubled = good >= STEPS_TO_DOUBLE
        factor = tf.where(finite, tf.where(doubled, 2.0, 1.0), 0.5)
        self.scale.assign(tf.maximum(self.scale.value * factor, 1.0))
        self.good_steps.assign(tf.where(doubled, 0, good))


def make_optimizer(
    model: keras.Model,
    *,
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    weight_decay: float,
    encoder_factor: float = 1.0,
) -> keras.Optimizer:
    """Returns the optimizer, its variables made; call it in the strategy's scope.

    The arguments are the settings of the same names; encoder_factor is what the learning
    rate is multiplied by for the encoder.
    """
    rate: float | keras.optimizers.schedules.LearningRateSchedule = learning_rate
    if schedule == "cosine" or warmup_steps:
        falls = schedule == "cosine"
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup_steps else learning_rate,
            max(total_steps - warmup_steps, 1),
            alpha=0.0 if falls else 1.0,
            warmup_target=learning_rate if warmup_steps else None,
            warmup_steps=warmup_steps,
        )
    # Without a name, those after the first of a process would be adam_1, adam_2, ...
    # and a checkpoint of the one would not fit the other.
    if name == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay, name=name)
    else:
        optimizer = keras.optimizers.Adam(rate, name=name)
    optimizer.build(model.trainable_variables)
    # Keras sums gradients over replicas when it applies them, after any clipping. Ours
    # are summed before they are clipped and checked; a second sum would multiply them.
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    encoder = (
        model.get_layer("encoder").trainable_variables if encoder_factor != 1 else ()
    )
    scaled = {id(v) for v in encoder}
    factors = [
        encoder_factor if id(v) in scaled else 1.0 for v in model.trainable_variables
    ]
    optimizer.update_step = _adam_step(optimizer, factors)
    return optimizer


def _adam_step(
    optimizer: keras.optimizers.Adam, factors: Sequence[float]
) -> Callable[[tf.Tensor, tf.Variable, tf.Tensor], None]:
    """Returns Keras' update of a variable as one operation, one pass in place of ten.

    Args:
        optimizer: Adam, its variables made.
        factors: What the learning rate is multiplied by, for each variable. A factor on
            its gradient would do nothing: Adam's steps do not grow with these. AdamW's
            decay goes by the rate of all: Keras takes it off before the update.
    """

    def update(gradient: tf.Tensor, variable: tf.Variable, rate: tf.Tensor) -> None:
        index = optimizer._get_variable_index(variable)
        step = tf.cast(optimizer.iterations.value + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            beta1_power=optimizer.beta_1**step,
            beta2_power=optimizer.beta_2**step,
            lr=tf.cast(rate * factors[index], tf.float32),
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=gradient,
        )

    return update


def make_gradients(
    model: keras.Model,
    *,
    loss: Loss = losses.share,
    loss_scale: LossScale | None = None,
    clip_norm: float | None = None,
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, list[tf.Tensor]]]:
    """Returns what each replica does first in a step; the arguments as below.

    Returns:
        (image (N, S, S, 3) uint8, mask (N, S, S) uint8) -> this replica's share of the
        loss, () float32, and the gradients of all replicas together.
    """

    def gradients_of(
        image: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits = model(tf.cast(image, tf.float32), training=True)
            share = loss(logits, mask)
            scaled = share * loss_scale.scale.value if loss_scale else share
        gradients = tape.gradient(scaled, model.trainable_variables)
        gradients = sums.over_replicas(gradients)
        if loss_scale:
            gradients = [g / loss_scale.scale.value for g in gradients]
        if clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_norm)
        return share, gradients

    return gradients_of


def make_replica_step(
    model: keras.Model,
    optimizer: keras.Optimizer,
    *,
    loss: Loss = losses.share,
    clip_norm: float | None = None,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns what each replica does in a step without a loss scale; arguments as below.

    Returns:
        (image (N, S, S, 3) uint8, mask (N, S, S) uint8) -> this replica's share of the
        loss, () float32.
    """
    gradients_of = make_gradients(model, loss=loss, clip_norm=clip_norm)

    def replica_step(image: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        share, gradients = gradients_of(image, mask)
        optimizer.apply(gradients, model.trainable_variables)
        return share

    return replica_step


def _make_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.Optimizer,
    loss: Loss,
    loss_scale: LossScale | None,
    clip_norm: float | None,
) -> Callable[[tuple], tf.Tensor]:
    """Returns the step of all replicas: their batches -> their shares of the loss.

    With a loss scale it is left out where a gradient overflows. That is decided for all
    of them, outside of what each does: a replica may not meet the others, as it does to
    update, within a condition of its own.
    """
    if loss_scale is None:
        replica_step = make_replica_step(
            model, optimizer, loss=loss, clip_norm=clip_norm
        )
        return lambda batch: strategy.run(replica_step, args=batch)
    gradients_of = make_gradients(
        model, loss=loss, loss_scale=loss_scale, clip_norm=clip_norm
    )

    def checked(image: tf.Tensor, mask: tf.Tensor) -> tuple:
        share, gradients = gradients_of(image, mask)
        finite = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients]
        return share, gradients, tf.reduce_all(finite)

    def apply(gradients: list[tf.Tensor]) -> None:
        optimizer.apply(gradients, model.trainable_variables)

    def step(batch: tuple) -> tf.Tensor:
        share, gradients, finite = strategy.run(checked, args=batch)
        # Of the same sums, it is the same on all.
        finite = strategy.experimental_local_results(finite)[0]

        def update() -> tf.Tensor:
            strategy.run(apply, args=(gradients,))
            return tf.constant(True)

        tf.cond(finite, update, lambda: tf.constant(False))
        loss_scale.adjust(finite)
        return share

    return step


def make_train_steps(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.Optimizer,
    *,
    loss: Loss = losses.share,
    loss_scale: LossScale | None = None,
    clip_norm: float | None = None,
    jit_compile: bool = False,
    average: averaging.Average | None = None,
) -> Callable[[Iterator, int], tuple[float, float, int, float]]:
    """Returns the function that takes several steps in one call.

    Args:
        strategy: Where the replicas live.
        model: Image (N, S, S, 3) float32 -> logits.
        optimizer: What `make_optimizer` returned for it.
        loss: What the steps make small; cross-entropy when absent.
        loss_scale: For float16; none where absent.
        clip_norm: Largest global norm of the summed gradient.
        jit_compile: Whether XLA compiles the step.
        average: Of the weights, to be kept up; none where absent.

    Returns:
        (iterator of distributed batches, n) -> (sum of the losses, last loss, steps
        taken, seconds spent waiting for batches). Losses are of the global batch, all
        replicas' shares. It stops after a loss that is not finite.
    """
    # Only the loop below is AutoGraph's: it would rewrite the sources of all layers, in
    # seconds at the start of each process.
    step = tf.autograph.experimental.do_not_convert(
        _make_step(strategy, model, optimizer, loss, loss_scale, clip_norm)
    )
    if jit_compile:
        step = tf.function(step, jit_compile=True, autograph=False)

    @tf.function
    def run(iterator: Iterator, n: tf.Tensor) -> tuple[tf.Tensor, ...]:
        total, loss = tf.constant(0.0, tf.float64), tf.constant(0.0)
        taken, waited = tf.constant(0), tf.constant(0.0, tf.float64)
        for _ in tf.range(n):
            asked = _now(strategy)
            batch = next(iterator)
            with tf.control_dependencies(_tensors(strategy, batch)):
                waited += _now(strategy) - asked
            loss = strategy.reduce("sum", step(batch), axis=None)
            if average is not None:
                average.update(strategy, optimizer.iterations.value)
            total += tf.cast(loss, tf.float64)
            taken += 1
            if not tf.math.is_finite(loss):
                break
        return total, loss, taken, waited

    def train_steps(iterator: Iterator, n: int) -> tuple[float, float, int, float]:
        total, loss, taken, waited = run(iterator, tf.constant(n))
        return float(total), float(loss), int(taken), float(waited)

    return train_steps


@tf.autograph.experimental.do_not_convert
def _now(strategy: tf.distribute.Strategy) -> tf.Tensor:
    """Returns seconds."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return tf.timestamp()  # No Python between the steps of a TPU.
    # tf.timestamp is refused where --deterministic is given.
    seconds = tf.numpy_function(time.perf_counter, [], tf.float64)
    return tf.ensure_shape(seconds, ())


@tf.autograph.experimental.do_not_convert
def _tensors(strategy: tf.distribute.Strategy, batch: tuple) -> list[tf.Tensor]:
    return [t for part in batch for t in strategy.experimental_local_results(part)]
