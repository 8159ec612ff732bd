"""What is to be heard by nobody else gets a DDS domain that nobody on this machine is in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import Peer

from avssl_ros.ros import domain as domains

pytestmark = pytest.mark.ros


def test_a_domain_in_which_somebody_is_is_not_taken(domain, monkeypatch):
    peer, mine = Peer(), os.environ["ROS_DOMAIN_ID"]
    monkeypatch.setattr(domains, "_claim", domains._claim)
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


def test_a_domain_that_another_process_has_chosen_is_not_taken(domain, monkeypatch):
    """Its participants come seconds later, and two processes that chose at the same time would hear each other."""
    program = "from avssl_ros.ros import domain; import os; domain.use_own_domain(); print(os.environ['ROS_DOMAIN_ID'])"
    mine = os.environ["ROS_DOMAIN_ID"]
    monkeypatch.setattr(domains, "_claim", domains._claim)
    other = subprocess.Popen([sys.executable, "-c", f"{program}; input()"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        monkeypatch.setattr(domains, "DOMAINS", [int(other.stdout.readline())])
        with pytest.raises(RuntimeError, match="in use on this machine"):
            domains.use_own_domain()
        other.communicate("")
        domains.use_own_domain()
        assert os.environ["ROS_DOMAIN_ID"] == str(domains.DOMAINS[0])
    finally:
        other.kill()
        os.environ["ROS_DOMAIN_ID"] = mine


def test_a_domain_whose_first_participant_has_ended_is_not_taken(domain, monkeypatch):
    monkeypatch.setattr(domains, "_claim", domains._claim)
    monkeypatch.setenv("ROS_DOMAIN_ID", os.environ["ROS_DOMAIN_ID"])
    domains.use_own_domain()
    free = int(os.environ["ROS_DOMAIN_ID"])
    domains._claim.close()
    monkeypatch.setattr(domains, "DOMAINS", [free])
    second = domains._bound(free, 12)  # as the second participant of a domain has
    with pytest.raises(RuntimeError, match="in use on this machine"):
        domains.use_own_domain()
    second.close()
    domains.use_own_domain()
