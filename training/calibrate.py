"""Fits the confidence of a model folder on generated scenes from validation items, and writes it into the manifest.

    python training/calibrate.py --models models --data ../shared/data
    python training/calibrate.py --models small --data None --clips.shards shards

Runs the localizer itself on scenes with one and two sounding objects and on negatives, collects the candidate regions
of every round with their features (avssl_ros/fusion.py: explain) and whether they lie on an object that sounds, and
fits the conditional logit of which of them makes the sound, if any. For streams, which ask what sounds now, in the last
moment, a second one is fitted to the moments of timelines, before quiet and loud backgrounds. Test items take no part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.optimize import minimize
from tqdm import trange

from avssl_ros import Localizer, features, fusion
from avssl_ros.clustering import NEUTRAL_DECISION, Cluster
from avssl_ros.geometry import angle_between
from avssl_ros.localizer import RECENT_SECONDS, CloserLook
from training.clip_collection import ClipsConfig, concept_called
from training.data import read_concepts
from training.evaluate import StillSight
from training.files import as_json, write_whole
from training.scenes import TIMELINE_SECONDS, PlacedObject, Scene, Timeline, open_scenes

RIGHT_WITHIN = np.radians(20)
ROUNDS = 4  # of a scene that are learned from: later ones hold nothing right
MOMENT_STEP = 0.1  # seconds between two moments of a timeline
BACKGROUND_DB = -65.0, -25.0  # of timelines; what sounds in them has -26 to -18
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
    timelines: int = 100  # for the confidence of streams
    seed: int = 10
    source_publish: float = 0.3  # smallest confidence that `localize` reports
    unseen_publish: float = 0.5


Rounds = list[tuple[np.ndarray, np.ndarray]]  # of each the features (n, F) of its candidates, and which are right (n,)


def candidates(localizer: Localizer, visual: np.ndarray, clusters: list[Cluster], surface: fusion.Surface,
               sounding: Sequence[PlacedObject], closer: CloserLook | None = None) -> Rounds:  # fmt: skip
    """The candidates of each round for what is heard, of which those are right that lie on something of `sounding`.

    Args:
        visual: (P, D) embeddings of the patches of all views.
        closer: aimed at the likeliest of them.
    """
    rounds, found_before = [], set()
    explained = fusion.explain(visual, clusters, localizer.prototypes, surface, localizer.made_by)
    for _, found in islice(explained, ROUNDS):
        if closer and not rounds:
            closer.aim(found[0].region.azimuth)
        at = [{index for index, placed in enumerate(sounding) if _angle(c.region, placed) <= RIGHT_WITHIN}
              for c in found]
        rounds.append((np.stack([c.features for c in found]), np.array([bool(hit - found_before) for hit in at])))
        found_before |= at[0]
    return rounds


def whole_window(localizer: Localizer, scene: Scene) -> tuple[Rounds, Rounds]:
    """Candidates of one scene, and features of the name of each of its sounds and whether it is right.

    Names that are of no concept, as "sound 3", are neither right nor wrong, nor are any where what sounds has no name.
    """
    clusters = localizer.hear(scene.sound)
    if not clusters:
        return [], []
    visual, surface = localizer.look_closer(scene.image, clusters, *_look(localizer, scene.image))
    found = candidates(localizer, visual, clusters, surface, scene.sounding)
    truth = {placed.concept for placed in scene.sounding} | ({scene.offscreen} - {None})
    if truth - {concept.name for concept in read_concepts()}:
        return found, []
    named = [concept_called(localizer.labels[int(sound.concepts.argmax())]) for sound in clusters]
    return found, [(fusion.unseen_features(sound)[None], np.array([name in truth]))
                   for sound, name in zip(clusters, named) if name is not None]


def moments(localizer: Localizer, timeline: Timeline) -> Rounds:
    """Candidates of the moments of a timeline as a stream meets them.

    What sounds for half of RECENT_SECONDS or longer is right; moments in which something begins or ends within them and
    sounds for less are left out.
    """
    closer, seen = CloserLook(), {}
    rounds, window = [], int(localizer.window_seconds * features.SAMPLE_RATE)
    for time in np.arange(RECENT_SECONDS, TIMELINE_SECONDS, MOMENT_STEP):
        shares = [(s, (min(s.end, time) - max(s.start, time - RECENT_SECONDS)) / RECENT_SECONDS)
                  for s in timeline.soundings]  # fmt: skip
        if any(0 < share < 0.5 for _, share in shares):
            continue
        end = int(time * features.SAMPLE_RATE)
        clusters = localizer.hear(timeline.sound[max(0, end - window):end], RECENT_SECONDS)
        if not clusters:
            closer.forget()
            continue
        if closer.azimuths not in seen:
            seen[closer.azimuths] = _look(localizer, timeline.image, closer.azimuths)
        visual, surface = seen[closer.azimuths]
        sounding = [timeline.objects[s.placed] for s, share in shares if share >= 0.5 and s.placed is not None]
        rounds += candidates(localizer, visual, clusters, surface, sounding, closer)
    return rounds


def _look(localizer: Localizer, image: np.ndarray, closer: tuple[float, ...] = ()) -> tuple[np.ndarray, fusion.Surface]:
    views, surface = localizer.cut(image, "equirectangular", closer)
    return localizer.encoders.visual(views).reshape(-1, localizer.encoders.dimensions), surface


def _angle(region, placed) -> float:
    return float(angle_between(region.azimuth, region.elevation, placed.azimuth, placed.elevation))


def fit(groups: Rounds, ridge: float = 1e-3) -> dict:
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


def fit_names(names: Rounds) -> dict:
    """As `fit`, of names. Neutral where none is right: the fit would never say again what is heard out of view."""
    if any(right.any() for _, right in names):
        return fit(names)
    print(f"{len(names)} names of sounds could be judged, none is right: what is heard but not in view gets the "
          "neutral confidence")
    return NEUTRAL_DECISION["unseen"]


def calibrate(config: CalibrateConfig) -> dict:
    """Fits and writes the decision part of the manifest; returns it."""
    localizer = Localizer(config.models)
    generator = open_scenes(config.data, config.split, config.seed, config.clips, config.visible, config.least_photos,
                            config.least_sounds)
    groups, names, of_streams = [], [], []
    for index in trange(config.scenes * 3 // 2, unit="scene", mininterval=5.0):
        if index < config.scenes:
            scene = generator.scene(index, sounding=1 + index % 3 // 2)
        else:
            scene = generator.negative(index, CONFUSING[index % len(CONFUSING)])
        new_groups, new_names = whole_window(localizer, scene)
        groups += new_groups
        names += new_names
    localizer.encoders = StillSight(localizer.encoders)
    if generator.has_timelines:
        for index in trange(config.timelines, unit="timeline", mininterval=5.0):
            localizer.encoders.look_again()
            of_streams += moments(localizer, generator.timeline(index, BACKGROUND_DB))
    generator.collection.close()
    if not groups:
        raise ValueError(f"in none of {config.scenes * 3 // 2} scenes was anything found to calibrate on: the model "
                         "says nothing yet; train it longer, or try more scenes")
    if not of_streams:
        print("no timelines (they need four concepts that sound): streams get the confidence of whole windows")
    path = config.models / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decision"] |= {"source": fit(groups), "stream": fit(of_streams or groups), "unseen": fit_names(names),
                             "publish": config.source_publish, "publish_unseen": config.unseen_publish}
    write_whole(path, as_json(manifest))
    findable, named = (sum(right.any() for _, right in parts) / max(len(parts), 1) for parts in (groups, names))
    print(f"{len(groups)} rounds, {findable:.0%} with a right candidate; {named:.0%} of {len(names)} named right")
    return manifest["decision"]


if __name__ == "__main__":
    import tyro

    print(json.dumps(calibrate(tyro.cli(CalibrateConfig)), indent=1))
