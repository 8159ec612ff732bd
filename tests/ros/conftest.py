"""Fixtures of the ROS tests."""

from ros_fixtures import domain, peer, processes  # noqa: F401
from test_audio_input import long_tone, pulse  # noqa: F401  a virtual microphone, and what to play into it
