"""Fits the confidence of a model folder on generated scenes from validation items, and writes it into the manifest.

    python training/calibrate.py --models models --data ../shared/data

Runs the localizer itself on scenes with one and two sounding objects and on negatives, collects every candidate region
with its features (avssl_ros/fusion.py: candidates) and whether it lies on an object of that sound, and fits a logistic
regression. Test items take no part.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from sklearn.linear_model import LogisticRegression
from tqdm import trange

from avssl_ros import Localizer, fusion
from avssl_ros.geometry import angle_between
from training.data import read_concepts, read_items
from training.mixing import Collection
from training.scenes import NEGATIVES, Scene, SceneGenerator

RIGHT_WITHIN = np.radians(20)


@dataclass(frozen=True)
class CalibrateConfig:
    """What to calibrate, on how many scenes."""

    models: Path = Path("models")
    data: Path = Path("../shared/data")
    scenes: int = 300  # with sounding objects; as many negatives share half of that
    seed: int = 10
    source_publish: float = 0.3  # smallest confidence that `localize` reports
    unseen_publish: float = 0.5


def candidates(localizer: Localizer, scene: Scene) -> tuple[list, list, list, list]:
    """Features and rightness of all source candidates, and of all names of sounds, in one scene."""
    views, surface = localizer.cut(scene.image, "equirectangular")
    heard = localizer.hear(scene.sound, views, None)
    rows, right, name_rows, name_right = [], [], [], []
    if heard is None:
        return rows, right, name_rows, name_right
    clusters, visual = heard
    truth = {placed.concept for placed in scene.sounding} | {scene.offscreen}
    concepts = [concept.name for concept in read_concepts()]
    for sound in clusters:
        _, regions, features_of = fusion.candidates(visual, sound, surface)
        rows += list(features_of)
        right += [any(_angle(region, placed) <= RIGHT_WITHIN for placed in scene.sounding) for region in regions]
        closeness = localizer.prototypes @ sound.sound
        name_rows.append([sound.gate * float(closeness.max())])
        name_right.append(concepts[int(closeness.argmax())] in truth)
    return rows, right, name_rows, name_right


def _angle(region, placed) -> float:
    return float(angle_between(region.azimuth, region.elevation, placed.azimuth, placed.elevation))


def fit(rows: list, right: list) -> dict:
    """Bias and weights of a logistic regression."""
    model = LogisticRegression(C=10.0, max_iter=1000).fit(np.asarray(rows), np.asarray(right))
    return {"bias": round(float(model.intercept_[0]), 5), "weights": [round(float(w), 5) for w in model.coef_[0]]}


def calibrate(config: CalibrateConfig) -> dict:
    """Fits and writes the decision part of the manifest; returns it."""
    localizer = Localizer(config.models)
    collection = Collection(read_items(split="validation"), config.data, read_concepts(), Path("cache/sounds-validation.npz"))
    generator = SceneGenerator(collection, config.seed, least_photos=3, least_sounds=1)
    found = [[], [], [], []]
    for index in trange(config.scenes * 3 // 2, unit="scene", mininterval=5.0):
        if index < config.scenes:
            scene = generator.scene(index, sounding=1 + index % 3 // 2)
        else:
            scene = generator.negative(index, NEGATIVES[index % len(NEGATIVES)])
        for collected, new in zip(found, candidates(localizer, scene)):
            collected.extend(new)
    rows, right, name_rows, name_right = found
    path = config.models / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decision"] |= {"source": fit(rows, right), "unseen": fit(name_rows, name_right),
                             "publish": config.source_publish, "publish_unseen": config.unseen_publish}
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{len(rows)} candidates, {np.mean(right):.0%} right; {len(name_rows)} names, {np.mean(name_right):.0%} right")
    return manifest["decision"]


if __name__ == "__main__":
    import tyro

    print(json.dumps(calibrate(tyro.cli(CalibrateConfig)), indent=1))
