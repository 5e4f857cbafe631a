"""Says how far logits are from the mask, as sums that add up over replicas.

Letters: N examples on one replica, S side in pixels, C classes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from trainer import sums

IGNORED = 255  # The mask value of a pixel that is not counted.
CROSS_ENTROPY = {"cross_entropy": 1.0}
# Of 1 less a probability, in focal loss: at 0 its powers below 1 have no gradient.
LEAST_DOUBT = 1e-7
FEW = 4  # Classes; of more TensorFlow's own log-softmax is faster on a CPU, too.
BINS = 1024  # Of Lovasz-softmax's errors, which are in 0..1.
# Of each class, (C,), from sums over pixels: of probability x truth, of either alone.
OVERLAPS: dict[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "dice": lambda both, given, true: 2 * both / (given + true),
    "jaccard": lambda both, given, true: both / (given + true - both),
}


def cross_entropy(logits: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each image's summed cross-entropy, and how many pixels are in it.

    The loss of a batch, however it is split, is the sum of the first over the sum
    of the second. An ignored pixel adds exactly 0 to both and to the gradient,
    however large its logits are; logits that are inf or nan make the loss nan
    wherever they are, since weights that give them are beyond repair.

    Args:
        logits: (N, S, S, C) float of any precision; computed in float32.
        mask: (N, S, S) uint8, int32 or int64 class ids 0..C-1, or 255 for an ignored
            pixel.

    Returns:
        (N,) float32, nats summed over the counted pixels of each image.
        (N,) float32, counted pixels of each image.
    """
    truth, log_probabilities = _compared(logits, mask)
    return -tf.reduce_sum(truth * log_probabilities, axis=(1, 2, 3)), _counted(mask)


def share(
    logits: tf.Tensor,
    mask: tf.Tensor,
    *,
    terms: Mapping[str, float] = CROSS_ENTROPY,
    focal_gamma: float = 2.0,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> tf.Tensor:
    """Returns this replica's share of the loss of all replicas' examples.

    Shares, and their gradients, add up over replicas; each of them must ask. Ignored
    pixels, and logits that are not finite, do here what they do in `cross_entropy`.

    Cross-entropy and focal loss are means over the counted pixels, each with the weight
    of its true class. Dice and Jaccard loss are 1 less the mean overlap of the classes
    that are true somewhere in the batch of all replicas, each with its weight: in a mean
    over images, those that lack a class would say nothing of it, or call it perfect.
    Lovasz-softmax is such a mean too, of what is the Jaccard loss where the model is sure.

    Args:
        logits: (N, S, S, C) float of any precision; computed in float32.
        mask: (N, S, S) uint8, int32 or int64 class ids 0..C-1, or 255 for an ignored
            pixel.
        terms: Factor of each loss: cross_entropy, focal, dice, jaccard, lovasz.
        focal_gamma: Exponent of focal loss; with 0 it is cross-entropy.
        label_smoothing: Share of the truth that cross-entropy spreads over all classes.
        class_weights: Of each class, not negative; all alike when absent.

    Returns:
        () float32: nats per counted pixel for cross-entropy and focal loss, 0..1 for
        the others. 0 where no pixel of any replica counts.

    Source: label smoothing of Szegedy et al. 2016, arXiv:1512.00567, section 7; focal
        loss of Lin et al. 2017, arXiv:1708.02002, section 3.2.
    """
    truth, log_probabilities = _compared(logits, mask)
    # Without weights nothing is multiplied, which takes time on a CPU.
    weighed = truth if class_weights is None else truth * tf.constant(class_weights)
    total = tf.constant(0.0)
    of_images = []  # (N,) each.
    if factor := terms.get("cross_entropy"):
        nats = _smoothed(weighed, label_smoothing) * log_probabilities
        of_images.append(-factor * tf.reduce_sum(nats, axis=(1, 2, 3)))
    if factor := terms.get("focal"):
        of_pixels = weighed * _focal(truth, log_probabilities, focal_gamma)
        of_images.append(factor * tf.reduce_sum(of_pixels, axis=(1, 2, 3)))
    if of_images:
        weights = _counted(mask)
        if class_weights is not None:
            weights = tf.reduce_sum(weighed, axis=(1, 2, 3))
        weight = tf.cast(_of_all_replicas(weights), tf.float32)
        weight = tf.where(weight > 0, weight, 1.0)
        total += tf.reduce_sum(tf.add_n(of_images)) / weight
    counted = (mask != IGNORED)[..., tf.newaxis]
    overlaps = {name: terms[name] for name in OVERLAPS if name in terms}
    if overlaps or "lovasz" in terms:
        probabilities = tf.exp(log_probabilities) * tf.cast(counted, tf.float32)
    if overlaps:
        total += _overlap_share(truth, probabilities, overlaps, class_weights)
    if factor := terms.get("lovasz"):
        errors = tf.abs(truth - probabilities)
        total += factor * _lovasz_share(truth, errors, counted, class_weights)
    return total


def _smoothed(truth: tf.Tensor, share: float) -> tf.Tensor:
    """Returns the truth, (N, S, S, C), a share of it spread over all classes."""
    if not share:
        return truth
    alike = tf.reduce_mean(truth, axis=-1, keepdims=True)
    return (1 - share) * truth + share * alike


def _focal(truth: tf.Tensor, log_probabilities: tf.Tensor, gamma: float) -> tf.Tensor:
    """Returns the focal loss of each pixel, (N, S, S, 1); 0 where none is true."""
    nats = -tf.reduce_sum(truth * log_probabilities, axis=-1, keepdims=True)
    doubt = -tf.math.expm1(-nats)  # 1 less the probability of the true class.
    return tf.maximum(doubt, LEAST_DOUBT) ** gamma * nats


def _overlap_share(
    truth: tf.Tensor,
    probabilities: tf.Tensor,
    terms: Mapping[str, float],
    class_weights: Sequence[float] | None,
) -> tf.Tensor:
    """Returns this replica's share of Dice and Jaccard loss.

    Args:
        truth: (N, S, S, C) float32, 1 for the true class of a counted pixel, else 0.
        probabilities: (N, S, S, C) float32, 0 for a pixel that is not counted.
        terms: Factor of each.
        class_weights: Of each class.

    Source: Dice loss of Milletari et al. 2016, arXiv:1606.04797, section 3, with
        probabilities in place of their squares below, as in Drozdzal et al. 2016,
        arXiv:1608.04117, section 3; Jaccard loss of Rahman and Wang 2016, Optimizing
        Intersection-Over-Union in Deep Neural Networks for Image Segmentation.
    """
    both, given, true = (
        _of_all_replicas(tf.reduce_sum(values, axis=(1, 2)))  # (C,)
        for values in (truth * probabilities, probabilities, truth)
    )
    weights = _shares_of_mean(true, class_weights)
    given = tf.where(true > 0, given, 1)  # Of an absent class 0 / 0 would be nan.
    losses = [
        factor * tf.reduce_sum(weights * (1 - OVERLAPS[name](both, given, true)))
        for name, factor in terms.items()
    ]
    return _share_of(tf.add_n(losses))


def _lovasz_share(
    truth: tf.Tensor,
    errors: tf.Tensor,
    counted: tf.Tensor,
    class_weights: Sequence[float] | None,
) -> tf.Tensor:
    """Returns this replica's share of Lovasz-softmax.

    Of each class it is the sum of each pixel's error times what the Jaccard loss grows by
    when that pixel joins the wrong ones, the largest errors first. By how much does not
    ask which pixels came before, only how many of the class and how many of others. So
    nothing is sorted: they are counted by size of error, over all replicas. Of errors in
    the same bin, those of the class and the others come first half of the time each.

    Args:
        truth: (N, S, S, C) float32, 1 for the true class of a counted pixel, else 0.
        errors: (N, S, S, C) float32, distance of the probabilities from it, 0..1.
        counted: (N, S, S, 1) bool, whether a pixel is.
        class_weights: Of each class.

    Source: Berman et al. 2018, arXiv:1705.08790, section 2 and algorithm 1.
    """
    classes = truth.shape[-1]
    bins = tf.clip_by_value(
        tf.cast(errors * BINS, tf.int32), 0, BINS - 1
    )  # nan is not.
    of_others = tf.cast(1 - truth, tf.int32)
    cells = (2 * tf.range(classes) + of_others) * BINS + bins
    last = 2 * classes * BINS  # What is not counted goes there.
    cells = tf.where(counted, cells, last)
    counts = _counts(tf.reshape(cells, [-1]), last + 1)[:last]
    counts = tf.distribute.get_replica_context().all_reduce("sum", counts)
    counts = tf.cast(tf.reshape(counts, (classes, 2, BINS)), tf.float32)
    true = tf.reduce_sum(counts[:, 0], axis=-1, keepdims=True)  # (C, 1)
    after = tf.cumsum(counts, axis=-1, reverse=True)  # With the bin itself.
    hit_after, hit_before = (true - found[:, 0] for found in (after, after - counts))
    union_after, union_before = (
        tf.maximum(true + found[:, 1], 1) for found in (after, after - counts)
    )
    growth = [
        (1 / union_before + 1 / union_after) / 2,
        (hit_before + hit_after) / 2 / (union_before * union_after),
    ]
    weights = _shares_of_mean(true, class_weights)
    growth = tf.stack(growth, axis=1) * weights[..., tf.newaxis]
    growth = tf.concat([tf.reshape(growth, [last]), [0.0]], axis=0)
    return tf.reduce_sum(tf.stop_gradient(tf.gather(growth, cells)) * errors)


def _counts(cells: tf.Tensor, size: int) -> tf.Tensor:
    """Returns how often each of 0..size - 1 is among cells, (size,) int32."""
    if not sums.on_cpu():
        return tf.math.unsorted_segment_sum(tf.ones_like(cells), cells, size)
    # 25 times as fast there; GPUs refuse it with --deterministic.
    none = tf.constant([], tf.int32)
    return tf.raw_ops.DenseBincount(input=cells, size=tf.constant(size), weights=none)


def _shares_of_mean(
    true: tf.Tensor, class_weights: Sequence[float] | None
) -> tf.Tensor:
    """Returns each class' share of a mean over those that are true somewhere.

    Args:
        true: (C, ...), pixels of each class.
        class_weights: Of each class.

    Returns:
        (C, ...) of the same dtype, with the sum 1; 0 where no class is true.
    """
    weights = tf.ones_like(true)
    if class_weights is not None:
        weights *= tf.reshape(tf.constant(class_weights, true.dtype), true.shape)
    weights = tf.where(true > 0, weights, 0)
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights))


@tf.custom_gradient
def _of_all_replicas(of_images: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns the sum over the images of all replicas, (...), of (N, ...) float32.

    Sums of images are the same on any replicas; the sum of those in float64 is then as
    good as exact. Each replica has the whole loss from it, whose gradient with respect to
    its own images is thus at hand: nothing is to be summed on the way back.
    """
    context = tf.distribute.get_replica_context()
    dtype = tf.float64 if sums.exact() else tf.float32
    total = tf.reduce_sum(tf.cast(of_images, dtype), axis=0)

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        return tf.broadcast_to(tf.cast(dy, of_images.dtype), tf.shape(of_images))

    return context.all_reduce("sum", total), gradient


@tf.custom_gradient
def _share_of(loss: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns a replica's share, () float32, of a loss that each has the whole of.

    Its gradient stays whole: see `_of_all_replicas`.
    """
    context = tf.distribute.get_replica_context()
    part = tf.cast(loss / context.num_replicas_in_sync, tf.float32)
    return part, lambda dy: tf.cast(dy, loss.dtype)


def _compared(logits: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns truth and log-probability of each class, (N, S, S, C) float32 both."""
    # No class is set in the row of an ignored pixel. Forward and back this takes
    # less than half as long on a CPU as
    # tf.nn.sparse_softmax_cross_entropy_with_logits.
    truth = tf.one_hot(mask, logits.shape[-1])
    logits = tf.cast(logits, tf.float32)
    few = sums.on_cpu() and logits.shape[-1] <= FEW
    return truth, _log_softmax(logits) if few else tf.nn.log_softmax(logits)


@tf.custom_gradient
def _log_softmax(logits: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns the log-probability of each class, (N, S, S, C), class by class.

    TensorFlow's takes a pixel's few classes one after the other: 1.6 times as long for 3.
    """
    classes = tf.unstack(logits, axis=-1)
    most = functools.reduce(tf.maximum, classes)
    total = tf.add_n([tf.exp(each - most) for each in classes])
    found = logits - (most + tf.math.log(total))[..., tf.newaxis]

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        total = tf.add_n(tf.unstack(dy, axis=-1))[..., tf.newaxis]
        return dy - tf.exp(found) * total

    return found, gradient


def _counted(mask: tf.Tensor) -> tf.Tensor:
    """Returns the counted pixels of each image, (N,) float32."""
    return tf.reduce_sum(tf.cast(mask != IGNORED, tf.float32), axis=(1, 2))
