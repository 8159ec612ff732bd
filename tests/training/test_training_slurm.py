"""The sbatch template, run by bash with stand-ins for Slurm's two programs: no Slurm was at hand to try it for real."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.train
ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "training" / "slurm.sbatch"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The template on one "node" of two "GPUs"; `srun` starts its command here, `torchrun` only prints what it got."""
    programs = folder / "bin"
    programs.mkdir()
    srun = 'echo "$SRUN_CPUS_PER_TASK cores" >&2; exec "$@"'
    for name, text in (("srun", srun), ("scontrol", "printf 'node1\\nnode2\\n'"), ("torchrun", 'echo "$@"')):
        path = programs / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "VENV": str(folder),
             "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "16", "SLURM_MEM_PER_NODE": "65536"}
    path = f"{programs}:{os.environ['PATH']}"
    return subprocess.run(["bash", TEMPLATE, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60,
                          env={"PATH": path, "SLURM_TMPDIR": str(folder / "scratch"), **slurm, **environment})


def test_torchrun_gets_nodes_ranks_meeting_point_and_a_configuration_that_train_takes(tmp_path):
    pytest.importorskip("torch")
    from torch.distributed.run import get_args_parser

    from training.train import read_configuration

    result = run(tmp_path, "--steps", "9", SHARDS="/network/shards", RUN="runs/web")
    assert result.returncode == 0, result.stderr
    assert "16 cores" in result.stderr  # which srun does not take from the job itself
    words = result.stdout.split()
    place = words.index("training/train.py")
    # As torchrun itself reads it: it takes --run for --run-path where nothing says that its own options have ended.
    taken = get_args_parser().parse_args(words)
    assert (taken.training_script, taken.training_script_args) == ("training/train.py", words[place + 1:])
    launcher = dict(zip(words[0:place:2], words[1:place:2]))
    assert launcher == {"--nnodes": "2", "--nproc-per-node": "2", "--rdzv-id": "7", "--rdzv-backend": "c10d",
                        "--rdzv-endpoint": "node1:29500"}
    config = read_configuration(words[place + 1:])
    assert (config.steps, config.workers, config.clips.memory_gb) == (9, 8, 32.0)
    assert config.clips.shards == Path("/network/shards") and config.clips.disk == tmp_path / "scratch"


def test_what_is_missing_is_named(tmp_path):
    result = run(tmp_path, RUN="runs/web")
    assert result.returncode != 0 and "SHARDS" in result.stderr


def test_slurm_would_read_its_options():
    lines = TEMPLATE.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert options and all(lines.index(line) < first_command for line in options)
