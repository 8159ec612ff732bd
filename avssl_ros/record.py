"""`avssl record`: keep what a camera and a microphone of this machine deliver, as material to train or adapt on.

Writes mp4 segments (recorder.py) until Ctrl-C, SIGTERM, --seconds, or the end of a file that stands in for the camera.
A node that runs keeps its own sensors' with the parameter `record`; with --bag a ROS 2 bag is turned into segments.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from avssl_ros.audio_input import AudioSource, FileAudio, Microphone
from avssl_ros.interrupt import Interrupt
from avssl_ros.recorder import GB, SEGMENT_SECONDS, Recorder, SoundTap
from avssl_ros.rhythm import Rhythm
from avssl_ros.video_input import VideoFile

RETRY_SECONDS = 1.0  # between two attempts to open a camera that is gone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="DIR", help="folder for the segments; what is in it counts towards the limit")
    parser.add_argument("--camera", metavar="N|FILE", default="0",
                        help="number of a camera of this machine, or a video file that is played once (default: 0)")
    parser.add_argument("--microphone", metavar="NAME", help="name, or a part of it (default: the system's default)")
    parser.add_argument("--sound", metavar="FILE", help="take the sound from this file, in a loop")
    parser.add_argument("--bag", metavar="BAG", help="take both from a ROS 2 bag (sqlite3, MCAP)")
    parser.add_argument("--image-topic", metavar="NAME", help="of the bag, where it has several")
    parser.add_argument("--sound-topic", metavar="NAME", help="of the bag, where it has several")
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="pictures of a second (default: 10)")
    parser.add_argument("--segment", type=float, default=SEGMENT_SECONDS, metavar="SECONDS",
                        help=f"length of a file (default: {SEGMENT_SECONDS:g})")
    parser.add_argument("--limit", type=float, default=10.0, metavar="GB",
                        help="of all segments together; the oldest are deleted (default: 10)")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so long (default: at Ctrl-C)")


def run(arguments: argparse.Namespace) -> int:
    """Record, and say what there is; returns the exit status. Raises ValueError, OSError, AudioDeviceError."""
    with Interrupt() as interrupt:
        return (convert_bag if arguments.bag else record_sensors)(arguments, interrupt)


def record_sensors(arguments: argparse.Namespace, interrupt: Interrupt) -> int:
    """Camera and microphone, until the end that was asked for or an interrupt."""
    source: AudioSource = FileAudio(arguments.sound, loop=True) if arguments.sound else Microphone(arguments.microphone)
    pictures = camera(arguments.camera)
    source.start()  # before the recorder is made: only then a microphone's rate is known
    try:
        limit = arguments.limit * GB
        recorder = Recorder(arguments.output, arguments.segment, limit, arguments.rate, source.sample_rate)
        try:
            with recorder:
                keep(interrupt.between(pictures), source, recorder, arguments.rate, arguments.seconds)
        except KeyboardInterrupt:
            print(f"avssl: ended after {recorder.written} segments", file=sys.stderr)
    finally:
        if (status := source.status()).state != "ok":
            print(f"avssl: warning: {status.detail}", file=sys.stderr)
        source.stop()
    summary(recorder)
    return 0


def convert_bag(arguments: argparse.Namespace, interrupt: Interrupt) -> int:
    """The same of a bag, as fast as it can be read."""
    try:
        from avssl_ros.ros.bag import Bag
    except ImportError as error:
        raise ValueError(f"the messages of a bag need ROS 2, which is not here ({error}): "
                         "pip install 'avssl_ros[ros,bags]'") from error
    bag = Bag(arguments.bag, arguments.image_topic, arguments.sound_topic)
    try:
        limit = arguments.limit * GB
        with Recorder(arguments.output, arguments.segment, limit, arguments.rate, bag.sample_rate) as recorder:
            seconds = np.inf if arguments.seconds is None else arguments.seconds
            bag.convert(recorder, arguments.rate, seconds, interrupt)
    finally:
        bag.close()
    if bag.unreadable:
        print(f"avssl: warning: {bag.unreadable} messages could not be read and are left out", file=sys.stderr)
    summary(recorder)
    return 0


def summary(recorder: Recorder) -> None:
    size = sum(path.stat().st_size for path in recorder.segments())
    print(f"{recorder.folder}: {recorder.written} segments written, {recorder.deleted} deleted, {size / 1e6:.1f} MB")


def keep(pictures: Iterator[np.ndarray | None], source: AudioSource, recorder: Recorder, rate: float,
         seconds: float | None = None) -> None:
    """Record pictures (None: there is none now), at most `rate` of a second, and the sound, until the pictures end."""
    tap, start, rhythm = SoundTap(source), time.monotonic(), Rhythm(rate)
    for picture in pictures:
        now = time.monotonic()
        if seconds is not None and now - start > seconds:
            return
        if (heard := tap.read()) is not None:
            recorder.add_sound(*heard)
        if picture is not None and rhythm.is_due(now):
            recorder.add_frame(picture, time.time())


def camera(name: str) -> Iterator[np.ndarray | None]:
    """Pictures RGB uint8 (H, W, 3) as they come; None now and then while a camera is gone. A file is played once.

    Raises ValueError where there is no such camera or file.
    """
    if not name.isdecimal():
        if not Path(name).exists():
            raise ValueError(f"{name} is neither the number of a camera nor a video file")
        return _play(VideoFile(name))
    device = cv2.VideoCapture(int(name))
    if not device.isOpened():
        raise ValueError(f"camera {name} cannot be opened; is it plugged in, or in use by another program?")
    return _look(int(name), device)


def _look(number: int, device: cv2.VideoCapture) -> Iterator[np.ndarray | None]:
    is_gone = False
    for _ in itertools.count():
        there, picture = device.read()
        if there != (not is_gone):
            is_gone = not there
            print(f"avssl: camera {number} is {'gone; trying again' if is_gone else 'back'}", file=sys.stderr)
        if there:
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        else:
            yield None
            time.sleep(RETRY_SECONDS)
            device.release()
            device = cv2.VideoCapture(number)


def _play(video: VideoFile) -> Iterator[np.ndarray]:
    start = time.monotonic()
    for moment, picture in video:
        time.sleep(max(0.0, start + moment - time.monotonic()))
        yield picture
