"""The search: killed and gone on with, shared by processes, honest about what it found. Mostly on a made-up subject
that costs nothing; where it matters on real, tiny training runs."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

optuna = pytest.importorskip("optuna")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is also run as a worker

from optuna.trial import TrialState  # noqa: E402

from training import tune  # noqa: E402
from training.tune import Pace, TuneConfig  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.shared]
LONG = pytest.mark.timeout(900)  # of tests that wait for processes, each of which imports torch
SHARED = Path(__file__).resolve().parents[3] / "shared"
TUNE = Path(tune.__file__)
STEPS = 8


@dataclass(frozen=True)
class HillConfig:
    x: float = 0.3
    steps: int = STEPS


class Clock:
    """In place of the module `time`: goes on by what is slept alone, so that a busy machine ends no search early."""

    def __init__(self):
        self.now = time.time()

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """The search in this process goes by a clock of its own; hand it to its Hill as well."""
    clock = Clock()
    monkeypatch.setattr(tune, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def drawn_alike(monkeypatch):
    """The search in this process draws the same trials every time: of eight drawn freely, now and then none is good."""
    sampler, seeds = optuna.samplers.TPESampler, itertools.count()  # a second call draws others than the first
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **given: sampler(seed=next(seeds), **given))


class Hill:
    """A score that is highest at `peak`. Every step is written down before it is done, with the process that does."""

    def __init__(self, clock=time, peak=0.6, seconds=0.01, fresh=True, breaks=lambda x: False):
        self.base, self.steps, self.runs, self.clock = HillConfig(), STEPS, 0, clock
        self.peak, self.seconds, self.is_fresh, self.breaks = peak, seconds, fresh, breaks

    def defaults(self, steps):
        return {"x": self.base.x}

    def suggest(self, trial, steps):
        return {"x": trial.suggest_float("x", 0.0, 1.0)}

    def whole(self, parameters, folder):
        return replace(self.base, **parameters)

    def score(self, x):
        return 1.0 - (x - self.peak) ** 2

    def run(self, parameters, folder, steps, report):
        self.runs += 1
        if self.breaks(parameters["x"]):
            raise RuntimeError("broken")
        (folder / "x").write_text(str(parameters["x"]))
        record = folder / "steps"
        done = len(record.read_text().splitlines()) if record.exists() else 0
        for step in range(done + 1, steps + 1):
            with open(record, "a") as file:
                file.write(f"{os.getpid()} {time.time()}\n")
            self.clock.sleep(self.seconds)
            if step % (steps // tune.REPORTS) == 0:
                report(step, self.score(parameters["x"]))
        return self.score(parameters["x"])

    def pace(self, folder):
        return Pace(0.01, self.seconds, 0.0, 0.0)

    def fresh(self, folder, scenes):
        x = float((folder / "x").read_text()) if self.is_fresh is True else 0.0
        noise = np.random.default_rng(0).normal(size=scenes)
        return {"named": self.score(x) + 0.1 * noise} if self.is_fresh is not None else None


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="tune", storage=tune.open_journal(folder / "study.journal"))


def running_in(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return study_of(folder).get_trials(states=(TrialState.RUNNING,))


def told(folder: Path) -> list[dict]:
    """The lines of Optuna's journal by which trials ended."""
    lines = [json.loads(line) for line in (folder / "study.journal").read_text().splitlines(True) if line[-1] == "\n"]
    return [line for line in lines if line["op_code"] == 6 and TrialState(line["state"]).is_finished()]


def start(config: TuneConfig) -> subprocess.Popen:
    """A search as a user starts it."""
    return subprocess.Popen(tune.command(config), env={**os.environ, "OMP_NUM_THREADS": "1"},
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def wait_for(condition, process, seconds=250.0):
    until = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < until, "the process ended, or took too long"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------- a subject made up


def test_the_best_configuration_beats_the_default_and_is_written(tmp_path, capsys, clock):
    result = tune.tune(TuneConfig(0.05, tmp_path / "study"), Hill(clock))
    said = capsys.readouterr().out
    assert result.beats and result.default == 0 and result.interval[0] > 0
    assert f"Trial {result.best} beats the default configuration" in said and "200 fresh validation scenes" in said
    found = json.loads((tmp_path / "study/best.json").read_text())
    assert abs(found["x"] - 0.6) < 0.2 and found["steps"] == STEPS
    assert json.loads((tmp_path / "study/result.json").read_text())["best"] == result.best
    trials = study_of(tmp_path / "study").trials
    rows = (tmp_path / "study/trials.csv").read_text().splitlines()
    assert rows[0] == "trial,state,score,seconds,x" and len(rows) == len(trials) + 1
    assert trials[0].params == {"x": 0.3} and trials[0].state == TrialState.COMPLETE
    assert any(trial.state == TrialState.PRUNED for trial in trials)
    assert all((tmp_path / f"study/{name}.png").stat().st_size > 5000 for name in ("history", "importance"))


def test_a_default_that_is_not_beaten_is_said_and_kept(tmp_path, capsys, clock):
    result = tune.tune(TuneConfig(0.02, tmp_path / "study"), Hill(clock, peak=0.3))
    assert not result.beats and "beats the default" in result.sentence and result.sentence.startswith("None of")
    assert json.loads((tmp_path / "study/best.json").read_text())["x"] == 0.3
    assert result.sentence in capsys.readouterr().out


def test_a_better_score_that_fresh_scenes_do_not_confirm_is_chance(tmp_path, clock):
    result = tune.tune(TuneConfig(0.02, tmp_path / "study"), Hill(clock, fresh=False))
    assert not result.beats and result.best != 0 and "does not beat the default configuration beyond" in result.sentence
    assert json.loads((tmp_path / "study/best.json").read_text())["x"] == 0.3


def test_without_fresh_scenes_no_interval_is_given(tmp_path, clock):
    result = tune.tune(TuneConfig(0.02, tmp_path / "study"), Hill(clock, fresh=None))
    assert result.interval is None and "what the search itself was judged on" in result.sentence


def test_a_trial_that_the_minutes_cut_off_goes_on_in_the_next_call(tmp_path, capsys, clock):
    config, slow = TuneConfig(0.002, tmp_path / "study"), Hill(clock, seconds=0.1)
    assert tune.tune(config, slow) is None
    assert "the next call goes on with it" in capsys.readouterr().out
    before = (tmp_path / "study/trials/0000/steps").read_text()
    tune.tune(replace(config, minutes=0.02), slow)
    assert "trial 0: goes on where it was left" in capsys.readouterr().out
    after = (tmp_path / "study/trials/0000/steps").read_text()
    assert after.startswith(before) and len(after.splitlines()) == STEPS
    trial = study_of(tmp_path / "study").trials[0]
    assert trial.state == TrialState.COMPLETE and list(trial.intermediate_values) == [2, 4, 6, 8]


@LONG
def test_processes_that_are_killed_and_started_again_lose_no_trial_and_do_none_twice(tmp_path):
    study = tmp_path / "study"

    def climb(seconds):
        return subprocess.Popen([sys.executable, __file__, str(study), str(seconds / 60)], stdout=subprocess.DEVNULL)

    doomed = [climb(600), climb(600)]
    wait_for(lambda: len(list((study / "trials").glob("*/steps"))) > 3, doomed[0])
    for process in doomed:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    left = running_in(study)
    assert left
    over = time.time() + 6  # not before: each counts its minutes from its own beginning
    followers = [climb(6), climb(6)]
    assert [process.wait(250) for process in followers] == [0, 0]
    # A trial that their minutes have cut off is left for the next call: that is this process.
    hill = Hill(seconds=0.05)
    search = tune.open_study(TuneConfig(1.0, study), hill)
    while (found := tune.next_trial(search, study, fits=False)) is not None:
        trial, lock = found
        with lock:
            tune.run_trial(search, hill, trial, tune.folder_of(study, trial.number), tune.Limit(time.time() + 100))
    trials = study_of(study).trials
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) and len(trials) > len(left)
    assert sorted(line["trial_id"] for line in told(study)) == [trial.number for trial in trials]
    killed, ended = ({str(process.pid) for process in generation} for generation in (doomed, followers))
    workers = set()
    for trial in trials:
        steps = [line.split() for line in (study / f"trials/{trial.number:04d}/steps").read_text().splitlines()]
        assert len(steps) == STEPS or trial.state == TrialState.PRUNED
        # One process at a time: a trial has another one only after its own was killed, or had no time left.
        processes = [process for process, _ in itertools.groupby(process for process, _ in steps)]
        assert len(set(processes)) == len(processes)
        for (one, _), (other, moment) in zip(steps, steps[1:]):
            assert one == other or (one in killed and other not in killed) or float(moment) > over
        workers |= set(processes)
    assert workers - {str(os.getpid())} == killed | ended


def test_a_trial_of_another_machine_is_not_taken_before_it_has_been_still(tmp_path):
    (tmp_path / "lock").write_text("elsewhere")
    assert tune.claim(tmp_path) is None
    old = time.time() - 2 * tune.PATIENCE
    os.utime(tmp_path / "lock", (old, old))
    with tune.claim(tmp_path) as lock:
        assert lock is not None


def test_a_line_of_the_journal_that_was_cut_off_does_not_end_the_search(tmp_path, clock):
    config = TuneConfig(0.005, tmp_path / "study")
    tune.tune(config, Hill(clock))
    count = len(study_of(config.study).trials)
    with open(config.study / "study.journal", "a") as file:
        file.write('{"op_code":4,"work')
    tune.tune(config, Hill(clock))
    assert len(study_of(config.study).trials) > count


def test_trials_that_fail_are_recorded_and_the_search_goes_on(tmp_path, capsys, clock):
    hill = Hill(clock)
    hill.breaks = lambda x: hill.runs % 3 == 2
    tune.tune(TuneConfig(0.02, tmp_path / "study"), hill)
    states = [trial.state for trial in study_of(tmp_path / "study").trials]
    assert states[1] == TrialState.FAIL and len(states) > 3 and states[2] == states[3] == TrialState.COMPLETE
    with pytest.raises(RuntimeError, match="in a row failed"):
        tune.tune(TuneConfig(0.1, tmp_path / "other"), Hill(clock, breaks=lambda x: x != 0.3))
    assert "failed: RuntimeError: broken" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="broken"):
        tune.tune(TuneConfig(0.1, tmp_path / "third"), Hill(clock, breaks=lambda x: x == 0.3))


@pytest.mark.parametrize(
    "changes, message",
    [({"minutes": 0.0}, "minutes must be more than 0"), ({"minutes": float("nan")}, "minutes must be more than 0"),
     ({"workers": 0}, "--workers must be at least 1"), ({"subject": "adapt"}, "needs --recording"),
     ({"recording": Path("walk")}, "--recording is for --subject adapt"),
     ({"subject": "adapt", "recording": Path("no-such-walk")}, "no recording no-such-walk"),
     ({"base": Path("no-such.json")}, "no-such.json")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_with_the_remedy(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError, SystemExit), match=message):
        tune.tune(replace(TuneConfig(1.0, tmp_path / "study"), **changes))
    assert not (tmp_path / "study").exists()


def test_a_folder_of_another_search_is_refused(tmp_path, clock):
    config = TuneConfig(0.005, tmp_path / "study")
    tune.tune(config, Hill(clock))
    other = Hill(clock)
    other.base = HillConfig(x=0.4)
    with pytest.raises(ValueError, match=r"another configuration \(x differ\)"):
        tune.tune(config, other)
    with pytest.raises(ValueError, match="a search for train, not adapt"):
        tune.tune(replace(config, subject="adapt", recording=tmp_path), Hill(clock))
    with pytest.raises(ValueError, match="have 8 steps, not 9"):
        tune.tune(replace(config, steps=9), Hill(clock))
    (config.study / "study.journal").unlink()
    with pytest.raises(ValueError, match="has trials but no study.journal"):
        tune.tune(config, Hill(clock))


def test_trials_are_as_long_as_the_minutes_allow(capsys):
    pace = Pace(start=10.0, step=1.0, validation=5.0, judging=60.0)
    assert tune.plan(pace, 1200.0, 1, 5000) == (120, 150.0)
    assert "8 fit" in capsys.readouterr().out
    assert tune.plan(pace, 1200.0, 2, 5000) == (270, 300.0)
    assert tune.plan(pace, 1e6, 1, 5000)[0] == 5000
    assert tune.plan(pace, 120.0, 1, 5000)[0] == tune.LEAST_STEPS
    assert "give 6 minutes or more" in capsys.readouterr().out


def test_the_interval_of_a_difference_is_of_the_same_scenes():
    base = np.random.default_rng(0).random(100)
    low, high = tune.difference({"named": base + 0.01, "points": np.full(100, np.nan)},
                                {"named": base, "points": np.full(100, np.nan)})  # fmt: skip
    assert (low, high) == pytest.approx((0.01, 0.01))


def test_a_rank_of_torchrun_becomes_a_worker_of_the_first_one(monkeypatch):
    config = TuneConfig(1.0)
    assert tune.out_of_torchrun(config) is config
    ranks = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "8"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert tune.out_of_torchrun(config) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert tune.out_of_torchrun(config).workers == 4 and not {*ranks, "LOCAL_RANK"} & set(os.environ)


# ---------------------------------------------------------------------------------------------------- real training


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A configuration file of a tiny run of the audio encoder."""
    torch = pytest.importorskip("torch")
    from training.train import MixConfig, TrainConfig

    folder = tmp_path_factory.mktemp("base")
    config = TrainConfig(
        data=SHARED / "data", weights=SHARED / "weights", run=folder / "run", cache=folder / "cache", steps=40,
        scenes=1, align_steps=10, warm_up=4, log_every=1, validation_scenes=2, workers=0, split="validation",
        accelerator="cpu", mix=MixConfig(views=0, sounds=2),
    )  # fmt: skip
    (folder / "base.json").write_text(json.dumps(asdict(config), default=str))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder / "base.json"
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def killed(base, tmp_path_factory):
    """A search that was killed in the middle of its first trial, its log until then, and how that trial went on."""
    config = TuneConfig(9.0, tmp_path_factory.mktemp("studies") / "study", base=base, steps=12, scenes=4)
    process, trial = start(config), tune.folder_of(config.study, 0)
    log = trial / "log.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    log = log.read_text().splitlines()
    subject = tune.TrainSubject(config)
    study = tune.open_study(config, subject)
    left, lock = tune.next_trial(study, config.study, fits=False)
    with lock:
        tune.run_trial(study, subject, left, trial, tune.Limit(time.time() + 250))
    return config, log, tune.conclude(study, subject, config)


@LONG
def test_a_killed_search_goes_on_with_the_same_trial_from_its_checkpoint(killed):
    config, log, result = killed
    lines = (tune.folder_of(config.study, 0) / "log.jsonl").read_text().splitlines()
    assert lines[:3] == log[:3] and [json.loads(line)["step"] for line in lines] == list(range(1, 13))
    trials = study_of(config.study).trials
    assert trials[0].state == TrialState.COMPLETE and list(trials[0].intermediate_values) == [3, 6, 9, 12]
    assert trials[0].params["trunk_rate"] == 2e-4 and trials[0].params["align_share"] == 0.25
    assert result is not None and result.default == 0
    assert [line["trial_id"] for line in told(config.study)] == [0]


@LONG
def test_train_reads_the_best_configuration(killed):
    from training.train import read_configuration

    config, _, result = killed
    found, base = (read_configuration(["--config", str(path)]) for path in (config.study / "best.json", config.base))
    assert found.steps == 40 and found.run == config.study / "best"
    if not result.beats:
        assert replace(found, run=base.run) == base


@LONG
def test_two_workers_share_the_search_and_end_with_the_process_that_started_them(killed):
    config = replace(killed[0], workers=2)
    before = len(study_of(config.study).trials)
    process = start(config)
    wait_for(lambda: len({line["worker_id"] for line in told(config.study) if line["trial_id"] >= before}) > 1, process)
    process.kill()
    process.wait()
    running = [tune.folder_of(config.study, left.number) / "lock" for left in running_in(config.study)]
    until = time.time() + 250
    while running and time.time() < until:
        time.sleep(0.1)
        running = [path for path in running if (lock := tune.hold(path)) is None or lock.close()]
    assert not running
    trials = study_of(config.study).trials
    ended = [trial.number for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) + len(running_in(config.study)) == len(trials)
    assert sorted(line["trial_id"] for line in told(config.study)) == ended


@LONG
def test_a_job_of_submitit_joins_the_search(killed):
    config = replace(killed[0], minutes=0.01, slurm={"cluster": "local", "timeout_min": "5"})
    tune.tune(config)
    assert "default configuration" in next((config.study / "jobs").glob("*_log.out")).read_text()


def test_the_defaults_give_back_the_configuration_and_the_space_is_around_it(base):
    subject = tune.TrainSubject(TuneConfig(1.0, base=base))
    assert subject.whole(subject.defaults(40), subject.base.run) == subject.base
    assert not set(tune.OF_VIEWS) & set(subject.defaults(40)) and "ema" not in subject.defaults(40)
    subject.base, subject.steps = replace(subject.base, trunk_rate=1e-6, gate_weight=0.0, steps=5000), 5000
    assert {"ema", "mix.reverberant"} <= set(subject.defaults(5000)) and "gate_weight" not in subject.defaults(5000)
    suggested = subject.suggest(optuna.create_study().ask(), 5000)
    assert 2e-7 <= suggested["trunk_rate"] <= 5e-6
    trial = subject.trial({**subject.defaults(100), "mix.reverberant": 0.6}, Path("x"), 100)
    assert (trial.steps, trial.warm_up, trial.validate_every, trial.mix.reverberant) == (100, 4, 25, 0.6)


def test_trials_are_judged_on_the_scenes_of_the_base(base, tmp_path):
    from training.train import read_configuration, train

    config = read_configuration(["--config", str(base), "--steps", "1", "--run", str(tmp_path / "silent")])
    silent = replace(config, mix=replace(config.mix, no_sound=1.0))
    reported = []
    metrics = train(silent, lambda step, metrics: reported.append((step, metrics)), config.mix)
    assert 0 <= metrics["named"] <= 1 and reported == [(1, metrics)]


def test_adapt_is_searched_as_train_is(tmp_path, monkeypatch, clock):
    """adapt() itself is made up here; its configuration and what it may refuse are the real ones."""
    pytest.importorskip("torch")
    from training import adapt

    def made_up(config, report):
        if not any(config.recording.iterdir()):
            raise adapt.Refused("nothing is heard")
        config.output.mkdir(parents=True, exist_ok=True)
        score = 1.0 - abs(config.rank - 16) / 16 - (config.where == "dense") - config.reverberant / 10
        for step in range(1, config.steps + 1):
            clock.sleep(0.01)
            if step % config.check_every == 0 or step == config.steps:
                report(step, score)
        if score < 0.5:
            raise adapt.Refused("no better")
        return adapt.AdaptResult(score, 0.5, config.steps, (), 0)

    monkeypatch.setattr(adapt, "adapt", made_up)
    config = TuneConfig(0.05, tmp_path / "study", "adapt", recording=tmp_path / "walk")
    config.recording.mkdir()
    with pytest.raises(adapt.Refused, match="nothing is heard"):
        tune.tune(config)
    (config.recording / "segment.mp4").touch()
    result = tune.tune(config)
    default, base = study_of(config.study).trials[0], adapt.AdaptConfig(config.recording)
    assert default.params == {name: getattr(base, name) for name in default.params} and default.value < 0.5
    assert {"where", "rank", "rate", "keep_weight", "clustering_weight", "reverberant"} <= set(default.params)
    best = json.loads((config.study / "best.json").read_text())
    assert result.beats and result.interval is None and best["where"] != "dense" and best["steps"] == base.steps
    assert best["recording"] == str(config.recording) and best["output"] == str(config.study / "best")


if __name__ == "__main__":  # a process of the test above that kills them
    config, hill = TuneConfig(float(sys.argv[2]), Path(sys.argv[1])), Hill(seconds=0.05)
    tune.open_study(config, hill)  # who is killed while it writes leaves a lock for 10 s, which are not of the minutes
    tune.tune(config, hill)
