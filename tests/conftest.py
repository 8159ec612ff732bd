"""Markers for what a test needs from outside the repository; where that is absent the test is skipped with a reason."""

from __future__ import annotations

import ctypes.util
import importlib.util
import shutil
import signal
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def missing_shared() -> str | None:
    return None if SHARED.is_dir() else f"the shared material is absent: {SHARED}"


def missing_debian() -> str | None:
    programs = [name for name in ("pulseaudio", "pactl", "paplay") if shutil.which(name) is None]
    if programs or ctypes.util.find_library("portaudio") is None:
        return "Debian packages absent: apt-get install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"
    return None


def missing_ros() -> str | None:
    return None if importlib.util.find_spec("rclpy") else "rclpy is absent: pip install -e '.[ros]'"


def missing_train() -> str | None:
    return None if importlib.util.find_spec("torch") else "torch is absent: pip install -e '.[train]'"


def missing_memory() -> str | None:
    if shutil.disk_usage("/dev/shm").total >= 128 << 20:
        return None
    return "/dev/shm is so small that the cache takes nothing of it: docker run --shm-size 1g"


NEEDS = {"shared": missing_shared, "debian": missing_debian, "ros": missing_ros, "train": missing_train,
         "memory": missing_memory}  # fmt: skip


def pytest_configure() -> None:
    # A shell that runs `make test` in the background ignores Ctrl-C for it, and every process a test starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {marker: missing() for marker, missing in NEEDS.items()}
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skipif(reason is not None, reason=reason or "what it needs is there"))


@pytest.fixture
def microphones_end(monkeypatch):
    """A test that fails leaves no microphone behind for the next one to stumble over."""
    from avssl_ros.audio_input import Microphone

    started, start = [], Microphone.start
    monkeypatch.setattr(Microphone, "start", lambda microphone: (started.append(microphone), start(microphone))[1])
    yield
    for microphone in started:
        microphone.stop()
