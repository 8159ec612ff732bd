"""Run by test_training_ddp.py, by torchrun or alone: the gradients of one training step on a made-up batch.

    ddp_gradients.py OUTPUT SCENES      each process takes its share of the SCENES scenes
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from training.losses import BACKGROUND, IGNORE
from training.networks import freeze_norms, prototypes
from training.train import Encoders, TrainConfig, loss_terms, make_fabric, means_over_ranks, total_loss

DIMENSIONS, CONCEPTS = 16, 9


def made_up_batch(scenes: int) -> dict[str, torch.Tensor]:
    """Scenes with different numbers of objects, so that the ranks' counts differ."""
    rng = np.random.default_rng(0)
    view_owner = rng.choice([BACKGROUND, IGNORE, 0, 1], (scenes, 2, 4, 4))
    view_concept = rng.integers(0, CONCEPTS, (scenes, 2, 3))
    view_concept[0, :, 1:] = IGNORE
    view_owner[0] = np.where(view_owner[0] == 1, BACKGROUND, view_owner[0])
    view_concept[:, :, 2] = IGNORE
    sound_concept = rng.integers(0, CONCEPTS, (scenes, 3, 2))
    sound_concept[-1, 1:] = IGNORE
    sound_owner = rng.choice([BACKGROUND, 0, 1], (scenes, 3, 8, 7))
    sound_owner[-1, 1:] = BACKGROUND
    arrays = {
        "views": rng.integers(0, 256, (scenes, 2, 64, 64, 3)).astype(np.uint8), "view_owner": view_owner,
        "view_concept": view_concept, "sound": rng.standard_normal((scenes, 3, 128, 100)).astype(np.float32),
        "sound_owner": sound_owner, "sound_concept": sound_concept,
    }  # fmt: skip
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def main(output: Path, scenes: int) -> None:
    torch.set_num_threads(1)
    config = TrainConfig(accelerator="cpu", precision="32-true", run=output.parent)
    fabric = make_fabric(config)
    torch.manual_seed(0)
    model = fabric.setup(Encoders(DIMENSIONS))
    freeze_norms(model)
    rank, ranks = fabric.global_rank, fabric.world_size
    share = slice(rank * scenes // ranks, (rank + 1) * scenes // ranks)
    batch = {key: value[share] for key, value in made_up_batch(scenes).items()}
    frame = prototypes(CONCEPTS, DIMENSIONS)
    visual, audio = model(batch["views"], batch["sound"])
    terms = means_over_ranks(fabric, loss_terms(visual, audio, batch, frame, config))
    fabric.backward(total_loss(terms, config.align_steps, config))
    if fabric.is_global_zero:
        torch.save({n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
