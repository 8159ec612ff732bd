"""Files that are there whole or not at all, whatever instant a process is killed in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def as_json(value: Any) -> str:
    """The text of a file that people read as well; what JSON has no form for, as paths, as text."""
    return json.dumps(value, indent=1, default=str) + "\n"


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes or replaces a file; one that is there stays as it was until the new one is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)
