"""Fans, motors and rooms: does noise make sources, and is speech above it still found? With a profile and without.

    python benchmarks/self_noise.py [--seconds 60] [--json FILE]      (make bench-noise)

Each noise is a recording of the shared material (sounds/background: fan, motor, room_hum, noise_synthetic) or made
here. Its first half is what the profile is made of; its second half is played in a loop at a random level (-40 to
-25 dB) before a still picture with a person and three animals of the test split (the noises are of all splits). Those
of places where people are (by their titles: church, library, office, station, supermarket) are a row of their own: in
them people really talk, and the picture shows one. They are not among "all". "near" are those of "all" in whose
photograph a detector (training/people.csv) finds somebody who fills at least three tenths of it: the photographs of
people also show surfers far out, backs, and now and then nobody. Columns:

minutes      of noise alone
false        sources that were published in them
scenes       of 3 s of speech, 5 dB above the noise (RMS of the parts with voice against RMS of the noise), each with a
             picture of its own
found        of those, in how many a source within 20 degrees of the person was published for 0.5 s
told         of those, in how many it was found, or a person was told as heard but not in view, for 0.5 s together
still found  of those in which the same speech without noise was found

Rows: nothing; the noise profile.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import scipy.signal
import tyro
from streams import ANSWERED
from tqdm import tqdm

from avssl_ros import Localization, Localizer, blas, features
from avssl_ros.audio_input import read_audio
from avssl_ros.geometry import ViewLayout, ViewProjection, angle_between
from avssl_ros.noise import NoiseProfile
from training.data import read_items, read_people
from training.evaluate import WITHIN, StillSight, labels_by_name, write_report
from training.mixing import fan, hum, pink_noise
from training.scenes import SceneGenerator, open_scenes

WITHOUT_PEOPLE = (
    "dog", "cat", "bird", "chicken", "duck_goose", "cow", "pig", "sheep", "big_cat", "monkey", "wolf", "frog", "insect",
    "elephant", "bear", "deer", "dolphin", "kangaroo", "llama", "zebra", "bell", "clock",
)  # fmt: skip
KINDS = ("fan", "motor", "room_hum", "noise_synthetic")
PLACES_OF_PEOPLE = ("church", "library", "office", "subway_station", "supermarket")  # in the names of the files
RATE = features.SAMPLE_RATE
LEAST_SECONDS = 4.0  # of a recording, so that each half is enough
SPEECH_SECONDS, LEAD_SECONDS, TAIL_SECONDS = 3.0, 2.0, 1.0
NEAR, SURE = 0.3, 0.5  # share of a photograph that a person fills, and the detector's score, from which on one is near
ROWS = {"nothing": False, "profile": True}  # whether it has the profile


@dataclass(frozen=True)
class NoiseConfig:
    """What to measure, on how much."""

    data: Path = Path("../shared/data")  # folder with photos/, sounds/ and panoramas/
    models: Path | None = None  # model folder; None: the shipped one
    view_size: int | None = None  # pixels of a view's width; None: the model's own
    view_projection: ViewProjection = "perspective"  # how views are flattened
    seconds: float = 60.0  # of each noise alone: 30 minutes of all without people
    noises: int | None = None  # how many of them; None: all
    voices: int = 12  # above each of them, before a picture each; noise alone is played before the first
    snr_db: float = 5.0
    step: float = 0.1  # seconds between two moments; at 0.2 all rises half as fast as in a node, see docs/noise.md
    seed: int = 5
    json: Path | None = None  # also write the figures here


class HeardOnce(StillSight):
    """Encoders that also keep what they heard last: all rows hear the same."""

    def __init__(self, encoders):
        super().__init__(encoders)
        self._last, self._heard = None, None

    def audio(self, log_mel: np.ndarray) -> np.ndarray:
        if self._last is None or not np.array_equal(self._last, log_mel):
            self._last, self._heard = log_mel, self._encoders.audio(log_mel)
        return self._heard


def read_noises(data: Path, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Kind and samples at RATE of every noise."""
    files = [path for kind in KINDS for path in sorted((data / "sounds/background" / kind).glob("*.ogg"))]
    recorded = [("with people" if any(place in path.name for place in PLACES_OF_PEOPLE) else path.parent.name,
                 features.as_mono(*read_audio(path))) for path in files]  # fmt: skip
    length = int(10 * RATE)
    made = [rng.standard_normal(length).astype(np.float32), pink_noise(rng, length), hum(rng, length, 50.0),
            fan(rng, length), synthetic_motor(rng, length, 87.0),
            synthetic_motor(rng, length, 233.0)]  # fmt: skip
    long_enough = [(kind, noise) for kind, noise in recorded if len(noise) >= LEAST_SECONDS * RATE]
    return long_enough + [("made here", noise) for noise in made]


def synthetic_motor(rng: np.random.Generator, length: int, turns: float) -> np.ndarray:
    """Harmonics of a rate of turning that wavers by a percent, and brush noise above 2 kHz."""
    wander = scipy.signal.lfilter([1e-4], [1, -(1 - 1e-4)], rng.standard_normal(length))
    phase = 2 * np.pi * np.cumsum(turns * (1 + 0.01 * wander / np.abs(wander).max())) / RATE
    tones = sum(np.sin(k * phase + rng.uniform(0, 6)) / k**0.7 for k in range(1, 25))
    above = scipy.signal.butter(4, 2000, "high", fs=RATE, output="sos")
    brushes = scipy.signal.sosfilt(above, rng.standard_normal(length))
    return (tones / tones.std() + 0.3 * brushes / brushes.std()).astype(np.float32)


def looped(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Played again and again, faded over 0.1 s into its next turn."""
    fade = int(0.1 * RATE)
    ramp = np.sin(np.linspace(0, np.pi / 2, fade)).astype(np.float32)  # of equal power, as noise adds
    turn = samples[:-fade].copy()
    turn[:fade] = turn[:fade] * ramp + samples[-fade:] * ramp[::-1]
    return np.resize(turn, int(seconds * RATE))


class StillCut:
    """`Localizer.cut`, with the views of one picture kept."""

    def __init__(self, cut):
        self._cut, self._image, self._views = cut, None, {}

    def __call__(self, image: np.ndarray, projection: str, closer: tuple[float, ...] = ()):
        if image is not self._image:
            self._image, self._views = image, {}
        if closer not in self._views:
            self._views[closer] = self._cut(image, projection, closer)
        return self._views[closer]


class Row:
    """One way of treating noise, with a stream of its own."""

    def __init__(self, localizer: Localizer, profile: NoiseProfile | None):
        self._localizer, self._profile = localizer, profile
        self._stream = localizer.stream()
        self.told: list[Localization] = []

    def look(self, image: np.ndarray, sound: np.ndarray, time: float) -> None:
        self._localizer.noise = self._profile
        self.told.append(self._stream.process(image, sound, RATE, time))


def play(localizer: Localizer, image: np.ndarray, sound: np.ndarray, profile: NoiseProfile, step: float,
         names: tuple[str, ...] = tuple(ROWS)) -> dict:
    """What each row tells of a picture and a sound, the visual embeddings of which are kept."""
    localizer.encoders.look_again()
    rows = {name: Row(localizer, profile if ROWS[name] else None) for name in names}
    window = int(localizer.window_seconds * RATE)
    for time in np.arange(max(step, 0.4), len(sound) / RATE, step):
        end = int(time * RATE)
        for row in rows.values():
            row.look(image, sound[max(0, end - window) : end], float(time))
    return {name: row.told for name, row in rows.items()}


def points_at(told: Localization, person) -> bool:
    """Whether a source within reach of a PlacedObject is told."""
    return any(angle_between(source.azimuth, source.elevation, person.azimuth, person.elevation) <= WITHIN
               for source in told.sources)  # fmt: skip


def found(told: list[Localization], person, step: float, heard_as: str | None = None) -> bool:
    """Whether a source at the person was told for long enough from when speech begins.

    With `heard_as`, moments count as well in which a sound of this label is told as heard but not in view.
    """
    return sum(moment.time >= LEAD_SECONDS
               and (points_at(moment, person) or any(sound.label == heard_as for sound in moment.unseen))
               for moment in told) * step >= ANSWERED  # fmt: skip


def scene(generator: SceneGenerator, rng: np.random.Generator) -> tuple[np.ndarray, tuple]:
    """A picture with a person, the first of its four objects, and no other: none plays or drives what else is there."""
    others = [name for name in generator.lookable if name in WITHOUT_PEOPLE]
    return generator._place(rng, ["person", *map(str, rng.choice(others, 3, replace=False))], 1)


def is_near(person, people: dict[str, list]) -> bool:
    """Whether somebody fills enough of the picture of a PlacedObject; `people` by its file, as of `read_people`."""
    return any(box.score >= SURE and box.area >= NEAR for box in people.get(person.item.file, []))


def speech(generator: SceneGenerator, items: list, rng: np.random.Generator) -> np.ndarray:
    """3 s of a voice, scaled so that the parts in which it sounds have an RMS of 1."""
    samples = generator.collection.sound(items[rng.integers(len(items))])
    samples = np.resize(samples, int(SPEECH_SECONDS * RATE))
    voiced = np.abs(samples) > 0.02 * np.abs(samples).max()
    return samples / np.sqrt(np.square(samples[voiced]).mean())


def above(localizer: Localizer, image: np.ndarray, voice: np.ndarray, alone: np.ndarray, profile: NoiseProfile,
          step: float) -> tuple[dict[str, list[Localization]], list[Localization]]:  # fmt: skip
    """What each row tells of a voice above the noise, and what is told of the voice without it."""
    clean = np.zeros(int((LEAD_SECONDS + SPEECH_SECONDS + TAIL_SECONDS) * RATE), np.float32)
    first = int(LEAD_SECONDS * RATE)
    clean[first : first + len(voice)] = voice
    mixed = np.clip(alone[: len(clean)] + clean, -1, 1)
    by_voice = play(localizer, image, clean, profile, step, ("nothing",))
    return play(localizer, image, mixed, profile, step), by_voice["nothing"]


def main(config: NoiseConfig) -> dict:
    rng = np.random.default_rng(config.seed)
    generator = open_scenes(config.data, "test", config.seed)
    layout = ViewLayout(projection=config.view_projection)
    localizer = Localizer(models=config.models, threads=1, layout=layout, view_size=config.view_size)
    localizer.encoders, localizer.cut = HeardOnce(localizer.encoders), StillCut(localizer.cut)
    voices = [item for item in read_items("sound", "test") if "/speech_" in item.file]
    noises = read_noises(config.data, rng)
    if config.noises is not None:
        noises = [noises[index] for index in rng.permutation(len(noises))[: config.noises]]
    people, label = read_people(), labels_by_name()["person"]
    tally: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for kind, noise in tqdm(noises, unit="noise", disable=None):
        half = len(noise) // 2
        gain = np.float32(10 ** ((rng.uniform(-40, -25) - features.loudest_block_db(noise)) / 20))
        profile = NoiseProfile.of_recording(gain * noise[:half], RATE)
        alone = np.clip(looped(gain * noise[half:], config.seconds), -1, 1)
        for number in range(config.voices):
            image, objects = scene(generator, rng)
            groups = [kind] if kind == "with people" else [kind, "all"] + ["near"] * is_near(objects[0], people)
            # A picture is as good as another before noise alone, of which every minute costs one.
            by_itself = play(localizer, image, alone, profile, config.step) if number == 0 else {}
            voice = speech(generator, voices, rng) * np.sqrt(np.square(alone).mean()) * 10 ** (config.snr_db / 20)
            with_voice, clean = above(localizer, image, voice, alone, profile, config.step)
            heard_clean = found(clean, objects[0], config.step)
            for row in ROWS:
                is_found = found(with_voice[row], objects[0], config.step)
                is_told = found(with_voice[row], objects[0], config.step, label)
                false = len({source.id for moment in by_itself.get(row, []) for source in moment.sources})
                for counts in (tally[row][group] for group in groups):
                    counts["minutes"] += config.seconds / 60 * (number == 0)
                    counts["false"] += false
                    counts["scenes"] += 1
                    counts["found"] += is_found
                    counts["told"] += is_told
                    counts["clean"] += heard_clean
                    counts["still"] += is_found and heard_clean
    generator.collection.close()
    report = {name: {kind: dict(counts) for kind, counts in kinds.items()} for name, kinds in tally.items()}
    print_report(report)
    write_report(report, config.json)
    return report


def print_report(report: dict) -> None:
    print(f"{'':10}{'noise':18}{'minutes':>8}{'false':>7}{'scenes':>8}{'found':>7}{'told':>7}{'still found':>13}")
    for name, kinds in report.items():
        for kind, counts in kinds.items():
            still = f"{counts['still'] / counts['clean']:.0%} of {counts['clean']:.0f}" if counts["clean"] else "-"
            print(f"{name:10}{kind:18}{counts['minutes']:8.1f}{counts['false']:7.0f}{counts['scenes']:8.0f}"
                  f"{counts['found'] / counts['scenes']:7.0%}{counts['told'] / counts['scenes']:7.0%}"
                  f"{still:>13}")  # fmt: skip


if __name__ == "__main__":
    with blas.one_thread():
        main(tyro.cli(NoiseConfig, description=__doc__))
