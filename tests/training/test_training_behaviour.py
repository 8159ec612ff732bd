"""Swap, yaw and calibration say what they should of localizers whose faults are known."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros.clustering import Cluster  # noqa: E402
from avssl_ros.geometry import ViewLayout, patch_directions  # noqa: E402
from benchmarks.behaviour import calibration, hearing, perspective, purity, swap, yaw  # noqa: E402
from training.evaluate import disc  # noqa: E402
from training.scenes import MASK_SHAPE, PlacedObject, Scene  # noqa: E402

pytestmark = pytest.mark.train
WIDTH = 360
MASK = np.zeros(MASK_SHAPE, bool)


def scene_at(*azimuths_deg, sounding=(0,)) -> Scene:
    """Objects as bright columns; the sound's first sample says which of them sounds."""
    image = np.zeros((180, WIDTH, 3), np.uint8)
    objects = []
    for number, azimuth in enumerate(azimuths_deg):
        image[:, round((0.5 - azimuth / 360) * WIDTH) % WIDTH] = 100 + number
        objects.append(PlacedObject("dog", np.radians(azimuth), 0.0, 0.5, number in sounding, MASK))
    return Scene(image, np.array([sounding[0] if sounding else -1, 0], np.float32), tuple(objects))


class Scenes:
    """A generator of such scenes."""

    def pair(self, index):
        return scene_at(40, -100, sounding=(0,)), scene_at(40, -100, sounding=(1,))

    def scene(self, index, sounding):
        return scene_at(10 * index % 90, -100, sounding=tuple(range(sounding)))

    def negative(self, index, kind):
        return scene_at(40, -100, sounding=())


class Localizer:
    """Finds the bright column that the sound names; `deaf` always the first, `fixed` always straight ahead."""

    def __init__(self, deaf=False, fixed=False, confidence=1.0):
        self.deaf, self.fixed, self.confidence = deaf, fixed, confidence

    def localize(self, image, sound, rate):
        wanted = 0 if self.deaf else int(sound[0])
        if wanted < 0:
            return SimpleNamespace(sources=())
        columns = np.flatnonzero(image[90, :, 0] == 100 + wanted)
        azimuth = 0.0 if self.fixed else np.radians((0.5 - columns[0] / WIDTH) * 360)
        return SimpleNamespace(sources=(SimpleNamespace(azimuth=azimuth, elevation=0.0, confidence=self.confidence),))


def test_an_answer_that_follows_the_sound_moves_and_a_deaf_one_stays():
    assert swap(Scenes(), Localizer(), 3)["moved"] == 1.0
    deaf = swap(Scenes(), Localizer(deaf=True), 3)
    assert deaf["first_right"] == 1.0 and deaf["moved"] == 0.0 and deaf["stayed"] == 1.0


def test_an_answer_that_turns_with_the_picture_has_no_yaw_error():
    assert yaw(Scenes(), Localizer(), 6)["median_deg"] == pytest.approx(0, abs=0.01)
    assert yaw(Scenes(), Localizer(fixed=True), 6)["median_deg"] > 20


def test_calibration_error_is_the_distance_of_confidence_from_truth():
    always_right = calibration(Scenes(), Localizer(confidence=0.95), 6)
    assert always_right["right"] == 1.0 and always_right["expected_calibration_error"] == pytest.approx(0.05)
    deaf = calibration(Scenes(), Localizer(deaf=True, confidence=0.95), 6)  # also where nothing in view sounds
    assert deaf["right"] == pytest.approx(2 / 3) and deaf["expected_calibration_error"] == pytest.approx(0.95 - 2 / 3)


class Ordinary:
    """Scenes of two objects 35 degrees apart, a red and a green column, and a localizer that finds one of them; the
    green one sounds."""

    fov_deg = 90.0

    def __init__(self, channel):
        self.channel = channel

    def scene(self, index, sounding):
        image, objects = np.zeros((180, WIDTH, 3), np.uint8), []
        for channel, azimuth in enumerate((30 * index, 30 * index + 35)):
            image[:, round((0.5 - azimuth / 360) * WIDTH) % WIDTH, channel] = 200
            objects.append(PlacedObject("dog", np.radians(azimuth), 0.0, 0.5, channel == 1, MASK))
        return Scene(image, np.zeros(2, np.float32), tuple(objects))

    def localize(self, image, sound, rate, projection):
        row = image[image.shape[0] // 2, :, self.channel].astype(float)
        if row.max() < 100:
            return SimpleNamespace(sources=(), unseen=("dog",))
        azimuth = np.arctan((len(row) / 2 - 0.5 - row.argmax()) / (len(row) / 2) * np.tan(np.radians(self.fov_deg) / 2))
        return SimpleNamespace(sources=(SimpleNamespace(azimuth=azimuth, elevation=0.0),), unseen=())


@pytest.mark.parametrize("channel, right", [(1, 1.0), (0, 0.0)])
def test_in_an_ordinary_picture_the_answer_is_right_where_it_is_on_what_sounds(channel, right):
    found = perspective(Ordinary(channel), Ordinary(channel), 12)
    assert found["right"] == right and found["in_view"] == 2.0 and found["chance"] == 0.5
    assert found["away_false_alarms"] == 0.0 and found["away_not_in_view"] == 1.0


def test_hearing_counts_the_rank_of_the_true_name():
    def heard(*concepts):
        return SimpleNamespace(labels=tuple("abcdefg"), hear=lambda sound: concepts and [
            Cluster(np.ones(1), np.array(concepts), 0.9, 1.0)])
    names = {"dog": "b"}
    assert hearing(Scenes(), heard(0.1, 0.6, 0.2, 0, 0, 0, 0), 4, names) == {"scenes": 4, "first": 1.0, "of_five": 1.0}
    assert hearing(Scenes(), heard(0.5, 0.2, 0.3, 0, 0, 0, 0), 4, names)["first"] == 0.0
    assert hearing(Scenes(), heard(), 4, names)["of_five"] == 0.0


@pytest.mark.parametrize("tells_apart", [True, False])
def test_purity_is_one_where_objects_differ_and_the_largest_objects_share_where_none_does(tells_apart):
    layout, azimuths = ViewLayout(), (-1.5, 1.0)
    objects = [PlacedObject("dog", a, 0.0, 0.5, False, disc(a, 0.0).mask) for a in azimuths]
    scene = Scene(np.zeros((64, 128, 3), np.uint8), MASK, tuple(objects))
    scenes = SimpleNamespace(scene=lambda index, sounding: scene)
    near = patch_directions(layout, layout.view_shape(288), 16)[0] > 0
    embedding = np.eye(4)[np.where(near & tells_apart, 1, 0)]
    localizer = SimpleNamespace(
        layout=layout, view_size=288, decision={"audio_gate": 0.2, "same_cosine": 0.5}, cut=lambda *_: (None, None),
        encoders=SimpleNamespace(stride=16, dimensions=4, visual=lambda views: embedding))
    found = purity(scenes, localizer, 2)
    assert found["purity"] == (1.0 if tells_apart else found["largest_object"]) and 0.4 < found["largest_object"] < 0.8
    assert found["clusters"] == (2 if tells_apart else 1)
