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

import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

BUFFER_SECONDS = 10.0
MAX_CLOCK_JITTER = 0.1  # seconds between a block's stated and expected time that still count as continuous
MAX_FILE_SAMPLES = 400_000_000  # 1.6 GB as float32: 2.3 h at 48 kHz


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

        Where that time does not follow on from what is there (a gap, or a clock that jumped), what is there is
        forgotten: a window read later never joins sounds that were apart. Raises ValueError on a wrong shape or time.
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
    """

    state: str
    detail: str
    overflows: int
    last_time: float | None


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


def _import_sounddevice():
    """The sounddevice module, or AudioDeviceError: it needs the system library PortAudio, which pip does not bring."""
    try:
        import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            f"the microphone needs the PortAudio library, which is not installed ({error}). "
            "Install it with 'sudo apt install libportaudio2', or use a sound file instead."
        ) from error
    except ImportError as error:
        raise AudioDeviceError(
            f"the microphone needs the Python package sounddevice ({error}): 'pip install sounddevice'."
        ) from error
    return sounddevice


def list_devices() -> list[dict]:
    """The sound inputs there are: dicts of index, name, channels, sample_rate (Hz), default (bool).

    Raises AudioDeviceError without PortAudio. PortAudio looks for devices once per process.
    """
    sounddevice = _import_sounddevice()
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


class Microphone(AudioSource):
    """A sound input of this machine, first channel, that survives its removal and comes back by itself.

    Args:
        device: name or part of it, or index; None is the system's default. An index is only used to find the name,
            because indices change when devices come and go.
        sample_rate: Hz; None takes the device's own.
        clock: gives the time in seconds that samples are stamped with.

    Raises AudioDeviceError at once where PortAudio is missing. A device that is absent is no exception, as it may be
    plugged in later: `status()` says "absent" and what to do, and a watchdog keeps trying. Reopening resets PortAudio
    for the whole process (sounddevice#125), so keep one Microphone per process.
    """

    STALE_SECONDS = 1.0  # without a callback for so long, the stream counts as dead
    FIRST_SOUND_SECONDS = 5.0  # a freshly opened one gets longer: PulseAudio may take 2 s to its first block
    CHECK_SECONDS = 0.2
    FIRST_RETRY_SECONDS = 0.5
    MAX_RETRY_SECONDS = 5.0

    def __init__(
        self,
        device: str | int | None = None,
        sample_rate: float | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._sounddevice = _import_sounddevice()
        self._device = device
        self._wanted_rate = sample_rate
        self._clock = clock
        self.buffer = AudioBuffer(sample_rate or 48000)
        self._stream = None
        self._opened_at = 0.0
        self._last_callback: float | None = None
        self._overflows = 0
        self._detail = "not started"
        self._stopping = threading.Event()
        self._watchdog: threading.Thread | None = None

    def start(self) -> None:
        """Open the device and begin to record; without a device, keep trying in the background."""
        if self._watchdog is not None:
            return
        self._stopping.clear()
        self._reopen()
        self._watchdog = threading.Thread(target=self._watch, name="microphone-watchdog", daemon=True)
        self._watchdog.start()

    def stop(self) -> None:
        """Close the device; `start()` opens it again."""
        self._stopping.set()
        if self._watchdog is not None:
            self._watchdog.join(timeout=10.0)
            self._watchdog = None
        self._close()
        self._detail = "not started"

    def status(self) -> AudioStatus:
        if self._stream is None:
            state, detail = "absent", self._detail
        elif self._last_callback is None:
            state, detail = "stale", f"{self._detail} is open, no sound has arrived yet"
        elif not self._is_alive():
            state, detail = "stale", f"{self._detail} stopped delivering sound"
        else:
            state, detail = "ok", self._detail
        return AudioStatus(state, detail, self._overflows, self.buffer.latest)

    def _is_alive(self) -> bool:
        if self._last_callback is None:
            silent_since, limit = self._opened_at, self.FIRST_SOUND_SECONDS
        else:
            silent_since, limit = self._last_callback, self.STALE_SECONDS
        return self._stream is not None and time.monotonic() - silent_since < limit

    def _watch(self) -> None:
        retry = self.FIRST_RETRY_SECONDS
        while not self._stopping.wait(self.CHECK_SECONDS if self._is_alive() else retry):
            if self._is_alive():
                retry = self.FIRST_RETRY_SECONDS
            else:
                if self._stream is not None:
                    self._detail += " stopped delivering sound; reopening it"
                self._reopen()
                retry = min(2 * retry, self.MAX_RETRY_SECONDS)

    def _reopen(self) -> None:
        """Close what is open, look for the device anew and open it; a failure only changes the status."""
        self._close()
        try:
            # PortAudio's device list is frozen when it starts, so a device that (re)appeared needs a restart of it.
            self._sounddevice._terminate()
            self._sounddevice._initialize()
            self._open()
        except (self._sounddevice.PortAudioError, ValueError) as error:
            self._close()
            self._detail = self._explain(error)

    def _open(self) -> None:
        info = self._sounddevice.query_devices(self._device, "input")
        if isinstance(self._device, int):
            host_api = self._sounddevice.query_hostapis(info["hostapi"])["name"]
            self._device = f"{info['name']}, {host_api}"
        rate = int(round(self._wanted_rate or info["default_samplerate"]))
        if rate != self.buffer.sample_rate:
            self.buffer = AudioBuffer(rate)
        self._last_callback = None
        self._opened_at = time.monotonic()
        self._stream = self._sounddevice.InputStream(
            device=info["index"], samplerate=rate, channels=1, dtype="float32", callback=self._on_audio
        )
        self._stream.start()
        self._detail = f"microphone '{info['name']}' at {rate} Hz"

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort(ignore_errors=True)
            stream.close(ignore_errors=True)

    def _explain(self, error: Exception) -> str:
        names = [device["name"] for device in list_devices()]
        wanted = "no default microphone" if self._device is None else f"no usable microphone '{self._device}'"
        there = f"inputs there are: {', '.join(names)}" if names else "this machine has no sound input"
        return f"{wanted} ({error}); {there}. Plug one in or name one of 'avssl devices'; trying again by itself."

    def _on_audio(self, samples: np.ndarray, frames: int, stream_time, status) -> None:
        """PortAudio's callback: samples (frames, 1) are only valid during the call."""
        if status.input_overflow:
            self._overflows += 1
        age = stream_time.currentTime - stream_time.inputBufferAdcTime
        if not (stream_time.inputBufferAdcTime > 0 and 0 <= age < 5.0):  # some drivers leave it at 0
            age = frames / self.buffer.sample_rate
        self.buffer.write(samples[:, 0], self._clock() - age)
        self._last_callback = time.monotonic()


class FileAudio(AudioSource):
    """Plays a file's sound into the buffer as a microphone would: block by block, in step with the clock.

    Args:
        path: any file with sound that PyAV opens.
        loop: begin again at the end.
        clock: gives the time in seconds that samples are stamped with.

    Raises what `read_audio` raises.
    """

    BLOCK_SECONDS = 0.05
    MAX_CLOCK_STEP = 1.0  # a clock that moves further between two blocks has jumped; playing goes on from the new time

    def __init__(self, path: str | Path, loop: bool = False, clock: Callable[[], float] = time.time):
        self._path = Path(path)
        self._samples, rate = read_audio(path)
        self._loop = loop
        self._clock = clock
        self.buffer = AudioBuffer(rate)
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
        while not self._stopping.wait(self.BLOCK_SECONDS):
            now = self._clock()
            if not 0 <= now - last <= self.MAX_CLOCK_STEP:
                start = now - position / rate
            last = now
            due = int((now - start) * rate)
            if not self._loop:
                due = min(due, len(self._samples))
            block = np.take(self._samples, np.arange(position, due), mode="wrap")
            self.buffer.write(block, start + position / rate)
            position = max(position, due)
            if not self._loop and position >= len(self._samples):
                self._state, self._detail = "stale", f"{self._path.name} has been played to its end"
                return


class SoundFile:
    """The sound of a file, read block by block: memory stays small however long the file is.

    Iterating gives (time, samples): seconds of the block's first sample on the file's own time axis, which its video
    shares, and float32 (n,) in [-1, 1]. Channels are averaged; of ambisonics the omnidirectional one is taken.

    Attributes:
        sample_rate: Hz.
        duration: seconds that the file says it has, or None.
        error: None, or after iterating what is wrong with the file (cut off, damaged); what could be read was given.

    Raises FileNotFoundError, or ValueError where the file is empty, no media file, or has no sound.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_media(self.path) as container:
            if not container.streams.audio:
                raise ValueError(f"{self.path} has no sound stream; give a file with sound")
            stream = container.streams.audio[0]
            self.sample_rate = int(stream.codec_context.sample_rate or 0)
            self.duration = float(stream.duration * stream.time_base) if stream.duration else None
        if self.sample_rate <= 0:
            raise ValueError(f"{self.path}: its sound has no sample rate; the file is damaged or unsupported")
        self.error: str | None = _riff_cut_off(self.path)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        end = 0.0
        with open_media(self.path) as container:
            try:
                for block_time, samples in self._decode(container):
                    end = block_time + len(samples) / self.sample_rate
                    yield block_time, samples
            except av.error.FFmpegError as error:
                self.error = f"{self.path} is damaged or cut off: its sound can be read up to {end:.1f} s ({error})"
        # Only in mp4 and its relatives is the duration a promise; elsewhere it may be an estimate from the bit rate.
        promised = self.duration if "mp4" in container.format.name else None
        if self.error is None and promised and end < promised - max(0.5, 0.02 * promised):
            self.error = f"{self.path} is cut off: its sound ends at {end:.1f} s of {promised:.1f} s"

    def _decode(self, container) -> Iterator[tuple[float, np.ndarray]]:
        stream = container.streams.audio[0]
        # Only the sample format changes here; rate and channels stay, so nothing is resampled.
        to_float = av.AudioResampler(format="fltp")
        next_time = 0.0
        for frame in container.decode(stream):
            block_time = next_time if frame.time is None else float(frame.time)
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

    Raises FileNotFoundError, or ValueError where the file is empty, no media file, has no sound, is cut off, or is
    longer than memory should hold.
    """
    sound = SoundFile(path)
    blocks, count = [], 0
    for _, samples in sound:
        blocks.append(samples)
        count += len(samples)
        if count > MAX_FILE_SAMPLES:
            hours = MAX_FILE_SAMPLES / sound.sample_rate / 3600
            raise ValueError(f"{path} has more than {hours:.1f} h of sound at {sound.sample_rate} Hz; cut it first")
    if sound.error:
        raise ValueError(sound.error)
    if not count:
        raise ValueError(f"{path} has a sound stream without a single sample; give a file with sound")
    return np.concatenate(blocks), sound.sample_rate


def open_media(path: Path):
    """PyAV's container for reading `path`, with errors a user understands."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        return av.open(str(path))
    except av.error.PermissionError as error:
        raise PermissionError(f"{path} may not be read: {error.strerror}") from error
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be opened as video or sound: it is no media file, or was cut off before its index was "
            f"written ({error.strerror})"
        ) from error


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
