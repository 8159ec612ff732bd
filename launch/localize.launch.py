"""Starts the localizer with its overlay and, if wanted, RViz and a demo scene in place of camera and microphone.

    ros2 launch avssl_ros localize.launch.py image:=/camera/image_raw
    ros2 launch avssl_ros localize.launch.py demo:=true rviz:=true
    ros2 launch avssl_ros localize.launch.py --show-args

Thresholds and the like are parameters of the running node: `ros2 param list /localizer`.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import EqualsSubstitution, IfElseSubstitution, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

CAMERA = ("image_transport", "image_reliability", "projection")  # the localizer's and the overlay's parameters
RVIZ_TOPICS = ("markers", "map", "overlay/compressed")


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            "demo",
            default_value="false",
            description="Play the shipped demo scene in place of camera and microphone.",
        ),
        DeclareLaunchArgument(
            "image",
            default_value="image",
            description="Topic of the camera, without its transport: compressed images are on <image>/compressed.",
        ),
        DeclareLaunchArgument(
            "image_transport",
            default_value="compressed",
            choices=["compressed", "raw"],
            description="Whether <image>/compressed or <image> is read.",
        ),
        DeclareLaunchArgument(
            "image_reliability",
            default_value="best_effort",
            choices=["best_effort", "reliable"],
            description="QoS of the camera subscription; large raw images need reliable.",
        ),
        DeclareLaunchArgument(
            "audio_source",
            default_value="",
            description="'microphone', 'topic' (what is published on `audio`), or the path of a sound or video file; "
            "empty is the microphone, or the demo's topic.",
        ),
        DeclareLaunchArgument(
            "microphone",
            default_value="",
            description="Name of the microphone, or part of it, as `avssl devices` lists it; empty is the default one.",
        ),
        DeclareLaunchArgument(
            "models", default_value="", description="Folder of the models; empty takes the shipped ones."
        ),
        DeclareLaunchArgument(
            "projection",
            default_value="equirectangular",
            choices=["equirectangular", "perspective"],
            description="What the images are: a whole sphere, or one ordinary view.",
        ),
        DeclareLaunchArgument(
            "view_azimuths_deg",
            default_value="[0, 90, 180, 270]",
            description="Azimuths of the views cut from the sphere in degrees, counter-clockwise, 0 forward.",
        ),
        DeclareLaunchArgument(
            "views_per_frame",
            default_value="0",
            description="Views looked at anew in each image, in turn; 0 is all, 1 is for a fast camera.",
        ),
        DeclareLaunchArgument(
            "rate", default_value="15", description="Most images processed per second; 0 is no limit."
        ),
        DeclareLaunchArgument(
            "record", default_value="", description="Folder to keep images and sound in, as mp4 segments; empty: none."
        ),
        DeclareLaunchArgument(
            "frame_id", default_value="", description="Frame of all results; empty takes the one of the images."
        ),
        DeclareLaunchArgument(
            "namespace", default_value="", description="Namespace of all nodes and of the relative topic names."
        ),
        DeclareLaunchArgument(
            "overlay",
            default_value="true",
            description="Start the node that draws localizer/overlay/compressed while someone looks.",
        ),
        DeclareLaunchArgument("rviz", default_value="false", description="Start RViz with map, markers and overlay."),
    ]


def typed(name: str, value_type=str) -> ParameterValue:
    """A launch argument as a parameter of this type; else `rate:=10` were an integer, which a double refuses."""
    return ParameterValue(LaunchConfiguration(name), value_type=value_type)


def degrees(text: str) -> list[float]:
    """`[0, 90]` as floats: launch itself refuses whole numbers in a list of floats."""
    try:
        return [float(number) for number in text.strip().strip("[]").split(",")]
    except ValueError as error:
        raise ValueError(
            f"view_azimuths_deg must be a list of numbers such as [0, 90, 180, 270], got {text}"
        ) from error


def package_node(name: str, parameters: dict, condition: IfCondition | None = None) -> Node:
    """One node of this package, with the camera's topic and the namespace."""
    image = LaunchConfiguration("image")
    return Node(
        package="avssl_ros",
        executable=name,
        name=name,
        namespace=LaunchConfiguration("namespace"),
        parameters=[parameters],
        remappings=[("image/compressed", [image, "/compressed"]), ("image", image)],
        condition=condition,
        output="screen",
    )


def localizer_node(context: LaunchContext) -> list[Node]:
    """The localizer; made once the arguments have their values."""
    given = context.launch_configurations
    audio_source = given["audio_source"] or ("topic" if given["demo"].lower() in ("true", "1") else "microphone")
    parameters = {name: typed(name) for name in (*CAMERA, "models", "microphone", "frame_id", "record")}
    parameters["rate"] = typed("rate", float)
    parameters["views_per_frame"] = typed("views_per_frame", int)
    parameters["audio_source"] = ParameterValue(audio_source, value_type=str)
    parameters["view_azimuths_deg"] = degrees(given["view_azimuths_deg"])
    return [package_node("localizer", parameters)]


def rviz_node() -> Node:
    frame = LaunchConfiguration("frame_id")
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),
        arguments=[
            "-d",
            PathJoinSubstitution([FindPackageShare("avssl_ros"), "rviz", "localize.rviz"]),
            "-f",
            IfElseSubstitution(EqualsSubstitution(frame, ""), "camera", frame),
        ],
        # The configuration names absolute topics, so that it also serves an RViz started by hand.
        remappings=[(f"/localizer/{topic}", f"localizer/{topic}") for topic in RVIZ_TOPICS],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )


def generate_launch_description() -> LaunchDescription:
    camera = {name: typed(name) for name in CAMERA}
    return LaunchDescription(
        [
            *declare_arguments(),
            OpaqueFunction(function=localizer_node),
            package_node("overlay", camera, IfCondition(LaunchConfiguration("overlay"))),
            package_node("scene_player", {"loop": True}, IfCondition(LaunchConfiguration("demo"))),
            rviz_node(),
        ]
    )
