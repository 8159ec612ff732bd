"""How large need views be? What each size finds, and what a step then takes, beside EZ-VSL's and DenseAV's networks.

    python benchmarks/view_sizes.py [--scenes 200] [--json FILE]      (make bench-sizes)

A row for each width of a view in pixels (`view_size` of the node), all on the same scenes with the same model and the
confidence that was fitted for its own size. Scenes are composites of test items, as in benchmarks/localization.py;
training/evaluate.py explains what is measured:

right          the strongest answer is nearest to an object that sounds, where 1, 2 and 3 of 4 do
F@20           answers matched with those objects within 20 degrees
false          scenes in which nothing in view sounds and something is answered: a fan, a recorded background, a sound
               from out of view
step           milliseconds from the JPEG message of 1920 x 960 pixels to messages, as in benchmarks/latency.py, median
not encoder    share of the step
EZ-VSL, DenseAV  how many times as long their networks take on views of 224 x 224 pixels, in turns with the steps
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import tyro

from avssl_ros import Localizer
from avssl_ros.paths import shipped_models
from benchmarks import latency
from training.evaluate import Chance, Ours, labels_by_name, run_negative, run_positive, write_report
from training.scenes import SceneGenerator, open_scenes

SOUNDING = 1, 2, 3
NEGATIVES = "fan", "recorded background", "offscreen sound"


@dataclass(frozen=True)
class ViewSizesConfig:
    """What to try, on how much."""

    data: Path = Path("../shared/data")
    models: Path | None = None  # model folder; None: the shipped one
    sizes: tuple[int, ...] = (128, 160, 192, 224, 288, 352)  # pixels, multiples of 32
    scenes: int = 200  # of each number of sounding objects; half as many of each negative
    seed: int = 2  # benchmarks/localization.py's
    threads: int = 2  # of the steps and the networks beside them
    repeats: int = 60  # of the steps
    baselines: bool = True  # whether EZ-VSL's and DenseAV's networks take part
    json: Path | None = None  # also write the figures here

    def __post_init__(self):
        if not self.sizes or min(self.scenes, self.threads, self.repeats) < 1:
            raise ValueError(f"sizes must not be empty, and scenes, threads and repeats > 0, got {self}")


def accuracy(localizers: dict[int, Localizer], generator: SceneGenerator, scenes: int) -> dict[str, dict]:
    """What chance and `Localizer.localize` find, by the size as text."""
    methods = [Chance(), *(Ours(localizer, str(size)) for size, localizer in localizers.items())]
    found: dict[str, dict] = {method.name: {"sounding": {}, "false_alarms": {}} for method in methods}
    for number in SOUNDING:
        make = partial(generator.scene, sounding=number)
        rows = run_positive(make, methods, number, scenes, labels_by_name())
        for name, row in rows.items():
            found[name]["sounding"][str(number)] = row
    for kind in NEGATIVES:
        for size, localizer in localizers.items():
            row = run_negative(generator, localizer, kind, max(scenes // 2, 1))
            found[str(size)]["false_alarms"][kind] = row["false_alarms"]
    return found


def steps(localizers: dict[int, Localizer], config: ViewSizesConfig) -> dict[str, dict]:
    """Summaries of the step with views of each size, by the size as text, and of the networks of others."""
    networks, said = latency.baseline_files(latency.BenchmarkConfig(baselines=config.baselines))
    print(f"EZ-VSL and DenseAV: {said}", file=sys.stderr)
    first = next(iter(localizers.values()))
    moments = latency.read_moments(latency.BenchmarkConfig().frames, first.window_seconds)
    contenders = {str(size): latency.Step(localizer, moments) for size, localizer in localizers.items()}
    if networks:
        views = latency.square_views(moments.images[0], first.layout)
        contenders |= latency.baseline_contenders(networks, views, config.threads)
    before = cv2.getNumThreads()
    cv2.setNumThreads(config.threads)
    try:
        return latency.summaries(contenders, config.repeats, "steps", {latency.DENSEAV: 10})
    finally:
        cv2.setNumThreads(before)


def print_table(report: dict) -> None:
    machine = report["machine"]
    print(f"\n{report['scenes']} generated scenes for each number of sounding objects; steps on {report['threads']} "
          f"thread(s) of {machine['cpu']}, {machine['cores']} cores, load at the start {machine['load']}\n"
          f"{'views':<8}{'right: 1':>9}{'2':>6}{'3 of 4':>8}{'F@20: 1':>10}{'2':>6}{'3 of 4':>8}{'false: fan':>12}"
          f"{'background':>12}{'offscreen':>11}{'step':>8}{'p95':>7}{'not encoder':>13}{'EZ-VSL':>8}{'DenseAV':>9}")
    for name, row in report["rows"].items():
        right, f = ([row["sounding"][str(n)][key] for n in SOUNDING] for key in ("right_object", "f_20"))
        line = (f"{name:<8}{right[0]:>9.0%}{right[1]:>6.0%}{right[2]:>8.0%}{f[0]:>10.0%}"
                f"{f[1]:>6.0%}{f[2]:>8.0%}")
        if step := report["steps"].get(name):
            false = (row["false_alarms"][kind] for kind in NEGATIVES)
            line += "".join(f"{share:>{width}.0%}" for share, width in zip(false, (12, 12, 11)))
            line += f"{step['median_ms']:>8.1f}{step['p95_ms']:>7.1f}{step['not_encoder_share']:>13.0%}"
            for network, width in ((latency.EZVSL, 8), (latency.DENSEAV, 9)):
                other = report["steps"].get(network)
                line += f"{other['median_ms'] / step['median_ms']:>{width}.1f}" if other else f"{'-':>{width}}"
        print(line)


def main(config: ViewSizesConfig) -> dict:
    """Prints the table, writes the JSON file if one is wanted, and returns the figures."""
    report: dict = {"machine": latency.machine(), "scenes": config.scenes, "threads": config.threads}
    models = config.models or shipped_models()
    localizers = {size: Localizer(models, threads=config.threads, view_size=size) for size in config.sizes}
    report["steps"] = steps(localizers, config)
    generator = open_scenes(config.data, "test", config.seed)
    report["rows"] = accuracy(localizers, generator, config.scenes)
    generator.collection.close()
    print_table(report)
    write_report(report, config.json)
    return report


if __name__ == "__main__":
    main(tyro.cli(ViewSizesConfig, description=__doc__))
