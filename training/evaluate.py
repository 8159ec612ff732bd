"""How well does a model folder localize? Generated 360 degree scenes of held-out items, beside what needs no listening.

    python training/evaluate.py --models models                                      # ../shared/data, test split
    python training/evaluate.py --models small --data None --clips.shards shards     # packed clips, test split

All scenes are composites: pictures set into a panorama, with mixed sound (training/scenes.py). Rows are methods:
`chance` guesses a direction, `centre` says straight ahead, `whole image` marks everything, `saliency` takes what stands
out (spectral residual), `sight only` what could sound most; none of them listens. `sound only` hears what sounds, and
how much of it, and does not look: objects stand in all directions alike, so all it can say is straight ahead. Columns:

right object   the strongest answer is nearest to an object that sounds [95 % bootstrap interval over scenes]
recall, precision, F@20   answers matched with the sounding objects (Hungarian) within 20 degrees, over all scenes
median error   of the strongest answer, degrees; no answer counts 180
cIoU           share of scenes whose marked area P and true area G have sum(P G) / (sum(G) + sum(P [G = 0])) >= 0.5, by
               solid angle; AUC its area over thresholds 0, 0.05 .. 1
number         as many answers as objects sound
answered       any answer at all
label          of right answers, the name is right too; those whose name or object is no known concept do not count

The benchmark (benchmarks/localization.py) uses these functions with more rows.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from avssl_ros import Localizer, features, fusion
from avssl_ros.geometry import ViewLayout, ViewProjection, angle_between, pixel_to_direction
from training.clip_collection import ClipsConfig, concept_called
from training.data import read_concepts
from training.scenes import MASK_SHAPE, NEGATIVES, Scene, SceneGenerator, open_scenes

WITHIN = np.radians(20)
DISC = np.radians(17)  # half of an object's mean height: what a method without a map marks
GRID = pixel_to_direction(*np.meshgrid(np.arange(MASK_SHAPE[1]), np.arange(MASK_SHAPE[0])), *MASK_SHAPE[::-1])
SOLID_ANGLE = np.cos(GRID[1])


@dataclass(frozen=True)
class Answer:
    """One source that a method claims: direction (radians), marked area (MASK_SHAPE bool), name if it has one."""

    azimuth: float
    elevation: float
    mask: np.ndarray
    label: str | None = None


class StillSight:
    """The encoders of a localizer, with what they saw of the views of one picture kept: timelines do not move."""

    def __init__(self, encoders):
        self._encoders, self._seen = encoders, {}

    def __getattr__(self, name: str):
        return getattr(self._encoders, name)

    def visual(self, views: np.ndarray) -> np.ndarray:
        names = [view.tobytes() for view in views]
        new = [index for index, name in enumerate(names) if name not in self._seen]
        if new:
            self._seen |= zip([names[index] for index in new], self._encoders.visual(views[new]))
        return np.stack([self._seen[name] for name in names])

    def look_again(self) -> None:
        self._seen.clear()


def disc(azimuth: float, elevation: float) -> Answer:
    """An answer of a method without a map."""
    return Answer(azimuth, elevation, angle_between(*GRID, azimuth, elevation) <= DISC)


# ------------------------------------------------------------------------------------------------------------- methods


class Chance:
    """A random direction at the height where objects stand."""

    name = "chance"

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        return [disc(self.rng.uniform(-np.pi, np.pi), np.radians(self.rng.uniform(-15, 15))) for _ in range(count)]


class Centre:
    """Straight ahead, whatever is heard."""

    name = "centre"

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        return [disc(0.0, 0.0)]


class WholeImage:
    """Everything at once."""

    name = "whole image"

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        return [Answer(0.0, 0.0, np.ones(MASK_SHAPE, bool))]


class Saliency:
    """What stands out in the picture: spectral residual (Hou and Zhang 2007)."""

    name = "saliency"

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        grey = cv2.resize(cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY), (128, 64), interpolation=cv2.INTER_AREA)
        spectrum = np.fft.fft2(grey.astype(np.float32))
        amplitude = np.log(np.abs(spectrum) + 1e-6)
        residual = np.exp(amplitude - cv2.blur(amplitude, (3, 3))) * np.exp(1j * np.angle(spectrum))
        salient = cv2.GaussianBlur(np.abs(np.fft.ifft2(residual)).astype(np.float32) ** 2, (0, 0), 2.5)
        salient = cv2.resize(salient, MASK_SHAPE[::-1]) * (np.abs(GRID[1]) < np.radians(60))
        answers = []
        for _ in range(count):
            row, column = np.unravel_index(salient.argmax(), salient.shape)
            answers.append(disc(GRID[0][row, column], GRID[1][row, column]))
            salient = np.where(answers[-1].mask, 0, salient)
        return answers


class SightOnly:
    """The strongest gate of the visual encoder: something that could sound, the sound ignored."""

    name = "sight only"

    def __init__(self, localizer: Localizer):
        self.localizer = localizer

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        views, surface = self.localizer.cut(scene.image, "equirectangular")
        gates = np.linalg.norm(self.localizer.encoders.visual(views), axis=-1).reshape(1, -1)
        regions = fusion.find_regions(surface.project(gates)[0], surface, count)
        return [Answer(region.azimuth, region.elevation, region.mask) for region in regions]


class SoundOnly:
    """What our audio encoder hears, straight ahead: a class prior of direction says nothing where all are alike."""

    name = "sound only"

    def __init__(self, localizer: Localizer):
        self.localizer = localizer

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        return [replace(disc(0.0, 0.0), label=self.localizer.labels[int(sound.concepts.argmax())])
                for sound in self.localizer.hear(scene.sound) or ()]


class Ours:
    """The system as a user calls it; it is not told how many objects sound."""

    def __init__(self, localizer: Localizer, name: str = "avssl_ros"):
        self.localizer, self.name = localizer, name

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        found = self.localizer.localize(scene.image, scene.sound, features.SAMPLE_RATE)
        return [Answer(source.azimuth, source.elevation, source.map > 0, source.label) for source in found.sources]


# ------------------------------------------------------------------------------------------------------------- metrics


def judge(scene: Scene, answers: Sequence[Answer], label_of: dict[str, str]) -> dict:
    """Scores of one scene with sounding objects; the strongest answer comes first."""
    truth = scene.sounding
    error = angles(answers, truth)
    result = {"hits": 0, "predicted": len(answers), "truth": len(truth), "right": False, "error": np.pi,
              "ciou": consensus_iou([answer.mask for answer in answers], [placed.mask for placed in truth])}
    if not len(answers):
        return result
    nearest = min(scene.objects, key=lambda placed: _angle(answers[0], placed))
    result |= {"hits": matched(error), "right": nearest.sounds, "error": float(error[0].min())}
    named = None if answers[0].label is None else concept_called(answers[0].label)
    if named is not None and nearest.sounds and nearest.concept in label_of:
        result["label"] = named == nearest.concept
    return result


def angles(answers: Sequence, truth: Sequence) -> np.ndarray:
    """(N, M) radians between whatever has azimuth and elevation."""
    apart = [[_angle(answer, placed) for placed in truth] for answer in answers]
    return np.array(apart).reshape(len(answers), len(truth))


def matched(apart: np.ndarray) -> int:
    """How many answers are at a true direction of their own (Hungarian), within WITHIN; `apart` as of `angles`."""
    return int((apart[linear_sum_assignment(apart)] <= WITHIN).sum())


def _angle(answer, placed) -> float:
    return float(angle_between(answer.azimuth, answer.elevation, placed.azimuth, placed.elevation))


def consensus_iou(marked: list[np.ndarray], true: list[np.ndarray]) -> float:
    """sum(P G) / (sum(G) + sum(P [G = 0])) of the unions of masks, by solid angle (Senocak et al. 2018)."""
    if not marked:
        return 0.0
    p, g = np.any(marked, axis=0), np.any(true, axis=0)
    return float((SOLID_ANGLE * (p & g)).sum() / max((SOLID_ANGLE * (p | g)).sum(), 1e-9))


def interval(values: Sequence[float], statistic: Callable = np.mean, repeats: int = 1000) -> list[float]:
    """95 % bootstrap interval of a statistic over scenes."""
    rng, values = np.random.default_rng(0), np.asarray(values, dtype=float)
    samples = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(repeats)]
    return [round(float(x), 4) for x in np.percentile(samples, [2.5, 97.5])]


def _f_measure(counts: np.ndarray) -> float:
    """Of (scenes, 2): hits, and truth and predictions together."""
    hits, both = counts.sum(axis=0)
    return 2 * hits / max(both, 1)


def summary(results: list[dict]) -> dict:
    """The columns of the table (see the top of this file)."""
    hits, predicted, truth = (sum(r[key] for r in results) for key in ("hits", "predicted", "truth"))
    right, errors = [r["right"] for r in results], np.degrees([r["error"] for r in results])
    ciou, labels = np.array([r["ciou"] for r in results]), [r["label"] for r in results if "label" in r]
    return {
        "scenes": len(results),
        "right_object": float(np.mean(right)),
        "right_object_95": interval(right),
        "recall_20": hits / truth,
        "precision_20": hits / max(predicted, 1),
        "f_20": 2 * hits / (truth + predicted),
        "f_20_95": interval([[r["hits"], r["truth"] + r["predicted"]] for r in results], _f_measure),
        "median_error_deg": float(np.median(errors)),
        "median_error_95": interval(errors, np.median),
        "ciou_50": float((ciou >= 0.5).mean()),
        "ciou_auc": float(np.mean([(ciou >= threshold).mean() for threshold in np.arange(0, 1.001, 0.05)])),
        "number_right": float(np.mean([r["predicted"] == r["truth"] for r in results])),
        "answered": float(np.mean([r["predicted"] > 0 for r in results])),
        "label_right": float(np.mean(labels)) if labels else None,
    }


def run_positive(make: Callable[[int], Scene], methods: list, sounding: int, scenes: int, label_of: dict) -> dict:
    """Each method's summary on `scenes` scenes, made of their index, with `sounding` sounding objects."""
    results, seconds = {m.name: [] for m in methods}, {m.name: [] for m in methods}
    for index in tqdm(range(scenes), desc=f"{sounding} sounding", unit="scene"):
        scene = make(index)
        for method in methods:
            start = time.perf_counter()
            answers = method(scene, sounding)
            seconds[method.name].append(time.perf_counter() - start)
            results[method.name].append(judge(scene, answers, label_of))
    return {name: {**summary(r), "ms": float(np.median(seconds[name]) * 1e3)} for name, r in results.items()}


def run_negative(generator: SceneGenerator, localizer: Localizer, kind: str, scenes: int) -> dict:
    """Share of scenes with a source, and with a sound reported as heard but not in view."""
    found = [localizer.localize(s.image, s.sound, features.SAMPLE_RATE)
             for s in (generator.negative(i, kind) for i in tqdm(range(scenes), desc=kind, unit="scene"))]
    return {"scenes": scenes, "false_alarms": float(np.mean([len(f.sources) > 0 for f in found])),
            "heard_not_in_view": float(np.mean([len(f.unseen) > 0 for f in found]))}


def print_positive(task: str, rows: dict) -> None:
    """One table of methods."""
    print(f"\n{task} ({next(iter(rows.values()))['scenes']} generated scenes)")
    print(f"{'method':<13}right object      recall precis.   F@20  median error       cIoU@.5    AUC  number  answered"
          "  label      ms")
    for name, r in rows.items():
        (low, high), (e_low, e_high) = r["right_object_95"], r["median_error_95"]
        label = "    -" if r["label_right"] is None else f"{r['label_right']:5.0%}"
        print(f"{name:<13}{r['right_object']:5.0%} [{low:.0%}, {high:.0%}]".ljust(31)
              + f"{r['recall_20']:6.0%}   {r['precision_20']:5.0%}  {r['f_20']:5.0%}  "
              + f"{r['median_error_deg']:5.1f} [{e_low:.1f}, {e_high:.1f}]".ljust(21)
              + f"{r['ciou_50']:5.0%}  {r['ciou_auc']:5.3f}   {r['number_right']:5.0%}     {r['answered']:5.0%}"
              + f"  {label}  {r['ms']:6.1f}")


def print_negative(rows: dict) -> None:
    """False alarms by kind of negative."""
    print("\nnothing in view sounds            false alarms   heard, not in view")
    for kind, r in rows.items():
        print(f"{kind:<22} ({r['scenes']:3d})        {r['false_alarms']:6.1%}          {r['heard_not_in_view']:6.1%}")


def labels_by_name() -> dict[str, str]:
    """Labels of the concepts by their names, which scenes go by."""
    return {concept.name: concept.label for concept in read_concepts()}


def write_report(report: dict, path: Path | None) -> None:
    """The figures as a JSON file, if one is wanted."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, on how many scenes."""

    models: Path = Path("models")  # model folder
    data: Path | None = Path("../shared/data")  # folder with photos/, sounds/ and panoramas/; None: clips alone
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    split: str = "test"
    view_size: int | None = None  # pixels of a view's width; None: the model's own
    view_projection: ViewProjection = "perspective"  # how views are flattened
    scenes: int = 100  # a row; half of it a negative
    visible: int = 4  # objects in a scene
    seed: int = 2
    least_photos: int = 3  # a concept needs to take part, so that no figure hangs on one picture
    least_sounds: int = 2
    json: Path | None = None  # also write the figures here


Tasks = Callable[[SceneGenerator], dict[str, tuple[int, Callable[[int], Scene]]]]


def evaluate(config: EvaluateConfig, more: Callable[[Localizer], list] = lambda localizer: [],
             negatives: Sequence[str] = NEGATIVES, sounding: Sequence[int] = (1, 2),
             tasks: Tasks = lambda generator: {},
             then: Callable[[SceneGenerator, Localizer], dict] = lambda generator, localizer: {}) -> dict:
    """Prints the tables, writes the JSON file if one is wanted, and returns the figures.

    Args:
        more: further methods, made of the localizer, as the rows before ours.
        negatives: which of NEGATIVES to try. sounding: how many of the visible objects sound, a table each.
        tasks: further tables, made of the generator: title to how many objects sound, and what makes scenes.
        then: what else to measure; its figures join the report.
    """
    generator = open_scenes(config.data, config.split, config.seed, config.clips, config.visible, config.least_photos,
                            config.least_sounds)
    layout = ViewLayout(projection=config.view_projection)
    localizer = Localizer(config.models, layout=layout, view_size=config.view_size)
    methods = [Chance(), Centre(), WholeImage(), Saliency(), SightOnly(localizer), SoundOnly(localizer),
               *more(localizer), Ours(localizer)]
    label_of = labels_by_name()
    report = {"machine": platform.processor() or platform.machine(), "providers": localizer.providers,
              "step": localizer.manifest["training"]["step"], "seed": config.seed, "split": config.split,
              "concepts": {"visible": generator.lookable, "sounding": generator.audible},
              "positive": {}, "negative": {}}
    usual = {f"{number} of {generator.visible} visible objects sounding": (number, partial(generator.scene,
             sounding=number)) for number in sounding}
    for task, (number, make) in (usual | tasks(generator)).items():
        rows = run_positive(make, methods, number, config.scenes, label_of)
        report["positive"][task] = rows
        print_positive(task, rows)
    for kind in negatives:
        report["negative"][kind] = run_negative(generator, localizer, kind, max(config.scenes // 2, 24))
    print_negative(report["negative"])
    report |= then(generator, localizer)
    write_report(report, config.json)
    generator.collection.close()
    return report


if __name__ == "__main__":
    import tyro

    evaluate(tyro.cli(EvaluateConfig, description=__doc__))
