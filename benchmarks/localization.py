"""Where does the sound come from? Generated 360 degree scenes from items that training never saw, beside the priors.

    python benchmarks/localization.py [--scenes 200] [--json FILE]      (make bench-localization)

All scenes are composites of real photographs, recordings and panoramas of the test split (training/splits.csv). Rows
are methods, so that no figure stands without what can be had without listening: `chance` guesses a direction, `centre`
always says straight ahead, `sight only` takes the strongest thing in view that could sound and ignores the sound.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from avssl_ros import Localizer, features, fusion
from avssl_ros.geometry import angle_between
from training.data import read_concepts, read_items
from training.mixing import Collection
from training.scenes import NEGATIVES, Scene, SceneGenerator

WITHIN = np.radians(20)
SEED = 2


class Chance:
    """A random direction at the height where objects stand."""

    name = "chance"

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, scene: Scene, count: int) -> list[tuple]:
        return [(self.rng.uniform(-np.pi, np.pi), np.radians(self.rng.uniform(-15, 15)), None) for _ in range(count)]


class Centre:
    """Straight ahead, whatever is heard."""

    name = "centre"

    def __call__(self, scene: Scene, count: int) -> list[tuple]:
        return [(0.0, 0.0, None)]


class SightOnly:
    """The strongest gate of the visual encoder: something that could sound, the sound ignored."""

    name = "sight only"

    def __init__(self, localizer: Localizer):
        self.localizer = localizer

    def __call__(self, scene: Scene, count: int) -> list[tuple]:
        views, surface = self.localizer.cut(scene.image, "equirectangular")
        gates = np.linalg.norm(self.localizer.encoders.visual(views), axis=-1).reshape(1, -1)
        regions = fusion.find_regions(surface.project(gates)[0], surface, count)
        return [(region.azimuth, region.elevation, None) for region in regions]


class Ours:
    """The shipped system as a user calls it; it is not told how many objects sound."""

    name = "avssl_ros"

    def __init__(self, localizer: Localizer):
        self.localizer = localizer

    def __call__(self, scene: Scene, count: int) -> list[tuple]:
        found = self.localizer.localize(scene.image, scene.sound, features.SAMPLE_RATE)
        return [(source.azimuth, source.elevation, source) for source in found.sources]


def judge(scene: Scene, predictions: list[tuple], label_of: dict[str, str]) -> dict:
    """Scores of one scene with sounding objects; the strongest prediction comes first."""
    truth = scene.sounding
    error = np.array(
        [[float(angle_between(az, el, t.azimuth, t.elevation)) for t in truth] for az, el, _ in predictions]
    )
    hits = 0
    if predictions:
        rows, columns = linear_sum_assignment(error)
        hits = int((error[rows, columns] <= WITHIN).sum())
    result = {"hits": hits, "predicted": len(predictions), "truth": len(truth), "right": False, "error": np.pi}
    if predictions:
        azimuth, elevation, source = predictions[0]
        angles = [float(angle_between(azimuth, elevation, o.azimuth, o.elevation)) for o in scene.objects]
        nearest = scene.objects[int(np.argmin(angles))]
        result |= {"right": nearest.sounds, "error": float(error[0].min())}
        if source is not None and nearest.sounds:
            result["label"] = source.label == label_of[nearest.concept]
    return result


def interval(values: list, statistic=np.mean, repeats: int = 1000) -> list[float]:
    """95 % bootstrap interval of a statistic over scenes."""
    rng, values = np.random.default_rng(0), np.asarray(values, dtype=float)
    samples = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(repeats)]
    return [round(float(x), 4) for x in np.percentile(samples, [2.5, 97.5])]


def summary(results: list[dict]) -> dict:
    """Right object, recall, precision and F within 20 degrees, and the median error; no answer counts 180 degrees."""
    hits, predicted, truth = (sum(r[key] for r in results) for key in ("hits", "predicted", "truth"))
    right, errors = [r["right"] for r in results], np.degrees([r["error"] for r in results])
    labels = [r["label"] for r in results if "label" in r]
    return {
        "scenes": len(results),
        "right_object": float(np.mean(right)),
        "right_object_95": interval(right),
        "recall_20": hits / truth,
        "precision_20": hits / max(predicted, 1),
        "f_20": 2 * hits / (truth + predicted),
        "median_error_deg": float(np.median(errors)),
        "median_error_95": interval(errors, np.median),
        "number_right": float(np.mean([r["predicted"] == r["truth"] for r in results])),
        "answered": float(np.mean([r["predicted"] > 0 for r in results])),
        "label_right": float(np.mean(labels)) if labels else None,
    }


def run_positive(generator, methods, sounding: int, scenes: int, label_of) -> dict:
    results, seconds = {m.name: [] for m in methods}, {m.name: [] for m in methods}
    for index in tqdm(range(scenes), desc=f"{sounding} of {generator.visible} sounding", unit="scene"):
        scene = generator.scene(index, sounding)
        for method in methods:
            start = time.perf_counter()
            predictions = method(scene, sounding)
            seconds[method.name].append(time.perf_counter() - start)
            results[method.name].append(judge(scene, predictions, label_of))
    return {name: {**summary(r), "ms": float(np.median(seconds[name]) * 1e3)} for name, r in results.items()}


def run_negative(generator, localizer: Localizer, kind: str, scenes: int) -> dict:
    """Share of scenes with a source, and with a sound reported as heard but not in view."""
    found = [localizer.localize(s.image, s.sound, features.SAMPLE_RATE)
             for s in (generator.negative(i, kind) for i in tqdm(range(scenes), desc=kind, unit="scene"))]
    return {"scenes": scenes, "false_alarms": float(np.mean([len(f.sources) > 0 for f in found])),
            "heard_not_in_view": float(np.mean([len(f.unseen) > 0 for f in found]))}


def print_table(report: dict) -> None:
    for task, rows in report["positive"].items():
        print(f"\n{task} ({next(iter(rows.values()))['scenes']} generated scenes)")
        print(f"{'method':<12} right object      recall precis.   F@20   median error         "
              "number  answered  label     ms")  # fmt: skip
        for name, r in rows.items():
            low, high = r["right_object_95"]
            e_low, e_high = r["median_error_95"]
            label = "    -" if r["label_right"] is None else f"{r['label_right']:5.0%}"
            print(f"{name:<12} {r['right_object']:5.0%} [{low:.0%}, {high:.0%}]".ljust(31)
                  + f"{r['recall_20']:5.0%}  {r['precision_20']:5.0%}  {r['f_20']:5.0%}   "
                  + f"{r['median_error_deg']:5.1f} [{e_low:.1f}, {e_high:.1f}]".ljust(23)
                  + f"{r['number_right']:5.0%}   {r['answered']:5.0%}   {label}  {r['ms']:6.1f}")
    print("\nnothing in view sounds            false alarms   heard, not in view")
    for kind, r in report["negative"].items():
        print(f"{kind:<22} ({r['scenes']:3d})        {r['false_alarms']:6.1%}          {r['heard_not_in_view']:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"),
                        help="folder of photos, recordings, panoramas")  # fmt: skip
    parser.add_argument("--models", type=Path, default=None, help="model folder (default: the shipped one)")
    parser.add_argument("--scenes", type=int, default=200, help="scenes a row")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"no folder {arguments.data}: give --data with photos/, images/, sounds/, esc10/ and panoramas/")
    concepts = read_concepts()
    collection = Collection(read_items(split="test"), arguments.data, concepts, Path("cache/sounds-test.npz"))
    localizer, generator = Localizer(arguments.models), SceneGenerator(collection, SEED)
    methods = [Chance(), Centre(), SightOnly(localizer), Ours(localizer)]
    label_of = {concept.name: concept.label for concept in concepts}
    report = {"machine": platform.processor() or platform.machine(), "providers": localizer.providers,
              "step": localizer.manifest["training"]["step"], "seed": SEED,
              "concepts": {"visible": generator.lookable, "sounding": generator.audible},
              "positive": {}, "negative": {}}
    for sounding in (1, 2):
        rows = run_positive(generator, methods, sounding, arguments.scenes, label_of)
        report["positive"][f"{sounding} of {generator.visible} visible objects sounding"] = rows
    for kind in NEGATIVES:
        report["negative"][kind] = run_negative(generator, localizer, kind, max(arguments.scenes // 2, 24))
    print_table(report)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
