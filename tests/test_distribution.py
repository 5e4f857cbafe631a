"""Where the replicas live, and the batches that they can share."""

import json

import pytest
import tensorflow as tf

from trainer import distribution
from trainer.cluster import Cluster, read_cluster


class Devices:
    """Stands in for what TensorFlow allows once per process only."""

    def __init__(self, monkeypatch, num_gpus):
        self.logical_cpus = None
        gpus = [f"gpu {i}" for i in range(num_gpus)]
        list_devices = tf.config.list_physical_devices
        monkeypatch.setattr(
            tf.config,
            "list_physical_devices",
            lambda kind: gpus if kind == "GPU" else list_devices(kind),
        )
        monkeypatch.setattr(
            tf.config,
            "set_logical_device_configuration",
            lambda cpu, devices: setattr(self, "logical_cpus", len(devices)),
        )
        for name in ("OneDeviceStrategy", "MirroredStrategy"):
            monkeypatch.setattr(
                tf.distribute,
                name,
                lambda devices, name=name, **_: (name, devices),
            )


@pytest.mark.parametrize(
    ("name", "num_cpu_devices", "num_gpus", "expected"),
    [
        ("auto", None, 0, ("OneDeviceStrategy", "/cpu:0")),
        ("auto", None, 1, ("OneDeviceStrategy", "/gpu:0")),
        ("auto", None, 2, ("MirroredStrategy", ["/gpu:0", "/gpu:1"])),
        ("auto", 1, 0, ("OneDeviceStrategy", "/cpu:0")),
        ("auto", 2, 0, ("MirroredStrategy", ["/cpu:0", "/cpu:1"])),
        ("auto", 2, 2, ("MirroredStrategy", ["/cpu:0", "/cpu:1"])),
        ("one_device", None, 0, ("OneDeviceStrategy", "/cpu:0")),
        ("one_device", None, 2, ("OneDeviceStrategy", "/gpu:0")),
        ("mirrored", None, 1, ("MirroredStrategy", ["/gpu:0"])),
        ("mirrored", 3, 0, ("MirroredStrategy", ["/cpu:0", "/cpu:1", "/cpu:2"])),
        ("mirrored", 1, 2, ("MirroredStrategy", ["/cpu:0"])),
    ],
)
def test_strategy_of_a_name_takes_the_devices_that_are_there(
    monkeypatch, name, num_cpu_devices, num_gpus, expected
):
    devices = Devices(monkeypatch, num_gpus)
    assert distribution.make_strategy(name, num_cpu_devices) == expected
    assert devices.logical_cpus == num_cpu_devices


def test_mirrored_with_nothing_to_mirror_over_is_refused(monkeypatch):
    Devices(monkeypatch, num_gpus=0)
    with pytest.raises(ValueError, match="--num_cpu_devices=N or --strategy=one_dev"):
        distribution.make_strategy("mirrored")


def test_strategies_have_as_many_replicas_as_devices(monkeypatch):
    monkeypatch.setattr(
        tf.config, "set_logical_device_configuration", lambda cpu, devices: None
    )
    one = distribution.make_strategy("one_device", 1)
    several = distribution.make_strategy("mirrored", 3)
    assert isinstance(one, tf.distribute.OneDeviceStrategy)
    assert isinstance(several, tf.distribute.MirroredStrategy)
    assert (one.num_replicas_in_sync, several.num_replicas_in_sync) == (1, 3)


@pytest.mark.parametrize(
    ("replicas", "batch_size", "global_batch_size", "expected"),
    [(1, 64, None, 64), (4, 64, None, 256), (4, 64, 64, 64), (3, 1, 3, 3)],
)
def test_global_batch_is_that_of_all_replicas_unless_it_is_fixed(
    replicas, batch_size, global_batch_size, expected
):
    found = distribution.global_batch(replicas, batch_size, global_batch_size)
    assert found == expected


@pytest.mark.parametrize(
    ("replicas", "total", "nearest"),
    [(4, 63, "60, 64"), (4, 65, "64, 68"), (3, 64, "63, 66"), (4, 3, "4"), (8, 1, "8")],
)
def test_global_batch_that_replicas_do_not_divide_is_refused_with_the_nearest(
    replicas, total, nearest
):
    with pytest.raises(ValueError) as refusal:
        distribution.global_batch(replicas, 64, total)
    assert str(refusal.value) == (
        f"global_batch_size must be a multiple of the {replicas} replicas, got {total};"
        f" nearest: {nearest}"
    )


# ---------------------------------------------------------------------------
# Several workers


def tf_config(cluster, job="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task(job, index)})}


def task(job, index):
    return {"type": job, "index": index}


TWO = {"worker": ["a:1", "b:2"]}
VERTEX = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"], "evaluator": ["e"]}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"TF_CONFIG": ""}, None),
        ({"TF_CONFIG": "{}"}, None),
        (tf_config({"chief": ["a:1"]}, "chief"), None),
        (tf_config({"chief": ["a:1"], "ps": ["b:1", "c:1"]}, "chief"), None),
        (tf_config(TWO), (2, 0)),
        (tf_config(TWO, index=1), (2, 1)),
        (tf_config(TWO, index="1"), (2, 1)),
        (tf_config(VERTEX, "chief"), (3, 0)),
        (tf_config(VERTEX, "worker", 1), (3, 2)),
        (tf_config({"master": ["a:1"], "worker": ["b:1"]}, "master"), (2, 0)),
        (tf_config({"master": ["a:1"], "worker": ["b:1"]}, "worker"), (2, 1)),
        (tf_config(dict(reversed(VERTEX.items())), "worker", 1), (3, 2)),
    ],
)
def test_tf_config_tells_how_many_workers_there_are_and_which_this_is(
    environ, expected
):
    found = read_cluster(environ)
    assert (found and (found.size, found.index)) == expected
    # The chief is the first whose address there is.
    assert found is None or list(found.jobs) in (["chief", "worker"], ["worker"])


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"TF_CONFIG": "{"}, "must be JSON"),
        ({"TF_CONFIG": "[]"}, "must be JSON"),
        (tf_config(TWO, "worker", 2), "got worker 2 in"),
        (tf_config(TWO, "chief", 0), "got chief 0 in"),
        (tf_config(TWO, "worker", None), "got worker None in"),
        (tf_config(VERTEX, "ps", 0), "got ps, which this program does not serve as"),
        (tf_config(VERTEX, "evaluator", 0), "got evaluator, which"),
    ],
)
def test_a_tf_config_without_this_process_is_refused(environ, says):
    with pytest.raises(ValueError, match="TF_CONFIG must") as refusal:
        read_cluster(environ)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(name="multi_worker"), "needs TF_CONFIG with two workers or more"),
        (dict(name="mirrored", cluster=TWO), "must be multi_worker where TF_CONFIG"),
        (dict(name="auto", cluster=TWO, num_cpu_devices=2), "is for a single worker"),
        (dict(name="tpu"), "strategy tpu needs a TPU, got none at local: "),
        (dict(name="tpu", cluster=TWO), "strategy tpu is of one host, got TF_CONFIG"),
        (dict(name="auto", tpu="local"), "strategy tpu needs a TPU, got none at local"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(monkeypatch, arguments, says):
    Devices(monkeypatch, num_gpus=0)
    if "cluster" in arguments:
        cluster = Cluster(arguments["cluster"], "worker", 0)
        arguments = {**arguments, "cluster": cluster}
    with pytest.raises(ValueError) as refusal:
        distribution.make_strategy(**arguments)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_one_worker_has_nobody_to_agree_with():
    strategy = tf.distribute.get_strategy()
    workers = distribution.Workers(strategy, 0, 1)
    assert workers.is_chief
    assert workers.totals(3, 4) == workers.chiefs(3, 4) == [3, 4]
    workers.wait()


def test_what_tensorflow_says_of_a_lost_worker_becomes_one_line():
    said = (
        "Graph execution error:\n\nCollective ops is aborted by: Socket closed\n"
        "Additional GRPC error information from remote target "
        "/job:worker/replica:0/task:1 while calling /tensorflow.WorkerService/RecvBuf"
    )
    error = tf.errors.UnavailableError(None, None, said)
    line = "worker 1 is gone or gave no answer in time, so that the others stop"
    with pytest.raises(OSError, match=line), distribution.losses_told(2):
        raise error
    with pytest.raises(tf.errors.UnavailableError), distribution.losses_told(1):
        raise error
    # What fails for another reason is told as it is.
    said = "All 10 retry attempts failed. The last failure: Could not connect"
    failed = tf.errors.AbortedError(None, None, said)
    aborted = pytest.raises(tf.errors.AbortedError, match="retry")
    with aborted, distribution.losses_told(2):
        raise failed
    said = (
        "OOM when allocating tensor with shape[64,128,128,64] and type float on "
        "/job:worker/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
    )
    full = tf.errors.ResourceExhaustedError(None, None, said)
    exhausted = pytest.raises(tf.errors.ResourceExhaustedError, match="OOM")
    with exhausted, distribution.losses_told(2):
        raise full


def test_auto_takes_the_tpu_that_tensorflow_shows(monkeypatch):
    shown = {"TPU_SYSTEM": ["TPU_SYSTEM:0"]}
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: shown.get(kind, [])
    )
    with pytest.raises(ValueError, match="strategy tpu needs a TPU"):
        distribution.make_strategy("auto")
