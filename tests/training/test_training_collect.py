"""Collecting is polite, resumes, says why a video is not there, and writes nowhere else. The server is on loopback."""

import csv
import functools
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import av
import media
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("yt_dlp")

from training.collect import CollectConfig, Failure, Journal, Pacer, collect, detect_format, explain, read_list  # noqa: E402
from training.prepare import PrepareConfig, prepare, read_collected  # noqa: E402

pytestmark = pytest.mark.train
ROOT = Path(__file__).resolve().parents[2]


class Handler(http.server.BaseHTTPRequestHandler):
    """Files with byte ranges; `server.faults` are what goes wrong first: a status, "cut" (half the body) or "stall"."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        server.requests[name] += 1
        server.ranges.append((name, self.headers.get("Range")))
        faults = server.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        file = server.folder / name
        if isinstance(fault, int) or not file.is_file():
            return self.answer_error(fault or 404)
        data, size = file.read_bytes(), file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        begin, end = (int(asked[1]), int(asked[2] or size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", "text/html" if file.suffix == ".html" else "video/mp4")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end + 1 - begin))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.end_headers()
        body = data[begin : end + 1]
        try:
            self.wfile.write(body[: len(body) // 2] if fault else body)
        except ConnectionError:
            pass  # who only wanted the header has gone
        if fault == "stall":
            server.released.wait(30)
        self.close_connection = True

    def answer_error(self, status):
        self.send_response(status)
        if status == 503:
            self.send_header("Retry-After", "0.2")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six seconds with a key frame every second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return media.write_mp4(path, media.noise_images(60, 64, 48), 10, media.tone(6, 44100), index_first=True)


@pytest.fixture
def server(tmp_path, clip, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.requests, server.ranges, server.faults = tmp_path / "www", Counter(), [], {}
    server.released = threading.Event()
    server.folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (server.folder / name).write_bytes(clip.read_bytes())
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def config(tmp_path, server):
    """Pauses of a test; ids are files of the server, which answers within this process and may have to wait for it."""
    return functools.partial(CollectConfig, list=tmp_path / "list.csv", output=tmp_path / "out", workers=2, pause=0.01,
                             back_off=0.05, timeout=10.0, url=server.address + "/{id}.mp4")  # fmt: skip


def write_list(config, text):
    path = config().list
    path.write_text(text)
    return path


def table(config):
    with open(config().output / "collected.csv", newline="") as file:
        return list(csv.DictReader(file))


def journal(config):
    return [json.loads(line) for line in (config().output / "journal.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------------------------------- lists


def test_vggsound_lists_are_read_with_ten_second_spans(tmp_path):
    path = tmp_path / "vggsound.csv"
    path.write_text('---g-f_I2yQ,1,"people marching, far",test\n--0PQM4-hqg,30,waterfall burbling,train\n')
    first, second = read_list(path)
    assert (first.id, first.start, first.end, first.label, first.split) == (
        "---g-f_I2yQ", 1, 11, "people marching, far", "test")  # fmt: skip
    assert first.url == "https://www.youtube.com/watch?v=---g-f_I2yQ" and second.split == "train"


def test_audioset_segments_are_read_with_their_labels(tmp_path):
    path = tmp_path / "segments.csv"
    path.write_text('# Segments csv\n# YTID, start_seconds, end_seconds, positive_labels\n'
                    '--4gqARaEJE, 0.000, 8.500, "/m/068hy,/m/07q6cd_"\n')  # fmt: skip
    (span,) = read_list(path)
    assert (span.id, span.start, span.end, span.label, span.split) == ("--4gqARaEJE", 0, 8.5, "/m/068hy|/m/07q6cd_", "")


def test_plain_lists_need_an_id_or_an_address_and_nothing_else(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("url,label,start,end,split\nhttp://127.0.0.1/a.mp4,Dog|Bark,,,val\nhttp://127.0.0.1/b.mp4,,2,,\n")
    first, second = read_list(path)
    assert first.url.endswith("/a.mp4") and (first.start, first.end, first.split) == (None, None, "validation")
    assert (second.start, second.end) == (2, None) and len({first.id, second.id}) == 2
    path.write_text("ID\nabc\n")
    assert read_list(path)[0].key == "abc"


def test_a_list_in_no_known_format_is_refused_with_what_is_wanted(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("name;start\nabc;1\n")
    with pytest.raises(ValueError, match="column id or url"):
        detect_format(path)
    with pytest.raises(FileNotFoundError, match="no-list"):
        collect(CollectConfig(list=tmp_path / "no-list", output=tmp_path))


HOSTILE = ["../../evil,,", "a/b,,", "..,,", "/etc/passwd,,", "-x{id}%(title)s,,", "a,5,2", "a,nan,", "a,-1,2"]


@pytest.mark.parametrize("line", HOSTILE)
def test_hostile_ids_and_spans_are_recorded_and_touch_nothing(config, server, tmp_path, line):
    write_list(config, f"id,start,end\n{line}\n")
    before = set(tmp_path.rglob("*"))
    counts = collect(config())
    new = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before}
    assert new == {"out", "out/videos", "out/journal.jsonl", "out/collected.csv"}
    assert not server.requests and table(config) == [] and sum("failed: bad" in key for key in counts) == 1
    assert journal(config)[0]["reason"] in ("bad id", "bad span")


# --------------------------------------------------------------------------------------------------------------- fetch


def test_a_second_run_fetches_nothing(config, server):
    write_list(config, "id,start,end,label,split\na,1,2,Dog,test\na,3,5,Cat,\nb,,,,\na,1,2,Dog,test\n")
    assert collect(config()) == {"listed": 4, "duplicates in the list": 1, "fetched": 2, "already there": 1}
    rows, asked = table(config), dict(server.requests)
    assert [row["file"] for row in rows] == ["videos/a.mp4", "videos/a.mp4", "videos/b.mp4"]
    assert [(row["start"], row["end"]) for row in rows] == [("1.0", "2.0"), ("3.0", "5.0"), ("0.0", "")]
    assert (rows[0]["label"], rows[0]["split"], rows[0]["source"]) == ("Dog", "test", "a")
    assert all((config().output / row["file"]).read_bytes() == (server.folder / "a.mp4").read_bytes() for row in rows)
    assert collect(config())["already there"] == 3
    assert dict(server.requests) == asked and table(config) == rows


def test_a_missing_video_is_recorded_and_not_asked_for_again(config, server):
    write_list(config, f"url,start,end\n{server.address}/none.mp4,0,1\n{server.address}/none.mp4,2,3\n")
    counts = collect(config())
    assert counts["failed: HTTP 404"] == counts["failed before: HTTP 404"] == 1
    (entry,) = journal(config)
    assert (entry["status"], entry["reason"], entry["retry"], entry["attempt"]) == ("failed", "HTTP 404", False, 1)
    asked = dict(server.requests)
    assert collect(config())["failed before: HTTP 404"] == 2 and dict(server.requests) == asked


def test_a_server_that_recovers_is_asked_again(config, server):
    server.faults["a.mp4"] = [503, 429]
    write_list(config, f"id,url\nmine,{server.address}/a.mp4\n")
    assert collect(config(workers=1))["fetched"] == 1
    assert [entry["reason"] for entry in journal(config)] == ["HTTP 503", "HTTP 429", ""]
    assert table(config)[0]["file"] == "videos/mine.mp4"


def test_a_video_is_one_source_whatever_names_a_list_gives_it(config, server):
    write_list(config, f"id,url\nmine,{server.address}/a.mp4\nyours,{server.address}/a.mp4\na,\n")
    collect(config())
    mine, yours, other = table(config)
    assert (mine["id"], yours["id"]) == ("mine", "yours") and mine["source"] == yours["source"]
    assert other["source"] == "a"  # an address of its own makes a source, that of all ids does not
    write_list(config, f"url\n{server.address}/a.mp4\n")
    collect(config())
    assert table(config)[0]["source"] == table(config)[0]["id"] == mine["source"]


def test_a_server_that_does_not_recover_is_left_after_some_attempts_and_tried_by_the_next_run(config, server):
    server.faults["a.mp4"] = [503] * 40
    write_list(config, "id\na\n")
    assert collect(config(attempts=2))["failed: HTTP 503"] == 1 and len(journal(config)) == 2
    server.faults.clear()
    assert collect(config(attempts=2))["fetched"] == 1


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_broken_answer_is_completed_by_the_next_attempt(config, server, fault):
    server.faults["a.mp4"] = [None, fault]  # the first request asks what it is, the second is the download
    write_list(config, "id\na\n")
    assert collect(config(timeout=3.0 if fault == "stall" else 10.0))["fetched"] == 1
    assert [entry["reason"] for entry in journal(config)] == ["network", ""]
    assert (config().output / "videos/a.mp4").read_bytes() == (server.folder / "a.mp4").read_bytes()
    assert any(asked and not asked.startswith("bytes=0-") for _, asked in server.ranges)  # it went on, not anew


def test_what_is_no_video_is_not_kept(config, server):
    (server.folder / "text.mp4").write_bytes(b"not a video" * 100)
    (server.folder / "page.html").write_text("<html><body>nothing here</body></html>")
    write_list(config, f"id,url\ntext,{server.address}/text.mp4\npage,{server.address}/page.html\n")
    counts = collect(config(attempts=1))
    assert counts["failed: damaged answer"] == counts["failed: no video at this address"] == 1
    assert table(config) == [] and list((config().output / "videos").iterdir()) == []


def test_of_a_page_only_the_span_is_fetched_and_prepared_exactly(config, server):
    """Greys of the video tell the time; the span begins between two key frames."""
    images = [np.full((48, 64, 3), 20 + 3 * number, np.uint8) for number in range(60)]
    media.write_mp4(server.folder / "a.mp4", images, 10, media.tone(6, 44100), index_first=True)
    (server.folder / "page.html").write_text('<html><video src="a.mp4" type="video/mp4"></video></html>')
    write_list(config, f"id,url,start,end\npage,{server.address}/page.html,2.5,4\n")
    assert collect(config())["fetched"] == 1
    (row,) = table(config)
    assert row["file"] == "videos/page@2500-4000.mp4"
    assert (row["start"], row["end"], row["source_start"]) == ("0.0", "1.5", "2.5")
    with av.open(str(config().output / row["file"])) as container:
        assert container.duration / av.time_base < 3
    assert collect(config())["already there"] == 1
    prepared = config().output / "prepared"
    assert prepare(PrepareConfig(config().output / "collected.csv", prepared, least_seconds=1, motion=0))["kept"] == 1
    with av.open(str(prepared / "clips/page-0002500.mp4")) as container:
        greys = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert (greys[0], greys[-1]) == pytest.approx((20 + 3 * 25, 20 + 3 * 39), abs=4) and 21 <= len(greys) <= 23


def test_a_killed_run_is_completed_by_the_next_without_duplicates(config, server, clip):
    names = [f"v{number}" for number in range(8)]
    for name in names:
        (server.folder / f"{name}.mp4").write_bytes(clip.read_bytes())
    server.faults["v5.mp4"] = [None, "stall"]
    path = write_list(config, "id\n" + "\n".join(names) + "\n")
    command = [sys.executable, "training/collect.py", "--list", path, "--output", config().output, "--workers", "1",
               "--pause", "0.05", "--url", config().url]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while server.requests["v5.mp4"] < 2:  # in the middle of a download
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    server.released.set()
    with open(config().output / "journal.jsonl", "a") as file:
        file.write('{"key": "v6", "stat')  # a line that the kill has torn
    asked = dict(server.requests)
    counts = collect(config())
    assert (counts["already there"], counts["fetched"]) == (5, 3)
    assert all(server.requests[f"{name}.mp4"] == asked[f"{name}.mp4"] for name in names[:5])
    assert sorted(path.name for path in config().output.iterdir()) == ["collected.csv", "journal.jsonl", "videos"]
    assert sorted(row["id"] for row in table(config)) == names
    assert all(path.read_bytes() == clip.read_bytes() for path in (config().output / "videos").iterdir())
    with Journal(config().output / "journal.jsonl") as whole:
        assert sorted(entry["id"] for entry in whole.entries if entry["status"] == "ok") == names


def test_two_runs_in_one_folder_are_refused(config, server):
    write_list(config, "id\na\n")
    with Journal(config().output / "journal.jsonl"), pytest.raises(OSError, match="another process works"):
        collect(config())


# ----------------------------------------------------------------------------------------------------------- politeness


def test_all_workers_share_the_pause_and_the_back_off():
    pacer, stamps = Pacer(0.05, threading.Event()), []

    def work():
        for _ in range(3):
            pacer.wait()
            stamps.append(time.monotonic())

    begin = time.monotonic()
    pacer.back_off(0.2)
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert min(stamps) - begin >= 0.19 and max(stamps) - min(stamps) >= 11 * 0.025


@pytest.mark.parametrize(
    ("message", "reason", "retry"),
    [
        ("ERROR: [youtube] abc: Private video. Sign in if you've been granted access", "private", False),
        ("ERROR: [youtube] abc: Video unavailable. This video has been removed by the uploader", "removed", False),
        ("ERROR: [youtube] abc: Video unavailable", "unavailable", False),
        ("ERROR: [youtube] abc: not made this video available in your country", "blocked in this country", False),
        ("ERROR: [youtube] abc: Sign in to confirm your age", "not public", False),
        ("ERROR: [youtube] abc: Sign in to confirm you're not a bot", "rate limited", True),
        ("ERROR: Unable to download webpage: The read operation timed out", "network", True),
        ("ERROR: \r[download] Got error: connection to /private.mp4 broken", "network", True),
        ("ERROR: [generic] private_concert: Unable to extract the title", "other", True),
        ("ERROR: [generic] my removed film: Unsupported URL: http://127.0.0.1/private.html",
         "no video at this address", False),
        ("ERROR: [youtube] abc: Requested format is not available", "no format with picture and sound", False),
        ("ERROR: [youtube] abc: No video formats found!", "no format with picture and sound", False),
        ("ERROR: [youtube] abc: This live event will begin in 5 hours.", "live", False),
        ("ERROR: something new", "other", True),
    ],
)  # fmt: skip
def test_what_a_site_says_decides_about_another_attempt(message, reason, retry):
    failure = explain(Exception(message))
    assert isinstance(failure, Failure) and (failure.reason, failure.retry) == (reason, retry)


@pytest.mark.parametrize("name", ["private_concert", "removed", "deleted", "premium"])
def test_a_server_that_is_down_is_no_word_in_the_name_of_a_video(config, name):
    write_list(config, f"url\nhttp://127.0.0.1:9/media/{name}.mp4\n")
    assert collect(config(attempts=2))["failed: network"] == 1
    assert [(entry["reason"], entry["retry"]) for entry in journal(config)] == [("network", True)] * 2


@pytest.mark.parametrize("message", ["This live event will begin in 5 hours", "Requested format is not available"])
def test_what_may_come_later_is_tried_once_by_each_run(config, monkeypatch, message):
    write_list(config, "id,start,end\na,0,1\na,2,3\n")
    failure, asked = explain(Exception(f"ERROR: [youtube] a: {message}")), []

    def fail(*_):
        asked.append(1)
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr("training.collect.fetch", fail)
        for number in (1, 2):
            counts = collect(config())
            assert counts[f"failed: {failure.reason}"] == counts[f"failed before: {failure.reason}"] == 1
            assert len(asked) == number
    assert collect(config())["fetched"] == 1


def test_a_full_disk_ends_the_run():
    with pytest.raises(OSError, match="disk is full"):
        explain(Exception("ERROR: unable to write data: [Errno 28] No space left on device"))


# --------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_is_indexed_where_it_is(tmp_path, clip):
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    for name in ("Ein Film (1).mp4", "sub/Ein Film (1).mp4", "notes.txt"):
        (folder / name).write_bytes(clip.read_bytes())
    assert collect(CollectConfig(list=folder, output=tmp_path / "out")) == {"listed": 2, "already there": 2}
    with open(tmp_path / "out/collected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {str(folder / "Ein Film (1).mp4"), str(folder / "sub/Ein Film (1).mp4")}
    assert len({row["id"] for row in rows}) == 2 and all(re.fullmatch(r"[A-Za-z0-9_-]+", row["id"]) for row in rows)
    assert not (tmp_path / "out/videos").exists()


def test_segments_of_one_folder_are_of_one_recording(tmp_path, clip):
    folder = tmp_path / "mine"
    for name in ("20261128T0301{:02}.000Z.mp4", "yard/20261128T0301{:02}.000Z.mp4", "yard/Film{:02}.mp4"):
        for number in range(2):
            path = folder / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(clip.read_bytes())
    collect(CollectConfig(list=folder, output=tmp_path / "out"))
    rows = read_collected(tmp_path / "out/collected.csv")
    assert len({row["source"] for row in rows}) == 6  # each is a video of its own all the same
    of = {row["file"].relative_to(folder).as_posix(): row["recording"] for row in rows}
    assert [name for name, recording in of.items() if not recording] == ["yard/Film00.mp4", "yard/Film01.mp4"]
    recordings = [of[f"{place}20261128T0301{n:02}.000Z.mp4"] for place in ("", "yard/") for n in range(2)]
    assert recordings[0] == recordings[1] != recordings[2] == recordings[3]


def test_a_name_that_is_no_utf8_does_not_end_the_indexing_of_a_folder(tmp_path, clip):
    folder = tmp_path / "mine"
    folder.mkdir()
    names = {os.fsdecode(b"caf\xe9.mp4"), "plain.mp4"}
    for name in names:
        (folder / name).write_bytes(clip.read_bytes())
    assert collect(CollectConfig(list=folder, output=tmp_path / "out"))["listed"] == 2
    rows = read_collected(tmp_path / "out/collected.csv")
    assert {row["file"].name for row in rows} == names and all(row["file"].is_file() for row in rows)
