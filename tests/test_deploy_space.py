"""The space of a search: by flag and by file the same, each point a run that starts."""

import pytest

from deploy.order import Search
from deploy.space import Parameter
from deploy.study import checked_study
from trainer.config import Config

YAML = """
learning_rate: {min: 1e-4, max: 1.0e-2, scale: log}
batch_size: [64, 16, 32]
warmup_steps: {min: 0, max: 500}
train_encoder: [true, false]
optimizer: [adam, adamw]
"""
FLAG = (
    "--search=learning_rate=1e-4..1e-2:log,batch_size=64/16/32,warmup_steps=0..500,"
    "train_encoder=true/false,optimizer=adam/adamw"
)
PARAMETERS = [
    Parameter("learning_rate", ends=(1e-4, 1e-2), scale="log"),
    Parameter("batch_size", values=(16.0, 32.0, 64.0)),
    Parameter("warmup_steps", ends=(0, 500)),
    Parameter("train_encoder", values=("true", "false")),
    Parameter("optimizer", values=("adam", "adamw")),
]


def any_settings(settings: Config) -> None:
    """Takes all that the trainer takes."""


def test_flag_and_file_give_the_same_space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(YAML)
    of_file = checked_study(Search(search_space=str(path)), [], any_settings)
    texts = tuple(FLAG.removeprefix("--search=").split(","))
    of_flag = checked_study(Search(search=texts), [], any_settings)
    assert of_file == of_flag
    assert of_flag.parameters == PARAMETERS
    assert isinstance(of_flag.parameters[2].ends[0], int)


@pytest.mark.parametrize(
    "text, line",
    [
        ("- a\n- b\n", "search_space must map settings"),
        ("", "search_space must map settings"),
        ("a: [1,\n", "search_space must be YAML"),
        ("learning_rate: 3\n", "must be {min, max, scale} or a list of values, got 3"),
        ("learning_rate: {min: 1}\n", "must have min and max"),
        ("learning_rate: {min: 1, max: 2, step: 1}\n", "got 'step'"),
        ("learning_rate: {min: true, max: 2}\n", "must have numbers, got True"),
        ("encoder_weights: [imagenet, null]\n", "or a list of values, got"),
        ("dataset: [2024-99-99, b]\n", "search_space must be YAML"),
        (f"seed: [1, {'9' * 400}]\n", "must have numbers"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, line):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=line):
        checked_study(Search(search_space=str(path)), [], any_settings)


def test_a_point_that_only_the_corners_hold_is_refused():
    texts = ("optimizer=adam/adamw", "weight_decay=0/0.1")
    with pytest.raises(
        ValueError, match=r"--optimizer=adam --weight_decay=0\.1: weight"
    ):
        checked_study(Search(search=texts), [], any_settings)


def test_encoders_can_be_searched_where_their_weights_are_to_be_had():
    search = Search(search=("encoder=mobilenet_v2/resnet50",))
    found = checked_study(search, ["--encoder_weights=none"], any_settings)
    assert found.parameters == [
        Parameter("encoder", values=("mobilenet_v2", "resnet50"))
    ]
    assert checked_study(search, ["--download", "--data_dir=d"], any_settings)
    line = "refused, --encoder=resnet50: encoder_weights imagenet is bundled for"
    with pytest.raises(ValueError, match=line):
        checked_study(search, [], any_settings)


def test_flags_that_fit_only_what_is_searched_are_fine():
    search = Search(search=("loss=focal/focal+dice",))
    assert checked_study(search, ["--focal_gamma=1"], any_settings)
    # What is wrong with all trials is not told of one.
    with pytest.raises(ValueError, match="^focal_gamma needs focal in loss"):
        checked_study(Search(search=("seed=1/2",)), ["--focal_gamma=1"], any_settings)


def test_widths_and_taps_can_be_searched(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "encoder_alpha: [0.35, 1]\n"
        "skip_layers: ['none,none,none,block_13_expand_relu', 'none,none,none,none']\n"
    )
    args = ["--encoder_weights=none"]
    found = checked_study(Search(search_space=str(path)), args, any_settings)
    assert [p.values for p in found.parameters] == [
        (0.35, 1.0),
        ("none,none,none,block_13_expand_relu", "none,none,none,none"),
    ]


def test_values_of_a_large_space_are_each_checked():
    values = "/".join(map(str, range(1, 30)))
    texts = [f"seed={values}", f"log_every_steps={values}", "image_size=64/96/100"]
    with pytest.raises(ValueError, match="image_size must be a multiple of 32"):
        checked_study(Search(search=tuple(texts)), [], any_settings)


def test_the_goal_follows_from_the_metric():
    def goal(**settings) -> tuple[str, str, list[str]]:
        found = checked_study(
            Search(search=("seed=1/2",), **settings), ["--epochs=3"], any_settings
        )
        return found.metric, found.goal, found.trainer_args

    assert goal() == ("val_loss", "minimize", ["--epochs=3"])
    iou = goal(metric="val_mean_iou")
    told = ["--epochs=3", "--hp_metric=val_mean_iou"]
    assert iou == ("val_mean_iou", "maximize", told)
    assert goal(metric="val_mean_iou", goal="minimize")[1] == "minimize"
