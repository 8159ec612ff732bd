"""The package installs what ROS 2 and pip users need, its metadata agree, and imports follow the design."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from avssl_ros import paths

ROOT = Path(__file__).resolve().parents[1]
EXECUTABLES = {"avssl", "localizer", "scene_player", "overlay"}
SCHEMAS = {"event.schema.json", "scene.schema.json"}
# The distributions that avssl_ros's modules come from, where the name differs from the module's.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn"}
ROS_PACKAGE = re.compile(r"rclpy\b|ament_index|\w+_(msgs|interfaces)\b")
# setuptools as Iron, Jazzy and Lyrical ship it; they fail in different ways (see setup.py).
SETUPTOOLS = ("59.6.0", "68.1.2", "79.0.1")


def read_toml() -> dict:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_setup_call() -> dict:
    """The literal arguments of setup() in setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
    names = {"package_name": "avssl_ros"}
    values = {}
    for keyword in call.keywords:
        value = keyword.value
        if isinstance(value, ast.Name):
            values[keyword.arg] = names[value.id]
        elif keyword.arg != "data_files":
            values[keyword.arg] = ast.literal_eval(value)
    return values


def imported_modules(file: Path) -> set[str]:
    """Full names of all modules a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = "avssl_ros." * bool(node.level)
            names.add(prefix + (node.module or ""))
    return names


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def copy_of_tree(to: Path) -> Path:
    ignored = shutil.ignore_patterns(
        ".*", "build", "install", "log", "runs", "cache", "out", "__pycache__", "*.egg-info"
    )
    return shutil.copytree(ROOT, to, ignore=ignored)


def run(*command: str | Path, **options) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=280, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def colcon_python(tmp_path_factory) -> Path:
    """A Python of its own with colcon: the build must not lean on what this environment happens to have."""
    folder = tmp_path_factory.mktemp("colcon")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "colcon-common-extensions", "setuptools<80")
    return folder / "bin/python"


@pytest.mark.parametrize("setuptools", SETUPTOOLS)
def test_colcon_installs_executables_launch_models_and_rviz(colcon_python, setuptools, tmp_path):
    run(colcon_python, "-m", "pip", "install", "--quiet", f"setuptools=={setuptools}")
    copy_of_tree(tmp_path / "src/avssl_ros")
    environment = {"PATH": f"{colcon_python.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    run(colcon_python.parent / "colcon", "build", cwd=tmp_path, env=environment)

    prefix = tmp_path / "install/avssl_ros"
    assert {file.name for file in (prefix / "lib/avssl_ros").iterdir()} == EXECUTABLES
    share = prefix / "share/avssl_ros"
    wanted = [
        "package.xml",
        "launch/localize.launch.py",
        "rviz/localize.rviz",
        "models/visual.onnx",
        "models/visual_int8.onnx",
        "models/audio.onnx",
        "models/manifest.json",
        "demo/scene.mp4",
        "demo/scene.json",
    ]
    assert [name for name in wanted if not (share / name).is_file()] == []
    assert (prefix / "share/ament_index/resource_index/packages/avssl_ros").is_file()
    installed = next(prefix.glob("lib/python*/site-packages"))
    assert {file.name for file in (installed / "avssl_ros/schemas").iterdir()} == SCHEMAS
    found = run(
        sys.executable,
        "-c",
        "from avssl_ros.paths import shipped_models as f; print(f())",
        env={"PYTHONPATH": str(next(prefix.glob("lib/python*/site-packages")))},
        cwd=tmp_path,
    )
    assert found.strip() == str(share / "models")


def test_pip_installs_models_and_demo_scene_where_they_are_found(colcon_python, tmp_path):
    # Into that environment, not into ours, where it would replace the editable install.
    run(colcon_python, "-m", "pip", "install", "--quiet", "--no-deps", copy_of_tree(tmp_path / "avssl_ros"))
    prefix = colcon_python.parents[1]
    installed = next(prefix.glob("lib/python*/site-packages"))
    code = "from avssl_ros import paths; print(paths.shipped_models(), paths.demo_scene())"
    found = run(sys.executable, "-c", code, env={"PYTHONPATH": str(installed)}, cwd=tmp_path / "avssl_ros/tests")
    share = prefix / "share/avssl_ros"
    assert found.split() == [str(share / "models"), str(share / "demo")]
    assert {file.name for file in (prefix / "bin").iterdir()} >= EXECUTABLES
    assert {file.name for file in (installed / "avssl_ros/schemas").iterdir()} == SCHEMAS


def test_setup_py_and_pyproject_say_the_same():
    setup, project = read_setup_call(), read_toml()["project"]
    for key in ("name", "version", "description"):
        assert setup[key] == project[key]
    assert setup["python_requires"] == project["requires-python"]
    assert [setup["maintainer"], setup["maintainer_email"]] == list(project["maintainers"][0].values())
    scripts = dict(line.split(" = ") for line in setup["entry_points"]["console_scripts"])
    assert scripts == project["scripts"]
    assert set(scripts) == EXECUTABLES
    assert "install_requires" not in setup


def test_package_xml_agrees_and_names_every_ros_package_imported():
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.findtext("version") == read_toml()["project"]["version"]
    depends = {element.text for element in manifest.findall("exec_depend")}
    imported = set().union(*(imported_modules(file) for file in (ROOT / "avssl_ros/ros").glob("*.py")))
    ros = {name.split(".")[0] for name in imported if ROS_PACKAGE.match(name)}
    # The message packages for sound are optional and imported only where installed.
    assert {name for name in ros if not name.startswith("audio_")} <= depends


def test_every_python_package_comes_from_rosdep_or_is_named_for_pip_in_package_xml_and_the_readme():
    text = (ROOT / "package.xml").read_text()
    keys = re.findall(r"<exec_depend>python3-([\w-]+?)(?:-pip)?</exec_depend>", text)
    by_rosdep = {{"opencv": "opencv-python-headless", "pil": "pillow"}.get(key, key) for key in keys}
    by_pip = re.search(r"pip install ([\w ]+) -->", text)[1]
    assert by_rosdep.isdisjoint(by_pip.split())
    assert by_rosdep | set(by_pip.split()) == requirement_names(read_toml()["project"]["dependencies"])
    assert f"`pip install {by_pip}`" in (ROOT / "README.md").read_text()


def test_the_launch_file_starts_nothing_that_package_xml_does_not_name():
    depends = {element.text for element in ElementTree.parse(ROOT / "package.xml").getroot().findall("exec_depend")}
    packages = re.findall(r'package="(\w+)"', (ROOT / "launch/localize.launch.py").read_text())
    assert set(packages) - {"avssl_ros"} <= depends and "rviz2" in packages
    assert "compressed_image_transport" in depends  # RViz shows the overlay with it


def test_the_demo_runs_without_what_a_sourced_ros_puts_before_the_environment(tmp_path):
    command = tmp_path / "bin/avssl"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nenv\n")
    command.chmod(0o755)
    (tmp_path / "bin/python").touch()
    (tmp_path / ".demo-ready").touch()
    sourced = dict.fromkeys(
        ("PYTHONPATH", "LD_LIBRARY_PATH", "AMENT_PREFIX_PATH", "RMW_IMPLEMENTATION", "_ROS_WHEELS_BOOTSTRAP_COMPLETE"),
        "/opt/ros",
    )
    printed = run("make", f"VENV={tmp_path}", "demo", cwd=ROOT, env={"PATH": os.environ["PATH"], **sourced})
    assert "PATH=" in printed and not [name for name in sourced if f"{name}=/opt/ros" in printed.splitlines()]


def test_setup_py_lists_every_package():
    on_disk = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "avssl_ros").rglob("__init__.py")}
    with_modules = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "avssl_ros").rglob("*.py")}
    assert set(read_setup_call()["packages"]) == on_disk == with_modules


def test_console_scripts_exist():
    for target in read_toml()["project"]["scripts"].values():
        module, function = target.split(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, target


def test_runtime_never_imports_training_or_torch_and_only_ros_imports_rclpy():
    for file in (ROOT / "avssl_ros").rglob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(file)}
        assert not roots & {"training", "torch", "benchmarks", "tests"}, file
        assert "rclpy" not in roots or file.parent.name == "ros", file


def test_runtime_declares_every_library_it_imports():
    declared = requirement_names(read_toml()["project"]["dependencies"])
    for file in (ROOT / "avssl_ros").glob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(file)} - set(sys.stdlib_module_names) - {"avssl_ros"}
        assert {DISTRIBUTIONS.get(name, name) for name in roots} <= declared, file


def test_training_declares_every_library_it_imports():
    project = read_toml()["project"]
    extras = project["optional-dependencies"]
    declared = requirement_names(project["dependencies"] + extras["train"] + extras["torchcodec"])
    for file in [*(ROOT / "training").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        roots = {name.split(".")[0] for name in imported_modules(file)} - set(sys.stdlib_module_names)
        roots = {name for name in roots if not ROS_PACKAGE.match(name)}  # extra `ros`
        roots -= {"avssl_ros", "training", "benchmarks"} | {f.stem for f in file.parent.glob("*.py")}
        needed = {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in roots}
        assert needed <= declared, file


def test_shipped_files_are_found_from_the_source_tree():
    assert paths.shipped_models() == ROOT / "models"
    assert paths.demo_scene() == ROOT / "demo"


def test_absent_models_are_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "lib/avssl_ros")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"models/manifest\.json .*pip install"):
        paths.shipped_models()
