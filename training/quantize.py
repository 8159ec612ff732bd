"""Adds the visual encoder in 8-bit integers to a model folder; processors compute it in half to two thirds of the time.

    python training/quantize.py --models models --data ../shared/data
    python training/quantize.py --models small --data None --clips.shards shards

Static quantization by ONNX Runtime (Jacob et al. 2018): convolutions, the clipping after them and residual sums; what
makes embeddings of the head's output stays in floating point. Ranges of activations are those of views of generated
scenes from train items. Weights have their own scale in each channel and take 7 of the 8 bits: AVX2 adds two products
in 16 bits, which 8 could overflow. The runtime takes the new file where it computes on a processor
(avssl_ros/encoders.py); run `calibrate.py` afterwards, confidence depends on it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import trange

from avssl_ros import Localizer
from avssl_ros.encoders import INTEGERS
from training.clip_collection import ClipsConfig
from training.files import as_json, write_whole
from training.scenes import open_scenes

FILE = "visual_int8.onnx"
QUANTIZED = ["Conv", "Clip", "Add"]  # types of operations
HEAD_STARTS = "Resize"  # the first operation of this type, and all after it, stay as they are
LEAST_VIEWS = 10
LEAST_LIKENESS = 0.9
JUDGED_SHARE = 0.2  # of the views: on these the two encoders are compared, the ranges are those of the others


@dataclass(frozen=True)
class QuantizeConfig:
    """Which model, and on how many views."""

    models: Path = Path("models")
    data: Path | None = Path("../shared/data")  # folder with photos/, sounds/ and panoramas/; None: clips alone
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    split: str = "train"  # whose items scenes are made of
    visible: int = 4  # objects in a scene
    least_photos: int = 3  # a concept needs to take part
    least_sounds: int = 1
    scenes: int = 40  # each gives a view in every direction
    seed: int = 20


class _Views(CalibrationDataReader):
    """Hands views (N, H, W, 3) to ONNX Runtime one by one."""

    def __init__(self, views: np.ndarray):
        self._left: Iterator[np.ndarray] = iter(views)

    def get_next(self) -> dict[str, np.ndarray] | None:
        view = next(self._left, None)
        return None if view is None else {"views": view[None]}


def add_integers(models: Path, views: np.ndarray) -> float:
    """Writes the quantized visual encoder into a model folder and its manifest; returns how like the other one it is.

    The folder is a whole model at every instant, without the integers for a while.

    Args:
        views: RGB uint8 (N, H, W, 3) such as the runtime cuts, the more unlike each other the better; N >= LEAST_VIEWS.

    Raises:
        ValueError: few views, or the likeness is below LEAST_LIKENESS; the folder is left as it was.
    """
    if len(views) < LEAST_VIEWS:
        raise ValueError(f"quantization needs at least {LEAST_VIEWS} views to learn its ranges from, got {len(views)}")
    views = np.random.default_rng(0).permutation(views)
    judged = round(JUDGED_SHARE * len(views))
    path = models / "manifest.json"
    manifest = json.loads(path.read_text())
    source = models / manifest["visual"]["file"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / FILE
        write_integers(source, views[judged:], target)
        found = likeness(source, target, views[:judged])
        if not found >= LEAST_LIKENESS:
            raise ValueError(f"in 8-bit integers the visual encoder of {models} is like itself by {found:.2f} only, "
                             f"wanted is {LEAST_LIKENESS}: leave this model in floating point")
        data = target.read_bytes()
    manifest["visual"].pop(INTEGERS, None)
    write_whole(path, as_json(manifest))
    write_whole(models / FILE, data)
    manifest["visual"][INTEGERS] = {"file": FILE, "sha256": hashlib.sha256(data).hexdigest(),
                                    "views": len(views) - judged, "likeness": round(found, 4)}
    write_whole(path, as_json(manifest))
    return found


def write_integers(source: Path, views: np.ndarray, target: Path) -> None:
    """Quantizes the ONNX file of a visual encoder with the ranges it has on views (N, H, W, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"  # as exported, constants and paddings stand between what is quantized
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        nodes = onnx.load(folded).graph.node
        head = [node.op_type for node in nodes].index(HEAD_STARTS)
        quantize_static(
            str(folded), str(target), _Views(views), quant_format=QuantFormat.QDQ, op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=[node.name for node in nodes[head:]], activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
        )  # fmt: skip
    model = onnx.load(target)
    used = [entry for entry in model.opset_import if entry.domain in {node.domain for node in model.graph.node}]
    del model.opset_import[:]  # the optimizer names all it knows, which an older ONNX Runtime may not
    model.opset_import.extend(used)
    _take_pixels_as_they_are(model.graph)
    onnx.save(model, target)


def _take_pixels_as_they_are(graph: onnx.GraphProto) -> None:
    """Pixels are 8-bit integers already: where those of (x - zero) / n have the scale 1 / n and this zero, they are x.

    Saves a fiftieth of the time and changes no result. Views without a black or a white pixel give another scale; then
    the graph is left as it is.
    """
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    quantized = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    divided = made_by[quantized.input[0]]
    subtracted = made_by.get(divided.input[0])
    cast = made_by.get(subtracted.input[0]) if subtracted else None
    if cast is None or [n.op_type for n in (cast, subtracted, divided)] != ["Cast", "Sub", "Div"]:
        return
    _, scale, zero = (values.get(name) for name in quantized.input)
    if scale * values[divided.input[1]] != 1 or zero != values[subtracted.input[1]]:
        return
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == quantized.output[0]:
                node.input[place] = cast.input[0]
    for node in (cast, subtracted, divided, quantized):
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for entry in [entry for entry in graph.initializer if entry.name not in used]:
        graph.initializer.remove(entry)


def likeness(first: Path, second: Path, views: np.ndarray) -> float:
    """Cosine of all embeddings that two visual encoders make of some views, open patches counting as they are open."""
    sums = np.zeros(3)
    sessions = [onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (first, second)]
    for view in views:
        a, b = (session.run(None, {"views": view[None]})[0] for session in sessions)
        sums += (a * b).sum(), (a * a).sum(), (b * b).sum()
    return float(sums[0] / max(np.sqrt(sums[1] * sums[2]), 1e-12))


def quantize(config: QuantizeConfig) -> float:
    """Adds the integers to a model folder, with views of generated scenes; returns their likeness."""
    localizer = Localizer(config.models)
    generator = open_scenes(config.data, config.split, config.seed, config.clips, config.visible, config.least_photos,
                            config.least_sounds)
    views = [localizer.cut(generator.scene(index).image, "equirectangular")[0]
             for index in trange(config.scenes, unit="scene", mininterval=5.0)]
    generator.collection.close()
    return add_integers(config.models, np.concatenate(views))


if __name__ == "__main__":
    import tyro

    settings = tyro.cli(QuantizeConfig, description=__doc__)
    print(f"{settings.models / FILE}: likeness {quantize(settings):.4f}")
