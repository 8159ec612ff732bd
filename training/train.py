"""Trains both encoders on mixed scenes: alignment with concepts first, deep clustering with it after that.

    python training/train.py --data ../shared/data --weights ../shared/weights      # on this machine's CPU or GPU
    python training/train.py ... --run runs/first                                   # the same again: resumes

Writes into the run folder: config.json, log.jsonl (a line every `log_every` steps, validation included) and
checkpoint.pt, which carries everything that a resumed run needs. `training/export.py` makes the model folder of it.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# BLAS threads of the scene mixer would fight with torch's own for the cores; its matrices are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training import losses
from training.data import read_concepts, read_items
from training.mixing import Collection, MixConfig, SceneMixer
from training.networks import AudioEncoder, VisualEncoder, depthwise_in_float32, freeze_norms, prototypes


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    data: Path = Path("../shared/data")  # folder with photos/, images/, sounds/, esc10/ and panoramas/
    weights: Path = Path("../shared/weights")  # folder with mn04_as_mAP_432.pt and audioset_527_labels.csv
    run: Path = Path("runs/first")  # output folder; an interrupted run in it is resumed
    cache: Path = Path("cache")  # decoded recordings, made once
    split: str = "train"  # the items of training/splits.csv to train on
    precision: str = "auto"  # of Fabric; auto: bfloat16 where the processor computes in it, else float32
    steps: int = 5000
    align_steps: int = 300  # before deep clustering joins
    scenes: int = 8  # a step
    dimensions: int = 96  # of the embedding
    clustering_weight: float = 5.0
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
    validate_every: int = 250
    validation_scenes: int = 48
    mix: MixConfig = field(default_factory=MixConfig)


class Scenes(Dataset):
    """Scenes `first`.. of a mixer as a map-style dataset."""

    def __init__(self, mixer: SceneMixer, first: int, count: int):
        self.mixer, self.first, self.count = mixer, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(value) for key, value in self.mixer[self.first + index].items()}


def concept_classes(weights: Path) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """ImageNet and AudioSet class indices of every concept."""
    concepts = read_concepts()
    with open(weights / "audioset_527_labels.csv", newline="") as file:
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

    def forward(self, views: torch.Tensor, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(S, V, H, W, 3) uint8 and (S, M, 128, T) to (S, V, P, D) and (S, M, Q, D)."""
        visual, audio = self.visual(views.flatten(0, 1)), self.audio(sound.flatten(0, 1))
        return (x.flatten(1, 2).unflatten(0, like.shape[:2]) for x, like in ((visual, views), (audio, sound)))


def loss_terms(visual, audio, batch, frame, config: TrainConfig) -> dict[str, torch.Tensor]:
    """Alignment of each modality and the deep clustering loss of each scene over both."""
    view_owner, sound_owner = batch["view_owner"].flatten(2), batch["sound_owner"].flatten(2)
    terms, rows = {}, []
    for name, v, owner, concept in (("visual", visual, view_owner, batch["view_concept"]),
                                    ("audio", audio, sound_owner, batch["sound_concept"])):
        flat = v.flatten(0, 1), owner.flatten(0, 1), concept.flatten(0, 1)
        terms[name] = losses.alignment(*flat, frame)
        terms[f"{name}_gates"] = losses.open_gates(*flat[:2])
        weight = losses.object_weights(*flat, frame)
        owned = torch.gather(concept, 2, owner.clamp_min(0).clamp_max(concept.shape[2] - 1))
        cluster = torch.where(owner >= 0, owned, owner)
        rows.append((v.flatten(1, 2), cluster.flatten(1), weight.unflatten(0, concept.shape[:2]).flatten(1)))
    terms["clustering"] = losses.deep_clustering(*_joined(rows, config), clusters=len(frame))
    return terms


def _joined(rows, config: TrainConfig):
    """Visual and sound patches of each scene as one set, with modality and background shares of the weight."""
    v, cluster = (torch.cat([row[i] for row in rows], dim=1) for i in (0, 1))
    weights = []
    for (_, owner, weight), share in zip(rows, (config.visual_share, 1 - config.visual_share)):
        background = (owner == losses.BACKGROUND).float()
        for part, part_share in ((weight, 1 - config.background_share), (background, config.background_share)):
            part = part / part.sum(dim=1, keepdim=True).clamp_min(1e-6)
            weights.append((owner, part * share * part_share))
    weight = torch.cat([weights[0][1] + weights[1][1], weights[2][1] + weights[3][1]], dim=1)
    return v, cluster, weight


@torch.no_grad()
def validate(model: Encoders, loader: DataLoader, frame: torch.Tensor, fabric: Fabric) -> dict[str, float]:
    """Shares on unseen scenes: sound named right, sound points at its object, and mean gates."""
    model.eval()
    hits = {"named": [], "points": [], "gate_silence": [], "gate_sound": []}
    for batch in loader:
        batch = fabric.to_device(batch)
        visual, audio = model(batch["views"], batch["sound"])
        for s, m in np.ndindex(*batch["sound_concept"].shape[:2]):
            concepts, owner = batch["sound_concept"][s, m], batch["sound_owner"][s, m].flatten()
            heard, patches = concepts[concepts >= 0], audio[s, m]
            if len(heard) != 1 or not (owner == 0).any():
                hits["gate_silence"] += patches.norm(dim=-1).tolist() if len(heard) == 0 else []
                continue
            centroid = patches[owner == 0].mean(0)
            hits["gate_sound"].append(patches[owner == 0].norm(dim=-1).mean().item())
            hits["named"].append(int((frame @ centroid).argmax()) == int(heard[0]))
            view_concept = torch.gather(batch["view_concept"][s], 1, batch["view_owner"][s].flatten(1).clamp_min(0))
            view_concept[batch["view_owner"][s].flatten(1) < 0] = losses.IGNORE
            if (view_concept == heard[0]).any():
                hits["points"].append(int(view_concept.flatten()[(visual[s] @ centroid).argmax()]) == int(heard[0]))
    return {key: float(np.mean(values)) if values else float("nan") for key, values in hits.items()}


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """Warm-up, constant, linear decay."""
    decay_steps = max(1, int(config.decay * config.steps))
    return min(1.0, (step + 1) / config.warm_up, max(0.0, config.steps - step) / decay_steps)


def build(config: TrainConfig) -> tuple[Encoders, torch.optim.Optimizer]:
    """Encoders with their starting weights and the optimiser: a small rate for pretrained layers, a larger for heads."""
    model = Encoders(config.dimensions).to(memory_format=torch.channels_last)  # twice as fast on a CPU
    imagenet, audioset = concept_classes(config.weights)
    model.visual.load_pretrained(imagenet)
    model.audio.load_pretrained(config.weights / "mn04_as_mAP_432.pt", audioset)
    if not torch.cuda.is_available():
        depthwise_in_float32(model)
    heads = [p for name, p in model.named_parameters() if ".head." in name]
    trunks = [p for name, p in model.named_parameters() if ".head." not in name]
    groups = [{"params": trunks, "lr": config.trunk_rate}, {"params": heads, "lr": config.head_rate}]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return model, torch.optim.AdamW(groups, weight_decay=0.01)


def _loader(config: TrainConfig, split: str, seed: int, first: int, count: int) -> DataLoader:
    collection = Collection(read_items(split=split), config.data, read_concepts(), config.cache / f"sounds-{split}.npz")
    scenes = Scenes(SceneMixer(collection, config.mix, seed), first, count)
    return DataLoader(scenes, batch_size=config.scenes, num_workers=config.workers, persistent_workers=False)


def choose_precision(wanted: str) -> str:
    """Fabric's precision for "auto": bfloat16 is 1.7 times as fast on a CPU that has it, and slower on others."""
    if wanted != "auto":
        return wanted
    native = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def _describe(config: TrainConfig) -> dict:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {**json.loads(json.dumps(asdict(config), default=str)), "git": commit, "torch": torch.__version__}


def _save(fabric: Fabric, path: Path, state: dict) -> None:
    partial = path.with_suffix(".partial")
    fabric.save(partial, state)
    os.replace(partial, path)  # a killed run leaves the last whole checkpoint


def train(config: TrainConfig) -> dict[str, float]:
    """Runs the training to its end and returns the last validation metrics."""
    fabric = Fabric(accelerator="auto", devices=1, precision=choose_precision(config.precision))
    fabric.seed_everything(config.seed, verbose=False)
    config.run.mkdir(parents=True, exist_ok=True)
    model, optimizer = build(config)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=True)
    checkpoint, step = config.run / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    (config.run / "config.json").write_text(json.dumps(_describe(config), indent=1))
    model, optimizer = fabric.setup(model, optimizer)
    average = average.to(fabric.device)
    frame = prototypes(len(read_concepts()), config.dimensions).to(fabric.device)
    remaining = (config.steps - step) * config.scenes
    loader = fabric.setup_dataloaders(_loader(config, config.split, config.seed, step * config.scenes, remaining))
    validation = _loader(config, "validation", 1, 0, config.validation_scenes)
    metrics, started = {}, time.time()
    with open(config.run / "log.jsonl", "a") as log:
        for batch in tqdm(loader, initial=step, total=config.steps, unit="step", disable=not fabric.is_global_zero):
            terms = _step(fabric, model, average, optimizer, batch, frame, step, config)
            step += 1
            line = {"step": step, "seconds": round(time.time() - started, 1), **terms}
            if step % config.validate_every == 0 or step == config.steps:
                metrics = validate(average.module, validation, frame, fabric)
                line |= metrics
                state = {"model": model, "average": average, "optimizer": optimizer, "step": step}
                _save(fabric, checkpoint, state)
            if step % config.log_every == 0 or "named" in line:
                log.write(json.dumps({key: round(value, 4) for key, value in line.items()}) + "\n")
                log.flush()
    return metrics


def _step(fabric, model, average, optimizer, batch, frame, step: int, config: TrainConfig) -> dict[str, float]:
    model.train()
    freeze_norms(model)
    scale = learning_rate_scale(step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale
    visual, audio = model(batch["views"], batch["sound"])
    terms = loss_terms(visual, audio, batch, frame, config)
    clustering_weight = config.clustering_weight if step >= config.align_steps else 0.0
    gates = terms["visual_gates"] + terms["audio_gates"]
    loss = terms["visual"] + terms["audio"] + config.gate_weight * gates + clustering_weight * terms["clustering"]
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=2.0)
    optimizer.step()
    average.update_parameters(model)
    return {"loss": loss.item(), **{key: value.item() for key, value in terms.items()}}


if __name__ == "__main__":
    import tyro

    print(train(tyro.cli(TrainConfig)))
