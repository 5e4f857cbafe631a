"""Measures what each encoder costs: parameters, and images/s of a training step.

    python -m benchmarks.encoders

All in one process, in turns: a step of each, then the next round. Encoders are frozen,
with random weights: what they are does not change the time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

from benchmarks import machine
from trainer.command import set_up_tensorflow


def step_of(name: str, batch_size: int, image_size: int) -> tuple[Callable, int, int]:
    """Returns what takes a training step, the parameters of the model, those trained.

    Args:
        name: Of the encoder.
        batch_size: N.
        image_size: S.
    """
    import numpy as np

    from benchmarks import step_tensorflow
    from trainer import model

    unet = model.build_unet(
        image_size=image_size, num_classes=3, encoder=name, encoder_weights="none"
    )
    image, mask = step_tensorflow.batch(batch_size, image_size)
    take = step_tensorflow.train_steps(unet, image, mask)
    trained = sum(int(np.prod(v.shape)) for v in unet.trainable_variables)
    return take, unet.count_params(), trained


def measure(
    names: list[str], rounds: int, steps: int, batch_size: int, image_size: int
) -> dict[str, dict]:
    """Returns each encoder's parameters and images/s, and these over the first one's.

    Args:
        names: Of the encoders.
        rounds: Turns of each; one more, before, is not counted.
        steps: In a turn.
        batch_size: N.
        image_size: S.
    """
    made = {name: step_of(name, batch_size, image_size) for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name, (take, _, _) in made.items():
            began = time.monotonic()
            take(steps)
            if turn:
                seconds = time.monotonic() - began
                rates[name].append(steps * batch_size / seconds)
    first = rates[names[0]]
    return {
        name: {
            "parameters": made[name][1],
            "trained_parameters": made[name][2],
            "images_per_second": rates[name],
            "over_the_first": statistics.median(
                ours / theirs for ours, theirs in zip(rates[name], first, strict=True)
            ),
        }
        for name in names
    }


def main() -> None:
    """Measures, prints the table, writes encoders.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="turns of each encoder")
    add("--steps", type=int, default=3, help="of a turn")
    add("--batch_size", type=int, default=16)
    add("--image_size", type=int, default=128)
    args = parser.parse_args()
    set_up_tensorflow()
    from trainer import encoders

    found = measure(list(encoders.NAMES), **vars(args))
    summary = {
        "machine": machine.facts(),
        "command": "python -m benchmarks.encoders",
        "settings": vars(args),
        "encoders": found,
    }
    path = machine.RESULTS / "encoders.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for name, row in found.items():
        rate = statistics.median(row["images_per_second"])
        print(
            f"{name:20} {row['parameters'] / 1e6:5.1f} million parameters "
            f"{rate:6.1f} images/s {row['over_the_first']:5.2f}"
        )


if __name__ == "__main__":
    main()
