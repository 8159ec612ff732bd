"""Windows of frames and sound out of packed clips, decoded in memory, as map-style datasets.

    shards = Shards("shards", split="train")                          # training/pack.py
    clips = ClipDataset(shards, seconds=2.0, frames=1)                # decodes the mp4 blobs
    clips = ClipDataset(shards, blobs=some_cache(BlobDataset(shards)), seconds=2.0, frames=1)
    clips = ClipDataset(shards, blobs=some_cache(JpegDataset(shards)), seconds=2.0, frames=1)

What may be cached, from cheap to fast: `BlobDataset` (the mp4 bytes, saves reading), `JpegDataset` (all frames as JPEG
and all sound, saves seeking and decoding of video) and the finished item of `ClipDataset` (saves everything, but then
its window is the same in every epoch). `parameters()` of each is all that decides its items: the key of a cache.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
import soxr
import torch
from torch.utils.data import Dataset

from avssl_ros import features
from training.pack import DamagedClip, Shards

CODE_VERSION = 1  # raise it whenever the same parameters give other items: caches are then filled anew
RATE = 15  # frames per second of prepared clips
PRIMING = 0.1  # seconds decoded before the sound that is wanted: an AAC block needs its predecessor
MARGIN = 0.02  # seconds of sound around the window for the resampler's filter


class Decoder(Protocol):
    """What turns an mp4 file into a window of frames and sound."""

    def __call__(self, mp4: bytes | Path, times: np.ndarray, start: float, seconds: float) -> tuple:
        """Decodes one window.

        Args:
            mp4: the file, or its path.
            times: (T,) ascending seconds; before the first frame that one counts, after the last frame the last.
            start, seconds: of the sound.

        Returns:
            frames (T, H, W, 3) uint8 RGB on display at `times`; sound (round(seconds * rate),) float32 mono, zero
            before its beginning and after its end; rate in Hz.

        Raises:
            DamagedClip: where there is no such video and sound.
        """


def decode_pyav(mp4: bytes | Path, times: np.ndarray, start: float, seconds: float) -> tuple:
    """A `Decoder` of PyAV, which brings its own ffmpeg. Decodes from the key frame before the window to its end."""
    try:
        source = io.BytesIO(mp4) if isinstance(mp4, bytes) else str(mp4)
        with av.open(source, format="mp4") as container:  # not to be guessed: that takes longer
            if not (container.streams.video and container.streams.audio):
                raise DamagedClip("the file has no video or no sound; run training/prepare.py on it again")
            if None in (container.streams.video[0].codec_context, container.streams.audio[0].codec_context):
                raise DamagedClip("its video or sound is of an unknown kind; run training/prepare.py on it again")
            frames = _pyav_frames(container, times)
            return frames, *_pyav_sound(container, start, seconds)
    except av.FFmpegError as error:
        raise DamagedClip(f"the file cannot be decoded ({error}); run training/prepare.py on it again") from error


def _pyav_frames(container: av.container.InputContainer, times: np.ndarray) -> np.ndarray:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the workers of a DataLoader are the threads
    container.seek(max(0, int(times[0] / stream.time_base)), stream=stream)
    shown, chosen = None, []
    for frame in container.decode(stream):
        while shown is not None and len(chosen) < len(times) and frame.time > times[len(chosen)]:
            chosen.append(shown)
        if len(chosen) == len(times):
            break
        shown = frame
    if shown is None:
        raise DamagedClip("the file has no frame at the window; run training/prepare.py on it again")
    chosen += [shown] * (len(times) - len(chosen))
    pictures = {id(frame): frame for frame in chosen}
    pictures = {key: frame.to_ndarray(format="rgb24") for key, frame in pictures.items()}
    return np.stack([pictures[id(frame)] for frame in chosen])


def _pyav_sound(container: av.container.InputContainer, start: float, seconds: float) -> tuple[np.ndarray, int]:
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    rate = stream.codec_context.sample_rate
    begin, sound = round(start * rate), np.zeros(round(seconds * rate), np.float32)
    codec = stream.codec_context
    is_mono = codec.format.name == "fltp" and codec.layout.nb_channels == 1  # prepared clips are
    to_mono = av.AudioResampler(format="fltp", layout="mono")
    container.seek(int((start - PRIMING) / stream.time_base), stream=stream)  # below 0: the encoder's own priming
    for frame in container.decode(stream):
        at = round(frame.time * rate) - begin
        if at >= len(sound):
            break
        for block in [frame] if is_mono else to_mono.resample(frame):
            _put(sound, np.frombuffer(block.planes[0], np.float32)[:block.samples], at)  # to_ndarray is slower
            at += block.samples
    return sound, rate


def _put(sound: np.ndarray, block: np.ndarray, at: int) -> None:
    """Writes the part of `block` that lies in `sound` when it begins at sample `at`, which may be negative."""
    low, high = max(0, at), min(len(sound), at + len(block))
    if low < high:
        sound[low:high] = block[low - at:high - at]


def decode_torchcodec(mp4: bytes | Path, times: np.ndarray, start: float, seconds: float) -> tuple:
    """A `Decoder` of torchcodec (FFmpeg's libraries must be installed). Raises ImportError where it does not load."""
    video_decoder, audio_decoder = _torchcodec()
    try:
        video = video_decoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1)
        samples = audio_decoder(mp4).get_all_samples()  # it decodes from the beginning anyway
        first, end = (getattr(video.metadata, name) for name in ("begin_stream_seconds", "end_stream_seconds"))
        shown = np.clip(times, first, end - 0.5 / video.metadata.average_fps)
        frames = video.get_frames_played_at(shown.tolist()).data.numpy()
        rate, sound = samples.sample_rate, np.zeros(round(seconds * samples.sample_rate), np.float32)
        _put(sound, samples.data.mean(dim=0).numpy(), round(samples.pts_seconds * rate) - round(start * rate))
    except (RuntimeError, ValueError) as error:
        raise DamagedClip(f"the file cannot be decoded ({error}); run training/prepare.py on it again") from error
    return frames, sound, rate


@lru_cache(maxsize=1)
def _torchcodec() -> tuple:
    try:
        from torchcodec.decoders import AudioDecoder, VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:  # it says by all three that it found no fitting ffmpeg
        raise ImportError("decoder='torchcodec' needs the package torchcodec of a version that fits torch "
                          f"{torch.__version__}, and ffmpeg's libraries ({error}); or take decoder='pyav'") from error
    return VideoDecoder, AudioDecoder


DECODERS: dict[str, Decoder] = {"pyav": decode_pyav, "torchcodec": decode_torchcodec}


def encode_mp4(pictures: Iterable[np.ndarray], sound: np.ndarray, rate: int, fps: int = RATE, quality: int = 23,
               sound_bits: int = 96000) -> bytes:
    """A clip as training/prepare.py makes them, of pictures and sound that are made here.

    Args:
        pictures: RGB uint8 (H, W, 3), H and W even. sound: (n,) float32 at `rate` Hz.
        fps: frames a second, also between key frames. quality: crf of x264. sound_bits: of aac, a second.

    Returns:
        An mp4 file, h264 and mono aac; the same input gives the same bytes.
    """
    file, video = io.BytesIO(), None
    with av.open(file, "w", format="mp4") as container:
        for number, picture in enumerate(pictures):
            if video is None:
                options = {"preset": "veryfast", "crf": str(quality), "g": str(fps), "keyint_min": str(fps),
                           "sc_threshold": "0", "threads": "1"}
                video = container.add_stream("libx264", rate=fps, options=options)
                video.height, video.width, video.pix_fmt = *picture.shape[:2], "yuv420p"
                audio = container.add_stream("aac", rate=rate, layout="mono", options={"b": str(sound_bits)})
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
            begin, end = (round(n * rate / fps) for n in (number, number + 1))
            block = np.ascontiguousarray(sound[None, begin:end], np.float32)
            if block.size:
                block = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                block.sample_rate, block.pts = rate, begin
                container.mux(audio.encode(block))
        if video is None:
            raise ValueError("got no picture; a clip needs at least one")
        for stream in (video, audio):
            container.mux(stream.encode())
    return file.getvalue()


def frame_times(start: float, seconds: float, frames: int) -> np.ndarray:
    """(frames,) seconds: the middle of each of `frames` equal parts of the window.

    Of a window that begins with a frame and takes every frame these are the frames' own middles: no rounding of their
    times chooses a neighbour.
    """
    return start + (np.arange(frames) + 0.5) * seconds / frames


def decode(mp4: bytes | Path, start: float, seconds: float, frames: int, sample_rate: int = features.SAMPLE_RATE,
           decoder: str = "pyav") -> tuple[np.ndarray, np.ndarray]:
    """One window of a clip: always exactly as many frames and samples as asked for.

    Args:
        mp4: the file, or its path.
        start: where the window begins, seconds of the clip.
        seconds: its length.
        frames: how many frames, spread evenly: see `frame_times`.
        sample_rate: of the sound that is returned, Hz.
        decoder: a name in DECODERS.

    Returns:
        frames (frames, H, W, 3) uint8 RGB in the file's own size, the last one repeated after the clip's end; sound
        (round(seconds * sample_rate),) float32 mono, zero after the clip's end.

    Raises:
        DamagedClip: where the file has no such video and sound.
    """
    low, times = max(0.0, start - MARGIN), frame_times(start, seconds, frames)
    pictures, sound, rate = DECODERS[decoder](mp4, times, low, start + seconds + MARGIN - low)
    sound = resample(sound, rate, sample_rate)
    skipped = round((start - round(low * rate) / rate) * sample_rate)
    return pictures, _exactly(sound[skipped:], round(seconds * sample_rate))


def resample(sound: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Mono float32 at `sample_rate` of (n,) at `rate`. Raises DamagedClip where it is no usable sound."""
    try:
        mono = features.as_mono(sound, rate)
    except ValueError as error:
        raise DamagedClip(f"unusable sound: {error}") from None
    return mono if sample_rate == features.SAMPLE_RATE else soxr.resample(mono, features.SAMPLE_RATE, sample_rate)


def _exactly(sound: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(sound[:samples], (0, max(0, samples - len(sound))))


def square(pictures: Sequence[np.ndarray], size: int, place: float = 0.5) -> np.ndarray:
    """The largest square of each picture, resized: (T, H, W, 3) uint8 to (T, size, size, 3).

    The square has the whole shorter side, so that shapes keep their aspect and as little as possible is lost; `place`
    0..1 says where it lies along the longer side, the same for all pictures.
    """
    resized = []
    for picture in pictures:
        side = min(picture.shape[:2])
        top, left = (int(round(place * (length - side))) for length in picture.shape[:2])
        cut = picture[top:top + side, left:left + side]
        method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
        resized.append(cut if side == size else cv2.resize(cut, (size, size), interpolation=method))
    return np.stack(resized)


class BlobDataset(Dataset):
    """The mp4 files as they are: item i is the bytes of clip i. Raises DamagedClip for a damaged one."""

    def __init__(self, shards: Shards):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> bytes:
        return self.shards.blob(index)

    def parameters(self) -> dict[str, Any]:
        """All that decides the items."""
        return {"dataset": "BlobDataset", "code": CODE_VERSION, "clips": self.shards.fingerprint}


class JpegDataset(Dataset):
    """All frames of a clip as JPEG and all its sound, from which a window is cut without decoding video.

    Item: {"jpeg": [bytes of each frame, in the file's own size], "fps": float, "sound": int16 (n,) mono at
    "sample_rate"}. At quality 90 it is about 10 times as large as the mp4 file. Raises DamagedClip for a damaged clip.

    Args:
        shards: the clips.
        blobs: map-style dataset of their mp4 bytes, e.g. a cache of BlobDataset; None reads the shards.
        quality: of the JPEG files, 0 to 100.
        sample_rate: of the sound, Hz.
        decoder: a name in DECODERS.
    """

    def __init__(self, shards: Shards, blobs: Dataset | None = None, quality: int = 90,
                 sample_rate: int = features.SAMPLE_RATE, decoder: str = "pyav"):
        self.shards, self.blobs = shards, _checked_blobs(shards, blobs)
        self.quality, self.sample_rate, self.decoder = quality, sample_rate, _checked_decoder(decoder)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.shards.clip(index)
        count = max(1, round(clip.duration * clip.fps))
        pictures, sound = decode(self.blobs[index], 0.0, count / clip.fps, count, self.sample_rate, self.decoder)
        setting = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        jpeg = [cv2.imencode(".jpg", picture[:, :, ::-1], setting)[1].tobytes() for picture in pictures]
        whole = (np.clip(sound, -1, 1) * 32767).round().astype(np.int16)
        return {"jpeg": jpeg, "fps": clip.fps, "sound": whole, "sample_rate": self.sample_rate}

    def parameters(self) -> dict[str, Any]:
        """All that decides the items."""
        return {"dataset": "JpegDataset", "code": CODE_VERSION, "clips": self.shards.fingerprint,
                "quality": self.quality, "sample_rate": self.sample_rate, "decoder": self.decoder}


def cut_jpegs(item: dict[str, Any], start: float, seconds: float, frames: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The window of a JpegDataset item that `decode` gives of the mp4 file, but for what JPEG and int16 lose."""
    last = len(item["jpeg"]) - 1
    chosen = np.clip((frame_times(start, seconds, frames) * item["fps"]).astype(int), 0, last).tolist()
    pictures = {}
    for number in set(chosen):
        pictures[number] = cv2.imdecode(np.frombuffer(item["jpeg"][number], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    rate = item["sample_rate"]
    begin = round(start * rate)
    sound = item["sound"][begin:begin + round(seconds * rate)].astype(np.float32) / 32767.0
    return [pictures[number] for number in chosen], _exactly(sound, round(seconds * rate))


class ClipDataset(Dataset):
    """A window of frames and sound of every clip.

    Item i of epoch e depends on (seed, e, i) alone, so that workers, ranks and a resumed run see the same. The window
    begins at a frame, at random if it is to be random, else in the middle of the clip; a shorter clip is padded with
    its last frame and silence. Frames are cut to a square (see `square`), at a random place of the longer side with a
    random window, else centred, and resized.

    A damaged clip is replaced by the next whole one, warned of once and counted in `damaged`, across the workers of
    this process; the item's "index" is that of the clip it really holds.

    Item: {"frames": (frames, size, size, 3) uint8 RGB, "sound": (round(seconds * sample_rate),) float32 mono,
    "index": int, "labels": (C,) float32, 1 where the clip carries the class, "source": str}.

    Args:
        shards: the clips (training/pack.py).
        seconds: length of the window.
        frames: of the window, spread evenly over it; None takes every frame of prepared clips, 15 a second.
        size: side of the frames, pixels.
        sample_rate: of the sound, Hz.
        seed: of the random windows.
        random_window: a random window and square, or the middle ones, e.g. for validation.
        decoder: "pyav" or "torchcodec".
        blobs: map-style dataset of the mp4 bytes, or of JpegDataset items, e.g. a cache; None reads the shards.
        classes: names of the classes in their order; None takes the labels of these shards, sorted.

    Raises:
        ValueError: on a setting out of its range, or `blobs` of another length.
        RuntimeError: by an item, where every clip is damaged.
    """

    def __init__(self, shards: Shards, seconds: float = 2.0, frames: int | None = None, size: int = 224,
                 sample_rate: int = features.SAMPLE_RATE, seed: int = 0, random_window: bool = True,
                 decoder: str = "pyav", blobs: Dataset | None = None, classes: Sequence[str] | None = None):
        self.seconds, self.frames = float(seconds), round(seconds * RATE) if frames is None else frames
        self.size, self.sample_rate, self.seed, self.random_window = size, sample_rate, seed, random_window
        for name in ("seconds", "frames", "size", "sample_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        self.shards, self.blobs, self.decoder = shards, _checked_blobs(shards, blobs), _checked_decoder(decoder)
        self.classes = tuple(shards.labels if classes is None else classes)
        self._class_of = {name: number for number, name in enumerate(self.classes)}
        # Tensors in shared memory: workers, even persistent ones, see a new epoch, and their counts are seen here.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._damaged = torch.zeros(len(shards), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.shards)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random windows; workers that run already take it over."""
        self._epoch.fill_(epoch)

    @property
    def damaged(self) -> list[str]:
        """Ids of the damaged clips met so far by this process and its workers."""
        return [self.shards.clip(index).id for index in torch.nonzero(self._damaged).flatten().tolist()]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        for step in range(len(self)):
            with suppress(DamagedClip):
                return self.window((index + step) % len(self), (self.seed, int(self._epoch), index))
        raise RuntimeError(f"all {len(self)} clips are damaged: run `training/pack.py verify` on the shards")

    def window(self, index: int, key: Sequence[int]) -> dict[str, Any]:
        """The item of clip `index` with the window that `key` decides. Raises DamagedClip, and counts it."""
        try:
            return self._item(index, np.random.default_rng(list(key)))
        except DamagedClip as error:
            self._count(index, error)
            raise

    def _item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        clip, stored = self.shards.clip(index), self.blobs[index]
        last = max(0, int((clip.duration - self.seconds) * clip.fps + 1e-6))  # frame that the last window begins with
        start = (int(rng.integers(last + 1)) if self.random_window else last // 2) / clip.fps
        if isinstance(stored, dict):
            if stored["sample_rate"] != self.sample_rate:
                raise ValueError(f"the JPEG items have sound of {stored['sample_rate']} Hz, not {self.sample_rate} Hz: "
                                 "give JpegDataset the same sample_rate")
            pictures, sound = cut_jpegs(stored, start, self.seconds, self.frames)
        else:
            pictures, sound = decode(bytes(stored), start, self.seconds, self.frames, self.sample_rate, self.decoder)
        labels = np.zeros(len(self.classes), np.float32)
        labels[[self._class_of[name] for name in clip.labels if name in self._class_of]] = 1.0
        return {"frames": square(pictures, self.size, rng.random() if self.random_window else 0.5),
                "sound": sound, "index": index, "labels": labels, "source": clip.source}

    def _count(self, index: int, error: DamagedClip) -> None:
        if not self._damaged[index]:
            self._damaged[index] = 1
            warnings.warn(f"skipped {self.shards.clip(index).id}: {error}", RuntimeWarning, stacklevel=4)

    def parameters(self) -> dict[str, Any]:
        """All that decides the items, but for the epoch of random windows."""
        source = self.blobs
        while not hasattr(source, "parameters") and hasattr(source, "dataset"):
            source = source.dataset  # a cache gives the items of what it wraps
        source = source.parameters() if hasattr(source, "parameters") else type(source).__name__
        names = ("seconds", "frames", "size", "sample_rate", "seed", "random_window", "decoder", "classes")
        return {"dataset": "ClipDataset", "code": CODE_VERSION, "clips": self.shards.fingerprint, "blobs": source,
                **{name: getattr(self, name) for name in names}}


def _checked_blobs(shards: Shards, blobs: Dataset | None) -> Dataset:
    if blobs is not None and len(blobs) != len(shards):
        raise ValueError(f"blobs has {len(blobs)} items, the shards have {len(shards)} clips: give the same clips")
    return BlobDataset(shards) if blobs is None else blobs


def _checked_decoder(decoder: str) -> str:
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}")
    if decoder == "torchcodec":
        _torchcodec()
    return decoder
