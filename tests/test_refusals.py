"""Bad input is refused before the first step: one line, exit code 2, nothing written.

Each line says the rule, the value and, where there is one, the way out. In the tables
"..." stands for what is another's text or of no matter.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import PET_FEATURES, write_tfds

from trainer import checkpoint, job, same_run, saving, task, train

HELP = "; --help shows all flags"
SUM = (
    "loss must be a sum of cross_entropy, focal, dice, jaccard, lovasz, each with a factor "
    "above 0 or none, such as cross_entropy+0.5*dice, got"
)
WEIGHTS = (
    "class_weights must be frequency, or numbers separated by commas, none below 0 and "
    "one above, got"
)
AT_LEAST_TWO = "class_names must be at least two names separated by commas, got"
VALIDATION = (
    "must be a metric of validation: val_loss, val_mean_iou, val_pixel_accuracy, "
    "val_iou/CLASS or val_dice/CLASS, got"
)
KNOWN_METRICS = "val_loss, val_mean_iou, val_pixel_accuracy, val_iou/pet, ..."

# Flag by flag: what the command line alone shows to be wrong.
FLAGS = {
    # Out of range.
    "--image_size=0": "image_size must be at least 32, got 0",
    "--image_size=-32": "image_size must be at least 32, got -32",
    "--image_size=100": "image_size must be a multiple of 32, the encoder halves five "
    "times, got 100; nearest: 96, 128",
    "--batch_size=0": "batch_size must be at least 1, got 0",
    "--global_batch_size=0": "global_batch_size must be at least 1, got 0",
    "--eval_batch_size=0": "eval_batch_size must be at least 1, got 0",
    "--epochs=0": "epochs must be more than 0, got 0; leave it out",
    "--epochs=-1": "epochs must be at least 0, got -1",
    "--epochs=1e308": "epochs must be at most 1000000, got 1e+308",
    "--epochs=nan": "epochs must be a finite number, got nan",
    "--total_steps=0": "total_steps must be at least 1, got 0",
    "--learning_rate=0": "learning_rate must be more than 0, got 0; leave it out",
    "--learning_rate=-0.1": "learning_rate must be at least 0, got -0.1",
    "--learning_rate=inf": "learning_rate must be a finite number, got inf",
    "--clip_norm=0": "clip_norm must be more than 0, got 0; leave it out",
    "--max_minutes=0": "max_minutes must be more than 0, got 0; leave it out",
    "--seed=-1": "seed must be at least 0, got -1",
    "--seed=4294967296": "seed must be at most 2147483647, got 4294967296",
    "--warmup_steps=1e30": "warmup_steps must be at most 1e+12, got 1e+30",
    "--batch_size=10000000000": "batch_size must be at most 1000000, got 10000000000",
    "--val_fraction=1": "val_fraction must be at most 0.9, got 1",
    "--hue=1": "hue must be at most 0.5, got 1",
    "--crop_scale_min=0": "crop_scale_min must be at least 0.1, got 0",
    "--mask_offset=-256": "mask_offset must be at least -255, got -256",
    "--ignore_id=-1": "ignore_id must be at least 0, got -1",
    "--keep_checkpoints=1": "keep_checkpoints must be at least 2, got 1",
    "--num_pictures=65": "num_pictures must be at most 64, got 65",
    "--num_cpu_devices=0": "num_cpu_devices must be at least 1, got 0",
    "--early_stopping_evals=0": "early_stopping_evals must be at least 1, got 0",
    "--limit_train_examples=0": "limit_train_examples must be at least 1, got 0",
    "--optimizer=sgd": "optimizer must be one of adam, adamw, got 'sgd'",
    **{
        f"--loss={loss}": f"{SUM} '{loss}'"
        for loss in ("mse", "dice+", "2dice", "dice*2", "0*dice", "-1*dice")
    },
    "--loss=inf*dice+focal": f"{SUM} 'inf*dice+focal'",
    "--loss=2*focal+0.5*focal": "loss must name each loss once, got "
    "'2*focal+0.5*focal'",
    "--focal_gamma=-1": "focal_gamma must be at least 0, got -1",
    "--label_smoothing=1": "label_smoothing must be at most 0.99, got 1",
    **{
        f"--class_weights={weights}": f"{WEIGHTS} '{weights}'"
        for weights in ("often", "1,,2", "1,-1,2", "0,0,0", "1,nan,2")
    },
    "--schedule=linear": "schedule must be one of constant, cosine, got 'linear'",
    "--strategy=tpus": "strategy must be one of ..., got 'tpus'",
    "--cache=disk": "cache must be one of auto, memory, none, got 'disk'",
    "--precision=float16": "precision must be one of float32, mixed_bfloat16, "
    "mixed_float16, got 'float16'",
    "--best_metric=loss": f"best_metric {VALIDATION} 'loss'",
    "--hp_metric=accuracy": f"hp_metric {VALIDATION} 'accuracy'",
    "--hp_metric=val_accuracy": f"hp_metric {VALIDATION} 'val_accuracy'",
    "--class_names=a,b,c --class_weights=2,1": "class_weights must be one for each of "
    "a, b, c, got 2 for 3: 2,1",
    "--class_names=pet": f"{AT_LEAST_TWO} 'pet'",
    "--class_names=pet,,border": f"{AT_LEAST_TWO} 'pet,,border'",
    "--class_names=": f"{AT_LEAST_TWO} ''",
    "--class_names=pet,pet": "class_names must differ, got 'pet,pet'",
    "--class_names=" + ",".join(map(str, range(256))): "class_names must be at most "
    "255, for id 255 means an ignored pixel, got 256",
    "--profile_steps=5": "profile_steps must be two steps A,B with 1 <= A < B, got 5",
    "--profile_steps=5,5": "profile_steps must be two steps A,B with 1 <= A < B, got "
    "5,5",
    "--profile_steps=0,2": "profile_steps must be two steps A,B with 1 <= A < B, got "
    "0,2",
    # Malformed, or without a value.
    "--image_size=big": f"flag --image_size=big: must be a whole number{HELP}",
    "--image_size=64.5": f"flag --image_size=64.5: must be a whole number{HELP}",
    "--image_size=": f"flag --image_size=: must be a whole number{HELP}",
    "--batch_size=1e400": f"flag --batch_size=1e400: must be a whole number{HELP}",
    "--epochs=1,5": f"flag --epochs=1,5: must be a number{HELP}",
    "--learning_rate=1e-3x": f"flag --learning_rate=1e-3x: must be a number{HELP}",
    "--profile_steps=a,b": "flag --profile_steps=a,b: must be whole numbers separated "
    f"by commas{HELP}",
    "--augment=maybe": f"flag --augment=maybe: must be true or false{HELP}",
    "--noaugment=1": "--noaugment=1 does not take an argument...",
    "--seed": f"Missing value for flag --seed{HELP}",
    "--dataset --seed=1": "dataset must have a value, got the next flag, --seed=1; "
    "write --dataset=VALUE",
    "--data_dir=": "data_dir must not be empty; leave the flag out instead",
    "--dataset=": "dataset must not be empty; leave the flag out instead",
    "--best_metric=": "best_metric must not be empty; leave the flag out instead",
    "--data_dir=~/tfds": "data_dir must be a path without ~, which the shell leaves "
    "alone after =, got ~/tfds; write $HOME instead",
    # Unknown, or no flag at all.
    "--imagesize=64": "Unknown command line flag 'imagesize'. Did you mean: image_size "
    f"?{HELP}",
    "--learning-rate=1": "Unknown command line flag 'learning-rate'. Did you mean: "
    f"learning_rate ?{HELP}",
    "--frobnicate": f"Unknown command line flag 'frobnicate'{HELP}",
    "--nodata_dir": f"Unknown command line flag 'nodata_dir'...{HELP}",
    "image_size=64": "unexpected argument 'image_size=64': settings are given as "
    "--name=value",
    "–seed=1": "unexpected argument '–seed=1': settings are given as --name=value",
    "--augment maybe": "unexpected argument 'maybe': settings are given as "
    "--name=value",
    "--flagfile=nowhere": "Unable to open flagfile: ...'nowhere'...",
    # In conflict.
    "--batch_size=8 --global_batch_size=16": "give batch_size or global_batch_size, got "
    "both: 8 per replica and 16 over all",
    "--weight_decay=0.1": "weight_decay needs optimizer adamw, got adam; add "
    "--optimizer=adamw",
    "--focal_gamma=1": "focal_gamma needs focal in loss, got cross_entropy; add "
    "--loss=focal",
    "--label_smoothing=0.1 --loss=dice": "label_smoothing needs cross_entropy in loss, "
    "got dice; leave it out",
    "--encoder_learning_rate=1e-4": "encoder_learning_rate needs train_encoder, got it "
    "alone; add --train_encoder",
    "--train_encoder_batch_norm": "train_encoder_batch_norm needs train_encoder, got it "
    "alone; add --train_encoder",
    "--train_encoder --train_encoder_from=5": "train_encoder_from must be 1, 2, 4, 8, 16 "
    "or 32, a stride of the encoder, got 5",
    "--train_encoder_from=8": "train_encoder_from needs train_encoder, got it alone; add "
    "--train_encoder",
    "--strategy=one_device --num_cpu_devices=2": "num_cpu_devices=2 needs strategy "
    "mirrored, got one_device",
    "--jit_compile --num_cpu_devices=2": "jit_compile works with one replica only, got "
    "num_cpu_devices=2; leave one of them out",
    "--dataset=cityscapes": "dataset cityscapes needs data_dir: only oxford_iiit_pet "
    "has a bundled sample; give --data_dir=DIR",
    "--encoder=vgg16": "encoder must be one of mobilenet_v2, mobilenet_v3_large, "
    "mobilenet_v3_small, efficientnet_v2_b0, resnet50, convnext_tiny, got 'vgg16'",
    "--encoder_alpha=0.9": "encoder_alpha must be one of 0.35, 0.5, 0.75, 1, 1.3, 1.4, "
    "got 0.9",
    "--encoder=resnet50 --encoder_alpha=0.5": "encoder_alpha needs encoder "
    "mobilenet_v2, got 0.5 with resnet50; leave one of them out",
    "--encoder=resnet50": "encoder_weights imagenet is bundled for mobilenet_v2 of alpha "
    "1 only, got resnet50; add --download, for Keras to fetch its file, or give "
    "--encoder_weights=PATH",
    "--encoder_alpha=0.5": "encoder_weights imagenet is bundled for mobilenet_v2 of alpha "
    "1 only, got mobilenet_v2 of alpha 0.5; add --download, for Keras to fetch its file, "
    "or give --encoder_weights=PATH",
    "--skip_layers=a,b,c": "skip_layers must be four layers separated by commas, at "
    "strides 2, 4, 8 and 16, none for no skip, got 'a,b,c'",
    "--skip_layers=a,b,,d": "skip_layers must be four layers separated by commas, at "
    "strides 2, 4, 8 and 16, none for no skip, got 'a,b,,d'",
    "--encoder=convnext_tiny --encoder_weights=none --train_encoder "
    "--train_encoder_batch_norm": "train_encoder_batch_norm needs an encoder with "
    "BatchNorm, got convnext_tiny; leave it out",
    "--download": "download needs a data_dir to download to, got none",
    "--val_fraction=0 --val_split=train": "val_fraction must be more than 0 where "
    "validation is cut from train, got 0; give another --val_split or a fraction",
    "--test_split=train": "test_split must be another than train_split and val_split, "
    "got train: nothing may be chosen on test",
    "--val_split=test": "test_split must be another than train_split and val_split, "
    "got test: nothing may be chosen on test",
}

# Given a data set of 8 training examples in 2 shards, {pets}, or {shapes}.
DATA = {
    "--checkpoint_dir=/gcs/bucket/run": "checkpoint_dir must not be a bucket mounted below "
    "/gcs/, ..., got /gcs/bucket/run; give gs://bucket/run",
    "--data_dir={tmp}/none": "data_dir must be a directory, got {tmp}/none: there is "
    "none",
    "--data_dir={tmp}/file": "data_dir must be a directory, got {tmp}/file: there is a "
    "file",
    "--data_dir={tmp}/empty": "data_dir must hold the TFDS data set oxford_iiit_pet, "
    "got {tmp}/empty with nothing in it; prepare it there, or let --download do it",
    "--data_dir={shapes}": "data_dir must hold the TFDS data set oxford_iiit_pet, got "
    "{shapes} with shapes in it; prepare it there, or let --download do it",
    "--data_dir={pets}/oxford_iiit_pet": "data_dir must hold the TFDS data set "
    "oxford_iiit_pet, got {pets}/oxford_iiit_pet with 4.0.0 in it; prepare it ...",
    "--dataset=oxford_iiit_pett": "data_dir must hold the TFDS data set "
    "oxford_iiit_pett, got {pets} with oxford_iiit_pet in it: Dataset "
    "oxford_iiit_pett not found",
    "--dataset=oxford_iiit_pet:9.9.9": "data_dir must hold the TFDS data set "
    "oxford_iiit_pet:9.9.9, got {pets} with oxford_iiit_pet in it: Dataset "
    "oxford_iiit_pet cannot be loaded at version 9.9.9, only: 4.0.0",
    "--dataset=my.pets": "data_dir must hold the TFDS data set my.pets, got {pets} with "
    "oxford_iiit_pet in it: ...",
    "--data_dir={shapes}/shapes/4.0.0 --mask_feature=labels --image_feature=photo "
    "--class_names=a,b": "dataset must be that of the folder that data_dir names, got "
    "oxford_iiit_pet with shapes:4.0.0 in {shapes}/shapes/4.0.0; give --dataset=shapes",
    "--data_dir={pets}/oxford_iiit_pet/4.0.0 --dataset=oxford_iiit_pet:9.9.9": "dataset "
    "must be that of the folder that data_dir names, got oxford_iiit_pet:9.9.9 with "
    "oxford_iiit_pet:4.0.0 in {pets}/oxford_iiit_pet/4.0.0; give "
    "--dataset=oxford_iiit_pet",
    "--data_dir={pets}/oxford_iiit_pet/4.0.0 --dataset=my.pets": "dataset must be that of "
    "the folder that data_dir names, got my.pets with ...; give --dataset=oxford_iiit_pet",
    "--train_split=trian": "train_split must be a split of oxford_iiit_pet, got "
    "'trian'; it has train, test",
    "--train_split=train[:50%]": "train_split must be a split of oxford_iiit_pet, got "
    "'train[:50%]'; it has train, test",
    "--val_split=vla": "val_split must be a split of oxford_iiit_pet, got 'vla'; it "
    "has train, test",
    "--test_split=tset": "test_split must be a split of oxford_iiit_pet, got 'tset'; "
    "it has train, test",
    "--val_fraction=0.01": "val_fraction must leave examples to both sides, got 0.01 of "
    "8 examples in 2 shards",
    "--val_fraction=0": "val_fraction must leave examples to both sides, got 0 of 8 "
    "examples in 2 shards",
    "--mask_feature=mask": "mask_feature must be a feature of oxford_iiit_pet, got "
    "'mask'; it has ...segmentation_mask...",
    "--mask_feature=label": "mask_feature must be a picture of one channel of ids, got "
    "'label' of shape ()...int64...",
    "--mask_feature=head_bbox": "mask_feature must be a picture of one channel of ids, "
    "got 'head_bbox' of shape (4,)...float32...",
    "--mask_feature=image": "mask_feature must be a picture of one channel of ids, got "
    "'image' of shape (None, None, 3) and dtype uint8",
    "--image_feature=segmentation_mask": "mask_feature must be another than "
    "image_feature, got 'segmentation_mask' for both",
    "--image_feature=file_name": "image_feature must ...1 or 3 channels..., got "
    "'file_name' of shape ()...",
    "--best_metric=val_iou/cat": f"best_metric must be one of {KNOWN_METRICS}, got "
    "'val_iou/cat'",
    "--dataset=shapes --data_dir={shapes} --image_feature=photo": "mask_feature must "
    "be given for shapes, whose masks are not known; its features are labels, photo: "
    "give --mask_feature=...",
    "--dataset=shapes --data_dir={shapes} --mask_feature=labels": "class_names must be "
    "given for shapes, whose masks are not known; its features are labels, photo: give "
    "--class_names=...",
    "--dataset=shapes --data_dir={shapes} --mask_feature=labels --class_names=a,b": ""
    "image_feature must be a feature of shapes, got 'image'; it has labels, photo",
    "--dataset=shapes --data_dir={shapes} --test_split=validation --mask_feature=labels "
    "--class_names=a,b": "test_split must be another than val_split, got validation "
    "for both: nothing may be chosen on test; give --test_split=none or a --val_split",
    "--class_weights=2,1": "class_weights must be one for each of pet, background, "
    "border, got 2 for 3: 2,1",
    "--encoder_weights={tmp}/none.weights.h5": "encoder_weights must be imagenet, none "
    "or a .weights.h5 file, got {tmp}/none.weights.h5: there is no such file",
    "--encoder_weights=image_net": "encoder_weights must be imagenet, none or a "
    ".weights.h5 file, got image_net: there is no such file",
    "--encoder_weights={tmp}/file": "encoder_weights must fit "
    "keras.applications.MobileNetV2 (alpha 1.0, no top), got {tmp}/file: ...",
    "--encoder_weights={tmp}/text.weights.h5": "encoder_weights must fit "
    "keras.applications.MobileNetV2 (alpha 1.0, no top), got {tmp}/text.weights.h5: ...",
    "--encoder_weights={tmp}/other.weights.h5": "encoder_weights must fit "
    "keras.applications.MobileNetV2 (alpha 1.0, no top), got {tmp}/other.weights.h5: A "
    "total of 104 objects could not be loaded",
    "--encoder_weights={tmp}/empty": "encoder_weights must be imagenet, none or a "
    ".weights.h5 file, got {tmp}/empty: there is no such file",
    "--encoder=mobilenet_v3_small --encoder_weights={tmp}/other.weights.h5": ""
    "encoder_weights must fit keras.applications.MobileNetV3Small (no top), got "
    "{tmp}/other.weights.h5: ...",
    "--skip_layers=none,none,block_5_ad,none": "skip_layers must be layers of the "
    "encoder at strides 2, 4, 8 and 16, got block_5_ad for stride 8, no layer of it; "
    "there give one of block_3_depthwise_relu, ..., block_5_add, block_6_expand_relu, or "
    "none",
    "--init_from={tmp}/none": "init_from must be a job_dir with checkpoints or a .npz "
    "file, got {tmp}/none",
    "--init_from={tmp}/empty": "init_from must be a job_dir with checkpoints or a .npz "
    "file, got {tmp}/empty",
    "--init_from={tmp}/none.npz": "{tmp}/none.npz must be a checkpoint: ...No such file "
    "or directory",
    "--init_from={tmp}/text.npz": "{tmp}/text.npz must be a checkpoint of this program, "
    "got 4 bytes that are none",
    "--init_from={tmp}/other.npz": "{tmp}/other.npz must be a checkpoint of this "
    "program, got ... bytes that are none",
    "--init_from={tmp}/signed.npz": "{tmp}/signed.npz must be a checkpoint of this program, got 4 "
    "bytes that are none",
    "--init_from={tmp}/changed.npz": "{tmp}/changed.npz must fit its digest, got 4 "
    "bytes that do not",
    "--job_dir={tmp}/file": "job_dir must be a directory, got the file {tmp}/file",
    "--job_dir={tmp}/file/run": "job_dir must be a directory, got the file {tmp}/file",
    "--job_dir=/proc/none/run": "job_dir must be a place to write to, got "
    "/proc/none/run: ...",
    "--job_dir={pets}": "job_dir must be empty or hold a run of segtrainer, got {pets} "
    "with oxford_iiit_pet in it; give another --job_dir",
    "--checkpoint_dir={tmp}/file": "checkpoint_dir must be a directory, got the file "
    "{tmp}/file",
    "--log_dir={tmp}/file/logs": "log_dir must be a directory, got the file {tmp}/file",
    "--strategy=mirrored": "strategy mirrored needs GPUs or num_cpu_devices, got "
    "neither; give --num_cpu_devices=N or --strategy=one_device",
    "--num_cpu_devices=4 --global_batch_size=6": "global_batch_size must be a multiple "
    "of the 4 replicas, got 6; nearest: 4, 8",
    "--num_cpu_devices=4 --global_batch_size=3": "global_batch_size must be a multiple "
    "of the 4 replicas, got 3; nearest: 4",
}


@pytest.fixture(autouse=True)
def _no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal costs no step: training is not even begun."""

    def begun(*_) -> None:
        raise AssertionError("the run has begun")

    monkeypatch.setattr(train, "train_and_evaluate", begun)


def matches(line: str, expected: str) -> bool:
    return bool(re.fullmatch(".*".join(map(re.escape, expected.split("..."))), line))


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    """Returns every file below a directory; an empty directory counts too."""
    found = sorted(directory.rglob("*"))
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in found}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns the directory of what all cases share; none may change it."""
    directory = tmp_path_factory.mktemp("kept")
    (directory / "empty").mkdir()
    for name in ("file", "text.weights.h5", "text.npz", "signed.npz", "changed.npz"):
        (directory / name).write_bytes(b"text")
    right, wrong = (hashlib.sha256(text).hexdigest() for text in (b"text", b"test"))
    (directory / "signed.npz.sha256").write_text(f"{right}  signed.npz\n")
    (directory / "changed.npz.sha256").write_text(f"{wrong}  changed.npz\n")
    np.savez(directory / "other.npz", a=np.zeros(3))
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(directory / "other.weights.h5")
    return directory


_shared: dict[str, str] = {}  # Written once; the fixtures that write them are per test.


@pytest.fixture
def places(
    kept: pathlib.Path,
    pets: Callable[..., str],
    shapes: Callable[..., str],
) -> dict[str, str]:
    """Returns what the braces of the tables stand for."""
    if not _shared:
        _shared["pets"] = pets(8)
        _shared["shapes"] = shapes(train=8, validation=4, test=4)
    return {**_shared, "tmp": str(kept)}


def flags(data_dir: str, job_dir: pathlib.Path) -> list[str]:
    """Returns the flags of a small run, to which a case adds what is wrong."""
    small = ["--image_size=32", "--val_fraction=0.25", "--encoder_weights=none"]
    return [f"--data_dir={data_dir}", f"--job_dir={job_dir}", *small]


def test_at_least_forty_cases_are_told_apart():
    lines = {*FLAGS.values(), *DATA.values()}
    assert len(lines) >= 40


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags_are_refused(case: str, refused: Callable, tmp_path: pathlib.Path):
    line = refused(f"--job_dir={tmp_path}/run", *case.split(" "))
    assert matches(line, FLAGS[case]), line
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras, of weights
@pytest.mark.parametrize("case", DATA)
def test_what_flags_name_is_refused_where_it_does_not_serve(
    case: str,
    refused: Callable,
    places: dict[str, str],
    kept: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tf.config, "list_physical_devices", _no_gpus)
    before = contents(kept)
    given = case.format_map(places).split(" ")
    line = refused(*flags(places["pets"], tmp_path / "run"), *given)
    expected = DATA[case].replace("{tmp}", places["tmp"])
    expected = expected.replace("{pets}", places["pets"])
    assert matches(line, expected.replace("{shapes}", places["shapes"])), line
    assert not (tmp_path / "run").exists()
    assert contents(kept) == before


def test_several_workers_download_nothing(refused, places, tmp_path, monkeypatch):
    addresses = ["localhost:1", "localhost:2"]
    task_of = {"type": "worker", "index": 0}
    both = {"cluster": {"worker": addresses}, "task": task_of}
    monkeypatch.setenv("TF_CONFIG", json.dumps(both))
    assert refused(*flags(places["pets"], tmp_path / "run"), "--download") == (
        "download is for a single worker, got 2 in TF_CONFIG, which would get in each "
        "other's way; prepare the data set once before, and give the encoder's weights "
        "as a file"
    )


_list_physical_devices = tf.config.list_physical_devices


def _no_gpus(kind: str | None = None) -> list:
    return [] if kind == "GPU" else _list_physical_devices(kind)


def test_a_wrong_flag_is_refused_before_tensorflow_is_imported():
    program = (
        "import sys; from trainer import task; code = task.main(['--image_size=100']); "
        "sys.exit(99 if 'tensorflow' in sys.modules else code)"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("segtrainer: image_size must be a multiple of 32")


def test_where_tensorflow_is_missing_the_extras_are_named(tmp_path: pathlib.Path):
    program = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'tensorflow':\n"
        "            raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from trainer import task\n"
        "sys.exit(task.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, f"--job_dir={tmp_path}/run"]
    # Keras, too, says of TensorFlow's absence what it likes; our line is the only one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "segtrainer: TensorFlow is not installed; install one: pip install "
        "'segtrainer[cpu]', 'segtrainer[gpu]' or 'segtrainer[tpu]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_jit_compile_is_refused_where_auto_finds_several_replicas(
    refused: Callable, places: dict, tmp_path: pathlib.Path, monkeypatch
):
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    monkeypatch.setattr(job.distribution, "make_strategy", lambda *_, **__: strategy)
    line = refused(*flags(places["pets"], tmp_path / "run"), "--jit_compile")
    assert line == (
        "jit_compile works with one replica only, got 2; add --strategy=one_device"
    )
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------
# Data sets that are not whole, or no segmentation data sets


def _version_dir(data_dir: str) -> pathlib.Path:
    return pathlib.Path(data_dir) / "oxford_iiit_pet" / "4.0.0"


def test_a_missing_file_of_the_data_set_is_named(pets, refused, tmp_path):
    data_dir = pets(8)
    file = next(_version_dir(data_dir).glob("*train*00001*"))
    file.unlink()
    line = refused(*flags(data_dir, tmp_path / "run"))
    assert line == f"{file} is missing; prepare or copy the data set again"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_description_cut_short_is_refused(name: str, pets, refused, tmp_path):
    data_dir = pets(8)
    path = _version_dir(data_dir) / name
    path.write_text(path.read_text()[:100])
    # TFDS reads no features.json of a data set that it knows by its code.
    places = [data_dir] if name == "dataset_info.json" else []
    for place in (*places, _version_dir(data_dir)):
        line = refused(*flags(str(place), tmp_path / "run"))
        assert line.startswith("data_dir must hold the TFDS data set oxford_iiit_pet")
        assert str(place) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (tfds.features.Text(), "of shape ()"),
        (tfds.features.Image(shape=(None, None, 3)), "of shape (None, None, 3)"),
        (tfds.features.Tensor(shape=(40, 40, 1), dtype=np.float32), "float32"),
        (tfds.features.Sequence({"box": tfds.features.BBoxFeature()}), "'mask' of"),
        (None, "it has image"),
    ],
    ids=["text", "colours", "float", "boxes", "absent"],
)
def test_a_data_set_without_masks_is_refused(mask, got: str, refused, tmp_path):
    values: dict[str, Any] = {"image": np.zeros((40, 40, 3), np.uint8)}
    features = {"image": PET_FEATURES["image"]}
    if mask is not None:
        features["mask"] = mask
        values["mask"] = {
            tfds.features.Text: "cat",
            tfds.features.Image: np.zeros((40, 40, 3), np.uint8),
            tfds.features.Tensor: np.zeros((40, 40, 1), np.float32),
        }.get(type(mask), {"box": []})
    data_dir = write_tfds(
        tmp_path / "data",
        "scenes",
        tfds.features.FeaturesDict(features),
        {"train": 8},
        lambda *_: values,
        shards=2,
        seed=0,
    )
    line = refused(
        *flags(data_dir, tmp_path / "run"),
        *("--dataset=scenes", "--mask_feature=mask", "--class_names=a,b"),
    )
    assert line.startswith("mask_feature must be ") and got in line, line
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------
# job_dir


def test_a_job_dir_with_another_programs_files_is_left_alone(
    refused, places, tmp_path: pathlib.Path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("precious")
    (run / "config.json").write_text('{"program": "other"}')
    before = contents(run)
    line = refused(*flags(places["pets"], run))
    assert line == (
        f"job_dir must be empty or hold a run of segtrainer, got {run} with "
        "config.json, thesis.tex in it; give another --job_dir"
    )
    assert contents(run) == before


@pytest.mark.parametrize("name", ["job_dir", "checkpoint_dir", "log_dir"])
def test_a_place_without_the_right_to_write_is_refused(
    name: str, refused, places, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "theirs").mkdir()
    granted = os.access  # To root all is granted: the refusal has to be played.
    monkeypatch.setattr(
        *(os, "access"),
        lambda path, mode: "theirs" not in str(path) and granted(path, mode),
    )
    asked = tmp_path / "theirs" / "ours"
    line = refused(*flags(places["pets"], tmp_path / "run"), f"--{name}={asked}")
    assert line == (
        f"{name} must be a place to write to, got {asked}: no right to write in "
        f"{tmp_path}/theirs"
    )
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------
# Going on


def save_a_checkpoint(args: list[str]) -> None:
    """Makes the run and its first checkpoint, as though it had made two steps."""
    settings = task.config.from_args(args)
    run = job.prepare(settings, task.config.directories(settings, {}))
    run.state["step"] = 2
    saving.save(run)()


@pytest.fixture
def begun(places: dict, tmp_path: pathlib.Path, tiny_unet: None) -> list[str]:
    """Returns the flags of a run that has a checkpoint, at step 2."""
    args = flags(places["pets"], tmp_path / "run")
    save_a_checkpoint(args)
    return args


CHANGES = {
    "learning_rate": ("0.001", "0.01"),
    "seed": ("0", "1"),
    "image_size": ("32", "64"),
    "optimizer": ("'adam'", "'adamw'"),
    "augment": ("True", "False"),
    "val_fraction": ("0.25", "0.5"),
    "encoder_weights": ("'none'", "'imagenet'"),
    "encoder": ("'mobilenet_v2'", "'resnet50'"),
    "encoder_alpha": ("1.0", "0.5"),
    "precision": ("'float32'", "'mixed_bfloat16'"),
    "limit_train_examples": ("None", "4"),
    "clip_norm": ("None", "1.0"),
    "loss": ("'cross_entropy'", "'cross_entropy+dice'"),
    "class_weights": ("None", "'frequency'"),
    "label_smoothing": ("0.0", "0.1"),
    "mask_offset": ("None", "-1"),
    "best_metric": ("'val_mean_iou'", "'val_loss'"),
    "global_batch_size": ("64", "32"),
}


def test_another_setting_than_the_checkpoints_is_refused_with_both_values(
    refused, begun: list[str], tmp_path: pathlib.Path
):
    before = contents(tmp_path / "run")
    for name, (saved, asked) in CHANGES.items():
        value = asked.strip("'").lower()
        line = refused(*begun, f"--{name}={value}")
        assert line == (
            f"{name} must stay {saved} to go on from step-00000002, got {asked}; give "
            "another --job_dir for a new run"
        )
    assert contents(tmp_path / "run") == before


def test_another_batch_size_on_as_many_replicas_is_refused_with_both_values(
    refused, begun: list[str], tmp_path: pathlib.Path
):
    before = contents(tmp_path / "run")
    assert refused(*begun, "--batch_size=32") == (
        "batch_size must stay 64 to go on from step-00000002, whose steps are of 64 "
        "examples, got 32 on each of 1 replicas; give another --job_dir for a new run"
    )
    assert contents(tmp_path / "run") == before


def test_a_finished_run_whose_checkpoints_are_gone_is_not_started_over(
    refused, begun: list[str], tmp_path: pathlib.Path
):
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "result.json").write_text('{"step": 2}')
    before = contents(tmp_path / "run")
    assert refused(*begun) == (
        f"job_dir must hold the checkpoints of its finished run, got {tmp_path}/run with "
        "a result.json and none; give another --job_dir for a new run"
    )
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "pictures"])
def test_a_job_dir_with_what_another_program_calls_like_ours_is_refused(
    refused, places: dict, tmp_path: pathlib.Path, name: str
):
    theirs = tmp_path / "theirs2"
    theirs.mkdir()
    (theirs / name).write_text("{}")
    before = contents(theirs)
    assert refused(*flags(places["pets"], theirs)) == (
        f"job_dir must be empty or hold a run of segtrainer, got {theirs} with {name} in "
        "it; give another --job_dir"
    )
    assert contents(theirs) == before


def test_other_data_than_the_checkpoints_are_refused_with_both_counts(
    refused, pets, begun: list[str], tmp_path: pathlib.Path
):
    before = contents(tmp_path / "run")
    line = refused(*begun, f"--data_dir={pets(12)}")
    assert line == (
        "the data must stay what step-00000002 was trained on, [3, 3, 2] examples in "
        "the shards of train and in validation, got [4, 4, 4]; give another --job_dir "
        "for a new run"
    )
    assert contents(tmp_path / "run") == before


def test_data_made_anew_are_refused_though_they_are_as_many(
    refused, begun: list[str], places: dict, tmp_path: pathlib.Path
):
    before = contents(tmp_path / "run")
    shutil.copytree(places["pets"], tmp_path / "anew")
    [path] = (tmp_path / "anew").rglob("dataset_info.json")
    told = json.loads(path.read_text())
    train, *_ = (split for split in told["splits"] if split["name"] == "train")
    kept, train["numBytes"] = train["numBytes"], "1234"
    path.write_text(json.dumps(told))
    assert refused(*begun, f"--data_dir={tmp_path}/anew") == (
        f"the data must stay what step-00000002 was trained on, [{kept}, {kept}] bytes in "
        "train and in validation, got [1234, 1234]; give another --job_dir for a new run"
    )
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("class_names", ["disc", "ground"], "of the classes ['ground', 'disc'], got ["),
        ("mask_offset", 1, "with a mask_offset of 0, got 1"),
        ("ignore_id", 254, "with an ignore_id of 255, got 254"),
    ],
)
def test_data_that_tell_other_masks_of_themselves_are_refused(
    refused, shapes, tiny_unet, tmp_path: pathlib.Path, name, value, says
):
    data_dir = shapes()
    [folder] = (pathlib.Path(data_dir) / "shapes").iterdir()
    told = dict(image_feature="photo", mask_feature="labels", ignore_id=255)
    told |= dict(class_names=["ground", "disc"], mask_offset=0)
    where = folder / "metadata.json"
    where.write_text(json.dumps({"segmentation": told}))
    args = [*flags(data_dir, tmp_path / "run"), "--dataset=shapes"]
    save_a_checkpoint(args)
    where.write_text(json.dumps({"segmentation": told | {name: value}}))
    before = contents(tmp_path / "run")
    line = refused(*args)
    assert f"the data must stay what step-00000002 was trained on, {says}" in line
    assert contents(tmp_path / "run") == before


def test_weights_of_another_model_are_refused(
    refused, begun: list[str], shapes, tmp_path: pathlib.Path
):
    line = refused(
        *(*begun, f"--job_dir={tmp_path}/new", f"--init_from={tmp_path}/run"),
        *("--dataset=shapes", f"--data_dir={shapes()}", "--ignore_id=255"),
        *("--image_feature=photo", "--mask_feature=labels", "--class_names=a,b"),
    )
    assert line == (
        f"init_from must fit the model, got {tmp_path}/run: the checkpoint's "
        "model/logits/kernel must be of shape (3, 3, 3, 2), got (3, 3, 3, 3)"
    )
    assert not (tmp_path / "new").exists()


def test_checkpoints_of_another_run_are_refused(
    refused, begun: list[str], tmp_path: pathlib.Path
):
    apart = f"--checkpoint_dir={tmp_path}/run/checkpoints"
    before = contents(tmp_path / "run")
    assert refused(*begun, f"--job_dir={tmp_path}/new", apart) == (
        f"checkpoint_dir must be the run's own, got {tmp_path}/run/checkpoints with those "
        f"of {tmp_path}/run; give another --checkpoint_dir for a new run"
    )
    assert contents(tmp_path / "run") == before
    assert not (tmp_path / "new").exists()


def test_a_new_run_has_no_class_names_with_blanks_around(refused, shapes, tmp_path):
    line = refused(
        *("--dataset=shapes", f"--data_dir={shapes()}", f"--job_dir={tmp_path}/new"),
        *("--image_feature=photo", "--mask_feature=labels", "--class_names=a, b"),
        *("--ignore_id=255", "--val_fraction=0.25"),
    )
    assert line == (
        "class_names must have no blanks around a name, got ' b'; separate them by commas "
        "alone"
    )
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_begun_anew_where_its_checkpoints_are_elsewhere(
    refused, begun: list[str], tmp_path: pathlib.Path
):
    folder = tmp_path / "run"
    (folder / "checkpoints").rename(tmp_path / "apart")
    (folder / "result.json").unlink(missing_ok=True)
    config_json = json.loads((folder / "config.json").read_text())
    config_json["checkpoints"] = f"{tmp_path}/apart"
    (folder / "config.json").write_text(json.dumps(config_json))
    before = contents(folder)
    assert refused(*begun) == (
        f"checkpoint_dir must stay {tmp_path}/apart to go on with the run of {folder}, "
        f"got {folder}/checkpoints; give another --job_dir for a new run"
    )
    assert contents(folder) == before


def test_a_run_is_not_begun_anew_where_checkpoints_are_to_lie_elsewhere(
    refused, begun: list[str], tmp_path: pathlib.Path
):
    folder = tmp_path / "run"
    before = contents(folder)
    assert refused(*begun, f"--checkpoint_dir={tmp_path}/apart") == (
        f"checkpoint_dir must stay {folder}/checkpoints to go on with the run of "
        f"{folder}, got {tmp_path}/apart; give another --job_dir for a new run"
    )
    assert contents(folder) == before


def test_a_relative_checkpoint_dir_is_that_of_where_the_run_was_begun(
    refused, begun: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    folder, here = tmp_path / "run", tmp_path / "here"
    (here / "ckpt").mkdir(parents=True)
    monkeypatch.chdir(here)
    save_a_checkpoint([*begun, f"--job_dir={tmp_path}/apart", "--checkpoint_dir=ckpt"])
    config_json = json.loads((tmp_path / "apart" / "config.json").read_text())
    assert config_json["checkpoints"] == f"{here}/ckpt"
    assert json.loads((folder / "config.json").read_text())["checkpoints"] is None
    monkeypatch.chdir(tmp_path)
    line = refused(*begun, f"--job_dir={tmp_path}/apart", "--checkpoint_dir=ckpt")
    assert line.startswith(
        f"checkpoint_dir must stay {here}/ckpt to go on with the run"
    )


def test_replicas_that_do_not_divide_the_steps_of_a_run_are_refused(begun: list[str]):
    three: Any = types.SimpleNamespace(num_replicas_in_sync=3)
    state = {"global_batch_size": 64, "batch_size": 64}
    saved = checkpoint.Checkpoint("step-00000002", {}, state)
    with pytest.raises(ValueError) as refusal:
        same_run.global_batch(task.config.from_args(begun), three, saved)
    assert str(refusal.value) == (
        "replicas must divide the 64 examples of a step to go on from step-00000002, got "
        "3; take so many devices, or give another --job_dir for a new run"
    )


def test_init_from_a_damaged_checkpoint_is_refused(
    refused, begun: list[str], tmp_path: pathlib.Path
):
    path = tmp_path / "run" / "checkpoints" / "step-00000002.npz"
    path.write_bytes(path.read_bytes()[:-1])
    new = (f"--job_dir={tmp_path}/new", f"--init_from={tmp_path}/run")
    line = refused(*begun, *new)
    assert matches(line, f"{path} must fit its digest, got ... bytes that do not")
    assert not (tmp_path / "new").exists()


def test_where_no_checkpoint_is_whole_the_run_does_not_start_over(
    begun: list[str], capfd: pytest.CaptureFixture, tmp_path: pathlib.Path
):
    directory = tmp_path / "run" / "checkpoints"
    (directory / "step-00000002.npz").write_bytes(b"")
    before = contents(tmp_path / "run")
    for got in ("step-00000002", "no file"):
        assert task.main(begun) == 2
        # Each checkpoint that is passed over has its warning before the last line.
        assert capfd.readouterr().err.splitlines()[-1] == (
            f"segtrainer: {directory} must hold a whole checkpoint, got {got}, none "
            "whole; start in another job_dir"
        )
        if got != "no file":
            assert contents(tmp_path / "run") == before
            (directory / "step-00000002.npz").unlink()


def test_a_cloud_job_that_failed_for_good_is_not_tried_again(
    refused, begun: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    why = {"step": 3, "reason": "the loss at step 3 is nan", "cloud_job_id": "job-7"}
    (tmp_path / "run" / "failed.json").write_text(json.dumps(why))
    before = contents(tmp_path / "run")
    monkeypatch.setenv("CLOUD_ML_JOB_ID", "job-7")
    assert refused(*begun) == (
        "job job-7 failed for good at step 3: the loss at step 3 is nan; submit a new "
        "job to go on from the last checkpoint"
    )
    assert contents(tmp_path / "run") == before
    monkeypatch.setenv("CLOUD_ML_JOB_ID", "job-8")
    with pytest.raises(AssertionError, match="the run has begun"):
        task.main(begun)
