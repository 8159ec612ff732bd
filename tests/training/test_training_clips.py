"""A window begins at its frame and sample, is the same in every worker, and a damaged clip does not end the run."""

import importlib.util
import io
import pickle
import sys
import warnings
from pathlib import Path

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")
h5py = pytest.importorskip("h5py")
sys.path.insert(0, str(Path(__file__).parent))

from test_training_pack import flip, prepare  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from training.clips import (  # noqa: E402
    BlobDataset,
    ClipDataset,
    JpegDataset,
    cut_jpegs,
    decode,
    decode_pyav,
    encode_mp4,
    square,
)
from training.pack import DamagedClip, Pack, Shards, pack  # noqa: E402

pytestmark = pytest.mark.train
FPS, RATE, SECONDS = 15, 32000, 3.0
STEP = 5  # grey levels from frame to frame


def clock_mp4(width: int = 64, height: int = 48, rate: int = RATE, seconds: float = SECONDS) -> bytes:
    """A clip that tells its own time: frame k is of grey 20 + 5 k, and its sound is the chirp."""
    pictures = (np.full((height, width, 3), 20 + STEP * number, np.uint8) for number in range(round(seconds * FPS)))
    return encode_mp4(pictures, chirp(seconds, rate), rate, quality=10, sound_bits=128000)


def chirp(seconds: float, rate: int) -> np.ndarray:
    """A chirp: no part of it is like another, so that its place can be found by correlation."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200.0 + 500.0 * time) * time)).astype(np.float32)


def decoded_from_the_beginning(mp4: bytes) -> np.ndarray:
    with av.open(io.BytesIO(mp4)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def frame_numbers(frames: np.ndarray) -> list[int]:
    return ((frames[..., 0].mean(axis=(1, 2)) - 20) / STEP).round().astype(int).tolist()


def sample_shift(sound: np.ndarray, expected: np.ndarray, reach: int = 200) -> int:
    """How many samples later `sound` is than `expected`."""
    inner = expected[reach:-reach]
    scores = [float(inner @ sound[reach + shift:reach + shift + len(inner)]) for shift in range(-reach, reach + 1)]
    return int(np.argmax(scores)) - reach


@pytest.fixture(scope="module")
def clock() -> bytes:
    return clock_mp4()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, clock) -> Shards:
    """Six clips of 3 s; the manifest of test_training_pack says 2 s, so that the last window begins at frame 15."""
    folder = tmp_path_factory.mktemp("shards")
    blobs = [clock] * 5 + [clock_mp4(96, 48)]
    pack(Pack(prepare(folder / "prepared", blobs, labels=("dog", "cat", "dog|cat")), folder / "shards"))
    return Shards(folder / "shards")


@pytest.mark.parametrize("first", [0, 1, 7, 13, 14, 15, 16, 29, 30])
def test_a_window_begins_at_its_frame_and_at_its_sample(clock, first):
    frames, sound = decode(clock, first / FPS, 1.0, 15)
    assert frames.shape == (15, 48, 64, 3) and frames.dtype == np.uint8 and sound.dtype == np.float32
    assert frame_numbers(frames) == list(range(first, first + 15))
    begin = round(first / FPS * RATE)
    expected = chirp(SECONDS, RATE)[begin:begin + RATE]
    assert len(sound) == RATE and abs(sample_shift(sound, expected)) <= 1
    whole = decoded_from_the_beginning(clock)[begin:begin + RATE]
    assert np.abs(sound - whole).max() < 1e-5  # the first samples too: an AAC block needs the one before


@pytest.mark.parametrize("rate", [16000, 44100])
def test_sound_of_another_rate_is_resampled_in_place(rate):
    mp4 = clock_mp4(rate=rate)
    for start in (0.0, 0.4, 1.2):
        sound = decode(mp4, start, 1.0, 1)[1]
        begin = round(start * RATE)
        assert len(sound) == RATE and abs(sample_shift(sound, chirp(SECONDS, RATE)[begin:begin + RATE])) <= 1
    assert len(decode(mp4, 0.4, 0.5, 1, sample_rate=22050)[1]) == 11025


def test_fewer_frames_are_spread_evenly_over_the_window(clock):
    assert frame_numbers(decode(clock, 0.0, 2.0, 1)[0]) == [15]
    assert frame_numbers(decode(clock, 1.0, 2.0, 2)[0]) == [22, 37]
    assert frame_numbers(decode(clock, 0.0, 0.2, 6)[0]) == [0, 0, 1, 1, 2, 2]


def test_after_the_end_the_last_frame_and_silence_follow(clock):
    frames, sound = decode(clock, 2.8, 1.0, 15)
    assert frame_numbers(frames) == [42, 43, 44] + [44] * 12 and len(sound) == RATE
    assert np.abs(sound[:6000]).max() > 0.3 and np.abs(sound[9000:]).max() == 0
    frames, sound = decode(clock, 60.0, 1.0, 3)
    assert frame_numbers(frames) == [44] * 3 and len(sound) == RATE and not sound.any()


def test_a_path_and_its_bytes_give_the_same(clock, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clock)
    of_path, of_bytes = decode(tmp_path / "clip.mp4", 0.5, 1.0, 3), decode(clock, 0.5, 1.0, 3)
    assert all(np.array_equal(a, b) for a, b in zip(of_path, of_bytes, strict=True))


def test_what_is_no_clip_is_damaged(clock):
    silent = io.BytesIO()
    with av.open(silent, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    for blob, message in ((b"no video" * 99, "cannot be decoded"), (clock[: len(clock) // 2], "cannot be decoded"),
                          (silent.getvalue(), "no video or no sound")):
        with pytest.raises(DamagedClip, match=message):
            decode(blob, 0.0, 1.0, 1)


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is None, reason="torchcodec is absent")
def test_torchcodec_gives_the_same_frames_and_sound(clock):
    for start in (0.0, 0.9, 1.0, 2.5, 60.0):
        times = start + (np.arange(15) + 0.5) / FPS
        for ours, theirs in zip(decode_pyav(clock, times, start, 1.0),
                                decode(clock, start, 1.0, 15, decoder="torchcodec"), strict=False):
            assert np.abs(ours.astype(float) - theirs).max() <= (2 if ours.dtype == np.uint8 else 0.02)


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec is installed")
def test_without_torchcodec_its_choice_says_what_to_do(shards):
    with pytest.raises(ImportError, match="needs the package torchcodec.*take decoder='pyav'"):
        ClipDataset(shards, decoder="torchcodec")


def test_the_square_is_the_shorter_side_at_its_place():
    wide = np.zeros((1, 100, 300, 3), np.uint8)
    wide[:, :, 200:] = 255
    assert [int(square(wide, 50, place).mean()) for place in (0.0, 0.5, 1.0)] == [0, 0, 255]
    assert square(wide, 50).shape == (1, 50, 50, 3) and square(wide.transpose(0, 2, 1, 3), 100, 1.0).min() == 255


def test_an_item_has_frames_sound_labels_and_source_of_one_window(shards):
    clips = ClipDataset(shards, seconds=1.0, size=32)
    for index in (0, 2, 5):
        item = clips[index]
        shown = frame_numbers(item["frames"])
        first = shown[0]
        assert item["frames"].shape == (15, 32, 32, 3) and shown == list(range(first, first + 15))
        expected = chirp(SECONDS, RATE)[round(first / FPS * RATE):][:RATE]
        assert len(item["sound"]) == RATE and abs(sample_shift(item["sound"], expected)) <= 1
        assert item["index"] == index and item["source"] == f"vidéo{index // 2}"
    assert clips.classes == ("cat", "dog")
    assert [clips[i]["labels"].tolist() for i in (0, 1, 2)] == [[0, 1], [1, 0], [1, 1]]
    other = ClipDataset(shards, classes=("bird", "dog"), seconds=1.0, frames=1)
    assert other[2]["labels"].tolist() == [0, 1] and other[2]["frames"].shape == (1, 224, 224, 3)


def test_windows_depend_on_seed_epoch_and_index_alone_and_reach_the_whole_clip(shards):
    def starts(clips: ClipDataset) -> list[int]:
        return [frame_numbers(clips[i]["frames"])[0] for i in range(len(clips))]

    clips, again, other = (ClipDataset(shards, 1.0, 1, 16, seed=seed) for seed in (3, 3, 4))
    first = starts(clips)
    clips[5], clips[0]
    assert starts(clips) == first == starts(again) != starts(other)
    clips.set_epoch(1)
    assert starts(clips) != first
    found = set()
    for epoch in range(12):
        clips.set_epoch(epoch)
        found |= set(starts(clips))
    assert min(found) == 7 and max(found) == 22  # the frame in the middle of the windows that begin at 0 and 15
    assert starts(ClipDataset(shards, 1.0, 1, 16, random_window=False)) == [14] * 6


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_items_and_take_over_a_new_epoch(shards, method):
    clips = ClipDataset(shards, 1.0, 2, 16)
    clips[0]  # the shard is open here when the workers start
    loader = DataLoader(clips, batch_size=2, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    for epoch in (0, 1):
        clips.set_epoch(epoch)
        alone = [clips[i] for i in range(len(clips))]
        batches = list(loader)
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6))
        for key in ("frames", "sound", "labels"):
            assert np.array_equal(torch.cat([batch[key] for batch in batches]), [item[key] for item in alone])


def test_a_pickled_dataset_gives_the_same_items(shards):
    clips = ClipDataset(shards, 1.0, 1, 16)
    clips.set_epoch(4)
    copy = pickle.loads(pickle.dumps(clips))
    assert np.array_equal(copy[3]["frames"], clips[3]["frames"]) and copy.parameters() == clips.parameters()


def damaged_shards(folder: Path, clock: bytes, broken: tuple[int, ...]) -> Shards:
    """Four clips; c0 is an mp4 file that was cut off before it was packed, the others are damaged in the shard."""
    blobs = [clock_mp4(seconds=2.0 + number / FPS) for number in range(4)]
    blobs[0] = blobs[0][:2000] if 0 in broken else blobs[0]
    pack(Pack(prepare(folder / "prepared", blobs), folder / "shards"))
    path = folder / "shards" / "train-00000.h5"
    for number in set(broken) - {0}:
        flip(path, path.read_bytes().index(blobs[number]) + 1500)
    return Shards(folder / "shards")


def test_damaged_clips_are_replaced_warned_of_once_and_counted(tmp_path, clock):
    clips = ClipDataset(damaged_shards(tmp_path, clock, (0, 2)), 1.0, 1, 16)
    with pytest.warns(RuntimeWarning) as caught:
        items = [clips[i] for i in (0, 1, 2, 3)]
    assert [item["index"] for item in items] == [1, 1, 3, 3] and clips.damaged == ["c0", "c2"]
    assert ["skipped c0" in str(w.message) for w in caught] == [True, False] and "skipped c2" in str(caught[1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(clips[2]["frames"], items[2]["frames"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_damaged_clips_met_by_workers_are_counted_in_the_main_process(tmp_path, clock, method):
    clips = ClipDataset(damaged_shards(tmp_path, clock, (3,)), 1.0, 1, 16)
    workers = 2 if method == "fork" else 1
    loader = DataLoader(clips, batch_size=1, num_workers=workers, multiprocessing_context=method)
    assert [int(batch["index"]) for batch in loader] == [0, 1, 2, 0]
    assert clips.damaged == ["c3"]


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_run_of_damaged_clips_only_ends(tmp_path, clock):
    clips = ClipDataset(damaged_shards(tmp_path, clock, (0, 1, 2, 3)), 1.0, 1, 16)
    with pytest.raises(RuntimeError, match="all 4 clips are damaged.*verify"):
        clips[1]


def test_a_shard_that_has_gone_ends_the_run_instead_of_being_skipped(tmp_path, clock):
    clips = ClipDataset(damaged_shards(tmp_path, clock, ()), 1.0, 1, 16)
    (tmp_path / "shards" / "train-00000.h5").unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        clips[0]


class Kept(Dataset):
    """A cache in its simplest form."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.items = dataset, {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        if index not in self.items:
            self.items[index] = pickle.dumps(self.dataset[index])
        return pickle.loads(self.items[index])


def test_cached_blobs_and_jpeg_frames_give_the_window_of_the_shards(shards):
    plain = ClipDataset(shards, 1.0, 5, 48)
    blobs = ClipDataset(shards, 1.0, 5, 48, blobs=Kept(BlobDataset(shards)))
    jpegs = ClipDataset(shards, 1.0, 5, 48, blobs=Kept(JpegDataset(shards, Kept(BlobDataset(shards)))))
    for index in (0, 5, 0):
        item = plain[index]
        assert all(np.array_equal(item[key], blobs[index][key]) for key in ("frames", "sound", "labels"))
        assert np.abs(item["frames"].astype(int) - jpegs[index]["frames"]).max() <= 3
        assert np.abs(item["sound"] - jpegs[index]["sound"]).max() < 1e-3
    with pytest.raises(ValueError, match="give JpegDataset the same sample_rate"):
        ClipDataset(shards, 1.0, 5, 48, sample_rate=16000, blobs=JpegDataset(shards))[0]


def test_a_jpeg_item_holds_every_frame_and_all_sound(shards):
    item = JpegDataset(shards)[0]
    assert len(item["jpeg"]) == 30 and all(data[:2] == b"\xff\xd8" for data in item["jpeg"])
    assert item["sound"].dtype == np.int16 and len(item["sound"]) == 2 * RATE
    frames, sound = cut_jpegs(item, 22 / FPS, 1.0, 15)
    assert frame_numbers(np.stack(frames)) == [*range(22, 30)] + [29] * 7
    assert len(sound) == RATE and sound[:8000].any() and not sound[RATE * 8 // 15 + 1:].any()


def test_parameters_tell_apart_whatever_gives_other_items(shards):
    differing = ({}, {"seconds": 1.0}, {"frames": 1}, {"size": 32}, {"seed": 1}, {"random_window": False},
                 {"classes": ("dog",)}, {"blobs": JpegDataset(shards)}, {"sample_rate": 16000})
    datasets = [BlobDataset(shards), JpegDataset(shards), JpegDataset(shards, quality=80),
                JpegDataset(shards, sample_rate=16000), *(ClipDataset(shards, **setting) for setting in differing)]
    keys = [repr(dataset.parameters()) for dataset in datasets]
    assert len(set(keys)) == len(keys)
    assert ClipDataset(shards).parameters() == ClipDataset(Shards(shards.paths)).parameters()
    cached = [ClipDataset(shards, blobs=Kept(JpegDataset(shards, quality=q))).parameters() for q in (80, 80, 90)]
    assert cached[0] == cached[1] != cached[2]


@pytest.mark.parametrize("wrong, message", [
    ({"seconds": 0}, "seconds must be > 0"), ({"frames": 0}, "frames must be > 0"), ({"size": -1}, "size must be > 0"),
    ({"decoder": "vlc"}, "decoder must be one of pyav, torchcodec"), ({"blobs": [b""]}, "blobs has 1 items"),
])
def test_settings_out_of_range_are_refused(shards, wrong, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(shards, **wrong)
