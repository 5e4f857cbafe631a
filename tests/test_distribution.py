"""Where the replicas live, and the batches that they can share."""

import pytest
import tensorflow as tf

from trainer import distribution


class Devices:
    """Stands in for what TensorFlow allows once per process only."""

    def __init__(self, monkeypatch, num_gpus):
        self.growing, self.logical_cpus = [], None
        gpus = [f"gpu {i}" for i in range(num_gpus)]
        list_devices = tf.config.list_physical_devices
        monkeypatch.setattr(
            tf.config,
            "list_physical_devices",
            lambda kind: gpus if kind == "GPU" else list_devices(kind),
        )
        monkeypatch.setattr(
            tf.config.experimental,
            "set_memory_growth",
            lambda gpu, on: self.growing.append((gpu, on)),
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
    grown = [] if num_cpu_devices else [(f"gpu {i}", True) for i in range(num_gpus)]
    assert devices.growing == grown


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
