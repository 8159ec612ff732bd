"""Trains both encoders on mixed scenes: alignment with concepts first, deep clustering with it after that.

    python training/train.py --run runs/first                              # this machine's GPU, else its CPU
    python training/train.py --run runs/first                              # the same again: resumes
    python training/train.py --config runs/first/config.json --run runs/second --steps 9000
    torchrun --nproc-per-node 4 -- training/train.py --run runs/first      # four GPUs of one node
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -- training/train.py ...

Without `--` torchrun takes `--run` for the beginning of an option of its own, and refuses it.

A run folder holds config.json (the resolved configuration; `--config` reads it), provenance.json (git state, versions,
machine), log.jsonl (a line every `log_every` steps), TensorBoard events (losses, maps on pictures, the embedding in
colours), and checkpoint.pt with everything that a resumed run needs: it goes on as if it had never been killed. With
another configuration it is refused; more steps, other places and another rhythm of validation are no other one.
`training/export.py` makes the model folder of it.

There are far more photographs than recordings, and the audio encoder overfits long before the visual one is done. A
short run of its own names sounds better and separates them worse; the mean of both keeps most of either:

    python training/train.py --run runs/audio --mix.views 0 --steps 1000   # the audio encoder alone, in minutes
    python training/export.py --run runs/first --audio-run runs/audio
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# BLAS threads of the scene mixer would fight with torch's own for the cores; its matrices are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from avssl_ros.encoders import read_manifest
from training import losses
from training.clip_collection import ClipCollection, ClipsConfig, open_collection
from training.data import Concept, read_concepts, read_more_items
from training.files import as_json, write_whole
from training.mixing import Collection, MixConfig, SceneMixer
from training.networks import AudioEncoder, VisualEncoder, depthwise_in_float32, freeze_norms, load_exported, prototypes
from training.pictures import scene_picture

REPOSITORY = Path(__file__).resolve().parent.parent
TAGGER_FILE = "mn04_as_mAP_432.pt"
VALIDATION_SHARE = 0.1  # of the cache of clips: it draws the same few scenes each time
# What a resumed run may be given anew: where things lie, what it runs on, how often it reports, and its steps, of which
# only those of the checkpoint cannot be taken back.
FREE = frozenset((
    "weights", "run", "cache", "accelerator", "devices", "precision", "workers", "steps", "log_every",
    "checkpoint_every", "validate_every", "validation_scenes", "clips.memory_gb", "clips.disk", "clips.disk_gb",
))  # fmt: skip
# Paths that it learns from may be others too, but none cannot become some.
PLACES = frozenset(("data", "more_items", "start", "clips.shards"))


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    data: Path | None = Path("../shared/data")  # folder with photos/, images/, sounds/, esc10/, panoramas/; None: clips
    more_items: Path | None = None  # folder with index.csv (kind, file, concept) of more to train on
    start: Path | None = None  # model folder to go on from; None: the pretrained trunks
    weights: Path = Path("../shared/weights")  # folder with mn04_as_mAP_432.pt and audioset_527_labels.csv
    run: Path = Path("runs/first")  # output folder; an interrupted run in it is resumed
    cache: Path = Path("cache")  # decoded recordings, made once
    split: str = "train"  # the items of training/splits.csv to train on
    share_of_data: float = 1.0  # of the photographs and recordings of the split, for curves over the amount of data
    accelerator: str = "auto"  # of Fabric: cpu, cuda; auto takes a GPU where there is one
    devices: int = 1  # of this node when not started by torchrun, which says so itself
    precision: str = "auto"  # of Fabric; auto: bfloat16 where the processor computes in it, else float32
    learns: Literal["both", "visual", "audio"] = "both"  # the other encoder keeps what it started with
    steps: int = 5000
    align_steps: int = 300  # before deep clustering joins
    scenes: int = 8  # a step and device
    dimensions: int = 96  # of the embedding
    objective: Literal["clustering", "ez-vsl", "denseav"] = "clustering"  # the others: benchmarks/objectives.py
    clustering_form: Literal["plain", "whitened", "lda"] = "plain"  # of the loss, see training/losses.py
    clustering_weight: float = 5.0
    nothing_weight: float = 0.5  # of background patches in the alignment
    gate_weight: float = 1.0  # of the norm of background patches
    visual_share: float = 0.5  # of the weight of visual against sound patches in the clustering loss
    background_share: float = 0.4  # of the weight of background patches
    trunk_rate: float = 2e-4  # learning rate of pretrained layers
    head_rate: float = 1e-3  # and of new ones
    warm_up: int = 100  # steps
    decay: float = 0.3  # last share of the steps, in which the rate falls to zero
    ema: float = 0.998
    seed: int = 0
    workers: int = 1
    log_every: int = 20
    checkpoint_every: int = 250
    validate_every: int = 500
    validation_scenes: int = 48
    mix: MixConfig = field(default_factory=MixConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)


class Scenes(Dataset):
    """Scenes `first`.. of a mixer as a map-style dataset."""

    def __init__(self, mixer: SceneMixer, first: int, count: int):
        self.mixer, self.first, self.count = mixer, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(value) for key, value in self.mixer[self.first + index].items()}


def concepts_of(config: TrainConfig) -> list[Concept]:
    """The concepts that a run knows; none where it learns from clips without labels alone."""
    return read_concepts() if config.data is not None or config.clips.labels else []


def concept_classes(weights: Path, concepts: list[Concept]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """ImageNet and AudioSet class indices of every concept."""
    table = weights / "audioset_527_labels.csv"
    if not table.exists():
        raise FileNotFoundError(f"{table} is missing: --weights needs the folder with it and {TAGGER_FILE}")
    with open(table, newline="") as file:
        index = {row["display_name"].replace(",", ""): int(row["index"]) for row in csv.DictReader(file)}
    unknown = [name for concept in concepts for name in concept.audioset if name not in index]
    if unknown:
        raise ValueError(f"concepts.csv names AudioSet classes that do not exist: {unknown}")
    return [c.imagenet for c in concepts], [tuple(index[name] for name in c.audioset) for c in concepts]


class Encoders(torch.nn.Module):
    """Both encoders as one module, so that they share an optimiser, an average and a checkpoint."""

    def __init__(self, dimensions: int):
        super().__init__()
        self.visual, self.audio = VisualEncoder(dimensions), AudioEncoder(dimensions)

    def forward(self, views: torch.Tensor | None, sound: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """(S, V, H, W, 3) uint8, or None, and (S, M, 128, T) to (S, V, P, D) and (S, M, Q, D)."""
        def patches(encoder, x):
            return encoder(x.flatten(0, 1)).flatten(1, 2).unflatten(0, x.shape[:2])
        return None if views is None else patches(self.visual, views), patches(self.audio, sound)


# ------------------------------------------------------------------------------------------------------------- losses


def loss_terms(visual, audio, batch, frame, config: TrainConfig) -> dict[str, losses.Mean]:
    """Alignment of each modality and the deep clustering loss of each scene over both.

    Concept ids from len(frame) upwards are those of videos without a label: they are aligned with one another across
    the modalities instead of with a prototype, and cluster all the same.
    """
    parts = {"visual": (visual, "view"), "audio": (audio, "sound")}
    parts = {name: (v, batch[f"{part}_owner"].flatten(2), batch[f"{part}_concept"])
             for name, (v, part) in parts.items() if v is not None}
    videos = torch.unique(torch.cat([concept.flatten() for _, _, concept in parts.values()]))
    videos = videos[videos >= len(frame)]
    parts = {name: (v, owner, _renumbered(concept, videos, len(frame))) for name, (v, owner, concept) in parts.items()}
    heard = _video_prototypes(parts, "audio", frame, frame.new_zeros(len(videos), frame.shape[1]), len(videos))
    seen = _video_prototypes(parts, "visual", frame, heard[0], len(videos))
    terms, rows = {}, []
    for name, (v, owner, concept) in parts.items():
        flat = v.flatten(0, 1), owner.flatten(0, 1), concept.flatten(0, 1)
        labelled = torch.where(flat[2] < len(frame), flat[2], losses.IGNORE)
        terms[name], terms[f"{name}_nothing"] = losses.alignment(*flat[:2], labelled, frame)
        terms[f"{name}_gates"] = losses.open_gates(*flat[:2])
        others, known = heard if name == "visual" else seen
        # With clips in the run always, whatever this batch holds: the ranks must agree on the terms they reduce.
        if len(videos) or config.clips.shards is not None:
            video = flat[2] - len(frame)
            video = torch.where(torch.isin(video, torch.nonzero(known)), video, losses.IGNORE)
            terms[f"{name}_video"], terms[f"{name}_video_nothing"] = losses.alignment(*flat[:2], video, others)
        weight = losses.object_weights(*flat, _with_a_row(torch.cat([frame, others.detach()])))
        owned = torch.gather(concept, 2, owner.clamp_min(0).clamp_max(concept.shape[2] - 1))
        cluster = torch.where(owner >= 0, owned, owner)
        share = config.visual_share if name == "visual" else 1 - config.visual_share
        weight = _row_weights(weight.unflatten(0, concept.shape[:2]).flatten(1), cluster.flatten(1), config)
        rows.append((v.flatten(1, 2), cluster.flatten(1), share * weight))
    v, cluster, weight = (torch.cat(columns, dim=1) for columns in zip(*rows))
    form = losses.CLUSTERING[config.clustering_form]
    clustering = form(v, cluster, weight, clusters=max(1, len(frame) + len(videos)))
    scenes = torch.tensor(float(len(audio)), device=audio.device)
    return {**terms, "clustering": losses.Mean(clustering * scenes, scenes)}


def contrastive_terms(visual, audio, batch, config: TrainConfig) -> dict[str, losses.Mean]:
    """The objective of EZ-VSL or DenseAV on the same scenes: which picture belongs to a sound, no concept told.

    All views of a scene are one picture. Each mixture of which something is in view is one sound; the other scenes of
    the batch on this rank, and their sounds, are the negatives.
    """
    seen, heard = batch["view_concept"].flatten(1), batch["sound_concept"]
    shown = ((heard[..., None] == seen[:, None, None]) & (heard[..., None] >= 0)).any(dim=3).any(dim=2)
    own, which = torch.nonzero(shown, as_tuple=True)
    pictures, sounds = visual.flatten(1, 2), audio[own, which]
    if config.objective == "ez-vsl":
        similarity = losses.ez_vsl_similarity(sounds, pictures) / losses.EZ_VSL_TEMPERATURE
        return {"contrast": losses.contrast(similarity, own)}
    products = losses.dense_av_products(sounds, pictures)
    similarity = losses.dense_av_similarity(products) / losses.DENSE_AV_TEMPERATURE
    return {"contrast": losses.contrast(similarity, own), "pressure": losses.dense_av_pressure(products)}


def _with_a_row(table: torch.Tensor) -> torch.Tensor:
    """A zero row more, for a batch in which nothing has a class: there is something to index, and it says nothing."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def _renumbered(concept: torch.Tensor, videos: torch.Tensor, first: int) -> torch.Tensor:
    """Concept ids with those of videos, which may be any, replaced by first, first + 1 ... in their order."""
    return torch.where(concept >= first, first + torch.searchsorted(videos, concept.clamp_min(0)), concept)


def _video_prototypes(parts: dict, name: str, frame, evidence, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prototypes (count, D) of unlabelled videos in one modality; `evidence` says which patches stand for a video."""
    if name not in parts or not count:
        return frame.new_zeros(count, frame.shape[1]), torch.zeros(count, dtype=torch.bool, device=frame.device)
    v, owner, concept = (part.flatten(0, 1) for part in parts[name])
    weight = losses.object_weights(v, owner, concept, _with_a_row(torch.cat([frame, evidence.detach()])))
    return losses.pooled_prototypes(v, owner, concept - len(frame), weight, count)


def _row_weights(objects: torch.Tensor, owner: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Weights (S, N) of one modality's rows, 1 for each scene: objects' and background patches have shares of it."""
    background = (owner == losses.BACKGROUND).float()
    shares = (objects, 1 - config.background_share), (background, config.background_share)
    return sum(share * part / part.sum(dim=1, keepdim=True).clamp_min(1e-6) for part, share in shares)


def means_over_ranks(fabric: Fabric, terms: dict[str, losses.Mean]) -> dict[str, torch.Tensor]:
    """Each term divided by the mean count of all ranks, so that the ranks' mean gradient is that of one batch."""
    counts = torch.stack([mean.count.to(torch.float32) for mean in terms.values()])
    counts = fabric.all_reduce(counts, reduce_op="mean").clamp_min(1e-6)
    return {name: mean.total / count for (name, mean), count in zip(terms.items(), counts)}


def total_loss(terms: dict[str, torch.Tensor], step: int, config: TrainConfig) -> torch.Tensor:
    """The weighted sum; after `align_steps` deep clustering joins.

    The alignment of unlabelled videos ends there: every other video of the batch is a negative to it, of the same kind
    of object or not, and in the second stage that undoes the clusters (SCAV, 2026).
    """
    aligning = step < config.align_steps
    weights = {"nothing": config.nothing_weight, "gates": config.gate_weight,
               "clustering": 0.0 if aligning else config.clustering_weight, "video": 1.0 if aligning else 0.0}
    return sum(weights.get(name.rpartition("_")[2], 1.0) * term for name, term in terms.items())


# ---------------------------------------------------------------------------------------------------------- validation


@torch.no_grad()
def validate(model: Encoders, loader: DataLoader, frame: torch.Tensor, fabric: Fabric) -> dict[str, float]:
    """Shares on unseen scenes: sound named right, sound points at its object, and mean gates."""
    model.eval()
    hits = {"named": [], "points": [], "gate_silence": [], "gate_sound": []}
    for batch in loader:
        batch = fabric.to_device(batch)
        visual, audio = model(batch.get("views"), batch["sound"])
        for s, m in np.ndindex(*batch["sound_concept"].shape[:2]):
            concepts, owner = batch["sound_concept"][s, m], batch["sound_owner"][s, m].flatten()
            heard, patches = concepts[concepts >= 0], audio[s, m]
            if len(heard) != 1 or not (owner == 0).any():
                hits["gate_silence"] += patches.norm(dim=-1).tolist() if len(heard) == 0 else []
                continue
            centroid = patches[owner == 0].mean(0)
            hits["gate_sound"].append(patches[owner == 0].norm(dim=-1).mean().item())
            if heard[0] < len(frame):
                hits["named"].append(int((frame @ centroid).argmax()) == int(heard[0]))
            if visual is None:
                continue
            view_concept = torch.gather(batch["view_concept"][s], 1, batch["view_owner"][s].flatten(1).clamp_min(0))
            view_concept[batch["view_owner"][s].flatten(1) < 0] = losses.IGNORE
            if (view_concept == heard[0]).any():
                hits["points"].append(int(view_concept.flatten()[(visual[s] @ centroid).argmax()]) == int(heard[0]))
    return {key: float(np.mean(values)) if values else float("nan") for key, values in hits.items()}


@torch.no_grad()
def draw_scenes(model: Encoders, loader: DataLoader, frame: torch.Tensor, fabric: Fabric, logger, step: int) -> None:
    """Maps on the first validation scenes, and their embedding in colours, as TensorBoard pictures."""
    batch = fabric.to_device(next(iter(loader)))
    visual, audio = model(batch["views"], batch["sound"])
    for index in range(min(2, len(visual))):
        scene = {key: value[index].cpu().numpy() for key, value in batch.items()}
        picture = scene_picture(scene, visual[index].cpu().numpy(), audio[index].cpu().numpy(), frame.cpu().numpy())
        logger.experiment.add_image(f"scene {index}", picture, step, dataformats="HWC")


# ------------------------------------------------------------------------------------------------------------- the run


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """Warm-up, constant, linear decay."""
    decay_steps = max(1, int(config.decay * config.steps))
    return min(1.0, (step + 1) / max(1, config.warm_up), max(0.0, config.steps - step) / decay_steps)


def build(config: TrainConfig) -> tuple[Encoders, torch.optim.Optimizer]:
    """Encoders with starting weights and the optimiser: a small rate for pretrained layers, a larger for heads."""
    model = Encoders(config.dimensions).to(memory_format=torch.channels_last)  # twice as fast on a CPU
    if config.start is not None:
        _start_from(config.start, model, config)
    else:
        imagenet, audioset = concept_classes(config.weights, concepts_of(config))
        model.visual.load_pretrained(imagenet)
        model.audio.load_pretrained(config.weights / TAGGER_FILE, audioset)
    if config.learns == "visual" and not config.mix.views:
        raise ValueError("the visual encoder alone is to learn, and mix.views is 0: give it views to learn from")
    for name, encoder in model.named_children():
        # Without views too: of several ranks each waits for gradients of all that requires them.
        if config.learns not in (name, "both") or (name == "visual" and not config.mix.views):
            encoder.requires_grad_(False)
    if config.accelerator == "cpu" or not torch.cuda.is_available():
        depthwise_in_float32(model)
    return model, make_optimizer(model, config)


def _start_from(models: Path, model: Encoders, config: TrainConfig) -> None:
    """Takes the weights of a model folder. Raises ValueError where its space is another one."""
    manifest, labels = read_manifest(models), [concept.label for concept in concepts_of(config)]
    if labels and labels != manifest["labels"]:
        raise ValueError(f"{models} knows {len(manifest['labels'])} concepts, which are not the {len(labels)} of "
                         "training/concepts.csv: a run cannot go on from it")
    for name, encoder in model.named_children():
        load_exported(encoder, models / manifest[name]["file"])


def moving_average(decay: float):
    """Exponential moving average of weights for AveragedModel; it follows faster at first, so that the weights that
    training started from do not outweigh a short run."""
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        share = 1.0 - min(decay, (1.0 + count.item()) / (10.0 + count.item()))
        for mean, value in zip(averaged, current):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), share)
            else:
                mean.copy_(value)
    return update


def make_optimizer(model: Encoders, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    heads = [parameter for name, parameter in trained if ".head." in name]
    trunks = [parameter for name, parameter in trained if ".head." not in name]
    groups = [{"params": trunks, "lr": config.trunk_rate}, {"params": heads, "lr": config.head_rate}]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups, weight_decay=0.01)


def choose_precision(config: TrainConfig) -> str:
    """Fabric's precision for "auto": bfloat16 is 1.7 times as fast on a CPU that has it, and slower on others."""
    if config.precision != "auto":
        return config.precision
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    native = (torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu
              else torch.cpu._is_avx512_bf16_supported())
    return "bf16-mixed" if native else "32-true"


def make_fabric(config: TrainConfig) -> Fabric:
    """Fabric for this process; torchrun says in the environment how many there are of them."""
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    logger = TensorBoardLogger(root_dir=config.run, name="", version="tensorboard")
    fabric = Fabric(accelerator=config.accelerator, devices=devices, num_nodes=nodes,
                    precision=choose_precision(config), loggers=logger)  # fmt: skip
    fabric.launch()
    fabric.seed_everything(config.seed, verbose=False)
    return fabric


def _collection(config: TrainConfig, split: str) -> Collection | ClipCollection:
    more = read_more_items(config.more_items) if config.more_items is not None and split == "train" else []
    share = config.share_of_data if split == config.split else 1.0
    clips = _part_of_cache(config.clips, split, config.split)
    return open_collection(config.data, clips, split, concepts_of(config), config.cache, more, share)


def _part_of_cache(clips: ClipsConfig, split: str, trained_on: str) -> ClipsConfig:
    """With limits for one split, since each has a cache of its own: those of training and validation add up."""
    if trained_on == "validation":  # the only one that is open
        return clips
    share = 1 - VALIDATION_SHARE if split == trained_on else VALIDATION_SHARE
    return replace(clips, memory_gb=share * clips.memory_gb, disk_gb=share * clips.disk_gb)


def _loader(config: TrainConfig, collection, seed: int, first: int, count: int) -> DataLoader:
    scenes = Scenes(SceneMixer(collection, config.mix, seed), first, count)
    return DataLoader(scenes, batch_size=config.scenes, num_workers=config.workers)


def _provenance(fabric: Fabric, config: TrainConfig) -> dict:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=REPOSITORY).stdout.strip()

    return {"git": git("describe", "--always", "--dirty"), "changed": git("status", "--porcelain").splitlines(),
            "started_from": {} if config.start is None else {
                name: read_manifest(config.start)[name]["sha256"] for name in ("visual", "audio")},
            "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine(),
            "processes": fabric.world_size, "precision": fabric._precision.precision, "command": sys.argv}  # fmt: skip


def _decides(config: dict) -> dict:
    """What of a configuration, as config.json holds it, decides what a run learns, by the name of its option."""
    flat = {f"{part}{name}": value for part, values in (("", config), ("mix.", config.get("mix", {})),
                                                        ("clips.", config.get("clips", {})))
            for name, value in values.items() if not isinstance(value, dict)}
    return {name: value in (None, "None") if name in PLACES else value for name, value in flat.items()
            if name not in FREE}


def _refuse_another(config: TrainConfig) -> None:
    """Raises ValueError where there is a checkpoint in the run folder that another configuration has led to."""
    stored = config.run / "config.json"
    if not stored.exists() or not (config.run / "checkpoint.pt").exists():
        return
    before, now = _decides(json.loads(stored.read_text())), _decides(json.loads(as_json(asdict(config))))
    differ = [name for name in before.keys() & now.keys() if before[name] != now[name]]
    if differ:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(differ))
        raise ValueError(f"the run in {config.run} was begun with another {options}: give what its config.json has to "
                         "go on with it, or give another --run")


def _resume(fabric: Fabric, config: TrainConfig, model, average, optimizer) -> int:
    """Loads the run's checkpoint, if there is one, and returns its step; the log is cut back to it, by one rank.

    All three are where they will work: an optimiser's state goes to the device its parameters are on by now.

    Raises:
        ValueError: the checkpoint is of a later step than the last one.
    """
    checkpoint, log = config.run / "checkpoint.pt", config.run / "log.jsonl"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["step"] > config.steps:
            raise ValueError(f"the run in {config.run} is at step {state['step']} already, --steps is {config.steps}: "
                             "give more, or give another --run")
        for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(state[name])
        step = state["step"]
    if fabric.is_global_zero and log.exists():
        lines = log.read_text().splitlines()
        lines = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_whole(log, "".join(f"{line}\n" for line in lines))
    return step


def train(config: TrainConfig, report: Callable[[int, dict[str, float]], None] | None = None,
          judged_on: MixConfig | None = None) -> dict[str, float]:
    """Runs the training to its end and returns the last validation metrics (rank 0; empty on other ranks).

    Args:
        report: takes the step and the metrics of each validation, on rank 0 and after the checkpoint; what it raises
            ends the run of one process, which goes on there when it is started again.
        judged_on: how validation scenes are mixed where the runs to compare are mixed differently; None: as the run's.

    Raises:
        ValueError: the run folder holds a run of another configuration, or one that is beyond the last step.
    """
    _refuse_another(config)
    fabric = make_fabric(config)
    model, optimizer = build(config)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=moving_average(config.ema), use_buffers=True)
    # Before the run folder is made: missing data must leave nothing behind.
    collections = {split: _collection(config, split) for split in (config.split, "validation")}
    judged = replace(config, mix=judged_on or config.mix)
    validation = _loader(judged, collections["validation"], 1, 0, config.validation_scenes)
    model, optimizer = fabric.setup(model, optimizer)
    average = average.to(fabric.device)
    step = _resume(fabric, config, model, average, optimizer) if config.run.exists() else 0
    first, remaining = (count * config.scenes * fabric.world_size for count in (step, config.steps - step))
    loader = fabric.setup_dataloaders(_loader(config, collections[config.split], config.seed, first, remaining))
    if fabric.is_global_zero:
        config.run.mkdir(parents=True, exist_ok=True)
        write_whole(config.run / "config.json", as_json(asdict(config)))
        write_whole(config.run / "provenance.json", as_json(_provenance(fabric, config)))
    fabric.barrier()
    frame = prototypes(len(concepts_of(config)), config.dimensions).to(fabric.device)
    metrics, started = {}, time.time()
    for batch in tqdm(loader, initial=step, total=config.steps, unit="step", disable=not fabric.is_global_zero):
        terms = train_step(fabric, model, optimizer, batch, frame, step, config)
        average.update_parameters(model.module)
        step += 1
        line = {"step": step, "seconds": round(time.time() - started, 1), **terms}
        validated = step % config.validate_every == 0 or step == config.steps
        if validated:
            if fabric.is_global_zero:
                metrics = validate(average.module, validation, frame, fabric)
                if config.mix.views:
                    draw_scenes(average.module, validation, frame, fabric, fabric.logger, step)
            fabric.barrier()
            line |= metrics
        if step % config.log_every == 0 or validated:
            _log(fabric, config.run / "log.jsonl", line)  # before the checkpoint: what is after it is cut back
        if step % config.checkpoint_every == 0 or step == config.steps:
            _save(fabric, config.run / "checkpoint.pt",
                  {"model": model, "average": average, "optimizer": optimizer, "step": step})  # fmt: skip
        if validated and report is not None and fabric.is_global_zero:
            report(step, metrics)
    if not metrics and fabric.is_global_zero:  # the run had already ended
        metrics = validate(average.module, validation, frame, fabric)
    for split, collection in collections.items():
        if fabric.is_global_zero and config.clips.shards:
            print(collection.report(split))
        collection.close()
    return metrics


def _save(fabric: Fabric, path: Path, state: dict) -> None:
    partial = path.with_suffix(".partial")
    fabric.save(partial, state)
    if fabric.is_global_zero:
        os.replace(partial, path)
    fabric.barrier()


def _log(fabric: Fabric, path: Path, line: dict) -> None:
    if fabric.is_global_zero:
        with open(path, "a") as log:
            log.write(json.dumps({key: round(float(value), 6) for key, value in line.items()}) + "\n")
        fabric.log_dict({key: value for key, value in line.items() if key != "step"}, step=line["step"])


def train_step(fabric, model, optimizer, batch, frame, step: int, config: TrainConfig) -> dict[str, float]:
    """One step of the optimiser on one batch; returns the loss and its terms."""
    model.train()
    freeze_norms(model)
    scale = learning_rate_scale(step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale
    embeddings = model(batch.get("views"), batch["sound"])
    terms = (loss_terms(*embeddings, batch, frame, config) if config.objective == "clustering"
             else contrastive_terms(*embeddings, batch, config))
    terms = means_over_ranks(fabric, terms)
    loss = total_loss(terms, step, config)
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=2.0)
    optimizer.step()
    return {"loss": loss.item(), **{key: value.item() for key, value in terms.items()}}


# ------------------------------------------------------------------------------------------------------- command line


def arguments_of_file(path: Path) -> list[str]:
    """A configuration file (JSON, as config.json) as command line arguments, so that the same rules check both."""
    def flat(values: dict, prefix: str) -> list[str]:
        arguments = []
        for name, value in values.items():
            option = f"{prefix}{name}".replace("_", "-")
            if isinstance(value, dict):
                arguments += flat(value, f"{option}.")
            elif isinstance(value, bool):
                head, dot, tail = option.rpartition(".")
                arguments.append(f"--{head}{dot}{'' if value else 'no-'}{tail}")
            else:
                arguments += [f"--{option}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        return arguments

    try:
        return flat(json.loads(path.read_text()), "")
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise SystemExit(f"--config {path}: {error}; give a JSON file such as a run's config.json") from error


def read_configuration(arguments: list[str], kind: type = TrainConfig, description: str | None = __doc__):
    """The configuration, of a `kind`, of a command line; what follows `--config FILE` overrides the file."""
    import tyro

    if "--config" in arguments:
        place = arguments.index("--config")
        file, rest = arguments[place + 1 : place + 2], arguments[:place] + arguments[place + 2 :]
        arguments = [*(arguments_of_file(Path(file[0])) if file else ["--config"]), *rest]
    return tyro.cli(kind, args=arguments, description=description)


if __name__ == "__main__":
    print(train(read_configuration(sys.argv[1:])))
