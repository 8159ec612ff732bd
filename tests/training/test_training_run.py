"""A real, tiny training run: it resumes where it was killed, and its export is what torch computes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from tensorboard.backend.event_processing import event_accumulator  # noqa: E402

from avssl_ros import Localizer  # noqa: E402
from training import export  # noqa: E402
from training import train as training  # noqa: E402
from training.clip_collection import ClipsConfig  # noqa: E402
from training.mixing import MixConfig  # noqa: E402
from training.train import TrainConfig, learning_rate_scale, read_configuration, train  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.shared]
SHARED = Path(__file__).resolve().parents[3] / "shared"
TRAIN = Path(__file__).resolve().parents[2] / "training" / "train.py"


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


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    """The model folder of that run; read by several tests, written by none."""
    return export.export(export.ExportConfig(run=run[0].run, output=tmp_path_factory.mktemp("exported") / "models"))


def test_a_stopped_run_goes_on_where_it_was(run):
    config, metrics = run
    lines = [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(metrics) == {"named", "points", "gate_silence", "gate_sound"}
    assert json.loads((config.run / "config.json").read_text())["steps"] == 4


def curve(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def start(config: TrainConfig, folder: Path) -> subprocess.Popen:
    """A real run as a user starts it, configured by a file."""
    file = folder / "config.json"
    file.write_text(json.dumps(asdict(config), default=str))
    command = [sys.executable, str(TRAIN), "--config", str(file)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, cwd=folder)


@pytest.mark.timeout(900)  # three processes that import torch and train, beside others
def test_a_run_killed_in_the_middle_ends_with_the_curve_of_an_unbroken_one(run, tmp_path):
    config = replace(run[0], steps=5, checkpoint_every=1, validate_every=5, precision="32-true", accelerator="cpu")
    whole, broken = replace(config, run=tmp_path / "whole"), replace(config, run=tmp_path / "broken")
    first = start(broken, tmp_path)
    log = broken.run / "log.jsonl"
    while first.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 2):
        time.sleep(0.05)
    first.kill()
    assert first.wait() == -signal.SIGKILL, first.stderr.read()
    assert start(broken, tmp_path).wait(400) == 0 and start(whole, tmp_path).wait(400) == 0
    assert [line["step"] for line in curve(broken.run)] == [1, 2, 3, 4, 5]
    for resumed, unbroken in zip(curve(broken.run), curve(whole.run)):
        assert resumed == pytest.approx(unbroken, rel=1e-5, nan_ok=True)


def test_of_several_ranks_one_cuts_the_log_back_to_the_checkpoint(tmp_path):
    """They would replace it by one temporary file, which the second of them no longer finds."""
    config, log = TrainConfig(run=tmp_path), tmp_path / "log.jsonl"
    part = torch.nn.Linear(1, 1)
    torch.save({name: part.state_dict() for name in ("model", "average", "optimizer")} | {"step": 2},
               tmp_path / "checkpoint.pt")
    log.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))
    for first, lines in ((False, 3), (True, 2)):
        assert training._resume(SimpleNamespace(is_global_zero=first), config, part, part, part) == 2
        assert len(log.read_text().splitlines()) == lines


def test_the_state_of_the_optimiser_is_loaded_when_everything_is_on_its_device(run, monkeypatch):
    """Loaded before, it stays on the processor, and the first step of a resumed run on a GPU fails."""
    order, setup, load = [], training.Fabric.setup, torch.optim.AdamW.load_state_dict
    monkeypatch.setattr(training.Fabric, "setup", lambda *args, **kw: (order.append("setup"), setup(*args, **kw))[1])
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda *args: (order.append("load"), load(*args))[1])
    monkeypatch.setattr(torch.optim.swa_utils.AveragedModel, "to",
                        lambda self, *args: (order.append("move"), self)[1])
    train(run[0])  # it has ended, and is judged once more
    assert order == ["setup", "move", "load"]


def test_a_run_of_another_configuration_is_not_gone_on_with(run, tmp_path):
    folder = shutil.copytree(run[0].run, tmp_path / "run")
    kept, config = (folder / "config.json").read_bytes(), replace(run[0], run=folder)
    for other in (replace(config, trunk_rate=0.1, mix=replace(config.mix, sounds=3)),
                  replace(config, clips=ClipsConfig(tmp_path, labels=False))):
        with pytest.raises(ValueError, match=r"another (--mix.sounds, --trunk-rate|--clips.labels, --clips.shards): "
                                             "give .*give another --run"):
            train(other)
    with pytest.raises(ValueError, match="at step 4 already, --steps is 3: give more, or give another --run"):
        train(replace(config, steps=3))
    assert (folder / "config.json").read_bytes() == kept
    training._refuse_another(replace(config, steps=9, data=tmp_path, workers=3, validate_every=1, precision="32-true",
                                     clips=ClipsConfig(memory_gb=1.0, disk=tmp_path)))
    (folder / "checkpoint.pt").unlink()  # nothing has come of it yet
    training._refuse_another(replace(config, trunk_rate=0.1))


def test_what_has_nothing_to_learn_from_waits_for_no_gradients(run):
    """Of several ranks each would wait for them, and the second step fail."""
    learns = {views: [name for name, encoder in training.build(replace(
        run[0], mix=MixConfig(views=views)))[0].named_children() if any(p.requires_grad for p in encoder.parameters())]
        for views in (0, 2)}  # fmt: skip
    assert learns == {0: ["audio"], 2: ["visual", "audio"]}


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert training.choose_precision(TrainConfig()) == "32-true"


def test_the_caches_of_training_and_validation_together_keep_to_the_limits(monkeypatch):
    monkeypatch.setattr(training, "open_collection", lambda data, clips, *rest: clips)
    config = TrainConfig(clips=ClipsConfig(memory_gb=4.0, disk_gb=50.0))
    parts = [training._collection(config, split) for split in ("train", "validation")]
    assert sum(part.memory_gb for part in parts) == pytest.approx(4.0) and parts[0].memory_gb == pytest.approx(3.6)
    assert sum(part.disk_gb for part in parts) == pytest.approx(50.0)
    assert training._collection(replace(config, split="validation"), "validation") == config.clips


def test_a_wrong_configuration_key_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"stepps": 3}))
    command = [sys.executable, str(TRAIN), "--config", str(tmp_path / "config.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2 and "--stepps" in result.stderr and "--steps" in result.stderr


def test_the_command_line_overrides_the_configuration_file(run):
    config = read_configuration(["--config", str(run[0].run / "config.json"), "--steps", "9", "--mix.sounds", "3"])
    assert config == replace(run[0], steps=9, mix=replace(run[0].mix, sounds=3))


def test_a_run_leaves_its_provenance_and_pictures(run):
    provenance = json.loads((run[0].run / "provenance.json").read_text())
    assert provenance["processes"] == 1 and provenance["torch"] == torch.__version__ and "git" in provenance
    events = event_accumulator.EventAccumulator(str(run[0].run / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    assert {"loss", "clustering", "named"} <= set(events.Tags()["scalars"])
    picture = events.Images("scene 0")[0]
    assert (picture.width, picture.height) == (4 * 168, run[0].mix.views * 168)


def test_the_export_is_what_torch_computes_and_the_runtime_loads_it(run, tmp_path):
    left_over = tmp_path / "models/visual_int8.onnx"
    left_over.parent.mkdir()
    left_over.write_bytes(b"of the model that was there before")
    export.export(export.ExportConfig(run=run[0].run, output=tmp_path / "models"))
    assert Localizer(tmp_path / "models").manifest["training"]["step"] == 4
    assert not left_over.exists()


def test_an_audio_encoder_alone_joins_the_visual_one_of_a_model_folder(run, models, tmp_path):
    other = replace(run[0], run=tmp_path / "audio", seed=3, mix=replace(run[0].mix, views=0))
    train(other)
    joined = export.export(export.ExportConfig(other.run, visual_from=models, output=tmp_path / "joined"))
    assert (joined / "visual.onnx").read_bytes() == (models / "visual.onnx").read_bytes()
    assert (joined / "audio.onnx").read_bytes() != (models / "audio.onnx").read_bytes()
    both = export.ExportConfig(other.run, visual_from=models, audio_with=models, output=tmp_path / "mean")
    mean = export.export(both)
    sound = np.random.default_rng(0).normal(size=(1, 128, 200)).astype(np.float32)
    first, second, middle = (Localizer(folder).encoders.audio(sound) for folder in (models, joined, mean))
    assert np.abs(first - second).max() > 1e-4  # one step of training apart: the mean of the weights lies between
    np.testing.assert_allclose(middle, (first + second) / 2, atol=0.3 * np.abs(first - second).max())
    swapped = export.export(export.ExportConfig(other.run, audio_from=models, output=tmp_path / "swapped"))
    assert (swapped / "audio.onnx").read_bytes() == (models / "audio.onnx").read_bytes()
    with pytest.raises(ValueError, match="either kept"):
        export.export(export.ExportConfig(other.run, audio_from=models, audio_with=joined, output=tmp_path / "both"))
    assert not (tmp_path / "both").exists()
    described = Localizer(swapped).manifest
    assert described["training"]["audio_from"]["sha256"] == described["audio"]["sha256"]
    training = Localizer(joined).manifest["training"]
    assert training["step"] == 4 and training["mix"]["views"] == 2 and training["audio_run"]["mix"]["views"] == 0


def test_a_run_goes_on_from_a_model_folder_and_may_leave_one_encoder_alone(run, models, tmp_path):
    further = replace(run[0], run=tmp_path / "further", start=models, learns="visual", steps=2)
    train(further)
    after = export.export(export.ExportConfig(run=further.run, output=tmp_path / "after"))
    audio = [onnxruntime.InferenceSession(folder / "audio.onnx") for folder in (models, after)]
    sound = {"log_mel": np.random.default_rng(0).standard_normal((1, 128, 200)).astype(np.float32)}
    first, second = (session.run(None, sound)[0] for session in audio)
    np.testing.assert_allclose(first, second, atol=1e-5)
    half = export.export(export.ExportConfig(run=further.run, visual_with=models, output=tmp_path / "half"))
    bias = [onnx.numpy_helper.to_array(next(part for part in onnx.load(folder / "visual.onnx").graph.initializer
                                            if part.name == "head.deep.bias")) for folder in (models, half, after)]
    np.testing.assert_allclose(bias[1], (bias[0] + bias[2]) / 2, atol=1e-7)
    assert not np.array_equal(bias[0], bias[2])
    started = Localizer(models).manifest["visual"]["sha256"]
    assert Localizer(half).manifest["training"]["visual_with"]["sha256"] == started
    manifest = Localizer(after).manifest["training"]
    assert manifest["started_from"]["visual"] == started
    assert (after / "visual.onnx").read_bytes() != (models / "visual.onnx").read_bytes()


def test_a_model_folder_of_another_space_is_refused(run, models, tmp_path):
    with pytest.raises(ValueError, match="VisualEncoder of 128 dimensions"):
        train(replace(run[0], run=tmp_path / "other", start=models, dimensions=128))


def test_a_run_in_which_nothing_can_be_learnt_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="mix.views is 0"):
        train(replace(run[0], run=tmp_path / "none", learns="visual", mix=replace(run[0].mix, views=0)))


def test_an_export_that_differs_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="differs from torch"):
        export.export(export.ExportConfig(run=run[0].run, output=tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_the_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(steps=100, warm_up=10, decay=0.2)
    scales = [learning_rate_scale(step, config) for step in range(101)]
    assert scales[0] == pytest.approx(0.1) and scales[50] == 1.0
    assert scales[90] == pytest.approx(0.5) and scales[100] == 0.0
    assert learning_rate_scale(0, replace(config, warm_up=0)) == 1.0


def test_missing_data_is_said_clearly(run, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match="no-such-folder"):
        train(replace(run[0], data=Path("no-such-folder"), run=tmp_path / "run"))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
