"""Searches for a better configuration of `train.py` or `adapt.py` in a given number of minutes, with Optuna.

    python training/tune.py --minutes 20                          # tunes what train.py does by default
    python training/tune.py --minutes 20                          # the same again: goes on, for 20 minutes more
    python training/tune.py --minutes 20 --base runs/first/config.json --study runs/other    # another configuration
    python training/tune.py --minutes 20 --workers 2              # two processes share the search and the cores
    python training/tune.py --minutes 20 --subject adapt --recording walk --study runs/tune-adapt
    torchrun --nproc-per-node 4 -- training/tune.py --minutes 60  # a process a rank; each trial is of one process
    python training/tune.py --minutes 600 --workers 8 --slurm partition gpu gpus_per_node 1 cpus_per_task 8
    python training/train.py --config runs/tune/best.json         # the whole run with what was found

The study folder holds study.journal (Optuna's record of the search), trials/NNNN (each an ordinary run folder),
best.json (`train.py --config` reads it), result.json (best against default), trials.csv, history.png, importance.png.
The same command on another machine that sees this folder joins the search.

Trial 0 is the configuration that is tuned, shortened as all trials are. Every running trial's folder is locked by its
process; one that nobody holds was killed, and the next process that is free goes on with it from its checkpoint. At the
end the best trial and trial 0 are compared on validation scenes that the search has not seen: docs/tuning.md.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import typing
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from training.files import write_whole

TRIALS = 8  # unpruned ones that are to fit into the minutes of a new study
FEWEST = 6  # with fewer a search is hardly one, and that is said
LEAST_STEPS = 20  # of a trial
REPORTS = 4  # validations of a trial
PROBE_STEPS = 8  # to measure the pace on
FAILURES = 3  # trials in a row that may fail
PATIENCE = 600.0  # seconds without a new file before a trial of another machine is taken for killed
FRESH_SEED = 2  # of the scenes for the comparison at the end; the search is judged on those of seed 1
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class TuneConfig:
    """What to search for and how long."""

    minutes: float  # of this call, whatever earlier ones took
    study: Path = Path("runs/tune")  # folder of the search; an earlier search in it goes on
    subject: Literal["train", "adapt"] = "train"
    recording: Path | None = None  # folder that adapt.py learns from
    base: Path | None = None  # configuration file to start from and to beat; None: the defaults
    workers: int = 1  # processes on this machine, or jobs with --slurm
    slurm: dict[str, str] = field(default_factory=dict)  # parameters of submitit's AutoExecutor; cluster: slurm, local
    steps: int | None = None  # of a trial; None: so that eight trials fit into the minutes
    scenes: int = 200  # fresh validation scenes for the comparison at the end
    worker: tuple[int, float] | None = None  # of processes that tune.py starts: who did, and when to end (epoch)


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a trial take."""

    start: float  # until the first step
    step: float
    validation: float
    judging: float  # of two models at the end of the search


class Subject(Protocol):
    """What is tuned. Parameters are numbers or words by name; a configuration is the dataclass of the subject."""

    base: Any  # configuration
    steps: int  # of it

    def defaults(self, steps: int) -> dict[str, Any]:
        """The parameters that give back the base."""

    def suggest(self, trial: optuna.Trial, steps: int) -> dict[str, Any]:
        """Parameters for a trial; a trial that has some already keeps them."""

    def whole(self, parameters: dict[str, Any], folder: Path) -> Any:
        """The base with these parameters, at its full length, to be run in a folder."""

    def run(self, parameters: dict[str, Any], folder: Path, steps: int, report: Report) -> float:
        """Runs a trial, or goes on with it, and returns its score; `report` takes (step, score) on the way."""

    def pace(self, folder: Path) -> Pace:
        """Measured on a few steps in an empty folder."""

    def fresh(self, folder: Path, scenes: int) -> dict[str, np.ndarray] | None:
        """Shares of right answers (scenes,) by name, NaN where a scene has no question, of a finished trial on scenes
        that no trial was judged on; their mean is its score. None where there is no more than the search saw."""


class OutOfTime(Exception):
    """The minutes are over in the middle of a trial, which is left for the next call."""


# ---------------------------------------------------------------------------------------------------- what is searched

# Around the base's own value, from value / factor to value * factor, in logarithm. What is zero there stays zero.
FACTORS = {"trunk_rate": 5.0, "head_rate": 5.0, "clustering_weight": 3.0, "gate_weight": 3.0, "nothing_weight": 3.0}
# From .. to, wider where the base's value lies outside. align_share: of the steps, before deep clustering joins.
RANGES = {"align_share": (0.02, 0.5), "visual_share": (0.25, 0.75), "background_share": (0.2, 0.6),
          "ema": (0.99, 0.9995), "mix.decoy": (0.0, 0.5), "mix.two_sounds": (0.1, 0.6), "mix.reverberant": (0.0, 0.6),
          "mix.offscreen": (0.0, 0.3)}  # fmt: skip
OF_VIEWS = ("visual_share", "mix.decoy", "mix.offscreen")  # mean nothing to a run without pictures
ADAPT_FACTORS = {"rate": 5.0, "keep_weight": 3.0, "rehearsal_weight": 3.0, "clustering_weight": 3.0}
ADAPT_RANGES = {"reverberant": (0.0, 0.6)}
ADAPT_RANKS = 1, 32


def spread(value: float, factor: float) -> tuple[float, float, bool]:
    """Lower end, upper end and whether in logarithm."""
    return value / factor, value * factor, True


class TrainSubject:
    """train.py: rates, weights of the losses and how scenes are mixed.

    All trials are judged on the base's kind of scenes: those of a trial with fewer decoys would be easier. torch is
    imported where it is needed: a process that only hands jobs to Slurm does not wait for it.
    """

    def __init__(self, config: TuneConfig):
        from training.train import read_configuration

        arguments = ["--config", str(config.base)] if config.base is not None else []
        self.base = replace(read_configuration(arguments), devices=1)
        self.steps, self.workers, self.scenes = self.base.steps, config.workers, config.scenes

    def _value(self, name: str) -> float:
        if name == "align_share":
            return self.base.align_steps / self.steps
        return getattr(self.base.mix if name.startswith("mix.") else self.base, name.removeprefix("mix."))

    def _space(self, steps: int) -> dict[str, tuple[float, float, bool]]:
        space = {name: spread(self._value(name), factor) for name, factor in FACTORS.items() if self._value(name)}
        for name, (low, high) in RANGES.items():
            space[name] = min(low, self._value(name)), max(high, self._value(name)), False
        left_out = OF_VIEWS if not self.base.mix.views else ()
        # moving_average has a ramp of its own, which lies below the whole range in a short run.
        left_out += ("ema",) if (1 + steps) / (10 + steps) < RANGES["ema"][0] else ()
        return {name: limits for name, limits in space.items() if name not in left_out}

    def defaults(self, steps: int) -> dict[str, float]:
        return {name: self._value(name) for name in self._space(steps)}

    def suggest(self, trial: optuna.Trial, steps: int) -> dict[str, float]:
        return {name: trial.suggest_float(name, low, high, log=log)
                for name, (low, high, log) in self._space(steps).items()}

    def whole(self, parameters: dict[str, float], folder: Path, steps: int | None = None):
        steps = steps or self.steps
        mix = {name.removeprefix("mix."): value for name, value in parameters.items() if name.startswith("mix.")}
        own = {name: value for name, value in parameters.items() if name != "align_share" and "." not in name}
        return replace(self.base, run=folder, steps=steps, align_steps=round(parameters["align_share"] * steps),
                       mix=replace(self.base.mix, **mix), **own)

    def trial(self, parameters: dict[str, float], folder: Path, steps: int):
        """The configuration of a trial: shortened, with a checkpoint at each of its validations."""
        every = math.ceil(steps / REPORTS)
        warm_up = min(self.base.warm_up, max(1, steps // 10))
        return replace(self.whole(parameters, folder, steps), warm_up=warm_up, validate_every=every,
                       checkpoint_every=every)

    def run(self, parameters: dict[str, float], folder: Path, steps: int, report: Report) -> float:
        from training.train import train

        def of_metrics(step: int, metrics: dict[str, float]) -> None:
            report(step, score_of(metrics))

        return score_of(train(self.trial(parameters, folder, steps), of_metrics, self.base.mix))

    def pace(self, folder: Path) -> Pace:
        import torch

        from training.train import train

        half = PROBE_STEPS // 2
        config = replace(self.trial(self.defaults(PROBE_STEPS), folder, PROBE_STEPS), log_every=1, validate_every=half)
        validated, threads, began = [], torch.get_num_threads(), time.time()
        torch.set_num_threads(max(1, threads // self.workers))  # as many as each worker will have
        train(config, lambda step, metrics: validated.append(time.time()), self.base.mix)
        torch.set_num_threads(threads)
        seconds = [json.loads(line)["seconds"] for line in (folder / "log.jsonl").read_text().splitlines()]
        laps = np.diff(seconds)  # of the second step and on; the one after the first validation includes it
        step = max(1e-3, float(np.median(np.delete(laps, half - 1))))
        validation = max(0.0, laps[half - 1] - step)
        judging = 2 * validation * self.scenes / self.base.validation_scenes
        return Pace(max(0.0, validated[-1] - began - seconds[-1] - validation), step, validation, judging)

    def fresh(self, folder: Path, scenes: int) -> dict[str, np.ndarray]:
        import torch
        from lightning_fabric import Fabric
        from torch.utils.data import DataLoader

        from training.clip_collection import open_collection
        from training.export import load_average
        from training.mixing import SceneMixer
        from training.networks import prototypes
        from training.train import Scenes, concepts_of, validate

        fabric, concepts = Fabric(accelerator=self.base.accelerator, devices=1), concepts_of(self.base)
        model = load_average(folder)[0].to(fabric.device, memory_format=torch.channels_last)
        frame = prototypes(len(concepts), self.base.dimensions).to(fabric.device)
        collection = open_collection(self.base.data, self.base.clips, "validation", concepts, self.base.cache)
        mixed = Scenes(SceneMixer(collection, self.base.mix, FRESH_SEED), 0, scenes)
        loader = DataLoader(mixed, batch_size=1, num_workers=self.base.workers)
        found = [validate(model, [batch], frame, fabric) for batch in loader]
        collection.close()
        return {name: np.array([metrics[name] for metrics in found]) for name in ("named", "points")}


def score_of(metrics: dict[str, float]) -> float:
    """Mean of `named` and `points` of train.validate; of a run without pictures the first alone."""
    known = [metrics[name] for name in ("named", "points") if not math.isnan(metrics[name])]
    return float(np.mean(known)) if known else math.nan


class AdaptSubject:
    """adapt.py: where adapters go, their rank, the learning rate, weights of the losses and rooms.

    A trial's score is that of its best state on the way, also where adapt.py refuses to write it.
    """

    def __init__(self, config: TuneConfig):
        from training import adapt
        from training.train import read_configuration

        arguments = ["--config", str(config.base)] if config.base is not None else []
        self.base = read_configuration([*arguments, "--recording", str(config.recording)], adapt.AdaptConfig)
        self.steps, self._adapt, self._refused = self.base.steps, adapt.adapt, adapt.Refused
        self._places = typing.get_args(typing.get_type_hints(adapt.AdaptConfig)["where"])

    def _space(self) -> dict[str, tuple[float, float, bool]]:
        rehearses = self.base.data is not None and self.base.data.exists()
        space = {name: spread(getattr(self.base, name), factor) for name, factor in ADAPT_FACTORS.items()
                 if getattr(self.base, name) and (rehearses or name != "rehearsal_weight")}
        for name, (low, high) in ADAPT_RANGES.items():
            space[name] = min(low, getattr(self.base, name)), max(high, getattr(self.base, name)), False
        return space

    def defaults(self, steps: int) -> dict[str, Any]:
        return {name: getattr(self.base, name) for name in ("where", "rank", *self._space())}

    def suggest(self, trial: optuna.Trial, steps: int) -> dict[str, Any]:
        numbers = {name: trial.suggest_float(name, low, high, log=log)
                   for name, (low, high, log) in self._space().items()}
        return {"where": trial.suggest_categorical("where", self._places),
                "rank": trial.suggest_int("rank", *ADAPT_RANKS, log=True), **numbers}

    def whole(self, parameters: dict[str, Any], folder: Path):
        return replace(self.base, output=folder, **parameters)

    def run(self, parameters: dict[str, Any], folder: Path, steps: int, report: Report) -> float:
        return self._run(parameters, folder, steps, math.ceil(steps / REPORTS), report)

    def _run(self, parameters: dict[str, Any], folder: Path, steps: int, check_every: int, report: Report) -> float:
        scores = []

        def keep(step: int, score: float) -> None:
            scores.append(score)
            report(step, score)

        # A folder of its own: the trial's holds its lock and what it gets right.
        config = replace(self.whole(parameters, folder / "models"), steps=steps, check_every=check_every)
        try:
            return self._adapt(config, keep).score
        except self._refused:
            if not scores:  # it is the recording that was refused, before the first step
                raise
            return max(scores)

    def pace(self, folder: Path) -> Pace:
        checked, began = [], time.time()
        self._run(self.defaults(10), folder, 10, 4, lambda step, score: checked.append(time.time()))
        more, fewer = np.diff(checked)  # four steps and a check, two steps and a check
        step = max((more - fewer) / 2, more / 12)  # of noise the difference may be next to nothing
        validation = max(0.0, more - 4 * step)
        around = checked[0] - began - 4 * step - validation + time.time() - checked[-1]
        return Pace(max(0.0, around), step, validation, 0.0)

    def fresh(self, folder: Path, scenes: int) -> None:
        return None  # a recording holds no more than its held back part, which the search was judged on


SUBJECTS: dict[str, Callable[[TuneConfig], Subject]] = {"train": TrainSubject, "adapt": AdaptSubject}


# --------------------------------------------------------------------------------------------------- the study's folder


def hold(path: Path, wait: bool = False) -> IO[str] | None:
    """An open file that this process has locked until it is closed; None where another process has.

    A POSIX lock, not flock: forked data loaders, which outlive a killed process for seconds, do not inherit it, and NFS
    keeps it between machines.
    """
    file = open(path, "a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    return file


def claim(folder: Path) -> IO[str] | None:
    """The lock of a trial's folder, with this machine's name in it, or None where the trial is at work.

    Some network disks know locks within one machine alone: a trial of another one must have been still for a while too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, machine = folder / "lock", socket.gethostname()
    if path.exists() and path.read_text() not in ("", machine):
        if time.time() - max(file.stat().st_mtime for file in folder.iterdir()) < PATIENCE:
            return None
    lock = hold(path)
    if lock is not None:
        lock.truncate(0)
        lock.write(machine)
        lock.flush()
    return lock


def folder_of(study: Path, number: int) -> Path:
    """The run folder of a trial."""
    return study / "trials" / f"{number:04d}"


def open_journal(path: Path) -> optuna.storages.JournalStorage:
    """Optuna's record of a study. A last line that is not whole (power cut, full disk) is cut off: nobody read it."""
    # Not Optuna's default lock, a link that never counts as stale where the path is relative. A process that is killed
    # while it writes leaves the lock, and the others wait so many seconds; writing takes milliseconds.
    lock = JournalFileOpenLock(str(path), grace_period=10)
    backend = JournalFileBackend(str(path), lock)
    lock.acquire()
    try:
        text = path.read_bytes()
        os.truncate(path, text.rfind(b"\n") + 1)
    finally:
        lock.release()
    return optuna.storages.JournalStorage(backend)


def open_study(config: TuneConfig, subject: Subject) -> optuna.Study:
    """The study of the folder, new or gone on with, with its default trial in the queue.

    Its attributes: subject and base, steps of a trial, the seconds it takes, and those to keep for the end (judging).
    Raises ValueError where the folder holds another search.
    """
    folder, base = config.study, json.loads(json.dumps(asdict(subject.base), default=str))
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / "study.lock", wait=True):
        if not (folder / "study.journal").exists() and (folder / "trials").exists():
            raise ValueError(f"{folder} has trials but no study.journal: give another --study")
        storage = open_journal(folder / "study.journal")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of Optuna 4 for both options
            sampler = optuna.samplers.TPESampler(n_startup_trials=5, multivariate=True, constant_liar=True)
        study = optuna.create_study(storage=storage, sampler=sampler, study_name="tune", direction="maximize",
                                    load_if_exists=True)  # fmt: skip
        if "base" not in study.user_attrs:
            study.set_user_attr("subject", config.subject)
            study.set_user_attr("base", base)
        _check_same(config, study.user_attrs, base)
        if "judging" not in study.user_attrs:
            _measure(study, subject, config)
        steps = study.user_attrs["steps"]
        # A median of few scores on few scenes says little before the middle of a trial.
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=steps // 3)
        if default_of(study) is None:
            study.enqueue_trial(subject.defaults(steps), user_attrs={"default": True})
    return study


def _check_same(config: TuneConfig, known: dict[str, Any], base: dict) -> None:
    if known["subject"] != config.subject:
        raise ValueError(f"{config.study} holds a search for {known['subject']}, not {config.subject}: give another "
                         "--study")
    other = sorted(name for name in {*base, *known["base"]} if base.get(name) != known["base"].get(name))
    if other:
        raise ValueError(f"{config.study} holds a search from another configuration ({', '.join(other)} differ): give "
                         "the same --base, or another --study")
    if config.steps is not None and known.get("steps", config.steps) != config.steps:
        raise ValueError(f"the trials of {config.study} have {known['steps']} steps, not {config.steps}: leave --steps "
                         "out, or give another --study")


def _measure(study: optuna.Study, subject: Subject, config: TuneConfig) -> None:
    """Times a few steps and sets how long the study's trials are."""
    began, folder = time.time(), config.study / "probe"
    shutil.rmtree(folder, ignore_errors=True)
    print("measuring the pace on a few steps", flush=True)
    pace = subject.pace(folder)
    shutil.rmtree(folder, ignore_errors=True)
    steps, seconds = plan(pace, 60 * config.minutes - (time.time() - began) - pace.judging, config.workers,
                          subject.steps, config.steps)  # fmt: skip
    for name, value in (("steps", steps), ("seconds", seconds), ("judging", pace.judging)):
        study.set_user_attr(name, value)


def plan(pace: Pace, seconds: float, workers: int, longest: int, wanted: int | None = None) -> tuple[int, float]:
    """Steps of a trial, so that TRIALS of them fit into the seconds, and how long it takes; says where few fit."""
    fixed = pace.start + REPORTS * pace.validation
    fitting = int((max(0.0, seconds) * workers / TRIALS - fixed) / pace.step)
    steps = wanted or min(longest, max(LEAST_STEPS, fitting))
    duration = fixed + steps * pace.step
    count = workers * int(max(0.0, seconds) / duration)
    print(f"a step takes {pace.step:.2f} s: trials of {steps} steps and {duration:.0f} s; {count} fit if none is "
          "stopped early", flush=True)
    if count < FEWEST:
        minutes = (math.ceil(FEWEST / workers) * duration + pace.judging) / 60
        print(f"fewer than {FEWEST} are hardly a search: give {math.ceil(minutes)} minutes or more, now or in the next "
              "call", flush=True)
    return steps, duration


# -------------------------------------------------------------------------------------------------------------- trials


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that ran to their end."""
    return study.get_trials(states=(TrialState.COMPLETE,))


def default_of(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """The trial of the base itself, waiting, running or finished."""
    trials = [trial for trial in study.trials if trial.user_attrs.get("default") and trial.state != TrialState.FAIL]
    return trials[-1] if trials else None


@dataclass(frozen=True)
class Limit:
    """When a process is to stop: at a time, or when `parent`, who started it, is gone."""

    end: float
    parent: int | None = None

    def over(self) -> bool:
        return time.time() > self.end or (self.parent is not None and os.getppid() != self.parent)


def work(study: optuna.Study, subject: Subject, folder: Path, limit: Limit) -> None:
    """Runs trials until the limit. Raises RuntimeError where several in a row fail, and what the default trial does."""
    failures = 0
    while failures < FAILURES and not limit.over():
        took = [trial.user_attrs["seconds"] for trial in finished(study)]
        fits = not took or time.time() + float(np.median(took)) <= limit.end
        found = next_trial(study, folder, fits)
        if found is None:
            return
        trial, lock = found
        with lock:
            try:
                ran = run_trial(study, subject, trial, folder_of(folder, trial.number), limit)
                failures = 0 if ran else failures + 1
            except OutOfTime:
                print(f"trial {trial.number}: the minutes are over, the next call goes on with it", flush=True)
    if failures == FAILURES:
        raise RuntimeError(f"{FAILURES} trials in a row failed; the last lines above say why")


def next_trial(study: optuna.Study, folder: Path, fits: bool) -> tuple[optuna.Trial, IO[str]] | None:
    """A trial whose process was killed, or a new one where it fits, and the lock on it; None where there is neither."""
    with hold(folder / "study.lock", wait=True):  # between Optuna's asking and our lock on it a trial looks killed
        for left in study.get_trials(states=(TrialState.RUNNING,)):
            lock = claim(folder_of(folder, left.number))
            if lock is None:
                continue
            if study.trials[left.number].state == TrialState.RUNNING:  # may have ended since it was listed
                print(f"trial {left.number}: goes on where it was left", flush=True)
                return optuna.Trial(study, left._trial_id), lock
            lock.close()
        if not fits:
            return None
        trial = study.ask()
        return trial, claim(folder_of(folder, trial.number))


def run_trial(study: optuna.Study, subject: Subject, trial: optuna.Trial, folder: Path, limit: Limit) -> bool:
    """Runs one trial and tells the study how it ended; False where it failed. Raises OutOfTime."""
    steps, is_default = study.user_attrs["steps"], trial.user_attrs.get("default", False)
    known = study.trials[trial.number].intermediate_values
    began = time.time() - trial.user_attrs.get("seconds", 0.0)

    def report(step: int, score: float) -> None:
        if step not in known:
            trial.report(score, step)
        if step < steps and not is_default and trial.should_prune():
            raise optuna.TrialPruned
        if step < steps and limit.over():
            raise OutOfTime

    score, state, failure = None, TrialState.COMPLETE, None
    try:
        score = subject.run(subject.suggest(trial, steps), folder, steps, report)
        if math.isnan(score):  # it diverged, and unlike of a failure the sampler learns of that
            score, state = None, TrialState.PRUNED
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except OutOfTime:
        raise
    except Exception as error:
        score, state, failure = None, TrialState.FAIL, error
        trial.set_user_attr("error", f"{type(error).__name__}: {error}")
    finally:
        trial.set_user_attr("seconds", time.time() - began)
    study.tell(trial, score, state)
    _tell_user(study, trial.number, folder)
    if is_default and failure is not None:  # what is tuned does not run: that is for the user to mend
        raise failure
    return failure is None


def _tell_user(study: optuna.Study, number: int, folder: Path) -> None:
    """Prints how a trial ended, and removes the checkpoint of one that was stopped early."""
    trial = study.trials[number]
    if trial.state == TrialState.COMPLETE:
        text = f"{trial.value:.3f}, the best so far {study.best_value:.3f}"
    elif trial.state == TrialState.PRUNED:
        text = f"stopped early at {trial.intermediate_values[trial.last_step]:.3f}"
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    else:
        text = f"failed: {trial.user_attrs['error']}"
    print(f"trial {number}: {text}", flush=True)


# ---------------------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class Result:
    """The best trial beside the default one."""

    best: int  # number of the trial
    default: int
    beats: bool
    difference: float  # of the scores, best less default
    interval: tuple[float, float] | None  # 95 %, of the difference; None where no fresh scenes are at hand
    scores: tuple[float, float]  # best, default
    sentence: str


def difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the difference of two scores on the same scenes: the bootstrap draws scenes, for both alike."""
    scenes = len(next(iter(first.values())))
    rows = np.random.default_rng(0).integers(scenes, size=(draws, scenes))
    low, high = np.nanpercentile(mean_score(first, rows) - mean_score(second, rows), (2.5, 97.5))
    return float(low), float(high)


def mean_score(shares: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Mean over the names of the means over some scenes, rows (..., n) of indices, to (...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no scene of a draw may ask for a name
        return np.nanmean([np.nanmean(values[rows], axis=-1) for values in shares.values()], axis=0)


def fresh_shares(subject: Subject, folder: Path, scenes: int) -> dict[str, np.ndarray] | None:
    """What a trial gets right on fresh scenes, kept in its folder for later calls."""
    path = folder / f"fresh-{scenes}.json"
    if not path.exists():
        shares = subject.fresh(folder, scenes)
        if shares is None:
            return None
        write_whole(path, json.dumps({name: values.tolist() for name, values in shares.items()}))
    return {name: np.array(values, dtype=float) for name, values in json.loads(path.read_text()).items()}


def judge(study: optuna.Study, subject: Subject, config: TuneConfig) -> Result | None:
    """Compares the best trial with the default one; None as long as that one is not finished."""
    default = default_of(study)
    if default is None or default.state != TrialState.COMPLETE:
        return None
    best, count = study.best_trial, len(finished(study))
    if best.value <= default.value:
        return Result(default.number, default.number, False, 0.0, None, (default.value, default.value),
                      f"None of {count} finished trials beats the default configuration ({default.value:.3f}): "
                      "best.json is the default.")
    folders = [folder_of(config.study, trial.number) for trial in (best, default)]
    shares = [fresh_shares(subject, folder, config.scenes) for folder in folders]
    if None in shares:
        scores, interval = (best.value, default.value), None
        where, beats = "on what the search itself was judged on", True
    else:
        scores = tuple(float(mean_score(part, np.arange(config.scenes))) for part in shares)
        interval = difference(*shares)
        where, beats = f"on {config.scenes} fresh validation scenes", interval[0] > 0
    gain = scores[0] - scores[1]
    certainty = "no interval" if interval is None else f"95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}"
    figures = f"{scores[0]:.3f} against {scores[1]:.3f} {where}, a difference of {gain:+.3f} ({certainty})"
    sentence = (f"Trial {best.number} beats the default configuration: {figures}." if beats else
                f"The best of {count} finished trials, {best.number}, does not beat the default configuration beyond "
                f"chance: {figures}. best.json is the default.")
    return Result(best.number, default.number, beats, gain, interval, scores, sentence)


def conclude(study: optuna.Study, subject: Subject, config: TuneConfig) -> Result | None:
    """Writes the table, the figures, the result and the best configuration, and says how the search went."""
    with hold(config.study / "result.lock", wait=True):  # the last of several calls has the last word
        write_table(study, config.study / "trials.csv")
        draw(study, config.study)
        counts = [f"{sum(trial.state == state for trial in study.trials)} {word}" for state, word in (
            (TrialState.COMPLETE, "finished"), (TrialState.PRUNED, "stopped early"), (TrialState.FAIL, "failed"),
            (TrialState.RUNNING, "to go on with"))]  # fmt: skip
        print(f"{config.study}: {', '.join(counts)}")
        result = judge(study, subject, config)
        if result is None:
            print("The default configuration is not finished yet, so there is nothing to compare with: call again.")
            return None
        parameters = study.trials[result.best if result.beats else result.default].params
        best = subject.whole(parameters, config.study / "best")
        write_whole(config.study / "best.json", json.dumps(asdict(best), indent=1, default=str) + "\n")
        write_whole(config.study / "result.json", json.dumps(asdict(result), indent=1) + "\n")
        print(result.sentence)
        return result


def write_table(study: optuna.Study, path: Path) -> None:
    """All trials as CSV."""
    names = sorted({name for trial in study.trials for name in trial.params})
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", "score", "seconds", *names])
        for trial in study.trials:
            seconds = trial.user_attrs.get("seconds")
            table.writerow([trial.number, trial.state.name.lower(), trial.value, seconds and round(seconds, 1),
                            *(trial.params.get(name) for name in names)])


def draw(study: optuna.Study, folder: Path) -> None:
    """history.png, and importance.png where a few trials with different scores are finished."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances

    trials = finished(study)
    figures = {"history": lambda: plot_optimization_history(study)} if trials else {}
    if len(trials) >= 4 and len({trial.value for trial in trials}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        figures["importance"] = lambda: plot_param_importances(study, evaluator)
    for name, plot in figures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            axes = plot()
        axes.set_title(f"{axes.get_title()}: {len(trials)} finished trials")
        axes.figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        pyplot.close(axes.figure)


# ---------------------------------------------------------------------------------------------------- many processes


def command(config: TuneConfig, **changes) -> list[str]:
    """The command line of a configuration."""
    words = [sys.executable, str(Path(__file__).resolve())]
    for name, value in asdict(replace(config, **changes)).items():
        if value is not None and value != {}:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def run_workers(config: TuneConfig, end: float) -> None:
    """Runs the search in processes of this machine, which share its cores and GPUs, and waits for them.

    A process that is killed costs nothing: another one goes on with its trial. Raises RuntimeError where all fail.
    """
    import torch

    threads = max(1, torch.get_num_threads() // config.workers)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    logs, processes = config.study / "workers", []
    logs.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        for index in range(config.workers):
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
            log = stack.enter_context(open(logs / f"{index}.log", "w"))
            process = subprocess.Popen(command(config, worker=(os.getpid(), end)), env=environment, stderr=log)
            stack.callback(process.terminate)  # where this process is interrupted
            processes.append(process)
        codes = [process.wait() for process in processes]
    if all(codes):
        raise RuntimeError(f"all workers failed, the first one with:\n{(logs / '0.log').read_text()[-2000:]}")
    for index, code in enumerate(codes):
        if code:
            print(f"worker {index} ended with status {code}: see {logs / f'{index}.log'}")


def submit(config: TuneConfig) -> None:
    """Sends the search to Slurm as jobs that each join it for the minutes given, and waits for their end."""
    from submitit import AutoExecutor
    from submitit.helpers import CommandFunction

    options = {name: int(value) if value.isdigit() else value for name, value in config.slurm.items()}
    executor = AutoExecutor(folder=config.study / "jobs", cluster=options.pop("cluster", "slurm"))
    # A trial that runs at the end of the minutes may go on until its next validation, and the comparison follows.
    minutes = {"timeout_min": math.ceil(config.minutes * 1.2) + 10}
    executor.update_parameters(**{"name": "avssl-tune", **minutes, **options})
    with executor.batch():
        jobs = [executor.submit(CommandFunction(command(config, workers=1, slurm={}))) for _ in range(config.workers)]
    print(f"jobs {', '.join(job.job_id for job in jobs)}; what they print: {config.study / 'jobs'}", flush=True)
    for job in jobs:
        job.wait()
    failed = [job for job in jobs if job.exception() is not None]
    if len(failed) == len(jobs):
        raise RuntimeError(f"all jobs failed, the first one with:\n{failed[0].exception()}")
    result = config.study / "result.json"
    print(json.loads(result.read_text())["sentence"] if result.exists() else "No result yet: send the search again.")


def out_of_torchrun(config: TuneConfig) -> TuneConfig | None:
    """Under torchrun the first rank of a node starts as many workers as the node has ranks; the others get None.

    Each trial trains in one process, so torchrun's variables, by which train.py would join all ranks, are removed.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return config
    if os.environ["LOCAL_RANK"] != "0":
        return None
    workers = int(os.environ["LOCAL_WORLD_SIZE"])
    for name in list(os.environ):
        if name.startswith(("TORCHELASTIC_", "LOCAL_", "GROUP_", "ROLE_", "MASTER_")) or name in ("RANK", "WORLD_SIZE"):
            del os.environ[name]
    return replace(config, workers=workers)


# --------------------------------------------------------------------------------------------------------- command line


def check(config: TuneConfig) -> None:
    """Raises ValueError or FileNotFoundError, with the remedy, where a configuration cannot be run."""
    if not 0 < config.minutes < math.inf:
        raise ValueError(f"the minutes must be more than 0, got {config.minutes}")
    for name in ("workers", "scenes", "steps"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(config, name)}")
    if config.subject == "adapt" and config.recording is None:
        raise ValueError("--subject adapt needs --recording, the folder to adapt to")
    if config.subject == "train" and config.recording is not None:
        raise ValueError("--recording is for --subject adapt; train.py learns from the data of --base")
    if config.recording is not None and not config.recording.exists():
        raise FileNotFoundError(f"no recording {config.recording}: give --recording one that `avssl record` made")


def tune(config: TuneConfig, subject: Subject | None = None) -> Result | None:
    """Searches for the minutes given and returns the result; None from workers, jobs, and where there is none yet."""
    began = time.time()
    check(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if config.slurm:
        return submit(config)
    subject = subject or SUBJECTS[config.subject](config)
    study = open_study(config, subject)
    if config.worker is not None:
        parent, end = config.worker
        return work(study, subject, config.study, Limit(end, parent))
    end = began + 60 * config.minutes - study.user_attrs["judging"]
    if config.workers > 1:
        run_workers(config, end)
    else:
        work(study, subject, config.study, Limit(end))
    return conclude(study, subject, config)


def main() -> None:
    """The command line."""
    import tyro

    config = out_of_torchrun(tyro.cli(TuneConfig, description=__doc__))
    if config is None:
        return
    try:
        tune(config)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"tune.py: {error}") from error


if __name__ == "__main__":
    main()
