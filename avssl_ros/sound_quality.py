"""What is wrong with the sound of a microphone that delivers: muted, clipped, or off centre."""

from __future__ import annotations

import numpy as np

FULL_SCALE = 0.999  # of what a sample may be; float formats go a little beyond 1
CLIPPED_SHARE = 0.001  # of the samples at full scale: a loud click has fewer
OFFSET = 0.02  # -34 dB of full scale


def complaint(samples: np.ndarray) -> str:
    """What a person should know of about a second of sound (n,), float in [-1, 1]; '' where it is as it should be."""
    if not samples.size:
        return ""
    if not np.isfinite(samples).all():
        return "it holds samples that are no numbers (NaN or infinity): is the driver's sample format right?"
    if np.ptp(samples) == 0:
        kind = "zeros" if samples[0] == 0 else "one constant value"
        return f"it delivers only {kind}: is it muted, or the wrong channel or device?"
    if np.mean(np.abs(samples) >= FULL_SCALE) > CLIPPED_SHARE:
        return "it is clipped: lower its gain"
    if abs(offset := float(samples.mean())) > OFFSET:
        return f"it has an offset of {offset:+.3f} of full scale, which is taken out; a defective input?"
    return ""
