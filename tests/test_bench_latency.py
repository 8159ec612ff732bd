"""benchmarks/latency.py: what it times is what runs, its arithmetic, and one short run of the whole."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avssl_ros import Localizer
from avssl_ros.encoders import Encoders
from avssl_ros.geometry import cut_views

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


latency = load("latency")
SHORT = dict(repeats=3, growth_repeats=8, starts=1, frames=6, threads=(1,), views=(1, 2, 4), widths=(512, 2048),
             sources=(0, 1, 4, 8), baselines=False)  # fmt: skip


@pytest.fixture(scope="module")
def localizer():
    return Localizer(threads=1)


@pytest.fixture(scope="module")
def moments(localizer):
    return latency.read_moments(6, localizer.window_seconds)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Report of a short run, and the folder of its files."""
    folder = tmp_path_factory.mktemp("latency")
    config = latency.BenchmarkConfig(**SHORT, json=folder / "deep" / "x.json", plot=folder / "x.png")
    return latency.main(config), folder


def test_a_short_run_covers_the_step_and_writes_its_files(run):
    report, folder = run
    assert json.loads((folder / "deep" / "x.json").read_text()) == json.loads(json.dumps(report))
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["x.json", "x.png"]
    step = report["threads"]["1"][latency.OURS]
    assert set(step["stages"]) == {"decode", "projection", "audio front end", "audio encoder", "visual encoder",
                                   "clustering", "fusion", "tracking", "messages", "rest"} and step["n"] == 3
    # Without ROS 2 no messages are built.
    medians = {stage: row["median_ms"] for stage, row in step["stages"].items()}
    if not latency.converters:
        del medians["messages"]
    assert min(medians.values()) > 0, medians
    assert 0.9 < step["sum_of_stages_share"] <= 1.0  # a stage that is missed, or timed twice
    assert 0 < step["not_encoder_share_without_decode"] < step["not_encoder_share"] < 1
    assert 0 < report["startup"]["start_to_ready_s"] < 60 and report["startup"]["rss_ready_mb"] > 20


def test_the_curves_hold_what_they_say(run):
    report, _ = run
    assert {count: row["found"] for count, row in report["growth"]["sources"].items()} == {0: 0, 1: 1, 4: 4, 8: 8}
    views = report["growth"]["views"]
    assert views[4]["stages"]["visual encoder"]["median_ms"] > 1.5 * views[1]["stages"]["visual encoder"]["median_ms"]
    sizes = report["growth"]["widths"]
    assert sizes[2048]["stages"]["decode"]["median_ms"] > 3 * sizes[512]["stages"]["decode"]["median_ms"]


def test_the_report_is_printed_with_its_bars(run, capsys):
    report, _ = run
    latency.print_report(report)
    said = capsys.readouterr().out
    assert said.count("\nmet ") + said.count("\nMISSED ") == len(report["bars"]) >= 5
    assert "left out, as asked" in said and "add up to" in said and latency.E2P in said


def test_a_slow_function_shows_in_its_own_stage_only(localizer, moments, monkeypatch):
    real = Encoders.audio
    monkeypatch.setattr(Encoders, "audio", lambda self, mel: (time.sleep(0.2), real(self, mel))[1])
    slow = Encoders.audio
    timings = latency.in_turns({"step": latency.Step(localizer, moments)}, 3, "test")["step"]
    assert Encoders.audio is slow, "the functions of the library were not put back"
    assert timings.stages["audio encoder"].min() > 0.2
    others = {stage: seconds for stage, seconds in timings.stages.items() if stage not in latency.ENCODERS}
    assert len(others) >= 7 and all(np.median(seconds) < 0.2 for seconds in others.values()), others
    assert np.all(timings.wall >= sum(timings.stages.values()))


def test_the_moments_hold_sounding_sources(localizer, moments):
    step = latency.Step(localizer, moments)
    for _ in range(6):
        step()
    assert step.found[-1] >= 1
    assert moments.images[0].shape == (960, 1920, 3) and len(moments.sounds[0]) == 2 * moments.rate


def test_contenders_take_turns_in_rotating_order():
    called = []
    contenders = {name: lambda name=name: called.append(name) for name in "abc"}
    timings = latency.in_turns(contenders, 4, "test", every={"c": 2})
    called = called[3 * latency.WARM_UP :]
    assert called == [*"abc", *"ba", *"cab", *"ba"]
    assert [len(timings[name].wall) for name in "abc"] == [4, 4, 2]


def test_percentiles_of_known_times():
    assert latency.percentiles(np.arange(101) / 1000) == {"n": 101, "median_ms": 50, "p95_ms": 95, "p99_ms": 99}


def test_time_of_stages_side_by_side_is_shared_out():
    spans = [("decode", 0.0, 4.0), ("audio encoder", 1.0, 3.0), ("fusion", 5.0, 6.0)]
    assert latency.shared_out(spans) == {"decode": 3.0, "audio encoder": 1.0, "fusion": 1.0}


def test_shares_of_known_times():
    seconds = {"decode": 0.02, "visual encoder": 0.05, "audio encoder": 0.01, "fusion": 0.01}
    stages = {stage: np.full(5, value) for stage, value in seconds.items()}
    found = latency.Timings(np.full(5, 0.1), np.full(5, 0.2), stages).summary()
    assert found["not_encoder_share"] == pytest.approx(0.4)
    assert found["not_encoder_share_without_decode"] == pytest.approx(0.25)
    assert found["sum_of_stages_share"] == pytest.approx(0.9)
    assert found["stages"]["rest"]["median_ms"] == pytest.approx(10) and found["without_decode"]["median_ms"] == 80


@pytest.mark.parametrize("power, expected", [(1, 1.0), (2, 2.4), (0.5, 0.62)])
def test_growth_tells_linear_from_more(power, expected):
    curve = {x: 5 + x**power for x in (0, 1, 2, 3, 4, 6, 8)}
    assert latency.marginal_growth(curve) == pytest.approx(expected, rel=0.01)
    assert (latency.marginal_growth(curve) <= 1.25) == (power <= 1)


def test_bars_are_met_and_missed(run):
    report = json.loads(json.dumps(run[0]))
    rows = report["threads"]["1"]
    rows[latency.OURS] |= {"median_ms": 40.0, "p95_ms": 60.0, "not_encoder_share": 0.25}
    rows[latency.EZVSL], rows[latency.DENSEAV] = {"median_ms": 240.0}, {"median_ms": 2000.0}
    rows[latency.PROJECTION]["median_ms"], rows[latency.E2P]["median_ms"] = 2.0, 6.0
    sizes = report["growth"]["widths"]
    sizes["2048"], sizes["8192"] = ({"without_decode": {"median_ms": ms}} for ms in (40.0, 60.0))
    first = latency.bars(report)[:7]
    assert all(met for *_, met in first), first
    rows[latency.OURS] |= {"median_ms": 66.1, "p95_ms": 100.0, "not_encoder_share": 0.26}
    rows[latency.E2P]["median_ms"], sizes["8192"]["without_decode"]["median_ms"] = 5.9, 61.0
    assert not any(met for *_, met in latency.bars(report)[:7])


def test_e2p_cuts_the_same_views(localizer, moments):
    shape = localizer.layout.view_shape(localizer.encoders.size)
    ours = cut_views(moments.images[0], localizer.layout, shape)
    theirs = np.stack(latency.e2p(moments.images[0], localizer.layout, shape))
    assert np.abs(ours.astype(int) - theirs).mean() < 2.0


def test_without_torch_the_other_networks_are_left_out_with_a_word(monkeypatch, tmp_path):
    monkeypatch.setattr(latency.importlib.util, "find_spec", lambda name: None)
    folder, reason = latency.baseline_files(latency.BenchmarkConfig(networks=tmp_path))
    assert folder is None and "torch" in reason


def test_a_fresh_process_that_fails_is_told(monkeypatch, moments):
    monkeypatch.setattr(latency, "CHILD", "import sys; sys.exit('no models here')")
    with pytest.raises(RuntimeError, match="no models here"):
        latency.startup(moments, 1)


def test_numbers_that_measure_nothing_are_refused():
    with pytest.raises(ValueError, match="repeats"):
        latency.BenchmarkConfig(repeats=0)


@pytest.mark.train
def test_the_other_networks_have_their_published_size_and_shape():
    import torch

    baselines = load("baseline_networks")
    ezvsl, vit = baselines.EzVsl().eval(), baselines.VitSmall8().eval()
    assert baselines.parameters(ezvsl.image) == 11_176_512  # torchvision's 11 689 512 without its classifier
    assert round(baselines.parameters(ezvsl.audio) / 1e6, 1) == 11.2
    assert round(baselines.parameters(vit) / 1e6, 1) == 21.7
    with torch.no_grad():
        views = torch.randn(2, 3, 224, 224)
        assert ezvsl.image(views).shape == (2, 512, 7, 7)
        maps = ezvsl(views, torch.randn(1, 1, 257, 200))
        assert maps.shape == (2, 7, 7) and maps.abs().max() <= 1.0
        assert baselines.VitSmall8(depth=1)(views[:1]).shape == (1, 28 * 28, 384)


@pytest.mark.train
@pytest.mark.slow
def test_the_other_networks_run_beside_ours(localizer, moments, tmp_path):
    config = latency.BenchmarkConfig(repeats=2, slow_every=2, networks=tmp_path / "networks")
    folder, reason = latency.baseline_files(config)
    assert folder is not None and "random weights" in reason
    rows = latency.comparison(1, moments, config, folder)
    assert rows[latency.EZVSL]["n"] == 2 and rows[latency.DENSEAV]["n"] == 1
    assert rows[latency.DENSEAV]["median_ms"] > 3 * rows[latency.EZVSL]["median_ms"]
    assert rows[latency.EZVSL]["median_ms"] > rows[latency.OURS]["median_ms"]


def test_the_networks_of_others_take_our_views(localizer, moments, tmp_path):
    """With small networks of the same inputs: the real ones are large and their files no part of a test."""
    onnx = pytest.importorskip("onnx")
    views = latency.square_views(moments.images[0], localizer.layout)
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [len(views), 3, *views.shape[1:3]])
    sound = onnx.helper.make_tensor_value_info("spectrogram", onnx.TensorProto.FLOAT, [1, 1, 8, 8])
    for name, inputs in (("ezvsl", [image, sound]), ("denseav_image", [image])):
        nodes = [onnx.helper.make_node("ReduceMax", [given.name], [f"of {given.name}"], keepdims=0) for given in inputs]
        outputs = [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, []) for node in nodes]
        graph = onnx.helper.make_graph(nodes, name, inputs, outputs)
        opset = onnx.helper.make_opsetid("", 17)
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / f"{name}.onnx")
    ezvsl, denseav = latency.baseline_contenders(tmp_path, views, 1).values()
    assert ezvsl()[0] == denseav()[0] == pytest.approx(views.max() / 127.5 - 1)
    with pytest.raises(ValueError, match="build them again"):
        latency.baseline_contenders(tmp_path, views[:2], 1)
