"""Noise that is always there: the robot's own fans and motors, the hum of its room. What does not stand out of it is
not heard.

    profile = NoiseProfile.of_recording(samples, rate)      # some seconds in which nothing else sounds
    profile.save("noise.json")
    localizer.noise = NoiseProfile.load("noise.json")       # the node: parameter noise_profile

Per mel band the profile has the noise's mean power. The sound's power is divided by it band by band (whitened) before
it is averaged over a time-frequency patch, so that a tone of the motor does not hide a voice between its harmonics. A
patch takes part only where that average is further above the noise's present level than the noise's own patches are.
That level is the recording's or, where the quietest moments of the sound are quieter than the recording's, theirs: a
motor that was recorded at work does not hide a voice while it idles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from avssl_ros import features
from avssl_ros.json_input import is_number, parse_object

FORMAT = 1
MAX_PROFILE_BYTES = 100_000
LEAST_SECONDS = 2.0  # of a recording
SPREADS = 3.0  # how many spreads above its mean a patch of the noise may be
MARGIN_DB = 1.0  # and beyond them
MOST_DB = 6.0  # above its level in all: bursts of an unsteady noise are heard rather than all voices hidden
QUIETEST = 0.2  # share of the patches of a row that tells the present level: a voice leaves that much of it free
QUIETEST_DB = -1.0  # where that share ends in a steady noise, relative to its mean
DIGITAL_SILENCE_DB = -80.0  # whitened; what is that quiet is no noise, but nothing: before a recording begins
EDGE_FRAMES = 2
ROWS = features.N_MELS // features.PATCH


def whitened(power: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Mean of mel power (N_MELS, frames) relative to the noise's (N_MELS,) in each time-frequency patch, in dB."""
    relative = power / np.maximum(noise, features.SILENCE)[:, None]
    # The window's edges, where the spectrogram mirrors the sound: a tone breaks there and spreads over all bands.
    relative[:, :EDGE_FRAMES] = relative[:, EDGE_FRAMES, None]
    relative[:, -EDGE_FRAMES:] = relative[:, -EDGE_FRAMES - 1, None]
    relative = features.patch_power(relative)
    return 10 * np.log10(np.maximum(relative, 1e-9))


@dataclass(frozen=True)
class NoiseProfile:
    """The noise as it is: mean power (N_MELS,) by mel band; spread_db (ROWS,): how far by row its whitened patches that
    are above the mean are above it (root mean square)."""

    power: np.ndarray
    spread_db: np.ndarray

    @classmethod
    def of_recording(cls, samples: np.ndarray, sample_rate: float) -> NoiseProfile:
        """Of a recording as `Localizer.localize` takes it; ValueError where it is too short or silent."""
        samples = features.as_mono(samples, sample_rate, centred=True)
        if len(samples) < LEAST_SECONDS * features.SAMPLE_RATE:
            seconds = len(samples) / features.SAMPLE_RATE
            raise ValueError(f"a noise profile needs {LEAST_SECONDS:g} s of noise or more, got {seconds:.1f} s")
        power = features.mel_power(samples)
        mean = power.mean(axis=1)
        if not (mean > features.SILENCE).any():
            raise ValueError("the recording is silent: there is no noise in it to make a profile of")
        above = np.maximum(whitened(power, mean), 0.0)
        return cls(mean, np.sqrt(np.square(above).sum(axis=1) / np.maximum((above > 0).sum(axis=1), 1)))

    def level_db(self, relative: np.ndarray) -> float:
        """How loud this noise is now beside its recording, 0 at most, of `whitened` patches (ROWS, patches)."""
        sounding = relative[:, (relative > DIGITAL_SILENCE_DB).any(axis=0)]
        if not sounding.size:
            return 0.0
        # Of all rows, since a voice may fill some of them.
        return min(0.0, float(np.median(np.quantile(sounding, QUIETEST, axis=1))) - QUIETEST_DB)

    def stands_out(self, power: np.ndarray) -> np.ndarray:
        """Bool (ROWS, patches): which time-frequency patches of mel power (N_MELS, frames) are more than this noise.

        One of them alone is chance: it needs a neighbour. Else a single stray patch would be all that is heard.
        """
        relative = whitened(power, self.power)
        reach = np.minimum(SPREADS * self.spread_db + MARGIN_DB, MOST_DB)
        above = relative - self.level_db(relative) > reach[:, None]
        ones = above.astype(np.float32)
        neighbours = cv2.boxFilter(ones, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return above & (neighbours >= 2)

    def save(self, path: str | Path) -> None:
        """As JSON."""
        power = [float(f"{value:.4e}") for value in self.power]
        profile = {"format": FORMAT, "power": power, "spread_db": [round(float(value), 2) for value in self.spread_db]}
        Path(path).write_text(json.dumps(profile, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> NoiseProfile:
        """Raises FileNotFoundError, or ValueError where the file is no profile."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no noise profile at {path}; make one with 'avssl noise-profile RECORDING'")
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_PROFILE_BYTES} of a profile")
        profile = parse_object(path.read_bytes(), str(path), MAX_PROFILE_BYTES)
        if profile.get("format") != FORMAT:
            raise ValueError(f"{path} is no noise profile of format {FORMAT}; got {str(profile.get('format'))[:50]!r}")
        for name, count, least, most in (("power", features.N_MELS, 0, 1e12), ("spread_db", ROWS, 0, 100)):
            values = profile.get(name)
            is_right = isinstance(values, list) and len(values) == count
            if not is_right or not all(is_number(value, least, most) for value in values):
                raise ValueError(f"{path}: {name} must be {count} numbers within {least}..{most:g}")
        return cls(np.array(profile["power"], np.float32), np.array(profile["spread_db"], np.float32))
