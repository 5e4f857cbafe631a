"""Counts the arithmetic that a training step of the tutorial's U-Net cannot do without.

From the shapes of its convolutions alone: two FLOPs for each multiplication with its
addition. Normalisation, activations and the optimizer are left out; they cost memory
traffic, not arithmetic. Needs no library.

Letters: S side of an image in pixels, C classes.
"""

from typing import NamedTuple

# MobileNetV2 of alpha 1, up to its last block: expansion, channels, stride of each. What
# a block of stride 2 expands to is a skip. Source: Sandler et al. 2018, arXiv:1801.04381,
# table 2.
BLOCKS = (
    (1, 16, 1),
    *((6, 24, 2), (6, 24, 1)),
    *((6, 32, 2), (6, 32, 1), (6, 32, 1)),
    *((6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1)),
    *((6, 96, 1), (6, 96, 1), (6, 96, 1)),
    *((6, 160, 2), (6, 160, 1), (6, 160, 1)),
    (6, 320, 1),
)
FIRST_CHANNELS = 32
WIDTHS = (512, 256, 128, 64)  # Of the tutorial's decoder, from S/16 to S/2.


class Convolution(NamedTuple):
    """A convolution of one image; of concatenated inputs, each has its own count."""

    name: str
    macs: tuple[int, ...]  # Multiplications of each input with its part of the kernel.
    trained: bool  # Whether the kernel is.
    behind: tuple[bool, ...]  # Whether something trained lies behind each input.


def encoder(image_size: int, trained: bool) -> list[Convolution]:
    """Returns the convolutions of MobileNetV2.

    Args:
        image_size: S.
        trained: Whether its kernels are.
    """
    side = image_size // 2
    channels = FIRST_CHANNELS
    first = side**2 * 9 * 3 * channels
    # Behind the first lies nothing but the image.
    found = [Convolution("first", (first,), trained, (False,))]

    def add(name: str, macs: int) -> None:
        found.append(Convolution(name, (macs,), trained, (trained,)))

    for index, (expansion, out, stride) in enumerate(BLOCKS):
        wide = channels * expansion
        if expansion > 1:
            add(f"block {index} expand", side**2 * channels * wide)
        side //= stride
        add(f"block {index} depthwise", side**2 * 9 * wide)
        add(f"block {index} project", side**2 * wide * out)
        channels = out
    return found


def decoder_channels() -> list[tuple[int, ...]]:
    """Returns those of the inputs at each scale, S/32 first: the features, the skip."""
    before = [FIRST_CHANNELS, *(out for _, out, _ in BLOCKS[:-1])]
    skips = [
        channels * expansion
        for channels, (expansion, _, stride) in zip(before, BLOCKS, strict=True)
        if stride == 2
    ]
    return [(BLOCKS[-1][1],), *zip(WIDTHS, reversed(skips), strict=True)]


def decoder(
    image_size: int, num_classes: int, train_encoder: bool
) -> list[Convolution]:
    """Returns the transposed convolutions of the tutorial's decoder, which is trained.

    3x3 of stride 2: nine multiplications for each input pixel and pair of channels, those
    that SAME cuts off at the border among them.

    Args:
        image_size: S.
        num_classes: C.
        train_encoder: Whether something trained lies behind the skips.
    """
    found = []
    side = image_size // 32
    outs = (*WIDTHS, num_classes)
    for scale, (inputs, out) in enumerate(zip(decoder_channels(), outs, strict=True)):
        macs = tuple(side**2 * 9 * channels * out for channels in inputs)
        behind = (scale > 0 or train_encoder, train_encoder)[: len(inputs)]
        found.append(Convolution(f"up {out}", macs, True, behind))
        side *= 2
    return found


def needed(convolutions: list[Convolution]) -> int:
    """Returns the FLOPs of one image: forward, to trained kernels, to inputs.

    The gradient of a kernel costs as much as the convolution, that of an input as much as
    its part of it; the latter is needed only where something trained lies behind.
    """
    macs = 0
    for one in convolutions:
        forward = sum(one.macs)
        macs += forward + (forward if one.trained else 0)
        macs += sum(n for n, behind in zip(one.macs, one.behind, strict=True) if behind)
    return 2 * macs


def of_step(
    batch_size: int, image_size: int, num_classes: int, train_encoder: bool
) -> int:
    """Returns the FLOPs that a training step of the tutorial's U-Net needs.

    Args:
        batch_size: Images.
        image_size: S.
        num_classes: C.
        train_encoder: Whether the encoder's kernels are trained.
    """
    return batch_size * needed(
        encoder(image_size, train_encoder)
        + decoder(image_size, num_classes, train_encoder)
    )
