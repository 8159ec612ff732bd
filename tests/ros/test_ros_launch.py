"""The launch file and the RViz configuration: statically everywhere, and by `ros2 launch` where that is installed."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import wait_until
from sensor_msgs.msg import PointCloud2

from avssl_ros.ros import parameters

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILE = ROOT / "launch" / "localize.launch.py"
ARGUMENTS = {
    "demo", "image", "image_transport", "image_reliability", "audio_source", "microphone", "models", "projection",
    "view_azimuths_deg", "rate", "record", "views_per_frame", "frame_id", "namespace", "overlay", "rviz",
}  # fmt: skip


def declared() -> dict[str, dict[str, ast.expr]]:
    """Launch argument to its keywords, read from the source: works without `launch`."""
    calls = [node for node in ast.walk(ast.parse(LAUNCH_FILE.read_text())) if isinstance(node, ast.Call)]
    calls = [call for call in calls if getattr(call.func, "id", "") == "DeclareLaunchArgument"]
    return {call.args[0].value: {keyword.arg: keyword.value for keyword in call.keywords} for call in calls}


def test_every_launch_argument_has_a_description_and_a_default():
    assert set(declared()) == ARGUMENTS
    for name, keywords in declared().items():
        assert {"description", "default_value"} <= set(keywords), name
        assert len(ast.literal_eval(keywords["description"])) > 20, name


def test_defaults_of_the_launch_file_are_those_of_the_node():
    table = {parameter.name: parameter for parameter in parameters.LOCALIZER}
    for name in ARGUMENTS & set(table) - {"audio_source"}:  # whose default depends on demo
        default = ast.literal_eval(declared()[name]["default_value"])
        expected = table[name].default
        given = ast.literal_eval(default) if not isinstance(expected, str) else default
        assert given == expected, name


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
