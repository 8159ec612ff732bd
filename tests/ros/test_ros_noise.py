"""The node with a noise profile; what a profile does is tested in test_noise.py."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import LOUDNESS_NODE, log_of

from avssl_ros.noise import NoiseProfile
from avssl_ros.paths import demo_scene, shipped_models
from avssl_ros.ros import localizer_node, parameters

pytestmark = pytest.mark.ros


def test_a_noise_profile_that_is_not_there_is_named(processes):
    process = processes.start(LOUDNESS_NODE, audio_source="topic", noise_profile="/no/such/noise.json")
    assert process.wait(timeout=60) == 1
    last_line = log_of(process).strip().splitlines()[-1]
    assert last_line.startswith("cannot start:") and "/no/such/noise.json" in last_line


def test_paths_of_models_and_profile_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "place").symlink_to(shipped_models())
    hum = np.random.default_rng(0).standard_normal(160000) / 100
    NoiseProfile.of_recording(hum, 32000).save(tmp_path / "noise.json")
    values = {parameter.name: parameter.default for parameter in parameters.LOCALIZER}
    localizer = localizer_node.make_localizer(values | {"models": "~/place", "noise_profile": "~/noise.json"})
    assert localizer.noise is not None


def test_the_localizer_of_the_node_has_the_profile(tmp_path):
    profile = NoiseProfile.of_recording(np.random.default_rng(0).standard_normal(160000) / 100, 32000)
    profile.save(tmp_path / "noise.json")
    values = {parameter.name: parameter.default for parameter in parameters.LOCALIZER}
    assert localizer_node.make_localizer(values).noise is None
    localizer = localizer_node.make_localizer(values | {"noise_profile": str(tmp_path / "noise.json")})
    np.testing.assert_allclose(localizer.noise.power, profile.power, rtol=1e-3)
    with pytest.raises(ValueError, match="scene.json is no noise profile"):
        localizer_node.make_localizer(values | {"noise_profile": str(demo_scene() / "scene.json")})
