"""Fixtures of the tests with ROS. Each test module gets a random DDS domain on this machine only."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module")
def domain():
    """A DDS domain of its own, inherited by every process the tests start."""
    import rclpy

    from avssl_ros.ros.domain import use_own_domain

    saved = dict(os.environ)
    use_own_domain()
    rclpy.init()
    yield
    rclpy.shutdown()
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def processes(domain, tmp_path):
    from ros_graph import Processes

    started = Processes(tmp_path)
    yield started
    started.close()


@pytest.fixture
def peer(domain):
    from ros_graph import Peer

    program = Peer()
    yield program
    program.close()
