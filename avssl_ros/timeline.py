"""timeline.png: where each source was over time, when nothing sounded, and what was heard but not in view.

    draw_timeline(lines, "timeline.png")      # lines: the objects of sources.jsonl

One colour and name per source, the same colour as in the overlay. A line stops where the source is silent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from avssl_ros.overlay import source_color

MAX_LEGEND = 16
MAX_UNSEEN = 6
QUIET = "0.93"


def draw_timeline(lines: list[dict], path: str | Path, title: str = "") -> None:
    """Draw the lines of a sources.jsonl, dicts in order of time, to a PNG file. Without lines the axes are empty."""
    times = np.array([line["time"] or 0.0 for line in lines], float)
    step = float(np.median(np.diff(times)) if len(times) > 1 else 0.0) or 1.0
    unseen = _spans_by_label(lines, times, step)
    figure = Figure(figsize=(12, 5.2 + 0.3 * len(unseen)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(
        2, 1, sharex=True, height_ratios=[5.0, 0.35 * max(1, len(unseen))], gridspec_kw={"hspace": 0.04}
    )
    _draw_sources(upper, lines, times)
    _draw_unseen(lower, unseen)
    for axes in (upper, lower):
        for start, length in _spans(times, [not line["active"] for line in lines], step):
            axes.axvspan(start, start + length, color=QUIET, zorder=0, lw=0)
    if len(times):
        lower.set_xlim(times[0], times[-1] + step)
    upper.set_title(title or "sound sources over time", loc="left", fontsize=11)
    upper.set_title("grey: nothing sounds", loc="right", fontsize=9, color="0.4")
    figure.savefig(path)


def source_names(lines: list[dict]) -> dict[int, str]:
    """Id -> the label it was given most often, for every source in order of first appearance."""
    labels: dict[int, Counter] = defaultdict(Counter)
    for line in lines:
        for source in line["sources"]:
            labels[source["id"] or 0][source["label"]] += 1
    return {identity: counts.most_common(1)[0][0] for identity, counts in labels.items()}


def _draw_sources(axes: Axes, lines: list[dict], times: np.ndarray) -> None:
    names = source_names(lines)
    lasting = Counter(source["id"] or 0 for line in lines for source in line["sources"])
    named = {identity for identity, _ in lasting.most_common(MAX_LEGEND)}
    for identity, name in names.items():
        seen = [
            (index, source["azimuth_deg"])
            for index, line in enumerate(lines)
            for source in line["sources"]
            if (source["id"] or 0) == identity
        ]
        frames, azimuths = np.array([index for index, _ in seen]), np.array([azimuth for _, azimuth in seen], float)
        color = np.array(source_color(identity)) / 255
        label = f"#{identity} {name}" if identity in named else None
        axes.plot(*_broken_line(frames, times[frames], azimuths), color=color, lw=2.2, marker="o", ms=2.5, label=label)
    if names:
        hidden = len(names) - len(named)
        heading = f"{len(names)} sources, {hidden} short ones unnamed" if hidden > 0 else None
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, title=heading)
    else:
        axes.text(0.5, 0.5, "no source in view", transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set_ylim(-180, 180)
    axes.set_yticks(range(-180, 181, 45))
    axes.set_yticklabels(["180 behind", "-135", "-90 right", "-45", "0 ahead", "45", "90 left", "135", "180 behind"])
    axes.set_ylabel("azimuth (degrees)")
    axes.grid(axis="y", color="0.85", lw=0.7)


def _broken_line(frames: np.ndarray, times: np.ndarray, azimuths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times and azimuths (n,), with NaN between those that are not of successive localized frames, whose indices are
    `frames` (n,), or are across the seam."""
    apart = np.flatnonzero((np.diff(frames) > 1) | (np.abs(np.diff(azimuths)) > 180)) + 1
    return np.insert(times, apart, np.nan), np.insert(azimuths, apart, np.nan)


def _draw_unseen(axes: Axes, unseen: dict[str, list[tuple[float, float]]]) -> None:
    for row, spans in enumerate(unseen.values()):
        axes.broken_barh(spans, (row - 0.35, 0.7), color="0.35")
    axes.set_yticks(range(len(unseen)), list(unseen))
    axes.set_ylim(max(1, len(unseen)) - 0.5, -0.5)
    if not unseen:
        axes.text(0.5, 0.5, "nothing", transform=axes.transAxes, ha="center", va="center", color="0.4", fontsize=9)
    axes.set_ylabel("heard,\nnot in view", rotation=0, ha="right", va="center", fontsize=9)
    axes.set_xlabel("time (s)")


def _spans_by_label(lines: list[dict], times: np.ndarray, step: float) -> dict[str, list[tuple[float, float]]]:
    """Label -> when it was heard without being in view, for the labels heard longest."""
    heard = [{sound["label"] for sound in line["unseen"]} for line in lines]
    counts = Counter(label for labels in heard for label in labels)
    return {
        label: _spans(times, [label in labels for labels in heard], step) for label, _ in counts.most_common(MAX_UNSEEN)
    }


def _spans(times: np.ndarray, inside: list[bool], step: float) -> list[tuple[float, float]]:
    """(start, length) in seconds of each run of frames that are inside; a frame lasts one step."""
    edges = np.diff(np.concatenate([[0], np.asarray(inside, int), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(times[start], times[end - 1] + step - times[start]) for start, end in zip(starts, ends, strict=True)]
