"""The log-mel front end: what the encoder was trained on, and clear errors for sound that is none."""

import numpy as np
import pytest

from avssl_ros import features


def tone(hertz, seconds=1.0, rate=features.SAMPLE_RATE, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 6000.0])
def test_a_tone_lights_up_its_mel_band(hertz):
    power = features.mel_power(tone(hertz)).mean(axis=1)
    centres = 700 * np.expm1(np.linspace(0, 1127 * np.log1p(features.F_MAX / 700), features.N_MELS + 2)[1:-1] / 1127)
    assert abs(int(power.argmax()) - int(np.abs(centres - hertz).argmin())) <= 1


@pytest.mark.train
def test_spectrogram_equals_torch_stft():
    import torch

    samples = np.random.default_rng(0).standard_normal(32000).astype(np.float32) * 0.1
    emphasised = torch.from_numpy(samples[1:] - 0.97 * samples[:-1])
    window = torch.hann_window(800, periodic=False)
    spectrum = torch.stft(emphasised, 1024, 320, 800, window, center=True, return_complex=True).abs() ** 2
    expected = features.mel_filters() @ spectrum.numpy()
    assert np.allclose(features.mel_power(samples), expected, rtol=1e-3, atol=1e-6)


def test_patches_cover_the_window():
    mel = features.mel_power(tone(440.0, 2.0))
    assert mel.shape == (128, 200) and features.patch_power(mel).shape == (8, 13)


def test_level_is_that_of_the_loudest_block():
    sound = np.concatenate([np.zeros(32000, np.float32), tone(440.0, 0.2, amplitude=1.0)])
    assert features.loudest_block_db(sound) == pytest.approx(-3.0, abs=0.1)
    assert features.loudest_block_db(np.zeros(1000, np.float32)) == -np.inf


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 96000])
def test_any_usual_rate_gives_the_same_tone(rate):
    samples = features.as_mono(tone(1000.0, 1.0, rate), rate)
    assert abs(len(samples) - 32000) <= 2
    peak = np.abs(np.fft.rfft(samples)).argmax() * 32000 / len(samples)
    assert peak == pytest.approx(1000.0, abs=2.0)


def test_int16_and_stereo_are_understood():
    stereo = np.stack([tone(440.0), tone(440.0)], axis=1)
    assert np.allclose(features.as_mono(stereo, 32000), tone(440.0))
    assert np.allclose(features.as_mono(stereo.T, 32000), tone(440.0))
    assert np.allclose(features.as_mono((tone(440.0) * 32768).astype(np.int16), 32000), tone(440.0), atol=1e-4)


@pytest.mark.parametrize(
    "audio, rate, text",
    [
        (tone(440.0), 10, "sample_rate must be"),
        (tone(440.0), 1_000_000, "sample_rate must be"),
        (tone(440.0), None, "sample_rate must be"),
        (tone(440.0), float("nan"), "sample_rate must be"),
        (np.zeros(0, np.float32), 16000, "0 sample"),
        (np.zeros(1, np.float32), 16000, "1 sample"),
        (np.zeros((0, 2), np.float32), 16000, "0 samples"),
        (np.zeros(2, np.float32), 192000, "2 sample.*20 ms"),
        (np.array([0.0, np.nan, 0.0], np.float32), 16000, "NaN"),
        (np.zeros((100, 100), np.float32), 16000, "mono"),
        (np.array(["a", "b"]), 16000, "must be float"),
    ],
)
def test_sound_that_is_none_is_refused_by_name(audio, rate, text):
    with pytest.raises(ValueError, match=text):
        features.as_mono(audio, rate)
