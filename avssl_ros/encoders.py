"""The two ONNX encoders and the manifest that ties them together.

A model folder holds visual.onnx, audio.onnx and manifest.json (dimensions, rates, labels, prototypes, decision
thresholds, SHA-256 of each file, training run), and mostly visual_int8.onnx, the visual encoder in 8-bit integers,
which a processor computes faster (training/quantize.py). Anything that does not fit together is an error with both
values named.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from avssl_ros import features
from avssl_ros.clustering import NEUTRAL_DECISION
from avssl_ros.json_input import is_number, parse_object
from avssl_ros.paths import shipped_models

FORMAT = 3
CPU = ["CPUExecutionProvider"]
PREFERRED_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
MAX_MODEL_BYTES = 200_000_000
MAX_MANIFEST_BYTES = 8_000_000  # the shipped one has 100 thousand
MAX_LABELS, MAX_DIMENSIONS = 2000, 1024
INPUTS = {"visual": ("views", "tensor(uint8)", 4), "audio": ("log_mel", "tensor(float)", 3)}  # name, type, rank
PARTS = tuple(INPUTS)
# Beyond them clustering does not end (same_cosine of 1) or divides by zero, of a closed gate or an empty cluster.
DECISION_RANGES = {"level_floor_db": (-200, 200), "audio_gate": (0, 1), "same_cosine": (-1, 0.99),
                   "smallest_share": (1e-3, 1), "publish": (-200, 200), "publish_unseen": (-200, 200)}
INTEGERS = "integers"  # entry of the visual encoder in the manifest: its file of 8-bit integers, if there is one


def read_manifest(folder: Path) -> dict:
    """The checked manifest of a model folder whose files are there and unaltered. Raises as `read_model` does."""
    return read_model(folder)[0]


def read_model(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """The checked manifest of a model folder, and the bytes of its files "visual", "audio" and, if there, "integers".

    Raises:
        FileNotFoundError: no folder, manifest or model file.
        ValueError: unreadable manifest, other format, other front end, or a file whose SHA-256 differs.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model manifest at {path}; give a folder with manifest.json, visual.onnx, audio.onnx"
        )
    manifest = parse_manifest(_read_bytes(path, MAX_MANIFEST_BYTES), path)
    return manifest, {name: _read_part(path.parent, entry) for name, entry in _files(manifest).items()}


def _files(manifest: dict) -> dict[str, dict]:
    """The entries of a manifest that name a file, by what the file is."""
    files = {part: manifest[part] for part in PARTS}
    return files | ({INTEGERS: manifest["visual"][INTEGERS]} if INTEGERS in manifest["visual"] else {})


def parse_manifest(text: bytes, path: Path) -> dict:
    """The checked manifest in `text`; `path` is for errors. Raises ValueError."""
    try:
        manifest = parse_object(text, str(path), MAX_MANIFEST_BYTES)
        _check_manifest(manifest, path)
        _check_decision(manifest, path)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged or not a manifest of avssl_ros: {error!r}; export the model again"
        ) from error
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
    labels, dimensions, visual = manifest["labels"], manifest["dimensions"], manifest["visual"]
    _within(path, "number of labels", len(labels), 1, MAX_LABELS)
    _within(path, "dimensions", dimensions, 1, MAX_DIMENSIONS)
    _within(path, "visual size", visual["size"], 32, 1024)
    _within(path, "visual stride", visual["stride"], 1, visual["size"])
    _within(path, "audio seconds", manifest["audio"]["seconds"], 0.1, 60, whole=False)
    if not (isinstance(labels, list) and all(isinstance(label, str) and label for label in labels)):
        raise ValueError(f"{path}: labels must be a list of names")
    prototypes = manifest["prototypes"]
    # By hand: numpy would take a ragged list, or text that looks like numbers, for an array of something.
    shapes = {(len(prototypes), len(row)) for row in prototypes}
    if shapes != {(len(labels), dimensions)}:
        raise ValueError(
            f"{path}: prototypes have shape {sorted(shapes)[:3]}, but there are {len(labels)} labels "
            f"of {dimensions} dimensions"
        )
    if not all(is_number(value, -1e6, 1e6) for row in prototypes for value in row):
        raise ValueError(f"{path}: prototypes must be finite numbers")
    for name, entry in _files(manifest).items():
        if Path(entry["file"]).name != entry["file"]:
            raise ValueError(f"{path}: {name} file must lie in the model folder itself, got {entry['file']!r}")
        if not isinstance(entry["sha256"], str):
            raise ValueError(f"{path}: {name} sha256 must be text, got {entry['sha256']!r}")


def _check_decision(manifest: dict, path: Path) -> None:
    """The thresholds and regressions by which the localizer decides, and which concepts make which sounds."""
    decision = manifest["decision"]
    for name, (least, most) in DECISION_RANGES.items():
        _within(path, f"decision {name}", decision[name], least, most, whole=False)
    for name in ("source", "stream", "unseen"):
        weights, wanted = decision[name]["weights"], len(NEUTRAL_DECISION[name]["weights"])
        if len(weights) != wanted or not all(is_number(n, -1e6, 1e6) for n in (decision[name]["bias"], *weights)):
            raise ValueError(f"{path}: decision {name} must have a bias and {wanted} weights, all finite numbers, got "
                             f"{len(weights)} weights; calibrate the model again (training/calibrate.py)")  # fmt: skip
    labels = set(manifest["labels"])
    named = {name for heard, seen in manifest["made_by"].items() for name in (heard, *seen)}
    if not named <= labels:
        raise ValueError(f"{path}: made_by names {sorted(map(str, named - labels))[:5]}, which are no labels of it")


def _within(path: Path, name: str, value, least: float, most: float, whole: bool = True) -> None:
    if not is_number(value, least, most) or (whole and not isinstance(value, int)):
        raise ValueError(f"{path}: {name} must be {least}..{most}, got {str(value)[:50]!r}")


def _read_part(folder: Path, part: dict) -> bytes:
    """The bytes of one model file, if they are those that the manifest means."""
    path = folder / part["file"]
    if not path.is_file():
        raise FileNotFoundError(f"model file {path} is missing; install the package again or export the model again")
    data = _read_bytes(path, MAX_MODEL_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if found != part["sha256"]:
        raise ValueError(
            f"model file {path} was altered: its SHA-256 is {found}, the manifest says {part['sha256']}; "
            "install the package again or export the model again"
        )
    return data


def _read_bytes(path: Path, most: int) -> bytes:
    """The whole file, looking at its size first."""
    if path.stat().st_size > most:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {most} that are read")
    return path.read_bytes()


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
        self.manifest, files = read_model(folder)
        self.dimensions: int = self.manifest["dimensions"]
        self.size: int = self.manifest["visual"]["size"]
        self.stride: int = self.manifest["visual"]["stride"]
        options, chosen = _session_options(threads), choose_providers(providers)
        paths = {name: folder / entry["file"] for name, entry in _files(self.manifest).items()}
        self._audio = _session("audio", paths["audio"], files["audio"], options, chosen)
        if chosen != CPU and self._audio.get_providers()[:1] == CPU:  # no GPU that this onnxruntime can use is there
            chosen = CPU
        # GPUs are as fast in floating point, and do not know all that a quantized file holds.
        seeing = INTEGERS if INTEGERS in files and chosen[:1] == CPU else "visual"
        self._visual = _session("visual", paths[seeing], files[seeing], options, chosen)
        self.providers = tuple(self._visual.get_providers())
        self.workers: int = threads or len(os.sched_getaffinity(0))
        self._one_thread = self._pool = None
        if self.workers > 1 and self.providers[0] == "CPUExecutionProvider":
            self._one_thread = _session("visual", paths[seeing], files[seeing], _session_options(1), chosen)
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="view")

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


def _session(part: str, path: Path, data: bytes, options, providers: list[str]) -> onnxruntime.InferenceSession:
    """From the very bytes that were checked, not from the path: no other file can come in their place, or be read by
    them as external data."""
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises several types of its own that share no base but Exception
        raise ValueError(f"{path} is not a model that ONNX Runtime can load: {error}") from error
    found = [(entry.name, entry.type, len(entry.shape)) for entry in session.get_inputs()]
    if found != [INPUTS[part]] or len(session.get_outputs()) != 1:
        raise ValueError(f"{path} takes {found}, wanted {[INPUTS[part]]} and one output; export the model again")
    return session
