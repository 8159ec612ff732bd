"""The localizer as a managed node: what each state holds and publishes."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import LOUDNESS_NODE, Feed, Peer, log_of, terminate, wait_until
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

pytestmark = pytest.mark.ros

LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def change(peer: Peer, node: str, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return peer.call(ChangeState, f"/{node}/change_state", request).success


def state(peer: Peer, node: str) -> str:
    return peer.call(GetState, f"/{node}/get_state", GetState.Request()).current_state.label


def test_by_itself_it_becomes_active(processes, peer):
    processes.start(LOUDNESS_NODE, "-r", "__node:=alone", audio_source="topic")
    wait_until(lambda: state(peer, "alone") == "active", 30.0, "the active state")


def test_each_state_holds_and_publishes_what_the_table_says(processes, peer):
    process = processes.start(LOUDNESS_NODE, "-r", "__node:=managed", audio_source="topic", autostart=False)
    sources = peer.collect(PointCloud2, "managed/sources")
    events = peer.collect(String, "managed/events")
    states = peer.collect(String, "managed/state", LATCHED)
    diagnostics = peer.collect(DiagnosticArray, "/diagnostics")

    def topics() -> tuple[int, int]:
        """Publishers of ~/sources, subscribers of the camera."""
        node = peer.node
        return node.count_publishers("/managed/sources"), node.count_subscribers("/image/compressed")

    with Feed(peer):
        assert state(peer, "managed") == "unconfigured" and topics() == (0, 0)
        assert not change(peer, "managed", Transition.TRANSITION_ACTIVATE)
        assert change(peer, "managed", Transition.TRANSITION_CONFIGURE)
        wait_until(lambda: topics() == (1, 0), 5.0, "publishers and no subscription")
        time.sleep(1.5)
        assert not (sources or states or diagnostics)
        for _ in range(2):
            assert change(peer, "managed", Transition.TRANSITION_ACTIVATE)
            wait_until(lambda: sources and sources[-1].width, 10.0, "a source")
            assert topics() == (1, 1) and state(peer, "managed") == "active"
            assert change(peer, "managed", Transition.TRANSITION_DEACTIVATE)
            wait_until(lambda: sources[-1].width == 0 and topics() == (1, 0), 5.0, "the end of the source")
            assert '"offset"' in events[-1].data
            assert '"waiting"' in states[-1].data and "activate it" in states[-1].data
            heard = len(sources), len(states), len(diagnostics)
            time.sleep(1.5)
            assert heard == (len(sources), len(states), len(diagnostics)), "published while inactive"
        assert change(peer, "managed", Transition.TRANSITION_CLEANUP)
        wait_until(lambda: topics() == (0, 0), 5.0, "no publishers")
        assert change(peer, "managed", Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
        assert state(peer, "managed") == "finalized"
    assert terminate(process)[0] == 0


def test_what_cannot_be_configured_stays_unconfigured_and_says_why(processes, peer):
    process = processes.start(
        LOUDNESS_NODE, "-r", "__node:=odd", audio_source="topic", autostart=False, views_per_frame=9
    )
    assert not change(peer, "odd", Transition.TRANSITION_CONFIGURE)
    assert state(peer, "odd") == "unconfigured" and "views_per_frame must be 0..4, got 9" in log_of(process)
    assert peer.set_parameter("odd", "views_per_frame", 2).successful
    assert change(peer, "odd", Transition.TRANSITION_CONFIGURE)
    assert peer.set_parameter("odd", "audio_source", "no/such/file.wav").reason == "no/such/file.wav does not exist"
    assert change(peer, "odd", Transition.TRANSITION_ACTIVATE)
    assert change(peer, "odd", Transition.TRANSITION_ACTIVE_SHUTDOWN) and state(peer, "odd") == "finalized"
