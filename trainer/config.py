"""Every setting of a run: flag, default, unit, help, check. No TensorFlow here."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl.flags import FlagValues

from trainer import encoders, flags, objective, recipes
from trainer.flags import setting

METRIC = r"val_(loss|mean_iou|pixel_accuracy|(iou|dice)/.+)"  # Of `metrics.summary`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run, checked when made.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """

    # fmt: off
    dataset: str = setting("Data", "oxford_iiit_pet", "TFDS name, with /config or :version where needed.", identity=True)
    data_dir: str | None = setting("Data", None, "TFDS directory, local or gs://; the bundled sample when absent.")
    download: bool = setting("Data", False, "Let TFDS download and prepare a data set that data_dir lacks, and Keras the encoder's weights that are not bundled.")
    try_gcs: bool = setting("Data", False, "Read the data set from TFDS' public bucket, gs://tfds-data, where it has it.")
    image_feature: str | None = setting("Data", None, "Name of the picture among the features; known for oxford_iiit_pet.", identity=True)
    mask_feature: str | None = setting("Data", None, "Name of the mask among the features; known for oxford_iiit_pet.", identity=True)
    mask_offset: int | None = setting("Data", None, "Added to a stored mask id to get the class id.", low=-255, high=255, identity=True)
    class_names: tuple[str, ...] | None = setting("Data", None, "Names of classes 0, 1, ..., separated by commas.", identity=True)
    ignore_id: int | None = setting("Data", None, "Stored mask id of pixels that count nowhere.", low=0, high=65535, identity=True)
    train_split: str = setting("Data", "train", "Split to fit.", identity=True)
    val_split: str | None = setting("Data", None, "Split to choose by; when absent the data set's own validation split, else a cut of the train split; 'train' always cuts.", identity=True)
    test_split: str = setting("Data", "test", "Split to report once, at the end, where the data set has it; none reports nothing.")
    val_fraction: float = setting("Data", 0.1, "Share of the train split cut for validation, at the head of each shard.", low=0, high=0.9, identity=True)
    limit_train_examples: int | None = setting("Data", None, "Train on this many examples only.", low=1, identity=True)
    limit_eval_examples: int | None = setting("Data", None, "Evaluate on this many examples of a split only.", low=1, identity=True)
    image_size: int = setting("Data", 128, "Side of the square model input, pixels; a multiple of 32.", low=32, identity=True)
    train_image_size: int | None = setting("Data", None, "Side of training images, of their crops where there are, pixels; a multiple of 32; image_size when absent.", low=32, identity=True)
    cache: str = setting("Data", "auto", "Keep decoded examples in memory; auto does when they fit.", choices=("auto", "memory", "none"))
    shuffle_window: int = setting("Data", 1000, "Examples per stream among which the order is shuffled; a shard up to this long is permuted whole.", low=1, identity=True)

    augment: bool = setting("Augmentation", True, "Augment training examples, afresh in each epoch.", identity=True)
    flip: bool = setting("Augmentation", True, "Mirror half of the examples left to right.", identity=True)
    crop_scale_min: float = setting("Augmentation", 1.0, "Smallest side of a random crop, as a share of the image's; 1 crops nothing.", low=0.1, high=1, identity=True)
    brightness: float = setting("Augmentation", 0.0, "Largest change of brightness, as a share of the full range.", low=0, high=1, identity=True)
    contrast: float = setting("Augmentation", 0.0, "Largest relative change of contrast.", low=0, high=0.99, identity=True)
    saturation: float = setting("Augmentation", 0.0, "Largest relative change of saturation.", low=0, high=0.99, identity=True)
    hue: float = setting("Augmentation", 0.0, "Largest shift of the hue, as a share of the colour circle.", low=0, high=0.5, identity=True)

    encoder: str = setting("Model", encoders.DEFAULT, "Pretrained network, of keras.applications.", choices=encoders.NAMES, identity=True)
    encoder_alpha: float = setting("Model", 1.0, "Width of mobilenet_v2, over that of the paper: 0.35, 0.5, 0.75, 1, 1.3 or 1.4.", identity=True)
    encoder_weights: str = setting("Model", "imagenet", "Weights the encoder starts from: imagenet (bundled for mobilenet_v2; others need --download), none, or a .weights.h5 or .h5 file, local or gs://.", identity=True)
    skip_layers: tuple[str, ...] | None = setting("Model", None, "Layers of the encoder that the decoder sees too, at strides 2, 4, 8 and 16, separated by commas; none for no skip.", identity=True)
    train_encoder: bool = setting("Model", False, "Train the encoder too; its BatchNorm stays in inference mode but for train_encoder_batch_norm.", identity=True)
    encoder_learning_rate: float | None = setting("Model", None, "With train_encoder: the encoder's learning rate, which follows the same schedule; learning_rate when absent. weight_decay goes by learning_rate still.", low=0, identity=True)
    train_encoder_from: int = setting("Model", 1, "With train_encoder: stride from which on its layers are trained; those of finer maps stay as they are, and cost no gradient.", low=1, high=32, identity=True)
    train_encoder_batch_norm: bool = setting("Model", False, "With train_encoder: let the encoder's BatchNorm learn as well.", identity=True)
    decoder: str = setting("Model", "tutorial", "tutorial: transposed 3x3 convolutions; light: bilinear and separable, a quarter of the multiplications.", choices=("tutorial", "light"), identity=True)
    init_from: str | None = setting("Model", None, "Start a new run from the best weights of this other job_dir, or from one checkpoint file.")
    precision: str = setting("Model", "float32", "Arithmetic of the model; weights are float32 always.", choices=("float32", "mixed_bfloat16", "mixed_float16"), identity=True)
    jit_compile: bool = setting("Model", False, "Compile the training step with XLA; one replica only.", identity=True)
    model_summary: bool = setting("Model", False, "Print the layers and their parameters before training.")

    epochs: float = setting("Training", 20.0, "Passes over the training examples.", low=0, high=1e6)
    total_steps: int | None = setting("Training", None, "Steps to train, instead of epochs.", low=1)
    batch_size: int = setting("Training", 64, "Examples per step on one replica.", low=1, high=1e6)
    global_batch_size: int | None = setting("Training", None, "Examples per step over all replicas, instead of batch_size.", low=1, high=1e6)
    loss: str = setting("Training", "cross_entropy", "What training makes small: cross_entropy, focal, dice, jaccard, lovasz, or a sum such as cross_entropy+0.5*dice.", identity=True)
    focal_gamma: float = setting("Training", objective.FOCAL_GAMMA, "With focal: how much less the pixels count that are almost right; 0 is cross_entropy.", low=0, high=10, identity=True)
    class_weights: str | None = setting("Training", None, "Weight of the pixels of each class, such as 2,2,1; frequency: one over its share of the training pixels.", identity=True)
    label_smoothing: float = setting("Training", 0.0, "With cross_entropy: share of the truth that is spread over all classes alike.", low=0, high=0.99, identity=True)
    optimizer: str = setting("Training", "adam", "Rule of the update.", choices=("adam", "adamw"), identity=True)
    learning_rate: float = setting("Training", 1e-3, "Learning rate, after warm-up.", low=0, identity=True)
    scale_learning_rate: str = setting("Training", "none", "What the learning rate of a new run is multiplied by: nothing, its replicas, or their square root.", choices=("none", "linear", "sqrt"), identity=True)
    schedule: str = setting("Training", "constant", "Learning rate after warm-up; cosine falls to 0 at the last step.", choices=("constant", "cosine"), identity=True)
    warmup_steps: int = setting("Training", 0, "Steps over which the learning rate rises from 0.", low=0, identity=True)
    weight_decay: float = setting("Training", 0.0, "Decoupled weight decay of adamw, per unit of learning rate.", low=0, identity=True)
    clip_norm: float | None = setting("Training", None, "Largest global norm of the gradient, after the sum over replicas.", low=0, identity=True)
    ema_decay: float | None = setting("Training", None, "Judge, keep as best and export a moving mean of the weights, of which so much is kept at each step, such as 0.999; none when 0 or absent.", low=0, high=0.99999, identity=True)
    seed: int = setting("Training", 0, "Seed of weights, order and augmentation.", low=0, high=2**31 - 1, identity=True)
    deterministic: bool = setting("Training", False, "The same weights bit for bit on the same devices.")
    max_minutes: float | None = setting("Training", None, "Stop after so long in the loop, evaluations and saves included, minutes, over all restarts.", low=0)
    early_stopping_evals: int | None = setting("Training", None, "Stop after this many evaluations in a row without a better best_metric.", low=1)

    eval_every_steps: int | None = setting("Evaluation", None, "Steps between evaluations; one epoch when absent.", low=1)
    eval_batch_size: int | None = setting("Evaluation", None, "Examples per evaluation step on one replica; that of training when absent.", low=1, high=1e6)
    best_metric: str = setting("Evaluation", "val_mean_iou", "Metric that names the best checkpoint: val_loss, val_mean_iou, val_pixel_accuracy, val_iou/CLASS or val_dice/CLASS.", identity=True)
    hp_metric: str = setting("Evaluation", "val_loss", "Metric reported to the tuner in a trial; names as for best_metric.")

    job_dir: str | None = setting("Output", None, "Where the run writes all it writes, local or gs://; when absent the parent of AIP_MODEL_DIR or AIP_CHECKPOINT_DIR, else runs/DATASET.")
    checkpoint_dir: str | None = setting("Output", None, "Checkpoints; when absent AIP_CHECKPOINT_DIR where no job_dir is given, else job_dir/checkpoints.")
    log_dir: str | None = setting("Output", None, "TensorBoard events; when absent AIP_TENSORBOARD_LOG_DIR where no job_dir is given, else job_dir/logs.")
    checkpoint_every_steps: int | None = setting("Output", None, "Steps between checkpoints; each evaluation makes one too.", low=1)
    checkpoint_every_seconds: float = setting("Output", 600.0, "Seconds between checkpoints at the most.", low=0)
    keep_checkpoints: int = setting("Output", 2, "Newest checkpoints to keep, beside the best.", low=2)
    log_every_steps: int = setting("Output", 10, "Steps between rows of metrics.jsonl and of TensorBoard.", low=1)
    lease_seconds: float = setting("Output", 120.0, "Seconds without a sign of life after which another run may take over a job_dir on gs://.", low=1)
    export: bool = setting("Output", True, "Export the best checkpoint's model in the end, to AIP_MODEL_DIR where no job_dir is given, else to job_dir/export/1.")
    num_pictures: int = setting("Output", 4, "Examples in each picture of predictions.", low=1, high=64)

    strategy: str = setting("Devices", "auto", "Where the replicas live; auto takes the TPU of this host or the one that is named, the workers of TF_CONFIG, all GPUs, else one CPU.", choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"))
    tpu: str | None = setting("Devices", None, "The TPU: local for that of this host, or its address.")
    worker_timeout_seconds: float = setting("Devices", 600.0, "Seconds to wait for another worker, at the start and at any step, before the run stops.", low=1, high=1e6)
    grace_seconds: float = setting("Devices", 9.0, "Seconds from a notice to stop, such as SIGTERM, after which the process leaves even if it has not saved.", low=0, high=1e6)
    num_cpu_devices: int | None = setting("Devices", None, "Logical CPU devices to mirror over.", low=1, high=64)

    fast_dev_run: bool = setting("Trying out", False, "Go through everything in a few steps, in a temporary job_dir.")
    profile_steps: tuple[int, ...] | None = setting("Trying out", None, "A,B: write a TensorFlow profile of steps A to B to log_dir.")
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        for name in ("image_size", "train_image_size"):
            size = getattr(self, name)
            if size is not None and size % 32:
                lower = size // 32 * 32
                raise ValueError(
                    f"{name} must be a multiple of 32, the encoder halves five times, "
                    f"got {size}; nearest: {lower}, {lower + 32}"
                )
        if self.class_names is not None:
            if len(self.class_names) < 2 or not all(self.class_names):
                raise ValueError(
                    "class_names must be at least two names separated by commas, got "
                    f"{','.join(self.class_names)!r}"
                )
            if len(set(self.class_names)) < len(self.class_names):
                raise ValueError(
                    f"class_names must differ, got {','.join(self.class_names)!r}"
                )
            if len(self.class_names) > 255:
                raise ValueError(
                    "class_names must be at most 255, for id 255 means an ignored "
                    f"pixel, got {len(self.class_names)}"
                )
        objective.check(
            self.loss, self.focal_gamma, self.label_smoothing, self.class_weights
        )
        for name in (
            *("epochs", "learning_rate", "encoder_learning_rate"),
            *("clip_norm", "max_minutes"),
        ):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be more than 0, got 0; leave it out")
        if self.try_gcs and self.data_dir is not None:
            raise ValueError(
                f"try_gcs reads TFDS' own bucket, got data_dir {self.data_dir} as well; "
                "leave one of them out"
            )
        if self.dataset != Config.dataset and not (self.data_dir or self.try_gcs):
            raise ValueError(
                f"dataset {self.dataset} needs data_dir: only {Config.dataset} has a "
                "bundled sample; give --data_dir=DIR"
            )
        to_fetch = encoders.is_to_fetch(
            self.encoder, self.encoder_alpha, self.encoder_weights
        )
        if self.download and self.data_dir is None and not to_fetch:
            raise ValueError("download needs a data_dir to download to, got none")
        if self.val_fraction == 0 and self.val_split == self.train_split:
            raise ValueError(
                "val_fraction must be more than 0 where validation is cut from "
                f"{self.train_split}, got 0; give another --val_split or a fraction"
            )
        if self.test_split in (self.train_split, self.val_split):
            raise ValueError(
                "test_split must be another than train_split and val_split, got "
                f"{self.test_split}: nothing may be chosen on test"
            )
        encoders.check(
            self.encoder,
            alpha=self.encoder_alpha,
            # Of another run come all of them.
            weights="none" if self.init_from else self.encoder_weights,
            download=self.download,
            skip_layers=self.skip_layers,
        )
        has_batch_norm = encoders.TABLE[self.encoder].batch_norm
        if self.train_encoder_batch_norm and not has_batch_norm:
            raise ValueError(
                "train_encoder_batch_norm needs an encoder with BatchNorm, got "
                f"{self.encoder}; leave it out"
            )
        if self.train_encoder_from not in (1, *encoders.STRIDES, 32):
            raise ValueError(
                "train_encoder_from must be 1, 2, 4, 8, 16 or 32, a stride of the encoder, "
                f"got {self.train_encoder_from}"
            )
        for name, alone in (
            ("train_encoder_batch_norm", self.train_encoder_batch_norm),
            ("train_encoder_from", self.train_encoder_from != 1),
            ("encoder_learning_rate", self.encoder_learning_rate is not None),
        ):
            if alone and not self.train_encoder:
                raise ValueError(
                    f"{name} needs train_encoder, got it alone; add --train_encoder"
                )
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(
                f"weight_decay needs optimizer adamw, got {self.optimizer}; add "
                "--optimizer=adamw"
            )
        if self.scale_learning_rate != "none" and self.global_batch_size is not None:
            raise ValueError(
                "scale_learning_rate needs a batch that grows with the replicas, got "
                f"global_batch_size={self.global_batch_size}; give batch_size instead"
            )
        if self.tpu is not None and self.strategy not in ("auto", "tpu"):
            raise ValueError(
                f"tpu needs strategy tpu, got {self.strategy}; leave one of them out"
            )
        if (
            self.strategy in ("multi_worker", "tpu")
            and self.num_cpu_devices is not None
        ):
            raise ValueError(
                f"num_cpu_devices is for strategy mirrored, got {self.strategy}; leave "
                "one of them out"
            )
        if self.strategy == "one_device" and (self.num_cpu_devices or 1) > 1:
            raise ValueError(
                f"num_cpu_devices={self.num_cpu_devices} needs strategy mirrored, got "
                "one_device"
            )
        if self.jit_compile and (self.num_cpu_devices or 1) > 1:
            raise ValueError(
                "jit_compile works with one replica only, got num_cpu_devices="
                f"{self.num_cpu_devices}; leave one of them out"
            )
        if self.profile_steps is not None:
            a, b = (*self.profile_steps, 0, 0)[:2]
            if len(self.profile_steps) != 2 or not 1 <= a < b:
                raise ValueError(
                    "profile_steps must be two steps A,B with 1 <= A < B, got "
                    f"{','.join(map(str, self.profile_steps))}"
                )
        for name in ("best_metric", "hp_metric"):
            if not re.fullmatch(METRIC, getattr(self, name)):
                raise ValueError(
                    f"{name} must be a metric of validation: val_loss, val_mean_iou, "
                    "val_pixel_accuracy, val_iou/CLASS or val_dice/CLASS, got "
                    f"{getattr(self, name)!r}"
                )
        if self.class_names:
            objective.check_classes(self.class_weights, self.class_names)


KINDS = (recipes.Preset, Config)  # Of the trainer's flags.


def identity(config: Config) -> dict[str, Any]:
    """Returns the settings that a resumed run must share, as JSON values."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(Config)
        if field.metadata["identity"]
    }


def to_dict(config: Config) -> dict[str, Any]:
    """Returns all settings as JSON values."""
    return {k: _plain(v) for k, v in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_dict(values: Mapping[str, Any]) -> Config:
    """Returns the settings that `to_dict` made JSON values of, perhaps long ago.

    A setting that came later has its default's effect.

    Raises:
        ValueError: If there is a setting that this version does not know.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(
            f"the run's settings must be of this version, got {', '.join(unknown)}; "
            "use the version that made the run"
        )
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }
    return Config(**given)


def from_args(args: Sequence[str]) -> Config:
    """Returns the settings of a command line.

    Args:
        args: The command line without the program's name: `--name=value`,
            `--name value`; for booleans also `--name` and `--noname`. Integers may
            be written 16.0 and booleans as two words, as tuners write them.

    Raises:
        ValueError: One line about the flag that is unknown, malformed, out of range
            or in conflict.
    """
    values = read(args)
    if values["batch_size"].present and values["global_batch_size"].value is not None:
        raise ValueError(
            f"give batch_size or global_batch_size, got both: {values.batch_size} per "
            f"replica and {values.global_batch_size} over all"
        )
    return flags.make(Config, values)


def check_names(names: Sequence[str] | None) -> None:
    """Raises ValueError where a class is named with blanks around, as in "a, b".

    Not where settings are made: a run from before may have such names, and goes on.
    """
    for name in names or ():
        if name != name.strip():
            raise ValueError(
                f"class_names must have no blanks around a name, got {name!r}; separate "
                "them by commas alone"
            )


def read(args: Sequence[str]) -> FlagValues:
    """Returns the flags of a command line, with the recipe's settings where none is given.

    Raises:
        ValueError: One line about the flag that is unknown or malformed.
    """
    values = flags.read(args, *KINDS)
    flags.check(flags.make(recipes.Preset, values))
    for name, value in recipes.RECIPES[values.recipe].items():
        needed, as_this = recipes.NEEDS.get(name, (name, None))
        turned_off = values[needed].present and values[needed].value != as_this
        if not values[name].present and not turned_off:
            values[name].value = value
    return values


@dataclasses.dataclass(frozen=True)
class Directories:
    """Where a run writes, local or gs://."""

    job: str
    checkpoints: str
    logs: str
    model: str  # Exported.


def directories(settings: Config, environ: Mapping[str, str]) -> Directories:
    """Returns where a run writes: by flag, by Vertex AI's variable, by data set.

    A job_dir that is given is for all of it: the variables are not read then.

    Source: AIP_MODEL_DIR, AIP_CHECKPOINT_DIR and AIP_TENSORBOARD_LOG_DIR of Vertex
    AI's training containers: <base>/model/, <base>/checkpoints/, <base>/logs/.
    """
    vertex = {} if settings.job_dir else environ
    below = vertex.get("AIP_MODEL_DIR") or vertex.get("AIP_CHECKPOINT_DIR")
    base = os.path.dirname(below.rstrip("/")) if below else None
    name = settings.dataset.split(":")[0].split("/")[0]
    job = settings.job_dir or base or os.path.join("runs", name)
    return Directories(
        job=job,
        checkpoints=settings.checkpoint_dir
        or vertex.get("AIP_CHECKPOINT_DIR")
        or os.path.join(job, "checkpoints"),
        logs=settings.log_dir
        or vertex.get("AIP_TENSORBOARD_LOG_DIR")
        or os.path.join(job, "logs"),
        # Vertex AI looks for saved_model.pb there, TensorFlow Serving in a numbered folder.
        model=vertex.get("AIP_MODEL_DIR") or os.path.join(job, "export", "1"),
    )
