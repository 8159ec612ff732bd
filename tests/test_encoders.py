"""A model folder is loaded whole and unaltered or not at all, and the error says why."""

import json
import shutil

import cv2
import numpy as np
import pytest

from avssl_ros import Localizer, encoders
from avssl_ros.encoders import Encoders, choose_providers, read_manifest
from avssl_ros.paths import demo_scene, shipped_models


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(shipped_models(), tmp_path / "models")


def change(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_shipped_model_keeps_its_promises():
    manifest = read_manifest(shipped_models())
    parts = [manifest[part] for part in ("visual", "audio")]
    assert sum(part["parameters"] for part in parts) <= 5_000_000
    assert sum((shipped_models() / part["file"]).stat().st_size for part in parts) <= 20_000_000
    assert (shipped_models() / manifest["visual"]["integers"]["file"]).stat().st_size <= 5_000_000


def test_patches_lie_in_the_unit_ball_and_threads_change_nothing():
    views = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    one, two = (Encoders(threads=threads) for threads in (1, 2))
    patches = one.visual(views)
    assert patches.shape == (2, 14, 14, one.dimensions) and np.linalg.norm(patches, axis=-1).max() <= 1.0 + 1e-5
    assert np.allclose(patches, two.visual(views), atol=1e-4)
    sound = one.audio(np.zeros((1, 128, 200), np.float32))
    assert sound.shape == (1, 8, 13, one.dimensions) and np.linalg.norm(sound, axis=-1).max() <= 1.0 + 1e-5


def test_a_processor_computes_in_integers_and_they_say_the_same(folder):
    """A real picture: an embedding of noise says little of either."""
    localizer = Localizer()
    picture = cv2.VideoCapture(str(demo_scene() / "scene.mp4")).read()[1]
    views = localizer.cut(picture[..., ::-1], "equirectangular")[0]
    integers = localizer.encoders.visual(views)
    manifest = json.loads((folder / "manifest.json").read_text())
    likeness = manifest["visual"].pop("integers")["likeness"]
    change(folder, visual=manifest["visual"])
    (folder / "visual_int8.onnx").unlink()  # a folder without integers is as good a model
    floats = Encoders(folder).visual(views)
    assert np.abs(integers - floats).max() > 1e-3
    assert (integers * floats).sum() / np.sqrt(np.square(integers).sum() * np.square(floats).sum()) > likeness - 0.03


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_without_the_gpu_that_onnxruntime_is_made_for_a_processor_computes_in_integers(monkeypatch):
    views = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    integers = Encoders(threads=1).visual(views)
    monkeypatch.setattr(encoders, "choose_providers", lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    fallen_back = Encoders(threads=1)
    assert fallen_back.providers == ("CPUExecutionProvider",)
    assert np.array_equal(fallen_back.visual(views), integers)


@pytest.mark.parametrize("name", ["audio.onnx", "visual_int8.onnx"])
def test_an_altered_model_file_is_named(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[1000] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} was altered.*SHA-256"):
        Encoders(folder)


@pytest.mark.parametrize("name", ["audio.onnx", "visual.onnx", "visual_int8.onnx", "manifest.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Encoders(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 1}', "\x00"])
def test_a_damaged_manifest_is_no_crash(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json"):
        Encoders(folder)


def test_what_does_not_fit_together_is_refused_with_both_values(folder):
    audio = json.loads((folder / "manifest.json").read_text())["audio"]
    change(folder, audio=audio | {"sample_rate": 16000})
    with pytest.raises(ValueError, match="16000.*32000"):
        Encoders(folder)
    change(folder, audio=audio | {"file": "../../etc/passwd"})
    with pytest.raises(ValueError, match="must lie in the model folder"):
        Encoders(folder)
    change(folder, audio=audio, labels=["dog"])
    with pytest.raises(ValueError, match="1 labels"):
        Encoders(folder)


def test_a_file_that_is_no_network_is_refused(folder):
    import hashlib

    (folder / "audio.onnx").write_bytes(b"not a network")
    audio = json.loads((folder / "manifest.json").read_text())["audio"]
    change(folder, audio=audio | {"sha256": hashlib.sha256(b"not a network").hexdigest()})
    with pytest.raises(ValueError, match="audio.onnx is not a model"):
        Encoders(folder)


def test_an_unknown_provider_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="CPUExecutionProvider"):
        Encoders(providers="QuantumExecutionProvider")
    assert choose_providers()[-1] == "CPUExecutionProvider"


@pytest.mark.parametrize("threads", [0, -1, 1.5, "two", 10_000])
def test_impossible_thread_counts_are_refused(threads):
    with pytest.raises(ValueError, match="threads must be"):
        Encoders(threads=threads)
