"""The recording process of a microphone: what it says, and that it is replaced or ended whatever befalls it.

Most tests replace sounddevice by a module that plays a known ramp, 0.4 s late, or misbehaves on purpose
(FAKE_SOUNDDEVICE), so that they run without Debian packages; the faults are tried with a real PulseAudio too.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_audio_input import (  # noqa: F401  a virtual microphone, and what to play into it
    NOTICE_SECONDS,
    RECOVERY_SECONDS,
    long_tone,
    pulse,
    wait_until,
)

from avssl_ros import audio_input, microphone_process
from avssl_ros.audio_input import AudioDeviceError, Microphone, list_devices
from avssl_ros.microphone_process import SAID, SOUND, Block, BlockReader, ProtocolError, Recorder

FAKE_SOUNDDEVICE = """
import array, os, sys, threading, time
from types import SimpleNamespace

mode = os.environ["FAKE_MICROPHONE"]
if mode == "chatty":
    print("x" * 200_000), sys.stdout.flush()
    print("y" * 200_000, file=sys.stderr)
if mode == "hangs":
    time.sleep(1000)
if mode == "unusable":
    raise RuntimeError("no sound for you")

if mode == "crashes":
    print("the driver fell over", file=sys.stderr, flush=True)
    os._exit(3)

class PortAudioError(Exception): pass

default = SimpleNamespace(device=[0, -1])
info = {"index": 0, "name": "fake", "max_input_channels": 1, "default_samplerate": 8000.0, "hostapi": 0}

def query_devices(device=None, kind=None):
    if mode == "absent" and kind:
        raise ValueError("nothing matches")
    return info if kind else [info]

def query_hostapis(index):
    return {"name": "Fake API"}

class RawInputStream:
    def __init__(self, device, samplerate, channels, dtype, callback, finished_callback):
        self.callback, self.finished, self.rate = callback, finished_callback, samplerate

    def start(self):
        threading.Thread(target=self.play, daemon=True).start()

    def play(self):
        start, size = time.monotonic(), self.rate // 100
        for number in range(10**9):
            if mode == "silent":
                time.sleep(1000)
            if mode == "dies" and number == 20:
                print("some chatter\\\\nthe driver fell over", file=sys.stderr, flush=True)
                os._exit(3)
            if mode == "ends" and number == 20:
                return self.finished()
            time.sleep(max(0, start + (number + 1) / 100 - time.monotonic()))
            ramp = array.array("f", ((number * size + i) % 4096 / 4096 for i in range(size)))
            now = time.monotonic()
            stream_time = SimpleNamespace(currentTime=now, inputBufferAdcTime=start + number / 100 - 0.4)
            self.callback(ramp.tobytes(), size, stream_time, SimpleNamespace(input_overflow=number == 5))
""".replace("\\\\n", "\\n")


@pytest.fixture
def fake(tmp_path, monkeypatch, microphones_end):
    """Lets the recording process find FAKE_SOUNDDEVICE; call it with the mode wanted."""
    (tmp_path / "sounddevice.py").write_text(FAKE_SOUNDDEVICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(audio_input, "_check_portaudio", lambda: None)

    def use(mode: str = "plays") -> None:
        monkeypatch.setenv("FAKE_MICROPHONE", mode)

    use()
    return use


@pytest.fixture(params=["fake", pytest.param("pulse", marks=pytest.mark.debian)])
def sound_system(request):
    """Something that can be heard: the fake one, and a real one."""
    if request.param == "fake":
        yield request.getfixturevalue("fake")
        return
    server, tone = request.getfixturevalue("pulse"), request.getfixturevalue("long_tone")
    player = server.play(tone, in_background=True)
    yield server
    player.kill()
    player.wait()


class WatchedMicrophone(Microphone):
    """Keeps every (state, detail) it was in: some last half a second, which a test on a busy machine may sleep through.

    Attributes:
        conditions: oldest first.
    """

    def __init__(self, *arguments, **options):
        self.conditions: list[tuple[str, str]] = []
        super().__init__(*arguments, **options)

    @property
    def _condition(self) -> tuple[str, str]:
        return self.conditions[-1]

    @_condition.setter
    def _condition(self, condition: tuple[str, str]) -> None:
        if not self.conditions or condition != self.conditions[-1]:
            self.conditions.append(condition)

    def was(self, state: str, said: str) -> bool:
        return any(known == state and said in detail for known, detail in list(self.conditions))


@pytest.fixture
def microphone(sound_system):
    microphone = WatchedMicrophone()
    microphone.start()
    assert wait_until(lambda: microphone.status().state == "ok", 30), microphone.status()
    yield microphone
    microphone.stop()
    assert recording_processes() == {}


def recording_processes(parent: int | None = None) -> dict[int, str]:
    """Pid and state (R, S, T, Z ...) of the recording processes of `parent` (default: this process), zombies too."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent_pid = stat.read_text().rpartition(")")[2].split()[:2]
            is_ours = state == "Z" or b"microphone_process" in stat.with_name("cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(parent_pid) == (parent or os.getpid()) and is_ours:
            found[int(stat.parent.name)] = state
    return found


def the_recording_process() -> int:
    (pid,) = recording_processes()
    return pid


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # init may be slow
    except OSError:
        return True


class TestBlocks:
    blocks = (
        Block(SOUND, 16000, 12.5, 3, np.arange(100, dtype="<f4").tobytes()),
        Block(SAID, 0, 13.0, 0, b'{"problem": "none"}'),
        Block(SOUND, 48000, 14.0, 0, b""),
    )
    stream = b"".join(block.encode() for block in blocks)

    @pytest.mark.parametrize("size", [1, 7, 24, 10_000])
    def test_arrive_whole_however_the_stream_is_cut(self, size):
        reader = BlockReader()
        read = [reader.feed(self.stream[start : start + size]) for start in range(0, len(self.stream), size)]
        assert tuple(block for blocks in read for block in blocks) == self.blocks

    @pytest.mark.parametrize(
        "block",
        [
            Block(7, 16000, 1.0, 0, b""),
            Block(SOUND, 0, 1.0, 0, bytes(4)),
            Block(SOUND, 16000, 1.0, 0, bytes(5)),
            Block(SOUND, 16000, float("nan"), 0, bytes(4)),
            Block(SOUND, 2_000_000_000, 1.0, 0, bytes(4)),
            Block(SAID, 0, 1.0, 0, bytes(microphone_process.MAX_PAYLOAD_BYTES + 4)),
        ],
        ids=["kind", "no rate", "part of a sample", "time", "rate", "size"],
    )
    def test_wrong_headers_are_refused_before_their_payload_comes(self, block):
        with pytest.raises(ProtocolError):
            BlockReader().feed(block.encode()[:24])

    def test_damaged_streams_raise_nothing_else_and_stay_small(self):
        chance = random.Random(0)
        refused = 0
        for _ in range(3000):
            damaged = bytearray(self.stream)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            try:
                for block in BlockReader().feed(bytes(damaged)):
                    if block.kind == SAID:
                        block.said()
            except ProtocolError:
                refused += 1
        assert 300 < refused < 3000

    @pytest.mark.parametrize("payload", [b"[1]", b"{", b"\xff"])
    def test_what_is_said_is_a_json_object(self, payload):
        with pytest.raises(ProtocolError, match="JSON"):
            Block(SAID, 0, 1.0, 0, payload).said()


class TestRecorder:
    no_overflow = SimpleNamespace(input_overflow=False)
    unknown = SimpleNamespace(inputBufferAdcTime=0.0, currentTime=7.5)  # of a driver that does not say

    def block(self, recorder: Recorder) -> Block:
        return BlockReader().feed(recorder.blocks.get_nowait())[0]

    def test_stamps_the_first_sample_and_counts_overflows(self):
        recorder = Recorder(1000)
        known = SimpleNamespace(inputBufferAdcTime=7.0, currentTime=7.25)
        before = time.monotonic()
        recorder.on_audio(bytes(400), 100, known, SimpleNamespace(input_overflow=True))
        between = time.monotonic()
        recorder.on_audio(bytes(400), 100, self.unknown, self.no_overflow)
        after = time.monotonic()
        first, second = self.block(recorder), self.block(recorder)
        assert before - 0.25 <= first.capture_time <= between - 0.25
        assert between - 0.1 <= second.capture_time <= after - 0.1
        assert (first.overflows, second.overflows, second.sample_rate, len(second.payload)) == (1, 0, 1000, 400)

    def test_never_waits_for_a_parent_that_stands_still(self):
        recorder = Recorder(1000)
        for _ in range(1000):
            recorder.on_audio(bytes(4), 1, self.unknown, self.no_overflow)
        kept = recorder.blocks.qsize()
        assert kept < 1000
        while recorder.blocks.qsize():
            assert self.block(recorder).overflows == 0
        recorder.on_audio(bytes(4), 1, self.unknown, self.no_overflow)
        assert self.block(recorder).overflows == 1000 - kept


class TestFaults:
    def test_a_killed_process_is_replaced(self, microphone):
        first = the_recording_process()
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: microphone.was("stale", "ended by signal 9"), 1), microphone.conditions
        assert wait_until(lambda: microphone.status().state == "ok", RECOVERY_SECONDS), microphone.status()
        assert microphone.status().restarts == 1 and the_recording_process() != first

    def test_a_process_that_stands_still_is_replaced(self, microphone):
        first = the_recording_process()
        os.kill(first, signal.SIGSTOP)
        assert wait_until(lambda: microphone.was("stale", "no sound comes"), NOTICE_SECONDS), microphone.conditions
        assert wait_until(lambda: microphone.status().state == "ok", RECOVERY_SECONDS), microphone.status()
        assert microphone.status().restarts == 1 and the_recording_process() != first

    @pytest.mark.parametrize("number", [signal.SIGCONT, signal.SIGSTOP], ids=["running", "standing still"])
    def test_stop_ends_the_process_within_two_seconds(self, microphone, number):
        pid = the_recording_process()
        os.kill(pid, number)
        start = time.monotonic()
        microphone.stop()
        assert time.monotonic() - start < 2.0 and is_gone(pid)
        assert recording_processes() == {} and microphone.status().detail == "not started"

    @pytest.mark.parametrize("number", [signal.SIGCONT, signal.SIGSTOP], ids=["running", "standing still"])
    def test_the_process_ends_with_its_parent(self, sound_system, number):
        parent, (pid,) = start_program("raise")
        os.kill(pid, number)
        parent.kill()
        parent.wait()
        assert wait_until(lambda: is_gone(pid), 2)

    def test_ctrl_c_ends_both(self, sound_system):
        # The program takes the time itself: from outside it has the interpreter's end in it.
        parent, (pid,) = start_program(
            "status, start = microphone.status(), time.monotonic(); microphone.stop(); "
            "print(status.state, status.restarts, time.monotonic() - start)"
        )
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        output, errors = parent.communicate(timeout=60)
        assert (parent.returncode, errors) == (0, "") and is_gone(pid)
        state, restarts, seconds = output.split()
        assert (state, restarts) == ("ok", "0") and float(seconds) < 2.0

    def test_starts_again_after_stop(self, microphone):
        microphone.stop()
        assert recording_processes() == {}
        microphone.start()
        assert wait_until(lambda: microphone.status().state == "ok", 30)


def start_program(at_ctrl_c: str) -> tuple[subprocess.Popen, list[int]]:
    """A process that records, in a process group of its own, and its recording processes; it is ready for Ctrl-C."""
    code = (
        "import time; from avssl_ros import audio_input\n"
        "audio_input._check_portaudio = lambda: None\n"
        "microphone = audio_input.Microphone(); microphone.start()\n"
        "while microphone.status().state != 'ok': time.sleep(0.05)\n"
        f"try: print('ready', flush=True); time.sleep(1000)\nexcept KeyboardInterrupt: {at_ctrl_c}\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)
    assert program.stdout.readline() == "ready\n"
    return program, list(recording_processes(program.pid))


class TestWithFakeSounddevice:
    def test_every_sample_arrives_once_with_its_time(self, fake, monkeypatch):
        monkeypatch.setattr(Microphone, "START_SECONDS", 30.0)
        microphone = Microphone(clock=lambda: time.monotonic() + 1000)
        microphone.start()
        assert microphone.sample_rate == 8000  # the device's own is known when start() returns
        assert wait_until(lambda: microphone.buffer.read(time.monotonic() + 1000, 9.0).size > 8000, 30)
        buffer = microphone.buffer
        # Sooner or later: on a busy machine the newest block waits for its turn.
        assert wait_until(lambda: abs(buffer.latest - (time.monotonic() + 1000 - 0.4)) < 0.1, 10)
        steps = np.diff(buffer.read(buffer.latest, 9.0)) * 4096
        assert np.all((steps == 1) | (steps == -4095))
        assert microphone.status().detail == "microphone 'fake' at 8000 Hz" and microphone.status().overflows == 1
        microphone.stop()

    def test_who_need_not_know_does_not_wait_for_the_device(self, fake, monkeypatch):
        fake("hangs")
        for patience in ("START_SECONDS", "OPEN_SECONDS"):  # word comes with the end of either
            monkeypatch.setattr(Microphone, patience, 60.0)
        microphone = Microphone(wait=False)
        start = time.monotonic()
        microphone.start()
        assert time.monotonic() - start < 30 and microphone.status().state == "absent"
        microphone.stop()

    def test_what_libraries_print_disturbs_nothing(self, fake):
        fake("chatty")
        microphone = Microphone()
        microphone.start()
        assert wait_until(lambda: microphone.status().state == "ok", 30), microphone.status()
        assert [device["name"] for device in list_devices()] == ["fake"]
        microphone.stop()

    @pytest.mark.parametrize(
        "mode, state, said",
        [
            ("hangs", "absent", "no default microphone (opening it takes too long)"),
            ("silent", "stale", "no sound comes"),
            ("absent", "absent", "no default microphone (nothing matches); inputs there are: fake"),
            ("unusable", "absent", "RuntimeError: no sound for you"),
            ("dies", "stale", "ended: the driver fell over"),
            ("ends", "stale", "the device is gone"),
        ],
    )
    def test_what_goes_wrong_is_said_and_mended_when_it_can_be(self, fake, monkeypatch, mode, state, said):
        fake(mode)
        microphone = WatchedMicrophone()
        with monkeypatch.context() as short:  # only what is to run out: the rest may take its time
            if patience := {"hangs": "OPEN_SECONDS", "silent": "FIRST_SOUND_SECONDS"}.get(mode):
                short.setattr(Microphone, patience, 1.0)
            microphone.start()
            assert wait_until(lambda: microphone.was(state, said), 4), microphone.conditions
        fake("plays")
        assert wait_until(lambda: microphone.status().state == "ok", 30), microphone.status()
        microphone.stop()
        assert recording_processes() == {}

    def test_last_words_are_read_that_come_with_the_end_of_its_output(self, fake):
        fake("crashes")
        process = audio_input._RecordingProcess(None, None)
        assert wait_until(lambda: "Z" in recording_processes().values(), 30)  # all of it waits in the pipes
        with pytest.raises(audio_input._RecordingError, match="ended: the driver fell over"):
            for _ in range(100):
                process.read(0.1)
        process.end()

    def test_an_index_is_remembered_by_name(self, fake):
        microphone = Microphone(0)
        microphone.start()
        assert wait_until(lambda: microphone.status().state == "ok", 30)
        fake("absent")
        os.kill(the_recording_process(), signal.SIGKILL)
        assert wait_until(lambda: "no usable microphone 'fake, Fake API'" in microphone.status().detail, 30)
        microphone.stop()

    def test_sigint_does_not_end_it_and_sigterm_does(self, fake):
        microphone = WatchedMicrophone()
        microphone.start()
        assert wait_until(lambda: microphone.status().state == "ok", 30)
        pid = the_recording_process()
        os.kill(pid, signal.SIGINT)
        time.sleep(0.5)
        assert microphone.status().state == "ok" and the_recording_process() == pid
        os.kill(pid, signal.SIGTERM)
        assert wait_until(lambda: microphone.was("stale", "ended by signal 15"), 2), microphone.conditions
        microphone.stop()

    def test_a_clock_that_fails_is_said_and_survived(self, fake):
        fails = [True]

        def clock() -> float:
            return float("nan") if fails else time.time()

        microphone = Microphone(clock=clock)
        microphone.start()
        assert wait_until(lambda: "finite time" in microphone.status().detail, 30)
        fails.clear()
        assert wait_until(lambda: microphone.status().state == "ok", 30)
        microphone.stop()

    @pytest.mark.parametrize("mode, said", [("hangs", "gave no list"), ("unusable", "no sound for you")])
    def test_a_list_that_cannot_be_had_is_a_clear_error(self, fake, monkeypatch, mode, said):
        if mode == "hangs":
            monkeypatch.setattr(audio_input, "LIST_SECONDS", 0.5)
        fake(mode)
        with pytest.raises(AudioDeviceError, match=said):
            list_devices()
        assert recording_processes() == {}
