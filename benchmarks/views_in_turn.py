"""All views of every image, or one in turn: what it costs and what is lost where things move.

    python benchmarks/views_in_turn.py [--scenes 12] [--json FILE]      (make bench-views)

A composited panorama of the test split with one of four objects sounding turns about the robot at a steady speed, at
--rate images a second, and a stream (LocalizerStream) follows it. Columns: milliseconds an image, median and p95,
decode not counted; how often each view is refreshed at --rate; of the images after the first second, the share with a
source within 20 degrees of the object, and the median error of those that have one.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from avssl_ros import Localizer, features
from avssl_ros.geometry import angle_between
from avssl_ros.paths import shipped_models
from training.evaluate import WITHIN, write_report
from training.scenes import Scene, open_scenes

SETTLING = 1.0  # seconds at the beginning that are not judged
WARMING = 5  # images at the beginning that are not timed


@dataclass(frozen=True)
class ViewsConfig:
    """What to try, on how much."""

    data: Path = Path("../shared/data")
    models: Path | None = None  # model folder; None: the shipped one
    scenes: int = 12
    seconds: float = 3.0  # of each scene
    rate: float = 30.0  # images a second
    speeds: tuple[float, ...] = (0.0, 30.0, 90.0)  # degrees a second
    views_per_frame: tuple[int, ...] = (0, 2, 1)  # 0: all
    seed: int = 4
    json: Path | None = None  # also write the figures here


def follow(localizer: Localizer, scene: Scene, config: ViewsConfig, speed: float, views: int) -> tuple[list, list]:
    """Seconds of each image; of each image after SETTLING the smallest error (radians), None without a source."""
    stream, (sounding,) = localizer.stream(views_per_frame=views), scene.sounding
    seconds, errors = [], []
    width = scene.image.shape[1]
    for index in range(int(config.seconds * config.rate)):
        now = index / config.rate
        columns = round(speed * now / 360 * width)
        image = np.roll(scene.image, -columns, axis=1)
        sound = np.roll(scene.sound, -int(now * features.SAMPLE_RATE))
        start = time.perf_counter()
        sources = stream.process(image, sound, features.SAMPLE_RATE, now).sources
        seconds.append(time.perf_counter() - start)
        azimuth = sounding.azimuth + 2 * np.pi * columns / width
        if now >= SETTLING:
            errors.append(min((float(angle_between(s.azimuth, s.elevation, azimuth, sounding.elevation))
                               for s in sources), default=None))
    return seconds[WARMING:], errors


def main(config: ViewsConfig) -> dict:
    """Prints the table and returns the figures."""
    localizer = Localizer(config.models or shipped_models())
    generator = open_scenes(config.data, "test", config.seed)
    taken = {(speed, views): ([], []) for speed in config.speeds for views in config.views_per_frame}
    for index in tqdm(range(config.scenes), unit="scene"):
        scene = generator.scene(index, 1)
        for (speed, views), (seconds, errors) in taken.items():
            for all_, new in zip((seconds, errors), follow(localizer, scene, config, speed, views)):
                all_ += new
    print(f"{config.scenes} generated scenes of {config.seconds:g} s at {config.rate:g} images a second, one of "
          f"{generator.visible} objects sounding, the panorama turning\n"
          f"{'speed':>10}{'views':>7}{'ms':>8}{'p95':>8}{'view Hz':>9}{'found':>8}{'error':>8}")
    rows = []
    for (speed, views), (seconds, errors) in taken.items():
        near = [error for error in errors if error is not None and error <= WITHIN]
        row = {"speed_deg_s": speed, "views_per_frame": views or len(localizer.layout),
               "median_ms": 1e3 * float(np.median(seconds)), "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
               "view_hz": config.rate * (views or len(localizer.layout)) / len(localizer.layout),
               "found": len(near) / len(errors), "median_error_deg": float(np.degrees(np.median(near or [np.pi])))}
        rows.append(row)
        print(f"{speed:>6g} °/s{row['views_per_frame']:>7}{row['median_ms']:>8.1f}{row['p95_ms']:>8.1f}"
              f"{row['view_hz']:>9.1f}{row['found']:>8.0%}{row['median_error_deg']:>7.1f}°")
    report = {"rate": config.rate, "scenes": config.scenes, "seed": config.seed, "rows": rows}
    generator.collection.close()
    write_report(report, config.json)
    return report


if __name__ == "__main__":
    import tyro

    main(tyro.cli(ViewsConfig, description=__doc__))
