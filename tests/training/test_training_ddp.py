"""Two ranks under torchrun (gloo) compute what one process computes on the doubled batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.train
SCRIPT = Path(__file__).with_name("ddp_gradients.py")


def gradients(output: Path, *launcher: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(SCRIPT), str(output), "4"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(output, weights_only=True)


def test_two_ranks_have_the_gradients_of_one_process_with_the_doubled_batch(tmp_path):
    alone = gradients(tmp_path / "alone.pt")
    shared = gradients(tmp_path / "shared.pt", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert alone.keys() == shared.keys() and len(alone) > 150
    for name, expected in alone.items():
        largest = float(expected.abs().max())
        assert torch.allclose(shared[name], expected, rtol=1e-3, atol=1e-4 * largest + 1e-9), name
    assert max(float(value.abs().max()) for value in alone.values()) > 1e-3
