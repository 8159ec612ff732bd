"""What is to be heard by nobody else gets a DDS domain that nobody on this machine is in."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import Peer

from avssl_ros.ros import domain as domains

pytestmark = pytest.mark.ros


def test_a_domain_in_which_somebody_is_is_not_taken(domain, monkeypatch):
    peer, mine = Peer(), os.environ["ROS_DOMAIN_ID"]
    try:
        monkeypatch.setattr(domains, "DOMAINS", [int(mine)])
        with pytest.raises(RuntimeError, match="in use on this machine"):
            domains.use_own_domain()
        monkeypatch.setattr(domains, "DOMAINS", range(1, 102))
        for _ in range(300):
            domains.use_own_domain()
            assert os.environ["ROS_DOMAIN_ID"] != mine
    finally:
        peer.close()
        os.environ["ROS_DOMAIN_ID"] = mine
