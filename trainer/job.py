"""A run made ready: settings checked, data opened, model built, checkpoint restored."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import (
    averaging,
    checkpoint,
    checkpoint_folder,
    config,
    data,
    dataset,
    distribution,
    examples,
    files,
    metrics,
    model,
    objective,
    run_files,
    same_run,
    step,
    trained,
)
from trainer.cluster import Cluster


@dataclasses.dataclass
class Job:
    """A run that is ready to start: checked, built and restored."""

    settings: config.Config
    directories: config.Directories
    strategy: tf.distribute.Strategy
    workers: distribution.Workers
    dataset: dataset.Dataset
    examples: dict[str, examples.Examples]
    model: keras.Model
    train_model: keras.Model  # The same weights, for images of the training's size.
    optimizer: keras.Optimizer
    loss_scale: step.LossScale | None
    average: averaging.Average | None  # Of the weights; judged in their place.
    global_batch_size: int
    total_steps: int
    state: dict[str, Any]  # JSON, saved with each checkpoint; see `new_state`.
    latest: str | None  # Name of the newest checkpoint: restored or written.
    damaged: set[str]  # Names of those that were passed over, until written again.
    cloud_job_id: str | None
    in_trial: bool
    fence: Callable[[], None]  # Raises OSError where another run may write by now.

    @property
    def batch_size(self) -> int:
        """Returns N, the examples of one replica at one step."""
        return self.global_batch_size // self.strategy.num_replicas_in_sync

    @property
    def steps_per_epoch(self) -> float:
        """Returns how many steps it takes to see every training example once."""
        return len(self.dataset.train.ids) / self.global_batch_size

    def judged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Gives the model the weights that are judged, until it is left."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """Returns all that a checkpoint holds."""
        scale = self.loss_scale.variables if self.loss_scale else []
        named = checkpoint.named_variables(self.model, self.optimizer, self.average)
        return named | {f"loss_scale/{v.name}": v for v in scale}


def new_state(settings: config.Config, opened: dataset.Dataset) -> dict[str, Any]:
    """Returns the state of a run that has not made a step."""
    train, val = opened.train, opened.val
    return {
        "step": 0,
        "settings": config.identity(settings),
        # Of each shard of train, and of validation.
        "examples": [*train.shard_lengths, len(val.ids)],
        "num_bytes": [train.num_bytes, val.num_bytes],
        # As the settings say, or else the data set itself.
        "class_names": list(opened.class_names),
        "mask_offset": opened.mask_offset,
        "ignore_id": opened.ignore_id,
        "batch_size": settings.batch_size,
        "global_batch_size": None,
        "learning_rate": None,  # As scaled when the run began.
        "job_dir": None,
        "class_weights": None,  # As counted when the run began, if they are.
        "seconds": 0.0,  # In the loop, over all restarts.
        "seconds_of": {},  # Of all its processes, by use; see `clock`.
        "time_saved": None,  # Seconds since 1970.
        "evaluations": [],  # {"step": ..., "val_...": ...}, one each.
        "loss_sum": 0.0,  # Of the steps since the last row of metrics.jsonl,
        "loss_steps": 0,  # and how many they are.
    }


def train_side(settings: config.Config) -> int:
    """Returns the side of the images that the model is trained on, pixels."""
    return settings.train_image_size or settings.image_size


def augmentation(settings: config.Config) -> dict[str, Any] | None:
    """Returns the arguments of `augment.augment`; nothing where it is off."""
    if not settings.augment:
        return None
    return dict(
        flip=settings.flip,
        crop_scale_min=settings.crop_scale_min,
        brightness=settings.brightness,
        contrast=settings.contrast,
        saturation=settings.saturation,
        hue=settings.hue,
    )


def prepare(
    settings: config.Config,
    directories: config.Directories,
    *,
    cloud_job_id: str | None = None,
    in_trial: bool = False,
    fence: Callable[[], None] = lambda: None,
    cluster: Cluster | None = None,
) -> Job:
    """Returns the run, new or restored. Of what it writes job_dir/config.json stays.

    With several workers, each prepares the same run, and the chief alone writes.

    Args:
        settings: The settings.
        directories: Where the run writes.
        cloud_job_id: Id of the cloud job that this process belongs to.
        in_trial: Whether a tuner waits for `hp_metric`.
        fence: Asked before a write that another run's may clash with.
        cluster: The workers, where there are several.

    Raises:
        ValueError: One line: what is wrong, and the way out.
    """
    _check_start(settings, directories, cloud_job_id, cluster)
    opened = _open(settings)
    state = new_state(settings, opened)
    saved = checkpoint_folder.load_latest(directories.checkpoints)
    if saved is not None:
        same_run.check_place(directories, saved)
        same_run.check_settings(state, saved)
    else:
        same_run.check_begun(directories)
        config.check_names(settings.class_names)
        dataset.check_asked(settings.dataset, opened)

    strategy = distribution.make_strategy(
        settings.strategy,
        settings.num_cpu_devices,
        tpu=settings.tpu,
        cluster=cluster,
        timeout_seconds=settings.worker_timeout_seconds,
    )
    workers = distribution.Workers(
        strategy, *((cluster.index, cluster.size) if cluster else (0, 1))
    )
    same_run.check_on_all(workers, settings, state)
    saved = same_run.as_the_chief(workers, directories.checkpoints, saved)
    global_batch_size = same_run.global_batch(settings, strategy, saved)
    if settings.jit_compile and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "jit_compile works with one replica only, got "
            f"{strategy.num_replicas_in_sync}; add --strategy=one_device"
        )
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if settings.deterministic and not on_tpu:  # Which knows no other way.
        tf.config.experimental.enable_op_determinism()
    state |= saved.state if saved else {}
    if state["learning_rate"] is None:
        state["learning_rate"] = _learning_rate(settings, strategy)
    total_steps = settings.total_steps or math.ceil(
        settings.epochs * len(opened.train.ids) / global_batch_size
    )
    with strategy.scope():
        unet, optimizer, loss_scale, average = _built(
            settings,
            len(opened.class_names),
            saved,
            state["learning_rate"],
            total_steps,
        )
    job = Job(
        settings=settings,
        directories=directories,
        strategy=strategy,
        workers=workers,
        dataset=opened,
        examples=data.examples_of(
            opened,
            settings.image_size,
            settings.cache,
            workers.index,
            workers.count,
            data.train_size(train_side(settings), augmentation(settings)),
        ),
        model=unet,
        train_model=model.at(unet, train_side(settings)),
        optimizer=optimizer,
        loss_scale=loss_scale,
        average=average,
        global_batch_size=global_batch_size,
        total_steps=total_steps,
        state=state,
        latest=saved.name if saved else None,
        damaged=set(saved.passed_over if saved else ()),
        cloud_job_id=cloud_job_id,
        in_trial=in_trial,
        fence=fence,
    )
    job.state["global_batch_size"] = global_batch_size
    job.state["job_dir"] = files.place(directories.job)
    if saved is not None:
        checkpoint.assign(saved.arrays, job.variables)
    if workers.count > 1:
        same_run.check_weights(workers, checkpoint.values(job.variables))
    if workers.is_chief:
        fence()
        _write_config(job)
    if workers.count > 1:
        same_run.check_shared(workers, "job_dir", directories.job)
        if checkpoint_folder.apart(directories.job, directories.checkpoints):
            same_run.check_shared(workers, "checkpoint_dir", directories.checkpoints)
    return job


def _check_start(
    settings: config.Config,
    directories: config.Directories,
    cloud_job_id: str | None,
    cluster: Cluster | None,
) -> None:
    """Raises ValueError where nothing needs to be opened to see that it cannot start."""
    if cluster is not None and settings.download:
        raise ValueError(
            f"download is for a single worker, got {cluster.size} in TF_CONFIG, which "
            "would get in each other's way; prepare the data set once before, and give "
            "the encoder's weights as a file"
        )
    if cluster is not None and settings.fast_dev_run:
        raise ValueError(
            f"fast_dev_run is for a single worker, got {cluster.size} in TF_CONFIG; "
            "their temporary job_dirs would differ: give a job_dir and few total_steps"
        )
    failed = run_files.read_failed(directories.job)
    if failed and cloud_job_id and failed.get("cloud_job_id") == cloud_job_id:
        raise ValueError(
            f"job {cloud_job_id} failed for good at step {failed['step']}: "
            f"{failed['reason']}; submit a new job to go on from the last checkpoint"
        )


def _open(settings: config.Config) -> dataset.Dataset:
    """Returns the data set; the metrics that are asked for must be of its classes."""
    opened = trained.open_dataset(settings, download=settings.download)
    objective.check_classes(settings.class_weights, tuple(opened.class_names))
    empty = np.zeros([len(opened.class_names)] * 2, np.int64)
    known = ["val_loss"]
    known += [f"val_{m}" for m in metrics.summary(empty, list(opened.class_names))]
    for name in ("best_metric", "hp_metric"):
        if getattr(settings, name) not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(known)}, got "
                f"{getattr(settings, name)!r}"
            )
    return opened


def _learning_rate(settings: config.Config, strategy: tf.distribute.Strategy) -> float:
    """Returns the learning rate of a new run."""
    replicas = strategy.num_replicas_in_sync
    scales = {"none": 1.0, "linear": replicas, "sqrt": math.sqrt(replicas)}
    return settings.learning_rate * scales[settings.scale_learning_rate]


def _built(
    settings: config.Config,
    num_classes: int,
    saved: checkpoint.Checkpoint | None,
    learning_rate: float,
    total_steps: int,
) -> tuple[
    keras.Model, keras.Optimizer, step.LossScale | None, averaging.Average | None
]:
    """Returns all that holds a run's variables, not yet restored.

    Args:
        settings: The settings.
        num_classes: Of the data set.
        saved: What will be restored; without it the weights are those to start from.
        learning_rate: After warm-up.
        total_steps: Of the whole run.
    """
    # All weights come from a checkpoint then.
    whole = saved is not None or settings.init_from is not None
    unet = trained.build(
        settings, num_classes, "none" if whole else settings.encoder_weights
    )
    if saved is None and settings.init_from is not None:
        _start_from(unet, settings.init_from)
    if settings.model_summary:
        unet.summary(line_length=100)
    encoder_rate = settings.encoder_learning_rate or settings.learning_rate
    optimizer = step.make_optimizer(
        unet,
        name=settings.optimizer,
        learning_rate=learning_rate,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        total_steps=total_steps,
        weight_decay=settings.weight_decay,
        encoder_factor=encoder_rate / settings.learning_rate,
    )
    scaled = settings.precision == "mixed_float16"
    decay = settings.ema_decay
    average = averaging.Average(unet, decay) if decay else None
    return unet, optimizer, step.LossScale() if scaled else None, average


def _write_config(job: Job) -> None:
    """Writes job_dir/config.json: the settings, and what they came to."""
    opened, at = job.dataset, files.place(job.directories.checkpoints)
    apart = checkpoint_folder.apart(job.directories.job, job.directories.checkpoints)
    run_files.write_config(
        job.directories.job,
        config.to_dict(job.settings),
        step=job.state["step"],
        total_steps=job.total_steps,
        checkpoints=at if apart else None,  # A job_dir may be moved with its own.
        devices=[d.name for d in tf.config.list_logical_devices()],
        replicas=job.strategy.num_replicas_in_sync,
        workers=job.workers.count,
        global_batch_size=job.global_batch_size,
        dataset=dict(
            name=opened.name,
            version=opened.version,
            class_names=opened.class_names,
            train_examples=len(opened.train.ids),
            val_examples=len(opened.val.ids),
        ),
    )


def _start_from(unet: keras.Model, path: str) -> None:
    """Gives the model the weights of another run."""
    other = checkpoint_folder.load_initial(path)
    try:
        checkpoint.assign(other.arrays, checkpoint.named_variables(unet))
    except ValueError as error:
        raise ValueError(f"init_from must fit the model, got {path}: {error}") from None
