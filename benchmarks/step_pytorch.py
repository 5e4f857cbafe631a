"""The half of `benchmarks.step` that runs in the environment of PyTorch.

    .venv-torch/bin/python -m benchmarks.step_pytorch

Letters: N images in a batch, S side of an image in pixels, C classes.
"""

import functools
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import pytorch, turns

LEARNING_RATE = 1e-3
ADAM_EPSILON = 1e-7  # As in Keras.


def network(path: str, train_encoder: bool) -> pytorch.UNet:
    """Returns the network with the weights of the file that TensorFlow wrote."""
    with np.load(path) as kept:
        made = pytorch.UNet(kept["logits"].shape[-1], train_encoder)
        pytorch.load(
            made, [kept[name] for name in kept.files if name.startswith("weight")]
        )
    return made


def examples(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the file's image (N, 3, S, S) uint8 and mask (N, S, S) int64, turned."""
    with np.load(path) as kept:
        image = np.ascontiguousarray(kept["image"][:, ::-1, ::-1].transpose(0, 3, 1, 2))
        mask = kept["mask"][:, ::-1, ::-1].astype(np.int64)
    return torch.from_numpy(image), torch.from_numpy(mask)


def check(path: str) -> tuple[int, float]:
    """Returns the number of parameters, and the largest difference of the logits.

    The latter over the largest of TensorFlow's.
    """
    unet = network(path, train_encoder=False).eval()
    with torch.no_grad():
        logits = unet(examples(path)[0]).permute(0, 2, 3, 1).numpy()[:, ::-1, ::-1]
    with np.load(path) as kept:
        theirs = kept["logits"]
    # Each BatchNorm counts its batches in one more number, which Keras' does not.
    tensors = [x for x in unet.state_dict().values() if x.ndim]
    difference = np.abs(logits - theirs).max() / np.abs(theirs).max()
    return sum(x.numel() for x in tensors), float(difference)


def training(
    path: str, train_encoder: bool, precision: str, channels_last: bool, compiled: bool
) -> Callable[[int], tuple[float, float]]:
    """Returns a turn: takes steps with the same batch, returns seconds and last loss.

    Args:
        path: Of the file that TensorFlow wrote.
        train_encoder: Whether the encoder's kernels are trained.
        precision: "float32" or "bfloat16", which is autocast.
        channels_last: Whether channels are the innermost in memory.
        compiled: Whether forward and backward are compiled.
    """
    unet = network(path, train_encoder).train()
    image, mask = examples(path)
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
        image = image.to(memory_format=torch.channels_last)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, LEARNING_RATE, eps=ADAM_EPSILON, fused=True)

    def loss_of(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = unet(image)
        return torch.nn.functional.cross_entropy(logits.float(), mask)

    forward = torch.compile(loss_of) if compiled else loss_of

    def turn(steps: int) -> tuple[float, float]:
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = forward(image, mask)
            loss.backward()
            optimizer.step()
        last = loss.item()
        return time.perf_counter() - began, last

    return turn


def main() -> None:
    """Serves the turns of `benchmarks.step`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    made = functools.cache(training)
    turns.serve(
        {
            "version": lambda: torch.__version__,
            "check": check,
            "turn": lambda *case: made(*case[:-1])(case[-1]),
        }
    )


if __name__ == "__main__":
    main()
