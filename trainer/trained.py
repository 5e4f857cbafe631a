"""A run's model as it left it in a job_dir, and the data set of its settings."""

import dataclasses
import os
from typing import Any

import keras

from trainer import (
    checkpoint,
    checkpoint_folder,
    config,
    dataset,
    files,
    model,
    run_files,
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model and what is known of it."""

    model: keras.Model  # Image (N, S, S, 3) float32 0..255 -> logits (N, S, S, C).
    settings: config.Config
    class_names: tuple[str, ...]  # C of them.
    checkpoint: str  # Path of the file that it was read from.
    step: int  # After which it was saved.
    validation: dict[str, Any]  # Its metrics then, val_...; none if it was not judged.
    examples: tuple[int, ...] = ()  # Of each shard of train, and of validation.


def build(
    settings: config.Config, num_classes: int, encoder_weights: str = "none"
) -> keras.Model:
    """Returns the model of a run's settings, its encoder's weights as said."""
    return model.build_unet(
        image_size=settings.image_size,
        num_classes=num_classes,
        encoder=settings.encoder,
        encoder_alpha=settings.encoder_alpha,
        encoder_weights=encoder_weights,
        skip_layers=settings.skip_layers,
        download=settings.download,
        train_encoder=settings.train_encoder,
        train_encoder_from=settings.train_encoder_from,
        train_encoder_batch_norm=settings.train_encoder_batch_norm,
        decoder=settings.decoder,
        precision=settings.precision,
        seed=settings.seed,
    )


def data_dir(settings: config.Config) -> str | None:
    """Returns where a run's data set is; nothing for the bundled sample."""
    return dataset.PUBLIC_DIR if settings.try_gcs else settings.data_dir


def open_dataset(settings: config.Config, *, download: bool = False) -> dataset.Dataset:
    """Returns the data set of a run's settings, its splits as the run takes them.

    Args:
        settings: Of the run.
        download: Whether it may be fetched into its data_dir.

    Raises:
        ValueError: If it is not there, or not what the settings say.
    """
    return dataset.open_dataset(
        settings.dataset,
        data_dir=data_dir(settings),
        download=download and settings.data_dir is not None,
        image_feature=settings.image_feature,
        mask_feature=settings.mask_feature,
        mask_offset=settings.mask_offset,
        class_names=settings.class_names,
        ignore_id=settings.ignore_id,
        train_split=settings.train_split,
        val_split=settings.val_split,
        test_split=settings.test_split,
        val_fraction=settings.val_fraction,
        limit_train_examples=settings.limit_train_examples,
        limit_eval_examples=settings.limit_eval_examples,
    )


def load(job_dir: str, which: str = "best") -> Trained:
    """Returns the model of a run.

    Args:
        job_dir: Of the run, local or gs://; it may still be under way.
        which: "best", the checkpoint that validation chose, or "latest".

    Raises:
        ValueError: If there is no run, none of its checkpoints yet, or a damaged one.
    """
    written = files.read_json(os.path.join(job_dir, "config.json"))
    if written.get("program") != run_files.PROGRAM or "settings" not in written:
        raise ValueError(
            f"job_dir must hold a run, got {job_dir} without a config.json of one; "
            "train first: python -m trainer.task --job_dir=..."
        )
    settings = config.from_dict(written["settings"])
    directory = checkpoint_folder.directory_of(job_dir, written)
    saved = checkpoint_folder.pointed(directory, which, checkpoint.load_judged)
    if saved is None:
        raise ValueError(
            f"job_dir must hold a checkpoint, got {job_dir}, whose {directory} has none "
            "yet; wait for the first evaluation, or go on with the run"
        )
    names = tuple(saved.state["class_names"])
    unet = build(settings, len(names))
    checkpoint.assign(saved.arrays, checkpoint.named_variables(unet))
    step = saved.state["step"]
    # An evaluation that came after the save is among the rows only.
    judged = [e for e in saved.state["evaluations"] if e["step"] == step] or [
        {name: value for name, value in row.items() if name != "kind"}
        for row in run_files.read_rows(job_dir, step)
        if (row["kind"], row["step"]) == ("eval", step)
    ]
    return Trained(
        model=unet,
        settings=settings,
        class_names=names,
        checkpoint=os.path.join(directory, f"{saved.name}.npz"),
        step=step,
        validation=judged[-1] if judged else {},
        examples=tuple(saved.state["examples"]),
    )
