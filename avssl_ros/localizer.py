"""The whole system without ROS: an image and a sound to sources, and a stream of them to tracks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import cv2
import numpy as np

from avssl_ros import blas, features, fusion
from avssl_ros.clustering import Cluster, cluster
from avssl_ros.encoders import Encoders
from avssl_ros.geometry import (
    SphereGrid,
    ViewLayout,
    angle_between,
    cut_views,
    perspective_pixel_to_direction,
    pixel_to_direction,
    sphere_grid,
)
from avssl_ros.noise import NoiseProfile
from avssl_ros.scene import Event, Localization, Source, Unseen
from avssl_ros.tracking import HeardTracker, Tracker, TrackingConfig, surest_by_class

MAP_WIDTH = 256  # of the equirectangular map, cells of 1.4 degrees
PROJECTIONS = ("equirectangular", "perspective")
PATCH_SECONDS = features.PATCH * features.HOP / features.SAMPLE_RATE
RECENT_SECONDS = 0.5  # of the window decide what sounds now in a stream; the rest is context for the encoder
RECENT_SHARE = 0.3  # of that a sound needs: in so few patches strays weigh more than in a whole window
# A panorama this many times as wide as a view is as fine as those that the model was measured on: of 120 validation
# scenes, seen in perspective views, 79 % were right at 4.4 and 74 % at 3.3.
PIXELS_PER_VIEW_PIXEL = 4.4
CLOSE_FOV_DEG = 60.0  # across a closer view: two thirds more pixels for each degree than in a view of 100
CLOSE_STEP_DEG = 22.5  # between directions that it can be aimed at: whole cells of the map, 16 of them
CLOSER_VIEWS = 4  # at most, of a single image; a frame of a stream gets one
CLOSER_APART_DEG = 45.0  # at least, between them: what is nearer to the middle of one is well in it
CLOSER_ROUNDS = 4  # of `fusion.explain` whose candidates get closer views
LARGEST_TIME_STEP = 10.0  # seconds; a later frame than that starts the tracks afresh


Hearing = Callable[[], list[Cluster] | None]  # gives what `Localizer.hear` does, or raises what it and `as_mono` do


class Localizer:
    """Finds what sounds, and where.

    Args:
        models: model folder; None for the shipped models.
        providers: ONNX Runtime provider name(s); None chooses CUDA or TensorRT where present, else the CPU.
        threads: CPU threads of the networks; None takes all there are.
        layout: views cut from an equirectangular image; None for four at 0, 90, 180 and 270 degrees.
        fov_deg: horizontal field of view of images with projection="perspective", degrees, 20..160.
        view_size: pixels of a view's width, a multiple of 32 from 64 to 1024; None for the model's own. A larger one
            finds smaller things and costs more time.

    Attributes:
        noise: what is always there (noise.py) and therefore not heard; None, as it begins, for nothing.

    Raises:
        FileNotFoundError, ValueError: a missing or altered model, an unknown provider, values out of range.
    """

    def __init__(self, models=None, providers=None, threads=None, layout: ViewLayout | None = None, fov_deg=90.0,
                 view_size: int | None = None):
        check_views(fov_deg, view_size)
        self.encoders = Encoders(models, providers, threads)
        self.manifest = self.encoders.manifest
        self.providers = self.encoders.providers
        self.labels = tuple(self.manifest["labels"])
        self.window_seconds: float = self.manifest["audio"]["seconds"]
        self.sample_rate: int = features.SAMPLE_RATE
        self.layout = layout or ViewLayout()
        self.view_size = view_size or self.encoders.size
        self.fov_deg = float(fov_deg)
        self.prototypes = np.asarray(self.manifest["prototypes"], dtype=np.float32)
        self.decision = self.manifest["decision"]
        self.noise: NoiseProfile | None = None
        number = {label: index for index, label in enumerate(self.labels)}
        self.made_by = {number[heard]: [number[label] for label in seen]
                        for heard, seen in self.manifest["made_by"].items()}

    def with_views(self, layout: ViewLayout | None = None, fov_deg=90.0, view_size: int | None = None) -> Localizer:
        """The same models with other views; arguments and errors as of `Localizer`. Takes no time."""
        check_views(fov_deg, view_size)
        other = copy.copy(self)
        other.layout, other.fov_deg = layout or ViewLayout(), float(fov_deg)
        other.view_size = view_size or self.encoders.size
        return other

    def useful_width(self, projection: str) -> int:
        """Pixels across of an image beyond which nothing is gained; a decoder may leave out what is finer."""
        return round(PIXELS_PER_VIEW_PIXEL * self.view_size) if projection == "equirectangular" else 4 * self.view_size

    def localize(self, image, audio, sample_rate, projection: str = "equirectangular") -> Localization:
        """Sources in one image with the sound that belongs to it; no state is kept. Looks twice, see `look_closer`.

        Args:
            image: RGB uint8 (H, W, 3); equirectangular images are twice as wide as high.
            audio: mono float32 (n,) in [-1, 1] (int16 and channels are accepted); the last `window_seconds` count.
            sample_rate: of the audio, 4 kHz to 192 kHz.
            projection: "equirectangular", or "perspective" for an ordinary image as one view along azimuth 0.

        Raises:
            ValueError: an image or sound that is not of this kind; the text says what was got and what is wanted.
        """
        with blas.one_thread():
            scene = self._localize(image, audio, sample_rate, projection, self.decision["publish"], recent=None)
        return replace(scene, sources=tuple(sorted(scene.sources, key=lambda source: -source.confidence)),
                       unseen=surest_by_class(sound for sound in scene.unseen if not sound.doubtful))  # fmt: skip

    def stream(self, projection: str = "equirectangular", views_per_frame: int = 0, look_closer: bool = True,
               **tracking) -> LocalizerStream:  # fmt: skip
        """A stream with identities, onsets and offsets.

        Args:
            projection: as of `localize`.
            views_per_frame: how many views are looked at anew in each frame, in turn; 0 for all. With fewer, a frame
                costs less and the others' embeddings are some frames old: for cameras faster than the machine.
            look_closer: whether an equirectangular frame gets one more, closer view, see CloserLook.
            tracking: the fields of TrackingConfig.
        """
        _check_projection(projection)
        self.check_views_per_frame(views_per_frame)
        see, closer = ViewsInTurn(self.encoders, views_per_frame), CloserLook() if look_closer else None
        return LocalizerStream(self, projection, TrackingConfig(**tracking), see, closer)

    def check_views_per_frame(self, views_per_frame: int) -> None:
        """ValueError where there are not so many views."""
        if not 0 <= views_per_frame <= len(self.layout):
            raise ValueError(f"views_per_frame must be 0..{len(self.layout)}, got {views_per_frame}")

    def _localize(self, image, audio, sample_rate, projection, publish, recent: float | None,
                  see: ViewsInTurn | None = None, closer: CloserLook | None = None) -> Localization:  # fmt: skip
        def hear() -> list[Cluster] | None:
            return self.hear(features.as_mono(audio, sample_rate, centred=True), recent)

        return self._look(image, hear, projection, publish, recent, see, closer)

    def _look(self, image, heard: Hearing, projection, publish, recent: float | None,
              see: ViewsInTurn | None = None, closer: CloserLook | None = None) -> Localization:  # fmt: skip
        _check_projection(projection)
        image = check_image(image, projection)
        views, surface = self.cut(image, projection, closer.azimuths if closer else ())
        clusters = heard()  # before BLAS is held to one thread: who hears in another thread does that as well
        if clusters is None:
            return Localization((), np.zeros(surface.shape, np.float32), (), active=False)
        with blas.one_thread():
            # A closer view is of what the last frame said, and takes no turns.
            visual = see(views, max(0, len(views) - len(self.layout))) if see else self.encoders.visual(views)
            visual = visual.reshape(-1, self.encoders.dimensions)
            if recent is None and projection == "equirectangular":
                visual, surface = self.look_closer(image, clusters, visual, surface)
            return self._scene(clusters, visual, surface, publish, recent, closer)

    def look_closer(self, image: np.ndarray, clusters: list[Cluster], visual: np.ndarray,
                    surface: fusion.Surface) -> tuple[np.ndarray, fusion.Surface]:  # fmt: skip
        """A second look at a single equirectangular image, with closer views of what may sound in it, sure or not.

        Args:
            clusters: what is heard. visual: (P, D) embeddings of the views of the layout. surface: that of their maps.

        Returns:
            The embeddings with those of the closer views after them, and the surface of the maps of all of them.
        """
        if not clusters or self.layout.fov_deg <= CLOSE_FOV_DEG:
            return visual, surface
        explained = fusion.explain(visual, clusters, self.prototypes, surface, self.made_by)
        found = [[candidate.region.azimuth for candidate in rest] for _, rest in islice(explained, CLOSER_ROUNDS)]
        # What is likeliest of every sound before what else may make it.
        aims = closer_azimuths([*(azimuths[0] for azimuths in found), *(a for azimuths in found for a in azimuths[1:])])
        if not aims:
            return visual, surface
        shape, close = _view_shapes(self.layout, self.view_size)
        views = np.empty((len(aims), *shape, 3), np.uint8)
        _cut_closer(image, close, aims, views)
        closer = self.encoders.visual(views).reshape(-1, self.encoders.dimensions)
        return np.concatenate([visual, closer]), self._sphere(aims)

    def _scene(self, clusters: list[Cluster], visual: np.ndarray, surface: fusion.Surface, publish: float,
               recent: float | None, closer: CloserLook | None) -> Localization:  # fmt: skip
        model = self.decision["source" if recent is None else "stream"]
        sources, heard = self._sources(clusters, visual, surface, publish, model, closer)
        in_view = {id(sound) for sound in heard}
        unseen = [replace(found, doubtful=id(sound) in in_view) for sound in clusters for found in self._unseen(sound)]
        sources = _without_doubles(sources)
        maps = [source.map for source in sources]
        joint = np.max(maps, axis=0) if maps else np.zeros(surface.shape, np.float32)
        return Localization(tuple(sources), joint, tuple(unseen), active=True)

    def cut(self, image: np.ndarray, projection: str,
            closer: tuple[float, ...] = ()) -> tuple[np.ndarray, fusion.Surface]:  # fmt: skip
        """The views (N, H, W, 3) uint8 that the network sees of a checked image, and the surface of their maps.

        Args:
            closer: azimuths in degrees of closer views after those of the layout, where these are wider.
        """
        if projection == "equirectangular":
            shape, close = _view_shapes(self.layout, self.view_size)
            closer = closer if self.layout.fov_deg > CLOSE_FOV_DEG else ()
            views = np.empty((len(self.layout) + len(closer), *shape, 3), np.uint8)  # all of them, without a copy
            cut_views(image, self.layout, shape, out=views[: len(self.layout)])
            _cut_closer(image, close, closer, views[len(self.layout) :])
            return views, self._sphere(closer)
        view, stride = fit_to_network(image, self.view_size), self.encoders.stride
        rows, columns = view.shape[0] // stride, view.shape[1] // stride
        return view[None], plane_surface(rows, columns, image.shape[0] / image.shape[1], self.fov_deg)

    def _sphere(self, closer: tuple[float, ...]) -> fusion.Surface:
        """The surface of the maps of the views of the layout and of closer ones at these azimuths in degrees."""
        shape, close = _view_shapes(self.layout, self.view_size)
        patches = shape[0] // self.encoders.stride, shape[1] // self.encoders.stride
        return closer_surface(self.layout, close, patches, closer) if closer else sphere_surface(self.layout, patches)

    def hear(self, samples: np.ndarray, recent: float | None = None) -> list[Cluster] | None:
        """What sounds, apart from where: clusters of the sound's embeddings; None with nothing above floor and noise.

        Args:
            samples: (n,) float32 at features.SAMPLE_RATE.
            recent: seconds at the end of the window that decide what sounds now; None for all of it.
        """
        window = int(self.window_seconds * features.SAMPLE_RATE)
        samples = samples[-window:]
        judged = samples if recent is None else samples[-int(recent * features.SAMPLE_RATE) :]
        if features.loudest_block_db(judged) < self.decision["level_floor_db"]:
            return None
        power = features.mel_power(np.pad(samples, (window - len(samples), 0)))
        weight, decision = audible(features.patch_power(power)), self.decision
        if (noise := self.noise) is not None:  # once: it may be replaced meanwhile
            weight *= noise.stands_out(power)
        if recent is not None:
            decision = {**decision, "smallest_share": max(RECENT_SHARE, decision["smallest_share"])}
            weight[:, : -int(np.ceil(recent / PATCH_SECONDS))] = 0.0
        if not weight.any():
            return None
        audio = self.encoders.audio(features.normalised_log(power)[None])[0]
        return cluster(audio.reshape(-1, self.encoders.dimensions), weight.ravel(), self.prototypes, decision)

    def _sources(self, clusters: list[Cluster], visual: np.ndarray, surface: fusion.Surface, publish: float, model,
                 closer: CloserLook | None):  # fmt: skip
        """Sources of one moment, and the clusters that they make."""
        sources, heard = [], []
        rounds = fusion.explain(visual, clusters, self.prototypes, surface, self.made_by) if clusters else ()
        for index, (evidence, found) in enumerate(rounds):
            if closer and index == 0:
                closer.aim(found[0].region.azimuth)
            confidences = fusion.confidences([candidate.features for candidate in found], model)
            if confidences.max() < publish:  # what is heard less clearly will not be surer
                break
            for candidate, confidence in zip(found, confidences.tolist()):
                if confidence < publish:
                    continue
                region, concept = candidate.region, candidate.concept
                drawn = np.zeros(region.mask.shape, np.float32)
                drawn[region.mask] = np.clip(evidence.ravel()[region.cells] / region.peak, 0, 1) * confidence
                sources.append(Source(region.azimuth, region.elevation, region.extent, confidence, self.labels[concept],
                                      concept, candidate.sound.centroid.astype(np.float32), drawn))
                heard.append(candidate.sound)
        return sources, heard

    def _unseen(self, sound: Cluster) -> list[Unseen]:
        class_id = int(sound.concepts.argmax())
        features = fusion.unseen_features(sound)
        confidence = float(fusion.confidences([features], self.decision["unseen"])[0])
        if confidence < self.decision["publish_unseen"]:
            return []
        return [Unseen(self.labels[class_id], class_id, confidence, sound.centroid.astype(np.float32))]


class ViewsInTurn:
    """Embeddings of views of which `count` are looked at anew each time, in turn: all, where it is 0, after `forget`,
    and where they have another shape than before."""

    def __init__(self, encoders: Encoders, count: int):
        self._encoders, self._count, self._next = encoders, count, 0
        self._shape, self._seen = None, None

    def __call__(self, views: np.ndarray, always: int = 0) -> np.ndarray:
        """(N, H, W, 3) uint8 to (N, rows, columns, D), as Encoders.visual; the last `always` of them take no turns."""
        if not self._count:
            return self._encoders.visual(views)
        views, others = np.split(views, [len(views) - always])
        if views.shape != self._shape:
            seen = self._encoders.visual(np.concatenate([views, others]))
            self._shape, self._seen, self._next = views.shape, seen[: len(views)].copy(), 0
            return seen
        turn = (self._next + np.arange(min(self._count, len(views)))) % len(views)
        seen = self._encoders.visual(np.concatenate([views[turn], others]))
        self._seen[turn] = seen[: len(turn)]
        self._next = (self._next + len(turn)) % len(views)
        return np.concatenate([self._seen, seen[len(turn) :]])

    def forget(self) -> None:
        """Nothing is kept: after silence or a jump in time what was seen is too old."""
        self._shape = None


def closer_azimuths(azimuths: Iterable[float]) -> tuple[float, ...]:
    """Degrees, ascending, of up to CLOSER_VIEWS closer views for azimuths in radians, those that matter most first.

    They are rounded to CLOSE_STEP_DEG; what lies well within a view already chosen gets none of its own.
    """
    chosen: list[float] = []
    for azimuth in azimuths:
        aim = round(np.degrees(azimuth) / CLOSE_STEP_DEG) * CLOSE_STEP_DEG % 360.0
        if all(abs((aim - other + 180) % 360 - 180) >= CLOSER_APART_DEG for other in chosen):
            chosen.append(aim)
    return tuple(sorted(chosen[:CLOSER_VIEWS]))


class CloserLook:
    """Where one more view of the next frame is aimed: at what this one found likeliest to sound, sure or not.

    In a view 100 degrees wide what is small or far away is a few patches, and what stands at its edge is stretched. The
    closer view counts as much as the others where it shows something. It is of the same image as they are: only where
    to look is of the frame before, so that nothing is told that is no longer there.

    Attributes:
        azimuths: degrees, of the view's middle; none where nothing was found yet, for no closer view.
    """

    def __init__(self):
        self.azimuths: tuple[float, ...] = ()

    def aim(self, azimuth: float) -> None:
        """At an azimuth in radians, or within half of CLOSE_STEP_DEG."""
        self.azimuths = closer_azimuths([azimuth])

    def forget(self) -> None:
        """After silence something else may sound."""
        self.azimuths = ()


class LocalizerStream:
    """Frames of one camera and microphone in the order of their capture; adds id, state, onset and events."""

    def __init__(self, localizer: Localizer, projection: str, config: TrackingConfig, see: ViewsInTurn,
                 closer: CloserLook | None):  # fmt: skip
        self._localizer, self._projection, self._see, self._closer = localizer, projection, see, closer
        self._ears = ThreadPoolExecutor(1, thread_name_prefix="ears") if localizer.encoders.workers > 1 else None
        self._begun: Future | None = None  # the last hearing
        self._tracker, self._heard = Tracker(config), HeardTracker()
        self._time: float | None = None

    @property
    def config(self) -> TrackingConfig:
        return self._tracker.config

    def configure(self, **changes) -> None:
        """Changes tracking thresholds while running, all or nothing; ValueError names the range."""
        self._tracker.config = replace(self._tracker.config, **changes)

    def process(self, image, audio, sample_rate, time: float) -> Localization:
        """Like Localizer.localize for the frame captured at `time` (seconds) and the sound that ends then.

        A time that jumps back, or more than 10 s ahead, ends all tracks and starts afresh. Raises ValueError on a bad
        image or sound; the stream goes on with the next.
        """
        return self.look(image, self.hear(audio, sample_rate), time)

    def hear(self, audio, sample_rate) -> Hearing:
        """The first half of `process`: begins to hear the sound, for `look`, while the caller decodes the image.

        With `threads=1` it is heard when `look` asks. Bad sound makes `look` raise ValueError. What was begun before
        and not looked for is given up, so that images that cannot be decoded, however many, leave nothing waiting.
        """
        localizer = self._localizer

        def hear() -> list[Cluster] | None:
            with blas.one_thread():
                return localizer.hear(features.as_mono(audio, sample_rate, centred=True), RECENT_SECONDS)

        if self._ears is None:
            return hear
        if self._begun is not None:
            self._begun.cancel()
        self._begun = self._ears.submit(hear)
        return self._begun.result

    def look(self, image, heard: Hearing, time: float) -> Localization:
        """The second half of `process`: where in the image that is which `heard`, of this stream's `hear`, gives."""
        jumped = self._has_jumped(time)
        if jumped:
            self._forget_view()
        scene = self._localizer._look(image, heard, self._projection, self.config.offset_confidence, RECENT_SECONDS,
                                      self._see, self._closer)  # fmt: skip
        ended = self.silence(time) if jumped else ()  # after what may refuse the image, so that no event is lost
        self._time = time
        if not scene.active:
            self._heard.end()
            self._forget_view()
        sources, events = self._tracker.update(scene.sources, time)
        blank = np.zeros_like(scene.map)
        # A track that is not seen in this image has a blank map of the shape that the image had in which it was.
        sources = tuple(source if source.map.shape == blank.shape else replace(source, map=blank) for source in sources)
        joint = np.max([source.map for source in sources], axis=0) if sources else blank
        named = {source.class_id for source in sources}
        heard = tuple(sound for sound in scene.unseen
                      if sound.class_id not in named and not (sound.doubtful and sources))  # fmt: skip
        unseen = self._heard.update(heard, time, self.config)
        return Localization(sources, joint, unseen, scene.active, time, ended + events)

    def listen(self, audio, sample_rate, time: float) -> Localization:
        """What is heard at `time` while there is no image: no source, all of it "not in view"; ends all tracks.

        Raises ValueError on bad sound, as `process` does.
        """
        localizer = self._localizer
        samples = features.as_mono(audio, sample_rate, centred=True)
        with blas.one_thread():
            clusters = localizer.hear(samples, RECENT_SECONDS)
        heard = tuple(found for sound in clusters or () for found in localizer._unseen(sound))
        jumped, self._time = self._has_jumped(time), time
        self._forget_view()
        if clusters is None or jumped:
            self._heard.end()
        unseen = self._heard.update(heard, time, self.config)
        return Localization((), np.zeros((1, 1), np.float32), unseen, clusters is not None, time, self._tracker.end())

    def change_localizer(self, localizer: Localizer, views_per_frame: int,
                         look_closer: bool = True) -> tuple[Event, ...]:  # fmt: skip
        """Go on with the models and views of another localizer; ends all tracks and returns their offset events."""
        self._localizer = localizer
        self._see = ViewsInTurn(localizer.encoders, views_per_frame)
        self._closer = CloserLook() if look_closer else None
        self._heard.end()
        return self._tracker.end()

    def silence(self, time: float) -> tuple[Event, ...]:
        """Ends all tracks when a sensor is gone; returns their offset events."""
        self._time = time
        self._heard.end()
        self._forget_view()
        return self._tracker.end()

    def _has_jumped(self, time: float) -> bool:
        return self._time is not None and not 0.0 <= time - self._time <= LARGEST_TIME_STEP

    def _forget_view(self) -> None:
        self._see.forget()
        if self._closer:
            self._closer.forget()

    def reset(self) -> None:
        """Forgets all tracks, without events."""
        self.silence(0.0)
        self._time = None


def check_views(fov_deg: float, view_size: int | None) -> None:
    """ValueError where these are not what `Localizer` takes."""
    if not 20.0 <= fov_deg <= 160.0:
        raise ValueError(f"fov_deg must be 20..160 degrees, got {fov_deg}")
    if view_size is not None and (view_size % 32 or not 64 <= view_size <= 1024):
        raise ValueError(f"view_size must be a multiple of 32 from 64 to 1024 pixels, got {view_size}")


def audible(power: np.ndarray) -> np.ndarray:
    """1.0 for time-frequency patches that are heard, 0.0 for those silent in themselves or 50 dB below the loudest."""
    return (power > max(features.SILENCE, 1e-5 * float(power.max()))).astype(np.float32)


def check_image(image, projection: str) -> np.ndarray:
    """The image, if it is RGB uint8 (H, W, 3) of a usable size; ValueError otherwise."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be RGB uint8 (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    if height < 32 or width < 32 or height * width > 200_000_000:
        raise ValueError(f"image must be at least 32 x 32 and at most 200 megapixels, got {width} x {height}")
    if projection == "equirectangular" and not 1.9 <= width / height <= 2.1:
        raise ValueError(
            f"an equirectangular image is twice as wide as high, got {width} x {height}; "
            'use projection="perspective" for an ordinary image'
        )
    return image


def _check_projection(projection: str) -> None:
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {PROJECTIONS}, got {projection!r}")


def fit_to_network(image: np.ndarray, size: int) -> np.ndarray:
    """An ordinary image scaled: its shorter side to `size`, the other to the nearest multiple of 32, <= 4 size."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    fitted = [min(4 * size, max(size, int(round(length * scale / 32)) * 32)) for length in (height, width)]
    return cv2.resize(image, (fitted[1], fitted[0]), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=8)
def sphere_surface(layout: ViewLayout, patches: tuple[int, int]) -> fusion.Surface:
    """The sphere, MAP_WIDTH cells around, as far up and down as the views reach."""
    grid = sphere_grid(layout, patches, MAP_WIDTH)
    rows, _ = grid.window
    return _sphere_rows(rows, grid.within(rows, slice(None)).project)


def _sphere_rows(rows: slice, project) -> fusion.Surface:
    width, height = MAP_WIDTH, MAP_WIDTH // 2
    azimuth, elevation = pixel_to_direction(*np.meshgrid(np.arange(width), np.arange(height)[rows]), width, height)
    area = np.cos(elevation) * (2 * np.pi / width) * (np.pi / height)
    return fusion.Surface(azimuth, elevation, area, True, project, rows.start, height - rows.stop)


@lru_cache(maxsize=8)
def _view_shapes(layout: ViewLayout, size: int) -> tuple[tuple[int, int], ViewLayout]:
    """Height and width of views `size` wide, and one closer view of that shape, of square pixels, ahead."""
    shape = layout.view_shape(size)
    height = np.tan(np.radians(CLOSE_FOV_DEG) / 2) * shape[0] / shape[1]
    vertical = float(np.clip(np.degrees(2 * np.arctan(height)), 30, 150))
    return shape, ViewLayout((0.0,), layout.elevation_deg, CLOSE_FOV_DEG, vertical)


def _cut_closer(image: np.ndarray, close: ViewLayout, azimuths: tuple[float, ...], out: np.ndarray) -> None:
    """Views of `close` turned by each of these degrees, written to `out` (N, H, W, 3)."""
    for view, azimuth in zip(out, azimuths):
        cut_views(image, close, view.shape[:2], azimuth, out=view)


def closer_surface(layout: ViewLayout, close: ViewLayout, patches: tuple[int, int],
                   turned: tuple[float, ...]) -> fusion.Surface:  # fmt: skip
    """As `sphere_surface`, of the patches of all views of `layout`, then of `close` turned by each so many degrees."""
    surface, near, rows, columns = _wide_and_near(layout, close, patches)
    of_view = patches[0] * patches[1]
    across = [(columns - round(degrees / 360 * MAP_WIDTH)) % MAP_WIDTH for degrees in turned]
    shown = np.ones(surface.azimuth.shape, np.float32)
    for places in across:
        shown[rows, places] += near.seen

    def project(values: np.ndarray) -> np.ndarray:
        maps, *close_maps = np.split(values, len(layout) * of_view + of_view * np.arange(len(across)), axis=1)
        total = surface.project(maps)
        for places, close_map in zip(across, close_maps):
            total[:, rows, places] += near.project(close_map)  # 0 where it shows nothing
        return np.divide(total, shown, out=total)

    return replace(surface, project=project)


@lru_cache(maxsize=8)
def _wide_and_near(layout: ViewLayout, close: ViewLayout,
                   patches: tuple[int, int]) -> tuple[fusion.Surface, SphereGrid, slice, np.ndarray]:  # fmt: skip
    """The surface that both reach, with the maps of `layout` alone; the part of it that `close` sees, with its rows
    there and its columns."""
    wide, near = (sphere_grid(views, patches, MAP_WIDTH) for views in (layout, close))
    (all_rows, _), (near_rows, near_columns) = wide.window, near.window
    top, bottom = min(all_rows.start, near_rows.start), max(all_rows.stop, near_rows.stop)
    surface = _sphere_rows(slice(top, bottom), wide.within(slice(top, bottom), slice(None)).project)
    rows = slice(near_rows.start - top, near_rows.stop - top)
    return surface, near.within(near_rows, near_columns), rows, np.arange(MAP_WIDTH)[near_columns]


@lru_cache(maxsize=8)
def plane_surface(rows: int, columns: int, aspect: float, fov_deg: float, scale: int = 8) -> fusion.Surface:
    """The plane of an ordinary image: `scale` cells for each patch; `aspect` is the image's height / width."""
    height, width = rows * scale, columns * scale
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    # The network's view may be stretched by up to half a patch: directions follow the image's own shape.
    image_height = width * aspect
    y = (y + 0.5) * image_height / height - 0.5
    azimuth, elevation = perspective_pixel_to_direction(x, y, width, image_height, fov_deg)
    focal = width / 2 / np.tan(np.radians(fov_deg) / 2)
    area = (np.cos(azimuth) * np.cos(elevation)) ** 3 / focal**2 * (image_height / height)

    def project(values: np.ndarray) -> np.ndarray:
        maps = [cv2.resize(v.reshape(rows, columns).astype(np.float32), (width, height)) for v in values]
        return np.stack(maps)

    return fusion.Surface(azimuth, elevation, area, False, project)


def _without_doubles(sources: list[Source]) -> list[Source]:
    """Drops the weaker of two sources of different sounds that lie on the same thing."""
    if len(sources) < 2:
        return sources
    ordered = sorted(sources, key=lambda source: -source.confidence)
    azimuth, elevation, extent = np.array([(one.azimuth, one.elevation, one.extent) for one in ordered]).T
    angles = angle_between(azimuth[:, None], elevation[:, None], azimuth, elevation)
    apart = angles > np.maximum(extent[:, None], extent)
    kept: list[int] = []
    for index in range(len(ordered)):
        if apart[index, kept].all():
            kept.append(index)
    return [ordered[index] for index in kept]
