"""Fits the confidence of a model folder on generated scenes from validation items, and writes it into the manifest.

    python training/calibrate.py --models models --data ../shared/data
    python training/calibrate.py --models small --data None --clips.shards shards

Runs the localizer itself on scenes with one and two sounding objects and on negatives, collects the candidate regions
of every round with their features (avssl_ros/fusion.py: explain) and whether they lie on an object that sounds, and
fits the conditional logit of which of them makes the sound, if any: for whole windows, and for streams, which ask what
sounds now, in the last moment. Test items take no part.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.optimize import minimize
from tqdm import trange

from avssl_ros import Localizer, features, fusion
from avssl_ros.geometry import angle_between
from avssl_ros.localizer import RECENT_SECONDS
from training.clip_collection import ClipsConfig
from training.data import read_concepts
from training.scenes import Scene, open_scenes

RIGHT_WITHIN = np.radians(20)
ROUNDS = 4  # of a scene that are learned from: later ones hold nothing right
BEGUN_SECONDS = 0.3, 1.5  # how long ago a sound began, for the confidence of streams
CONFUSING = ("recorded background", "offscreen sound")  # the negatives in which something is heard that has a name


@dataclass(frozen=True)
class CalibrateConfig:
    """What to calibrate, on how many scenes."""

    models: Path = Path("models")
    data: Path | None = Path("../shared/data")  # folder with photos/, sounds/ and panoramas/; None: clips alone
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    split: str = "validation"  # whose items scenes are made of; test items take no part
    visible: int = 4  # objects in a scene
    least_photos: int = 3  # a concept needs to take part
    least_sounds: int = 1
    scenes: int = 300  # with sounding objects; as many negatives share half of that
    seed: int = 10
    source_publish: float = 0.3  # smallest confidence that `localize` reports
    unseen_publish: float = 0.5


def candidates(localizer: Localizer, scene: Scene, recent: float | None = None) -> tuple[list, list]:
    """For each round of one scene the features and rightness of its candidates, and those of each sound's name."""
    views, surface = localizer.cut(scene.image, "equirectangular")
    clusters = localizer.hear(scene.sound, recent)
    if not clusters:
        return [], []
    visual = localizer.encoders.visual(views).reshape(-1, localizer.encoders.dimensions)
    truth = {placed.concept for placed in scene.sounding} | {scene.offscreen}
    concepts = [concept.name for concept in read_concepts()]
    groups, names, found_before = [], [], set()
    rounds = fusion.explain(visual, clusters, localizer.prototypes, surface, localizer.made_by)
    for _, found in islice(rounds, ROUNDS):
        at = [{index for index, placed in enumerate(scene.sounding) if _angle(c.region, placed) <= RIGHT_WITHIN}
              for c in found]
        groups.append((np.stack([c.features for c in found]), np.array([bool(hit - found_before) for hit in at])))
        found_before |= at[0]
    for sound in clusters:
        names.append((fusion.unseen_features(sound)[None], np.array([concepts[int(sound.concepts.argmax())] in truth])))
    return groups, names


def just_begun(rng: np.random.Generator, scene: Scene, before: Scene) -> Scene:
    """The scene as a stream meets it: its sound began a moment ago, after silence or what sounded in another scene."""
    seconds = rng.uniform(*BEGUN_SECONDS)
    begun = min(round(seconds * features.SAMPLE_RATE), len(scene.sound))
    start = rng.integers(len(scene.sound) - begun + 1)
    earlier = before.sound[:len(scene.sound) - begun] * float(rng.random() < 0.5)
    return replace(scene, sound=np.concatenate([earlier, scene.sound[start:start + begun]]))


def _angle(region, placed) -> float:
    return float(angle_between(region.azimuth, region.elevation, placed.azimuth, placed.elevation))


def fit(groups: list[tuple[np.ndarray, np.ndarray]], ridge: float = 1e-3) -> dict:
    """Bias and weights of the conditional logit (fusion.confidences) by maximum likelihood.

    Args:
        groups: for each round the features (n, F) of its candidates and whether each is right (n,); none may be.
        ridge: weight of the squared weights of standardised features.
    """
    rows = np.concatenate([values for values, _ in groups])
    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    rows, right = (rows - mean) / deviation, np.concatenate([right for _, right in groups])
    group = np.repeat(np.arange(len(groups)), [len(values) for values, _ in groups])
    none = np.bincount(group, right) == 0  # in these groups nothing is right

    def loss(parameters: np.ndarray) -> float:
        odds = np.exp(np.clip(parameters[0] + rows @ parameters[1:], -30.0, 30.0))
        chosen = np.where(none, 1.0, np.bincount(group, odds * right))
        likelihood = chosen / (1.0 + np.bincount(group, odds))
        return -float(np.log(likelihood).mean()) + ridge * float(np.square(parameters[1:]).sum())

    fitted = minimize(loss, np.zeros(rows.shape[1] + 1), method="L-BFGS-B").x
    weights = fitted[1:] / deviation
    bias = fitted[0] - float(weights @ mean)
    return {"bias": round(float(bias), 5), "weights": [round(float(w), 5) for w in weights]}


def calibrate(config: CalibrateConfig) -> dict:
    """Fits and writes the decision part of the manifest; returns it."""
    localizer = Localizer(config.models)
    generator = open_scenes(config.data, config.split, config.seed, config.clips, config.visible, config.least_photos,
                            config.least_sounds)
    groups, moments, names, before = [], [], [], None
    rng = np.random.default_rng(config.seed)
    for index in trange(config.scenes * 3 // 2, unit="scene", mininterval=5.0):
        if index < config.scenes:
            scene = generator.scene(index, sounding=1 + index % 3 // 2)
        else:
            scene = generator.negative(index, CONFUSING[index % len(CONFUSING)])
        new_groups, new_names = candidates(localizer, scene)
        groups += new_groups
        names += new_names
        moments += candidates(localizer, just_begun(rng, scene, before or scene), RECENT_SECONDS)[0]
        before = scene
    generator.collection.close()
    if not groups:
        raise ValueError(f"in none of {len(names)} sounds was anything found to calibrate on: the model says nothing "
                         "yet; train it longer, or try more scenes")
    path = config.models / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decision"] |= {"source": fit(groups), "stream": fit(moments or groups), "unseen": fit(names),
                             "publish": config.source_publish, "publish_unseen": config.unseen_publish}
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    findable, named = (np.mean([right.any() for _, right in parts]) for parts in (groups, names))
    print(f"{len(groups)} rounds, {findable:.0%} with a right candidate; {named:.0%} of {len(names)} named right")
    return manifest["decision"]


if __name__ == "__main__":
    import tyro

    print(json.dumps(calibrate(tyro.cli(CalibrateConfig)), indent=1))
