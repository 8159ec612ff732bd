"""Where does the sound come from? The shipped model on generated scenes that training never saw, beside references.

    python benchmarks/localization.py [--scenes 200] [--json FILE]      (make bench-localization)

The tables are those of training/evaluate.py, which explains their columns and the rows that do not listen. Where the
pretrained weights are at hand (--weights), the label bridge (benchmarks/label_bridge.py) joins them; `told names` is
ours told what sounds. All scenes are composites of real photographs, recordings and panoramas of the test split
(training/splits.csv). Further tables: a silent object of the sounding kind in view; and, where it can be had, material
that neither we nor the bridge were trained on, real video among it (benchmarks/material.py). Then what
benchmarks/behaviour.py explains. Other training objectives, and parts of ours left out: benchmarks/objectives.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl_ros import Localizer
from avssl_ros.geometry import ViewProjection
from avssl_ros.paths import shipped_models
from benchmarks.behaviour import (
    ToldTheName,
    calibration,
    draw_figures,
    hearing,
    perspective,
    print_behaviour,
    purity,
    swap,
    yaw,
)
from benchmarks.material import HEIGHTS, SEPARATION, VISIBLE, CutOuts, RealVideo
from training.corpus import Missing
from training.evaluate import EvaluateConfig, evaluate, labels_by_name
from training.scenes import SceneGenerator
from training.train import TAGGER_FILE


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, on how much."""

    data: Path = Path("../shared/data")  # folder with photos/, sounds/, esc10/ and panoramas/
    weights: Path = Path("../shared/weights")  # folder with the tagger of the label bridge
    models: Path | None = None  # model folder; None: the shipped one
    view_size: int | None = None  # pixels of a view's width; None: the model's own
    view_projection: ViewProjection = "perspective"  # how views are flattened
    downloads: Path = Path("runs/packages")  # Debian's tuxpaint-stamps-default, where it is not installed
    scenes: int = 200  # a row; half of it a negative
    json: Path | None = None  # also write the figures here
    figures: Path | None = None  # folder for reliability.png and scenes.png


def references(config: BenchmarkConfig, localizer) -> list:
    """The rows beside the priors."""
    told = ToldTheName(localizer, labels_by_name())
    if not (config.weights / TAGGER_FILE).exists():
        print(f"no label bridge: {config.weights / TAGGER_FILE} is not there", file=sys.stderr)
        return [told]
    from benchmarks.label_bridge import LabelBridge

    return [told, LabelBridge(localizer, config.weights)]


def further_tables(config: BenchmarkConfig, generator: SceneGenerator) -> dict:
    """A silent object of the sounding kind; real video; cut-outs. One of the visible objects sounds."""
    base, seed, count = generator.collection, generator.seed, generator.visible
    tables = {f"1 of {count} sounding, a silent one of its kind in view": partial(generator.scene, twin=True)}
    others = {
        f"1 of {count} sounding, cut-outs":
            lambda: SceneGenerator(CutOuts(base, config.downloads), seed, count, 1, 1),
        f"1 of {VISIBLE} sounding, frames and sound of real video":
            lambda: SceneGenerator(RealVideo(base, config.data / "clips"), seed, VISIBLE, 1, 1, HEIGHTS, SEPARATION,
                                   by_recordings=True),
    }  # fmt: skip
    for title, scenes in others.items():
        try:
            tables[title] = scenes().scene
        except (FileNotFoundError, Missing) as error:
            print(f"a table is left out: {error}", file=sys.stderr)
    return {title: (1, make) for title, make in tables.items()}


def behaviour(config: BenchmarkConfig, generator: SceneGenerator, localizer: Localizer) -> dict:
    """Measures, prints and, if wanted, draws what benchmarks/behaviour.py is for."""
    found = {"swap": swap(generator, localizer, config.scenes), "yaw": yaw(generator, localizer, config.scenes),
             "calibration": calibration(generator, localizer, 3 * config.scenes),
             "perspective": perspective(generator, localizer, config.scenes),
             "hearing": hearing(generator, localizer, config.scenes, labels_by_name()),
             "purity": purity(generator, localizer, config.scenes)}
    print_behaviour(found)
    if config.figures:
        draw_figures(found, generator, localizer, config.figures)
    return {"behaviour": found}


def print_summary(tables: dict) -> None:
    """A line for each table: the strongest answer is right by three methods, and the other columns for ours."""
    print(f"\n{'in short':<52}right: chance  bridge    ours   recall  precision  number   error")
    for task, rows in tables.items():
        ours, bridge = rows["avssl_ros"], rows.get("label bridge")
        print(f"{task:<52}{rows['chance']['right_object']:13.0%}  "
              + ("     -" if bridge is None else f"{bridge['right_object']:6.0%}")
              + f"  {ours['right_object']:6.0%}  {ours['recall_20']:7.0%}  {ours['precision_20']:9.0%}  "
              f"{ours['number_right']:6.0%}  {ours['median_error_deg']:5.1f}°")


def main(config: BenchmarkConfig) -> dict:
    """Prints the tables, draws the figures and writes the JSON file if wanted, and returns the figures."""
    settings = EvaluateConfig(models=config.models or shipped_models(), data=config.data, scenes=config.scenes,
                              view_size=config.view_size, view_projection=config.view_projection, json=config.json)
    report = evaluate(settings, more=partial(references, config), sounding=(1, 2, 3),
                      tasks=partial(further_tables, config), then=partial(behaviour, config))
    print_summary(report["positive"])
    return report


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(BenchmarkConfig, description=__doc__))
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
