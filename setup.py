"""Metadata for colcon, which runs this file with whatever setuptools the ROS distribution ships.

setuptools 59 (Iron) reads only this file; 78 and later (Lyrical) take scripts only from pyproject.toml once that has
a [project] table. So the same facts stand in both, and tests/test_packaging.py keeps them equal. No install_requires:
with [project] present it is an error or ignored; rosdep reads package.xml, pip reads pyproject.toml.
"""

from glob import glob

from setuptools import setup

package_name = "avssl_ros"
share = f"share/{package_name}"

setup(
    name=package_name,
    version="0.1.0",
    description="Audio-visual sound source localization for robots: one 360 degree camera, one microphone, ROS 2",
    maintainer="The avssl_ros developers",
    maintainer_email="avssl_ros@example.com",
    python_requires=">=3.10",
    packages=["avssl_ros", "avssl_ros.ros"],
    package_data={"avssl_ros": ["schemas/*.json"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (share, ["package.xml"]),
        (f"{share}/launch", glob("launch/*.launch.py")),
        (f"{share}/rviz", glob("rviz/*.rviz")),
        (f"{share}/models", glob("models/*.onnx") + glob("models/*.json") + glob("models/*.md")),
        (f"{share}/demo", ["demo/scene.mp4", "demo/scene.json", "demo/LICENSES.md", "demo/GPL-2.txt"]),
    ],
    entry_points={
        "console_scripts": [
            "avssl = avssl_ros.cli:main",
            "localizer = avssl_ros.ros.commands:localizer",
            "scene_player = avssl_ros.ros.commands:scene_player",
            "overlay = avssl_ros.ros.commands:overlay",
        ]
    },
)
