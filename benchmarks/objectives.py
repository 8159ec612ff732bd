"""What the training objective is worth: deep clustering beside others' objectives, parts left out, and less data.

    python benchmarks/objectives.py [--steps 300] [--scenes 200] [--json FILE] [--figure FILE]   (make bench-objectives)

Every row is trained anew by training/train.py from the same pretrained trunks and heads, on the same mixed scenes of
the same items, for equally many steps: far fewer than the shipped model's, so only rows of this table compare with each
other. Trained rows are kept under --run and not trained again; a killed run goes on.

Rows of other objectives: EZ-VSL (Mo and Morgado 2022) and DenseAV (Hamilton et al. 2024), as in training/losses.py: the
objective alone, on our networks, with the scenes of a batch as negatives. They know no threshold, so they are told how
many objects sound, and their answers are the strongest regions of the map of similarity to the mean of the sound. Rows
of ours are calibrated on validation scenes and told nothing. Tables: as of training/evaluate.py, all composited. The
last one has F within 20 degrees, with its 95 % interval by bootstrap over scenes, and the share of scenes with a false
source where nothing in view sounds; `--figure` draws F against the amount of data.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from avssl_ros import Localizer, features, fusion
from training.evaluate import (
    Answer,
    Chance,
    Ours,
    labels_by_name,
    print_positive,
    run_negative,
    run_positive,
    write_report,
)
from training.scenes import Scene, open_scenes

ROOT = Path(__file__).resolve().parent.parent
OURS, EZ_VSL, DENSE_AV = "ours", "EZ-VSL obj.", "DenseAV obj."
# Name of the row to options of training/train.py.
ROWS: dict[str, tuple[str, ...]] = {
    EZ_VSL: ("--objective", "ez-vsl", "--head-rate", "0.0002"),  # at ours, 0.001, it collapses to a constant
    DENSE_AV: ("--objective", "denseav"),
    "no clustering": ("--clustering-weight", "0"),
    "whitened": ("--clustering-form", "whitened", "--clustering-weight", "0.3"),  # terms of ours' size after 100 steps
    "deep LDA": ("--clustering-form", "lda", "--clustering-weight", "0.3"),
    "no negatives": ("--mix.no-sound", "0", "--mix.offscreen", "0", "--mix.no-object", "0", "--mix.decoy", "0"),
    "no gate": ("--nothing-weight", "0", "--gate-weight", "0", "--background-share", "0"),
    "1/8 of data": ("--share-of-data", "0.125"),
    "1/4 of data": ("--share-of-data", "0.25"),
    "1/2 of data": ("--share-of-data", "0.5"),
    OURS: (),
}  # fmt: skip
SHARES = {"1/8 of data": 1 / 8, "1/4 of data": 1 / 4, "1/2 of data": 1 / 2, OURS: 1.0}
NEGATIVES = ("silence", "fan", "recorded background", "offscreen sound")


@dataclass(frozen=True)
class ObjectivesConfig:
    """What to train and how to try it."""

    data: Path = Path("../shared/data")
    weights: Path = Path("../shared/weights")
    run: Path = Path("runs/objectives")  # trained rows
    rows: tuple[str, ...] = tuple(ROWS)
    steps: int = 300  # of training, each row
    calibration_scenes: int = 150
    scenes: int = 200  # a row of the tables
    seed: int = 2  # of the scenes
    json: Path | None = None  # also write the figures here
    figure: Path | None = None  # draw the learning curve here


class Similarity:
    """Where the picture resembles the mean of the sound most: what the objectives of others train for."""

    def __init__(self, name: str, localizer: Localizer):
        self.name, self.localizer = name, localizer

    def __call__(self, scene: Scene, count: int) -> list[Answer]:
        views, surface = self.localizer.cut(scene.image, "equirectangular")
        encoders = self.localizer.encoders
        seen = encoders.visual(views).reshape(-1, encoders.dimensions)
        heard = encoders.audio(features.log_mel(scene.sound)[None]).reshape(-1, encoders.dimensions).mean(axis=0)
        if self.name == EZ_VSL:
            seen = seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-6)
        similarity = seen @ heard  # may be negative everywhere: what no view sees must not stand out with its zeros
        evidence = surface.project(np.maximum(similarity - np.median(similarity), 0)[None])[0]
        regions = fusion.find_regions(evidence, surface, count)
        return [Answer(region.azimuth, region.elevation, region.mask) for region in regions]


def train_row(name: str, config: ObjectivesConfig) -> Path:
    """The model folder of one row, trained, exported and calibrated unless it is there."""
    folder = config.run / "".join(c if c.isalnum() else "-" for c in name)
    models = folder / f"models-{config.steps}"
    if (models / "done").exists():
        return models
    short = ["--align-steps", str(config.steps // 6), "--warm-up", str(config.steps // 10), "--mix.views", "2",
             "--mix.sounds", "4", "--validate-every", str(config.steps), "--validation-scenes", "24"]  # fmt: skip
    _run("train.py", "--run", folder / f"run-{config.steps}", "--steps", config.steps, "--data", config.data,
         "--weights", config.weights, *short, *ROWS[name])
    _run("export.py", "--run", folder / f"run-{config.steps}", "--output", models)
    if name not in (EZ_VSL, DENSE_AV):
        _run("calibrate.py", "--models", models, "--data", config.data, "--scenes", config.calibration_scenes)
    (models / "done").touch()
    return models


def _run(program: str, *arguments) -> None:
    subprocess.run([sys.executable, str(ROOT / "training" / program), *map(str, arguments)], check=True)


def method(name: str, models: Path):
    """A row as training/evaluate.py calls it."""
    localizer = Localizer(models)
    if name in (EZ_VSL, DENSE_AV):
        return Similarity(name, localizer)
    return Ours(localizer, name)


def main(config: ObjectivesConfig) -> dict:
    """Trains what is not trained yet, prints the tables and returns the figures."""
    if unknown := set(config.rows) - set(ROWS):
        raise SystemExit(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    trained = {name: train_row(name, config) for name in config.rows}
    generator = open_scenes(config.data, "test", config.seed)
    methods = [Chance(), *(method(name, models) for name, models in trained.items())]
    report = {"steps": config.steps, "seed": config.seed, "tasks": {}, "false_alarms": {}}
    for sounding in (1, 2, 3):
        rows = run_positive(partial(generator.scene, sounding=sounding), methods, sounding, config.scenes,
                            labels_by_name())
        task = f"{sounding} of {generator.visible} visible objects sounding, {config.steps} steps of training"
        report["tasks"][task] = rows
        print_positive(task, rows)
    for ours in (method for method in methods if isinstance(method, Ours)):
        report["false_alarms"][ours.name] = {
            kind: run_negative(generator, ours.localizer, kind, config.scenes // 2)["false_alarms"]
            for kind in NEGATIVES}  # fmt: skip
    generator.collection.close()
    print_summary(report)
    write_report(report, config.json)
    if config.figure:
        draw_curve(report, config.figure)
    return report


def print_summary(report: dict) -> None:
    """One line a row: F within 20 degrees for each number of sounding objects, and false alarms."""
    print(f"\n{'F@20 [95 %], false alarms':<26}{'1 sounds':<17}{'2 sound':<17}{'3 sound':<17}"
          + "  ".join(NEGATIVES))
    for name in next(iter(report["tasks"].values())):
        cells = [(rows[name]["f_20"], *rows[name]["f_20_95"]) for rows in report["tasks"].values()]
        alarms = report["false_alarms"].get(name, {})
        print(f"{name:<26}" + "".join(f"{f:.0%} [{low:.0%}, {high:.0%}]".ljust(17) for f, low, high in cells)
              + "  ".join(f"{alarms[kind]:.0%}".rjust(len(kind)) if kind in alarms else "-".rjust(len(kind))
                          for kind in NEGATIVES))  # fmt: skip


def draw_curve(report: dict, path: Path) -> None:
    """F within 20 degrees against the share of the photographs and recordings that were trained on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.subplots()
    for task, rows in report["tasks"].items():
        points = [(share, rows[name]["f_20"], *rows[name]["f_20_95"]) for name, share in SHARES.items() if name in rows]
        share, f, low, high = np.array(points).reshape(-1, 4).T
        axes.errorbar(share, f, yerr=[f - low, high - f], marker="o", capsize=3, label=task.split(" visible")[0])
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(SHARES.values()), ["1/8", "1/4", "1/2", "all"])
    axes.set(xlabel="share of the photographs and recordings", ylabel="F within 20°", ylim=(0, 1),
             title=f"{report['steps']} steps of training each")  # fmt: skip
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(ObjectivesConfig, description=__doc__))
