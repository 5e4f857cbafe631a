"""The tutorial's U-Net in PyTorch, to measure against: MobileNetV2 and its decoder.

Keras pads an even side at its end for a stride of 2, PyTorch at its start: the same
network on images turned by 180 degrees, with kernels turned likewise. So neither copies
of padded images nor cuts are needed, and this is what one would write in PyTorch.

Letters: N images in a batch, S side of an image in pixels, C classes.
"""

import numpy as np
import torch
from torch import nn

from benchmarks import flops

EPSILON = 1e-3  # As in Keras' BatchNorm and MobileNetV2; momentum is 1 less theirs.
ENCODER_MOMENTUM = 1e-3
DECODER_MOMENTUM = 1e-2


def conv_norm(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Returns convolution and BatchNorm of the encoder."""
    return [
        nn.Conv2d(
            *(channels, out, kernel, stride),
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out, EPSILON, ENCODER_MOMENTUM),
    ]


class Block(nn.Module):
    """An inverted residual block: what it expands to may be tapped."""

    def __init__(
        self, channels: int, expansion: int, out: int, stride: int, last: bool
    ) -> None:
        super().__init__()
        wide = channels * expansion
        relu = nn.ReLU6(inplace=True)
        expand = [*conv_norm(channels, wide, 1), relu] if expansion > 1 else []
        self.expand = nn.Sequential(*expand)
        project = conv_norm(wide, out, 1)
        self.project = nn.Sequential(
            *(*conv_norm(wide, wide, 3, stride, groups=wide), relu),
            *(project[:1] if last else project),  # The tutorial taps the convolution.
        )
        self.residual = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what it expands to, and its output."""
        wide = self.expand(x)
        out = self.project(wide)
        return wide, x + out if self.residual else out


class Encoder(nn.Module):
    """MobileNetV2 of alpha 1, tapped as in the tutorial."""

    def __init__(self) -> None:
        super().__init__()
        channels = flops.FIRST_CHANNELS
        self.first = nn.Sequential(
            *conv_norm(3, channels, 3, stride=2), nn.ReLU6(inplace=True)
        )
        blocks = []
        for index, (expansion, out, stride) in enumerate(flops.BLOCKS):
            last = index == len(flops.BLOCKS) - 1
            blocks.append(Block(channels, expansion, out, stride, last))
            channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns the skips at S/2 to S/16 and the bottleneck at S/32."""
        taps = []
        x = self.first(x)
        for block, (_, _, stride) in zip(self.blocks, flops.BLOCKS, strict=True):
            wide, x = block(x)
            if stride == 2:
                taps.append(wide)
        return [*taps, x]


def up_conv(channels: int, out: int, bias: bool) -> nn.Module:
    """Returns the transposed convolution that doubles the side."""
    return nn.ConvTranspose2d(
        *(channels, out, 3), stride=2, padding=1, output_padding=1, bias=bias
    )


class UNet(nn.Module):
    """Image (N, 3, S, S) uint8 -> logits (N, C, S, S)."""

    def __init__(self, num_classes: int, train_encoder: bool) -> None:
        super().__init__()
        self.train_encoder = train_encoder
        self.encoder = Encoder()
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(train_encoder and parameter.ndim == 4)  # Kernels.
        *inner, last = map(sum, flops.decoder_channels())
        self.ups = nn.ModuleList(
            nn.Sequential(
                up_conv(channels, width, bias=False),
                nn.BatchNorm2d(width, EPSILON, DECODER_MOMENTUM),
                nn.ReLU(inplace=True),
            )
            for channels, width in zip(inner, flops.WIDTHS, strict=True)
        )
        self.logits = up_conv(last, num_classes, bias=True)

    def train(self, mode: bool = True) -> "UNet":
        """Sets the mode; the encoder's BatchNorm stays in inference mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = image.float() / 127.5 - 1
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            *skips, x = self.encoder(x)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = torch.cat([up(x), skip], dim=1)
        return self.logits(x)


def load(network: UNet, weights: list[np.ndarray]) -> None:
    """Gives the network the weights of a Keras model, in that one's order.

    Args:
        network: Gets them.
        weights: Of each layer: kernel and bias; or gamma, beta, mean, variance.

    Raises:
        ValueError: If they are not as many, or of other shapes.
    """
    targets: list[torch.Tensor] = []
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            targets += [layer.weight, layer.bias, layer.running_mean, layer.running_var]
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            targets += [layer.weight] if layer.bias is None else layer.parameters()
    with torch.no_grad():
        for target, value in zip(targets, weights, strict=True):
            if value.ndim == 4:
                # (3, 3, out, in), or (3, 3, channels, 1) of a depthwise one; turned.
                depthwise = tuple(target.shape[:2]) == value.shape[2:] != (1, 1)
                value = value[::-1, ::-1].transpose(
                    (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                )
            if tuple(target.shape) != value.shape:
                raise ValueError(f"expected {tuple(target.shape)}, got {value.shape}")
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
