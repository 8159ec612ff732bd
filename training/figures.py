"""Draws what the embedding looks like, after the two figures of the research report that this project follows.

    python training/figures.py --output docs/figures                           # of the demo scene, as in the README
    python training/figures.py --video walk360.mp4 --time 12.5 --output out    # views of a recording of your own

mosaic.png   four things in one picture and three sounds: picture, embedding as colours, clusters; and the embeddings of
             image patches and of the sounds' time-frequency patches in the plane (t-SNE), coloured by what they truly
             belong to, and by the colours of the embedding
views.png    the four views of a 360 degree image, their embeddings, the map of what sounds on each, and all of it fused

The mosaic is of the shipped demo scene (a composite, demo/LICENSES.md). Needs no torch training, only the models.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from avssl_ros import Localizer, features
from avssl_ros.audio_input import read_audio
from avssl_ros.clustering import dp_means
from avssl_ros.geometry import ViewLayout, cut_views
from avssl_ros.overlay import PALETTE, draw, source_color
from avssl_ros.paths import demo_scene
from avssl_ros.video_input import VideoFile
from training.pictures import embedding_colours

TILE, TILE_FOV = 224, 50.0  # pixels and degrees of one thing of the mosaic
LABELLED = "sheep", "person", "dog", "rooster"  # of the demo scene; the last one is silent
OPEN = 0.3  # gate from which a patch is drawn in the plane


@dataclass(frozen=True)
class FiguresConfig:
    """What to draw, and where to."""

    output: Path = Path("docs/figures")
    models: Path | None = None  # model folder; None: the shipped one
    video: Path | None = None  # 360 degree recording with sound for views.png; None: the demo scene
    time: float = 13.0  # seconds of the video
    seed: int = 0  # of the t-SNE


def frame_at(video: Path, seconds: float) -> np.ndarray:
    """The first frame at or after a time, RGB uint8. Raises ValueError where the video is shorter."""
    for time, image in VideoFile(video):
        if time >= seconds:
            return image
    raise ValueError(f"{video} ends before {seconds} s; give a smaller --time")


def sound_until(video: Path, seconds: float, length: float) -> np.ndarray:
    """The `length` seconds of sound that end at a time, float32 at the model's rate."""
    samples = features.as_mono(*read_audio(video))
    end = round(seconds * features.SAMPLE_RATE)
    return samples[max(0, end - round(length * features.SAMPLE_RATE)):end]


def hear(localizer: Localizer, sound: np.ndarray) -> np.ndarray:
    """Embeddings (Q, D) of the time-frequency patches of a sound."""
    return localizer.encoders.audio(features.log_mel(sound)[None])[0].reshape(-1, localizer.encoders.dimensions)


def clusters_of(localizer: Localizer, patches: np.ndarray) -> np.ndarray:
    """Cluster (N,) of each patch (N, D), found as those of a sound are; -1 where its gate is shut."""
    gate = np.linalg.norm(patches, axis=1)
    member, taking_part = np.full(len(patches), -1), gate > localizer.decision["audio_gate"]
    if taking_part.any():
        unit = patches[taking_part] / gate[taking_part, None]
        member[taking_part] = dp_means(unit, gate[taking_part], localizer.decision["same_cosine"])[1]
    return member


def cluster_colours(member: np.ndarray) -> np.ndarray:
    """RGB uint8 (N, 3): the largest clusters in colours of their own, smaller ones grey, black for -1."""
    colours = np.zeros((len(member), 3), np.uint8)
    found, size = np.unique(member[member >= 0], return_counts=True)
    for rank, cluster in enumerate(found[np.argsort(-size)]):
        colours[member == cluster] = source_color(rank) if rank < len(PALETTE) else (110, 110, 110)
    return colours


def mosaic(localizer: Localizer, seed: int) -> Figure:
    """mosaic.png, see the top of this file."""
    folder = demo_scene()
    scene, video = json.loads((folder / "scene.json").read_text()), folder / "scene.mp4"
    placed = {thing["name"]: thing for thing in (*scene["sounding"], *scene["silent"])}
    things = [placed[name] for name in LABELLED]
    layout = ViewLayout(tuple(t["azimuth_deg"] for t in things), -8.0, TILE_FOV, TILE_FOV)
    tiles = cut_views(frame_at(video, 0.0), layout, (TILE, TILE))
    picture = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    seen = localizer.encoders.visual(picture[None])[0]
    side, dimensions = len(seen), seen.shape[-1]
    rows, columns = np.mgrid[:side, :side] * 2 // side
    seen, owner = seen.reshape(-1, dimensions), (2 * rows + columns).ravel()
    sounds = [hear(localizer, sound_until(video, t["to"], min(t["to"] - t["from"], localizer.window_seconds)))
              for t in things if "to" in t]
    patches = np.concatenate([seen, *sounds])
    truth = np.concatenate([owner, np.repeat(np.arange(len(sounds)), [len(s) for s in sounds])])
    colours, member = embedding_colours(patches), clusters_of(localizer, patches)

    figure = Figure(figsize=(13, 8.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    image = (side, side, 3)
    for axes, shown, title in zip(above.subplots(1, 3), (picture, colours[:len(seen)].reshape(image),
                                  cluster_colours(member[:len(seen)]).reshape(image)),
                                  ("picture", "embedding of its patches as colours", "clusters")):
        axes.imshow(shown)
        axes.set_title(title)
        axes.set_axis_off()
    is_open = np.linalg.norm(patches, axis=1) > OPEN
    plane = TSNE(2, perplexity=30, metric="cosine", init="pca", random_state=seed).fit_transform(patches[is_open])
    is_seen = (np.arange(len(patches)) < len(seen))[is_open]
    by_truth = np.array([source_color(int(t)) for t in truth])[is_open] / 255
    for axes, colour, title in zip(below.subplots(1, 2), (by_truth, colours[is_open] / 255),
                                   ("by what they truly belong to", "in the colours of the embedding")):
        axes.scatter(*plane[is_seen].T, c=colour[is_seen], s=22, edgecolors="0.5", linewidths=0.3)
        axes.scatter(*plane[~is_seen].T, c=colour[~is_seen], s=60, marker="^", edgecolors="k", linewidths=0.5)
        axes.set(xticks=[], yticks=[], title=f"t-SNE, {title}")
    for index, name in enumerate(LABELLED):
        label = name if index < len(sounds) else f"{name} (silent)"
        below.axes[0].scatter([], [], color=np.array(source_color(index)) / 255, label=label)
    below.axes[0].scatter([], [], color="0.6", marker="^", edgecolors="k", label="sound (circles: image)")
    below.axes[0].legend(loc="best")
    return figure


def views(localizer: Localizer, video: Path, seconds: float) -> Figure:
    """views.png, see the top of this file. The clusters' colours are the same in all views."""
    image, sound = frame_at(video, seconds), sound_until(video, seconds, localizer.window_seconds)
    scene = localizer.localize(image, sound, features.SAMPLE_RATE)
    cut, _ = localizer.cut(image, "equirectangular")
    seen = localizer.encoders.visual(cut)
    shape, patches = (*seen.shape[:3], 3), seen.reshape(-1, seen.shape[-1])
    on_views = cut_views(np.repeat(scene.map[..., None], 3, 2), localizer.layout, cut.shape[1:3])[..., 0]
    lit = [draw_heat(view, values) for view, values in zip(cut, on_views)]
    rows = (("view", cut), ("embedding", embedding_colours(patches).reshape(shape)),
            ("clusters", cluster_colours(clusters_of(localizer, patches)).reshape(shape)), ("what sounds", lit))
    figure = Figure(figsize=(13, 12.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    for line, (title, pictures) in zip(above.subplots(len(rows), len(cut)), rows):
        for axes, shown, azimuth in zip(line, pictures, localizer.layout.azimuths_deg):
            axes.imshow(shown)
            axes.set(xticks=[], yticks=[])
            if title == "view":
                axes.set_title(f"{azimuth:.0f} degrees")
        line[0].set_ylabel(title)
    axes = below.subplots()
    axes.imshow(draw(image, scene))
    told = ", ".join(f"{s.label} at {np.degrees(s.azimuth):.0f} degrees, {s.confidence:.0%}" for s in scene.sources)
    axes.set_title("fused: " + (told or "nothing in view sounds"))
    axes.set_axis_off()
    return figure


def draw_heat(view: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A view (H, W, 3) uint8 with a map (H, W) in [0, 1] over it."""
    level = np.clip(values, 0, 1).astype(np.float32)[..., None]
    heat = cv2.cvtColor(cv2.applyColorMap((255 * level[..., 0]).astype(np.uint8), cv2.COLORMAP_INFERNO),
                        cv2.COLOR_BGR2RGB)
    return (view * (0.55 - 0.3 * level) + heat * 0.75 * level).clip(0, 255).astype(np.uint8)


def main(config: FiguresConfig) -> None:
    """Draws both figures into the output folder."""
    localizer = Localizer(config.models)
    config.output.mkdir(parents=True, exist_ok=True)
    for name, figure in (("mosaic", mosaic(localizer, config.seed)),
                         ("views", views(localizer, config.video or demo_scene() / "scene.mp4", config.time))):
        figure.savefig(config.output / f"{name}.png", dpi=80)
        print(f"wrote {config.output / name}.png")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(FiguresConfig, description=__doc__))
