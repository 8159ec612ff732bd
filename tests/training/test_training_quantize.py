"""The visual encoder in integers: made of the shipped one as a user makes it, or refused with the folder as it was."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402

from avssl_ros import Localizer, features  # noqa: E402
from avssl_ros.encoders import read_manifest  # noqa: E402
from avssl_ros.geometry import angle_between  # noqa: E402
from avssl_ros.paths import shipped_models  # noqa: E402
from training import quantize  # noqa: E402
from training.quantize import FILE, QuantizeConfig, add_integers  # noqa: E402
from training.scenes import open_scenes  # noqa: E402

pytestmark = pytest.mark.train
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path):
    """The shipped model in floating point alone."""
    models = shutil.copytree(shipped_models(), tmp_path / "models", ignore=shutil.ignore_patterns(FILE))
    manifest = json.loads((models / "manifest.json").read_text())
    manifest["visual"].pop("integers", None)
    (models / "manifest.json").write_text(json.dumps(manifest))
    return models


@pytest.mark.shared
def test_a_model_gets_integers_and_answers_as_before(folder):
    before, generator = Localizer(folder), open_scenes(DATA, "validation", 5)
    scenes = [generator.scene(index) for index in range(12)]
    generator.collection.close()
    likeness = quantize.quantize(QuantizeConfig(folder, DATA, split="validation", scenes=6))
    assert likeness > 0.95
    entry = read_manifest(folder)["visual"]["integers"]
    assert entry["file"] == FILE and entry["likeness"] == round(likeness, 4) and entry["views"] == 19
    assert (folder / FILE).stat().st_size < 0.3 * (folder / "visual.onnx").stat().st_size
    found = [[localizer.localize(scene.image, scene.sound, features.SAMPLE_RATE).sources[:1] for scene in scenes]
             for localizer in (before, Localizer(folder))]
    same = [len(a) == len(b) and all(
        x.label == y.label and np.degrees(angle_between(x.azimuth, x.elevation, y.azimuth, y.elevation)) < 15
        for x, y in zip(a, b)) for a, b in zip(*found)]  # fmt: skip
    assert sum(same) >= 9, found


def test_pixels_are_taken_as_they_are_where_that_changes_nothing(folder, tmp_path, monkeypatch):
    """Views with black and with white pixels have the scale of pixels themselves; dim ones do not."""
    before, shorten = [], quantize._take_pixels_as_they_are

    def kept(graph):
        before.append(len(graph.node))
        onnx.save(onnx.helper.make_model(graph, opset_imports=onnx.load(folder / "visual.onnx").opset_import),
                  tmp_path / "before.onnx")  # fmt: skip
        shorten(graph)

    monkeypatch.setattr(quantize, "_take_pixels_as_they_are", kept)
    views = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    for shown, saved in ((views // 2, 0), (views, 4)):
        quantize.write_integers(folder / "visual.onnx", shown, tmp_path / "after.onnx")
        assert before[-1] - len(onnx.load(tmp_path / "after.onnx").graph.node) == saved
    sessions = [onnxruntime.InferenceSession(str(tmp_path / name)) for name in ("before.onnx", "after.onnx")]
    first, second = (session.run(None, {"views": views[:1]})[0] for session in sessions)
    assert np.array_equal(first, second) and first.std() > 0


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_folder_is_a_whole_model_whenever_quantization_is_killed(folder, monkeypatch, written):
    """It had other integers before."""
    views = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(quantize, "write_integers", lambda source, views, target: target.write_bytes(views.tobytes()))
    monkeypatch.setattr(quantize, "likeness", lambda first, second, views: 0.99)
    add_integers(folder, views)
    left, replaced = [written], os.replace

    def killed(*paths):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replaced(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        add_integers(folder, views[::-1])
    integers = read_manifest(folder)["visual"].get("integers")
    found = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    assert integers is None or integers["sha256"] == found
    assert (integers is not None) == (written == 0)


def test_an_encoder_that_integers_spoil_and_too_few_views_are_refused(folder, monkeypatch):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    views = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="at least 10 views.*got 9"):
        add_integers(folder, views[:9])
    monkeypatch.setattr(quantize, "likeness", lambda first, second, views: 0.5)
    with pytest.raises(ValueError, match="by 0.50 only.*leave this model in floating point"):
        add_integers(folder, views)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
