"""timeline.png and the other files of a run: colours, gaps, exact times, and what a killed process leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes

from avssl_ros.audio_input import SoundFile
from avssl_ros.overlay import source_color
from avssl_ros.recording import Recording
from avssl_ros.scene import Localization
from avssl_ros.timeline import _broken_line, draw_timeline, source_names
from avssl_ros.video_input import VideoFile, read_image


def line(time, *sources, unseen=(), active=True):
    keys = ("id", "label", "azimuth_deg")
    described = [
        dict(zip(keys, source, strict=True), elevation_deg=0, extent_deg=9, confidence=0.8) for source in sources
    ]
    heard = [{"label": label, "confidence": 0.7} for label in unseen]
    return {"time": time, "active": active, "sources": described, "unseen": heard}


def pixels_of(image: np.ndarray, color) -> int:
    return int((np.abs(image.astype(int) - color).max(axis=2) < 8).sum())


class TestTimeline:
    def test_each_source_has_its_colour_for_as_long_as_it_sounds(self, tmp_path):
        lines = [line(t / 10, (1, "dog", 40), *([(2, "cat", -60)] if t < 20 else [])) for t in range(80)]
        draw_timeline(lines, tmp_path / "timeline.png")
        image = read_image(tmp_path / "timeline.png")
        long, short = pixels_of(image, source_color(1)), pixels_of(image, source_color(2))
        assert long > 3 * short > 0
        assert pixels_of(image, source_color(3)) == 0

    def test_a_line_stops_in_silence_and_at_the_seam(self):
        points = np.array([(0.0, 170), (0.1, 178), (0.2, -174), (0.3, -170), (2.0, -100)])
        times, azimuths = _broken_line(np.array([0, 1, 2, 3, 20]), *points.T)
        assert np.isnan(times).tolist() == [False, False, True, False, False, True, False]
        assert azimuths[~np.isnan(azimuths)].tolist() == [170, 178, -174, -170, -100]

    def test_a_steady_line_is_whole_where_the_rate_does_not_divide_the_frame_rate(self, tmp_path, monkeypatch):
        """12 Hz of 15 Hz are three frames that follow each other and one that is two steps later."""
        drawn, plot = [], Axes.plot
        monkeypatch.setattr(Axes, "plot", lambda self, *given, **how: (drawn.append(given), plot(self, *given, **how)))
        draw_timeline([line(t / 15, (1, "dog", 40)) for t in range(60) if t % 5], tmp_path / "timeline.png")
        ((times, azimuths),) = drawn
        assert len(times) == 48 and not np.isnan(times).any() and set(azimuths) == {40}

    def test_what_is_not_in_view_gets_a_row_and_silence_is_grey(self, tmp_path):
        lines = [line(t / 10, unseen=["siren"] if t < 30 else [], active=t < 30) for t in range(60)]
        draw_timeline(lines, tmp_path / "unseen.png")
        image = read_image(tmp_path / "unseen.png")
        assert pixels_of(image, (89, 89, 89)) > 3000  # the bar
        assert pixels_of(image, (237, 237, 237)) > 50_000  # nothing sounds
        draw_timeline([{**entry, "unseen": [], "active": True} for entry in lines], tmp_path / "none.png")
        image = read_image(tmp_path / "none.png")
        assert pixels_of(image, (89, 89, 89)) < 1000 and pixels_of(image, (237, 237, 237)) < 1000

    @pytest.mark.parametrize("lines", [[], [line(0.0, (1, "dog", 5))], [line(None, (None, "dog", 5))]])
    def test_few_lines_are_no_error(self, tmp_path, lines):
        draw_timeline(lines, tmp_path / "timeline.png", "title")
        assert read_image(tmp_path / "timeline.png").shape[1] > 1000

    def test_a_source_is_called_what_it_was_called_most_often(self):
        lines = [line(0, (7, "dog", 0)), line(1, (7, "wolf", 0), (3, "car", 0)), line(2, (7, "dog", 0))]
        assert source_names(lines) == {7: "dog", 3: "car"}


def quiet(time=0.0) -> Localization:
    return Localization((), np.zeros((1, 1), np.float32), (), True, time)


class TestRecording:
    @pytest.mark.parametrize("rate", [8000, 11111, 44100, 96000])
    def test_picture_and_sound_keep_their_times(self, tmp_path, rate):
        """A flash and a click at 1.5 s, after a gap in the sound."""
        with Recording(tmp_path, 320, 160, 30, rate) as recording:
            for number in range(60):
                start, end = (round(rate * n / 30) for n in (number, number + 1))
                samples = np.zeros(end - start, np.float32)
                if number == 45:
                    samples[: rate // 100] = 0.9
                if not 10 < number < 20:
                    recording.add_sound(samples, start / rate)
                recording.add_frame(np.full((160, 320, 3), 255 * (number >= 45), np.uint8), number / 30, quiet())
        video, sound = VideoFile(recording.overlay_path), SoundFile(recording.overlay_path)
        flash = next(time for time, image in video if image[80, 160, 0] > 128)
        loud = [(time, samples) for time, samples in sound if np.abs(samples).max() > 0.3]
        click = loud[0][0] + np.argmax(np.abs(loud[0][1]) > 0.3) / sound.sample_rate
        assert flash == pytest.approx(1.5, abs=0.001)
        assert click == pytest.approx(1.5, abs=0.005)
        assert video.error is None and sound.error is None

    def test_uneven_times_are_kept(self, tmp_path):
        times = [0.0, 0.033, 0.3, 0.3, 0.1, 1.25]  # twice the same, and one of the past: those two cannot be shown
        with Recording(tmp_path, 320, 160, 10, None) as recording:
            for time in times:
                recording.add_frame(np.zeros((160, 320, 3), np.uint8), time, quiet())
        shown = [time for time, _ in VideoFile(recording.overlay_path)]
        assert shown == pytest.approx([0.0, 0.033, 0.3, 1.25], abs=0.001)
        assert not VideoFile(recording.overlay_path).has_audio

    @pytest.mark.parametrize(("given", "written"), [((5760, 2880), (1920, 960)), ((321, 163), (320, 164))])
    def test_large_and_odd_pictures_are_scaled(self, tmp_path, given, written):
        with Recording(tmp_path, *given, 10, None) as recording:
            recording.add_frame(np.zeros((given[1], given[0], 3), np.uint8), 0.0, quiet())
        video = VideoFile(recording.overlay_path)
        assert (video.width, video.height) == written

    def test_a_killed_process_leaves_what_it_had(self, tmp_path):
        code = f"""
import os, numpy as np
from avssl_ros.recording import Recording
from avssl_ros.scene import Localization
scene = Localization((), np.zeros((1, 1), np.float32), (), True, 0.0)
recording = Recording({str(tmp_path)!r}, 320, 160, 10, 16000)
images = np.random.default_rng(0).integers(0, 255, (40, 160, 320, 3), dtype=np.uint8)
for number, image in enumerate(images):
    recording.add_sound(np.zeros(1600, np.float32), number / 10)
    recording.add_scene(scene)
    recording.add_frame(image, number / 10, scene)
os._exit(9)
"""
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        assert subprocess.run([sys.executable, "-c", code], env=here, timeout=60).returncode == 9
        assert len((tmp_path / "sources.jsonl").read_text().splitlines()) == 40
        assert len(list(VideoFile(tmp_path / "overlay.mp4"))) >= 10  # but for the encoder's last two seconds or so

    def test_lines_are_on_the_disk_at_once(self, tmp_path):
        recording = Recording(tmp_path, 320, 160, 10, None)
        recording.add_scene(quiet(0.5))
        written = [json.loads(text) for text in recording.sources_path.read_text().splitlines()]
        assert written == recording.lines == [{"version": 1, "time": 0.5, "active": True, "sources": [], "unseen": []}]
        recording.add_frame(np.zeros((160, 320, 3), np.uint8), 0.5, quiet(0.5))
        recording.close()
        recording.close()  # twice is no error
        assert cv2.imread(str(recording.timeline_path)) is not None
        assert recording.overlay_path.stat().st_size > 0
