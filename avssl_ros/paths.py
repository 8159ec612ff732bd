"""Where the files that ship beside the code lie: models, the demo scene.

They are data files, installed to `share/avssl_ros` of whatever prefix holds the package: a virtual environment, a
user's ~/.local, a colcon workspace, /opt/ros. That folder is found by walking up from the package itself, so neither
ament nor pip has to be asked, and two installations never read each other's models.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped_models() -> Path:
    """Folder of the shipped models (`manifest.json` and the ONNX files). Raises FileNotFoundError."""
    return _shipped("models", "manifest.json")


def demo_scene() -> Path:
    """Folder of the demo scene: `scene.mp4` and its truth `scene.json`. Raises FileNotFoundError."""
    return _shipped("demo", "scene.json")


def _shipped(folder: str, marker: str) -> Path:
    """The first folder that holds `marker`: the source tree's own, else share/avssl_ros of an enclosing prefix.

    The source tree comes first: a copy installed earlier grows stale as the models are retrained.
    """
    candidates = []
    if (PACKAGE.parent / "package.xml").is_file():
        candidates.append(PACKAGE.parent / folder)
    prefixes = [*PACKAGE.parents, Path(sys.prefix)]
    candidates += [prefix / "share" / "avssl_ros" / folder for prefix in prefixes]
    for candidate in candidates:
        if (candidate / marker).is_file():
            return candidate
    raise FileNotFoundError(
        f"{folder}/{marker} of avssl_ros was not found in {candidates[0]} nor in share/avssl_ros of "
        f"{PACKAGE.parent} or a folder above it: install the package again (pip install . or colcon build)"
    )
