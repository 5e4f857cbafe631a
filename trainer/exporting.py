"""A trained model -> all files of its export, in their place; for a command and a run."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from trainer import (
    checkpoint,
    config,
    contract,
    files,
    litert,
    placing,
    serving,
    trained,
)

FLOAT32 = "float32"


def export(
    model: trained.Trained,
    target: str,
    *,
    job_dir: str,
    test: dict[str, Any] | None,
    precision: str | None = None,
    lite: tuple[str, ...] = (),
    images: Callable[[], Iterable[np.ndarray]] | None = None,
    fence: Callable[[], None] = lambda: None,
) -> None:
    """Writes a SavedModel, the LiteRT files that are asked for, and model.json.

    Args:
        model: Made outside of any strategy's scope.
        target: Directory to put them in whole, local or gs://.
        job_dir: Of the model's run.
        test: Its metrics on test, if they are known.
        precision: Arithmetic of the SavedModel; the run's own when absent.
        lite: Names of LiteRT files, of `placing`.
        images: Returns images (S, S, 3) uint8 of the run, for the one in int8.
        fence: Raises OSError where another may write by now.
    """
    precision = precision or model.settings.precision
    of = functools.cache(functools.partial(in_precision, model))

    def make(folder: str) -> None:
        serving.save(of(precision), folder)
        for name in lite:
            if name == placing.LITERT:
                data = litert.float32(of(FLOAT32))
            else:
                assert images is not None
                data = litert.int8(of(FLOAT32), images())
            files.write(os.path.join(folder, name), data)
        about = contract.about(model, job_dir, test, precision, list(lite))
        files.write_json(os.path.join(folder, placing.ABOUT), about)

    placing.put(target, make, fence)


def in_precision(model: trained.Trained, precision: str) -> keras.Model:
    """Returns a model that computes in a precision: itself, or another of its weights."""
    if precision == model.settings.precision:
        return model.model
    settings = dataclasses.replace(model.settings, precision=precision)
    arrays = checkpoint.values(checkpoint.named_variables(model.model))
    return rebuilt(settings, len(model.class_names), arrays)


def rebuilt(
    settings: config.Config, num_classes: int, arrays: dict[str, np.ndarray]
) -> keras.Model:
    """Returns the model of a run's settings with these weights, on one device.

    Args:
        settings: Of the run.
        num_classes: C.
        arrays: Of each variable, by `checkpoint.named_variables`.
    """
    model = trained.build(settings, num_classes)
    checkpoint.assign(arrays, checkpoint.named_variables(model))
    return model
