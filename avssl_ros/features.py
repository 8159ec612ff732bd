"""Log-mel front end, one definition for training and runtime.

The parameters are those the audio encoder's starting weights were trained with (EfficientAT, Schmid et al. 2023):
32 kHz, pre-emphasis 0.97, 25 ms Hann window, 10 ms hop, 1024-point FFT, 128 Kaldi mel bands up to 15 kHz.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import soxr
from scipy import fft, sparse

SAMPLE_RATE = 32000  # Hz
HOP = 320  # samples, 10 ms
WINDOW = 800  # samples, 25 ms
N_FFT = 1024
N_MELS = 128
F_MAX = 15000.0  # Hz
PRE_EMPHASIS = 0.97
BLOCK_FRAMES = 1000  # 10 s; frames overlap, so that those of a long recording at once would take ten times its memory
PATCH = 16  # mel bands and frames of a time-frequency patch: the audio encoder's stride
SILENCE = 1e-7  # mel power below which a time-frequency patch is silent
LOWEST_RATE, HIGHEST_RATE = 4000, 192000  # Hz, what a microphone may deliver


def _mel(hertz):
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


@lru_cache(maxsize=1)
def mel_filters() -> sparse.csr_array:
    """Kaldi mel filter bank (N_MELS, N_FFT / 2 + 1) float32: triangles that are linear in mel, not in hertz.

    Sparse, since a bin lies in two triangles: that is faster than BLAS, whose threads fight with the encoders'.
    """
    edges = np.linspace(_mel(0.0), _mel(F_MAX), N_MELS + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = _mel(np.arange(N_FFT // 2) * SAMPLE_RATE / N_FFT)
    triangles = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    # Kaldi leaves the Nyquist bin out.
    return sparse.csr_array(np.pad(triangles, ((0, 0), (0, 1))).astype(np.float32))


@lru_cache(maxsize=1)
def _analysis_window() -> np.ndarray:
    padding = (N_FFT - WINDOW) // 2
    return np.pad(np.hanning(WINDOW), padding).astype(np.float32)


def mel_power(samples: np.ndarray) -> np.ndarray:
    """Mel power (N_MELS, frames) float32 of samples (n,) float32 at SAMPLE_RATE; frames = (n - 1) // HOP + 1."""
    emphasised = samples[1:] - PRE_EMPHASIS * samples[:-1]
    if len(emphasised) <= N_FFT // 2:
        raise ValueError(
            f"a spectrogram needs more than {N_FFT // 2 + 1} samples at {SAMPLE_RATE} Hz, got {len(samples)}"
        )
    padded = np.pad(emphasised, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    blocks = (frames[start : start + BLOCK_FRAMES] for start in range(0, len(frames), BLOCK_FRAMES))
    return np.concatenate([_mel_power_of_frames(block) for block in blocks], axis=1)


def _mel_power_of_frames(frames: np.ndarray) -> np.ndarray:
    spectrum = fft.rfft(frames * _analysis_window(), axis=1)  # float32 throughout, unlike numpy before 2.0
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return mel_filters() @ np.ascontiguousarray(power.T)


def normalised_log(mel: np.ndarray) -> np.ndarray:
    """What the audio encoder reads: (log(mel + 1e-5) + 4.5) / 5."""
    return (np.log(mel + 1e-5) + 4.5) / 5.0


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Normalised log-mel spectrogram (N_MELS, frames) float32 of samples (n,) float32 at SAMPLE_RATE."""
    return normalised_log(mel_power(samples))


def patch_power(mel: np.ndarray) -> np.ndarray:
    """Mean mel power (N_MELS / PATCH, frames / PATCH rounded up) of the audio encoder's time-frequency patches."""
    bands, frames = mel.shape
    padded = np.pad(mel, ((0, 0), (0, -frames % PATCH)), mode="edge")
    return padded.reshape(bands // PATCH, PATCH, -1, PATCH).mean(axis=(1, 3))


def loudest_block_db(samples: np.ndarray, seconds: float = 0.1) -> float:
    """RMS in dB of full scale of the loudest block of `seconds`; -inf in digital silence."""
    block = max(1, min(len(samples), int(seconds * SAMPLE_RATE)))
    blocks = samples[len(samples) % block :].reshape(-1, block)
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.square(blocks, dtype=np.float64).mean(axis=1).max()))


def as_mono(audio, sample_rate, centred: bool = False) -> np.ndarray:
    """Checked sound at SAMPLE_RATE.

    Args:
        audio: (n,) or (n, channels) or (channels, n) array, float in [-1, 1] or int16; channels are averaged.
        sample_rate: Hz, 4 kHz to 192 kHz.
        centred: take out the mean: the constant offset of a cheap microphone would count as loudness.

    Returns:
        (m,) float32 at SAMPLE_RATE.

    Raises:
        ValueError: on an absurd rate, wrong shape or type, no samples, NaN or infinity.
    """
    if not isinstance(sample_rate, (int, float, np.integer, np.floating)) or not (
        LOWEST_RATE <= sample_rate <= HIGHEST_RATE
    ):
        raise ValueError(f"sample_rate must be {LOWEST_RATE}..{HIGHEST_RATE} Hz, got {sample_rate!r}")
    samples = np.asarray(audio)
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768.0
    if samples.dtype.kind != "f":
        raise ValueError(f"audio must be float in [-1, 1] or int16, got {samples.dtype}")
    if not samples.size:
        raise ValueError(f"audio of shape {samples.shape} has 0 samples; give at least 20 ms of sound")
    if samples.ndim == 2 and min(samples.shape) <= 8:
        samples = samples.mean(axis=int(samples.shape[1] <= samples.shape[0]))
    if samples.ndim != 1:
        raise ValueError(f"audio must be mono (n,) or (n, channels), got shape {np.shape(audio)}")
    if len(samples) * min(1.0, SAMPLE_RATE / sample_rate) < 2:  # nothing or next to nothing is left at SAMPLE_RATE
        raise ValueError(f"audio has {len(samples)} sample(s) at {sample_rate:g} Hz; give at least 20 ms of sound")
    samples = samples.astype(np.float32)
    if not np.all(np.isfinite(samples)):
        raise ValueError("audio holds NaN or infinity; give finite samples in [-1, 1]")
    if centred:  # before a resampler makes steps of the offset at the ends
        samples -= samples.mean(dtype=np.float64).astype(np.float32)
    if sample_rate == SAMPLE_RATE:
        return samples
    return soxr.resample(samples, sample_rate, SAMPLE_RATE).astype(np.float32)
