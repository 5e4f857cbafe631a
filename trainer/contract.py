"""What is known of an exported model: model.json, for those who serve it and call it."""

import os
import platform
from typing import Any

from trainer import config, files, pictures, placing, run_files, serving
from trainer.trained import Trained

SHAPE = "(N, H, W, 3) uint8, N may be 0"
LITERT = {
    placing.LITERT: {
        "arithmetic": "float32",
        "input": "images: (1, {size}, {size}, 3) uint8",
        "output": "probabilities: (1, {size}, {size}, {classes}) float32",
    },
    placing.LITERT_INT8: {
        "arithmetic": "int8",
        "input": "images: (1, {size}, {size}, 3) uint8",
        "output": "probabilities: (1, {size}, {size}, {classes}) uint8, times 256",
    },
}


def classes(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the id, name and colour [red, green, blue] of each class."""
    colours = pictures.palette(len(names)).tolist()
    return [
        {"id": id, "name": name, "colour": colours[id]} for id, name in enumerate(names)
    ]


def about(
    model: Trained,
    job_dir: str,
    test: dict[str, Any] | None,
    precision: str,
    litert: list[str],
) -> dict[str, Any]:
    """Returns what model.json holds.

    Args:
        model: That is exported.
        job_dir: Of its run, which has written its config.json.
        test: Its metrics on test, if they are known.
        precision: In which the SavedModel computes.
        litert: Names of the LiteRT files beside it.
    """
    size, num_classes = model.settings.image_size, len(model.class_names)
    run = files.read_json(os.path.join(job_dir, "config.json"))
    return {
        "program": placing.PROGRAM,
        "classes": classes(model.class_names),
        "image_size": size,
        "precision": precision,
        "signatures": _signatures(size, num_classes),
        "litert": {
            name: {
                key: text.format(size=size, classes=num_classes)
                for key, text in LITERT[name].items()
            }
            for name in litert
        },
        "metrics": {"validation": model.validation or None, "test": test},
        "provenance": {
            "job_dir": job_dir,
            "checkpoint": model.checkpoint,
            "step": model.step,
            "dataset": run.get("dataset"),
            "settings": config.to_dict(model.settings),
            "trained_by": {
                key: run.get(key) for key in ("commit", "python", "packages")
            },
            "exported_by": {
                "commit": run_files.commit(),
                "python": platform.python_version(),
                "packages": run_files.versions(),
            },
        },
    }


def _signatures(size: int, num_classes: int) -> dict[str, Any]:
    """Returns what goes into each signature and comes out, and what is promised of it."""
    seen = f"(N, {size}, {size}"
    return {
        serving.ENCODED: {
            "inputs": {
                serving.IMAGE: "(N,) string, N may be 0: a JPEG or PNG file each, of any "
                "size. Of 16 bits the upper 8 count, grey becomes three equal channels, "
                "a palette its colours, alpha is left out; EXIF's orientation is not "
                "looked at: send images upright. A damaged file fails the call"
            },
            "outputs": {
                serving.MASK: "(N,) string: a PNG of class ids each, grey, 8 bits, at its "
                "image's own size"
            },
        },
        serving.PIXELS: {
            "inputs": {
                "images": f"{SHAPE}: red, green, blue; resized to the model's size"
            },
            "outputs": {
                "class_ids": f"{seen}) uint8",
                "probabilities": f"{seen}, {num_classes}) float32, of which those are the "
                "argmax",
            },
        },
    }
