"""The command as a person runs it: files in, files and a summary out; clear errors; nothing lost when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import media
import numpy as np
import pytest

from avssl_ros import cli
from avssl_ros.audio_input import SoundFile, read_audio
from avssl_ros.geometry import angle_between, pixel_to_direction
from avssl_ros.scene import Localization, Source, Unseen
from avssl_ros.video_input import VideoFile

ROOT = Path(__file__).resolve().parents[1]
VECTOR = np.zeros(4, np.float32)


class LoudnessStream:
    """Says that a dog 60 degrees to the left sounds whenever the newest 50 ms are loud; unseen siren above 0.6."""

    def __init__(self, calls):
        self.calls = calls

    def process(self, image, audio, sample_rate, time):
        assert image.dtype == np.uint8 and audio.dtype == np.float32 and audio.ndim == 1
        self.calls.append((time, len(audio) / sample_rate))
        level = float(np.abs(audio[-sample_rate // 20 :]).max())
        value_map = np.zeros((32, 64), np.float32)
        if level < 0.05:
            return Localization((), value_map, (), False, time)
        azimuths, elevations = pixel_to_direction(*np.meshgrid(np.arange(64), np.arange(32)), 64, 32)
        value_map[angle_between(azimuths, elevations, np.pi / 3, 0.0) < 0.3] = 1.0
        source = Source(np.pi / 3, 0.0, 0.3, 0.9, "dog", 0, VECTOR, value_map, id=1, state="active", onset=0.0)
        unseen = (Unseen("siren", 1, 0.7, VECTOR),) if level > 0.6 else ()
        return Localization((source,), value_map, unseen, True, time)

    def silence(self, time):
        return ()


@pytest.fixture
def loudness(monkeypatch):
    """Replaces the model by LoudnessStream; gives the list of (time, seconds of sound) it was called with."""
    calls = []
    fake = types.SimpleNamespace(window_seconds=1.0, stream=lambda projection: LoudnessStream(calls))
    monkeypatch.setattr(cli, "_make_localizer", lambda arguments: fake)
    return calls


def loud_from_to(start: float, end: float, seconds: float, rate: int, level=0.5) -> np.ndarray:
    sound = media.tone(seconds, rate, level=level)
    sound[: int(start * rate)] = 0
    sound[int(end * rate) :] = 0
    return sound


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """3 s of 360 degree video at 20 frames a second; it sounds from 1 s to 2 s."""
    path = tmp_path_factory.mktemp("clip") / "room.mp4"
    images = [np.full((160, 320, 3), 60, np.uint8)] * 60
    return media.write_mp4(path, images, fps=20, sound=loud_from_to(1, 2, 3, 44100), rate=44100)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / "sources.jsonl").read_text().splitlines()]


def test_localize_writes_the_three_files_and_a_summary(loudness, clip, tmp_path, capsys):
    assert cli.main(["localize", str(clip), "--output", str(tmp_path / "out")]) == 0
    lines = lines_of(tmp_path / "out")
    assert [line["time"] for line in lines] == pytest.approx([n / 10 for n in range(30)], abs=0.001)
    heard = [line["time"] for line in lines if line["sources"]]
    assert heard[0] == pytest.approx(1.1, abs=0.11) and heard[-1] == pytest.approx(2.0, abs=0.11)
    assert lines[15]["sources"][0]["azimuth_deg"] == 60.0
    overlay = tmp_path / "out" / "overlay.mp4"
    frames = list(VideoFile(overlay))
    assert len(frames) == 60 and frames[0][1].shape == (160, 320, 3)
    assert int(frames[35][1][80, 107].max()) > 120 > int(frames[10][1][80, 107].max())  # marked while it sounds
    sound, rate = read_audio(overlay)
    assert np.abs(sound[int(1.2 * rate) : int(1.8 * rate)]).max() > 0.4
    assert np.abs(sound[int(0.1 * rate) : int(0.9 * rate)]).max() < 0.05
    assert cv2.imread(str(tmp_path / "out" / "timeline.png")) is not None
    said = capsys.readouterr().out
    assert "equirectangular" in said and "dog" in said and "+60" in said
    for name in ("sources.jsonl", "overlay.mp4", "timeline.png"):
        assert str(tmp_path / "out" / name) in said


def test_each_frame_gets_the_sound_that_ends_at_its_time(loudness, clip, tmp_path):
    cli.main(["localize", str(clip), "--output", str(tmp_path), "--rate", "20"])
    assert len(loudness) >= 57  # all but those before there is 0.1 s of sound
    for frame_time, seconds in loudness:
        assert seconds == pytest.approx(min(1.0, frame_time), abs=0.03)


@pytest.mark.parametrize("rate", [3, 7, 20])
def test_rate_is_kept_when_it_does_not_divide_the_frame_rate(loudness, clip, tmp_path, rate):
    cli.main(["localize", str(clip), "--output", str(tmp_path), "--rate", str(rate)])
    assert len(lines_of(tmp_path)) == pytest.approx(3 * rate, abs=1)


def test_a_picture_and_a_sound(loudness, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "room.png"), np.full((100, 150, 3), 60, np.uint8))
    sound = media.write_wav(tmp_path / "a.wav", loud_from_to(0.5, 1.5, 2.0, 16000, level=0.8), 16000)
    assert cli.main(["localize", str(tmp_path / "room.png"), "--sound", str(sound), "--output", str(tmp_path)]) == 0
    lines = lines_of(tmp_path)
    assert len(lines) == pytest.approx(20, abs=1)
    assert 8 <= sum(bool(line["sources"]) for line in lines) <= 12
    said = capsys.readouterr().out
    assert "perspective" in said and "not in view: siren" in said
    assert VideoFile(tmp_path / "overlay.mp4").duration == pytest.approx(2.0, abs=0.2)


def test_sound_that_ends_before_the_video(loudness, clip, tmp_path):
    sound = media.write_wav(tmp_path / "short.wav", media.tone(0.6, 8000), 8000)
    assert cli.main(["localize", str(clip), "--sound", str(sound), "--output", str(tmp_path)]) == 0
    lines = lines_of(tmp_path)
    assert len(lines) == 30
    assert not any(line["active"] or line["sources"] for line in lines[17:])


def test_a_window_of_sound_ends_at_its_time_with_silence_where_the_file_has_none(tmp_path):
    sound = cli.SoundWindow(media.write_wav(tmp_path / "short.wav", np.ones(8000), 8000), 2.0)
    list(sound.advance(5.0))
    window = sound.read(1.5)
    assert len(window) == pytest.approx(12000, abs=1) and window.dtype == np.float32
    assert window[:7990].min() > 0.9 and not window[8010:].any()
    assert len(sound.read(2.9)) == 16000 and sound.read(2.9)[:700].any() and not sound.read(3.1).size


def test_a_gap_within_the_sound_is_silence(tmp_path):
    sound = cli.SoundWindow(media.write_wav(tmp_path / "a.wav", np.ones(800), 8000), 2.0)
    sound._next, sound._blocks = (0.0, np.ones(8000, np.float32)), iter([(1.5, np.ones(8000, np.float32))])
    list(sound.advance(1.4))
    assert not sound.read(1.4)[-3100:].any() and sound.read(1.4)[:7900].all()
    list(sound.advance(2.0))
    window = sound.read(2.0)
    assert len(window) == 16000 and window[:7990].all() and not window[8010:11990].any() and window[12010:].all()


def test_nothing_sounds_soon_after_the_sound_has_ended(loudness, clip, tmp_path):
    sound = media.write_wav(tmp_path / "short.wav", media.tone(1.5, 8000), 8000)
    assert cli.main(["localize", str(clip), "--sound", str(sound), "--output", str(tmp_path)]) == 0
    heard = [line["time"] for line in lines_of(tmp_path) if line["sources"]]
    assert heard[-1] == pytest.approx(1.5, abs=0.11)


def test_a_video_whose_clock_begins_hours_from_0(loudness, clip, tmp_path, capsys):
    late = media.moved(clip, tmp_path / "late.ts", 7200.0)
    assert cli.main(["localize", str(late), "--output", str(tmp_path / "out")]) == 0
    lines = lines_of(tmp_path / "out")
    assert len(lines) == pytest.approx(30, abs=1) and "warning" not in capsys.readouterr().err
    heard = [line["time"] for line in lines if line["sources"]]
    assert heard[0] == pytest.approx(1.1, abs=0.13) and heard[-1] == pytest.approx(2.0, abs=0.13)
    assert cli.main(["check", str(late), "--output", str(tmp_path / "check.png")]) == 0


def test_a_run_does_not_write_over_what_it_reads(loudness, clip, tmp_path, capsys):
    overlay = tmp_path / "overlay.mp4"
    overlay.write_bytes(content := clip.read_bytes())
    (tmp_path / "link.mp4").symlink_to(overlay)
    for path in (overlay, tmp_path / "link.mp4"):
        assert "another --output" in error_of(capsys, "localize", path, "--output", tmp_path)
    assert "another --output" in error_of(capsys, "localize", clip, "--sound", overlay, "--output", tmp_path)
    assert overlay.read_bytes() == content and not (tmp_path / "sources.jsonl").exists()


def test_a_run_that_is_refused_leaves_the_results_of_the_last_one(loudness, clip, tmp_path, capsys):
    for name in ("sources.jsonl", "overlay.mp4", "timeline.png"):
        (tmp_path / name).write_text("earlier")
    fine = media.write_wav(tmp_path / "fine.wav", media.tone(0.2, 352_800), 352_800)
    wide = media.write_mp4(tmp_path / "wide.mp4", media.noise_images(3, 320, 180), sound=media.tone(0.3, 44100))
    assert "ffmpeg" in error_of(capsys, "localize", clip, "--sound", fine, "--output", tmp_path)
    said = error_of(capsys, "localize", wide, "--projection", "equirectangular", "--output", tmp_path)
    assert "twice as wide as high" in said
    for name in ("sources.jsonl", "overlay.mp4", "timeline.png"):
        assert (tmp_path / name).read_text() == "earlier"


def test_without_output_the_results_lie_in_a_folder_of_the_inputs_name(loudness, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["localize", str(clip), "--rate", "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "room_sources").iterdir()) == [
        "overlay.mp4",
        "sources.jsonl",
        "timeline.png",
    ]


def test_a_cut_off_video_is_done_as_far_as_it_goes(loudness, tmp_path, capsys):
    whole = tmp_path / "whole.mp4"
    media.write_mp4(whole, media.noise_images(30), fps=10, sound=media.tone(3, 44100), index_first=True)
    assert cli.main(["localize", str(media.cut_off(whole)), "--output", str(tmp_path)]) == 0
    assert "warning" in (said := capsys.readouterr().err) and "cut off" in said
    assert 10 <= len(lines_of(tmp_path)) <= 20
    assert len(list(VideoFile(tmp_path / "overlay.mp4"))) == len(lines_of(tmp_path))


def test_of_joined_files_the_first_is_used_and_that_is_said(loudness, clip, tmp_path, capsys):
    one = media.moved(clip, tmp_path / "one.ts", 0.0)
    alone, joined = tmp_path / "alone", tmp_path / "joined"
    assert cli.main(["localize", str(one), "--output", str(alone)]) == 0
    (two := tmp_path / "two.ts").write_bytes(2 * one.read_bytes())
    assert cli.main(["localize", str(two), "--output", str(joined)]) == 0
    said = capsys.readouterr().err
    assert "two.ts: the clock of its video goes back at 3.1 s" in said and "one.ts" not in said
    assert len(lines_of(joined)) == len(lines_of(alone))
    video, sound = VideoFile(two), SoundFile(two)
    for _ in range(2):  # a file may be played in a loop
        assert len(list(video)) == len(list(VideoFile(one))) and len(list(sound)) == len(list(SoundFile(one)))
    assert "the clock of its sound goes back at 3." in sound.error


def error_of(capsys, *arguments) -> str:
    """What stderr says of a user's error: one line, exit status 2."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("avssl: error: ") and said.count("\n") == 1
    return said


def test_user_errors_are_one_clear_line(loudness, clip, tmp_path, capsys):
    mute = media.write_mp4(tmp_path / "mute.mp4", media.noise_images(3))
    wav = media.write_wav(tmp_path / "a.wav", media.tone(1, 8000), 8000)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 128, 3), np.uint8))
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    assert "does not exist" in error_of(capsys, "localize", tmp_path / "none.mp4")
    assert "--sound" in error_of(capsys, "localize", mute)
    assert "--sound" in error_of(capsys, "localize", tmp_path / "a.png")
    assert "no picture, only sound" in error_of(capsys, "localize", wav)
    assert "no media file" in error_of(capsys, "localize", tmp_path / "text.mp4")
    assert "does not exist" in error_of(capsys, "localize", mute, "--sound", tmp_path / "none.wav")
    assert "no sound stream" in error_of(capsys, "localize", clip, "--sound", mute)
    (tmp_path / "file").touch()
    assert "file" in error_of(capsys, "localize", clip, "--output", tmp_path / "file")


@pytest.mark.parametrize(
    "arguments", [["--rate", "0"], ["--rate", "0.1"], ["--fov", "200"], ["--rate", "fast"], ["--unknown"]]
)
def test_wrong_options_are_refused(clip, arguments, capsys):
    with pytest.raises(SystemExit) as exit_status:
        cli.main(["localize", str(clip), *arguments])
    assert exit_status.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_is_for_newcomers(capsys):
    for arguments, words in ((["--help"], ["localize", "demo", "devices"]), (["localize", "--help"], ["examples:"])):
        with pytest.raises(SystemExit) as exit_status:
            cli.main(arguments)
        assert exit_status.value.code == 0
        said = capsys.readouterr().out
        assert all(word in said for word in words)
    for word in ("--sound", "sources.jsonl", "overlay.mp4", "timeline.png", "+90 left"):
        assert word in said


def test_demo_hands_its_options_on(monkeypatch):
    demo = types.ModuleType("avssl_ros.ros.demo")
    demo.main = lambda arguments: 0 if arguments == ["--output", "there"] else 1
    monkeypatch.setitem(sys.modules, "avssl_ros.ros.demo", demo)
    assert cli.main(["demo", "--output", "there"]) == 0


def test_demo_without_ros_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "avssl_ros.ros.demo", None)  # importing it fails
    assert "avssl_ros[ros]" in error_of(capsys, "demo")


def test_check_draws_directions_and_says_in_words_what_must_be_where(clip, tmp_path, capsys):
    picture = tmp_path / "check.png"
    assert cli.main(["check", str(clip), "--output", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "equirectangular" in said and "2:1" in said and str(picture) in said and '"+90° left"' in said
    assert cv2.imread(str(picture)).shape == (160, 320, 3)
    square = tmp_path / "square.png"
    cv2.imwrite(str(square), np.zeros((200, 200, 3), np.uint8))
    assert cli.main(["check", str(square), "--output", str(picture), "--fov", "60"]) == 0
    assert "not the 2:1 shape" in capsys.readouterr().out
    assert cli.main(["check", str(square), "--output", str(picture), "--projection", "equirectangular"]) == 0
    assert "the node refuses" in capsys.readouterr().out


def test_check_explains_what_it_cannot_use(clip, tmp_path, monkeypatch, capsys):
    assert "does not exist" in error_of(capsys, "check", tmp_path / "none.png")
    assert "camera 99" in error_of(capsys, "check", "--camera", "99")
    assert "cannot be written" in error_of(capsys, "check", clip, "--output", tmp_path / "none" / "a.png")
    assert "cannot be written" in error_of(capsys, "check", clip, "--output", tmp_path / "a.nothing")
    monkeypatch.setattr(VideoFile, "__iter__", lambda video: iter(()))
    assert "gives no picture" in error_of(capsys, "check", clip)
    monkeypatch.setitem(sys.modules, "avssl_ros.ros.one_image", None)  # importing it fails
    assert "ROS 2" in error_of(capsys, "check", "--topic", "/camera/image")


class TestWithTheShippedModel:
    @pytest.mark.parametrize("rate", [8000, 96000])
    def test_a_video_with_sound_of_another_rate(self, clip, tmp_path, rate, capsys):
        sound = media.write_wav(tmp_path / "a.wav", media.tone(3, rate), rate)
        assert cli.main(["localize", str(clip), "--sound", str(sound), "--output", str(tmp_path), "--rate", "2"]) == 0
        lines = lines_of(tmp_path)
        assert len(lines) == 6 and lines[-1]["active"]
        assert SoundFile(tmp_path / "overlay.mp4").sample_rate == rate

    def test_silence_has_no_source(self, clip, tmp_path):
        sound = media.write_wav(tmp_path / "a.wav", np.zeros(48000), 16000)
        assert cli.main(["localize", str(clip), "--sound", str(sound), "--output", str(tmp_path), "--rate", "2"]) == 0
        assert not any(line["active"] or line["sources"] or line["unseen"] for line in lines_of(tmp_path))

    def test_errors_of_models_and_providers(self, clip, tmp_path, capsys):
        said = error_of(capsys, "localize", clip, "--provider", "TurboExecutionProvider", "--output", tmp_path)
        assert "TurboExecutionProvider" in said
        assert str(tmp_path / "none") in error_of(capsys, "localize", clip, "--models", tmp_path / "none")
        assert "threads" in error_of(capsys, "localize", clip, "--threads", "0", "--output", tmp_path)

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
    def test_when_interrupted_the_files_are_finished(self, tmp_path, how):
        images = [np.full((160, 320, 3), 60, np.uint8)] * 600
        path = media.write_mp4(tmp_path / "long.mp4", images, fps=20, sound=media.tone(30, 44100))
        command = [sys.executable, "-m", "avssl_ros.cli", "localize", str(path), "--output", str(tmp_path / "out")]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True)
        lines = tmp_path / "out" / "sources.jsonl"
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if lines.exists() and lines.read_text().count("\n") >= 5:
                break
            time.sleep(0.05)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
        done = len(lines_of(tmp_path / "out"))
        assert 5 <= done < 300
        frames = list(VideoFile(tmp_path / "out" / "overlay.mp4"))
        assert abs(len(frames) - 2 * done) <= 2
        assert (tmp_path / "out" / "timeline.png").stat().st_size > 1000
