"""What is said of the sensors, and when it is news."""

from __future__ import annotations

import json

import pytest

from avssl_ros.states import Sensor, States

OK, STALE, ABSENT = Sensor("ok"), Sensor("stale", "plug it in"), Sensor("absent", "start it")


@pytest.mark.parametrize(
    "camera, microphone, mode",
    [
        (OK, OK, "localizing"),
        (STALE, OK, "hearing only"),
        (ABSENT, OK, "hearing only"),
        (OK, STALE, "seeing only"),
        (OK, ABSENT, "seeing only"),
        (STALE, ABSENT, "waiting"),
    ],
)
def test_the_mode_follows_from_both_sensors(camera, microphone, mode):
    states = States()
    assert states.update(camera, microphone, 5.0)
    said = json.loads(states.now.to_json())
    assert (said["camera"], said["microphone"], said["mode"]) == (camera.state, microphone.state, mode)
    assert said["since"] == 5.0


def test_only_a_change_of_a_sensor_is_news_and_moves_since():
    states = States()
    assert states.update(ABSENT, OK, 1.0)
    assert not states.update(Sensor("absent", "another hint"), OK, 2.0)
    assert (states.now.since, states.now.hint) == (1.0, "another hint")
    assert states.update(STALE, OK, 3.0)  # the mode is the same, the sensor is not
    assert (states.now.mode, states.now.since) == ("hearing only", 3.0)
    assert states.update(OK, OK, 2.5)  # also on a clock that went back
    assert states.now.since == 2.5


def test_hints_of_both_sensors_are_told_also_where_all_is_well():
    states = States()
    states.update(STALE, ABSENT, 1.0)
    assert states.now.hint == "plug it in; start it"
    states.update(OK, Sensor("ok", "it is clipped"), 2.0)
    assert (states.now.mode, states.now.hint) == ("localizing", "it is clipped")


def test_a_sensor_that_comes_back_is_counted_and_its_first_coming_is_not():
    states = States()
    for camera in (ABSENT, OK, OK, STALE, ABSENT, OK, STALE, OK):
        states.update(camera, OK, 0.0)
    assert states.recoveries == {"camera": 2, "microphone": 0}
