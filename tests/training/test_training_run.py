"""A real, tiny training run: it resumes where it was killed, and its export is what torch computes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from avssl_ros import Localizer  # noqa: E402
from training import export  # noqa: E402
from training.mixing import MixConfig  # noqa: E402
from training.train import TrainConfig, learning_rate_scale, train  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.shared]
SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of four steps that was stopped after two."""
    config = TrainConfig(
        data=SHARED / "data", weights=SHARED / "weights", run=tmp_path_factory.mktemp("runs") / "tiny",
        cache=tmp_path_factory.mktemp("cache"), steps=2, scenes=1,
        align_steps=1, warm_up=1, log_every=1, validate_every=2, validation_scenes=2, workers=0, split="validation",
        mix=MixConfig(views=2, sounds=2),
    )  # fmt: skip
    train(config)
    return replace(config, steps=4), train(replace(config, steps=4))


def test_a_stopped_run_goes_on_where_it_was(run):
    config, metrics = run
    lines = [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(metrics) == {"named", "points", "gate_silence", "gate_sound"}
    assert json.loads((config.run / "config.json").read_text())["steps"] == 4


def test_the_export_is_what_torch_computes_and_the_runtime_loads_it(run, tmp_path):
    export.export(export.ExportConfig(run=run[0].run, output=tmp_path / "models"))
    assert Localizer(tmp_path / "models").manifest["training"]["step"] == 4


def test_an_export_that_differs_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="differs from torch"):
        export.export(export.ExportConfig(run=run[0].run, output=tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_the_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(steps=100, warm_up=10, decay=0.2)
    scales = [learning_rate_scale(step, config) for step in range(101)]
    assert scales[0] == pytest.approx(0.1) and scales[50] == 1.0 and scales[90] == pytest.approx(0.5) and scales[100] == 0.0


def test_missing_data_is_said_clearly(run, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match="no-such-folder"):
        train(replace(run[0], data=Path("no-such-folder"), run=tmp_path / "run"))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
