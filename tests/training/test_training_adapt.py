"""Adapting to a place: what lives there is found without labels, spoilt recordings are refused, a model comes out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from avssl_ros import Localizer, features  # noqa: E402
from avssl_ros.encoders import read_manifest  # noqa: E402
from avssl_ros.paths import shipped_models  # noqa: E402
from avssl_ros.recorder import Recorder  # noqa: E402
from training import adapt as adapting  # noqa: E402
from training.adapt import AdaptConfig, Refused, check_recording, main, score, targets  # noqa: E402
from training.evaluate import StillSight  # noqa: E402
from training.mixing import SECONDS  # noqa: E402
from training.place import Inventory, Look, Thing, log_ratio_of_presence, nearest_look, pair, stretches  # noqa: E402
from training.recordings import Moment, PlaceRecording, read_recording  # noqa: E402

pytestmark = pytest.mark.train
SHARED = Path(__file__).resolve().parents[3] / "shared"
RATE = features.SAMPLE_RATE


def write_recording(folder: Path, seconds: int, sound, still: int = 5) -> Path:
    """Pictures that change every `still` seconds; sound(start, samples) makes a second's samples."""
    rng = np.random.default_rng(0)
    with Recorder(folder, segment_seconds=8, fps=2, sample_rate=RATE) as recorder:
        for second in range(seconds):
            if second % still == 0:
                image = rng.integers(0, 256, (8, 16, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
            for part in (0.0, 0.5):
                recorder.add_frame(image, second + part)
                recorder.add_sound(sound(second + part, RATE // 2), RATE, second + part)
    return folder


def ramp(start: float, count: int) -> np.ndarray:
    """Sound that says its own time: a level that grows by 1 in 100 s."""
    return ((start + np.arange(count) / RATE) / 100).astype(np.float32)


def test_moments_have_the_sound_before_them_and_the_picture_of_then(tmp_path):
    recording = read_recording(write_recording(tmp_path, 16, ramp))
    assert len(recording) == 4 and recording.seconds == pytest.approx(16, abs=0.1)  # 0, 5, 10, 15 s
    assert len(recording.moments) >= 10 and not recording.unreadable
    for moment in recording.moments:
        assert len(moment.sound) == SECONDS * RATE
        assert moment.sound[len(moment.sound) // 2] == pytest.approx((moment.time - SECONDS / 2) / 100, abs=0.004)
        assert moment.picture == int(moment.time) // 5
    assert recording.between(0, 0.5)[-1].time < 8 <= recording.between(0.5, 1)[0].time


def test_what_is_no_recording_is_named_and_what_is_broken_left_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="avssl record"):
        read_recording(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no video with sound"):
        read_recording(tmp_path)
    folder = write_recording(tmp_path / "place", 8, ramp)
    (folder / "19700101T000100.000Z.mp4").write_bytes(b"no video")
    recording = read_recording(folder)
    assert recording.moments and "19700101T000100" in recording.unreadable[0]


def test_presence_tells_what_depends_on_what():
    seen = np.array([True] * 8 + [False] * 8)
    assert log_ratio_of_presence(seen, seen) > 5
    assert log_ratio_of_presence(~seen, seen) < -5
    assert abs(log_ratio_of_presence(np.tile([True, False], 8), seen)) < 0.1
    assert log_ratio_of_presence(np.zeros(16, bool), seen) == pytest.approx(0, abs=0.5)


def test_a_thing_that_looks_like_another_is_named_by_its_sounds():
    """Concepts: 0 cat, 1 chicken, 2 dog. The first thing looks like a cat and clucks, the other is a dog that barks."""
    seen = np.array([[0.8, 0.2, 0.05], [0.05, 0.05, 0.8]])
    heard = np.array([[0.0, 0.7, 0.1], [0.0, 0.05, 0.8], [0.02, 0.02, 0.02]])
    presence = np.array([[4.0, -1.0], [-1.0, 3.0], [0.0, 0.0]])
    maker, names = pair(seen, heard, presence, np.array([40, 30, 10]))
    assert maker.tolist() == [0, 1, -1] and names.tolist() == [1, 2]


def test_pictures_that_follow_each_other_quickly_are_one_stretch():
    pictures = ((1, 0), (2, 1), (19, 2), (25, 3), (26, 3), (60, 4))
    moments = [Moment(time, picture, np.zeros(1)) for time, picture in pictures]
    assert stretches(moments) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 2}


def look(vector, picture: int = 0) -> Look:
    return Look(picture, 0.0, 0.0, 0.2, np.array(vector, float), 0.8, np.zeros(3))


def test_the_look_of_a_thing_is_the_most_alike_or_none():
    thing = Thing(0, (), (), np.zeros((1, 2)), np.array([0.8, 0.0]))
    near, far = look([0.9, np.sqrt(0.19)]), look([0.0, 1.0])
    assert nearest_look(thing, [far, near]) is near and nearest_look(thing, [far]) is None
    assert nearest_look(thing, []) is None


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, None),
        ({"heard": 3}, "in only 3 of 40 s something is heard"),
        ({"things": ()}, "0 things"),
        ({"chance": 0.4}, "does not go with what is in view"),
    ],
)
def test_a_spoilt_recording_is_refused_with_the_reason(change, said):
    thing = Thing(0, (), (), np.zeros((1, 2)), np.zeros(2))
    inventory = replace(Inventory((thing, thing), (), (), 30, 0.8, 0.01), **change)
    recording = PlaceRecording([Moment(float(t), 0, np.zeros(1)) for t in range(40)], _pictures=[b""] * 9)
    if said is None:
        return check_recording(recording, inventory)
    with pytest.raises(Refused, match=said):
        check_recording(recording, inventory)


def test_a_frozen_camera_is_refused():
    thing = Thing(0, (), (), np.zeros((1, 2)), np.zeros(2))
    recording = PlaceRecording([Moment(float(t), 0, np.zeros(1)) for t in range(40)], _pictures=[b""])
    with pytest.raises(Refused, match="frozen"):
        check_recording(recording, Inventory((thing, thing), (), (), 30, 0.8, 0.01))


def test_the_command_leaves_the_shipped_model_in_force_after_silence(tmp_path, capsys):
    place = write_recording(tmp_path / "place", 12, lambda start, count: np.zeros(count, np.float32))
    assert main(AdaptConfig(place, tmp_path / "adapted")) == 1
    assert "the shipped model stays in force: in only 0 of" in capsys.readouterr().err
    assert not (tmp_path / "adapted").exists()


def test_the_model_that_is_adapted_is_not_written_over(tmp_path):
    with pytest.raises(ValueError, match="is the model that is adapted"):
        adapting.adapt(AdaptConfig(tmp_path, output=shipped_models()))


def test_other_concepts_cannot_be_adapted(tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "read_manifest", lambda path: {"labels": ["something else"]})
    with pytest.raises(ValueError, match="knows other concepts"):
        adapting.adapt(AdaptConfig(tmp_path))


@pytest.mark.parametrize(
    "where, kinds", [("dense", {"Conv2d", "Linear"}), ("heads", {"Conv2d"}), ("norms", {"BatchNorm2d"})]
)
def test_adapters_change_nothing_at_first_and_have_the_layers_asked_for(where, kinds):
    import torch

    config = AdaptConfig(Path("unused"), where=where)
    models = shipped_models()
    model = adapting.with_adapters(models, read_manifest(models), config).eval()
    base = adapting.Encoders(read_manifest(models)["dimensions"])
    assert {type(base.get_submodule(name)).__name__.replace("Conv2dStaticSamePadding", "Conv2d")
            for name in targets(base, where)} == kinds
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert 0 < 2 * learning < 300e3  # bytes in half precision
    views = torch.randint(0, 256, (1, 1, 64, 96, 3), dtype=torch.uint8)
    sound = torch.randn(1, 1, features.N_MELS, 64)
    with torch.no_grad():
        now = model(views, sound)
        with model.disable_adapter():
            before = model(views, sound)
        shipped = onnxruntime.InferenceSession(str(models / "visual.onnx")).run(None, {"views": views[0].numpy()})[0]
    assert all(torch.equal(a, b) for a, b in zip(now, before))
    assert np.abs(now[0][0].reshape(shipped.shape).numpy() - shipped).max() < 1e-4


def test_half_of_what_was_learned_lies_half_way_between_the_weights():
    import torch

    start = {"x.lora_A.w": torch.ones(2, 3), "x.lora_B.w": torch.zeros(4, 2), "norm.weight": torch.ones(3)}
    learned = {"x.lora_A.w": torch.randn(2, 3), "x.lora_B.w": torch.randn(4, 2), "norm.weight": torch.full((3,), 2.0)}
    half = adapting.blended(start, learned, 0.5)
    whole = learned["x.lora_B.w"] @ learned["x.lora_A.w"]
    assert torch.allclose(half["x.lora_B.w"] @ half["x.lora_A.w"], whole / 2)
    assert half["norm.weight"].tolist() == [1.5] * 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six minutes in a place of validation items, and the place."""
    from benchmarks.places import Place
    from training.scenes import open_scenes

    home = Place(open_scenes(SHARED / "data", "validation", 3).collection, None, 3, 0)
    home.record(folder := tmp_path_factory.mktemp("place"), 6.0)
    return home, folder


@pytest.fixture(scope="module")
def recording(place):
    return read_recording(place[1])


@pytest.fixture
def scores(monkeypatch):
    """What judging says, in turn, as it is chance whether so few steps are for the better; it judges all the same."""
    told, judge = [], adapting.score

    def score(*arguments):
        assert 0.0 <= judge(*arguments) <= 1.0
        return told.pop(0)

    monkeypatch.setattr(adapting, "score", score)
    monkeypatch.setattr(adapting, "TRIALS", adapting.LEAST_TRIALS)
    return told


@pytest.mark.shared
def test_a_recording_without_labels_makes_a_model_that_the_runtime_loads(place, tmp_path, scores):
    home, folder = place
    output, told = tmp_path / "adapted", []
    output.mkdir()
    (output / "notes.txt").write_text("of the user")
    scores += [0.5, 0.6, 0.55]
    config = AdaptConfig(folder, output, data=None, steps=2, check_every=1, scenes=2)
    result = adapting.adapt(config, lambda step, reached: told.append((step, reached)))
    assert told == [(1, 0.6), (2, 0.55)] and (result.before, result.score, result.step) == (0.5, 0.6, 1)
    assert (output / "notes.txt").read_text() == "of the user"  # a folder that is there loses nothing of others
    assert result.adapter_bytes == (output / "adapter.safetensors").stat().st_size < 300e3
    before, after = read_manifest(shipped_models()), read_manifest(output)
    assert after["visual"]["sha256"] != before["visual"]["sha256"] and after["decision"] == before["decision"]
    assert after["training"]["adapted"]["from"]["visual"] == before["visual"]["sha256"]
    assert set(result.things) <= set(after["labels"]) and json.dumps(after["training"])
    scene = home.scene(0)
    assert Localizer(output).localize(scene.image, scene.sound, RATE).active


@pytest.mark.shared
def test_a_model_that_is_no_better_is_not_written(place, recording, tmp_path, scores, monkeypatch):
    monkeypatch.setattr(adapting, "read_recording", lambda *_: recording)
    monkeypatch.setattr(adapting, "_learn", lambda *_: (0.5, 1, {}))
    scores += [0.5]
    with pytest.raises(Refused, match=r"no better than the one before: F within 20 degrees 0\.50, before 0\.50"):
        adapting.adapt(AdaptConfig(place[1], tmp_path / "adapted", data=None, steps=1, scenes=1))
    assert not (tmp_path / "adapted").exists()


@pytest.mark.shared
def test_things_of_a_place_are_found_and_heard_apart_without_labels(place, recording):
    """Three of five things have their names; shifted sound goes less with what is seen."""
    home, _ = place
    localizer, looked = Localizer(threads=1), {}
    inventory = adapting.take_inventory(localizer, recording, recording.moments, looked=looked)
    names = {thing.concept for thing in home.things}
    concepts = [concept.name for concept in adapting.read_concepts()]
    found = [concepts[thing.concept] for thing in inventory.things]
    assert len(names & set(found)) >= 3, (names, found)
    check_recording(recording, inventory)
    half = len(recording.moments) // 2
    moved = [replace(moment, sound=recording.moments[(index + half) % (2 * half)].sound)
             for index, moment in enumerate(recording.moments[: 2 * half])]
    assert adapting.take_inventory(localizer, recording, moved, looked=looked).chance > inventory.chance


def test_no_answer_and_all_wrong_answers_score_zero():
    class Deaf:
        encoders = StillSight(None)

        def localize(self, image, sound, rate):
            class Scene:
                sources = ()
            return Scene

    image = PlaceRecording(_pictures=[b""])
    image.picture = lambda number: np.zeros((2, 4, 3), np.uint8)
    trial = adapting.Trial(0, np.zeros(4), (look([1.0, 0.0]),))
    assert score(Deaf(), image, [trial]) == 0.0
