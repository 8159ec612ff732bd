"""How much memory this process holds, and held at most since it was last asked to forget (Linux)."""

from __future__ import annotations

from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _field(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def peak() -> int:
    """Bytes held at most since `forget_peak`."""
    return _field("VmHWM")


def held() -> int:
    """Bytes held now."""
    return _field("VmRSS")


def forget_peak() -> int:
    """From now on `peak` tells of what comes; returns the bytes held now."""
    CLEAR.write_text("5")  # proc(5)
    return held()
