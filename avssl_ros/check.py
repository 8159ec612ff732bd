"""`avssl check`: where the localizer's directions are on a camera's picture, so that nobody is off by 90 degrees."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from avssl_ros.overlay import draw_directions
from avssl_ros.video_input import VideoFile, image_projection, is_image, projection_of_shape, read_image

TOPIC_SECONDS = 10.0
WARM_UP_FRAMES = 5  # a camera needs some for its exposure

WORDS = """Look at {output} while somebody stands in front of the robot: they must be at the line "0° ahead"; what is
at the robot's left must be at "+90° left" (+y), at its right at "-90° right", behind it at the edges, "180° behind".
If not, the camera is mounted turned: turn it, or tell TF where it looks (a static transform of its frame), as all
directions are in the camera's frame."""
WORDS_OF_A_VIEW = """Look at {output}: "0° ahead" is where the camera looks, +x of its frame; left is positive.
If what stands 15 degrees to the left is not at the line "+15°", give the right --fov, and fov_deg to the node."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("input", nargs="?", metavar="INPUT", help="picture or video")
    what.add_argument("--topic", metavar="NAME", help="ROS 2 topic, such as /camera/image/compressed")
    what.add_argument("--camera", type=int, metavar="N", help="number of a camera of this machine, 0 is the first")
    parser.add_argument("--output", metavar="FILE", default="check.png", help="picture to write (default: check.png)")
    parser.add_argument("--projection", choices=("auto", "equirectangular", "perspective"), default="auto",
                        help="what the picture shows (default: auto, by metadata or 2:1 shape)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the picture and say in words what it must show; returns the exit status."""
    image, name, projection, reason = take(arguments)
    output = Path(arguments.output)
    picture = draw_directions(image, projection, arguments.fov)
    if not _write(output, picture):
        raise ValueError(f"{output} cannot be written: give a .png or .jpg in a folder that exists")
    print(f"{name}: {image.shape[1]}x{image.shape[0]}, {projection}: {reason}")
    if projection == "equirectangular" and not 1.9 <= image.shape[1] / image.shape[0] <= 2.1:
        print("It is not twice as wide as high: the node refuses such pictures. Let the camera send the whole sphere.")
    words = WORDS if projection == "equirectangular" else WORDS_OF_A_VIEW
    print(words.format(output=output))
    return 0


def take(arguments: argparse.Namespace) -> tuple[np.ndarray, str, str, str]:
    """The picture RGB uint8 (H, W, 3), what to call it, its projection and why. Raises ValueError or OSError."""
    if arguments.topic:
        image, frame_id, stamp = _of_topic(arguments.topic)
        name = f"{arguments.topic} (frame '{frame_id}'{'' if stamp else ', WITHOUT A STAMP'})"
    elif arguments.camera is not None:
        image, name = _of_camera(arguments.camera), f"camera {arguments.camera}"
    elif is_image(path := Path(arguments.input)):
        image = read_image(path)
        return image, path.name, *image_projection(path, image, arguments.projection)
    else:
        video = VideoFile(path, arguments.projection)
        first = next(iter(video), None)
        if first is None:
            raise ValueError(video.error or f"{path} gives no picture; give another video or a picture")
        return first[1], path.name, video.projection, video.projection_reason
    if arguments.projection != "auto":
        return image, name, arguments.projection, "it was given"
    return image, name, *projection_of_shape(image.shape[1], image.shape[0])


def _of_topic(topic: str) -> tuple[np.ndarray, str, float]:
    try:
        from avssl_ros.ros.camera import optical_frame
        from avssl_ros.ros.one_image import take_image
    except ImportError as error:
        raise ValueError(f"a topic needs ROS 2, which is not here ({error}); give a picture or --camera") from error
    image, frame_id, stamp = take_image(topic, TOPIC_SECONDS)
    if hint := optical_frame(frame_id):
        print(hint)
    return image, frame_id, stamp


def _of_camera(number: int) -> np.ndarray:
    camera = cv2.VideoCapture(number)
    try:
        frames = [camera.read()[1] for _ in range(WARM_UP_FRAMES)]
    finally:
        camera.release()
    if frames[-1] is None:
        raise ValueError(f"camera {number} gives no picture; is it plugged in, or in use by another program?")
    return cv2.cvtColor(frames[-1], cv2.COLOR_BGR2RGB)


def _write(path: Path, picture: np.ndarray) -> bool:
    try:
        return cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:  # a name whose ending is no kind of picture
        return False
