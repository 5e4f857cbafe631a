"""Where the replicas live, and how many examples each of them gets."""

import tensorflow as tf

from trainer import sums


def make_strategy(
    name: str, num_cpu_devices: int | None = None
) -> tf.distribute.Strategy:
    """Returns the strategy of that name, its devices made ready.

    Must be called before TensorFlow makes its devices.

    Args:
        name: "one_device", "mirrored" (all GPUs, or logical CPU devices), or "auto".
        num_cpu_devices: Logical CPU devices to mirror over; GPUs are left alone.

    Raises:
        ValueError: If there is nothing to mirror over.
    """
    gpus = [] if num_cpu_devices else tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if num_cpu_devices is not None:
        [cpu] = tf.config.list_physical_devices("CPU")
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [device] * num_cpu_devices)
    if name == "mirrored" and not gpus and num_cpu_devices is None:
        raise ValueError(
            "strategy mirrored needs GPUs or num_cpu_devices, got neither; give "
            "--num_cpu_devices=N or --strategy=one_device"
        )
    if name == "auto":
        several = len(gpus) > 1 or (num_cpu_devices or 1) > 1
        name = "mirrored" if several else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    if gpus:
        return tf.distribute.MirroredStrategy([f"/gpu:{i}" for i in range(len(gpus))])
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{i}" for i in range(num_cpu_devices or 1)],
        # CPUs would add in a ring, which rounds otherwise than one replica does.
        cross_device_ops=tf.distribute.ReductionToOneDevice(
            accumulation_fn=sums.in_pairs
        ),
    )


def global_batch(replicas: int, batch_size: int, global_batch_size: int | None) -> int:
    """Returns the examples per step over all replicas.

    Raises:
        ValueError: If the replicas do not divide it; names the nearest that they do.
    """
    total = batch_size * replicas if global_batch_size is None else global_batch_size
    if total % replicas:
        lower = total // replicas * replicas
        nearest = f"{lower}, {lower + replicas}" if lower else f"{replicas}"
        raise ValueError(
            f"global_batch_size must be a multiple of the {replicas} replicas, got "
            f"{total}; nearest: {nearest}"
        )
    return total
