"""Adapts a model to the robot's own place from a recording that nobody labelled.

    avssl record place --seconds 600                                   # or the node with record:=place, or a ROS 2 bag
    python training/adapt.py --recording place --output place_models   # minutes on 2 cores; --config FILE, of tune.py
    ros2 param set /localizer models place_models                      # a running node takes it over

1. The model takes an inventory of the first four fifths of the recording (training/place.py): which things are seen
   again and again, which of them makes which sound, and what each is called.
2. Their looks and sounds are mixed into scenes as for any training (training/mixing.py), and low-rank adapters (LoRA,
   Hu et al. 2021, by the peft library) on the pointwise and dense layers learn with the losses of training/train.py
   that they belong together. Whatever belongs to no thing is held to what the model without adapters says of it, and
   where the training material is at hand (--data) its scenes are rehearsed, so that nothing is forgotten.
3. The last fifth judges: moments in which a thing is heard, alone and two at once, must be answered in its direction.
   The best state on the way is kept. A model that is no better there than the one it started from is not written.

The output is an ordinary model folder and the adapter by itself (adapter.safetensors, half precision). A recording that
teaches nothing (silence, a picture that never changes, sound that has nothing to do with what is in view) is refused
with the reason; the exit status is 1 then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import peft
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from avssl_ros import Localizer, features
from avssl_ros.encoders import INTEGERS, read_manifest
from avssl_ros.geometry import ViewLayout, angle_between, cut_views, pixel_to_direction
from avssl_ros.paths import shipped_models
from training.clip_collection import ClipsConfig, open_collection
from training.data import BACKGROUND, read_concepts
from training.evaluate import WITHIN, StillSight, angles, matched
from training.export import write_encoder
from training.mixing import MixConfig, SceneMixer
from training.networks import freeze_norms, load_exported, prototypes
from training.place import Inventory, Look, Thing, is_apart, nearest_look, take_inventory
from training.quantize import add_integers
from training.recordings import Moment, PlaceRecording, read_recording
from training.train import Encoders, Scenes, TrainConfig, loss_terms, make_fabric, read_configuration, total_loss

CROP_EXTENTS = 2.6  # field of view of the picture of a thing, in extents of its region
CROP_FOV_DEG = 30.0, 80.0
CROP_PIXELS_PER_DEGREE = 3.5
EMPTY_CROPS, EMPTY_FOV_DEG = 60, 50.0  # pictures of the place in which nothing was found
SAME_SOUND = 0.6  # cosine to a kind of sound from which on a held back window is of it
TRIALS = 90  # held back ones at most
LEAST_TRIALS = 8
LEAST_PICTURES = 4
LEAST_HEARD = 20  # windows with a sound that stands out
QUANTIZED_ON = 40  # pictures of the recording, see `views_of`
MOST_CHANCE = 0.1  # a recording with foreign sound slips through as often as that


class Refused(ValueError):
    """The recording teaches nothing, or what it taught is no better; the text says why."""


@dataclass(frozen=True)
class AdaptConfig:
    """What to adapt on what, and how."""

    recording: Path  # folder of mp4 segments, video, or ROS 2 bag
    output: Path = Path("adapted")  # model folder
    models: Path | None = None  # model folder to start from; None: the shipped one
    data: Path | None = Path("../shared/data")  # material that is rehearsed; nothing is, where it is not there
    cache: Path = Path("cache")  # decoded recordings of it
    where: Literal["dense", "heads", "norms"] = "dense"  # which layers learn: see `targets`
    rank: int = 4  # of the adapters; dense ones of rank 4 have 274 kB
    rate: float = 2e-3
    steps: int = 100
    scenes: int = 4  # a step, of the place, and as many rehearsed ones
    keep_weight: float = 2.0  # of the distance from what the model without adapters says of what is no thing
    rehearsal_weight: float = 1.0
    strength: float = 0.5  # of what was learned that is taken over: see `blended`
    clustering_weight: float = 5.0
    reverberant: float = 0.3  # share of sounds that get a further room
    held_back: float = 0.2  # last share of the recording, which judges
    check_every: int = 20
    minutes: float = 12.0  # of training at most
    seed: int = 0
    image_topic: str | None = None  # of a bag with several
    sound_topic: str | None = None


@dataclass(frozen=True)
class AdaptResult:
    """`score` and `before` are F within 20 degrees on the held back trials, adapted and not."""

    score: float
    before: float
    step: int
    things: tuple[str, ...]
    adapter_bytes: int


# -------------------------------------------------------------------------------------------------- the place's scenes


class PlaceCollection:
    """Looks and sounds of an inventory as a collection that SceneMixer takes its scenes from.

    What may be a thing is told apart from background in the place's own pictures, but not taught there.
    """

    videos: frozenset[str] = frozenset()  # of its classes, see ClipCollection

    def __init__(self, recording: PlaceRecording, moments: list[Moment], inventory: Inventory, concepts: list[str],
                 seed: int):
        self.class_of = {name: index for index, name in enumerate(concepts)}
        self.photos: dict[str, list] = {name: [] for name in [*concepts, BACKGROUND]}
        self.sounds: dict[str, list] = {name: [] for name in [*concepts, BACKGROUND]}
        pictures = {number: recording.picture(number) for number in sorted({look.picture for look in inventory.looks})}
        for thing in inventory.things:
            name = concepts[thing.concept]
            self.photos[name] += [picture_of(pictures[look.picture], look) for look in thing.looks]
            self.sounds[name] += [moments[index].sound for index in thing.sounds]
        self.sounds[BACKGROUND] = [moments[index].sound for index in inventory.quiet]
        self._places = [(picture, _mask([look for look in inventory.looks if look.picture == number], picture.shape))
                        for number, picture in pictures.items()]
        self.photos[BACKGROUND] = self._empty(np.random.default_rng(seed))

    def _empty(self, rng: np.random.Generator) -> list[np.ndarray]:
        layout, found = ViewLayout((0.0,), 0.0, EMPTY_FOV_DEG, EMPTY_FOV_DEG), []
        for _ in range(4 * EMPTY_CROPS):
            picture, mask = self.place(rng)
            turn = rng.integers(picture.shape[1])
            size = (round(CROP_PIXELS_PER_DEGREE * EMPTY_FOV_DEG),) * 2
            if not cut_views(np.roll(mask, turn, axis=1)[..., None], layout, size).any():
                found.append(cut_views(np.roll(picture, turn, axis=1), layout, size)[0])
        return found[:EMPTY_CROPS]

    def scene(self, key) -> PlaceCollection:
        return self

    def place(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A picture of the place, and where things may be in it: uint8 (H, W), too faint to be taught."""
        return self._places[rng.integers(len(self._places))]

    def shows_people(self, item) -> bool:
        return False

    def heads(self, item, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width), np.uint8)

    def photo(self, item: np.ndarray) -> np.ndarray:
        return item

    def sound(self, item: np.ndarray) -> np.ndarray:
        return item


def picture_of(panorama: np.ndarray, look: Look) -> np.ndarray:
    """A flat picture, RGB uint8 (S, S, 3), of a region of an equirectangular one with what is around it."""
    fov = float(np.clip(np.degrees(CROP_EXTENTS * look.extent), *CROP_FOV_DEG))
    layout = ViewLayout((float(np.degrees(look.azimuth)),), float(np.degrees(look.elevation)), fov, fov)
    return cut_views(panorama, layout, (round(CROP_PIXELS_PER_DEGREE * fov),) * 2)[0]


def _mask(looks: list[Look], shape: tuple[int, ...]) -> np.ndarray:
    """uint8 (H, W): 1 around each look."""
    rows, columns = shape[0] // 4, shape[1] // 4
    azimuth, elevation = pixel_to_direction(*np.meshgrid(np.arange(columns), np.arange(rows)), columns, rows)
    near = [angle_between(azimuth, elevation, look.azimuth, look.elevation) < CROP_EXTENTS / 2 * look.extent + 0.1
            for look in looks]
    small = np.any(near, axis=0) if near else np.zeros((rows, columns), bool)
    return cv2.resize(small.astype(np.uint8), shape[1::-1], interpolation=cv2.INTER_NEAREST)


# ------------------------------------------------------------------------------------------------------------- adapters


def targets(model: Encoders, where: str) -> list[str]:
    """Names of the layers that learn: "heads" are the pointwise ones behind the trunks, "dense" all pointwise and dense
    ones that training may change, "norms" scale and shift of its batch normalisations."""
    def fits(name: str, layer: torch.nn.Module) -> bool:
        if not all(parameter.requires_grad for parameter in layer.parameters()):
            return False
        if where == "norms":
            return isinstance(layer, torch.nn.BatchNorm2d)
        pointwise = isinstance(layer, torch.nn.Linear) or (
            isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1)
        return pointwise and (where == "dense" or any(part in name for part in (".head.", "_conv_head", ".hidden")))

    return [name for name, layer in model.named_modules() if fits(name, layer)]


def with_adapters(models: Path, manifest: dict, config: AdaptConfig) -> peft.PeftModel:
    """The encoders of a model folder, of which only new adapters learn; at first they change nothing."""
    model = Encoders(manifest["dimensions"])
    for name, encoder in model.named_children():
        load_exported(encoder, models / manifest[name]["file"])
    for layer in model.modules():
        # EfficientNet's own kind of convolution pads, and cannot be made anew by peft: a pointwise one pads nothing.
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (1, 1):
            layer.__class__ = torch.nn.Conv2d
    names = targets(model, config.where)
    if config.where == "norms":
        return peft.get_peft_model(model, peft.LNTuningConfig(target_modules=names))
    return peft.get_peft_model(model, peft.LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=names))


def adapters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters that learn, by name."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def blended(start: dict, learned: dict, strength: float) -> dict:
    """Adapters with which the weights lie a share `strength` of the way from the model before to the adapted one.

    Half way keeps most of what was learned and loses less of what was known (Wortsman et al. 2022, WiSE-FT). A low-rank
    adapter adds B A to a weight, and B begins at zero.
    """
    return {name: value if "lora_A" in name else start[name] + strength * (value - start[name])
            for name, value in learned.items()}


class TorchEncoders:
    """A torch model in the place of avssl_ros.encoders.Encoders, so that the localizer itself can be judged."""

    def __init__(self, model: torch.nn.Module, encoders):
        self._parts, self.dimensions = model.get_base_model(), encoders.dimensions
        self.size, self.stride, self.providers = encoders.size, encoders.stride, encoders.providers

    @torch.no_grad()
    def visual(self, views: np.ndarray) -> np.ndarray:
        return self._run(self._parts.visual, np.ascontiguousarray(views))

    @torch.no_grad()
    def audio(self, log_mel: np.ndarray) -> np.ndarray:
        return self._run(self._parts.audio, np.asarray(log_mel, np.float32))

    @staticmethod
    def _run(part: torch.nn.Module, x: np.ndarray) -> np.ndarray:
        return part(torch.from_numpy(x).to(next(part.parameters()).device)).float().cpu().numpy()


# ---------------------------------------------------------------------------------------------- what is held back


@dataclass(frozen=True)
class Trial:
    """A picture of the held back part, what sounds in it, and where that is (looks)."""

    picture: int
    sound: np.ndarray
    truth: tuple[Look, ...]


def held_back_trials(localizer: Localizer, looks: dict[int, list[Look]], moments: list[Moment],
                     things: tuple[Thing, ...], seed: int) -> list[Trial]:  # fmt: skip
    """Moments in which one of the things is heard and seen, and as many mixtures of two of them in one picture.

    `looks` are those of each picture, by its number.
    """
    singles = []
    for moment in moments:
        clusters = localizer.hear(moment.sound)
        if not clusters:
            continue
        alike = [float((thing.kinds @ clusters[0].centroid / np.linalg.norm(thing.kinds, axis=1)).max())
                 for thing in things]
        best = int(np.argmax(alike))
        look = nearest_look(things[best], looks[moment.picture]) if alike[best] > SAME_SOUND else None
        if look is not None:
            singles.append((best, Trial(moment.picture, moment.sound, (look,))))
    rng, mixed = np.random.default_rng(seed), []
    for first, a in singles:
        others = [b for second, b in singles if second != first and b.picture == a.picture
                  and is_apart(a.truth[0], b.truth[0], WITHIN)]
        if others:
            b = others[rng.integers(len(others))]
            mixed.append(Trial(a.picture, np.clip(a.sound + b.sound, -1, 1), a.truth + b.truth))
    alone = [trial for _, trial in singles]
    keep = [[trials[i] for i in rng.permutation(len(trials))[: TRIALS // 2]] for trials in (alone, mixed)]
    return sorted(keep[0] + keep[1], key=lambda trial: trial.picture)


def score(localizer: Localizer, recording: PlaceRecording, trials: list[Trial]) -> float:
    """F within 20 degrees of the localizer's answers over trials sorted by picture; its encoders are StillSight."""
    hits = predicted = truth = 0
    image, number = None, None
    for trial in trials:
        if trial.picture != number:
            image, number = recording.picture(trial.picture), trial.picture
            localizer.encoders.look_again()  # of the last picture, or of other weights
        found = localizer.localize(image, trial.sound, features.SAMPLE_RATE).sources
        hits += matched(angles(found, trial.truth))
        predicted, truth = predicted + len(found), truth + len(trial.truth)
    return 2 * hits / max(predicted + truth, 1)


def check_recording(recording: PlaceRecording, inventory: Inventory) -> None:
    """Raises Refused where there is nothing to learn from the recording."""
    if inventory.heard < LEAST_HEARD:
        raise Refused(f"in only {inventory.heard} of {len(recording.moments)} s something is heard clearly enough to "
                      f"learn from, wanted are {LEAST_HEARD}: record while things sound")
    if len(recording) < LEAST_PICTURES:
        raise Refused(f"the recording holds {len(recording)} different pictures, wanted are {LEAST_PICTURES}: its "
                      "camera stood still before a scene that never changed, or was frozen")
    if len(inventory.things) < 2:
        raise Refused(f"{len(inventory.things)} things are both seen again and again and heard, wanted are 2: "
                      "record longer")
    if inventory.chance > MOST_CHANCE:
        raise Refused("what is heard does not go with what is in view (as well by chance with probability "
                      f"{inventory.chance:.2f}): the sound may be of another place or time, or the recording too "
                      "short for things to come and go")


# ------------------------------------------------------------------------------------------------------------- the run


def adapt(config: AdaptConfig, report: Callable[[int, float], None] | None = None) -> AdaptResult:
    """Adapts and writes the model folder; `report` gets step and score of each check and may raise to end the run.

    Raises:
        Refused: the recording teaches nothing, or the adapted model is no better; nothing is written.
        FileNotFoundError, ValueError: no recording or no model to start from.
    """
    started = time.monotonic()
    models = Path(config.models or shipped_models())
    if config.output.resolve() == models.resolve():
        raise ValueError(f"--output {config.output} is the model that is adapted: give another folder")
    manifest, localizer = read_manifest(models), Localizer(models)
    concepts = [concept.name for concept in read_concepts()]
    if manifest["labels"] != [concept.label for concept in read_concepts()]:
        raise ValueError(f"{models} knows other concepts than training/concepts.csv: only such a model can be adapted")
    recording = read_recording(config.recording, config.image_topic, config.sound_topic)
    for trouble in recording.unreadable:
        print(f"left out: {trouble}", file=sys.stderr)
    learned, judged = recording.between(0, 1 - config.held_back), recording.between(1 - config.held_back, np.inf)
    looked: dict[int, list[Look]] = {}
    check_recording(recording, take_inventory(localizer, recording, recording.moments, config.seed, looked))
    inventory = take_inventory(localizer, recording, learned, config.seed, looked)
    trials = held_back_trials(localizer, looked, judged, inventory.things, config.seed)
    if len(trials) < LEAST_TRIALS:
        raise Refused(f"the held back part of {len(judged)} s has {len(trials)} moments in which a thing is seen and "
                      f"heard, wanted are {LEAST_TRIALS}: record longer")
    names = tuple(manifest["labels"][thing.concept] for thing in inventory.things)
    print(f"{len(recording.moments)} s, {len(recording)} pictures; {', '.join(names)}; {inventory.accounted:.0%} of "
          f"what is heard is theirs; {len(trials)} held back trials; {time.monotonic() - started:.0f} s")
    place = PlaceCollection(recording, learned, inventory, concepts, config.seed)
    model = with_adapters(models, manifest, config)
    localizer.encoders = StillSight(TorchEncoders(model.eval(), localizer.encoders))
    before = score(localizer, recording, trials)  # new adapters change nothing; both are judged in floating point
    frame = prototypes(len(concepts), manifest["dimensions"])
    best = _learn(model, place, frame, lambda: score(localizer, recording, trials), before, config, report)
    if best[0] <= before:
        raise Refused(f"on the held back part the adapted model is no better than the one before: F within 20 degrees "
                      f"{best[0]:.2f}, before {before:.2f}")
    model.cpu().load_state_dict(best[2], strict=False)
    size = _write(model, models, manifest, best, before, names, config, lambda: views_of(localizer, recording))
    return AdaptResult(best[0], before, best[1], names, size)


def _learn(model, place, frame, judge, before: float, config: AdaptConfig, report) -> tuple[float, int, dict]:
    """Trains the adapters; the best score on the way, its step, and the adapters then."""
    settings = TrainConfig(align_steps=0, clustering_weight=config.clustering_weight, seed=config.seed)
    mixes = [_loader(place, MixConfig(sounds=4, concepts=(2, 5), full_view=0.05, mosaic=0.0, offscreen=0.0,
                                      reverberant=config.reverberant, passers_by=0.0), config, 0)]
    if config.data is not None and config.data.exists() and config.rehearsal_weight:
        general = open_collection(config.data, ClipsConfig(), "train", read_concepts(), config.cache)
        mixes.append(_loader(general, MixConfig(sounds=4, mosaic=0.0), config, 1))
    fabric = make_fabric(replace(settings, run=Path(tempfile.gettempdir()) / "avssl_adapt"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = adapters_of(model)
    model, optimizer = fabric.setup(model, torch.optim.AdamW(trained, lr=config.rate, weight_decay=0.01))
    frame = frame.to(fabric.device)
    best, deadline = (-1.0, 0, {}), time.monotonic() + 60 * config.minutes
    for step, batches in enumerate(tqdm(zip(*mixes), total=config.steps, unit="step", disable=None), 1):
        for group in optimizer.param_groups:
            group["lr"] = config.rate * min(1.0, step / 20) * min(1.0, 2 * (1 - (step - 1) / config.steps))
        _step(fabric, model, optimizer, [fabric.to_device(batch) for batch in batches], frame, settings, config)
        late = time.monotonic() > deadline
        if step % config.check_every == 0 or step == config.steps or late:
            model.eval()
            learned = adapters_of(model.module)
            taken = blended(start, learned, config.strength)
            model.module.load_state_dict(taken, strict=False)
            reached = judge()
            model.module.load_state_dict(learned, strict=False)
            best = (reached, step, taken) if reached > best[0] else best
            if report is not None:
                report(step, reached)
            print(f"step {step}: F {reached:.3f}, before {before:.3f}")
        if late:
            break
    return best


def _loader(collection, mix: MixConfig, config: AdaptConfig, number: int):
    scenes = Scenes(SceneMixer(collection, mix, config.seed + number), 0, config.steps * config.scenes)
    return DataLoader(scenes, batch_size=config.scenes, num_workers=1)


def _step(fabric, model, optimizer, batches: list[dict], frame, settings: TrainConfig, config: AdaptConfig) -> None:
    """One step on a batch of the place and, if there is one, a rehearsed one."""
    model.train()
    freeze_norms(model)
    loss = 0.0
    for number, batch in enumerate(batches):
        seen, heard = model(batch["views"], batch["sound"])
        terms = {name: mean.value for name, mean in loss_terms(seen, heard, batch, frame, settings).items()}
        loss = loss + (1.0 if number == 0 else config.rehearsal_weight) * total_loss(terms, 1, settings)
        if number == 0:
            with torch.no_grad(), model.module.disable_adapter():
                before = model(batch["views"], batch["sound"])
            loss = loss + config.keep_weight * sum(
                (torch.square(now - then).sum(dim=-1) * (owner.flatten(2) < 0)).sum() / (owner < 0).sum().clamp_min(1)
                for now, then, owner in zip((seen, heard), before, (batch["view_owner"], batch["sound_owner"])))
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=2.0)
    optimizer.step()


def views_of(localizer: Localizer, recording: PlaceRecording) -> np.ndarray:
    """Views (N, H, W, 3) of pictures from all over a recording."""
    numbers = np.unique(np.linspace(0, len(recording) - 1, QUANTIZED_ON).round().astype(int))
    return np.concatenate([localizer.cut(recording.picture(n), "equirectangular")[0] for n in numbers])


def _write(model, models: Path, manifest: dict, best: tuple, before: float, names: tuple, config: AdaptConfig,
           views: Callable[[], np.ndarray]) -> int:
    """Writes the files of the folder, replacing those there; returns the bytes of the adapter.

    Where the model has its visual encoder in integers, so has the adapted one, with the ranges it has on the views.
    """
    described = {name: value for name, value in asdict(config).items()
                 if name not in ("recording", "output", "models", "data", "cache")}
    adapter = {name: value.half().contiguous() for name, value in best[2].items()}
    merged = model.merge_and_unload()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        started = {name: manifest[name]["sha256"] for name in ("visual", "audio")}
        new = json.loads((models / "manifest.json").read_text())
        for name, encoder in merged.named_children():
            path = folder / new[name]["file"]
            write_encoder(name, encoder.eval(), path)
            new[name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        new["training"] = {**new["training"], "adapted": {
            "from": started, "step": best[1], "held_back_f": round(best[0], 4), "held_back_f_before": round(before, 4),
            "things": list(names), **described}}  # fmt: skip
        save_file(adapter, folder / "adapter.safetensors")
        quantized = new["visual"].pop(INTEGERS, None)
        (folder / "manifest.json").write_text(json.dumps(new, indent=1) + "\n")
        if quantized is not None:
            try:
                add_integers(folder, views())
            except ValueError as error:  # what was learned is worth more than the speed
                print(f"written in floating point only: {error}", file=sys.stderr)
        config.output.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            shutil.copy(path, config.output / path.name)
    return (config.output / "adapter.safetensors").stat().st_size


def main(config: AdaptConfig) -> int:
    """Adapts, says what came of it, and returns the exit status."""
    try:
        result = adapt(config)
    except Refused as reason:
        print(f"not adapted, {config.models or 'the shipped model'} stays in force: {reason}", file=sys.stderr)
        return 1
    print(f"{config.output}: F within 20 degrees on the held back part {result.score:.2f}, before {result.before:.2f} "
          f"(step {result.step}); adapter of {result.adapter_bytes / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(read_configuration(sys.argv[1:], AdaptConfig, __doc__)))
