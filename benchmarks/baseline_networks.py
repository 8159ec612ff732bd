"""The networks of EZ-VSL and DenseAV with random weights, as ONNX files: what benchmarks/latency.py runs beside ours.

    python benchmarks/baseline_networks.py FOLDER

Random weights do for speed: the arithmetic is the same. A file has a fixed batch of four views, as fast as it can be
had. Of DenseAV only the image network is built; its audio network is a HuBERT-base of some 95 M parameters.

References: ResNet-18, He et al. 2016 (11.2 M parameters without its classifier); EZ-VSL, Mo and Morgado 2022; vision
transformer, Dosovitskiy et al. 2021; ViT-S/8 as in DINO, Caron et al. 2021 (21.7 M parameters); DenseAV, Hamilton et
al. 2024.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

VIEWS, SIZE = 4, 224
SPECTROGRAM = (257, 200)  # of EZ-VSL: 3 s at 16 kHz, shorter sounds are repeated


class Residual(nn.Module):
    """The basic block of two 3x3 convolutions of ResNet-18."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        return functional.relu(self.branch(x) + self.shortcut(x))


def resnet18(channels_in: int = 3) -> nn.Sequential:
    """ResNet-18 up to its last feature map: (N, channels_in, H, W) to (N, 512, H / 32, W / 32)."""
    layers = [nn.Conv2d(channels_in, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for channels in (64, 128, 256, 512):
        layers += [Residual(before, channels, 1 if channels == 64 else 2), Residual(channels, channels, 1)]
        before = channels
    return nn.Sequential(*layers)


class EzVsl(nn.Module):
    """Two ResNet-18 with projections to 512 dimensions: images and one sound to maps of their cosines.

    (N, 3, 224, 224) and (1, 1, 257, 200) to (N, 7, 7).
    """

    def __init__(self, dimensions: int = 512):
        super().__init__()
        self.image, self.image_projection = resnet18(3), nn.Conv2d(512, dimensions, 1)
        self.audio, self.audio_projection = resnet18(1), nn.Linear(512, dimensions)

    def forward(self, image, spectrogram):
        seen = functional.normalize(self.image_projection(self.image(image)), dim=1)
        heard = functional.normalize(self.audio_projection(self.audio(spectrogram).amax((2, 3))), dim=1)
        return (seen * heard[:, :, None, None]).sum(dim=1)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, T, D)."""

    def __init__(self, dimensions: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dimensions, 3 * dimensions), nn.Linear(dimensions, dimensions)

    def forward(self, x):
        count, tokens, dimensions = x.shape
        query, key, value = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weight = (query @ key.transpose(-2, -1) * (dimensions // self.heads) ** -0.5).softmax(dim=-1)
        return self.out((weight @ value).transpose(1, 2).reshape(count, tokens, dimensions))


class TransformerBlock(nn.Module):
    """Attention and perceptron, each with the layer norm before it and a residual around it."""

    def __init__(self, dimensions: int, heads: int):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(dimensions), Attention(dimensions, heads))
        self.perceptron = nn.Sequential(nn.LayerNorm(dimensions), nn.Linear(dimensions, 4 * dimensions), nn.GELU(),
                                        nn.Linear(4 * dimensions, dimensions))  # fmt: skip

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.perceptron(x)


class VitSmall8(nn.Module):
    """ViT-S/8: images (N, 3, 224, 224) to 28 x 28 patch features (N, 784, 384), as DenseAV takes them from DINO."""

    def __init__(self, dimensions: int = 384, depth: int = 12, heads: int = 6, patch: int = 8):
        super().__init__()
        self.embed = nn.Conv2d(3, dimensions, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dimensions))
        self.position = nn.Parameter(torch.randn(1, (SIZE // patch) ** 2 + 1, dimensions))
        self.blocks = nn.Sequential(*(TransformerBlock(dimensions, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dimensions)

    def forward(self, image):
        patches = self.embed(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(image), -1, -1), patches], dim=1) + self.position
        return self.norm(self.blocks(tokens))[:, 1:]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def networks() -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...], list[str]]]:
    """By file name: the network, an example of its inputs, and their names."""
    torch.manual_seed(0)
    views = torch.randn(VIEWS, 3, SIZE, SIZE)
    return {"ezvsl": (EzVsl().eval(), (views, torch.randn(1, 1, *SPECTROGRAM)), ["image", "spectrogram"]),
            "denseav_image": (VitSmall8().eval(), (views,), ["image"])}  # fmt: skip


def export(folder: Path) -> None:
    """Writes the ONNX files into a folder, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (network, example, inputs) in networks().items():
        partial = folder / f"{name}.partial"
        torch.onnx.export(network, example, str(partial), input_names=inputs, output_names=["out"],
                          opset_version=17, dynamo=False)  # fmt: skip
        os.replace(partial, folder / f"{name}.onnx")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python {sys.argv[0]} FOLDER")
    export(Path(sys.argv[1]))
