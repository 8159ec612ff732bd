"""Where sound comes from: a microphone or a file, behind one source type, kept with its capture times.

    source = Microphone()                      # or Microphone("ReSpeaker"), or FileAudio("speech.wav", loop=True)
    source.start()
    buffer = source.buffer
    samples = buffer.read(until=image_time, seconds=2.0)      # mono float32 at buffer.sample_rate
    source.status()                                           # AudioStatus(state="ok", ...)

Sound is mono float32 in [-1, 1] at the rate of its origin: only the Localizer resamples. Times are seconds of the clock
the source was given. `read_audio` and `SoundFile` read any file PyAV opens without playing it.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from avssl_ros import microphone_process
from avssl_ros.microphone_process import BlockReader, ProtocolError

BUFFER_SECONDS = 10.0
MAX_CLOCK_JITTER = 0.1  # seconds between a block's stated and expected time that still count as continuous
LIST_SECONDS = 10.0  # a sound system that takes longer hangs
MAX_FILE_SAMPLES = 100_000_000  # that `read_audio` holds in memory: 400 MB as float32, 35 minutes at 48 kHz
FILE_RATES = (1000, 768_000)  # Hz that a sound file may state: buffers are made for seconds of it
MAX_JUMP_SECONDS = 3600.0  # between two blocks or pictures of a file; a damaged time would be filled with silence
MAX_BACK_SECONDS = 1.0  # from one block or picture of a file to the next; further back is another file's beginning
MAX_BAD_PACKETS = 1000  # in a row, 20 s of sound or more of pictures: no damage but garbage, however long it goes on
# A start nearer to 0 is left as it is: that is the delay of a codec or an edit list, and belongs to the file's times.
MAX_START_SECONDS = 1.0
# What FFmpeg may take a file for. Without such a list a text file can be a playlist that opens other files or the net.
FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,"
    "eac3,amr,wv,ape,tta,dts,mxf,dv,ivf,h264,hevc,obu,m4v,mjpeg,yuv4mpegpipe,gif,image2,jpeg_pipe,png_pipe,webp_pipe,"
    "bmp_pipe,tiff_pipe"
)
MAX_PIXELS = 1 << 26  # 67 megapixels, an 11K panorama: 200 MB as RGB


class AudioDeviceError(RuntimeError):
    """The microphone cannot be used; the text says what to install or to do."""


class AudioBuffer:
    """Ring buffer of the newest mono samples with their capture times; safe for one writer and one reader thread.

    Args:
        sample_rate: samples per second, > 0.
        seconds: how much is kept, > 0.
    """

    def __init__(self, sample_rate: float, seconds: float = BUFFER_SECONDS):
        if not (sample_rate > 0 and seconds > 0):
            raise ValueError(f"sample_rate and seconds must be > 0, got {sample_rate} and {seconds}")
        self.sample_rate = int(round(sample_rate))
        self._samples = np.zeros(max(1, int(round(self.sample_rate * seconds))), np.float32)
        self._end = 0  # where the next sample goes
        self._count = 0  # how many samples are valid
        self._latest: float | None = None
        self._lock = threading.Lock()

    @property
    def latest(self) -> float | None:
        """Capture time of the newest sample in seconds; None while the buffer is empty."""
        with self._lock:
            return self._latest

    def write(self, samples: np.ndarray, capture_time: float) -> None:
        """Append samples (n,), the first of which was captured at `capture_time` (seconds).

        Where that time does not follow on from what is there (a gap, or a clock that jumped) by more than
        MAX_CLOCK_JITTER, what is there is forgotten: a window read later never joins sounds that were further apart. A
        smaller gap is taken for jitter, and what is before and after it is joined. Raises ValueError on a wrong shape
        or time.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(capture_time):
            raise ValueError(
                f"expected mono samples (n,) and a finite time, got shape {samples.shape} and {capture_time}"
            )
        if not samples.size:
            return
        size = len(self._samples)
        newest = samples[-size:]
        with self._lock:
            if self._latest is not None:
                expected = self._latest + 1.0 / self.sample_rate
                if abs(capture_time - expected) > MAX_CLOCK_JITTER:
                    self._count = 0
            until_wrap = size - self._end
            self._samples[self._end : self._end + len(newest)] = newest[:until_wrap]
            self._samples[: max(0, len(newest) - until_wrap)] = newest[until_wrap:]
            self._end = (self._end + len(newest)) % size
            self._count = min(size, self._count + len(newest))
            self._latest = float(capture_time) + (len(samples) - 1) / self.sample_rate

    def read(self, until: float, seconds: float) -> np.ndarray:
        """The samples captured in (until - seconds, until] that are there, oldest first; empty where none are.

        Returns a copy, float32 (n,) with n <= seconds * sample_rate (rounded). Nothing is padded.
        """
        with self._lock:
            if self._latest is None or not np.isfinite(until):
                return np.zeros(0, np.float32)
            too_new = max(0, int(np.ceil((self._latest - until) * self.sample_rate - 1e-3)))
            wanted = int(round(seconds * self.sample_rate)) - max(
                0, int(round((until - self._latest) * self.sample_rate))
            )
            length = max(0, min(self._count - too_new, wanted))
            start = self._end - too_new - length
            return np.take(self._samples, np.arange(start, start + length), mode="wrap")


@dataclass(frozen=True)
class AudioStatus:
    """How a source is doing.

    Attributes:
        state: "ok" (sound arrives), "stale" (it did, and stopped), or "absent" (no device, or not started).
        detail: one sentence for a person: which device, or what is wrong and what to do.
        overflows: how often the system dropped samples because this process was too slow.
        last_time: capture time of the newest sample in seconds, None before the first.
        restarts: how often a device that was open stopped delivering sound and was opened anew.
    """

    state: str
    detail: str
    overflows: int
    last_time: float | None
    restarts: int = 0


class AudioSource(ABC):
    """What delivers sound into `buffer` between `start()` and `stop()`.

    `buffer` may be replaced when a device returns with another rate: take `source.buffer` once, then read the samples
    and `sample_rate` from that same object.
    """

    buffer: AudioBuffer

    @property
    def sample_rate(self) -> int:
        return self.buffer.sample_rate

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def status(self) -> AudioStatus: ...


def _check_portaudio() -> None:
    """AudioDeviceError where sounddevice or PortAudio, the system library that pip does not bring, are missing.

    Neither is loaded: that happens in the recording process only, because loading it already looks for devices.
    """
    if importlib.util.find_spec("sounddevice") is None:
        raise AudioDeviceError("the microphone needs the Python package sounddevice: 'pip install sounddevice'.")
    if ctypes.util.find_library("portaudio") is None:
        raise AudioDeviceError(
            "the microphone needs the PortAudio library, which is not installed. "
            "Install it with 'sudo apt install libportaudio2', or use a sound file instead."
        )


def _process_arguments(job: str, **details) -> list[str]:
    """The command line of microphone_process.py."""
    job = json.dumps({"do": job, "parent": os.getpid(), **details})
    return [sys.executable, microphone_process.__file__, job]


def list_devices() -> list[dict]:
    """The sound inputs there are now: dicts of index, name, channels, sample_rate (Hz), default (bool).

    Raises AudioDeviceError without PortAudio, or where the sound system does not answer.
    """
    _check_portaudio()
    try:
        result = subprocess.run(
            _process_arguments("list"), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIST_SECONDS
        )
        said = BlockReader().feed(result.stdout)[0].said()
        if "inputs" not in said:
            raise AudioDeviceError(said["problem"])
        return said["inputs"]
    except subprocess.TimeoutExpired as error:
        raise AudioDeviceError(
            f"the sound system gave no list of its devices for {LIST_SECONDS:g} s. "
            "Does the sound server hang? Restart it ('systemctl --user restart pipewire' or 'pulseaudio --kill')."
        ) from error
    except (ProtocolError, LookupError) as error:
        raise AudioDeviceError(f"the list of sound inputs cannot be read: {_last_words(result.stderr)}") from error


def _last_words(errors: bytes) -> str:
    """The last line of what a process wrote to standard error, "no message" where it wrote none."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no message"


class _RecordingError(Exception):
    """The recording process is of no more use. Arguments: why, and the sound inputs there are where that is known."""

    def __init__(self, reason: str, inputs: list[dict] | None = None):
        super().__init__(reason)
        self.inputs = inputs


class _RecordingProcess:
    """A running microphone_process.py and the pipes from it. Raises OSError where the system starts no more processes.

    The process ends with the thread that makes this object, which must therefore be the one that reads.
    """

    GRACE_SECONDS = 0.3  # between SIGTERM and SIGKILL
    KEPT_ERROR_BYTES = 4096

    def __init__(self, device: str | int | None, sample_rate: float | None):
        self._process = subprocess.Popen(
            _process_arguments("record", device=device, sample_rate=sample_rate),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._output, self._errors = self._process.stdout.fileno(), self._process.stderr.fileno()
        self._poll = select.poll()
        for pipe in (self._output, self._errors):
            self._poll.register(pipe, select.POLLIN)
        self._reader = BlockReader()
        self._last_errors = b""

    def read(self, timeout: float) -> list[microphone_process.Block]:
        """The blocks that have come, after at most `timeout` seconds. Raises _RecordingError at the end of them."""
        blocks = []
        for pipe, _ in self._poll.poll(1000 * timeout):
            data = os.read(pipe, 1 << 16)
            if pipe == self._errors:  # read also where nobody wants it: a full pipe would stop the process
                self._last_errors = (self._last_errors + data)[-self.KEPT_ERROR_BYTES :]
                if not data:
                    self._poll.unregister(pipe)
            elif not data:
                raise _RecordingError(f"the recording process {self._how_it_ended()}")
            else:
                try:
                    blocks = self._reader.feed(data)
                except ProtocolError as error:
                    raise _RecordingError(f"the recording process is not understood: {error}") from error
        return blocks

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(self.GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output"
        os.set_blocking(self._errors, False)  # a child of a driver's may hold the pipe open
        with contextlib.suppress(BlockingIOError):  # its last words come at the same moment as the end of its output
            self._last_errors += os.read(self._errors, 1 << 16)
        return f"was ended by signal {-status}" if status < 0 else f"ended: {_last_words(self._last_errors)}"

    def end(self) -> None:
        """End the process, by force where it hangs, and leave no zombie."""
        self._process.terminate()
        try:
            self._process.wait(self.GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(self.GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # it waits within a driver; subprocess collects it when it starts another process
        self._process.stdout.close()
        self._process.stderr.close()


class Microphone(AudioSource):
    """A sound input of this machine, first channel, that survives its removal and comes back by itself.

    It is recorded by a process of its own (microphone_process.py), which is killed and replaced when it ends or falls
    silent, whatever PortAudio and the sound server do.

    Args:
        device: name or part of it, or index; None is the system's default. An index is only used to find the name,
            because indices change when devices come and go.
        sample_rate: Hz; None takes the device's own.
        clock: gives the time in seconds that samples are stamped with.
        wait: whether `start()` waits, for at most START_SECONDS, for word of the device.

    Raises AudioDeviceError at once where PortAudio is missing. A device that is absent is no exception, as it may be
    plugged in later: `status()` says "absent" and what to do, and it is tried again and again.
    """

    START_SECONDS = 2.0  # how long `start()` waits for word of the device
    OPEN_SECONDS = 8.0  # opening that takes longer hangs
    STALE_SECONDS = 1.0  # without a block for so long, the recording counts as dead
    FIRST_SOUND_SECONDS = 5.0  # a freshly opened one gets longer: PulseAudio may take 2 s to its first block
    CHECK_SECONDS = 0.1
    FIRST_RETRY_SECONDS = 0.5
    MAX_RETRY_SECONDS = 1.5  # a process started in vain costs 0.2 s of one core; a device is to be back within 3 s
    STOP_SECONDS = 2.0

    def __init__(
        self,
        device: str | int | None = None,
        sample_rate: float | None = None,
        clock: Callable[[], float] = time.time,
        wait: bool = True,
    ):
        _check_portaudio()
        self._device = device
        self._wait = wait
        self._wanted_rate = None if sample_rate is None else float(sample_rate)
        self._clock = clock
        self.buffer = AudioBuffer(sample_rate or 48000)
        self._overflows = self._restarts = 0
        self._name = ""  # of the device that is open, with its rate
        self._condition = ("absent", "not started")  # state and detail, replaced together
        self._has_word = threading.Event()  # the device is open, or is known not to be there
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the device and begin to record; without a device, keep trying in the background."""
        if self._thread is not None:
            return
        self._stopping.clear()
        self._has_word.clear()
        self._condition = ("absent", "the microphone is being opened")
        self._thread = threading.Thread(target=self._record, name="microphone", daemon=True)
        self._thread.start()
        if self._wait:
            self._has_word.wait(self.START_SECONDS)

    def stop(self) -> None:
        """Close the device; `start()` opens it again."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=self.STOP_SECONDS)
            self._thread = None
        self._condition = ("absent", "not started")

    def status(self) -> AudioStatus:
        state, detail = self._condition
        return AudioStatus(state, detail, self._overflows, self.buffer.latest, self._restarts)

    def _record(self) -> None:
        """The thread: one recording process after the other."""
        retry = self.FIRST_RETRY_SECONDS
        while not self._stopping.is_set():
            if self._record_once():
                retry = self.FIRST_RETRY_SECONDS
            self._has_word.set()
            self._stopping.wait(retry)
            retry = min(2 * retry, self.MAX_RETRY_SECONDS)

    def _record_once(self) -> bool:
        """Run one recording process until it is of no more use; whether sound came from it."""
        self._name = ""
        has_sounded = False
        process = None
        try:
            process = _RecordingProcess(self._device, self._wanted_rate)
            silent_at = time.monotonic() + self.OPEN_SECONDS
            while not self._stopping.is_set():
                for block in process.read(self.CHECK_SECONDS):
                    if block.kind == microphone_process.SOUND:
                        self._on_sound(block)
                        has_sounded = True
                    else:
                        self._on_word(block)
                    patience = self.STALE_SECONDS if has_sounded else self.FIRST_SOUND_SECONDS
                    silent_at = time.monotonic() + patience
                if time.monotonic() > silent_at:
                    raise _RecordingError("no sound comes" if self._name else "opening it takes too long")
        except _RecordingError as error:
            self._on_loss(str(error), error.inputs)
        except Exception as error:  # whatever it is, the node must live on and say so
            self._on_loss(f"{type(error).__name__}: {error}")
        finally:
            if process is not None:
                process.end()
        return has_sounded

    def _on_sound(self, block: microphone_process.Block) -> None:
        # The age rather than the time itself: this source's clock may be another one than the recording process has.
        age = time.monotonic() - block.capture_time
        self.buffer.write(np.frombuffer(block.payload, "<f4"), self._clock() - age)
        self._overflows += block.overflows
        self._condition = ("ok", self._name)

    def _on_word(self, block: microphone_process.Block) -> None:
        """The process says that the device is open, or why it is not."""
        said = block.said()
        if "opened" not in said:
            raise _RecordingError(said["problem"], said.get("inputs"))
        if isinstance(self._device, int):
            self._device = f"{said['opened']}, {said['host_api']}"
        if block.sample_rate != self.buffer.sample_rate:
            self.buffer = AudioBuffer(block.sample_rate)
        self._name = f"microphone '{said['opened']}' at {block.sample_rate} Hz"
        self._condition = ("stale", f"{self._name} is open, no sound has arrived yet")
        self._has_word.set()

    def _on_loss(self, reason: str, inputs: list[dict] | None = None) -> None:
        if self._name:
            self._restarts += 1
            self._condition = ("stale", f"{self._name} stopped delivering sound ({reason}); reopening it")
        else:
            self._condition = ("absent", self._explain(reason, inputs))

    def _explain(self, reason: str, inputs: list[dict] | None) -> str:
        wanted = "no default microphone" if self._device is None else f"no usable microphone '{self._device}'"
        if inputs is None:
            return f"{wanted} ({reason}); trying again by itself."
        names = [device["name"] for device in inputs]
        there = f"inputs there are: {', '.join(names)}" if names else "this machine has no sound input"
        return f"{wanted} ({reason}); {there}. Plug one in or name one of 'avssl devices'; trying again by itself."


class FileAudio(AudioSource):
    """Plays a file's sound into the buffer as a microphone would: block by block, in step with the clock.

    The file is decoded as it is played, so that memory does not grow with its length.

    Args:
        path: any file with sound that PyAV opens.
        loop: begin again at the end.
        clock: gives the time in seconds that samples are stamped with.

    Raises what `SoundFile` raises, and ValueError where it has no samples or its header says that it is cut off.
    """

    BLOCK_SECONDS = 0.05
    MAX_CLOCK_STEP = 1.0  # a clock that moves further between two blocks has jumped; playing goes on from the new time

    def __init__(self, path: str | Path, loop: bool = False, clock: Callable[[], float] = time.time):
        self._path = Path(path)
        self._file = SoundFile(path)
        if self._file.error:
            raise ValueError(self._file.error)
        if next((block for _, block in self._file if block.size), None) is None:
            raise ValueError(f"{path} has a sound stream without a single sample; give a file with sound")
        self._loop = loop
        self._clock = clock
        self.buffer = AudioBuffer(self._file.sample_rate)
        self._state = "absent"
        self._detail = "not started"
        self._stopping = threading.Event()
        self._player: threading.Thread | None = None

    def start(self) -> None:
        """Begin to play from the start of the file."""
        if self._player is not None:
            return
        self._stopping.clear()
        self._state, self._detail = "ok", f"playing {self._path.name} at {self.sample_rate} Hz"
        self._player = threading.Thread(target=self._play, name="file-audio", daemon=True)
        self._player.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._player is not None:
            self._player.join(timeout=10.0)
            self._player = None
        self._state, self._detail = "absent", "not started"

    def status(self) -> AudioStatus:
        return AudioStatus(self._state, self._detail, 0, self.buffer.latest)

    def _play(self) -> None:
        rate = self.sample_rate
        position = 0  # samples played since the start, over all loops
        start = last = self._clock()  # the clock's time of position 0
        blocks, waiting = self._blocks(), np.zeros(0, np.float32)
        while not self._stopping.wait(self.BLOCK_SECONDS):
            now = self._clock()
            if not 0 <= now - last <= self.MAX_CLOCK_STEP:
                start = now - position / rate
            last = now
            due = int((now - start) * rate) - position
            try:
                while len(waiting) < due:
                    waiting = np.concatenate([waiting, next(blocks)])
            except StopIteration:
                self._state, self._detail = "stale", self._file.error or f"{self._path.name} has been played to its end"
            except (ValueError, OSError) as error:
                self._state, self._detail = "stale", str(error)
            block, waiting = waiting[: max(0, due)], waiting[max(0, due) :]
            self.buffer.write(block, start + position / rate)
            position += len(block)
            if self._state == "stale":
                return

    def _blocks(self) -> Iterator[np.ndarray]:
        """The file's samples, again and again where it is to be looped."""
        while True:
            yield from (block for _, block in self._file)
            if not self._loop:
                return


class SoundFile:
    """The sound of a file, read block by block: memory stays small however long the file is.

    Iterating gives (time, samples): seconds of the block's first sample on the file's own time axis, which its video
    shares and which begins at about 0 (`start_of`), and float32 (n,) in [-1, 1]. Channels are averaged; of ambisonics
    the omnidirectional one is taken. A damaged packet leaves a gap.

    Attributes:
        sample_rate: Hz.
        duration: seconds that the file says it has, or None.
        error: None, or after iterating what is wrong with the file (cut off, damaged, joined of several whose clocks
            each begin anew: then the first of them is given); what could be read was given.

    Raises FileNotFoundError, or ValueError where the file is empty, no media file, or has no sound.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_media(self.path) as container:
            if not container.streams.audio:
                raise ValueError(f"{self.path} has no sound stream; give a file with sound")
            stream = of_known_kind(container.streams.audio[0], self.path)
            self.sample_rate = int(stream.codec_context.sample_rate or 0)
            self.duration = float(stream.duration * stream.time_base) if stream.duration else None
        if not FILE_RATES[0] <= self.sample_rate <= FILE_RATES[1]:
            raise ValueError(
                f"{self.path}: its sound states a rate of {self.sample_rate} Hz, wanted {FILE_RATES[0]} to "
                f"{FILE_RATES[1]}; the file is damaged or unsupported"
            )
        self.error: str | None = _riff_cut_off(self.path)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        end = 0.0
        with open_media(self.path) as container:
            try:
                for block_time, samples in self._decode(container):
                    if block_time < end - MAX_BACK_SECONDS:
                        back = clock_back(self.path, "sound", end)
                        if self.error in (None, back):  # else it is the disorder behind a damaged part
                            self.error = back
                            return
                    if block_time > end + MAX_JUMP_SECONDS:
                        self.error = f"{self.path} is damaged: its sound goes from {end:.1f} to {block_time:.1f} s"
                        return
                    end = block_time + len(samples) / self.sample_rate
                    yield block_time, samples
            except av.error.FFmpegError as error:
                self.error = f"{self.path} is damaged or cut off: its sound can be read up to {end:.1f} s ({error})"
                return
        # Only in mp4 and its relatives is the duration a promise; elsewhere it may be an estimate from the bit rate.
        promised = self.duration if "mp4" in container.format.name else None
        if promised and end < promised - max(0.5, 0.02 * promised):
            self.error = f"{self.path} is cut off: its sound ends at {end:.1f} s of {promised:.1f} s"

    def _decode(self, container) -> Iterator[tuple[float, np.ndarray]]:
        stream = container.streams.audio[0]
        # Only the sample format changes here; rate and channels stay, so nothing is resampled.
        to_float = av.AudioResampler(format="fltp")
        start, next_time = start_of(container), 0.0
        for frame in decoded(container, stream):
            if isinstance(frame, av.error.FFmpegError):
                self.error = self.error or missing_parts(self.path, "sound", next_time, frame)
                continue
            block_time = next_time if frame.time is None else float(frame.time) - start
            ambisonic = frame.layout.name.startswith("ambisonic")
            for converted in to_float.resample(frame):
                if converted.sample_rate != self.sample_rate:
                    raise ValueError(f"{self.path}: the sample rate changes within the file; convert it first")
                channels = converted.to_ndarray()  # (channels, n)
                mono = channels[0] if ambisonic else channels.mean(axis=0)
                yield block_time, np.clip(mono, -1.0, 1.0).astype(np.float32)
                block_time += mono.size / self.sample_rate
            next_time = block_time


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """The whole sound of a file: mono float32 (n,) in [-1, 1] and its sample rate in Hz.

    Raises FileNotFoundError, or ValueError where the file is empty, no media file, has no sound, is damaged or cut
    off, or is longer than memory should hold.
    """
    sound = SoundFile(path)
    minutes = MAX_FILE_SAMPLES / sound.sample_rate / 60
    too_long = f"{path} has more than {minutes:.0f} minutes of sound at {sound.sample_rate} Hz; cut it first"
    if (sound.duration or 0.0) * sound.sample_rate > MAX_FILE_SAMPLES:
        raise ValueError(too_long)
    blocks, count = [], 0
    for _, samples in sound:
        blocks.append(samples)
        count += len(samples)
        if count > MAX_FILE_SAMPLES:  # its header said less, or nothing
            raise ValueError(too_long)
    if sound.error:
        raise ValueError(sound.error)
    if not count:
        raise ValueError(f"{path} has a sound stream without a single sample; give a file with sound")
    return np.concatenate(blocks), sound.sample_rate


def existing_file(path: Path) -> None:
    """Raises FileNotFoundError where there is no file, ValueError where it is empty."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")


def open_media(path: Path):
    """PyAV's container for reading `path`, with errors a user understands."""
    existing_file(path)
    try:
        # The protocol is said, so that no name of a file can be taken for another one ("concat:", "http:").
        limits = {"format_whitelist": FILE_FORMATS, "protocol_whitelist": "file"}
        # FFmpeg decodes the first picture to learn about it; a header of a few bytes can claim any size for it.
        return av.open(f"file:{path.absolute()}", options=limits, stream_options=[{"max_pixels": str(MAX_PIXELS)}])
    except av.error.PermissionError as error:
        raise PermissionError(f"{path} may not be read: {error.strerror}") from error
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be opened as video or sound: it is no media file, or was cut off before its index was "
            f"written ({error.strerror})"
        ) from error


def start_of(container) -> float:
    """Seconds to take from the times of all streams, so that they begin at 0 and stay in step with each other.

    Broadcasts, and pieces cut from a live stream, begin at any time of the sender's clock, hours from 0.
    """
    start = (container.start_time or 0) / av.time_base
    return start if abs(start) > MAX_START_SECONDS else 0.0


def decoded(container, stream) -> Iterator[av.frame.Frame | av.error.FFmpegError]:
    """The frames of a stream, and in place of those of a damaged packet the error: decoding goes on with the next.

    Raises av.error.FFmpegError where the container itself cannot be read on, or after MAX_BAD_PACKETS in a row.
    """
    bad = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            bad += 1
            if bad == MAX_BAD_PACKETS:
                raise
            yield error
        else:
            bad = 0
            yield from frames


def missing_parts(path: Path, what: str, time: float, error: av.error.FFmpegError) -> str:
    """What is wrong with a file whose packet at `time` seconds gave `error`, for a person."""
    return f"{path} is damaged: parts of its {what} are missing, the first at {time:.1f} s ({error})"


def clock_back(path: Path, what: str, time: float) -> str:
    """What is wrong with a file whose clock starts again after `time` seconds, for a person."""
    reason = f"the clock of its {what} goes back at {time:.1f} s, as where files are joined"
    return f"{path}: {reason}; only what is before it is used"


def of_known_kind(stream, path: Path):
    """The stream itself; PyAV has no decoder for one whose codec is unknown. Raises ValueError for such a one."""
    if stream.codec_context is None:
        raise ValueError(f"{path}: what kind of {stream.type} is in it is unknown; convert it: ffmpeg -i FILE new.mp4")
    return stream


def _riff_cut_off(path: Path) -> str | None:
    """What is wrong where a WAV header promises more bytes than there are; FFmpeg reads such files without a word."""
    with path.open("rb") as file:
        header = file.read(12)
    if header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return None
    (promised,) = struct.unpack("<I", header[4:8])
    there = path.stat().st_size - 8
    if promised >= 0xFFFFFF00 or promised <= there + 1:  # the former is how programs that stream write "unknown"
        return None
    return f"{path} is cut off: {there} bytes of the {promised} its header says"
