"""Makes the model folder that the runtime loads of a training run.

    python training/export.py --run runs/first --output models
    python training/export.py --run runs/audio --visual-from models                 # another audio encoder alone,
    python training/export.py --run runs/audio --visual-from models --audio-with models          # or the mean of both
    python training/export.py --run runs/sight --audio-from models                  # another visual encoder alone

Checks ONNX Runtime against torch on random and real-sized inputs (largest difference 1e-4) and refuses to write
otherwise. What a processor computes faster is added by `training/quantize.py`, which is run on the new folder
afterwards, and the decision thresholds by `training/calibrate.py`, which comes last; until then they are neutral ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
import onnxruntime
import torch

from avssl_ros import features
from avssl_ros.clustering import NEUTRAL_DECISION
from avssl_ros.encoders import FORMAT, read_manifest
from training.clip_collection import ClipsConfig
from training.data import read_concepts
from training.discover import discover
from training.mixing import SECONDS, SIZE
from training.networks import VISUAL_STRIDE, prototypes
from training.quantize import FILE as INTEGERS_FILE
from training.train import Encoders

TOLERANCE = 1e-4
# Pixels of a view's width at run time: what sounds is mostly smaller in a 360 degree picture than in training's scenes.
VIEW_SIZE = 352
# Where things lay on the machine of the run: not of the model.
PLACES = ("data", "more_items", "start", "weights", "cache", "run", "command")


@dataclass(frozen=True)
class ExportConfig:
    """What to export and where to."""

    run: Path = Path("runs/first")  # folder with checkpoint.pt and config.json
    audio_run: Path | None = None  # another run: the audio encoder is the mean of both
    visual_from: Path | None = None  # model folder whose visual encoder is kept: `run` trained the audio encoder alone
    audio_from: Path | None = None  # the same the other way round: `run` trained the visual one anew
    audio_with: Path | None = None  # model folder: the audio encoder is the mean with the one there
    visual_with: Path | None = None  # the same of the visual encoder: half way from where a run started to its end
    view_size: int = VIEW_SIZE  # pixels of a view's width at run time; a larger one sees more and costs more
    kinds: int = 48  # of sound at most, of a run on clips without labels (training/discover.py)
    output: Path = Path("models")  # model folder; its files are replaced, and the encoder in integers is removed


def load_average(run: Path) -> tuple[Encoders, dict, int]:
    """The averaged encoders of a run, its configuration and its step."""
    config, provenance = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "provenance"))
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = Encoders(config["dimensions"])
    prefix = "module."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state["average"].items() if k.startswith(prefix)})
    described = {key: value for key, value in {**config, **provenance}.items() if key not in PLACES}
    if "clips" in described:
        described["clips"] = {key: value for key, value in described["clips"].items() if key in ("labels", "decoder")}
    return model.eval(), described, state["step"]


def mean_weights(first: dict, second: dict) -> dict:
    """Mean of two state dicts that were fine-tuned from the same weights: a model soup (Wortsman et al. 2022)."""
    return {key: (value + second[key]) / 2 if value.is_floating_point() else value for key, value in first.items()}


def average_models(path: Path, other: Path) -> None:
    """Replaces the weights of an ONNX file by their mean with those of another of the same architecture, in place.

    A model soup of what no checkpoint is left of. Batch normalisation is folded into the convolutions of both.
    Raises ValueError where the two differ in anything but the values of their weights.
    """
    model, second = onnx.load(path), {part.name: part for part in onnx.load(other).graph.initializer}
    if {part.name: tuple(part.dims) for part in model.graph.initializer} != {
            name: tuple(part.dims) for name, part in second.items()}:
        raise ValueError(f"{other} has other weights than {path.name} of this run: only encoders of one architecture "
                         "can be averaged")
    for part in model.graph.initializer:
        mine, theirs = onnx.numpy_helper.to_array(part), onnx.numpy_helper.to_array(second[part.name])
        if mine.dtype == np.float32:
            part.CopyFrom(onnx.numpy_helper.from_array((mine + theirs) / 2, part.name))
    onnx.save(model, path)


def _export(module: torch.nn.Module, example: torch.Tensor, name: str, dynamic: dict, path: Path) -> None:
    torch.onnx.export(module, (example,), str(path), input_names=[name], output_names=["patches"],
                      dynamic_axes={name: dynamic}, opset_version=17, dynamo=False)


def largest_difference(module: torch.nn.Module, name: str, path: Path, inputs: list[torch.Tensor]) -> float:
    """Largest absolute difference between torch and ONNX Runtime over some inputs."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        return max(float(np.abs(module(x).numpy() - session.run(None, {name: x.numpy()})[0]).max()) for x in inputs)


def _views(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count + width)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def _log_mels(count: int, frames: int) -> torch.Tensor:
    return torch.randn(count, features.N_MELS, frames, generator=torch.Generator().manual_seed(frames))


def write_encoder(name: str, module: torch.nn.Module, path: Path) -> float:
    """Writes the ONNX file of encoder "visual" or "audio" and returns its largest difference from torch.

    Raises ValueError where that is more than TOLERANCE.
    """
    frames = int(SECONDS * features.SAMPLE_RATE - 1) // features.HOP + 1
    input_name, dynamic, example, inputs = {
        "visual": ("views", {0: "views", 1: "height", 2: "width"}, _views(4, SIZE, SIZE),
                   [_views(4, SIZE, SIZE), _views(1, SIZE, 384), _views(6, SIZE, SIZE)]),
        "audio": ("log_mel", {0: "mixtures", 2: "frames"}, _log_mels(1, frames),
                  [_log_mels(1, frames), _log_mels(2, frames), _log_mels(1, 2 * frames)]),
    }[name]  # fmt: skip
    _export(module, example, input_name, dynamic, path)
    difference = largest_difference(module, input_name, path, inputs)
    if not difference <= TOLERANCE:
        raise ValueError(f"{name}.onnx differs from torch by {difference:.2e}, more than {TOLERANCE}; not written")
    return difference


def export(config: ExportConfig) -> Path:
    """Writes visual.onnx, audio.onnx and manifest.json, or raises ValueError and writes nothing."""
    if (config.visual_from and config.visual_with) or (config.audio_from and (config.audio_with or config.audio_run)):
        raise ValueError("an encoder is either kept (--visual-from, --audio-from) or a mean (--visual-with, "
                         "--audio-with, --audio-run): give one of the two for each")
    model, run, step = load_average(config.run)
    if config.audio_run is not None:
        other, audio_run, audio_step = load_average(config.audio_run)
        if audio_run["dimensions"] != run["dimensions"]:
            raise ValueError(f"{config.run} has {run['dimensions']} dimensions and {config.audio_run} "
                             f"{audio_run['dimensions']}: encoders of one model need the same space")
        model.audio.load_state_dict(mean_weights(model.audio.state_dict(), other.audio.state_dict()))
        run = {**run, "audio_run": {**audio_run, "step": audio_step}}
    if config.view_size % 32 or not 64 <= config.view_size <= 1024:
        raise ValueError(f"view_size must be a multiple of 32 from 64 to 1024, got {config.view_size}")
    labels, frame = named_prototypes(model, config, run["dimensions"])
    parts = {"visual": model.visual, "audio": model.audio}
    with tempfile.TemporaryDirectory() as folder:
        hashes, trained = {}, {**run, "step": step}
        if config.visual_from is not None:
            hashes["visual"] = _keep("visual", config.visual_from, Path(folder), run["dimensions"])
            trained = {**_described(config.visual_from, "visual")["training"], "audio_run": trained}
            del parts["visual"]
        if config.audio_from is not None:
            hashes["audio"] = _keep("audio", config.audio_from, Path(folder), run["dimensions"])
            trained = {**trained, "audio_from": _described(config.audio_from, "audio")}
            del parts["audio"]
        for name, module in parts.items():
            path = Path(folder) / f"{name}.onnx"
            difference = write_encoder(name, module, path)
            other = config.audio_with if name == "audio" else config.visual_with
            if other is not None:
                average_models(path, other / f"{name}.onnx")
                trained = {**trained, f"{name}_with": _described(other, name)}
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            print(f"{name}: {path.stat().st_size / 1e6:.1f} MB, largest difference from torch {difference:.1e}")
        manifest = _manifest(model, trained, hashes, labels, frame, config.view_size)
        manifest["made_by"] = _made_by(labels)
        (Path(folder) / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        config.output.mkdir(parents=True, exist_ok=True)
        for name in ("visual.onnx", "audio.onnx", "manifest.json"):
            shutil.copy(Path(folder) / name, config.output / name)
        (config.output / INTEGERS_FILE).unlink(missing_ok=True)  # of the model that was there before
    return config.output


def named_prototypes(model: Encoders, config: ExportConfig, dimensions: int) -> tuple[list[str], np.ndarray]:
    """Labels and prototypes (C, D): of the concepts, or what the run has found in clips without labels."""
    run = json.loads((config.run / "config.json").read_text())
    clips = run.get("clips", {})
    if run["data"] not in (None, "None") or clips.get("labels", True):
        concepts = read_concepts()
        return [concept.label for concept in concepts], prototypes(len(concepts), dimensions).numpy()
    clips = {name: Path(value) if name in ("shards", "disk") and value else value for name, value in clips.items()}
    return discover(model.audio, ClipsConfig(**clips), config.kinds)


def _keep(name: str, models: Path, folder: Path, dimensions: int) -> str:
    """Copies encoder "visual" or "audio" of a model folder and returns its hash."""
    kept = read_manifest(models)
    if kept["dimensions"] != dimensions:
        raise ValueError(f"{models} has {kept['dimensions']} dimensions and the run {dimensions}: encoders of one "
                         "model need the same space")
    shutil.copy(models / kept[name]["file"], folder / f"{name}.onnx")
    return kept[name]["sha256"]


def _described(models: Path, name: str) -> dict:
    """The hash of one encoder of a model folder, and the training it came of."""
    manifest = read_manifest(models)
    training = {key: value for key, value in manifest["training"].items() if key != "audio_run" or name == "audio"}
    return {"sha256": manifest[name]["sha256"], "training": training}


def _made_by(labels: list[str]) -> dict[str, list[str]]:
    """Labels of what is heard to labels of what else is seen to make it, see Concept."""
    label_of = {concept.name: concept.label for concept in read_concepts()}
    return {concept.label: [label_of[name] for name in concept.made_by if label_of[name] in labels]
            for concept in read_concepts() if concept.made_by and concept.label in labels}


def _manifest(model: Encoders, trained: dict, hashes: dict[str, str], labels: list[str], frame, view_size: int) -> dict:
    return {
        "format": FORMAT,
        "dimensions": trained["dimensions"],
        "visual": {"file": "visual.onnx", "sha256": hashes["visual"], "size": view_size, "stride": VISUAL_STRIDE,
                   "parameters": sum(p.numel() for p in model.visual.parameters())},
        "audio": {"file": "audio.onnx", "sha256": hashes["audio"], "seconds": SECONDS, "stride": features.PATCH,
                  "sample_rate": features.SAMPLE_RATE, "hop": features.HOP, "mels": features.N_MELS,
                  "parameters": sum(p.numel() for p in model.audio.parameters())},
        "decision": NEUTRAL_DECISION,
        "training": trained,
        "labels": labels,
        "prototypes": [[round(float(x), 5) for x in row] for row in frame],
    }  # fmt: skip


if __name__ == "__main__":
    import tyro

    export(tyro.cli(ExportConfig))
