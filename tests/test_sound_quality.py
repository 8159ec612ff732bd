"""What is said of sound that comes, but not as it should."""

from __future__ import annotations

import numpy as np
import pytest

from avssl_ros.sound_quality import complaint

NOISE = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)


@pytest.mark.parametrize(
    "samples, said",
    [
        (np.zeros(16000, np.float32), "only zeros"),
        (np.full(16000, 0.3, np.float32), "one constant value"),
        (np.clip(40 * NOISE, -1, 1), "clipped"),
        (NOISE + 0.1, "offset of +0.10"),
        (NOISE - 0.05, "offset of -0.0"),
        (np.where(np.arange(16000) == 5, np.nan, NOISE), "no numbers"),
    ],
    ids=["muted", "constant", "clipped", "offset up", "offset down", "nan"],
)
def test_bad_sound_is_named(samples, said):
    assert said in complaint(samples)


@pytest.mark.parametrize(
    "samples",
    [NOISE, 1e-4 * NOISE, np.append(NOISE, 1.0).astype(np.float32), np.zeros(0, np.float32)],
    ids=["noise", "very quiet", "one click", "nothing yet"],
)
def test_usable_sound_raises_no_complaint(samples):
    assert complaint(samples) == ""
