"""The robot's own noise: what a profile holds, what stands out of it, and that a localizer with one hears no fan."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import media
import numpy as np
import pytest

from avssl_ros import Localizer, cli, features
from avssl_ros.audio_input import read_audio
from avssl_ros.noise import NoiseProfile

RATE = features.SAMPLE_RATE
DEMO = Path(__file__).resolve().parents[1] / "demo" / "scene.mp4"


def fan(seconds: float, seed: int = 0, level: float = 0.05) -> np.ndarray:
    """Coloured noise with a strong steady tone."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.standard_normal(int(seconds * RATE)), np.ones(8) / 8, "same")
    return (level * noise + media.tone(seconds, RATE, 300.0, 4 * level)).astype(np.float32)


@pytest.fixture(scope="module")
def profile() -> NoiseProfile:
    return NoiseProfile.of_recording(fan(10.0), RATE)


def test_noise_does_not_stand_out_of_its_own_profile(profile):
    other = features.mel_power(fan(30.0, seed=1))
    assert profile.stands_out(other).mean() < 0.005


def test_a_sound_between_the_tones_stands_out_where_it_is(profile):
    sound = fan(2.0, seed=2)
    whistle = media.tone(0.5, RATE, 3000.0, 0.05)  # 12 dB below the tone of the fan
    sound[RATE : RATE + len(whistle)] += whistle
    out = profile.stands_out(features.mel_power(sound))
    assert out.any(axis=0)[7:9].all() and not out[:, :5].any() and not out[:, 11:].any()


def test_a_long_recording_takes_little_more_memory_than_itself_and_has_the_same_profile():
    samples = np.tile(fan(10.0), 12)
    tracemalloc.start()
    in_blocks = NoiseProfile.of_recording(samples, RATE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * samples.nbytes
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(features, "BLOCK_FRAMES", 10**9)
        at_once = NoiseProfile.of_recording(samples, RATE)
    assert np.allclose(in_blocks.power, at_once.power, rtol=1e-5)
    assert np.allclose(in_blocks.spread_db, at_once.spread_db, rtol=1e-4)


def test_noise_that_grows_louder_stands_out(profile):
    assert profile.stands_out(features.mel_power(fan(4.0, seed=3, level=0.2))).mean() > 0.9


def test_a_motor_that_works_in_the_recording_hides_nothing_while_it_idles():
    works_and_idles = np.concatenate([fan(5.0, level=0.2), fan(5.0, level=0.02)])
    profile = NoiseProfile.of_recording(works_and_idles, RATE)
    idling = fan(8.0, seed=6, level=0.02)
    assert profile.stands_out(features.mel_power(idling)).mean() < 0.005
    whistle = media.tone(0.5, RATE, 3000.0, 0.02)  # 20 dB below the motor at work
    idling[RATE : RATE + len(whistle)] += whistle
    out = profile.stands_out(features.mel_power(idling))
    assert out.any(axis=0)[7:9].all() and not out[:, :5].any() and not out[:, 11:].any()
    assert profile.stands_out(features.mel_power(fan(4.0, seed=7, level=0.2))).mean() < 0.005


def test_silence_before_the_noise_is_not_its_level(profile):
    late = np.concatenate([np.zeros(RATE, np.float32), fan(1.0, seed=8)])
    out = profile.stands_out(features.mel_power(late))
    begins = RATE // features.HOP // features.PATCH  # the patch in which it is switched on, which clicks
    assert not out[:, :begins].any() and out[:, begins + 1 :].mean() < 0.01


def test_a_profile_is_kept_in_a_file(profile, tmp_path):
    profile.save(tmp_path / "noise.json")
    again = NoiseProfile.load(tmp_path / "noise.json")
    np.testing.assert_allclose(again.power, profile.power, rtol=1e-3)
    np.testing.assert_allclose(again.spread_db, profile.spread_db, atol=0.01)


@pytest.mark.parametrize("text, said", [
    ("", "no JSON"), ("[]", "JSON object"), ('{"format": 2}', "format 1"), ('{"format": 1}', "128 numbers"),
    ('{"format": 1, "power": ' + str([1] * 127 + [-1]) + "}", "128 numbers"), ("x" * 200_000, "more than the 100000"),
    (json.dumps({"format": 1, "power": [1] * 128, "spread_db": ["1"] * 8}), "8 numbers"),
])  # fmt: skip
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, said):
    path = tmp_path / "noise.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        NoiseProfile.load(path)


def test_what_no_profile_can_be_made_of(tmp_path):
    with pytest.raises(FileNotFoundError, match="noise-profile"):
        NoiseProfile.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="2 s of noise"):
        NoiseProfile.of_recording(fan(1.0), RATE)
    with pytest.raises(ValueError, match="silent"):
        NoiseProfile.of_recording(np.zeros(5 * RATE, np.float32), RATE)


def test_the_command_makes_a_profile_and_says_when_it_wavers(tmp_path, capsys):
    steady = media.write_wav(tmp_path / "fan.wav", fan(5.0), RATE)
    unsteady = media.write_wav(tmp_path / "speech.wav", fan(5.0) * (np.arange(5 * RATE) // RATE % 2), RATE)
    assert cli.main(["noise-profile", str(steady), "--output", str(tmp_path / "noise.json")]) == 0
    assert "5.0 s" in (said := capsys.readouterr().out) and "a lot" not in said
    assert NoiseProfile.load(tmp_path / "noise.json").power.shape == (128,)
    assert cli.main(["noise-profile", str(unsteady), "--output", str(tmp_path / "b.json")]) == 0
    assert "a lot" in capsys.readouterr().out


def test_a_localizer_with_a_profile_hears_no_fan_but_what_is_above_it():
    import av

    localizer = Localizer()
    with av.open(str(DEMO)) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    noise = fan(4.0, seed=5, level=0.01)
    assert localizer.localize(image, noise, RATE).active
    localizer.noise = NoiseProfile.of_recording(fan(10.0, level=0.01), RATE)
    assert not localizer.localize(image, noise, RATE).active
    sound = features.as_mono(*read_audio(DEMO))[2 * RATE : 4 * RATE]  # the sheep bleats
    heard = localizer.localize(image, sound + noise[: len(sound)], RATE)
    assert heard.active and heard.sources[0].label == "sheep or goat"
