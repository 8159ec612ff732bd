"""Swap, yaw and calibration say what they should of localizers whose faults are known."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.behaviour import calibration, swap, yaw  # noqa: E402
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
