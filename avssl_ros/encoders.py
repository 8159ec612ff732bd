"""The two ONNX encoders and the manifest that ties them together.

A model folder holds visual.onnx, audio.onnx and manifest.json (dimensions, rates, labels, prototypes, decision
thresholds, SHA-256 of each file, training run). Anything that does not fit together is an error with both values named.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from avssl_ros import features
from avssl_ros.paths import shipped_models

FORMAT = 3
PREFERRED_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
MAX_MODEL_BYTES = 200_000_000


def read_manifest(folder: Path) -> dict:
    """The checked manifest of a model folder.

    Raises:
        FileNotFoundError: no folder, manifest or model file.
        ValueError: unreadable manifest, other format, other front end, or a file whose SHA-256 differs.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model manifest at {path}; give a folder with manifest.json, visual.onnx, audio.onnx"
        )
    try:
        manifest = json.loads(path.read_text())
        _check_manifest(manifest, path)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged or not a manifest of avssl_ros: {error!r}; export the model again"
        ) from error
    for part in ("visual", "audio"):
        _check_file(path.parent / manifest[part]["file"], manifest[part]["sha256"])
    return manifest


def _check_manifest(manifest: dict, path: Path) -> None:
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']!r}, this version reads {FORMAT}; export the model again"
        )
    wanted = {"sample_rate": features.SAMPLE_RATE, "hop": features.HOP, "mels": features.N_MELS}
    for name, value in wanted.items():
        if manifest["audio"][name] != value:
            raise ValueError(f"{path}: audio {name} is {manifest['audio'][name]!r}, this front end computes {value}")
    shape = np.shape(manifest["prototypes"])
    if shape != (len(manifest["labels"]), manifest["dimensions"]):
        raise ValueError(
            f"{path}: prototypes have shape {shape}, but there are {len(manifest['labels'])} labels "
            f"of {manifest['dimensions']} dimensions"
        )
    for part in ("visual", "audio"):
        if Path(manifest[part]["file"]).name != manifest[part]["file"]:
            raise ValueError(f"{path}: {part} file must lie in the model folder itself, got {manifest[part]['file']!r}")
    manifest["visual"]["size"], manifest["visual"]["stride"], manifest["audio"]["seconds"], manifest["decision"]


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"model file {path} is missing; install the package again or export the model again")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ValueError(f"model file {path} has {path.stat().st_size} bytes, more than {MAX_MODEL_BYTES}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"model file {path} was altered: its SHA-256 is {found}, the manifest says {expected}; "
            "install the package again or export the model again"
        )


def choose_providers(wanted=None) -> list[str]:
    """ONNX Runtime providers in order of preference; CPU is always the last resort when None is given.

    Raises:
        ValueError: a provider that this onnxruntime does not have.
    """
    available = onnxruntime.get_available_providers()
    if wanted is None:
        return [name for name in PREFERRED_PROVIDERS if name in available]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        raise ValueError(
            f"ONNX Runtime provider {unknown or wanted!r} is not available, this installation has {available}; "
            "for an NVIDIA GPU install onnxruntime-gpu (pip install 'avssl_ros[gpu]')"
        )
    return wanted


class Encoders:
    """Image patches and time-frequency patches to embeddings in the unit ball.

    Args:
        models: model folder; None for the shipped one.
        providers: ONNX Runtime provider name or names; None chooses TensorRT, CUDA or CPU, whatever is there first.
        threads: on the CPU, at least 1, for views side by side and within one network; None takes all there are.
    """

    def __init__(self, models=None, providers=None, threads: int | None = None):
        folder = shipped_models() if models is None else Path(models)
        self.manifest = read_manifest(folder)
        self.dimensions: int = self.manifest["dimensions"]
        self.size: int = self.manifest["visual"]["size"]
        self.stride: int = self.manifest["visual"]["stride"]
        options, chosen = _session_options(threads), choose_providers(providers)
        paths = [folder / self.manifest[part]["file"] for part in ("visual", "audio")]
        self._visual, self._audio = (_session(path, options, chosen) for path in paths)
        self.providers = tuple(self._visual.get_providers())
        self._workers = threads or len(os.sched_getaffinity(0))
        self._one_thread = self._pool = None
        if self._workers > 1 and self.providers[0] == "CPUExecutionProvider":
            self._one_thread = _session(paths[0], _session_options(1), chosen)
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="view")

    def visual(self, views: np.ndarray) -> np.ndarray:
        """RGB uint8 (N, H, W, 3), H and W multiples of 32, to (N, H / stride, W / stride, D) float32."""
        views = np.ascontiguousarray(views)
        if self.providers[0] != "CPUExecutionProvider":
            return self._visual.run(None, {"views": views})[0]
        # One view at a time stays in the processor's caches, and views side by side need not wait for each other after
        # every layer, as the threads within a network do: alone on 2 cores a third faster than one after another.
        side_by_side = self._pool is not None and len(views) > 1
        session, run = (self._one_thread, self._pool.map) if side_by_side else (self._visual, map)
        return np.concatenate(list(run(lambda view: session.run(None, {"views": view[None]})[0], views)))

    def audio(self, log_mel: np.ndarray) -> np.ndarray:
        """Normalised log-mel (N, bands, frames) float32 to (N, bands / 16, frames / 16, D) float32, rounded up."""
        return self._audio.run(None, {"log_mel": np.ascontiguousarray(log_mel, dtype=np.float32)})[0]


def _session_options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        if not isinstance(threads, (int, np.integer)) or not 1 <= threads <= 256:
            raise ValueError(f"threads must be a whole number 1..256 or None, got {threads!r}")
        options.intra_op_num_threads = int(threads)
    # Spinning between frames would burn a core of the robot for nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(path: Path, options, providers: list[str]) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises several types of its own that share no base but Exception
        raise ValueError(f"{path} is not a model that ONNX Runtime can load: {error}") from error
