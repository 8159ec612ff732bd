"""Clips are of one kind, what teaches nothing is dropped for the reason that holds, and splits keep videos apart."""

import contextlib
import csv
import errno
import functools
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import media
import numpy as np
import pytest

pytest.importorskip("torch")

from training.collect import COLUMNS, ffmpeg_program, write_table  # noqa: E402
from training.prepare import MANIFEST, PrepareConfig, choose_splits, near_duplicates, prepare  # noqa: E402

pytestmark = pytest.mark.train
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "clips"
RATE = 44100


def pictures(seed, seconds=1.2, fps=10, width=128, height=96):
    """A coarse random pattern that moves on with every frame."""
    pattern = np.random.default_rng(seed).integers(30, 220, (6, 8, 3), dtype=np.uint8)
    pattern = pattern.repeat(height // 6, axis=0).repeat(width // 8, axis=1)
    return [np.roll(pattern, 3 * number, axis=1) for number in range(round(seconds * fps))]


def bursts(seed, seconds=1.2):
    """Noise whose level and colour change ten times a second."""
    rng = np.random.default_rng(seed)
    parts = [np.convolve(rng.standard_normal(RATE // 10), np.ones(rng.integers(1, 30)), "same") * rng.uniform(0.1, 1)
             for _ in range(round(seconds * 10))]  # fmt: skip
    return (0.3 * np.concatenate(parts) / max(np.abs(part).max() for part in parts)).astype(np.float32)


def video(folder, name, seed, seconds=1.2, **other):
    arguments = {"images": pictures(seed, seconds), "sound": bursts(seed, seconds), "rate": RATE, **other}
    return media.write_mp4(folder / f"{name}.mp4", fps=10, **arguments)


def ffmpeg(*arguments):
    subprocess.run([ffmpeg_program(), "-v", "error", *arguments], check=True)


@pytest.fixture
def collected(tmp_path):
    """Writes collected.csv; a row is the name of a file, or a mapping."""

    def write(*rows):
        rows = [row if isinstance(row, dict) else {"id": row} for row in rows]
        rows = [{"file": f"{row['id']}.mp4", "start": 0, "source": row["id"], **row} for row in rows]
        write_table(tmp_path / "collected.csv", COLUMNS, rows)

    return write


@pytest.fixture
def config(tmp_path):
    return functools.partial(PrepareConfig, collected=tmp_path / "collected.csv", output=tmp_path / "out",
                             clip_seconds=1.0, least_seconds=0.6, workers=2)  # fmt: skip


def table(config, name="manifest.csv"):
    with open(config().output / name, newline="") as file:
        return list(csv.DictReader(file))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stat(config):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (config().output / "clips").iterdir()}


# --------------------------------------------------------------------------------------------------------------- clips


def test_clips_are_of_one_kind_and_the_manifest_says_what_they_are(config, collected, tmp_path):
    mono = video(tmp_path, "mono", 1, 2.7, images=pictures(1, 2.7, width=192))
    stereo = ["-af", "pan=stereo|c0=c0|c1=0*c0", "-r", "25", "-c:v", "libx264", tmp_path / "wide.mp4"]
    ffmpeg("-i", mono, *stereo)
    collected({"id": "wide", "label": "Dog|Bark", "split": "test"})
    counts = prepare(config())
    rows = table(config)
    assert (counts["clips"], counts["kept"], counts["kept: test"]) == (3, 3, 3)
    assert tuple(rows[0]) == MANIFEST and [row["file"] for row in rows] == [f"clips/{row['id']}.mp4" for row in rows]
    assert [float(row["start"]) for row in rows] == [0, 1, 2]
    assert [float(row["duration"]) for row in rows] == pytest.approx([1, 1, 0.7], abs=0.07)
    for row in rows:
        path = config().output / row["file"]
        data = path.read_bytes()
        assert (row["sha256"], int(row["bytes"])) == (hashlib.sha256(data).hexdigest(), len(data))
        assert data.index(b"moov") < data.index(b"mdat")
        with av.open(str(path)) as container:
            seen, voice = container.streams.video[0], container.streams.audio[0]
            frames = list(container.decode(seen))
            assert (seen.width, seen.height, seen.pix_fmt, seen.codec.name) == (512, 256, "yuv420p", "h264")
            assert (voice.codec.name, voice.channels, voice.rate) == ("aac", 1, 32000)
            assert [round(frame.time * 15) for frame in frames] == list(range(len(frames)))
        assert (row["width"], row["height"], row["fps"], row["sample_rate"]) == ("512", "256", "15.0", "32000")
        assert (row["labels"], row["source"]) == ("Dog|Bark", "wide")
        assert len(frames) == round(15 * float(row["duration"]))


def test_every_fifteenth_picture_is_a_key_frame_and_no_other(config, collected, tmp_path):
    flashes = [np.full((96, 128, 3), 255 * (number % 7 == 0), np.uint8) for number in range(40)]
    video(tmp_path, "flashes", 1, 4.0, images=flashes)
    collected("flashes")
    prepare(config(clip_seconds=4.0))
    with av.open(str(config().output / table(config)[0]["file"])) as container:
        frames = list(container.decode(video=0))
    assert [number for number, frame in enumerate(frames) if frame.key_frame] == [0, 15, 30, 45]


def test_an_upright_or_turned_video_has_its_shorter_side_as_seen(config, collected, tmp_path):
    video(tmp_path, "turned", 1, rotation=90)
    collected("turned")
    prepare(config())
    assert (table(config)[0]["width"], table(config)[0]["height"]) == ("256", "342")


def test_pixels_that_are_not_square_are_made_so(config, collected, tmp_path):
    plain = video(tmp_path, "plain", 1)
    ffmpeg("-i", plain, "-vf", "setsar=3/2", tmp_path / "wide.mp4")
    collected("wide")
    prepare(config())
    assert (table(config)[0]["width"], table(config)[0]["height"]) == ("512", "256")  # 128 x 96, seen as 192 x 96


def test_pictures_that_begin_later_than_the_sound_stay_in_time_with_it(config, collected, tmp_path):
    plain = video(tmp_path, "plain", 1)
    streams = ["-map", "1:v", "-map", "0:a", "-c", "copy", tmp_path / "late.mp4"]
    ffmpeg("-i", plain, "-itsoffset", "0.4", "-i", plain, *streams)
    collected("late")
    assert prepare(config())["kept"] == 1
    with av.open(str(config().output / table(config)[0]["file"])) as container:
        frames = [frame.to_ndarray(format="gray").astype(float) for frame in container.decode(video=0)]
    changes = [np.abs(after - before).mean() for before, after in zip(frames, frames[1:], strict=False)]
    assert len(frames) == 15 and max(changes[:5]) < 2 < max(changes[6:9])


def test_a_span_is_cut_where_the_list_says(config, collected, tmp_path):
    """Grey and pitch of the video tell the time."""
    greys = [np.full((96, 128, 3), 20 + 8 * number, np.uint8) for number in range(25)]
    pitch = np.concatenate([media.tone(0.5, RATE, 300 * (1 + number)) for number in range(5)])
    video(tmp_path, "clock", 1, images=greys, sound=pitch)
    collected({"id": "clock", "start": 1.0, "end": 1.8, "source": "long", "source_start": 40.0})
    prepare(config())
    (row,) = table(config)
    assert (row["source"], row["start"], row["id"]) == ("long", "41.0", "clock-0041000")
    assert float(row["duration"]) == pytest.approx(0.8, abs=0.05)
    with av.open(str(config().output / row["file"])) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24").mean()
    with av.open(str(config().output / row["file"])) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert first == pytest.approx(20 + 8 * 10, abs=4)
    assert np.abs(np.fft.rfft(sound[:12800])).argmax() / 0.4 == pytest.approx(900, abs=5)


# --------------------------------------------------------------------------------------------------------------- drops


def test_each_reason_to_drop_is_found_and_counted(config, collected, tmp_path):
    video(tmp_path, "good", 1)
    video(tmp_path, "mute", 2, sound=None)
    video(tmp_path, "silent", 3, sound=0.0003 * bursts(3))
    video(tmp_path, "offset", 4, sound=np.full(round(1.2 * RATE), 0.02, np.float32))
    video(tmp_path, "still", 5, images=[pictures(5)[0]] * 12)
    video(tmp_path, "short", 6, 0.4)
    (tmp_path / "text.mp4").write_bytes(b"no video" * 200)
    noise = {"images": media.noise_images(12, 128, 96), "index_first": True}
    cut = media.cut_off(video(tmp_path, "whole", 7, **noise), 0.6)
    broken = bytearray(video(tmp_path, "broken", 8, **noise).read_bytes())
    broken[len(broken) // 3 : len(broken) // 2] = os.urandom(len(broken) // 2 - len(broken) // 3)
    (tmp_path / "broken.mp4").write_bytes(broken)
    media.write_wav(tmp_path / "sound.wav", bursts(9), RATE)
    names = ["good", "mute", "silent", "offset", "still", "short", "text", cut.stem, "broken", "gone"]
    collected(*names, {"id": "sound", "file": "sound.wav"})
    counts = prepare(config())
    reasons = {row["source"]: row["reason"] for row in table(config, "dropped.csv")}
    assert reasons == {
        "mute": "no sound track", "silent": "constant silence", "offset": "constant silence", "still": "still pictures",
        "short": "too short", "text": "damaged", cut.stem: "damaged", "broken": "damaged", "gone": "cannot be opened",
        "sound": "no picture",
    }  # fmt: skip
    assert {key: number for key, number in counts.items() if key.startswith("dropped")} == {
        "dropped: no sound track": 1, "dropped: constant silence": 2, "dropped: still pictures": 1,
        "dropped: too short": 1, "dropped: damaged": 3, "dropped: cannot be opened": 1, "dropped: no picture": 1,
    }  # fmt: skip
    assert [row["source"] for row in table(config)] == ["good"] and len(stat(config)) == 1


def test_a_copy_in_another_source_is_a_near_duplicate_and_other_sound_or_pictures_are_not(config, collected, tmp_path):
    video(tmp_path, "first", 1)
    louder = [np.clip(image[::2, ::2] * 1.15 + 6, 0, 255).astype(np.uint8) for image in pictures(1)]
    video(tmp_path, "copy", 1, images=louder, sound=1.8 * bursts(1))
    video(tmp_path, "dubbed", 1, sound=bursts(2))
    video(tmp_path, "other", 3, sound=bursts(1))
    collected("first", "copy", "dubbed", "other")
    assert prepare(config())["dropped: near-duplicate"] == 1
    assert [row["source"] for row in table(config)] == ["first", "dubbed", "other"]
    (dropped,) = table(config, "dropped.csv")
    assert (dropped["source"], dropped["reason"]) == ("copy", "near-duplicate of first-0000000")
    assert not (config().output / "clips" / f"{dropped['id']}.mp4").exists()
    assert prepare(config())["made"] == 0  # nor is it made again to be dropped again


def test_duplicates_are_found_across_blocks_and_only_against_kept_clips():
    generator = np.random.default_rng(0)
    codes = [{"pictures": generator.bytes(32).hex(), "sound": generator.bytes(16).hex()} for _ in range(7)]
    codes[5], codes[6] = codes[0], codes[3]
    expected = [None, None, None, None, None, 0, 3]
    assert near_duplicates(codes, PrepareConfig(Path(), Path()), block=2) == expected
    chain = [bytes(32), bytes([255] * 4 + [0] * 28), bytes([255] * 8 + [0] * 24)]  # each like its neighbours alone
    codes = [{"pictures": code.hex(), "sound": bytes(16).hex()} for code in chain]
    assert near_duplicates(codes, PrepareConfig(Path(), Path())) == [None, 0, None]
    assert near_duplicates([], PrepareConfig(Path(), Path())) == []


# --------------------------------------------------------------------------------------------------------------- splits


def test_all_clips_of_a_video_are_in_one_split_and_new_videos_move_none():
    rows = [{"source": f"v{number}", "split": ""} for number in range(2000)]
    before = choose_splits(rows[:1000], 0.1, 0.1)
    after = choose_splits(rows, 0.1, 0.1)
    assert all(after[source] == split for source, split in before.items())
    shares = [list(after.values()).count(split) / 2000 for split in ("train", "validation", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.025)


def test_the_split_of_the_list_counts_and_of_two_the_one_further_from_training():
    rows = [{"source": "a", "split": "train"}, {"source": "a", "split": "test"}, {"source": "b", "split": "validation"}]
    assert choose_splits([*rows, {"source": "b", "split": ""}], 0.0, 0.0) == {"a": "test", "b": "validation"}


def test_sources_of_one_recording_are_in_one_split():
    rows = [{"source": f"minute {n}", "split": "", "recording": f"walk {n // 20}"} for n in range(400)]
    splits = choose_splits(rows, 0.3, 0.3)
    of = [{splits[row["source"]] for row in rows if row["recording"] == f"walk {n}"} for n in range(20)]
    assert {len(found) for found in of} == {1} and len(set(splits.values())) == 3


def test_a_list_of_train_and_test_alone_gets_its_validation_split_from_train():
    """VGGSound's is such a list."""
    rows = [{"source": f"v{number}", "split": "test" if number % 10 == 0 else "train"} for number in range(2000)]
    splits = choose_splits(rows, 0.1, 0.1)
    found = Counter(splits.values())
    assert found["test"] == 200 and found["validation"] == pytest.approx(180, abs=50)
    assert all(splits[row["source"]] == "test" for row in rows if row["split"] == "test")
    assert choose_splits([*rows[:1000], *rows], 0.1, 0.1) == splits  # by source, whatever the number of clips
    named = choose_splits([*rows, {"source": "own", "split": "validation"}], 0.1, 0.1)
    assert [source for source, split in named.items() if split == "validation"] == ["own"]


def test_a_lack_of_validation_clips_is_said_at_once(config, collected, tmp_path, capsys):
    video(tmp_path, "v0", 0)
    collected("v0")
    prepare(config(validation_share=0.0, test_share=0.0))
    assert "--validation-share above 0" in capsys.readouterr().err
    assert prepare(config(validation_share=1.0, test_share=0.0))["made"] == 0
    assert "--validation-share" not in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- resume


def test_a_second_run_makes_nothing_and_a_lost_clip_is_made_again(config, collected, tmp_path):
    for seed in range(3):
        video(tmp_path, f"v{seed}", seed)
    collected("v0", "v1", "v2")
    assert prepare(config())["made"] == 3
    rows, files = table(config), stat(config)
    assert prepare(config())["made"] == 0 and stat(config) == files and table(config) == rows
    (config().output / rows[0]["file"]).unlink()
    (config().output / rows[1]["file"]).write_bytes(b"half")
    assert prepare(config())["made"] == 2 and table(config) == rows
    assert all(digest(config().output / row["file"]) == row["sha256"] for row in rows)


def test_other_thresholds_need_no_new_measurement_and_other_settings_new_clips(config, collected, tmp_path):
    video(tmp_path, "loud", 1)
    video(tmp_path, "soft", 2, sound=0.05 * bursts(2))
    collected("loud", "soft")
    assert prepare(config())["kept"] == 2
    strict = prepare(config(silence_db=-40))
    assert (strict["made"], strict["kept"], strict["dropped: constant silence"], len(stat(config))) == (0, 1, 1, 1)
    assert prepare(config())["made"] == 1 and len(stat(config)) == 2
    assert prepare(config(side=128))["made"] == 2 and {row["height"] for row in table(config)} == {"128"}


def test_a_killed_run_is_completed_by_the_next(config, collected, tmp_path):
    names = [f"v{number}" for number in range(6)]
    for number, name in enumerate(names):  # the third has eight clips, so that there is much to do yet at the kill
        video(tmp_path, name, number, seconds=8.0 if number == 2 else 1.2)
    collected(*names)
    arguments = ["--clip-seconds", "1", "--least-seconds", "0.6", "--workers", "1"]
    command = [sys.executable, "training/prepare.py", "--collected", config().collected, "--output", config().output]
    process = subprocess.Popen([*command, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    clips, deadline = config().output / "clips", time.monotonic() + 120
    while len(list(clips.glob("*.mp4"))) < 2 or not list(clips.glob("*.partial")):  # while the next is being written
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (config().output / "manifest.csv").exists()
    finished = {name: found for name, found in stat(config).items() if name.endswith(".mp4")}
    counts, left = prepare(config()), 5 + 8 - len(finished)
    assert counts["kept"] == 5 + 8 and left <= counts["made"] <= left + 1
    assert sorted({row["source"] for row in table(config)}) == names
    assert len(list(clips.glob("*.mp4"))) == 5 + 8  # the killed ffmpeg may still write a partial one
    assert sum(stat(config)[name] == found for name, found in finished.items()) >= len(finished) - 1
    for row in table(config):
        assert digest(config().output / row["file"]) == row["sha256"]


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A context in which ffmpeg is a shell script with these commands."""

    @contextlib.contextmanager
    def script(commands):
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{commands}\n")
        program.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(program.parent))
            yield

    return script


@pytest.mark.parametrize("words", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_ends_the_run_and_makes_no_video_look_damaged(config, collected, tmp_path, stand_in, words):
    video(tmp_path, "v0", 0)
    collected("v0")
    with stand_in(f"echo 'av_interleaved_write_frame(): {words}' >&2\nexit 228"):
        with pytest.raises(OSError, match="is full"):
            prepare(config())
    assert prepare(config())["kept"] == 1


@pytest.mark.parametrize(
    ("commands", "timeout", "reason"),
    [
        ("exec /bin/sleep 30", 0.2, "took longer than 0.2 s"),
        ("echo 'Error opening input: Input/output error' >&2; exit 1", 60.0, "input/output error"),
        ("echo 'Cannot allocate memory' >&2; exit 1", 60.0, "cannot allocate memory"),
    ],
)
def test_a_passing_failure_is_told_apart_from_damage_and_tried_by_the_next_run(
    config, collected, tmp_path, stand_in, commands, timeout, reason
):
    video(tmp_path, "v0", 0)
    collected("v0")
    with stand_in(commands):
        assert prepare(config(timeout=timeout))[f"dropped: {reason}"] == 1
    assert [row["reason"] for row in table(config, "dropped.csv")] == [reason]
    counts = prepare(config())
    assert (counts["made"], counts["kept"]) == (1, 1) and table(config, "dropped.csv") == []


def test_a_video_at_which_ffmpeg_crashes_is_damaged_and_a_kill_from_outside_is_not(
    config, collected, tmp_path, stand_in
):
    video(tmp_path, "v0", 0)
    collected("v0")
    for name in ("KILL", "TERM"):
        with stand_in(f"kill -{name} $$"), pytest.raises(OSError, match="killed by signal.*start again"):
            prepare(config())
    with stand_in("kill -SEGV $$"):
        assert prepare(config())["dropped: damaged"] == 1
    assert prepare(config())["made"] == 0  # nor is it tried again


def test_as_many_work_as_the_job_has_cores():
    result = subprocess.run(["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", (
        "from training.prepare import PrepareConfig as P; from training.corpus import CorpusConfig as C;"
        "print(P.workers, C.workers)")], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert result.stdout.split() == ["1", "1"], result.stderr


def test_a_video_that_cannot_be_opened_for_once_is_tried_by_the_next_run(config, collected, tmp_path, monkeypatch):
    video(tmp_path, "v0", 0)
    collected("v0")

    def refuse(*_):
        raise av.error.OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(av, "open", refuse)
        assert prepare(config())["dropped: input/output error"] == 1
    assert prepare(config())["kept"] == 1


def test_a_lost_clip_that_cannot_be_made_again_is_dropped_and_not_left_in_the_manifest(
    config, collected, tmp_path, stand_in
):
    for seed in range(2):
        video(tmp_path, f"v{seed}", seed)
    collected("v0", "v1")
    prepare(config())
    lost, other = table(config)
    (config().output / lost["file"]).unlink()
    with stand_in("exec /bin/sleep 30"):
        counts = prepare(config(timeout=0.2))
    assert counts["kept"] == counts["dropped: took longer than 0.2 s"] == 1
    assert table(config) == [other] and table(config, "dropped.csv")[0]["id"] == lost["id"]
    assert prepare(config())["kept"] == 2 and table(config) == [lost, other]


def test_names_of_files_may_be_no_utf8_and_all_else_may_not(config, collected, tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    video(tmp_path, "cafe", 1).rename(tmp_path / name)
    collected({"id": "cafe", "file": name})
    assert prepare(config())["kept"] == 1
    collected({"id": "cafe", "file": name, "label": os.fsdecode(b"caf\xe9")})
    with pytest.raises(ValueError, match="no UTF-8"):
        prepare(config())


def test_wrong_tables_and_settings_are_said_clearly(config, collected):
    with pytest.raises(FileNotFoundError, match=r"collect\.py"):
        prepare(config())
    collected({"id": "../x", "file": "x.mp4"})
    with pytest.raises(ValueError, match="no file name"):
        prepare(config())
    config().collected.write_text("id,file\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        prepare(config())
    with pytest.raises(ValueError, match="at most 1"):
        prepare(config(test_share=0.7, validation_share=0.6))


@pytest.mark.shared
def test_real_clips_are_kept(config, collected):
    names = ["man_drumming_004", "cat_and_dog_on_sofa_barking_056", "baby_babbling_014"]
    collected(*({"id": name, "file": SHARED / f"{name}.mp4", "end": 2.0} for name in names))
    assert prepare(config(clip_seconds=2.0))["kept"] == 3
