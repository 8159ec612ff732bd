"""Diagnostics say when the machine does not keep up with its camera, and only then."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticStatus

from avssl_ros.ros import health as diagnosis
from avssl_ros.ros.health import Health, processing_status
from avssl_ros.states import OK, Sensor, States

pytestmark = pytest.mark.ros


def statuses(monkeypatch, came: int, taken: dict[str, int], most: float, seconds: int = 12) -> list[DiagnosticStatus]:
    """One a second, while so many images come and are taken in each."""
    now = [100.0]
    monkeypatch.setattr(diagnosis.time, "monotonic", lambda: now[0])
    health, states, found = Health(), States(), []
    states.update(Sensor(OK), Sensor(OK), 0.0)
    for second in range(1, seconds + 1):
        for _ in range(came):
            health.image_arrived()
        for name, count in taken.items():
            for _ in range(count):
                health.frame_answered(0.05) if name == "answered" else setattr(health, name, getattr(health, name) + 1)
        found.append(processing_status("x", health, second * (came - sum(taken.values())), states.now, most))
        now[0] += 1.0
    return found


def test_a_machine_that_takes_half_of_the_images_is_told_what_costs_less(monkeypatch):
    *first, last = statuses(monkeypatch, 15, {"answered": 7}, 0.0)
    assert last.level == DiagnosticStatus.WARN and "7.0 of 15.0 images per second" in last.message
    assert "view_size" in last.message and "localizing" in last.message
    assert [status.level for status in first[:5]] == 5 * [DiagnosticStatus.OK]  # a moment's delay is no news


@pytest.mark.parametrize(
    "came, taken, most",
    [
        (15, {"answered": 14}, 0.0),
        (30, {"answered": 15}, 15.0),  # as many as are wanted
        (3000, {"answered": 15}, 15.0),
        (15, {"answered": 10, "bad_images": 5}, 0.0),  # looked at, and of no use
        (0, {}, 15.0),
    ],
)
def test_what_is_not_wanted_or_of_no_use_is_no_sign_of_a_slow_machine(monkeypatch, came, taken, most):
    assert DiagnosticStatus.WARN not in [status.level for status in statuses(monkeypatch, came, taken, most)]


def test_once_it_keeps_up_it_says_so_within_ten_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(diagnosis.time, "monotonic", lambda: now[0])
    health, states, levels = Health(), States(), []
    states.update(Sensor(OK), Sensor(OK), 0.0)
    for second in range(30):
        for number in range(10):
            health.image_arrived()
            if second >= 15 or number < 4:
                health.frame_answered(0.05)
        dropped = health.received - health.answered
        levels.append(processing_status("x", health, dropped, states.now, 0.0).level)
        now[0] += 1.0
    assert levels[14] == DiagnosticStatus.WARN and set(levels[25:]) == {DiagnosticStatus.OK}
