"""Beyond right or wrong: does the answer follow the sound, does it turn with the picture, is its confidence true?

Functions of benchmarks/localization.py, on the same kind of scenes (training/scenes.py), all composited:

swap          one picture, two sounds, one of each of two objects: where the answer to the first is at the first object,
              the answer to the second must be at the second
yaw           the panorama turned by a random angle: the answer must turn with it
calibration   of all sources told, by confidence: how many lie on an object that sounds; expected calibration error (Guo
              et al. 2017) over ten bins
perspective   an ordinary picture cut from the panorama, with what sounds in it: the strongest answer is nearest to it;
              and one of the opposite side: nothing in it sounds
hearing       of scenes with one sound: its name is the likeliest that is heard, or among the five likeliest
purity        image patches that lie on objects, clustered as those of sound are (avssl_ros/clustering.py): share that
              belongs to its cluster's most frequent object, beside the share of the scene's largest object
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from avssl_ros import Localizer, features, fusion
from avssl_ros.clustering import dp_means
from avssl_ros.geometry import ViewLayout, angle_between, cut_views, direction_to_pixel, patch_directions
from avssl_ros.overlay import draw
from training.evaluate import WITHIN, Answer
from training.scenes import MASK_SHAPE, Scene, SceneGenerator

BINS = 10
NEGATIVE = "offscreen sound"  # joins the calibration, as it does in training/calibrate.py
PICTURES = 4  # scenes drawn
ORDINARY = 480, 640  # pixels of an ordinary picture
AIMED_WITHIN = np.radians(30)  # of its middle: where what sounds stands in it


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


def perspective(generator: SceneGenerator, localizer: Localizer, scenes: int) -> dict:
    """Ordinary pictures of `localizer.fov_deg` with what sounds in them, and of the opposite side of the same scene."""
    rng, rows, away = np.random.default_rng(0), [], []
    for index in tqdm(range(scenes), desc="perspective", unit="scene"):
        scene = generator.scene(index, 1)
        middle = scene.sounding[0].azimuth + rng.uniform(-AIMED_WITHIN, AIMED_WITHIN)
        offset = np.array([abs(angle_between(placed.azimuth, 0.0, middle, 0.0)) for placed in scene.objects])
        in_view = np.flatnonzero(offset < np.radians(localizer.fov_deg) / 2)
        found = _localize_picture(localizer, scene, middle).sources[:1]
        distance = [angle_between(found[0].azimuth + middle, found[0].elevation, scene.objects[k].azimuth,
                                  scene.objects[k].elevation) for k in in_view] if found else []
        rows.append((len(in_view), bool(found) and scene.objects[in_view[np.argmin(distance)]].sounds,
                     scene.objects[in_view[np.argmin(offset[in_view])]].sounds))
        behind = _localize_picture(localizer, scene, middle + np.pi)
        away.append((len(behind.sources) > 0, len(behind.unseen) > 0))
    count, right, centre = np.array(rows, float).T
    several = count > 1
    return {"scenes": int(several.sum()), "in_view": float(count[several].mean()),
            "right": float(right[several].mean()), "centre": float(centre[several].mean()),
            "chance": float((1 / count[several]).mean()), "alone_right": float(right[~several].mean()),
            "away_false_alarms": float(np.mean(away, axis=0)[0]), "away_not_in_view": float(np.mean(away, axis=0)[1])}


def _localize_picture(localizer: Localizer, scene: Scene, middle: float):
    """The scene of an ordinary picture around azimuth `middle`, radians."""
    height = 2 * np.degrees(np.arctan(np.tan(np.radians(localizer.fov_deg) / 2) * ORDINARY[0] / ORDINARY[1]))
    layout = ViewLayout((np.degrees(middle),), 0.0, localizer.fov_deg, float(height))
    picture = cut_views(scene.image, layout, ORDINARY)[0]
    return localizer.localize(picture, scene.sound, features.SAMPLE_RATE, projection="perspective")


def hearing(generator: SceneGenerator, localizer: Localizer, scenes: int, label_of: dict[str, str]) -> dict:
    """Shares of scenes whose sound is rightly named first, and among the first five."""
    rank = []
    for index in tqdm(range(scenes), desc="hearing", unit="scene"):
        scene = generator.scene(index, 1)
        clusters = localizer.hear(scene.sound)
        order = np.argsort(-fusion.heard_concepts(clusters)).tolist() if clusters else []
        concept = localizer.labels.index(label_of[scene.sounding[0].concept])
        rank.append(order.index(concept) if concept in order else len(localizer.labels))
    return {"scenes": scenes, "first": float(np.mean(np.less(rank, 1))), "of_five": float(np.mean(np.less(rank, 5)))}


def purity(generator: SceneGenerator, localizer: Localizer, scenes: int) -> dict:
    """Means over scenes of purity, of the largest object's share, and of the number of clusters."""
    rows, stride, size = [], localizer.encoders.stride, localizer.layout.view_shape(localizer.view_size)
    azimuth, elevation = (values.ravel() for values in patch_directions(localizer.layout, size, stride))
    column, row = (np.round(values).astype(int) for values in direction_to_pixel(azimuth, elevation, *MASK_SHAPE[::-1]))
    cells = np.clip(row, 0, MASK_SHAPE[0] - 1), column % MASK_SHAPE[1]
    for index in tqdm(range(scenes), desc="purity", unit="scene"):
        scene = generator.scene(index, 1)
        views, _ = localizer.cut(scene.image, "equirectangular")
        seen = localizer.encoders.visual(views).reshape(-1, localizer.encoders.dimensions)
        gate, on = np.linalg.norm(seen, axis=1), np.stack([placed.mask[cells] for placed in scene.objects])
        taking_part = (gate > localizer.decision["audio_gate"]) & (on.sum(axis=0) == 1)
        owner = on[:, taking_part].argmax(axis=0)
        if not len(owner):
            continue
        seen, gate = seen[taking_part], gate[taking_part]
        centroids, member = dp_means(seen / gate[:, None], gate, localizer.decision["same_cosine"])
        largest = sum(np.bincount(owner[member == k]).max() for k in range(len(centroids)) if (member == k).any())
        rows.append((largest / len(owner), np.bincount(owner).max() / len(owner), len(centroids)))
    share, one, count = np.mean(rows, axis=0)
    return {"scenes": len(rows), "purity": float(share), "largest_object": float(one), "clusters": float(count)}


def print_behaviour(found: dict) -> None:
    s, y, c, v, p, h = (found[name] for name in ("swap", "yaw", "calibration", "perspective", "purity", "hearing"))
    print(f"\nswap ({s['scenes']} pictures): first answer right {s['first_right']:.0%}; of those the second sound's "
          f"answer moved to its object {s['moved']:.0%}, stayed {s['stayed']:.0%}, is elsewhere "
          f"{s['elsewhere']:.0%}, none {s['no_answer']:.0%}")
    print(f"perspective ({v['scenes']} pictures with {v['in_view']:.1f} objects on average): right object "
          f"{v['right']:.0%} (chance {v['chance']:.0%}, nearest to the middle {v['centre']:.0%}); where it is alone "
          f"{v['alone_right']:.0%}; seen from behind: false alarms {v['away_false_alarms']:.0%}, heard, not in view "
          f"{v['away_not_in_view']:.0%}")
    print(f"hearing ({h['scenes']} scenes with one sound): named right {h['first']:.0%}, among five {h['of_five']:.0%}")
    print(f"purity ({p['scenes']} scenes): {p['purity']:.0%} of the image patches of objects in "
          f"{p['clusters']:.1f} clusters; the largest object alone {p['largest_object']:.0%}")
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
