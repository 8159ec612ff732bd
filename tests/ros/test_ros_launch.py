"""The launch file and the RViz configuration: on stand-ins everywhere, and by `ros2 launch` where that is installed."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import wait_until
from sensor_msgs.msg import PointCloud2

from avssl_ros.ros import parameters

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILE = ROOT / "launch" / "localize.launch.py"
OWN = {"demo", "image", "namespace", "overlay", "rviz", "params_file"}
NODES = ("localizer", "overlay", "scene_player", "rviz2")


class Stated(types.SimpleNamespace):
    """What the launch file states of `launch`: positional arguments as `args`, the others by their names."""

    def __init__(self, *args, **keywords):
        super().__init__(args=args, **keywords)


@pytest.fixture
def launch_file(monkeypatch):
    """The launch file as a module, on stand-ins for `launch` and `launch_ros`, which are not in the ROS wheels."""
    names = {
        "launch": ("LaunchContext", "LaunchDescription"),
        "launch.actions": ("DeclareLaunchArgument", "OpaqueFunction"),
        "launch.conditions": ("IfCondition",),
        "launch.substitutions": ("LaunchConfiguration", "PathJoinSubstitution"),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
        "launch_ros.parameter_descriptions": ("ParameterValue",),
        "launch_ros.substitutions": ("FindPackageShare",),
    }
    for name, classes in names.items():
        module = types.ModuleType(name)
        vars(module).update(dict.fromkeys(classes, Stated))
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("launch_file", LAUNCH_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments_of(launch_file) -> dict[str, Stated]:
    (description,) = launch_file.generate_launch_description().args
    return {action.args[0]: action for action in description if hasattr(action, "default_value")}


def launched(launch_file, **given: str) -> dict[str, Stated]:
    """The nodes that come of these arguments, by their executables."""
    values = {name: argument.default_value for name, argument in arguments_of(launch_file).items()} | given
    nodes = launch_file.nodes(types.SimpleNamespace(launch_configurations=values))
    assert tuple(node.executable for node in nodes) == NODES
    return {node.executable: node for node in nodes}


def parameters_of(node: Stated) -> dict:
    """The parameters that a launched node is given; of a launch argument its name and type."""
    values = node.parameters[-1]
    return {name: (value.args[0].args[0], value.value_type) if isinstance(value, Stated) else value
            for name, value in values.items()}  # fmt: skip


def test_every_parameter_of_the_nodes_is_a_launch_argument_that_is_described(launch_file):
    arguments = arguments_of(launch_file)
    tables = {parameter.name for parameter in (*parameters.LOCALIZER, *parameters.OVERLAY)}
    assert set(arguments) == OWN | tables | {"use_sim_time"}
    for name, argument in arguments.items():
        assert len(argument.description) > 20 and isinstance(argument.default_value, str), name


def test_what_is_not_given_is_left_to_the_nodes(launch_file):
    nodes = launched(launch_file)
    assert [parameters_of(nodes[name]) for name in NODES[:3]] == [{}, {}, {"loop": True}]
    assert nodes["rviz2"].parameters == [] and "-f" not in nodes["rviz2"].arguments
    assert nodes["localizer"].remappings == [("image/compressed", "image/compressed"), ("image", "image")]


def test_what_is_given_reaches_every_node_that_has_it_in_the_type_that_it_takes(launch_file):
    for parameter in parameters.LOCALIZER:
        if not isinstance(parameter.default, list):
            node = launched(launch_file, **{parameter.name: "1"})["localizer"]
            assert parameters_of(node) == {parameter.name: (parameter.name, type(parameter.default))}
    given = {"fov_deg": "80", "view_azimuths_deg": "[0, 90]", "providers": "['a', b]", "use_sim_time": "true"}
    nodes = launched(launch_file, **given, jpeg_quality="50", image="/camera/image")
    assert parameters_of(nodes["localizer"]) == {
        "fov_deg": ("fov_deg", float), "view_azimuths_deg": [0.0, 90.0], "providers": ["a", "b"],
        "use_sim_time": ("use_sim_time", bool),
    }  # fmt: skip
    assert set(parameters_of(nodes["overlay"])) == {"fov_deg", "jpeg_quality", "use_sim_time"}
    assert set(parameters_of(nodes["rviz2"])) == {"use_sim_time"}
    assert nodes["overlay"].remappings[0] == ("image/compressed", "/camera/image/compressed")
    with pytest.raises(ValueError, match="view_azimuths_deg must be a list such as"):
        launched(launch_file, view_azimuths_deg="[left]")


def test_the_demo_has_its_sound_and_its_frame(launch_file):
    nodes = launched(launch_file, demo="true")
    assert parameters_of(nodes["localizer"]) == {"audio_source": "topic"}
    assert nodes["rviz2"].arguments[-2:] == ["-f", "camera"]
    nodes = launched(launch_file, demo="true", audio_source="microphone", frame_id="head")
    assert parameters_of(nodes["localizer"])["audio_source"] == ("audio_source", str)
    assert nodes["rviz2"].arguments[-2:] == ["-f", "head"]


def test_arguments_go_over_a_file_of_parameters(launch_file, tmp_path):
    file = tmp_path / "robot.yaml"
    with pytest.raises(FileNotFoundError, match="params_file"):
        launched(launch_file, params_file=str(file))
    file.write_text("{}")
    nodes = launched(launch_file, params_file=str(file), rate="5")
    assert nodes["localizer"].parameters[0] == nodes["overlay"].parameters[0] == str(file)
    assert parameters_of(nodes["localizer"]) == {"rate": ("rate", float)}


def test_rviz_shows_topics_that_the_nodes_publish():
    yaml = pytest.importorskip("yaml")
    displays = yaml.safe_load((ROOT / "rviz" / "localize.rviz").read_text())["Visualization Manager"]["Displays"]
    topics = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    assert topics == {"/localizer/markers", "/localizer/map", "/localizer/overlay/compressed"}


def installed() -> bool:
    """Whether `ros2 launch` is there and finds this package, built with colcon."""
    if importlib.util.find_spec("launch_ros") is None or shutil.which("ros2") is None:
        return False
    return subprocess.run(["ros2", "pkg", "prefix", "avssl_ros"], capture_output=True).returncode == 0


def test_the_demo_is_launched_publishes_and_ends_cleanly(domain, peer, tmp_path):
    if not installed():
        pytest.skip("`ros2 launch` is not installed, or this package is not built with colcon")
    sources = peer.collect(PointCloud2, "/robot/localizer/sources")
    with (tmp_path / "launch.log").open("w+") as log:
        command = ["ros2", "launch", "avssl_ros", "localize.launch.py", "demo:=true", "namespace:=robot", "rate:=10"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: any(message.width for message in sources), 60.0, "a source of the demo scene")
        finally:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            status = process.wait(timeout=30)
        log.seek(0)
        text = log.read()
    assert status == 0 and text.count("process has finished cleanly") == 3, text
