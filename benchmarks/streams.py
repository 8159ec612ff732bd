"""When does it start and stop? The stream on generated timelines that training never saw, beside its own single frames.

    python benchmarks/streams.py [--scenes 60] [--json FILE]      (make bench-streams)

A timeline (training/scenes.py) is a still 360 degree picture with four objects and 17 seconds of sound: one object, the
next after silence, a third right after it, two at once, something that is not in view. All are composites of items of
the test split. Every `step` seconds the stream gets the picture and the sound up to then, as a node would. Columns:

heard          of the soundings in view, those that a published source within 20 degrees answered for 0.5 s or longer
onset, offset  median delay of those, seconds: from the sound's start to the first such source, from its end to the last
covered        share of the time in which something in view sounds that a source is there for
false          sources a minute, counted once each, that for 0.3 s or longer were within 20 degrees of nothing that
               sounds or fell silent less than 1 s ago; `not in view`: those of them while something out of view sounds
named          of the right sources, the name is right too

`frames alone` publishes what each moment says by itself, without identity, hysteresis and minimum durations.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from avssl_ros import Localizer, Source, features
from avssl_ros.geometry import angle_between
from avssl_ros.localizer import RECENT_SECONDS, CloserLook
from avssl_ros.tracking import Tracker, TrackingConfig
from training.clip_collection import concept_called
from training.evaluate import WITHIN, StillSight, write_report
from training.scenes import TIMELINE_SECONDS, Timeline, open_scenes

LINGERS = 1.0  # seconds after its end in which a source is late and not false
ANSWERED = 0.5  # seconds of a source that answer a sounding
FALSE = 0.3  # seconds of a source that make it a false one


@dataclass(frozen=True)
class StreamsConfig:
    """What to measure, on how much."""

    data: Path = Path("../shared/data")  # folder with photos/, sounds/ and panoramas/
    models: Path | None = None  # model folder; None: the shipped one
    split: str = "test"
    scenes: int = 60
    step: float = 0.1  # seconds between two moments
    onset_confidence: float = TrackingConfig.onset_confidence
    min_on_seconds: float = TrackingConfig.min_on_seconds
    seed: int = 3
    json: Path | None = None  # also write the figures here


Published = list[tuple[float, list[Source]]]  # time and what was published then


def play(localizer: Localizer, timeline: Timeline, config: StreamsConfig) -> dict[str, Published]:
    """What the stream, and each moment alone, say of a timeline; the localizer's encoders are StillSight."""
    localizer.encoders.look_again()
    tracking = TrackingConfig(onset_confidence=config.onset_confidence, min_on_seconds=config.min_on_seconds)
    # As in LocalizerStream; so each moment is localized once for both rows.
    tracker, closer = Tracker(tracking), CloserLook()
    told: dict[str, Published] = {"frames alone": [], "stream": []}
    window = int(localizer.window_seconds * features.SAMPLE_RATE)
    for time in np.arange(config.step, TIMELINE_SECONDS, config.step):
        end = int(time * features.SAMPLE_RATE)
        sound = timeline.sound[max(0, end - window):end]
        if len(sound) < features.SAMPLE_RATE // 4:
            continue
        moment = localizer._localize(timeline.image, sound, features.SAMPLE_RATE, "equirectangular",
                                     tracking.offset_confidence, RECENT_SECONDS, closer=closer)  # fmt: skip
        if not moment.active:
            closer.forget()
        surely = [source for source in moment.sources if source.confidence >= tracking.onset_confidence]
        told["frames alone"].append((time, surely))
        told["stream"].append((time, list(tracker.update(moment.sources, time)[0])))
    return told


def judge(timeline: Timeline, told: Published, step: float) -> dict:
    """Counts of one timeline, see the top of this file."""
    in_view = [sounding for sounding in timeline.soundings if sounding.placed is not None]
    answers = [[time for time, sources in told if s.start <= time <= s.end + LINGERS
                and any(_at(timeline, s.placed, source) for source in sources)] for s in in_view]  # fmt: skip
    result = {"soundings": len(in_view), "heard": 0, "onset": [], "offset": [], "named": [], "covered": 0, "sounded": 0}
    for sounding, times in zip(in_view, answers):
        within = [time for time in times if time <= sounding.end]
        result["covered"] += len(within)
        result["sounded"] += sum(sounding.start <= time <= sounding.end for time, _ in told)
        if len(within) * step >= ANSWERED:
            result["heard"] += 1
            result["onset"].append(within[0] - sounding.start)
            result["offset"].append(times[-1] - sounding.end)
            result["named"] += [concept_called(source.label) == sounding.concept
                                for time, sources in told if sounding.start <= time <= sounding.end
                                for source in sources if _at(timeline, sounding.placed, source)]
    return result | _false(timeline, told, step)


def _at(timeline: Timeline, placed: int, source: Source) -> bool:
    thing = timeline.objects[placed]
    return float(angle_between(source.azimuth, source.elevation, thing.azimuth, thing.elevation)) <= WITHIN


def _false(timeline: Timeline, told: Published, step: float) -> dict:
    """False sources: neighbours in time and direction are one."""
    seen: list[list] = []  # [first, last, times, source]
    for time, sources in told:
        for source in sources:
            if any(s.placed is not None and s.start <= time <= s.end + LINGERS and _at(timeline, s.placed, source)
                   for s in timeline.soundings):
                continue
            same = [f for f in seen if time - f[1] < 0.5 and angle_between(
                source.azimuth, source.elevation, f[3].azimuth, f[3].elevation) <= WITHIN]
            if same:
                same[0][1], same[0][2], same[0][3] = time, same[0][2] + 1, source
            else:
                seen.append([time, time, 1, source])
    wrong = [f for f in seen if f[2] * step >= FALSE - 1e-6]
    out_of_view = [s for s in timeline.soundings if s.placed is None]
    unseen = sum(any(s.start <= f[0] <= s.end + LINGERS for s in out_of_view) for f in wrong)
    return {"false": len(wrong), "false_unseen": unseen}


def summary(results: list[dict]) -> dict:
    """The columns of the table."""
    total = {key: sum(r[key] for r in results) for key in ("soundings", "heard", "covered", "sounded", "false",
                                                           "false_unseen")}
    onset, offset, named = ([value for r in results for value in r[key]] for key in ("onset", "offset", "named"))
    minutes = len(results) * TIMELINE_SECONDS / 60
    return {"scenes": len(results), "heard": total["heard"] / total["soundings"],
            "onset_seconds": float(np.median(onset)) if onset else None,
            "offset_seconds": float(np.median(offset)) if offset else None,
            "covered": total["covered"] / total["sounded"], "false_a_minute": total["false"] / minutes,
            "false_unseen_a_minute": total["false_unseen"] / minutes, "named": float(np.mean(named)) if named else None}


def print_rows(rows: dict) -> None:
    print(f"\n{'':<14}{'heard':>7}{'onset s':>9}{'offset s':>10}{'covered':>9}{'false/min':>11}{'not in view':>13}"
          f"{'named':>7}")
    for name, r in rows.items():
        onset, offset, named = (float("nan") if r[key] is None else r[key]
                                for key in ("onset_seconds", "offset_seconds", "named"))
        print(f"{name:<14}{r['heard']:>7.0%}{onset:>9.2f}{offset:>10.2f}{r['covered']:>9.0%}"
              f"{r['false_a_minute']:>11.2f}{r['false_unseen_a_minute']:>13.2f}{named:>7.0%}")


def main(config: StreamsConfig) -> dict:
    """Prints the table, writes the JSON file if one is wanted, and returns the figures."""
    generator = open_scenes(config.data, config.split, config.seed, least_sounds=2 if config.split == "test" else 1)
    localizer = Localizer(config.models)
    localizer.encoders = StillSight(localizer.encoders)
    results: dict[str, list[dict]] = {"frames alone": [], "stream": []}
    for index in tqdm(range(config.scenes), unit="timeline", mininterval=5.0):
        timeline = generator.timeline(index)
        for name, told in play(localizer, timeline, config).items():
            results[name].append(judge(timeline, told, config.step))
    generator.collection.close()
    rows = {name: summary(found) for name, found in results.items()}
    print(f"{config.scenes} generated timelines of {TIMELINE_SECONDS:g} s, a moment every {config.step:g} s")
    print_rows(rows)
    report = {"seed": config.seed, "split": config.split, "step": config.step, "rows": rows}
    write_report(report, config.json)
    return report


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(StreamsConfig, description=__doc__))
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
