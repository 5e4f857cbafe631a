"""Encoders: each one's taps, normalisation and weights; what does not fit is refused."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import runs
from trainer import (
    checkpoint,
    checkpoint_folder,
    encoders,
    model,
    pretrained,
    step,
    task,
    trained,
)

SIZE = 64
OTHERS = [name for name in encoders.NAMES if name != encoders.DEFAULT]
# Channels at strides 2, 4, 8, 16 and 32.
CHANNELS = {
    "mobilenet_v2": (96, 144, 192, 576, 320),
    "mobilenet_v3_large": (16, 24, 40, 112, 160),
    "mobilenet_v3_small": (16, 16, 24, 48, 96),
    "efficientnet_v2_b0": (16, 32, 48, 112, 192),
    "resnet50": (64, 256, 512, 1024, 2048),
    "convnext_tiny": (None, 96, 192, 384, 768),
}
NO_SKIP = (encoders.NONE,) * 4


@pytest.fixture(autouse=True)
def _precision():
    """Takes back the global precision that building a model sets."""
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def unets():
    """Returns a model with each encoder, trained, its norms too where it has any."""
    return {
        name: build(
            name,
            train_encoder=True,
            train_encoder_batch_norm=encoders.TABLE[name].batch_norm,
        )
        for name in encoders.NAMES
    }


@pytest.fixture(scope="module")
def frozen(unets):
    """Returns a model with each encoder, frozen; the second of each in this process."""
    return {name: build(name) for name in encoders.NAMES}


def build(encoder=encoders.DEFAULT, **settings):
    settings = {"encoder_weights": "none", "image_size": SIZE, **settings}
    return model.build_unet(encoder=encoder, **{"num_classes": 2, **settings})


def images(count=2, size=SIZE):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (count, size, size, 3)).astype(np.float32)


def network(name, **options):
    """Returns keras.applications' own network with its own normalisation."""
    make = getattr(keras.applications, encoders.TABLE[name].application)
    shape = (SIZE, SIZE, 3)
    return make(input_shape=shape, include_top=False, weights=None, **options)


def values(variables):
    return [v.numpy() for v in variables]


def same(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------------------
# Taps


@pytest.mark.parametrize("name", encoders.NAMES)
def test_an_encoder_is_tapped_at_its_strides(unets, name):
    outputs = unets[name].get_layer("encoder").outputs
    strides = (*encoders.STRIDES, 32)
    expected = [
        (None, SIZE // stride, SIZE // stride, channels)
        for stride, channels in zip(strides, CHANNELS[name], strict=True)
        if channels
    ]
    assert [output.shape for output in outputs] == expected


@pytest.mark.parametrize("name", encoders.NAMES)
def test_the_decoder_sees_each_skip_and_nothing_where_there_is_none(unets, name):
    logits = unets[name](images())
    assert logits.shape == (2, SIZE, SIZE, 2) and logits.dtype == tf.float32
    seen = [
        unets[name].get_layer(layer).kernel.shape[-1] - features
        for layer, features in [
            *[("up_512", 0), ("up_256", 512), ("up_128", 256), ("up_64", 128)],
            ("up_logits", 64),
        ]
    ]
    assert seen == [channels or 0 for channels in reversed(CHANNELS[name])]


@pytest.mark.parametrize("alpha", [0.35, 1.4])
def test_mobilenet_v2_has_the_width_asked_for(alpha):
    encoder = build(encoder_alpha=alpha).get_layer("encoder")
    theirs = network("mobilenet_v2", alpha=alpha).get_layer("block_16_project").output
    assert encoder.outputs[-1].shape == theirs.shape
    assert theirs.shape[-1] == {0.35: 112, 1.4: 448}[alpha]


def test_other_layers_can_be_tapped_and_strides_left_out():
    skip_layers = ("none", "block_2_add", "block_5_add", "none")
    unet = build(skip_layers=skip_layers)
    shapes = [output.shape[1:] for output in unet.get_layer("encoder").outputs]
    assert shapes == [(16, 16, 24), (8, 8, 32), (2, 2, 320)]
    assert build(skip_layers=NO_SKIP)(images()).shape == (2, SIZE, SIZE, 2)


@pytest.mark.parametrize(
    ("name", "position", "layer", "says"),
    [
        (
            "mobilenet_v2",
            0,
            "block_99",
            "for stride 2, no layer of it; there give one of",
        ),
        ("mobilenet_v2", 1, "block_5_add", "got block_5_add for stride 4, at another;"),
        (
            "mobilenet_v2",
            2,
            "Block_5_add",
            "for stride 8, no layer of it; .*block_5_add,",
        ),
        ("convnext_tiny", 0, "add", "stride 2, at another; there give none"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused_with_those_that_do(
    name, position, layer, says
):
    skip_layers = (*NO_SKIP[:position], layer, *NO_SKIP[position + 1 :])
    with pytest.raises(ValueError, match=says) as refusal:
        build(name, skip_layers=skip_layers)
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------------------
# Normalisation


@pytest.mark.parametrize("name", encoders.NAMES)
def test_normalisation_is_that_of_keras_applications(unets, name):
    unet, module = unets[name], {"efficientnet_v2_b0": "efficientnet_v2"}.get(name)
    module = module or name.removesuffix("_large").removesuffix("_small")
    seen = keras.Model(unet.input, unet.get_layer("normalise").output)(images())
    expected = images()
    if encoders.TABLE[name].normalises:
        whole, first = network(name), []
        for layer in whole.layers[1:]:
            if not isinstance(
                layer, keras.layers.Rescaling | keras.layers.Normalization
            ):
                break
            first.append(layer)
        assert first
        for layer in first:
            expected = layer(expected)
    else:
        module = getattr(keras.applications, module)
        expected = module.preprocess_input(expected.copy())
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-4)


# ---------------------------------------------------------------------------
# What stays as it was


def test_the_default_begins_with_the_weights_that_it_always_had():
    unet = build(num_classes=3, seed=7)
    keras.utils.set_random_seed(7)
    theirs = network("mobilenet_v2")
    decoder, channels = [], 320
    for width, skip in ((512, 576), (256, 192), (128, 144), (64, 96)):
        start = keras.initializers.RandomNormal(0.0, 0.02)
        decoder.append(start((3, 3, width, channels)))
        channels = width + skip
    decoder.append(keras.initializers.GlorotUniform()((3, 3, 3, channels)))
    encoder = unet.get_layer("encoder")
    start = {v.path: v for v in theirs.weights}
    assert encoder.weights
    for weight in encoder.weights:
        assert same(values([weight]), values([start[weight.path]]))
    kernels = [v for v in unet.weights if v.path.startswith("up_")]
    assert same(values(v for v in kernels if v.name == "kernel"), decoder)


def test_the_defaults_variables_have_the_names_that_checkpoints_know():
    unet = build(num_classes=3)
    names = {f"model/{v.path}" for v in network("mobilenet_v2").weights}
    ours = checkpoint.named_variables(unet)
    assert len(ours) == 273
    decoder = ours.keys() - names
    assert decoder == {
        *(f"model/up_{width}/kernel" for width in (512, 256, 128, 64, "logits")),
        "model/up_logits/bias",
        *(
            f"model/up_{width}_norm/{name}"
            for width in (512, 256, 128, 64)
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        ),
    }


@pytest.mark.parametrize("name", encoders.NAMES)
def test_variables_have_the_same_names_each_time_and_each_its_own(unets, frozen, name):
    ours = sorted(v.path for v in unets[name].weights)
    assert sorted(v.path for v in frozen[name].weights) == ours
    assert len(set(ours)) == len(ours)


def test_numbering_for_an_encoder_leaves_the_rest_of_the_process_alone():
    first = keras.layers.Dense(1).name
    pretrained.build("convnext_tiny", image_size=32, weights="none")
    assert keras.layers.Dense(1).name not in (first, "dense")


# ---------------------------------------------------------------------------
# Frozen and trained


@pytest.mark.parametrize("name", OTHERS)
def test_a_frozen_encoder_is_the_same_in_training(frozen, name):
    encoder = frozen[name].get_layer("encoder")
    assert not encoder.trainable_weights
    before = values(encoder.weights)
    for train, infer in zip(
        *(encoder(images(), training=training) for training in (True, False)),
        strict=True,
    ):
        np.testing.assert_array_equal(train, infer)
    assert same(values(encoder.weights), before)


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_in_a_trained_encoder_is_drawn_at_random(unets, name):
    encoder = unets[name].get_layer("encoder")
    first, second = (encoder(images(), training=True)[-1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    trained_too = {v.path for v in encoder.trainable_weights}
    left_out = {v.path for v in encoder.weights} - trained_too
    assert all("moving_" in path for path in left_out)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "convnext_tiny"])
def test_without_its_norms_all_else_of_an_encoder_is_trained(name):
    encoder = build(name, train_encoder=True).get_layer("encoder")
    trained_too = {v.path for v in encoder.trainable_weights}
    for weight in encoder.weights:
        of_norm = weight.name in ("gamma", "beta", "moving_mean", "moving_variance")
        left_out = of_norm and encoders.TABLE[name].batch_norm
        assert (weight.path in trained_too) != left_out


@pytest.mark.parametrize(
    ("name", "precision"),
    [("efficientnet_v2_b0", "mixed_bfloat16"), ("convnext_tiny", "mixed_float16")],
)
def test_an_encoder_computes_in_the_precision_asked_for(name, precision):
    unet = build(name, precision=precision)
    assert {v.dtype for v in unet.weights} == {"float32"}
    half = precision.removeprefix("mixed_")
    assert {str(x.dtype) for x in unet.get_layer("encoder").outputs} == {half}
    logits = unet(images())
    assert logits.dtype == tf.float32 and np.isfinite(logits).all()


# ---------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("mobilenet_v3_small", ".weights.h5"),
        *(("efficientnet_v2_b0", ".h5"), ("convnext_tiny", ".h5")),
    ],
)
def test_weights_come_from_a_file_of_keras_own_network(tmp_path, name, ending):
    keras.utils.set_random_seed(9)
    theirs = network(name)  # With its own normalisation inside, as Keras publishes it.
    path = str(tmp_path / f"mine{ending}")
    (theirs.save_weights if "weights" in ending else theirs.save)(path)
    ours = build(name, encoder_weights=path).get_layer("encoder")
    # Its top comes after the bottleneck; what is before it is all of ours.
    assert same(values(ours.weights), values(theirs.weights)[: len(ours.weights)])


def test_weights_of_another_encoder_are_refused_in_one_line(tmp_path):
    path = str(tmp_path / "small.weights.h5")
    network("mobilenet_v3_small").save_weights(path)
    with pytest.raises(ValueError, match="encoder_weights must fit ") as refusal:
        build("mobilenet_v3_large", encoder_weights=path)
    assert "keras.applications.MobileNetV3Large (no top), got" in str(refusal.value)
    assert path in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "asked", [*({"encoder": name} for name in OTHERS), {"encoder_alpha": 0.5}], ids=str
)
def test_weights_that_are_not_bundled_are_fetched_only_when_asked(asked, monkeypatch):
    def fetched(*args, **kwargs):
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", fetched)
    with pytest.raises(ValueError, match="add --download, .* --encoder_weights=PATH"):
        build(**{"encoder_weights": "imagenet", **asked})


def test_weights_are_fetched_where_asked(tmp_path, monkeypatch, capsys):
    keras.utils.set_random_seed(9)
    theirs, path = network("mobilenet_v3_small"), str(tmp_path / "theirs.h5")
    theirs.save(path)
    asked = []

    def fetched(name, origin, **_):
        print("Downloading data")
        asked.append(name)
        return path

    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", fetched)
    unet = build("mobilenet_v3_small", encoder_weights="imagenet", download=True)
    ours = unet.get_layer("encoder").weights
    assert same(values(ours), values(theirs.weights)[: len(ours)])
    assert asked == ["weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"]
    assert capsys.readouterr().out == ""


def test_weights_that_cannot_be_fetched_are_told_in_one_line(monkeypatch):
    def fetched(*args, **kwargs):
        raise RuntimeError("URL fetch failure on https://... : None -- no answer")

    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", fetched)
    with pytest.raises(ValueError, match="of resnet50 could not be fetched: URL fetch"):
        build("resnet50", encoder_weights="imagenet", download=True)


# ---------------------------------------------------------------------------
# In a run


@pytest.mark.slow
def test_two_replicas_take_the_step_of_one():
    image = images(4, 32).astype(np.uint8)
    mask = np.random.default_rng(1).integers(0, 2, (4, 32, 32)).astype(np.uint8)
    found = []
    for replicas in (1, 2):
        strategy = runs.mirrored(replicas)
        with strategy.scope():
            unet = build("mobilenet_v3_small", image_size=32)
            recipe = dict(name="adam", learning_rate=1e-3, schedule="constant")
            recipe |= dict(warmup_steps=0, total_steps=2, weight_decay=0.0)
            optimizer = step.make_optimizer(unet, **recipe)
        data = tf.data.Dataset.from_tensors((image, mask)).repeat().unbatch().batch(4)
        batches = iter(strategy.experimental_distribute_dataset(data))
        train_steps = step.make_train_steps(strategy, unet, optimizer)
        losses = [train_steps(batches, 1)[1] for _ in range(2)]
        assert losses[1] != losses[0]
        found.append(losses)
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_without_the_encoders_file_and_is_loaded(tmp_path, pets):
    path, job_dir = str(tmp_path / "mine.weights.h5"), str(tmp_path / "run")
    network("mobilenet_v3_small").save_weights(path)
    skip_layers = "none,none,expanded_conv_1_project_bn,expanded_conv_7_add"
    flags = [
        *(f"--data_dir={pets(8)}", f"--job_dir={job_dir}", f"--encoder_weights={path}"),
        *("--encoder=mobilenet_v3_small", f"--skip_layers={skip_layers}"),
        *("--image_size=32", "--batch_size=2", "--val_fraction=0.25"),
        *("--num_pictures=1", "--eval_every_steps=2"),
    ]
    assert task.main([*flags, "--total_steps=2"]) == 0
    first = trained.load(job_dir, "latest")
    pathlib.Path(path).unlink()
    assert task.main([*flags, "--total_steps=4"]) == 0
    loaded = trained.load(job_dir, "latest")
    assert (first.step, loaded.step) == (2, 4)
    assert loaded.settings.skip_layers == tuple(skip_layers.split(","))
    encoders_of = [one.model.get_layer("encoder") for one in (first, loaded)]
    assert [x.shape[1:] for x in encoders_of[0].outputs] == [
        *[(4, 4, 24), (2, 2, 48), (1, 1, 96)]
    ]
    assert same(*(values(encoder.weights) for encoder in encoders_of))
    assert loaded.model(images(1, 32)).shape == (1, 32, 32, 3)
    saved = checkpoint_folder.load_latest(f"{job_dir}/checkpoints")
    assert saved.state["settings"]["encoder"] == "mobilenet_v3_small"
    # A run that begins with its weights needs no others.
    began = [one for one in flags if not one.startswith(("--job_dir", "--encoder_wei"))]
    began += [f"--job_dir={tmp_path}/began", f"--init_from={job_dir}"]
    assert task.main([*began, "--total_steps=1"]) == 0
    after = trained.load(f"{tmp_path}/began", "latest").model.get_layer("encoder")
    assert same(values(encoders_of[0].weights), values(after.weights))
    # What an older version wrote names no encoder, and means the default.
    old = json.loads(pathlib.Path(job_dir, "config.json").read_text())["settings"]
    for name in ("encoder", "encoder_alpha", "skip_layers"):
        del old[name]
    assert task.config.from_dict(old).encoder == encoders.DEFAULT


@pytest.mark.parametrize("name", ["efficientnet_v2_b0", "resnet50", "convnext_tiny"])
def test_a_model_made_again_from_its_configuration_has_the_same_numbers(unets, name):
    again = keras.Model.from_config(unets[name].get_config())
    again.set_weights(unets[name].get_weights())
    np.testing.assert_allclose(again(images()), unets[name](images()), atol=1e-5)


@pytest.mark.parametrize("name", encoders.NAMES)
def test_the_layers_from_a_stride_on_begin_with_its_first_map(unets, name):
    network = unets[name].get_layer("encoder")
    place = pretrained.first_at(network, 8)
    assert network.layers[place].output.shape[1] == SIZE // 8
    sides = {layer.output.shape[1] for layer in network.layers[:place]}
    assert min(sides - {1}) > SIZE // 8  # Weights of channels are one pixel.
    assert pretrained.first_at(network, 1) == 0
