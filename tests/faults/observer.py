"""What a user's program sees of a localizer, with the time of its publication, and what must hold through any fault.

Times are those that the publisher's DDS wrote on a message, not those of its arrival: where this process has to wait
for its turn, that says nothing of the node.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import Peer, wait_until
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

from avssl_ros.ros import converters

START_SECONDS = 40.0  # a busy machine takes its time to import and to discover
NOTICE_SECONDS = 3.0  # sensor_timeout is 1 s
RECOVERY_SECONDS = 3.0  # the bar of the issue
STALE_SECONDS = 1.5  # after its image or the fault no source may come: sensor_timeout and what a busy machine needs
SOUND_SECONDS = 1.1  # after the fault no image may have a source: sensor_timeout, and 0.1 s for times of sound
# From monotonic times to those of the wall clock; the most of some, as a pause between the two readings takes from it.
TO_WALL_CLOCK = max(time.time() - time.monotonic() for _ in range(5))


class Observer:
    """Messages of one localizer as (monotonic time of publication, content).

    clock_offset: seconds by which the clock of the sensors differs from this machine's.
    """

    def __init__(self, peer: Peer, node: str = "localizer", clock_offset: float = 0.0):
        self.node = node
        self._clock_offset = clock_offset
        self.states: list[tuple[float, dict]] = []
        self.sources: list[tuple[float, PointCloud2]] = []
        self.scenes: list[tuple[float, dict]] = []
        self.events: list[tuple[float, dict]] = []
        self.figures: dict[str, dict[str, str]] = {}  # of the newest diagnostics, by sensor
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        subscribe = peer.node.create_subscription
        for messages, topic, qos in ((self.states, "state", latched), (self.scenes, "scene", 100),
                                     (self.events, "events", 100)):  # fmt: skip
            subscribe(String, f"{node}/{topic}", self._keeper(messages, lambda m: json.loads(m.data)), qos)
        subscribe(PointCloud2, f"{node}/sources", self._keeper(self.sources, lambda m: m), 100)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _keeper(self, where: list, content_of: Callable) -> Callable:
        def keep(message, info) -> None:  # the second argument makes rclpy hand over what DDS knows of the message
            where.append((info["source_timestamp"] * 1e-9 - TO_WALL_CLOCK, content_of(message)))

        return keep

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

    def assert_all_ended(self, fault: float) -> None:
        """Every onset has its offset, or gets it while the fault may still be noticed."""

        def lasting() -> set[int]:
            ids = {kind: {event["id"] for _, event in list(self.events) if event["event"] == kind}
                   for kind in ("onset", "offset")}  # fmt: skip
            return ids["onset"] - ids["offset"]

        seconds = max(0.0, fault + NOTICE_SECONDS - time.monotonic())
        wait_until(lambda: not lasting(), seconds, lambda: f"the offsets of {lasting()}")

    def assert_nothing_stale(self, fault: float, until: float) -> None:
        """No source since the fault that it forbids, and every onset has its offset.

        An image may have a source while the sound before the fault is new enough for it, and may be answered
        STALE_SECONDS after it was taken.
        """
        self.assert_all_ended(fault)
        offset = TO_WALL_CLOCK + self._clock_offset  # from monotonic times to those of the sensors
        sources = [(when, converters.stamp_to_seconds(message.header.stamp) - offset)
                   for when, message in self.sources if message.width]  # fmt: skip
        scenes = [(when, scene["time"] - offset) for when, scene in self.scenes if scene["sources"]]
        stale = [(when - fault, captured - fault) for when, captured in sources + scenes
                 if fault < when < until
                 and (captured > fault + SOUND_SECONDS or when > max(captured, fault) + STALE_SECONDS)]  # fmt: skip
        assert not stale, f"seconds after the fault, of publication and of capture: {stale}"


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
    broken = break_it() or time.monotonic()
    noticed = observer.wait_for_state(after=broken, hint=hint, **state)
    time.sleep(max(lasts, broken + STALE_SECONDS + 0.5 - time.monotonic()))
    said = observer.state
    observer.assert_nothing_stale(broken, time.monotonic())
    mended = mend_it() or time.monotonic()
    back = max(
        observer.wait_for_state(2 * RECOVERY_SECONDS, after=mended, mode="localizing"),
        observer.wait_for_source(2 * RECOVERY_SECONDS, after=mended),
    )
    row(fault, told(said) + "; the source's offset", noticed - broken, back - mended)
    assert noticed - broken < NOTICE_SECONDS and back - mended < RECOVERY_SECONDS
    return broken, mended


def told(state: dict) -> str:
    return f"camera {state['camera']}, microphone {state['microphone']}: {state['mode']} (“{state['hint']}”)"


def children(process: subprocess.Popen) -> list[int]:
    """Process ids of its children, those that record."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    found: list[int] = []
    for task in tasks:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, task.read_text().split())
    return found
