"""A real microphone of PulseAudio, recorded by PortAudio, that is unplugged, muted, or loses its server or process."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import media
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from observer import NOTICE_SECONDS, START_SECONDS, Observer, children, go_through, told
from ros_graph import LOUDNESS_NODE, Feed, wait_until

pytestmark = [pytest.mark.ros, pytest.mark.debian]

SINK = ("module-null-sink", "sink_name=robot", "rate=16000", "channels=1")


class Plug:
    """The virtual microphone as a person handles it; a tone is played into it while it is plugged in."""

    def __init__(self, pulse, tone):
        self._pulse, self._tone = pulse, tone
        self._player = pulse.play(tone, in_background=True)

    def play(self) -> float:
        self._player = self._pulse.play(self._tone, in_background=True)
        return time.monotonic()

    def mute(self, is_muted: bool = True) -> float:
        subprocess.run(["pactl", "set-source-mute", "robot.monitor", str(int(is_muted))], check=True)
        return time.monotonic()

    def stop(self) -> None:
        self._player.kill()
        self._player.wait()

    def pull(self) -> float:
        subprocess.run(["pactl", "unload-module", "module-null-sink"], check=True)
        pulled = time.monotonic()  # not before: pactl may take its time, and until then there is sound
        self.stop()
        return pulled

    def push(self) -> float:
        """Plug it in at another index than before."""
        subprocess.run(["pactl", "load-module", "module-null-sink", "sink_name=other"], check=True, capture_output=True)
        subprocess.run(["pactl", "load-module", *SINK], check=True, capture_output=True)
        subprocess.run(["pactl", "set-default-source", "robot.monitor"], check=True)
        subprocess.run(["pactl", "set-default-sink", "robot"], check=True)
        return self.play()

    def kill_server(self) -> float:
        self._pulse.kill()
        killed = time.monotonic()
        self.stop()
        return killed

    def start_server(self) -> float:
        self._pulse.start()
        return self.play()


@pytest.fixture
def plug(pulse, tmp_path):
    plug = Plug(pulse, media.write_wav(tmp_path / "tone.wav", media.tone(120.0, 16000, 700), 16000))
    yield plug
    plug.stop()


@pytest.fixture
def localizer(plug, processes):
    """The node with the microphone of this test's own sound server."""
    return processes.start(LOUDNESS_NODE, "-r", "__node:=ear", audio_source="microphone")


@pytest.fixture
def observer(localizer, peer):
    with Feed(peer) as feed:
        feed.microphone_on = False
        yield Observer(peer, "ear")


def test_a_microphone_that_is_unplugged_and_muted(observer, plug, row):
    go_through(observer, row, "microphone is unplugged and back at another index (sound server's sink)", plug.pull,
               plug.push, camera="ok", mode="seeing only")  # fmt: skip
    wait_until(lambda: int(observer.figures["microphone"]["recoveries"]) > 0, NOTICE_SECONDS, "the count of recoveries")
    muted = plug.mute()
    noticed = observer.wait_for_state(2 * NOTICE_SECONDS, after=muted, hint="only zeros", microphone="ok")
    said = told(observer.state)
    heard = plug.mute(False)
    back = observer.wait_for_source(after=heard)
    row("microphone is muted", said, noticed - muted, back - heard)


@pytest.mark.slow
def test_a_recording_process_that_is_killed(localizer, observer, row):
    observer.wait_for_source()
    wait_until(lambda: len(children(localizer)) == 1, START_SECONDS, "the process that records")
    killed = time.monotonic()
    os.kill(children(localizer)[0], signal.SIGKILL)
    noticed = observer.wait_for_state(after=killed, microphone="stale", hint="ended by signal 9")
    said = told(observer.state)
    back = max(observer.wait_for_state(START_SECONDS, after=noticed, mode="localizing"),
               observer.wait_for_source(after=noticed))  # fmt: skip
    row("process that records is killed (SIGKILL)", said, noticed - killed, back - killed)
    assert back - killed < NOTICE_SECONDS


@pytest.mark.slow
def test_a_sound_server_that_ends_and_begins_anew(observer, plug, row):
    go_through(observer, row, "sound server ends and is started anew", plug.kill_server, plug.start_server,
               camera="ok", mode="seeing only", lasts=4.0)  # fmt: skip


@pytest.mark.slow
def test_a_sound_server_that_stands_still(observer, pulse, row):
    go_through(observer, row, "sound server stands still (SIGSTOP)", lambda: pulse.signal(signal.SIGSTOP),
               lambda: pulse.signal(signal.SIGCONT), microphone="stale", mode="seeing only")  # fmt: skip
