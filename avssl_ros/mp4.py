"""An mp4 file that is written while things happen: pictures at uneven times, and the sound that belongs to them.

It grows in fragments that a player can read even when the process is killed (but for some 2 s still in the encoder);
closing it makes it ordinary.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

CLOCK = Fraction(1, 90000)  # time base of the pictures, MPEG's own: any frame rate fits, and uneven ones too
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
MAX_SOUND_JITTER = 0.02  # seconds; a larger difference between stated and expected time is filled or cut
MAX_SILENCE = 7200.0  # seconds that are filled; sound that is further ahead goes by another clock than the rest


class Mp4Writer:
    """Writes one mp4 (h264, aac); an existing file is replaced.

    Args:
        path: the file.
        width, height: of the pictures; h264 wants even sides, so others are scaled to those.
        fps: about how many pictures a second there will be; a key frame is set after so many.
        sample_rate: Hz of the sound that will be added; None for a file without sound.
        preset, quality: of x264: "veryfast" leaves the processor to others; quality is its crf, 0 best to 51.
    """

    def __init__(self, path: str | Path, width: int, height: int, fps: float, sample_rate: int | None,
                 preset: str = "veryfast", quality: int = 22):
        self.size = tuple(max(2, 2 * round(side / 2)) for side in (width, height))
        # The delay is needed for exact times of the sound; each fragment goes to the disk when it is whole.
        fragments = {"movflags": "hybrid_fragmented+delay_moov", "flush_packets": "1"}
        self._mp4 = av.open(str(path), "w", format="mp4", options=fragments)
        self._pictures = self._mp4.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._pictures.width, self._pictures.height = self.size
        self._pictures.pix_fmt = "yuv420p"
        self._pictures.codec_context.time_base = CLOCK
        # A key frame a second makes the video quick to seek in, and without B-frames the first picture is shown at time
        # 0 rather than late against the sound.
        self._pictures.options = {"preset": preset, "crf": str(quality), "g": str(max(1, round(fps))), "bf": "0"}
        self._last_pts = -1
        self._sound_rate = sample_rate
        self._sound_end = 0  # samples written
        if sample_rate:
            rate = sample_rate if sample_rate in AAC_RATES else 48000
            self._sound = self._mp4.add_stream("aac", rate=rate, layout="mono")

    def add_frame(self, image: np.ndarray, time: float) -> None:
        """Append the picture, RGB uint8 (H, W, 3), at `time` seconds of the file; one of the past is left out."""
        pts = round(time / CLOCK)
        if pts <= self._last_pts:
            return
        self._last_pts = pts
        if (image.shape[1], image.shape[0]) != self.size:
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = pts, CLOCK
        self._mp4.mux(self._pictures.encode(frame))

    def add_sound(self, samples: np.ndarray, time: float) -> None:
        """Append mono sound (n,) in [-1, 1] that begins at `time` seconds; where sound is missing there is silence.

        Sound more than MAX_SILENCE after what is there is left out.
        """
        start = round(time * self._sound_rate)
        if start - self._sound_end > MAX_SILENCE * self._sound_rate:
            return
        if abs(start - self._sound_end) > MAX_SOUND_JITTER * self._sound_rate:
            samples = samples[max(0, self._sound_end - start) :]
            while start > self._sound_end:
                self._encode_sound(np.zeros(min(start - self._sound_end, self._sound_rate), np.float32))
        if samples.size:
            self._encode_sound(samples)

    def close(self) -> None:
        """Finish the file."""
        try:
            for stream in self._mp4.streams:
                self._mp4.mux(stream.encode())
        finally:
            self._mp4.close()

    def _encode_sound(self, samples: np.ndarray) -> None:
        channels = np.ascontiguousarray(samples[None], np.float32)  # (1, n)
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout="mono")
        frame.sample_rate = self._sound_rate
        frame.pts, frame.time_base = self._sound_end, Fraction(1, self._sound_rate)
        self._sound_end += len(samples)
        self._mp4.mux(self._sound.encode(frame))
