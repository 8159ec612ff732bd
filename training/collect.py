"""Fetches the videos of a list, only the spans it names: the first stage from ids on the web to a trained model.

    python training/collect.py --list vggsound.csv --output corpus                 # the same again: goes on
    python training/collect.py --list folder/with/videos --output corpus           # indexed in place, not copied

A list is one of: VGGSound (`id,start,"label",split`; spans of 10 s), AudioSet segments (`YTID, start, end, "mids"`,
comments with `#`), a CSV with a header that has `id` or `url` and may have `start`, `end`, `label` ("|"-separated) and
`split`.

Writes into the output folder: videos/, complete files only; journal.jsonl, a line for every attempt; and collected.csv,
what of this list is there: id, file, start and end in the file (s; an empty end: to its end), label, split, source (the
video), source_start (of the file in the source, s), recording (what the video is a part of: the segments that
`avssl record` leaves in one folder are divided as one). `training/prepare.py` makes clips of it.

Of a page (YouTube and all else that yt-dlp knows) only the span is fetched, through ffmpeg. A plain address of a file
is fetched whole, once for all its spans, and prepare.py cuts it: only so is it known to be all there, and `rate` kept
to.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
from tqdm import tqdm

from avssl_ros.recorder import NAME as SEGMENT

VGGSOUND_SECONDS = 10.0
COLUMNS = ("id", "file", "start", "end", "label", "split", "source", "source_start", "recording")
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation", "test": "test", "eval": "test", "": ""}  # fmt: skip
MEDIA = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv"}
# A copied cut begins at the key frame before it; only these containers can say that playing starts later.
EDIT_LISTS = {"mp4", "m4v", "mov", "3gp"}
# The smallest side that prepare.py needs is 256; a file with sound in it saves the second request.
FORMAT = "b[height<=?360][ext=mp4]/bv[height<=?360][ext=mp4]+ba[ext=m4a]/b[height<=?360]/bv[height<=?360]+ba/b/bv+ba"
LONGEST_WAIT = 600.0  # seconds, whatever a server asks for
OUTSIDE = "span outside the video"
SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

LIVE, NO_FORMAT = "live", "no format with picture and sound"
# Not there for the rest of a run, but perhaps for a later one: a broadcast ends, and a newer yt-dlp finds the formats.
LATER = {LIVE, NO_FORMAT}

# What yt-dlp says, the reason that is recorded, and whether another attempt may succeed. The first match counts.
REASONS = (
    (r"not a bot|too many requests|rate.?limit", "rate limited", True),
    (r"got error|bytes read", "network", True),  # before words that may be of an address
    (r"live event will begin|premieres? in", LIVE, False),
    (r"private", "private", False),
    (r"members.only|premium|purchase|login required|sign in", "not public", False),
    (r"in your country|geo.?restrict", "blocked in this country", False),
    (r"removed|terminated|no longer available|copyright|deleted", "removed", False),
    (r"video (is )?unavailable|(video|content) is not available", "unavailable", False),
    (r"no video formats found|requested format is not available", NO_FORMAT, False),
    (r"unsupported url|no video|is not a valid url", "no video at this address", False),
    (r"timed? ?out|connection|network|resolve|unreachable|reset|ssl", "network", True),
    (r"ffmpeg exited", "ffmpeg could not read it", True),
)  # fmt: skip


@dataclass(frozen=True)
class CollectConfig:
    """What to fetch, where to, and how politely."""

    list: Path  # list file, or a folder of videos
    output: Path
    format: Literal["auto", "vggsound", "audioset", "csv"] = "auto"
    workers: int = 4  # videos fetched at once
    pause: float = 1.0  # seconds from the start of one request to that of the next, of all workers together
    rate: float = 4e6  # bytes a second, of all workers together, for files that are fetched whole
    attempts: int = 3  # for what may be there later: network trouble, HTTP 429 and 5xx
    back_off: float = 20.0  # seconds that all workers wait after HTTP 429 and 5xx; doubles with every attempt
    timeout: float = 30.0  # seconds without a byte
    url: str = "https://www.youtube.com/watch?v={id}"  # address of an id


class Failure(Exception):
    """A span that was not fetched: why, and whether another attempt in this run may succeed."""

    def __init__(self, reason: str, retry: bool, detail: str = "", busy: bool = False, wait: float = 0.0):
        super().__init__(reason)
        self.reason, self.retry, self.detail = reason, retry, detail
        self.busy, self.wait = busy, wait  # the server wants fewer requests; the seconds that it named


@dataclass(frozen=True)
class Span:
    """A line of a list; start and end in seconds of the video, None: its own."""

    id: str
    url: str
    start: float | None = None
    end: float | None = None
    label: str = ""
    split: str = ""
    problem: str = ""  # why it cannot be fetched at all
    source: str = ""  # the video, where lines with other ids may be of it

    @property
    def key(self) -> str:
        """Name of the file that holds the span alone; the whole video's is the id."""
        if self.problem:
            return f"{self.id} ({self.problem})"
        if self.start is None and self.end is None:
            return self.id
        return f"{self.id}@{round(1000 * (self.start or 0))}-{'' if self.end is None else round(1000 * self.end)}"


# --------------------------------------------------------------------------------------------------------------- files


class Journal:
    """Append-only file of JSON objects, one a line, for one process at a time.

    A line that a kill has torn is left out when the file is read. `entries` is what was in it at the start.

    Raises:
        OSError: another process has it open.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock, self._file = threading.Lock(), open(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OSError(f"another process works in {path.parent}: wait for its end or use another folder") from None
        except OSError:
            pass  # a network file system without locks
        self._file.seek(0)
        self.entries = [entry for entry in map(self._parse, self._file) if entry is not None]
        self._file.write(b"\n" if self._torn(path) else b"")
        self._file.flush()

    @staticmethod
    def _parse(line: bytes) -> dict | None:
        try:
            entry = json.loads(line)
        except ValueError:
            return None
        return entry if isinstance(entry, dict) else None

    @staticmethod
    def _torn(path: Path) -> bool:
        data = path.read_bytes()[-1:]
        return bool(data) and data != b"\n"

    def append(self, entry: dict) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def write_table(path: Path, columns: Iterable[str], rows: Iterable[dict]) -> None:
    """A CSV file with a header, whole or not at all; names of files that are no UTF-8 keep their bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def ffmpeg_program() -> str:
    """The system's ffmpeg, else the one that the package imageio-ffmpeg brings."""
    program = shutil.which("ffmpeg")
    if program is None:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    return program


# --------------------------------------------------------------------------------------------------------------- lists


def detect_format(path: Path) -> str:
    """"vggsound", "audioset" or "csv", by the first line that is not empty."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    row = next(csv.reader([first], skipinitialspace=True), [])
    if first.startswith("#"):
        return "audioset"
    if {"id", "url"} & {name.strip().lower() for name in row}:
        return "csv"
    if len(row) == 4 and _number(row[1]) is not None:
        return "audioset" if _number(row[2]) is not None else "vggsound"
    raise ValueError(
        f"{path} begins with {first.strip()[:80]!r}; wanted is a VGGSound list (id,start,label,split), AudioSet "
        "segments (YTID, start, end, labels) or a CSV whose header has a column id or url"
    )


def read_list(path: Path, format: str = "auto", url: str = CollectConfig.url) -> list[Span]:
    """The spans of a list. Lines that cannot be fetched have a `problem`.

    Raises:
        ValueError: it is in none of the formats.
    """
    format = detect_format(path) if format == "auto" else format
    with open(path, newline="", encoding="utf-8-sig") as file:
        if format == "csv":
            return list(_plain_rows(path, csv.DictReader(file, skipinitialspace=True), url))
        rows = csv.reader((line for line in file if not line.startswith("#")), skipinitialspace=True)
        return [_listed_row(row, format, url) for row in rows if row]


def _listed_row(row: list[str], format: str, url: str) -> Span:
    row = [cell.strip() for cell in row]
    if len(row) < 4:
        return Span(row[0], "", problem="bad line")
    if format == "vggsound":
        start = _number(row[1])
        end = "" if start is None else str(start + VGGSOUND_SECONDS)
        return _span(row[0], url, row[1] or "?", end, row[2].replace("|", "/"), row[3])
    return _span(row[0], url, row[1] or "?", row[2] or "?", row[3].replace(",", "|"), "")


def _plain_rows(path: Path, reader: csv.DictReader, url: str) -> Iterator[Span]:
    names = {name: name.strip().lower() for name in reader.fieldnames or () if name}
    if not {"id", "url"} & set(names.values()):
        raise ValueError(f"{path} has the columns {[*names.values()]}; wanted is at least one of id and url")
    for row in reader:
        cells = {names[name]: (value or "").strip() for name, value in row.items() if name in names}
        address = cells.get("url", "")
        source = hashlib.sha256(address.encode()).hexdigest()[:16] if address else ""
        name = cells.get("id") or source
        if address and urlsplit(address).scheme not in ("http", "https"):
            yield Span(name, address, problem="bad address")
        else:
            columns = (cells.get(column, "") for column in ("start", "end", "label", "split"))
            yield replace(_span(name, address.replace("{", "%7B") or url, *columns), source=source)


def _span(name: str, url: str, start: str, end: str, label: str, split: str) -> Span:
    """Checked: an id becomes a file name, so it may hold nothing else than letters, digits, `_` and `-`."""
    times = [None if text == "" else _number(text) for text in (start, end)]
    bad_times = any(text and _number(text) is None for text in (start, end))
    if not SAFE_ID.fullmatch(name):
        return Span(name, "", problem="bad id")
    if bad_times or (times[0] or 0) < 0 or (times[1] is not None and times[1] <= (times[0] or 0)):
        return Span(name, "", problem="bad span")
    if split.lower() not in SPLITS:
        return Span(name, "", problem="bad split")
    return Span(name, url.replace("{id}", name), *times, label, SPLITS[split.lower()])


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def index_folder(folder: Path) -> list[dict]:
    """Rows of collected.csv for the videos in a folder and those below it."""
    rows, place = [], folder.resolve().name
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA and path.is_file()):
        inside = path.relative_to(folder).as_posix()
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:80].strip("-") or "video"
        name += f"-{_short_hash(inside)}"
        where = f"{place}/{inside}".rpartition("/")[0]
        recording = f"recording-{_short_hash(where)}" if SEGMENT.fullmatch(path.name) else ""
        rows.append({"id": name, "file": path.resolve(), "start": 0, "source": name, "source_start": 0,
                     "recording": recording})
    return rows


def _short_hash(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]  # a name may be no UTF-8


# --------------------------------------------------------------------------------------------------------------- fetch


class Pacer:
    """The pause between requests that all workers share, and the wait after a server has asked for one."""

    def __init__(self, pause: float, stop: threading.Event):
        self._pause, self._stop, self._next, self._lock = pause, stop, 0.0, threading.Lock()

    def wait(self) -> None:
        """Returns when the next request may start.

        Raises:
            Failure: the run is being stopped.
        """
        while not self._stop.is_set():
            with self._lock:
                now = time.monotonic()
                delay = self._next - now
                if delay <= 0:
                    self._next = now + self._pause * random.uniform(0.5, 1.5)
                    return
            self._stop.wait(delay)
        raise Failure("stopped", True)

    def back_off(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _Silent:
    """Takes what yt-dlp says; errors come as exceptions as well."""

    def debug(self, message: str) -> None:
        pass

    info = warning = error = debug


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those behind it; yt-dlp keeps them in attributes of its own."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        yield error
        hidden = (getattr(error, "exc_info", None) or (None, None))[1]
        error = hidden or getattr(error, "cause", None) or error.__cause__


def explain(error: BaseException) -> Failure:
    """The reason behind an exception of yt-dlp.

    Raises:
        OSError: the disk is full; then no other attempt makes sense.
    """
    from yt_dlp.networking.exceptions import TransportError

    chain = list(_causes(error))
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).removeprefix("ERROR: ").strip()
    if "No space left" in text or any(getattr(part, "errno", None) == errno.ENOSPC for part in chain):
        raise OSError(errno.ENOSPC, "the disk is full: free some space and start again, it goes on where it was")
    for part in chain:
        status = getattr(part, "status", None)
        if isinstance(status, int) and status >= 400:
            named = _number(part.response.headers.get("Retry-After") or "") or 0.0
            busy = status == 429 or status >= 500
            # Sites also answer 403 when they slow a client down.
            return Failure(f"HTTP {status}", busy or status in (403, 408, 425), text, busy, min(named, LONGEST_WAIT))
    if any(isinstance(part, (TransportError, ConnectionError, TimeoutError)) for part in chain):
        return Failure("network", True, text)
    # "[extractor] name of the video: what is wrong": a video may be named "private concert".
    said = re.sub(r"^\[(?!download\])[^\]]*\] .*?: |https?://\S+", "", text)
    for pattern, reason, retry in REASONS:
        if re.search(pattern, said, re.IGNORECASE):
            return Failure(reason, retry, text, busy=reason == "rate limited")
    return Failure("other", True, text)


def fetch(span: Span, folder: Path, config: CollectConfig, stop: threading.Event) -> tuple[Path, bool]:
    """Downloads one span into `folder`; a second call goes on where the first was cut off.

    Returns:
        The file, and whether it holds the span alone.

    Raises:
        Failure: with the reason.
    """
    import yt_dlp
    from yt_dlp.postprocessor.ffmpeg import FFmpegPostProcessor

    program = ffmpeg_program()
    # The option alone reaches the merger, not the downloader of spans; yt-dlp's own command line sets both, per thread.
    FFmpegPostProcessor._ffmpeg_location.set(program)

    def watch(_) -> None:
        if stop.is_set():
            raise yt_dlp.utils.DownloadCancelled("stopped")

    options = {
        "quiet": True, "noprogress": True, "logger": _Silent(), "cachedir": False, "color": "never",
        "outtmpl": {"default": str(folder).replace("%", "%%") + f"/{span.key}.%(ext)s"},
        "format": FORMAT, "format_sort": ["res:360", "+size", "+br"], "ffmpeg_location": program,
        "noplaylist": True, "playlist_items": "1", "progress_hooks": [watch],
        "ratelimit": config.rate / config.workers, "sleep_interval_requests": config.pause,
        "socket_timeout": config.timeout, "retries": 0, "extractor_retries": 0, "fragment_retries": 2,
        "external_downloader_args": {"ffmpeg_i": ["-rw_timeout", str(int(1e6 * config.timeout))]},
    }  # fmt: skip
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            info = downloader.extract_info(span.url, download=False)
            info = next(iter(info["entries"]), None) if info and "entries" in info else info
            if info is None:
                raise Failure("no video at this address", False)
            if info.get("live_status") in ("is_live", "is_upcoming"):
                raise Failure(LIVE, False)
            cut = span.key != span.id and not info.get("direct")
            if cut:
                section = {"start_time": span.start or 0.0, "end_time": math.inf if span.end is None else span.end}
                downloader.params["download_ranges"] = lambda *_: [section]
                downloader.params["force_keyframes_at_cuts"] = info.get("ext") not in EDIT_LISTS
            info = downloader.process_ie_result(info, download=True)
            path = Path(info["requested_downloads"][0]["filepath"])
    except Failure:
        raise
    except Exception as error:  # whatever is wrong with one site must not end the run of all others
        raise explain(error) from error
    _check(path, span, cut, info.get("duration"))
    return path, cut


def _check(path: Path, span: Span, cut: bool, video_seconds: float | None) -> None:
    """That a player opens the file and, where the video's length is known, that the span is all there."""
    start = span.start or 0.0
    if video_seconds and start >= video_seconds:
        raise Failure(OUTSIDE, False, f"it has {video_seconds:.1f} s")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Failure("no picture", False)
            next(container.demux(video=0))
            seconds = (container.duration or 0) / av.time_base
    except (av.FFmpegError, OSError, StopIteration) as error:
        path.unlink(missing_ok=True)
        raise Failure("damaged answer", True, str(error)) from error
    wanted = min(span.end or math.inf, video_seconds) - start if cut and video_seconds else 0.0
    if seconds < wanted - 1.0:
        path.unlink(missing_ok=True)
        raise Failure("damaged answer", True, f"got {seconds:.1f} s of {wanted:.1f} s")


class _Run:
    """What the workers of one run share."""

    def __init__(self, config: CollectConfig, journal: Journal, partial: Path):
        self.config, self.journal, self.partial = config, journal, partial
        self.stop = threading.Event()
        self.pacer = Pacer(config.pause, self.stop)
        self.videos = config.output / "videos"
        self.videos.mkdir(exist_ok=True)
        self.files = {path.stem: path for path in self.videos.iterdir()}
        self.hopeless = {entry["key"]: entry["reason"] for entry in journal.entries
                         if entry.get("status") == "failed" and not entry["retry"] and entry["reason"] not in LATER}

    def file_of(self, span: Span) -> tuple[Path, bool] | None:
        """The file that holds a span, and whether it holds nothing else."""
        if span.problem:
            return None
        for name in (span.key, span.id):
            if name in self.files:
                return self.files[name], name != span.id
        return None

    def source(self, spans: list[Span]) -> list[str]:
        """What became of the spans of one video; one after the other, since the first may bring the whole file."""
        return [self._span(span) for span in spans]

    def _span(self, span: Span) -> str:
        if self.file_of(span):
            return "already there"
        for name in (span.key, span.id):
            if name in self.hopeless:
                return f"failed before: {self.hopeless[name]}"
        for attempt in range(1, self.config.attempts + 1):
            try:
                if span.problem:
                    raise Failure(span.problem, False)
                self.pacer.wait()
                path, cut = fetch(span, self.partial, self.config, self.stop)
                name = span.key if cut else span.id
                self.files[name] = self.videos / f"{name}{path.suffix}"
                os.replace(path, self.files[name])
            except Failure as failure:
                if self.stop.is_set():
                    return "stopped"
                self._record(span, attempt, failure)
                if not failure.retry or attempt == self.config.attempts:
                    return f"failed: {failure.reason}"
                if failure.busy:
                    self.pacer.back_off(failure.wait or self.config.back_off * 2 ** (attempt - 1))
            else:
                self._record(span, attempt, None)
                return "fetched"
        raise ValueError(f"attempts is {self.config.attempts}, wanted is at least 1")

    def _record(self, span: Span, attempt: int, failure: Failure | None) -> None:
        key, reason, retry, detail = span.key, "", False, ""
        if failure is not None:
            reason, retry, detail = failure.reason, failure.retry, failure.detail[:300]
            if not retry:
                # A video that is gone is gone for all its spans.
                key = span.key if span.problem or reason == OUTSIDE else span.id
                self.hopeless[key] = reason
        status, now = "failed" if failure else "ok", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.journal.append({"key": key, "id": span.id, "status": status, "reason": reason, "retry": retry,
                             "detail": detail, "attempt": attempt, "time": now})  # fmt: skip

    def row(self, span: Span) -> dict | None:
        """The line of collected.csv, or None where the span is not there."""
        found = self.file_of(span)
        if found is None:
            return None
        path, cut = found
        begin = (span.start or 0.0) if cut else 0.0
        times = {"start": round((span.start or 0.0) - begin, 3), "source_start": round(begin, 3),
                 "end": "" if span.end is None else round(span.end - begin, 3)}  # fmt: skip
        file = path.relative_to(self.config.output).as_posix()
        return {"id": span.id, "file": file, "label": span.label, "split": span.split,
                "source": span.source or span.id, **times}  # fmt: skip


def run_parallel(workers: int, tasks: list[Callable[[], list[str]]], stop: threading.Event, unit: str) -> Counter:
    """Runs tasks in threads under a progress bar and counts the words that they return.

    Ctrl-C and an exception of a task set `stop`, leave out what has not begun, and are raised when the rest has ended.
    """
    counts: Counter = Counter()
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(tasks), unit=unit) as bar:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                counts.update(future.result())
                bar.update()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return counts


def collect(config: CollectConfig) -> dict[str, int]:
    """Fetches what is not there yet and writes collected.csv.

    Returns:
        Number of spans: "listed", "duplicates in the list", "already there", "fetched", and by reason "failed: ..." and
        "failed before: ...", which is not tried again, or for reasons in LATER by the next run.

    Raises:
        FileNotFoundError: there is no such list. ValueError: it is in none of the formats. OSError: the disk is full or
        another process works in the output folder.
    """
    if not config.list.exists():
        raise FileNotFoundError(f"no list {config.list}: name a list file or a folder of videos")
    if config.workers < 1 or config.attempts < 1 or config.rate <= 0:
        raise ValueError(f"workers and attempts are at least 1 and rate is above 0, got {config}")
    if config.list.is_dir():
        rows = index_folder(config.list)
        write_table(config.output / "collected.csv", COLUMNS, rows)
        return {"listed": len(rows), "already there": len(rows)}
    listed = read_list(config.list, config.format, config.url)
    sources: dict[str, dict[str, Span]] = {}
    for span in listed:
        sources.setdefault(span.id, {}).setdefault(span.key, span)
    spans = [span for group in sources.values() for span in group.values()]
    with Journal(config.output / "journal.jsonl") as journal:
        for left in config.output.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        # A new folder each time: an ffmpeg that outlives a killed run may still write into the old one.
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=config.output))
        run = _Run(config, journal, partial)
        try:
            tasks = [functools.partial(run.source, [*group.values()]) for group in sources.values()]
            counts = run_parallel(config.workers, tasks, run.stop, "video")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            write_table(config.output / "collected.csv", COLUMNS, [row for row in map(run.row, spans) if row])
    return {"listed": len(listed), "duplicates in the list": len(listed) - len(spans), **dict(sorted(counts.items()))}


if __name__ == "__main__":
    import tyro

    result = collect(tyro.cli(CollectConfig))
    print("\n".join(f"{number:8d} {what}" for what, number in result.items()))
