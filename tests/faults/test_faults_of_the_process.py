"""SIGTERM and SIGINT at any moment of the real node, shipped models and all: within 2 s, status 0, nothing left."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from observer import START_SECONDS, Observer, children
from ros_graph import LOCALIZER, OVERLAY, PLAYER, Feed, log_of, terminate, wait_until

pytestmark = pytest.mark.ros

LIMIT_SECONDS = 2.0
# From the start of the interpreter. Before 0.2 s Python itself is loading, and answers a signal as it does.
MOMENTS = (0.2, 0.6, 1.0, 1.5, 2.5)


def is_listening(process) -> bool:
    """Whether the process has a handler for SIGTERM: until then no Python code of ours has run."""
    caught = int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.fixture
def start(processes):
    """Starts a node and remembers what was in shared memory before."""

    def start(program: list[str], **parameters):
        before = set(Path("/dev/shm").iterdir())
        process = processes.start(program, **parameters)
        process.before = before
        return process

    return start


def own_files(process) -> set[Path]:
    """What the process has in shared memory: segments of its DDS participant. Ports are shared with all others."""
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    return {Path(path) for path in re.findall(r"/dev/shm/fastdds_[0-9a-f]{16}\b", mapped)} - process.before


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def assert_ends_cleanly(process, number: int) -> float:
    files, own = own_files(process), children(process)
    status, seconds = terminate(process, number)
    assert status == 0, log_of(process)
    assert seconds < LIMIT_SECONDS, f"it took {seconds:.1f} s"
    assert "Traceback" not in log_of(process)
    assert not [path for path in files if path.exists()], "shared memory is left"
    assert not [pid for pid in own if is_alive(pid)], "a child is left"
    return seconds


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_while_the_node_starts(start, moment):
    number = signal.SIGINT if moment in MOMENTS[::2] else signal.SIGTERM
    process = start(LOCALIZER, audio_source="topic")
    time.sleep(moment)
    wait_until(lambda: is_listening(process), START_SECONDS, "the handler")
    assert_ends_cleanly(process, number)


@pytest.mark.parametrize("program", [PLAYER, OVERLAY], ids=["scene_player", "overlay"])
def test_a_signal_while_another_node_starts(start, program):
    process = start(program)
    time.sleep(0.4)
    wait_until(lambda: is_listening(process), START_SECONDS, "the handler")
    assert_ends_cleanly(process, signal.SIGTERM)


def test_a_signal_while_the_node_works(peer, start, row):
    process = start(LOCALIZER, audio_source="topic")
    observer = Observer(peer)
    with Feed(peer):
        observer.wait_for_state(START_SECONDS, mode="localizing")
        time.sleep(1.0)
        ended = time.monotonic()
        seconds = assert_ends_cleanly(process, signal.SIGTERM)
    observer.wait_for_state(after=ended, mode="waiting", hint="has ended")
    row("SIGTERM or SIGINT at any moment", "the sources' offsets, a last state, exit status 0", seconds, None)


@pytest.mark.debian
def test_a_signal_while_the_microphone_records(pulse, peer, start):
    process = start(LOCALIZER, audio_source="microphone")
    Observer(peer).wait_for_state(START_SECONDS, microphone="ok")
    # A busy machine may have starved the process that records, which is then started anew.
    wait_until(lambda: len(children(process)) == 1 and own_files(process), START_SECONDS, "the process that records")
    assert_ends_cleanly(process, signal.SIGTERM)


def test_a_node_that_hangs_is_ended_by_force(processes, tmp_path):
    program = tmp_path / "hangs.py"
    program.write_text(
        "from avssl_ros.ros import stopping\nstopping.listen()\nstopping.hold()\nimport time\ntime.sleep(60)\n"
    )
    process = processes.start([str(program)])
    wait_until(lambda: is_listening(process), START_SECONDS, "the handler")
    status, seconds = terminate(process, signal.SIGTERM)
    assert status == 0 and seconds < LIMIT_SECONDS + 0.5
