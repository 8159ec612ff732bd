"""Where does the sound come from? The shipped model on generated scenes that training never saw, beside references.

    python benchmarks/localization.py [--scenes 200] [--json FILE]      (make bench-localization)

The tables are those of training/evaluate.py, which explains their columns and the rows that do not listen. Where the
pretrained weights are at hand (--weights), the label bridge (benchmarks/label_bridge.py) joins them. All scenes are
composites of real photographs, recordings and panoramas of the test split (training/splits.csv).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl_ros.paths import shipped_models
from training.evaluate import EvaluateConfig, evaluate
from training.train import TAGGER_FILE


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, on how much."""

    data: Path = Path("../shared/data")  # folder with photos/, sounds/, esc10/ and panoramas/
    weights: Path = Path("../shared/weights")  # folder with the tagger of the label bridge
    models: Path | None = None  # model folder; None: the shipped one
    view_size: int | None = None  # pixels of a view; None: the model's own
    scenes: int = 200  # a row; half of it a negative
    json: Path | None = None  # also write the figures here


def references(config: BenchmarkConfig, localizer) -> list:
    """The rows beside the priors."""
    if not (config.weights / TAGGER_FILE).exists():
        print(f"no label bridge: {config.weights / TAGGER_FILE} is not there", file=sys.stderr)
        return []
    from benchmarks.label_bridge import LabelBridge

    return [LabelBridge(localizer, config.weights)]


def main(config: BenchmarkConfig) -> dict:
    """Prints the tables and returns the figures."""
    settings = EvaluateConfig(models=config.models or shipped_models(), data=config.data, scenes=config.scenes,
                              view_size=config.view_size, json=config.json)
    return evaluate(settings, more=lambda localizer: references(config, localizer))


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(BenchmarkConfig, description=__doc__))
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
