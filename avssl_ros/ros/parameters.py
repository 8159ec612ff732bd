"""Every parameter of the three nodes as one table of data, and how it is declared, checked and printed.

python -m avssl_ros.ros.parameters        # the table as Markdown, for the README
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node

from avssl_ros.geometry import VIEW_PROJECTIONS
from avssl_ros.tracking import TrackingConfig


@dataclass(frozen=True)
class Parameter:
    """One parameter of a node.

    Attributes:
        default: its Python type is the parameter's type; a list is an array of the type of its elements.
        range: (least, largest) value of a number or of each element of an array.
        choices: the values a string may have.
        read_only: set at start only.
    """

    name: str
    default: bool | int | float | str | list
    description: str
    range: tuple[float, float] | None = None
    choices: tuple[str, ...] | None = None
    read_only: bool = False

    @property
    def type_name(self) -> str:
        if isinstance(self.default, list):
            return f"{_TYPE_NAMES[type(self.default[0])]}[]"
        return _TYPE_NAMES[type(self.default)]

    def refusal(self, value) -> str | None:
        """Why `value` (of the right type) is not allowed, or None."""
        values = value if isinstance(self.default, list) else [value]
        if self.range and not all(self.range[0] <= number <= self.range[1] for number in values):
            return f"{self.name} must be in {self.range_text}, got {value}"
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {self.range_text}, got '{value}'"
        if isinstance(self.default, list) and not values:
            return f"{self.name} must have at least one element, got none"
        return None

    @property
    def range_text(self) -> str:
        if self.range:
            return f"[{self.range[0]:g}, {self.range[1]:g}]"
        return ", ".join(f"'{choice}'" for choice in self.choices or ())


_TYPE_NAMES = {bool: "bool", int: "integer", float: "double", str: "string"}
_TRACKING = TrackingConfig()

IMAGE_TRANSPORT = Parameter(
    "image_transport",
    "compressed",
    "Which topic the camera is read from: `image/compressed` or `image`. Raw 360 degree images are too large for best "
    "effort delivery.",
    choices=("compressed", "raw"),
    read_only=True,
)
IMAGE_RELIABILITY = Parameter(
    "image_reliability",
    "best_effort",
    "QoS of the camera subscription. A reliable subscription gets nothing from a best effort camera.",
    choices=("best_effort", "reliable"),
    read_only=True,
)
PROJECTION = Parameter(
    "projection",
    "equirectangular",
    "What the images are: a whole sphere (2:1), or one ordinary view along +x.",
    choices=("equirectangular", "perspective"),
    read_only=True,
)
FOV = Parameter("fov_deg", 90.0, "Width of an ordinary image in degrees; perspective only.", range=(20.0, 160.0))

LOCALIZER = (
    Parameter(
        "autostart",
        True,
        "Configure and activate by itself; false leaves both to whoever manages the node's lifecycle.",
        read_only=True,
    ),
    Parameter(
        "models",
        "",
        "Folder of the models; '' takes the shipped ones. Loaded beside those in use, also when the same folder is "
        "named again.",
    ),
    Parameter(
        "providers",
        ["auto"],
        "ONNX Runtime execution providers, best first; 'auto' takes the GPU where there is one.",
        read_only=True,
    ),
    Parameter("threads", 0, "Threads for the models; 0 chooses by the machine.", range=(0, 256), read_only=True),
    Parameter(
        "audio_source",
        "microphone",
        "'microphone', 'topic' (what is published on `audio`), or the path of a sound or video file, played in a loop.",
    ),
    Parameter("microphone", "", "Name, or part of it, as `avssl devices` lists it; '' is the default."),
    Parameter(
        "audio_latency",
        0.0,
        "Seconds by which the stamps of the sound lag behind those of the images: sound stamped t + audio_latency "
        "belongs to the image stamped t.",
        range=(-2.0, 2.0),
    ),
    Parameter(
        "noise_profile",
        "",
        "File of `avssl noise-profile`: the robot's own noise, which is then not heard; '' for none.",
        read_only=True,
    ),
    IMAGE_TRANSPORT,
    IMAGE_RELIABILITY,
    Parameter(
        "frame_id", "", "Frame of all results, x forward, z up (REP-103); '' takes the one of the image's header. "
        "Name the x-forward frame where that is an optical one."
    ),
    Parameter(
        "broadcast_tf",
        False,
        "Publish a TF frame `source_<id>` for each source, a metre towards it. Needs tf2_msgs.",
        read_only=True,
    ),
    PROJECTION,
    FOV,
    Parameter(
        "view_azimuths_deg",
        [0.0, 90.0, 180.0, 270.0],
        "Azimuths of the views cut from the sphere, counter-clockwise, 0 forward.",
        range=(-360.0, 360.0),
    ),
    Parameter("view_elevation_deg", 0.0, "Elevation of the views.", range=(-90.0, 90.0)),
    Parameter("view_fov_deg", 100.0, "Width of the views.", range=(30.0, 150.0)),
    Parameter("view_vertical_fov_deg", 70.0, "Height of the views.", range=(30.0, 150.0)),
    Parameter(
        "view_projection",
        "perspective",
        "How a view is flattened: as an ordinary camera does, or unrolled, as fine at its edges as in its middle.",
        choices=VIEW_PROJECTIONS,
    ),
    Parameter(
        "view_size",
        0,
        "Width of a view in pixels, a multiple of 32; 0 takes the model's. Smaller views cost less time and show less.",
        range=(0, 1024),
    ),
    Parameter(
        "views_per_frame",
        0,
        "How many views are looked at anew in each image, in turn; 0 is all. With 1, an image costs half, "
        "and what moves is seen some images late.",
        range=(0, 36),
    ),
    Parameter(
        "look_closer",
        True,
        "Look with one more view of each image closer at what the last one found likeliest to sound. Finds more that "
        "is small or far away; costs as much as one view more. Equirectangular images only.",
    ),
    Parameter(
        "rate",
        15.0,
        "Most images processed per second; 0 is as many as the computer manages. Others are dropped.",
        range=(0.0, 120.0),
    ),
    Parameter(
        "sensor_timeout",
        1.0,
        "Seconds without an image or without sound after which all sources end.",
        range=(0.2, 60.0),
    ),
    Parameter(
        "onset_confidence",
        _TRACKING.onset_confidence,
        "Confidence at which a source begins (0.45 instead of 0.5 once it lasted a second, other values alike); not "
        "below offset_confidence.",
        range=(0.0, 1.0),
    ),
    Parameter(
        "offset_confidence",
        _TRACKING.offset_confidence,
        "Confidence below which a source ends.",
        range=(0.0, 1.0),
    ),
    Parameter(
        "min_on_seconds",
        _TRACKING.min_on_seconds,
        "How long a source must sound before it is published.",
        range=(0.0, 10.0),
    ),
    Parameter(
        "min_off_seconds",
        _TRACKING.min_off_seconds,
        "How long a source must be silent before it ends.",
        range=(0.0, 10.0),
    ),
    Parameter(
        "max_step_deg",
        _TRACKING.max_step_deg,
        "Largest move between two images that keeps a source's identity.",
        range=(1.0, 180.0),
    ),
    Parameter(
        "record", "", "Folder in which images and sound are kept as mp4 segments; '' keeps none.", read_only=True
    ),
    Parameter(
        "record_limit",
        10.0,
        "GB of all segments together; the oldest are deleted.",
        range=(0.01, 100000.0),
        read_only=True,
    ),
    Parameter("record_rate", 5.0, "Most images kept per second.", range=(0.1, 60.0)),
)
VIEWS = (
    "fov_deg", "view_azimuths_deg", "view_elevation_deg", "view_fov_deg", "view_vertical_fov_deg",
    "view_projection", "view_size", "views_per_frame", "look_closer",
)  # fmt: skip
TRACKING = ("onset_confidence", "offset_confidence", "min_on_seconds", "min_off_seconds", "max_step_deg")

OVERLAY = (
    IMAGE_TRANSPORT,
    IMAGE_RELIABILITY,
    PROJECTION,
    FOV,
    Parameter("jpeg_quality", 80, "Quality of the published picture.", range=(1, 100)),
)

SCENE_PLAYER = (
    Parameter("file", "", "Video file to play; '' plays the shipped demo scene.", read_only=True),
    Parameter("loop", False, "Begin again at the end.", read_only=True),
    Parameter(
        "subscribers",
        1,
        "How many subscribers of the images to wait for before beginning; 0 does not wait.",
        range=(0, 100),
        read_only=True,
    ),
    Parameter("start_delay", 0.0, "Seconds before the first image.", range=(0.0, 600.0), read_only=True),
    Parameter("rate", 0.0, "Most images per second; 0 is the file's own rate.", range=(0.0, 120.0), read_only=True),
    Parameter(
        "width", 0, "Width of the published images in pixels; 0 is the file's own.", range=(0, 8192), read_only=True
    ),
    Parameter("jpeg_quality", 90, "Quality of the published images.", range=(1, 100), read_only=True),
    Parameter("frame_id", "camera", "Frame of the images' header.", read_only=True),
)

NODES = {"localizer": LOCALIZER, "overlay": OVERLAY, "scene_player": SCENE_PLAYER}


def declare(node: Node, table: tuple[Parameter, ...]) -> None:
    """Declare `table` on an rclpy node; every later set outside the ranges is refused with the range named.

    Raises rclpy's InvalidParameterTypeException or InvalidParameterValueException where a value given at start is
    not allowed.
    """
    by_name = {parameter.name: parameter for parameter in table}

    def check(changed) -> SetParametersResult:
        known = [(by_name[parameter.name], parameter.value) for parameter in changed if parameter.name in by_name]
        refusals = [text for parameter, value in known if (text := parameter.refusal(value))]
        return SetParametersResult(successful=not refusals, reason="; ".join(refusals))

    node.add_on_set_parameters_callback(check)
    for parameter in table:
        node.declare_parameter(parameter.name, parameter.default, _descriptor(parameter))


def values(node: Node, table: tuple[Parameter, ...]) -> dict:
    """The values in force, by name; arrays as lists."""
    found = {parameter.name: node.get_parameter(parameter.name).value for parameter in table}
    return {name: value if isinstance(value, (bool, int, float, str)) else list(value) for name, value in found.items()}


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=parameter.description, read_only=parameter.read_only)
    if parameter.range and isinstance(parameter.default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=parameter.range[0], to_value=parameter.range[1])
        ]
    elif parameter.range and isinstance(parameter.default, int):
        descriptor.integer_range = [IntegerRange(from_value=parameter.range[0], to_value=parameter.range[1])]
    elif parameter.range_text:
        descriptor.additional_constraints = (
            f"one of {parameter.range_text}" if parameter.choices else f"each in {parameter.range_text}"
        )
    return descriptor


def markdown() -> str:
    """The tables of all nodes in Markdown, one section a node."""
    sections = []
    for node, table in NODES.items():
        rows = [f"### `{node}`", "", "| parameter | type | default | range | at run time | meaning |", "|" + "---|" * 6]
        rows += [_row(parameter) for parameter in table]
        sections.append("\n".join(rows))
    return "\n\n".join(sections)


def _row(parameter: Parameter) -> str:
    default = json.dumps(parameter.default).replace('"', "'")
    at_run_time = "no" if parameter.read_only else "yes"
    return (
        f"| `{parameter.name}` | {parameter.type_name} | `{default}` | {parameter.range_text} | {at_run_time} "
        f"| {parameter.description} |"
    )


if __name__ == "__main__":
    print(markdown())
