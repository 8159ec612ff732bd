"""Beyond right or wrong: does the answer follow the sound, does it turn with the picture, is its confidence true?

Functions of benchmarks/localization.py, on the same kind of scenes (training/scenes.py), all composited:

swap          one picture, two sounds, one of each of two objects: where the answer to the first is at the first object,
              the answer to the second must be at the second
yaw           the panorama turned by a random angle: the answer must turn with it
calibration   of all sources told, by confidence: how many lie on an object that sounds; expected calibration error (Guo
              et al. 2017) over ten bins
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from avssl_ros import Localizer, features, fusion
from avssl_ros.geometry import angle_between, direction_to_pixel
from avssl_ros.overlay import draw
from training.evaluate import WITHIN, Answer
from training.scenes import Scene, SceneGenerator

BINS = 10
NEGATIVE = "offscreen sound"  # joins the calibration, as it does in training/calibrate.py
PICTURES = 4  # scenes drawn


class ToldTheName:
    """Where what sounds is seen, its concept told: how far sight alone reaches."""

    name = "told names"

    def __init__(self, localizer: Localizer, label_of: dict[str, str]):
        self.localizer, self.label_of = localizer, label_of

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        localizer = self.localizer
        views, surface = localizer.cut(scene.image, "equirectangular")
        seen = localizer.encoders.visual(views).reshape(-1, localizer.encoders.dimensions)
        answers = []
        for placed in scene.sounding:
            label = self.label_of[placed.concept]
            concept = localizer.labels.index(label)
            made_by = [concept, *localizer.made_by.get(concept, ())]
            values = np.maximum(seen @ localizer.prototypes[made_by].T, 0).max(axis=1)
            for region in fusion.find_regions(surface.project(values[None])[0], surface, 1):
                answers.append(Answer(region.azimuth, region.elevation, region.mask, label))
        return answers


def _localize(localizer: Localizer, scene: Scene):
    return localizer.localize(scene.image, scene.sound, features.SAMPLE_RATE).sources


def _nearest(scene: Scene, source) -> int:
    """Index of the object nearest to a source."""
    return int(np.argmin([angle_between(source.azimuth, source.elevation, placed.azimuth, placed.elevation)
                          for placed in scene.objects]))


def swap(generator: SceneGenerator, localizer: Localizer, scenes: int) -> dict:
    """Shares of `scenes` pictures; `moved` of those whose first answer is at the first object."""
    at = []
    for index in tqdm(range(scenes), desc="swap", unit="scene"):
        pair = generator.pair(index)
        answers = [_localize(localizer, scene)[:1] for scene in pair]
        at.append([_nearest(scene, found[0]) if found else -1 for scene, found in zip(pair, answers)])
    first, second = np.array(at).T
    started = first == 0
    return {"scenes": scenes, "first_right": float(started.mean()),
            "moved": float((second[started] == 1).mean()), "stayed": float((second[started] == 0).mean()),
            "elsewhere": float((second[started] > 1).mean()), "no_answer": float((second[started] == -1).mean())}


def yaw(generator: SceneGenerator, localizer: Localizer, scenes: int) -> dict:
    """Degrees between the turned answer and the answer to the turned picture, where both are given."""
    rng, errors, lost = np.random.default_rng(0), [], 0
    for index in tqdm(range(scenes), desc="yaw", unit="scene"):
        scene = generator.scene(index, 1)
        columns = int(rng.integers(scene.image.shape[1]))
        turned = Scene(np.roll(scene.image, columns, axis=1), scene.sound, scene.objects)
        before, after = _localize(localizer, scene)[:1], _localize(localizer, turned)[:1]
        if before and after:
            azimuth = before[0].azimuth - 2 * np.pi * columns / scene.image.shape[1]
            errors.append(np.degrees(angle_between(azimuth, before[0].elevation, after[0].azimuth, after[0].elevation)))
        lost += bool(before) != bool(after)
    return {"scenes": scenes, "median_deg": float(np.median(errors)),
            "within_5_deg": float(np.mean(np.less(errors, 5))), "answered_once": lost / scenes}


def calibration(generator: SceneGenerator, localizer: Localizer, scenes: int) -> dict:
    """Reliability of all sources told in scenes with one and two sounding objects and with sound from out of view."""
    told = []
    for index in tqdm(range(scenes), desc="calibration", unit="scene"):
        kind = index % 3
        scene = generator.negative(index, NEGATIVE) if kind == 2 else generator.scene(index, 1 + kind)
        for source in _localize(localizer, scene):
            near = [angle_between(source.azimuth, source.elevation, placed.azimuth, placed.elevation) <= WITHIN
                    for placed in scene.sounding]
            told.append((source.confidence, any(near)))
    confidence, right = np.array(told, float).reshape(-1, 2).T
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [{"from": b / BINS, "sources": int((which == b).sum()), "confidence": float(confidence[which == b].mean()),
             "right": float(right[which == b].mean())} for b in range(BINS) if (which == b).any()]
    error = sum(b["sources"] * abs(b["confidence"] - b["right"]) for b in bins) / max(len(told), 1)
    return {"scenes": scenes, "sources": len(told), "expected_calibration_error": float(error),
            "mean_confidence": float(confidence.mean()), "right": float(right.mean()), "bins": bins}


def print_behaviour(found: dict) -> None:
    s, y, c = found["swap"], found["yaw"], found["calibration"]
    print(f"\nswap ({s['scenes']} pictures): first answer right {s['first_right']:.0%}; of those the second sound's "
          f"answer moved to its object {s['moved']:.0%}, stayed {s['stayed']:.0%}, is elsewhere "
          f"{s['elsewhere']:.0%}, none {s['no_answer']:.0%}")
    print(f"yaw ({y['scenes']} scenes): answers turn with the picture, median difference {y['median_deg']:.1f} "
          f"degrees, within 5 degrees {y['within_5_deg']:.0%}; answered only before or after turning "
          f"{y['answered_once']:.0%}")
    print(f"calibration ({c['sources']} sources in {c['scenes']} scenes): expected calibration error "
          f"{c['expected_calibration_error']:.3f}; mean confidence {c['mean_confidence']:.0%}, right {c['right']:.0%}")
    for b in c["bins"]:
        print(f"  confidence {b['from']:.1f}..{b['from'] + 1 / BINS:.1f}: {b['sources']:4d} sources, "
              f"mean {b['confidence']:4.0%}, right {b['right']:4.0%}")


def draw_figures(found: dict, generator: SceneGenerator, localizer: Localizer, folder: Path) -> None:
    """reliability.png, and scenes.png: what is told of the first scenes, with a cross on what sounds."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    bins = found["calibration"]["bins"]
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    axes.plot([b["confidence"] for b in bins], [b["right"] for b in bins], "o-")
    for b in bins:
        axes.annotate(str(b["sources"]), (b["confidence"], b["right"]), textcoords="offset points", xytext=(6, -10))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share on an object that sounds",
             title=f"{found['calibration']['sources']} sources, calibration error "
                   f"{found['calibration']['expected_calibration_error']:.3f}")
    figure.savefig(folder / "reliability.png", dpi=120)
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for index, axes in enumerate(figure.subplots(2, PICTURES // 2).flat):
        scene = generator.scene(index, 1 + index // 2)
        told = localizer.localize(scene.image, scene.sound, features.SAMPLE_RATE)
        axes.imshow(draw(scene.image, told))
        height, width = scene.image.shape[:2]
        for placed in scene.sounding:
            x, y = direction_to_pixel(placed.azimuth, placed.elevation, width, height)
            axes.plot(x % width, y, "w+", markersize=14, markeredgewidth=2)
        axes.set_title("sounds: " + ", ".join(placed.concept for placed in scene.sounding), fontsize=10)
        axes.set_axis_off()
    figure.savefig(folder / "scenes.png", dpi=110)
