"""The table of parameters, and what the ROS package says where ROS is missing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from avssl_ros.ros import parameters
from avssl_ros.tracking import TrackingConfig

pytestmark = pytest.mark.ros

ALL = [(node, parameter) for node, table in parameters.NODES.items() for parameter in table]


@pytest.mark.parametrize("node, parameter", ALL, ids=[f"{node}.{parameter.name}" for node, parameter in ALL])
def test_every_parameter_is_described_and_its_default_is_allowed(node, parameter):
    assert parameter.refusal(parameter.default) is None
    assert parameter.description.endswith(".")
    number = parameter.default[0] if isinstance(parameter.default, list) else parameter.default
    if type(number) in (int, float):
        assert parameter.range, f"{parameter.name} has no range"


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("rate", -1.0, "[0, 120]"),
        ("view_azimuths_deg", [0.0, 1e9], "[-360, 360]"),
        ("view_azimuths_deg", [], "at least one"),
        ("projection", "cubemap", "'equirectangular', 'perspective'"),
    ],
)
def test_a_refusal_names_what_is_allowed(name, value, said):
    parameter = next(parameter for parameter in parameters.LOCALIZER if parameter.name == name)
    assert said in parameter.refusal(value) and name in parameter.refusal(value)


def test_all_thresholds_of_tracking_are_parameters():
    assert set(parameters.TRACKING) == {field.name for field in dataclasses.fields(TrackingConfig)}
    assert set(parameters.TRACKING) <= {parameter.name for parameter in parameters.LOCALIZER}


def test_the_readme_holds_the_table():
    assert parameters.markdown() in (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_table_is_printed_as_markdown():
    printed = subprocess.run([sys.executable, "-m", "avssl_ros.ros.parameters"], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    for node, parameter in ALL:
        assert f"### `{node}`" in printed.stdout and f"| `{parameter.name}` | {parameter.type_name} |" in printed.stdout


@pytest.mark.parametrize("module", ["localizer_node", "scene_player", "overlay_node"])
def test_without_ros_each_node_says_what_to_install(module):
    program = f"import sys; sys.modules['rclpy'] = None; import avssl_ros.ros.{module}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode != 0 and "pip install 'avssl_ros[ros]'" in run.stderr.splitlines()[-1]


def test_with_the_rclpy_of_humble_the_localizer_says_what_it_needs():
    program = """import sys, rclpy.node
del rclpy.node.Node.add_post_set_parameters_callback
from avssl_ros.ros.localizer_node import main
sys.exit(main([]))"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert run.stderr.startswith("cannot start: this node needs ROS 2 Iron or later")
