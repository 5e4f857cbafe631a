"""Where the replicas live, and what the workers of a run agree on."""

import contextlib
import re
import socket
import time
from collections.abc import Iterator

import tensorflow as tf

from trainer import sums
from trainer.cluster import Cluster

POLL_SECONDS = 0.5
# What TensorFlow says where another worker is gone or late; other things fail with the
# same kinds of error.
LOST = re.compile(r"/job:\w+/replica:\d+/task:\d+|[Cc]ollective|[Cc]oordination")


class WorkerLost(OSError):
    """Another worker is gone, or gave no answer in time."""


class Workers:
    """What the workers of a run tell each other; with one there is nothing to tell.

    Args:
        strategy: Where the replicas live.
        index: Number of this worker, 0 for the chief.
        count: How many there are.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, index: int, count: int
    ) -> None:
        self.index, self.count = index, count
        local = strategy.num_replicas_in_sync // count

        def contribution(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % local == 0
            return context.all_reduce("sum", tf.where(first, values, 0))

        @tf.function(autograph=False)
        def total(values: tf.Tensor) -> tf.Tensor:
            found = strategy.run(contribution, args=(values,))
            return strategy.experimental_local_results(found)[0]

        self._total = total

    @property
    def is_chief(self) -> bool:
        """Returns whether this worker is the one that writes."""
        return self.index == 0

    def totals(self, *values: int) -> list[int]:
        """Returns the sum of each value over all workers, each of which must ask."""
        if self.count == 1:
            return list(values)
        return self._total(tf.constant(values, tf.int64)).numpy().tolist()

    def chiefs(self, *values: int) -> list[int]:
        """Returns the values that the chief has; each worker must ask."""
        return self.totals(*(value if self.is_chief else 0 for value in values))

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self.totals(0)


def make_strategy(
    name: str,
    num_cpu_devices: int | None = None,
    *,
    tpu: str | None = None,
    cluster: Cluster | None = None,
    timeout_seconds: float = 600.0,
) -> tf.distribute.Strategy:
    """Returns the strategy of that name, its devices made ready.

    Must be called before TensorFlow makes its devices.

    Args:
        name: "one_device", "mirrored" (all GPUs, or logical CPU devices),
            "multi_worker", "tpu", or "auto".
        num_cpu_devices: Logical CPU devices to mirror over; GPUs are left alone.
        tpu: "local" or an address, for "tpu".
        cluster: The workers, for "multi_worker".
        timeout_seconds: How long to wait for another worker, at the start and at any
            step.

    Raises:
        ValueError: If what the name asks for is not there.
    """
    if name == "auto":
        name = _chosen(num_cpu_devices, tpu, cluster)
    if name == "tpu" and cluster is None:
        return _tpu(tpu)
    if name == "tpu":
        raise ValueError(
            "strategy tpu is of one host, got TF_CONFIG with several workers; take one "
            "machine"
        )
    if cluster is not None and name != "multi_worker":
        raise ValueError(
            f"strategy must be multi_worker where TF_CONFIG names {cluster.size} "
            f"workers, got {name}; leave --strategy out or unset TF_CONFIG"
        )
    gpus = [] if num_cpu_devices else tf.config.list_physical_devices("GPU")
    if name == "multi_worker":
        if cluster is None:
            raise ValueError(
                "strategy multi_worker needs TF_CONFIG with two workers or more, got "
                "none; set it, or leave --strategy out"
            )
        if num_cpu_devices is not None:
            raise ValueError(
                "num_cpu_devices is for a single worker, got "
                f"{num_cpu_devices} with {cluster.size} in TF_CONFIG; leave it out"
            )
        return _multi_worker(cluster, len(gpus), timeout_seconds)
    if num_cpu_devices is not None:
        [cpu] = tf.config.list_physical_devices("CPU")
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [device] * num_cpu_devices)
    if name == "mirrored" and not gpus and num_cpu_devices is None:
        raise ValueError(
            "strategy mirrored needs GPUs or num_cpu_devices, got neither; give "
            "--num_cpu_devices=N or --strategy=one_device"
        )
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


def _chosen(
    num_cpu_devices: int | None, tpu: str | None, cluster: Cluster | None
) -> str:
    """Returns the strategy for what is there."""
    # Of a TPU, TensorFlow shows the system until it is made ready.
    if tpu or any(map(tf.config.list_physical_devices, ("TPU", "TPU_SYSTEM"))):
        return "tpu"
    if cluster is not None:
        return "multi_worker"
    gpus = [] if num_cpu_devices else tf.config.list_physical_devices("GPU")
    several = len(gpus) > 1 or (num_cpu_devices or 1) > 1
    return "mirrored" if several else "one_device"


def _multi_worker(
    cluster: Cluster, num_gpus: int, timeout_seconds: float
) -> tf.distribute.Strategy:
    """Returns the strategy of several workers, when all of them are there."""
    # Those of the chief come first.
    addresses = [a for tasks in cluster.jobs.values() for a in tasks]
    if cluster.index == 0:
        _await(addresses, timeout_seconds)
    # TensorFlow would wait an hour for the chief; only its inner part can be told.
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    jobs = [
        coordination_config_pb2.CoordinatedJob(name=job, num_tasks=len(tasks))
        for job, tasks in cluster.jobs.items()
    ]
    leader = "chief" if "chief" in cluster.jobs else "worker"
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{leader}/replica:0/task:0",
        cluster_register_timeout_in_ms=int(timeout_seconds * 1000),
        coordinated_jobs=jobs,
    )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            tf.distribute.cluster_resolver.SimpleClusterResolver(
                tf.train.ClusterSpec(cluster.jobs),
                task_type=cluster.job,
                task_id=cluster.task,
                num_accelerators={"GPU": num_gpus} if num_gpus else {},
                rpc_layer="grpc",
            ),
            tf.distribute.experimental.CommunicationOptions(
                timeout_seconds=timeout_seconds
            ),
        )
    except tf.errors.OpError as error:
        raise WorkerLost(
            f"worker {cluster.index} of {cluster.size} could not join the others at "
            f"{', '.join(addresses)} within {timeout_seconds:.0f} seconds: "
            f"{error.message.splitlines()[0]}"
        ) from None
    # All get as many batches: nobody need ask the others whether there is one more.
    strategy.extended.experimental_enable_get_next_as_optional = False
    return strategy


def _await(addresses: list[str], timeout_seconds: float) -> None:
    """Returns when the workers but the chief, the first, can be reached.

    Within TensorFlow the chief would wait for ever, deaf to everything.

    Raises:
        OSError: Names those that cannot be.
    """
    give_up, missing = time.monotonic() + timeout_seconds, addresses[1:]
    while True:
        missing = [address for address in missing if not _is_there(address)]
        if not missing:
            return
        if time.monotonic() > give_up:
            raise WorkerLost(
                f"the chief of {len(addresses)} workers waited {timeout_seconds:.0f} "
                f"seconds for {', '.join(missing)}; see why they did not start, or give "
                "a longer --worker_timeout_seconds"
            )
        time.sleep(POLL_SECONDS)


def _is_there(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), POLL_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _tpu(address: str | None) -> tf.distribute.Strategy:
    """Returns the strategy of the TPU of this host, or at an address."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address or "local")
        if address not in (None, "local"):
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError) as error:
        reason = str(getattr(error, "message", error)).splitlines()[0]
        raise ValueError(
            f"strategy tpu needs a TPU, got none at {address or 'local'}: {reason}; "
            "install segtrainer[tpu] on a TPU VM, or leave --tpu out"
        ) from None


@contextlib.contextmanager
def losses_told(count: int) -> Iterator[None]:
    """Makes a WorkerLost of what TensorFlow raises where another of `count` is gone."""
    try:
        yield
    except tf.errors.OpError as error:
        # Memory that runs out names the device, which is of a worker too.
        no_memory = isinstance(error, tf.errors.ResourceExhaustedError)
        if count == 1 or no_memory or not LOST.search(error.message):
            raise
        named = re.search(r"/job:(\w+)/replica:\d+/task:(\d+)", error.message)
        who = f"{named[1]} {named[2]}" if named else "another worker"
        raise WorkerLost(
            f"{who} is gone or gave no answer in time, so that the others stop"
        ) from error


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
