"""Segments follow on from one another, stay within the limit, and survive whatever ends the recording."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avssl_ros import record
from avssl_ros import recorder as module
from avssl_ros.audio_input import AudioBuffer, read_audio
from avssl_ros.cli import main
from avssl_ros.mp4 import Mp4Writer
from avssl_ros.record import keep
from avssl_ros.recorder import Recorder, SoundTap
from avssl_ros.video_input import VideoFile

RATE, FPS = 16000, 10
START = 1_795_000_000.0  # 2026-11-18 11:06:40 UTC


def picture(level: int, width: int = 64) -> np.ndarray:
    return np.full((32, width, 3), level, np.uint8)


def play(recorder: Recorder, seconds: float, start: float = START, lag: float = 0.3, width: int = 64) -> None:
    """Pictures that brighten by 2 each, and a tone in blocks of 0.1 s that arrive `lag` later than their pictures."""
    count = round(seconds * FPS)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)
    late = round(lag * FPS)
    for number in range(count + late):
        if number < count:
            recorder.add_frame(picture(2 * number % 256, width), start + number / FPS)
        if number >= late:
            first = (number - late) * RATE // FPS
            recorder.add_sound(tone[first : first + RATE // FPS], RATE, start + first / RATE)


def lengths(path: Path) -> tuple[int, float, float]:
    """Pictures, seconds of sound, and the share of them in which the tone is heard."""
    samples, rate = read_audio(path)
    blocks = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160).max(axis=1)
    return len(list(VideoFile(path))), len(samples) / rate, float((blocks > 0.2).mean())


def test_segments_follow_on_and_each_has_the_sound_of_its_time(tmp_path):
    with Recorder(tmp_path, segment_seconds=2, fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 5.0)
    names = [path.name for path in recorder.segments()]
    assert names == ["20261118T110640.000Z.mp4", "20261118T110642.000Z.mp4", "20261118T110644.000Z.mp4"]
    for path, seconds in zip(recorder.segments(), (2.0, 2.0, 1.0)):
        pictures, sound, heard = lengths(path)
        assert pictures == seconds * FPS and sound == pytest.approx(seconds, abs=0.08) and heard > 0.95, path
    assert next(iter(VideoFile(recorder.segments()[1])))[1].mean() == pytest.approx(2 * 20, abs=3)


def test_the_oldest_segments_give_way_and_other_files_stay(tmp_path):
    (tmp_path / "notes.mp4").write_bytes(bytes(50_000))
    with Recorder(tmp_path, segment_seconds=1, fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 3.0)
    size = max(path.stat().st_size for path in recorder.segments())
    with Recorder(tmp_path, segment_seconds=1, limit_bytes=4 * size, fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 8.0, START + 100)
    left = recorder.segments()
    assert sum(path.stat().st_size for path in left) <= 4 * size and recorder.deleted == 11 - len(left) > 0
    assert left[-1].name == "20261118T110827.000Z.mp4" and (tmp_path / "notes.mp4").exists()


def test_another_size_or_a_jump_in_time_begins_a_segment_and_none_is_replaced(tmp_path):
    with Recorder(tmp_path, segment_seconds=30, fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 1.0)
        play(recorder, 1.0, START + 1.0, width=96)
        play(recorder, 1.0, START)  # the clock was set back
        play(recorder, 1.0, START + 3600)
    paths = recorder.segments()
    assert len(paths) == 4 and [lengths(path)[0] for path in paths] == [10] * 4
    assert sorted(VideoFile(path).width for path in paths) == [64, 64, 64, 96]


def test_without_sound_there_are_pictures(tmp_path):
    with Recorder(tmp_path, fps=FPS) as recorder:
        for number in range(5):
            recorder.add_frame(picture(number), START + number / FPS)
    (path,) = recorder.segments()
    assert len(list(VideoFile(path))) == 5


def test_sound_of_a_clock_a_week_ahead_is_not_kept_and_takes_no_time(tmp_path):
    with Recorder(tmp_path, fps=FPS, sample_rate=RATE) as recorder:
        recorder.add_frame(picture(0), START)
        begun = time.process_time()  # a week of silence is work; waiting for a busy machine is none
        recorder.add_sound(np.zeros(RATE // 10, np.float32), RATE, START + 7 * 86400)
        recorder.add_frame(picture(2), START + 0.1)
        assert time.process_time() - begun < 1.0
    writer = Mp4Writer(tmp_path / "alone.mp4", 64, 32, FPS, RATE)
    writer.add_sound(np.zeros(RATE // 10, np.float32), 7 * 86400.0)
    assert time.process_time() - begun < 2.0
    writer.close()


def test_without_pictures_no_sound_is_kept_until_they_are_back(tmp_path):
    """Not beyond the segment's length either, which would pass the limit of the disk."""
    with Recorder(tmp_path, segment_seconds=20, fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 1.0, lag=0.0)
        for number in range(10, 400):  # the camera is gone, the microphone is not
            recorder.add_sound(np.full(RATE // 10, 0.5, np.float32), RATE, START + number / 10)
        play(recorder, 1.0, START + 40.0, lag=0.0)
    first, second = recorder.segments()
    pictures, sound, _ = lengths(first)
    assert pictures == 10 and 2.5 < sound < 3.5
    assert lengths(second)[0] == 10 and lengths(second)[1] == pytest.approx(1.0, abs=0.1)


def test_a_segment_has_the_sound_that_came_before_its_first_picture(tmp_path):
    """A picture takes longer from the camera to here than the sound does."""
    with Recorder(tmp_path, segment_seconds=2, fps=FPS, sample_rate=RATE) as recorder:
        tone = np.full(RATE // FPS, 0.5, np.float32)
        for number in range(45):
            recorder.add_sound(tone, RATE, START + number / FPS)
            if number >= 5:
                recorder.add_frame(picture(number), START + (number - 5) / FPS)
    assert len(recorder.segments()) == 2
    for path in recorder.segments():
        samples, rate = read_audio(path)
        assert np.abs(samples[: rate // 2]).mean() > 0.4, path
        assert len(samples) / rate == pytest.approx(2.0, abs=0.1)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Recorder("~/place").folder == tmp_path / "place"


def test_what_makes_no_sense_is_refused_and_a_full_disk_is_said(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="got 0 s"):
        Recorder(tmp_path, segment_seconds=0)
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 60)
    with Recorder(tmp_path) as recorder, pytest.raises(OSError, match="another disk"):
        recorder.add_frame(picture(0), START)


def test_a_killed_recording_is_readable(tmp_path):
    program = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_recorder import *
with Recorder({str(tmp_path)!r}, segment_seconds=4, fps=FPS, sample_rate=RATE) as recorder:
    play(recorder, 11.0)
    print("there", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    paths = Recorder(tmp_path).segments()
    assert len(paths) == 3 and [lengths(path)[0] for path in paths[:2]] == [40, 40]
    assert lengths(paths[2])[0] >= 10  # of 30; the rest was in the encoder


class Clock:
    """In place of the module `time`: goes on by what is slept alone, so that a busy machine drops no picture."""

    def __init__(self):
        self.now = START

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Source:
    """A microphone whose sound arrives with the time of a clock."""

    def __init__(self, clock=time):
        self.buffer, self._clock = AudioBuffer(RATE), clock
        self._end = clock.time()

    def deliver(self) -> None:
        count = int((self._clock.time() - self._end) * RATE)
        if count:
            self.buffer.write(np.full(count, 0.5, np.float32), self._end)
            self._end += count / RATE


def test_each_sample_is_read_once_and_the_loop_ends_when_it_should(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(record, "time", clock)
    source = Source(clock)
    tap, heard = SoundTap(source), 0
    for _ in range(20):
        clock.sleep(1 / 64)
        source.deliver()
        samples, rate, first = tap.read()
        assert (rate, first) == (RATE, pytest.approx(START + heard / RATE, abs=1e-6))
        heard += len(samples)
        assert tap.read() is None
    assert heard == source.buffer.read(clock.time(), 5.0).size == 20 * RATE // 64

    def pictures():
        while True:
            clock.sleep(1 / 64)
            source.deliver()
            yield picture(100)

    with Recorder(tmp_path, fps=FPS, sample_rate=RATE) as recorder:
        keep(pictures(), source, recorder, FPS, seconds=2.0)
    assert clock.time() == START + (20 + 128 + 1) / 64  # the first picture after the two seconds
    count, sound, loud = lengths(recorder.segments()[0])
    assert count == 20 and sound == pytest.approx(2.0, abs=0.1) and loud > 0.95


def test_the_command_records_a_file_as_if_it_were_a_camera(tmp_path, capsys):
    with Recorder(tmp_path / "camera", fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 3.0)
    (video,) = recorder.segments()
    folder = tmp_path / "place"
    arguments = ["record", str(folder), "--camera", str(video), "--sound", str(video), "--segment", "2", "--rate", "5"]
    assert main(arguments) == 0
    assert "2 segments written, 0 deleted" in capsys.readouterr().out
    first, second = Recorder(folder).segments()
    pictures, sound, heard = lengths(first)
    assert pictures == pytest.approx(10, abs=2) and sound == pytest.approx(2, abs=0.3) and heard > 0.7
    assert lengths(second)[0] >= 2
    for bad, said in ((["--camera", "nowhere.mp4"], "neither the number"), (["--camera", "99"], "camera 99"),
                      (["--segment", "0", "--camera", str(video)], "got 0.0 s")):  # fmt: skip
        assert main(["record", str(folder), "--sound", str(video), *bad]) == 2
        assert said in capsys.readouterr().err


def test_a_microphones_rate_is_known_before_the_first_segment(tmp_path, monkeypatch, capsys):
    """Else each recording begins with a segment of one picture, of the wrong rate and without sound."""
    class Microphone(Source):
        def __init__(self, _):
            super().__init__()
            self.buffer, self.state = AudioBuffer(48000), "absent"

        sample_rate = property(lambda self: self.buffer.sample_rate)

        def start(self):
            self.buffer, self.state, self._end = AudioBuffer(RATE), "ok", time.time()

        def stop(self):
            self.state = "stopped"

        def status(self):
            return self

    microphone = Microphone(None)

    def camera(_):
        for number in range(20):
            time.sleep(0.05)
            if number > 2:  # a picture is there at once, sound takes a moment
                microphone.deliver()
            yield picture(number)

    monkeypatch.setattr(record, "Microphone", lambda _: microphone)
    monkeypatch.setattr(record, "camera", camera)
    assert main(["record", str(tmp_path)]) == 0
    assert "1 segments written" in capsys.readouterr().out and microphone.state == "stopped"
    microphone.state = "ok"
    assert main(["record", str(tmp_path), "--segment", "0"]) == 2 and microphone.state == "stopped"


def test_a_stop_from_outside_finishes_the_files(tmp_path):
    with Recorder(tmp_path / "camera", fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 30.0)
    video, folder = str(recorder.segments()[0]), tmp_path / "place"
    command = [sys.executable, "-m", "avssl_ros.cli", "record", str(folder), "--camera", video, "--sound", video]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (folder.exists() and any(path.stat().st_size for path in folder.iterdir())):
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)  # the file has a header by now, and hardly its first picture
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "1 segments written" in said
    assert len(list(VideoFile(Recorder(folder).segments()[0]))) >= 1


def test_a_stop_while_a_file_is_opened_leaves_a_picture_in_it(tmp_path, monkeypatch, capsys):
    """It came between the header and the first picture, and the segment could not be read by anyone."""
    with Recorder(tmp_path / "camera", fps=FPS, sample_rate=RATE) as recorder:
        play(recorder, 3.0)
    (video,) = recorder.segments()

    class Opened(Mp4Writer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "Mp4Writer", Opened)
    assert main(["record", str(tmp_path / "place"), "--camera", str(video), "--sound", str(video)]) == 0
    assert "1 segments written" in capsys.readouterr().out
    assert len(list(VideoFile(Recorder(tmp_path / "place").segments()[0]))) == 1
