"""Settings: flags and back, what is refused, where a run writes, what --help shows."""

import dataclasses

import pytest

from trainer import config, flags, recipes
from trainer.config import Config

FIELDS = {field.name: field for field in dataclasses.fields(Config)}

# A value of each setting that is not its default, odd ones where the type has them.
OTHER = {
    "dataset": "shapes/small:1.0.0",
    "data_dir": "gs://bucket/a folder",
    "download": True,
    "try_gcs": True,
    "image_feature": "photo",
    "mask_feature": "labels",
    "mask_offset": -3,
    "class_names": ("ground", "disc", "it's=odd"),
    "ignore_id": 0,
    "train_split": "fit",
    "val_split": "choose",
    "test_split": "none",
    "val_fraction": 1 / 3,
    "limit_train_examples": 7,
    "limit_eval_examples": 9,
    "image_size": 96,
    "train_image_size": 64,
    "cache": "none",
    "shuffle_window": 1,
    "augment": False,
    "flip": False,
    "crop_scale_min": 0.1 + 0.2,
    "brightness": 0.07,
    "contrast": 0.99,
    "saturation": 1e-9,
    "hue": 0.5,
    "encoder": "resnet50",
    "encoder_alpha": 0.35,
    "encoder_weights": "a b.weights.h5",
    "skip_layers": ("none", "a/b", "c", "it's=odd"),
    "train_encoder": True,
    "train_encoder_from": 8,
    "encoder_learning_rate": 1e-5,
    "decoder": "light",
    "ema_decay": 0.9,
    "train_encoder_batch_norm": True,
    "init_from": "runs/other",
    "precision": "mixed_bfloat16",
    "jit_compile": True,
    "model_summary": True,
    "epochs": 0.1 + 0.2,
    "total_steps": 10**9,
    "batch_size": 3,
    "global_batch_size": 12,
    "loss": "cross_entropy+0.5*focal",
    "focal_gamma": 1.5,
    "class_weights": "2,0.5,1e-3",
    "label_smoothing": 0.1,
    "optimizer": "adamw",
    "learning_rate": 1e-17,
    "schedule": "cosine",
    "warmup_steps": 5,
    "weight_decay": 1 / 7,
    "clip_norm": 1e10,
    "seed": 2**31 - 1,
    "deterministic": True,
    "max_minutes": 0.5,
    "early_stopping_evals": 2,
    "eval_every_steps": 11,
    "eval_batch_size": 13,
    "best_metric": "val_iou/left, right",
    "hp_metric": "val_dice/a=b",
    "job_dir": "runs/-x",
    "checkpoint_dir": "c",
    "log_dir": "l",
    "checkpoint_every_steps": 17,
    "checkpoint_every_seconds": 0.0,
    "keep_checkpoints": 3,
    "log_every_steps": 1,
    "lease_seconds": 2.5,
    "num_pictures": 64,
    "export": False,
    "scale_learning_rate": "sqrt",
    "tpu": "local",
    "worker_timeout_seconds": 30.0,
    "grace_seconds": 25.0,
    "strategy": "mirrored",
    "num_cpu_devices": 4,
    "fast_dev_run": True,
    "profile_steps": (2, 5),
}
NEEDS = {
    "encoder_learning_rate": {"train_encoder": True},
    "dataset": {"data_dir": "d"},
    "download": {"data_dir": "d"},
    "encoder": {"encoder_weights": "none"},
    "encoder_alpha": {"encoder_weights": "none"},
    "train_encoder_batch_norm": {"train_encoder": True},
    "train_encoder_from": {"train_encoder": True},
    "weight_decay": {"optimizer": "adamw"},
    "focal_gamma": {"loss": "focal"},
}
# Each of these is in conflict with another one.
ALONE = {
    *("batch_size", "encoder_alpha", "jit_compile", "scale_learning_rate", "tpu"),
    "try_gcs",
}


def to_args(settings):
    """Returns the flags that make `settings`, those that differ from the default."""
    args = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default or value is None:
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, tuple):
            value = ",".join(map(str, value))
        args.append(f"--{field.name}={value}")
    return args


@pytest.mark.parametrize("name", FIELDS)
def test_setting_comes_back_from_its_flag(name):
    settings = Config(**{name: OTHER[name], **NEEDS.get(name, {})})
    assert getattr(settings, name) != FIELDS[name].default
    again = config.from_args(to_args(settings))
    assert again == settings
    assert type(getattr(again, name)) is type(OTHER[name])


def test_all_settings_come_back_from_their_flags_together():
    settings = Config(**{k: v for k, v in OTHER.items() if k not in ALONE})
    assert config.from_args(to_args(settings)) == settings


def test_settings_left_alone_need_no_flags():
    assert to_args(Config()) == []
    assert config.from_args([]) == Config()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--seed", "16.0"], {"seed": 16}),
        (["--seed=16"], {"seed": 16}),
        (["--num_pictures=1e1"], {"num_pictures": 10}),
        (["--augment", "true"], {"augment": True}),
        (["--augment", "false"], {"augment": False}),
        (["--augment", "False"], {"augment": False}),
        (["--augment", "f"], {"augment": False}),
        (["--train_encoder", "T"], {"train_encoder": True}),
        (["--train_encoder", "1"], {"train_encoder": True}),
        (["--augment=0"], {"augment": False}),
        (["--noaugment"], {"augment": False}),
        (["--train_encoder"], {"train_encoder": True}),
        (["-flip", "false", "--seed", "2"], {"flip": False, "seed": 2}),
        (["--mask_offset", "-1"], {"mask_offset": -1}),
        (["--class_names=a,b"], {"class_names": ("a", "b")}),
        (["--profile_steps", "2,4.0"], {"profile_steps": (2, 4)}),
        (["--seed=1", "--seed=2"], {"seed": 2}),
    ],
)
def test_flags_are_read_as_people_and_tuners_write_them(args, expected):
    settings = config.from_args(args)
    assert settings == Config(**expected)
    for name, value in expected.items():
        assert type(getattr(settings, name)) is type(value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--seed=16.5"], ["seed", "whole number"]),
        (["--seed=inf"], ["seed", "inf"]),
        (["--learning_rate=nan"], ["learning_rate", "finite", "nan"]),
        (["--augment=maybe"], ["augment", "maybe"]),
        (["--sead=1"], ["sead", "--help"]),
        (["--seed"], ["seed"]),
        (["stray"], ["'stray'", "--name=value"]),
        (["--noaugment", "true"], ["'true'"]),
        (["--batch_size=8", "--global_batch_size=8"], ["batch_size", "both"]),
        (["--image_size=100"], ["image_size", "100", "nearest: 96, 128"]),
        (["--train_image_size=50"], ["train_image_size", "50", "nearest: 32, 64"]),
        (["--optimizer=sgd"], ["optimizer", "adam, adamw", "'sgd'"]),
        (["--keep_checkpoints=1"], ["keep_checkpoints", "at least 2", "got 1"]),
        (["--hue=0.6"], ["hue", "at most 0.5", "got 0.6"]),
        (["--job_dir="], ["job_dir", "empty"]),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line(args, words):
    with pytest.raises(ValueError) as refusal:
        config.from_args(args)
    text = str(refusal.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_a_run_from_before_may_have_names_with_blanks_around():
    names = ("pet", " border")
    assert config.from_args(["--class_names=pet, border"]).class_names == names
    assert config.from_dict({"class_names": list(names)}).class_names == names


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


def test_help_shows_each_flag_under_its_group_with_its_default_and_choices():
    blocks = flags.help_text(Config).split("\n\n")
    shown = {block.splitlines()[0].rstrip(":"): block for block in blocks}
    groups = {field.metadata["group"] for field in FIELDS.values()}
    assert shown.keys() == groups and len(blocks) == len(groups)
    for name, field in FIELDS.items():
        default = field.default
        if isinstance(default, bool):
            default = str(default).lower()
        elif isinstance(default, float):
            default = f"{default:g}"
        flag = f"  --{name}" + ("" if default is None else f"={default}")
        lines = shown[field.metadata["group"]].splitlines()
        text = lines[lines.index(flag) + 1]
        assert text.startswith(f"      {field.metadata['help']}")
        for choice in field.metadata["choices"] or ():
            assert choice in text.split("[")[-1]


VERTEX = {
    "AIP_MODEL_DIR": "gs://bucket/7/model/",
    "AIP_CHECKPOINT_DIR": "gs://bucket/7/checkpoints/",
    "AIP_TENSORBOARD_LOG_DIR": "gs://bucket/7/logs/",
}


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, ("runs/oxford_iiit_pet", "/checkpoints", "/logs")),
        (
            {"dataset": "shapes/small:1.0.0", "data_dir": "d"},
            {},
            ("runs/shapes", "/checkpoints", "/logs"),
        ),
        ({"job_dir": "out"}, VERTEX, ("out", "/checkpoints", "/logs")),
        (
            {},
            VERTEX,
            ("gs://bucket/7", "gs://bucket/7/checkpoints/", "gs://bucket/7/logs/"),
        ),
        (
            {},
            {"AIP_CHECKPOINT_DIR": "gs://b/1/checkpoints/"},
            ("gs://b/1", "gs://b/1/checkpoints/", "/logs"),
        ),
        (
            {},
            {"AIP_TENSORBOARD_LOG_DIR": "gs://b/1/logs/"},
            ("runs/oxford_iiit_pet", "/checkpoints", "gs://b/1/logs/"),
        ),
        ({"checkpoint_dir": "c", "log_dir": "l"}, VERTEX, ("gs://bucket/7", "c", "l")),
        (
            {"job_dir": "out", "checkpoint_dir": "c", "log_dir": "l"},
            VERTEX,
            ("out", "c", "l"),
        ),
        (
            {},
            dict.fromkeys(VERTEX, ""),
            ("runs/oxford_iiit_pet", "/checkpoints", "/logs"),
        ),
    ],
)
def test_a_run_writes_where_flag_then_service_then_data_set_say(
    settings, environ, expected
):
    found = config.directories(Config(**settings), environ)
    job, checkpoints, logs = expected
    below = [job + path if path[0] == "/" else path for path in (checkpoints, logs)]
    assert (found.job, found.checkpoints, found.logs) == (job, *below)


def test_the_model_goes_where_who_serves_it_looks():
    assert config.directories(Config(job_dir="out"), VERTEX).model == "out/export/1"
    assert config.directories(Config(), VERTEX).model == VERTEX["AIP_MODEL_DIR"]
    elsewhere = {"AIP_CHECKPOINT_DIR": "gs://b/1/checkpoints/"}
    assert config.directories(Config(), elsewhere).model == "gs://b/1/export/1"


def test_identity_holds_what_makes_the_run_and_leaves_out_how_long_and_where():
    same = config.identity(Config())
    for name in ("dataset", "mask_offset", "class_names", "val_fraction", "seed"):
        assert name in same
    for name in ("learning_rate", "schedule", "precision", "flip", "image_size"):
        assert name in same
    for name in ("epochs", "total_steps", "job_dir", "data_dir", "strategy", "cache"):
        assert name not in same
    assert "batch_size" not in same and "eval_batch_size" not in same


@pytest.mark.parametrize("name", FIELDS)
def test_identity_changes_with_a_setting_if_and_only_if_it_makes_the_run(name):
    needs = NEEDS.get(name, {})
    before = config.identity(Config(**needs))
    after = config.identity(Config(**{name: OTHER[name], **needs}))
    assert (before != after) == FIELDS[name].metadata["identity"]
    if before != after:
        value = OTHER[name]
        assert after[name] == (list(value) if isinstance(value, tuple) else value)


# ---------------------------------------------------------------------------
# Recipes


def test_without_a_recipe_the_settings_are_the_tutorials():
    assert config.from_args(["--recipe=tutorial"]) == Config()
    assert not recipes.RECIPES[recipes.Preset().recipe]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_its_flags_and_nothing_else(name):
    settings = config.from_args([f"--recipe={name}"])
    assert settings == Config(**recipes.RECIPES[name])
    assert config.from_args(to_args(settings)) == settings


def test_a_flag_goes_before_the_recipe_even_with_the_default_value():
    settings = config.from_args(["--recipe=best", "--decoder=tutorial", "--epochs=3"])
    assert (settings.decoder, settings.epochs) == ("tutorial", 3)
    assert not config.from_args(["--recipe=best", "--ema_decay=0"]).ema_decay
    assert settings.optimizer == "adamw" and settings.train_encoder


def test_what_needs_a_setting_that_a_flag_turns_off_is_left_out_of_the_recipe():
    settings = config.from_args(["--recipe=best", "--notrain_encoder"])
    assert settings.encoder_learning_rate is None and settings.weight_decay > 0
    settings = config.from_args(["--recipe=best", "--optimizer=adam"])
    assert settings.encoder_learning_rate and not settings.weight_decay
    for side, at_training in ((128, None), (256, 224), (384, None)):
        settings = config.from_args(["--recipe=best", f"--image_size={side}"])
        assert settings.train_image_size == at_training
    with pytest.raises(ValueError, match="^weight_decay needs optimizer adamw"):
        config.from_args(["--recipe=best", "--optimizer=adam", "--weight_decay=0.1"])


def test_a_recipe_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="^recipe must be one of tutorial, best"):
        config.from_args(["--recipe=better"])


def test_a_recipes_batch_is_no_conflict_with_a_global_one():
    settings = config.from_args(["--recipe=best", "--global_batch_size=96"])
    assert settings.global_batch_size == 96
