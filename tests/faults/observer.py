"""What a user's program sees of a localizer, with the time at which it came, and what must hold through any fault."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import Peer, wait_until
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

START_SECONDS = 40.0  # a busy machine takes its time to import and to discover
NOTICE_SECONDS = 3.0  # sensor_timeout is 1 s
RECOVERY_SECONDS = 3.0  # the bar of the issue
STALE_SECONDS = 1.5  # after the last good datum no source may come: sensor_timeout and what a busy machine needs


class Observer:
    """Messages of one localizer as (monotonic time of arrival, content)."""

    def __init__(self, peer: Peer, node: str = "localizer"):
        self.node = node
        self.states: list[tuple[float, dict]] = []
        self.sources: list[tuple[float, PointCloud2]] = []
        self.scenes: list[tuple[float, dict]] = []
        self.events: list[tuple[float, dict]] = []
        self.figures: dict[str, dict[str, str]] = {}  # of the newest diagnostics, by sensor
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        subscribe = peer.node.create_subscription
        subscribe(String, f"{node}/state", lambda m: self._keep(self.states, json.loads(m.data)), latched)
        subscribe(String, f"{node}/scene", lambda m: self._keep(self.scenes, json.loads(m.data)), 100)
        subscribe(String, f"{node}/events", lambda m: self._keep(self.events, json.loads(m.data)), 100)
        subscribe(PointCloud2, f"{node}/sources", lambda m: self._keep(self.sources, m), 100)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _keep(self, where: list, content) -> None:
        where.append((time.monotonic(), content))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node, part = status.name.split(": ")
            if node == self.node:
                self.figures[part] = {value.key: value.value for value in status.values}

    @property
    def state(self) -> dict:
        return self.states[-1][1] if self.states else {}

    def wait_for_state(self, seconds: float = NOTICE_SECONDS, after: float = 0.0, hint: str = "", **wanted) -> float:
        """When a state with these fields, and `hint` in its hint, came first after `after`."""

        def found() -> list[float]:
            return [when for when, state in self.states
                    if when > after and wanted.items() <= state.items() and hint in state["hint"]]  # fmt: skip

        wait_until(found, seconds, lambda: f"a state with {wanted} and '{hint}', which is {self.state}")
        return found()[0]

    def wait_for_source(self, seconds: float = START_SECONDS, after: float = 0.0) -> float:
        """When a source was published first after `after`."""

        def found() -> list[float]:
            return [when for when, message in self.sources if when > after and message.width]

        wait_until(found, seconds, lambda: f"a source; the state is {self.state}")
        return found()[0]

    def kinds_of_events(self, after: float = 0.0) -> list[str]:
        return [event["event"] for when, event in self.events if when > after]

    def assert_nothing_stale(self, since: float, until: float) -> None:
        """No source between these times, and every onset before has its offset."""
        assert not [when for when, message in self.sources if since < when < until and message.width]
        assert not [when for when, scene in self.scenes if since < when < until and scene["sources"]]
        ids = {kind: {event["id"] for when, event in self.events if when < until and event["event"] == kind}
               for kind in ("onset", "offset")}  # fmt: skip
        assert ids["onset"] <= ids["offset"], ids


def go_through(
    observer: Observer,
    row: Callable,
    fault: str,
    break_it: Callable[[], object],
    mend_it: Callable[[], object],
    hint: str = "",
    lasts: float = 1.0,
    **state: str,
) -> tuple[float, float]:
    """The way of a fault that costs a sensor: a source, the fault, the state that says so, the end of it, a source.

    Args:
        break_it, mend_it: inject the fault, and take it back; they may return the time from which it counts.
        hint: part of the state's hint while it lasts.
        lasts: seconds that it lasts after it was noticed.
        state: fields of the state that must be published.

    Returns when it was injected and when it was taken back.
    """
    observer.wait_for_source()
    observer.wait_for_state(START_SECONDS, mode="localizing")
    broken = time.monotonic()
    broken = break_it() or broken
    noticed = observer.wait_for_state(after=broken, hint=hint, **state)
    time.sleep(max(lasts, broken + STALE_SECONDS + 0.5 - time.monotonic()))
    said = observer.state
    mended = time.monotonic()
    observer.assert_nothing_stale(broken + STALE_SECONDS, mended)
    mended = mend_it() or mended
    back = max(
        observer.wait_for_state(2 * RECOVERY_SECONDS, after=mended, mode="localizing"),
        observer.wait_for_source(2 * RECOVERY_SECONDS, after=mended),
    )
    row(fault, told(said) + "; the source's offset", noticed - broken, back - mended)
    assert noticed - broken < NOTICE_SECONDS and back - mended < RECOVERY_SECONDS
    return broken, mended


def told(state: dict) -> str:
    return f"camera {state['camera']}, microphone {state['microphone']}: {state['mode']} (“{state['hint']}”)"
