"""Does adapting to a place help there, and what does it cost elsewhere? Unlabelled recordings of places never seen.

    python benchmarks/places.py [--places 6] [--json FILE]      (make bench-places)

A place is a panorama of the test split with a camera, a room and a noise of its own: light, colour cast and blur;
reverberation; a fan or motor that always runs. Five things live there. Each has one look and one voice: two look
unlike anything in training (hand-cut stamps of Tux Paint, where their package can be had), three are photographs of
the test split; each voice is shifted in pitch by a factor of its own. At any time four of the five are in view, and
every half minute things move, come, go, and the robot turns.

The recording is what a robot would keep: mp4 segments of ten minutes, in which one thing after another sounds, now and
then two at once or something out of view. training/adapt.py gets it and nothing else. Test scenes are of the same
place with the same things, apart from the recording: other positions, sizes and recordings (of a thing with one
recording alone, the other half of it; where that is shorter than 2 s, the same at another level). All is composited.

Columns: recall within 20 degrees, precision and right object on the place's own scenes (two thirds with one thing
sounding, one third with two), shipped and adapted; recall on general scenes of the same split, as the benchmark makes
them; seconds that adapting took; size of the adapter. Then the mean change of recall with its 95 % bootstrap interval
over places. A refused recording counts as no change. At last recordings that must be refused: each place's with
silence, with its first picture for ever, and with the sound of the next place.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from avssl_ros import Localizer, features
from avssl_ros.paths import shipped_models
from avssl_ros.recorder import Recorder
from benchmarks.material import CutOuts
from training.adapt import Refused, check_recording
from training.corpus import Missing
from training.data import BACKGROUND
from training.evaluate import Ours, interval, judge, labels_by_name, summary, write_report
from training.mixing import Collection, at_level, at_speed, excerpt, fan, reverberant
from training.place import take_inventory
from training.recordings import Moment, PlaceRecording, read_recording
from training.scenes import PEOPLE, Scene, SceneGenerator, open_scenes

RATE = features.SAMPLE_RATE
THINGS, STAMPS, IN_VIEW = 5, 2, 4
STILL_SECONDS = 30.0  # between two changes of what is where
FPS = 2.0  # of the recording
VOICE = 0.8, 1.25  # factors of pitch
SECOND_VOICE, OFFSCREEN = 0.15, 0.1  # shares of the recording's sounds


@dataclass(frozen=True)
class PlacesConfig:
    """Which places, and what is measured in them."""

    data: Path = Path("../shared/data")  # folder with photos/, sounds/ and panoramas/
    models: Path | None = None  # model folder to adapt; None: the shipped one
    downloads: Path = Path("runs/packages")  # Debian's tuxpaint-stamps-default, where it is not installed
    split: str = "test"
    places: int = 6
    minutes: float = 10.0  # of recording
    scenes: int = 60  # of each place
    general: int = 90  # general scenes on which each adapted model is tried
    seed: int = 4  # places of seed 3 were looked at while adapting was built
    output: Path = Path("benchmarks/out/places")  # recordings and adapted models
    json: Path | None = None  # also write the figures here
    adapt: str = ""  # further arguments of training/adapt.py, as on a command line: "--adapt=--steps 200 --rank 8"


@dataclass(frozen=True)
class Thing:
    """Something that lives in a place: picture RGB or RGBA, sounds for the recording and for the test scenes."""

    concept: str
    picture: np.ndarray
    recorded: tuple[np.ndarray, ...]
    tested: tuple[np.ndarray, ...]


class Place:
    """Place number `index` of a split; a function of (seed, index) alone.

    Args:
        collection: items of the split. stamps: CutOuts, or None. seed, index: as said.
    """

    def __init__(self, collection: Collection, stamps: CutOuts | None, seed: int, index: int):
        rng = np.random.default_rng((seed, index))
        self.collection, self.seed, self.index = collection, seed, index
        self.generator = SceneGenerator(collection, seed, IN_VIEW)
        empty = [item for item in collection.panoramas if not collection.shows_people(item)]
        self.panorama = collection.photo(rng.choice(empty))
        self.things = self._things(rng, stamps)
        others = [name for name in self.generator.audible if name not in {thing.concept for thing in self.things}]
        self.elsewhere = [name for name in others if name not in PEOPLE]
        self.decay_seconds, self.direct = rng.uniform(0.3, 0.9), 10 ** rng.uniform(-0.2, 0.5)
        machines = [item for item in collection.sounds[BACKGROUND] if "/fan/" in item.file or "/motor/" in item.file]
        self.noise = collection.sound(machines[rng.integers(len(machines))]) if machines else fan(rng, 10 * RATE)
        self.noise_db = rng.uniform(-55, -45)
        self.gains = rng.uniform(0.6, 0.9) * rng.uniform(0.8, 1.2, 3)
        self.blur = rng.uniform(0.4, 1.2)

    def _things(self, rng, stamps: CutOuts | None) -> list[Thing]:
        of_stamps = [] if stamps is None else [name for name in self.generator.collection.class_of
                                               if stamps.photos[name] and stamps.sounds[name] and name != BACKGROUND]
        names = [str(name) for name in rng.choice(of_stamps, STAMPS, replace=False)] if of_stamps else []
        others = [name for name in self.generator.audible if name not in names]
        drawn = [str(name) for name in rng.choice(others, len(others), replace=False)]
        # At most one of the concepts that people make: a second would look the same.
        people = [name for name in drawn if name in PEOPLE][1:]
        return [self._thing(rng, stamps if name in names else self.collection, name)
                for name in [*names, *(name for name in drawn if name not in people)][:THINGS]]

    def _thing(self, rng, source, name: str) -> Thing:
        picture = source.photo(source.photos[name][rng.integers(len(source.photos[name]))])
        speed = rng.uniform(*VOICE)
        choices = source.sounds[name]
        if source is not self.collection and len(self.collection.sounds[name]) > len(choices):
            source, choices = self.collection, self.collection.sounds[name]
        voices = [at_speed(source.sound(choices[index]), speed) for index in rng.permutation(len(choices))[:8]]
        if len(voices) > 1:
            return Thing(name, picture, tuple(voices[::2]), tuple(voices[1::2]))
        middle = len(voices[0]) // 2
        halves = (voices[0][:middle], voices[0][middle:]) if len(voices[0]) > 4 * RATE else voices * 2
        return Thing(name, picture, halves[:1], halves[1:])

    # ---- what is seen

    def arrangement(self, rng) -> tuple[np.ndarray, list[int], tuple]:
        """A picture (640, 1280, 3), the numbers of the things in it, and where they are (PlacedObject)."""
        shown = [int(index) for index in rng.permutation(len(self.things))[:IN_VIEW]]
        things = [self.things[index] for index in shown]
        borrowed = _Borrowed(self.collection, self.panorama, things)
        generator = SceneGenerator.__new__(SceneGenerator)
        generator.__dict__ |= self.generator.__dict__ | {"collection": borrowed}
        image, objects = generator._place(rng, [thing.concept for thing in things], 0, [])
        return self._as_filmed(rng, image), shown, objects

    def _as_filmed(self, rng, image: np.ndarray) -> np.ndarray:
        image = cv2.GaussianBlur(image, (0, 0), self.blur)
        lookup = np.clip(np.arange(256)[:, None] * self.gains * rng.uniform(0.9, 1.1), 0, 255).astype(np.uint8)
        return cv2.LUT(image, lookup.reshape(256, 1, 3))

    # ---- what is heard

    def _in_the_room(self, rng, samples: np.ndarray, level_db: float) -> np.ndarray:
        return at_level(reverberant(rng, samples, self.decay_seconds, self.direct), level_db)

    def _always(self, rng, length: int) -> np.ndarray:
        """The place's own noise."""
        turned = np.roll(self.noise, rng.integers(len(self.noise)))
        return at_level(np.resize(turned, length), self.noise_db)

    def record(self, folder: Path, minutes: float) -> None:
        """Writes the recording's segments."""
        rng = np.random.default_rng((self.seed, self.index, 1))
        with Recorder(folder, fps=FPS, sample_rate=RATE) as recorder:
            for start in np.arange(0, 60 * minutes, STILL_SECONDS):
                image, shown, _ = self.arrangement(rng)
                sound = self._half_minute(rng, shown)
                for moment in np.arange(0, STILL_SECONDS, 1 / FPS):
                    recorder.add_frame(image, start + moment)
                    first = int(moment * RATE)
                    recorder.add_sound(sound[first : first + int(RATE / FPS)], RATE, start + moment)

    def _half_minute(self, rng, shown: list[int]) -> np.ndarray:
        sound = self._always(rng, int(STILL_SECONDS * RATE))
        time = rng.uniform(0.5, 2.0)
        while time < STILL_SECONDS - 2.5:
            seconds = rng.uniform(2.0, 5.0)
            for _ in range(1 + (rng.random() < SECOND_VOICE)):
                part = self._event(rng, shown, min(seconds, STILL_SECONDS - time))
                sound[int(time * RATE) : int(time * RATE) + len(part)] += part
            time += seconds + rng.uniform(0.5, 2.5)
        return np.clip(sound, -1, 1)

    def _event(self, rng, shown: list[int], seconds: float) -> np.ndarray:
        if rng.random() < OFFSCREEN and self.elsewhere:
            items = self.collection.sounds[self.elsewhere[rng.integers(len(self.elsewhere))]]
            samples = self.collection.sound(items[rng.integers(len(items))])
        else:
            voices = self.things[shown[rng.integers(len(shown))]].recorded
            samples = voices[rng.integers(len(voices))]
        return self._in_the_room(rng, excerpt(rng, samples, seconds), rng.uniform(-32, -16))

    def scene(self, index: int) -> Scene:
        """Test scene `index`: every third has two things sounding."""
        rng = np.random.default_rng((self.seed, self.index, 2, index))
        image, shown, objects = self.arrangement(rng)
        sounding = range(2 if index % 3 == 2 else 1)
        sound = self._always(rng, int(2.0 * RATE))
        for number in sounding:
            voices = self.things[shown[number]].tested
            part = excerpt(rng, voices[rng.integers(len(voices))])
            sound = sound + self._in_the_room(rng, part, rng.uniform(-32, -16))
        objects = tuple(replace(placed, sounds=number in sounding) for number, placed in enumerate(objects))
        return Scene(image, np.clip(sound, -1, 1).astype(np.float32), objects)


class _Borrowed:
    """What SceneGenerator._place takes its pictures from: one panorama and the looks of some things."""

    def __init__(self, base: Collection, panorama: np.ndarray, things: list[Thing]):
        self.base, self.panorama = base, panorama
        self.photos = {thing.concept: [thing] for thing in things}

    def place(self, rng) -> tuple[np.ndarray, np.ndarray]:
        return self.panorama, np.zeros(self.panorama.shape[:2], np.uint8)

    def shows_people(self, item) -> bool:
        return False

    def photo(self, thing: Thing) -> np.ndarray:
        return thing.picture


# ----------------------------------------------------------------------------------------------------------- measuring


def measured(localizer: Localizer, scenes: list[Scene]) -> dict:
    """The columns of training/evaluate.py on some scenes."""
    ours, labels = Ours(localizer), labels_by_name()
    return summary([judge(scene, ours(scene, 1), labels) for scene in scenes])


def adapted(recording: Path, output: Path, models: Path, config: PlacesConfig) -> tuple[float, str]:
    """Runs the command as a user would; seconds, and the last line that it printed."""
    command = [sys.executable, Path(__file__).parent.parent / "training/adapt.py", "--recording", recording, "--output",
               output, "--models", models, "--data", config.data, *shlex.split(config.adapt)]
    start = time.monotonic()
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    said = [line for line in run.stdout.splitlines() if line.strip()][-1:]
    said = [line for line in run.stderr.splitlines() if line.startswith("not adapted")] or said
    if run.returncode not in (0, 1) or not said:
        raise RuntimeError(f"training/adapt.py ended with status {run.returncode}: {run.stderr[-2000:]}")
    return time.monotonic() - start, said[-1]


def poisoned(recording: PlaceRecording, other: PlaceRecording) -> dict[str, tuple[PlaceRecording, list[Moment]]]:
    """The same recording spoilt in three ways."""
    def heard(sounds) -> list[Moment]:
        return [replace(moment, sound=sound) for moment, sound in zip(recording.moments, sounds)]

    frozen = PlaceRecording(recording.moments, _pictures=recording._pictures[:1])
    return {"silence": (recording, heard(np.zeros_like(moment.sound) for moment in recording.moments)),
            "frozen camera": (frozen, [replace(moment, picture=0) for moment in recording.moments]),
            "sound of another place": (recording, heard(moment.sound for moment in other.moments))}


def refusal(localizer: Localizer, recording: PlaceRecording, moments: list[Moment]) -> str | None:
    """Why a recording is refused; None where it is not."""
    try:
        check_recording(recording, take_inventory(localizer, recording, moments))
    except Refused as reason:
        return str(reason)
    return None


def folder_of(index: int, config: PlacesConfig) -> Path:
    """Where the recording of place `index` and the model that is adapted to it are kept."""
    return config.output / f"{config.split}-seed-{config.seed}-{config.minutes:g}-minutes" / str(index)


def one_place(place: Place, shipped: Localizer, models: Path, general: list[Scene], before: dict,
              config: PlacesConfig) -> dict:
    """Records, adapts and measures."""
    folder = folder_of(place.index, config)
    if not (folder / "recording").exists():  # whole: one that was begun is made anew
        shutil.rmtree(folder / "begun", ignore_errors=True)
        place.record(folder / "begun", config.minutes)
        (folder / "begun").rename(folder / "recording")
    seconds, said = adapted(folder / "recording", folder / "models", models, config)
    scenes = [place.scene(index) for index in range(config.scenes)]
    rows = {"shipped": measured(shipped, scenes)}
    row = {"things": [thing.concept for thing in place.things], "seconds": seconds, "said": said,
           "refused": said.startswith("not adapted"), "general_shipped": before["recall_20"]}
    if row["refused"]:
        return row | rows | {"adapted": rows["shipped"], "general_adapted": before["recall_20"], "adapter_kb": 0.0}
    localizer = Localizer(folder / "models", threads=1)
    size = (folder / "models/adapter.safetensors").stat().st_size
    return row | rows | {"adapted": measured(localizer, scenes), "adapter_kb": size / 1e3,
                         "general_adapted": measured(localizer, general)["recall_20"]}


def print_report(report: dict) -> None:
    print(f"{'place':<52}recall          precision       right object    general recall  seconds   adapter")
    for row in report["places"]:
        pairs = [f"{row['shipped'][key]:4.0%} > {row['adapted'][key]:4.0%}"
                 for key in ("recall_20", "precision_20", "right_object")]
        pairs.append(f"{row['general_shipped']:4.0%} > {row['general_adapted']:4.0%}")
        print(f"{', '.join(row['things']):<52}" + "".join(f"{pair:<16}" for pair in pairs)
              + f"{row['seconds']:5.0f}   {row['adapter_kb']:4.0f} kB" + ("  refused" if row["refused"] else ""))
    for name, (mean, (low, high)) in report["change"].items():
        print(f"recall within 20 degrees, {name}: {100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]")
    for name, refused in report["poisoned"].items():
        print(f"{name}: {sum(reason is not None for reason in refused)} of {len(refused)} refused")


def main(config: PlacesConfig) -> dict:
    collection = open_scenes(config.data, config.split, config.seed).collection
    try:
        stamps = CutOuts(collection, config.downloads)
    except Missing as error:
        print(f"no stamps, all things are photographs: {error}", file=sys.stderr)
        stamps = None
    models = config.models or shipped_models()
    shipped, generator = Localizer(models, threads=1), SceneGenerator(collection, config.seed)
    general = [generator.scene(index, 1 + index % 3 // 2) for index in range(config.general)]
    before = measured(shipped, general)
    rows = []
    for index in tqdm(range(config.places), unit="place", disable=None):
        place = Place(collection, stamps, config.seed, index)
        rows.append(one_place(place, shipped, models, general, before, config))
        write_report({"places": rows}, config.json)  # minutes each: nothing is lost where the next one fails
    recordings = [read_recording(folder_of(index, config) / "recording") for index in range(config.places)]
    spoilt: dict[str, list] = {}
    for index, recording in enumerate(recordings):
        for name, parts in poisoned(recording, recordings[(index + 1) % len(recordings)]).items():
            spoilt.setdefault(name, []).append(refusal(shipped, *parts))
    change = {"in the place": [row["adapted"]["recall_20"] - row["shipped"]["recall_20"] for row in rows],
              "elsewhere": [row["general_adapted"] - row["general_shipped"] for row in rows]}
    report = {"places": rows, "poisoned": spoilt, "change": {
        name: (float(np.mean(values)), interval(values)) for name, values in change.items()}}
    print_report(report)
    write_report(report, config.json)
    return report


if __name__ == "__main__":
    main(tyro.cli(PlacesConfig, description=__doc__))
