"""LiteRT files of a model: what goes in, what comes out, how near they are to it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import export as benchmark
from trainer import export, inference, litert, model, task

SIZE = 32
IMAGES = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def unet() -> keras.Model:
    """Returns the U-Net, untrained."""
    return model.build_unet(image_size=SIZE, num_classes=3, encoder_weights="none")


def through(data: bytes, images: np.ndarray) -> np.ndarray:
    """Returns what a LiteRT file makes of images, one after another."""
    lite = tf.lite.Interpreter(model_content=data)
    lite.allocate_tensors()
    [into], [out] = lite.get_input_details(), lite.get_output_details()
    assert into["dtype"] == np.uint8 and tuple(into["shape"]) == (1, SIZE, SIZE, 3)
    found = []
    for image in images:
        lite.set_tensor(into["index"], image[np.newaxis])
        lite.invoke()
        found.append(lite.get_tensor(out["index"])[0])
    return np.stack(found)


def test_float32_agrees_with_the_model_pixel_for_pixel(unet):
    found = through(litert.float32(unet), IMAGES)
    expected = inference.make_probabilities(unet)(tf.constant(IMAGES)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.999


def test_int8_takes_pixels_as_they_are():
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3))
    seen = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    for width in (8, 3):
        seen = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(seen)
    small = keras.Model(image, seen)
    data = litert.int8(small, IMAGES // 2 + 60)  # None of them black or white.
    lite = tf.lite.Interpreter(model_content=data)
    [into], [out] = lite.get_input_details(), lite.get_output_details()
    assert into["quantization"] == (1.0, 0) and out["quantization"] == (1 / 256, 0)
    assert out["dtype"] == np.uint8
    found = through(data, IMAGES) / 256
    expected = inference.make_probabilities(small)(tf.constant(IMAGES)).numpy()
    assert np.abs(found - expected).mean() < 0.02


def test_the_command_calibrates_on_the_train_split_of_the_run(
    pets, tmp_path, tiny_unet, monkeypatch
):
    taken = []
    int8 = litert.int8

    def counted(model, images):
        taken.extend(images)
        return int8(model, taken)

    monkeypatch.setattr(litert, "int8", counted)
    flags = [f"--data_dir={pets(12)}", "--image_size=32", "--total_steps=1"]
    flags += ["--batch_size=2", "--val_fraction=0.25", "--noexport", "--num_pictures=1"]
    assert task.main([f"--job_dir={tmp_path}/run", *flags]) == 0
    args = ["--litert=both", "--calibration_examples=5"]
    assert export.main([f"--job_dir={tmp_path}/run", *args]) == 0
    assert len(taken) == 5 and {image.shape for image in taken} == {(32, 32, 3)}
    folder = tmp_path / "run" / "export" / "1"
    about = json.loads((folder / "model.json").read_text())
    assert set(about["litert"]) == {"model.tflite", "model_int8.tflite"}
    for name in about["litert"]:
        assert through((folder / name).read_bytes(), IMAGES[:1]).shape == (1, 32, 32, 3)
    assert about["metrics"]["test"] is not None
    found = benchmark.lite(f"{tmp_path}/run", folder)
    assert found["test_examples"] == 4 and found["model.tflite"]["bytes"] > 100
    assert found["keras"]["mean_iou"] == pytest.approx(
        about["metrics"]["test"]["mean_iou"]
    )
    assert found["model.tflite"]["agrees_with_keras"] >= 0.999
