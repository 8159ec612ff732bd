"""Records a microphone in a process of its own; and how Microphone (audio_input.py) and this process talk.

    python avssl_ros/microphone_process.py '{"do": "record", "parent": 4711, "device": null, "sample_rate": null}'
    python avssl_ros/microphone_process.py '{"do": "list", "parent": 4711}'

PortAudio now and then hangs for good when the sound server dies under an open stream, and it looks for devices only
when it starts. A process can be killed, and a fresh one looks anew. It is started by the path of this file, not by -m:
that would import the whole package first, which takes seconds and a hundred megabytes.

Everything goes to standard output as blocks: a header, then float32 mono samples or one JSON object. The process ends
when its device does, at SIGTERM, and with the thread that started it (so nothing is left of a node that was killed).
SIGINT is ignored, because in a terminal it reaches this process too and it is the parent that ends it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import queue
import signal
import struct
import sys
import time
from dataclasses import dataclass

SOUND, SAID = 1, 2  # kinds of blocks
MAX_PAYLOAD_BYTES = 1 << 20
MAX_SAMPLE_RATE = 10_000_000
# Magic, kind, overflows since the last block, sample rate in Hz, payload bytes, capture time of the first sample in
# seconds of CLOCK_MONOTONIC, which all processes of a machine share.
_HEADER = struct.Struct("<4sBxHIId")
_MAGIC = b"AVmi"
_MAX_WAITING_BLOCKS = 512  # of about 8 ms each; beyond, the parent has been standing still for seconds
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProtocolError(ValueError):
    """What arrived is no block."""


@dataclass(frozen=True)
class Block:
    """One message of the recording process.

    Attributes:
        kind: SOUND (payload: float32 samples, little-endian) or SAID (payload: a JSON object).
        sample_rate: Hz; 0 where nothing is open.
        capture_time: of the first sample, in seconds of time.monotonic().
        overflows: how often samples were dropped since the block before.
        payload: at most MAX_PAYLOAD_BYTES.
    """

    kind: int
    sample_rate: int
    capture_time: float
    overflows: int
    payload: bytes

    def encode(self) -> bytes:
        head = (_MAGIC, self.kind, min(self.overflows, 0xFFFF), self.sample_rate, len(self.payload), self.capture_time)
        return _HEADER.pack(*head) + self.payload

    def said(self) -> dict:
        """The JSON object of a SAID block. Raises ProtocolError."""
        try:
            said = json.loads(self.payload)
        except ValueError as error:
            raise ProtocolError(f"no JSON: {error}") from error
        if not isinstance(said, dict):
            raise ProtocolError(f"expected a JSON object, got {type(said).__name__}")
        return said


class BlockReader:
    """Cuts a stream of bytes into blocks; holds no more than one incomplete block."""

    def __init__(self):
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Block]:
        """The blocks that `data` completes. Raises ProtocolError where a header is wrong, before its payload comes."""
        self._bytes += data
        blocks = []
        while len(self._bytes) >= _HEADER.size:
            magic, kind, overflows, rate, size, capture_time = _HEADER.unpack_from(self._bytes)
            is_sane = magic == _MAGIC and kind in (SOUND, SAID) and size <= MAX_PAYLOAD_BYTES
            if not (is_sane and rate <= MAX_SAMPLE_RATE and math.isfinite(capture_time)):
                raise ProtocolError(f"expected the header of a block, got {bytes(self._bytes[: _HEADER.size])!r}")
            if kind == SOUND and (size % 4 or rate == 0):
                raise ProtocolError(f"expected float32 samples at a rate > 0, got {size} bytes at {rate} Hz")
            end = _HEADER.size + size
            if len(self._bytes) < end:
                break
            blocks.append(Block(kind, rate, capture_time, overflows, bytes(self._bytes[_HEADER.size : end])))
            del self._bytes[:end]
        return blocks


class Recorder:
    """Turns PortAudio's callbacks into encoded blocks in `blocks`; None there means that the device has ended.

    The callback must not wait, so a full queue drops the newest block, and counts that as an overflow.
    """

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.blocks: queue.Queue[bytes | None] = queue.Queue(_MAX_WAITING_BLOCKS)
        self._overflows = 0  # that no block has told yet

    def on_audio(self, samples, frames: int, stream_time, status) -> None:
        """PortAudio's callback: samples (a buffer of frames x 1 float32) are only valid during the call."""
        captured = time.monotonic()
        age = stream_time.currentTime - stream_time.inputBufferAdcTime
        if not (stream_time.inputBufferAdcTime > 0 and 0 <= age < 5.0):  # some drivers leave it at 0
            age = frames / self.sample_rate
        self._overflows += bool(status.input_overflow)
        block = Block(SOUND, self.sample_rate, captured - age, self._overflows, bytes(samples))
        try:
            self.blocks.put_nowait(block.encode())
            self._overflows = 0
        except queue.Full:
            self._overflows += 1

    def on_finished(self) -> None:
        """PortAudio's word that no more callbacks will come."""
        self.blocks.put(None)


def say(pipe: int, said: dict, sample_rate: int = 0) -> None:
    _write(pipe, Block(SAID, sample_rate, time.monotonic(), 0, json.dumps(said).encode()).encode())


def _write(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


def list_inputs(sounddevice) -> list[dict]:
    """The sound inputs there are: dicts of index, name, channels, sample_rate (Hz), default (bool)."""
    default = sounddevice.default.device[0]
    return [
        {
            "index": device["index"],
            "name": device["name"],
            "channels": device["max_input_channels"],
            "sample_rate": int(round(device["default_samplerate"])),
            "default": device["index"] == default,
        }
        for device in sounddevice.query_devices()
        if device["max_input_channels"] > 0
    ]


def record(sounddevice, pipe: int, device: str | int | None, sample_rate: float | None) -> None:
    """Open the device, say so, and send what it records until it ends."""
    info = sounddevice.query_devices(device, "input")
    host_api = sounddevice.query_hostapis(info["hostapi"])["name"]
    rate = int(round(sample_rate or info["default_samplerate"]))
    recorder = Recorder(rate)
    stream = sounddevice.RawInputStream(
        device=info["index"],
        samplerate=rate,
        channels=1,
        dtype="float32",
        callback=recorder.on_audio,
        finished_callback=recorder.on_finished,
    )
    stream.start()
    say(pipe, {"opened": info["name"], "host_api": host_api}, rate)
    while (block := recorder.blocks.get()) is not None:
        _write(pipe, block)
    say(pipe, {"problem": "the device is gone"})


def main(job: dict) -> None:
    """Do the job of the command line, and end without PortAudio's own clean-up: that is what may hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != job["parent"]:  # it ended before prctl was called
        return
    # What libraries print must not come between the blocks.
    pipe = os.dup(1)
    os.dup2(2, 1)
    try:
        _do(job, pipe)
    except BrokenPipeError:
        pass  # nobody listens any more
    os._exit(0)


def _do(job: dict, pipe: int) -> None:
    try:
        import sounddevice
    except Exception as error:  # it also starts PortAudio, and that raises errors of a class that is not there yet
        say(pipe, {"problem": f"sound input cannot be used ({type(error).__name__}: {error})"})
        return
    try:
        if job["do"] == "list":
            say(pipe, {"inputs": list_inputs(sounddevice)})
        else:
            record(sounddevice, pipe, job["device"], job["sample_rate"])
    except (sounddevice.PortAudioError, ValueError) as error:
        say(pipe, {"problem": str(error), "inputs": list_inputs(sounddevice)})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
