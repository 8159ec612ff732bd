"""Clips in mixed scenes: classes, picture and sound of one moment, exact owners, and damage that stops nothing."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("h5py")
sys.path.insert(0, str(Path(__file__).parent))

from test_training_clips import chirp, clock_mp4, frame_numbers, sample_shift  # noqa: E402
from test_training_pack import flip, prepare  # noqa: E402

from avssl_ros import Localizer, features  # noqa: E402
from training import discover, export, losses  # noqa: E402
from training.clip_collection import ClipCollection, ClipsConfig, concept_of_label  # noqa: E402
from training.clips import encode_mp4  # noqa: E402
from training.data import read_concepts  # noqa: E402
from training.mixing import MixConfig, SceneMixer, covering, seam, tiles  # noqa: E402
from training.networks import prototypes  # noqa: E402
from training.pack import Pack, pack  # noqa: E402
from training.scenes import SceneGenerator  # noqa: E402
from training.train import TrainConfig, loss_terms, read_configuration, total_loss, train  # noqa: E402

pytestmark = pytest.mark.train
FPS, RATE = 15, 32000
SHARED = Path(__file__).resolve().parents[3] / "shared"
CONCEPTS = read_concepts()
TONES = (400.0, 1000.0, 2500.0)  # Hz, of the red, the green and the blue video


def plain_mp4(channel: int, seconds: float = 3.0) -> bytes:
    """A clip of one colour and one tone: 0 red, 1 green, 2 blue."""
    sound = 0.3 * np.sin(2 * np.pi * TONES[channel] * np.arange(round(seconds * RATE)) / RATE)
    picture = np.full((48, 64, 3), 40, np.uint8)
    picture[..., channel] = 220
    return encode_mp4([picture] * round(seconds * FPS), sound, RATE, quality=10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Six clips of three videos: red, green and blue; a dog by VGGSound's name, a train by AudioSet's id, unknown."""
    folder = tmp_path_factory.mktemp("clips")
    blobs = [plain_mp4(channel) for channel in (0, 0, 1, 1, 2, 2)]
    labels = ("dog barking", "dog barking", "/m/07jdr", "/m/07jdr", "lighthouse", "lighthouse")
    pack(Pack(prepare(folder / "prepared", blobs, labels=labels), folder / "shards"))
    return folder / "shards"


def collection(shards: Path, **settings) -> ClipCollection:
    return ClipCollection(ClipsConfig(shards, **{"keep": "off", **settings}), "train", CONCEPTS)


def test_labels_of_the_known_lists_name_concepts_and_no_name_stands_for_two():
    known = concept_of_label(CONCEPTS)
    assert known["male speech man speaking"] == known["/m/09x0r"] == "person" and known["dog barking"] == "dog"
    assert known["playing violin fiddle"] == known["violin"] == "violin" and known["train horning"] == "train"
    for column in ("vggsound", "audioset_mid"):
        names = [name for concept in CONCEPTS for name in getattr(concept, column)]
        assert len(names) == len(set(names))


def test_what_is_known_of_a_clip_decides_its_class(shards):
    clips = collection(shards)
    assert clips.photos["dog"] == [0, 1] and clips.sounds["train"] == [2, 3]
    (video,) = (name for name in clips.photos if name.startswith("video"))
    assert clips.photos[video] == [4, 5] and clips.class_of[video] == len(CONCEPTS) and clips.videos == {video}
    unlabelled = collection(shards, labels=False)
    ids = sorted(unlabelled.class_of[name] for name, items in unlabelled.photos.items() if items)
    assert ids == [len(CONCEPTS) + n for n in range(3)]


def test_picture_and_sound_of_a_clip_are_of_one_moment(tmp_path):
    prepared = prepare(tmp_path / "prepared", [clock_mp4()])
    manifest = prepared / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",2.0,15,", ",3.0,15,"))
    pack(Pack(prepared, tmp_path / "shards"))
    clips, starts = collection(tmp_path / "shards"), set()
    for index in range(6):
        scene = clips.scene((0, index))
        (shown,) = frame_numbers(scene.photo(0)[None])
        sound = scene.sound(0)
        first = shown - int(len(sound) / RATE * FPS / 2)  # the picture is that of the middle of the window
        expected = chirp(3.0, RATE)[round(first / FPS * RATE):][:len(sound)]
        assert abs(sample_shift(sound, expected)) <= 2
        starts.add(shown)
        assert np.array_equal(scene.photo(0), clips.scene((0, index)).photo(0))
    assert len(starts) > 1  # another scene, another moment


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_owners_are_the_clips_that_are_seen_and_heard(shards, mosaic):
    clips = collection(shards, labels=False)
    mixer = SceneMixer(clips, MixConfig(views=2, concepts=(3, 3), mosaic=mosaic, two_sounds=0, no_sound=0,
                                        reverberant=0, photo_px=(80, 150), decoy=0), 0)
    channel_of = {clips.class_of[name]: items[0] // 2 for name, items in clips.photos.items() if items}
    right, heard = [], 0
    for index in range(6):
        scene = mixer[index]
        for view, owner, concept in zip(scene["views"], scene["view_owner"], scene["view_concept"]):
            colour = view.reshape(14, 16, 14, 16, 3).mean(axis=(1, 3))
            for row, column in np.argwhere(owner >= 0):
                right.append(colour[row, column].argmax() == channel_of[int(concept[owner[row, column]])])
        for sound, owner, concept in zip(scene["sound"], scene["sound_owner"], scene["sound_concept"]):
            if concept[0] < 0 or not (owner == 0).any():
                continue
            heard += 1
            mine = np.kron(owner == 0, np.ones((features.PATCH, features.PATCH), bool))[:, :sound.shape[1]]
            loudest = np.where(mine, sound[:, :mine.shape[1]], -9).max(axis=1).argmax() / features.N_MELS
            assert (loudest < 0.2, 0.2 <= loudest < 0.38, loudest >= 0.38)[channel_of[int(concept[0])]], loudest
    # A cell that is half faded out over another clip may show more of that one.
    assert len(right) > 100 and np.mean(right) > 0.95 and heard > 10


def test_tiles_fill_the_view_in_ever_new_layouts():
    rng, layouts = np.random.default_rng(0), set()
    for _ in range(50):
        found = tiles(rng, 224)
        covered = np.zeros((224, 224), int)
        for top, left, bottom, right in found:
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all() and 2 <= len(found) <= 4
        layouts.add(tuple(sorted(found)))
    assert len(layouts) >= 45
    assert covering(np.zeros((100, 60, 3), np.uint8), 30, 90).shape == (30, 90, 3)
    assert seam(rng, 40, 60).max() == 1.0


def damaged_copy(shards: Path, folder: Path) -> Path:
    """The same with a third clip that is damaged."""
    copy = shutil.copytree(shards, folder / "shards")
    (shard,) = copy.glob("*.h5")
    flip(shard, shard.read_bytes().index(collection(shards).shards.blob(2)) + 700)
    return copy


def test_kinds_of_sound_are_found_clip_by_clip_despite_a_damaged_one_and_without_a_cache(
        shards, tmp_path, monkeypatch):
    opened, held = [], []

    class Watched(ClipCollection):
        def __init__(self, config, *rest):
            super().__init__(config, *rest)
            opened.append(self)

        def scene(self, key):
            held.append(super().scene(key))
            return held[-1]

    def bands(log_mel: torch.Tensor) -> torch.Tensor:
        """An encoder: each patch says which quarter of the spectrum is loud."""
        loud = torch.nn.functional.normalize(log_mel.unflatten(1, (4, 32)).mean(dim=(2, 3)), dim=1)
        return loud[:, None, None].expand(-1, 8, -(-log_mel.shape[2] // 16), 4)

    monkeypatch.setattr(discover, "ClipCollection", Watched)
    with pytest.warns(RuntimeWarning, match="c2"):
        names, found = discover.discover(bands, ClipsConfig(damaged_copy(shards, tmp_path), False, "jpeg", 0.1), 3)
    assert set(names) == {"dog barking", "/m/07jdr", "lighthouse"} and found.shape == (3, 4)
    assert opened[0].cache is None and max(len(scene._windows) for scene in held) == 1


def test_a_damaged_clip_is_counted_and_its_scenes_are_drawn_anew(shards, tmp_path):
    damaged = collection(damaged_copy(shards, tmp_path))
    mixer = SceneMixer(damaged, MixConfig(views=1, concepts=(3, 3)), 0)
    with pytest.warns(RuntimeWarning, match="c2"):
        scenes = [mixer[index] for index in range(6)]
    assert len(scenes) == 6 and damaged.clips.damaged == ["c2"] and "1 damaged" in damaged.report("train")


@pytest.mark.memory
@pytest.mark.parametrize("keep", ["blob", "jpeg", "item"])
def test_through_the_cache_no_clip_is_read_twice(shards, keep):
    clips = collection(shards, keep=keep, memory_gb=0.1)
    try:
        mixer = SceneMixer(clips, MixConfig(views=2, concepts=(3, 3)), 0)
        scenes = [mixer[index] for index in range(8)]
        again = collection(shards, keep=keep, memory_gb=0.1)
        repeated = SceneMixer(again, MixConfig(views=2, concepts=(3, 3)), 0)[7]
        assert all(np.array_equal(repeated[key], scenes[7][key]) for key in repeated)
        assert 0 < again.cache.counters()["source_opens"] <= 6
        assert "from the cache" in again.report("train")
        again.close()
    finally:
        clips.close()
    assert not list(Path("/dev/shm").glob(f"avssl-cache*{clips.cache.key}*"))


def test_clips_alone_make_scenes_on_the_sphere(shards):
    generator = SceneGenerator(collection(shards, labels=False), 0, visible=2, least_photos=1, least_sounds=1)
    scene = generator.scene(0)
    assert scene.image.shape == (640, 1280, 3) and len(scene.objects) == 2 and len(scene.sounding) == 1


def video_batch() -> dict[str, torch.Tensor]:
    """Two scenes: in each two unlabelled videos are seen and heard, and there is background."""
    owner = torch.tensor([0] * 6 + [1] * 6 + [losses.BACKGROUND] * 4).reshape(1, 1, 16)
    ids = [[len(CONCEPTS) + 7, len(CONCEPTS) + 90], [len(CONCEPTS) + 300, len(CONCEPTS) + 7]]
    return {f"{part}_{key}": value for part in ("view", "sound")
            for key, value in (("owner", owner.expand(2, 1, 16)), ("concept", torch.tensor(ids)[:, None]))}


@pytest.mark.parametrize("step", [0, 10**6])
def test_pictures_and_sounds_of_unlabelled_videos_find_each_other(step):
    """Free embeddings instead of networks: what the loss pulls where, in either stage."""
    batch, config = video_batch(), TrainConfig()
    generator = torch.Generator().manual_seed(0)
    visual, audio = (torch.nn.Parameter(0.3 * torch.randn(2, 1, 16, 32, generator=generator)) for _ in range(2))
    optimizer = torch.optim.Adam([visual, audio], lr=0.02)

    def in_the_ball(x):
        return x / (1 + x.square().sum(-1, keepdim=True)).sqrt()

    for _ in range(300):
        terms = loss_terms(in_the_ball(visual), in_the_ball(audio), batch, torch.zeros(0, 32), config)
        optimizer.zero_grad()
        total_loss({name: mean.value for name, mean in terms.items()}, step, config).backward()
        optimizer.step()
    with torch.no_grad():
        v, a = in_the_ball(visual)[:, 0], in_the_ball(audio)[:, 0]
        for scene in range(2):
            first, second = a[scene, :6].mean(0), a[scene, 6:12].mean(0)
            mine, others = (torch.nn.functional.cosine_similarity(v[scene, :6].mean(0), x, dim=0)
                            for x in (first, second))
            assert mine > 0.5 and mine > others + 0.5
            assert v[scene, 12:].norm(dim=-1).max() < 0.3 < v[scene, :12].norm(dim=-1).min()


def test_labelled_scenes_have_no_terms_of_videos_and_mixed_ones_have_both():
    batch, frame, config = video_batch(), prototypes(len(CONCEPTS), 96), TrainConfig()
    v = torch.nn.functional.normalize(torch.randn(2, 1, 16, 96), dim=-1)
    assert {"visual_video", "audio_video"} <= set(loss_terms(v, v, batch, frame, config))
    labelled = {key: value.clamp_max(3) for key, value in batch.items()}
    terms = loss_terms(v, v, labelled, frame, config)
    assert not any("video" in name for name in terms) and terms["visual"].count == 4


@pytest.mark.shared
@pytest.mark.parametrize("labels", [True, False])
def test_a_run_on_clips_alone(tmp_path, labels):
    """Real encoders, real decoding, through the cache, with and without labels."""
    blobs, splits = [plain_mp4(channel) for channel in (0, 1, 2)] * 2, ("train",) * 3 + ("validation",) * 3
    prepared = prepare(tmp_path / "prepared", blobs, splits, ("dog barking", "violin", "train"))
    pack(Pack(prepared, tmp_path / "shards"))
    config = TrainConfig(data=None, weights=SHARED / "weights", run=tmp_path / "run", cache=tmp_path, steps=2, scenes=1,
                         align_steps=1, warm_up=1, log_every=1, validate_every=2, validation_scenes=2, workers=0,
                         mix=MixConfig(views=2, sounds=2, concepts=(2, 3), mosaic=0.5),
                         clips=ClipsConfig(tmp_path / "shards", labels, "jpeg", 0.1))  # fmt: skip
    metrics = train(config)
    assert np.isnan(metrics["named"]) != labels and 0 <= metrics["gate_sound"] <= 1
    # Both steps: the first scene with labels happens to be empty and silent.
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    labelled, videos = (sum(line[f"{name}{kind}"] for line in lines for name in ("visual", "audio"))
                        for kind in ("", "_video"))
    assert len(lines) == 2 and all(np.isfinite(line["loss"]) for line in lines)
    assert (labelled > 0) == labels and (videos > 0) != labels
    assert read_configuration(["--config", str(tmp_path / "run" / "config.json")]) == config
    models = export.export(export.ExportConfig(tmp_path / "run", output=tmp_path / "models", view_size=256))
    localizer = Localizer(models)
    assert localizer.encoders.size == 256 and str(tmp_path) not in (models / "manifest.json").read_text()
    if labels:
        assert len(localizer.labels) == len(CONCEPTS)
    else:  # three clips: at most two kinds, called by what their list says
        assert 1 <= len(localizer.labels) <= 2 and set(localizer.labels) <= {"dog barking", "violin", "train"}
        np.testing.assert_allclose(np.linalg.norm(localizer.prototypes, axis=1), 1, atol=1e-3)
    assert localizer.localize(np.zeros((128, 256, 3), np.uint8), np.zeros(32000), 32000).active is False


@pytest.mark.parametrize("concepts", [0, len(CONCEPTS)])
def test_a_batch_without_any_video_has_the_terms_of_one_with_videos(concepts):
    """Ranks reduce their terms together: one whose batch happens to be silent and empty must have the same ones."""
    config = TrainConfig(clips=ClipsConfig(Path("shards")))
    frame, v = prototypes(concepts, 96), torch.nn.functional.normalize(torch.randn(2, 1, 16, 96), dim=-1)
    empty = {key: torch.full_like(value, losses.IGNORE if "concept" in key else losses.BACKGROUND)
             for key, value in video_batch().items()}
    v.requires_grad_()
    terms = loss_terms(v, v, empty, frame, config)
    assert terms.keys() == loss_terms(v, v, video_batch(), frame, config).keys()
    assert terms["visual_video"].count == terms["audio_video"].count == 0
    total_loss({name: mean.value for name, mean in terms.items()}, 10**6, config).backward()
    assert v.grad.isfinite().all()
