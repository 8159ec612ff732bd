"""Starts the localizer with its overlay and, if wanted, RViz and a demo scene in place of camera and microphone.

    ros2 launch avssl_ros localize.launch.py image:=/camera/image_raw
    ros2 launch avssl_ros localize.launch.py demo:=true rviz:=true
    ros2 launch avssl_ros localize.launch.py --show-args

Every parameter of the localizer is an argument; those that the overlay has too are given to both. What is not given is
left to params_file and to the nodes' own defaults.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from avssl_ros.ros.parameters import LOCALIZER, OVERLAY, Parameter
from launch import LaunchContext, LaunchDescription

SIM_TIME = Parameter("use_sim_time", False, "Take the time from /clock, for recordings; also RViz.")  # every node's own
DESCRIPTIONS = {  # where a parameter means more to this file than to the node
    "audio_source": "'microphone', 'topic' (what is published on `audio`), or the path of a sound or video file; not "
    "given it is the microphone, or the demo's topic.",
    "frame_id": "Frame of all results, x forward, z up; not given it is the one of the images. RViz needs it for a "
    "real camera: it is its fixed frame.",
}
RVIZ_TOPICS = ("markers", "map", "overlay/compressed")


def declare_arguments() -> list[DeclareLaunchArgument]:
    """The arguments of this file, then the nodes' parameters, each once; '' is not given."""
    parameters = {parameter.name: parameter for parameter in (*OVERLAY, *LOCALIZER, SIM_TIME)}
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
            "namespace", default_value="", description="Namespace of all nodes and of the relative topic names."
        ),
        DeclareLaunchArgument(
            "overlay",
            default_value="true",
            description="Start the node that draws localizer/overlay/compressed while someone looks.",
        ),
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            description="Start RViz with map, markers and overlay; a real camera needs frame_id with it.",
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value="",
            description="YAML file of parameters of the nodes; arguments go over it.",
        ),
        *map(argument_of, parameters.values()),
    ]


def argument_of(parameter: Parameter) -> DeclareLaunchArgument:
    """A node's parameter as an argument of its name."""
    description = DESCRIPTIONS.get(parameter.name, parameter.description)
    if not isinstance(parameter.default, str):
        description += f" The node's default is {str(parameter.default).lower()}."
    choices = ["", *parameter.choices] if parameter.choices else None
    return DeclareLaunchArgument(parameter.name, default_value="", description=description, choices=choices)


def value_of(parameter: Parameter, text: str) -> ParameterValue | list:
    """An argument's text as its parameter's type; else `rate:=10` were an integer, which a double refuses.

    Raises ValueError where the text is not of that type.
    """
    if not isinstance(parameter.default, list):
        return ParameterValue(LaunchConfiguration(parameter.name), value_type=type(parameter.default))
    kind = type(parameter.default[0])  # by hand: launch refuses whole numbers in a list of floats
    try:
        return [kind(item.strip(" '\"")) for item in text.strip(" []").split(",")]
    except ValueError as error:
        raise ValueError(f"{parameter.name} must be a list such as {parameter.default}, got {text}") from error


def package_node(context: LaunchContext, name: str, table: tuple[Parameter, ...], condition=None, **more) -> Node:
    """One node of this package, with the camera's topic, the namespace, and what is given of its parameters.

    Raises FileNotFoundError where there is no params_file: launch itself would go on without.
    """
    given = context.launch_configurations
    values = {parameter.name: value_of(parameter, given[parameter.name])
              for parameter in (*table, SIM_TIME) if given[parameter.name]}  # fmt: skip
    files = [str(Path(given["params_file"]).expanduser())] if given["params_file"] else []
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"params_file: no such file: {file}")
    image = given["image"]
    return Node(
        package="avssl_ros",
        executable=name,
        name=name,
        namespace=given["namespace"],
        parameters=[*files, {**values, **more}],
        remappings=[("image/compressed", f"{image}/compressed"), ("image", image)],
        condition=condition,
        output="screen",
    )


def nodes(context: LaunchContext) -> list[Node]:
    """All nodes; made once the arguments have their values."""
    given = context.launch_configurations
    is_demo = given["demo"].lower() in ("true", "1")
    sound = {"audio_source": "topic"} if is_demo and not given["audio_source"] else {}
    return [
        package_node(context, "localizer", LOCALIZER, **sound),
        package_node(context, "overlay", OVERLAY, IfCondition(LaunchConfiguration("overlay"))),
        package_node(context, "scene_player", (), IfCondition(LaunchConfiguration("demo")), loop=True),
        rviz_node(context, given["frame_id"] or ("camera" if is_demo else "")),
    ]


def rviz_node(context: LaunchContext, frame: str) -> Node:
    """RViz; where no frame is given it is the configuration's, to be changed by hand."""
    sim_time = context.launch_configurations["use_sim_time"]
    configuration = PathJoinSubstitution([FindPackageShare("avssl_ros"), "rviz", "localize.rviz"])
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),
        parameters=[{"use_sim_time": value_of(SIM_TIME, sim_time)}] if sim_time else [],
        arguments=["-d", configuration, *(["-f", frame] if frame else [])],
        # The configuration names absolute topics, so that it also serves an RViz started by hand.
        remappings=[(f"/localizer/{topic}", f"localizer/{topic}") for topic in RVIZ_TOPICS],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=nodes)])
