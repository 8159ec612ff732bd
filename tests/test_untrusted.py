"""Files and messages that come from outside cannot fill memory, run code or make the program open other files."""

from __future__ import annotations

import ast
import json
import mmap
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import av
import cv2
import media
import memory
import numpy as np
import pytest
from test_audio_input import wait_until

from avssl_ros import encoders, recording
from avssl_ros.audio_input import MAX_FILE_SAMPLES, FileAudio, SoundFile, read_audio
from avssl_ros.json_input import parse_object
from avssl_ros.paths import shipped_models
from avssl_ros.scene import Localization, Source, read_scene
from avssl_ros.video_input import VideoFile, decode_picture, read_image

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "code"}


@pytest.mark.parametrize("file", sorted([*ROOT.glob("avssl_ros/**/*.py"), *ROOT.glob("launch/*.py"),
                                         *ROOT.glob("examples/*.py")]), ids=lambda file: file.name)  # fmt: skip
def test_no_code_evaluates_text_unpickles_or_calls_a_shell(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            assert not (isinstance(node.func, ast.Name) and name in FORBIDDEN_CALLS), node.lineno
            assert name not in ("system", "popen"), node.lineno
            allowed = {keyword.arg: keyword.value for keyword in node.keywords}
            for flag in ("shell", "allow_pickle"):
                assert flag not in allowed or getattr(allowed[flag], "value", True) is False, node.lineno


# ---- pictures


def grown_by(step) -> int:
    """Bytes by which the memory held at most while `step` ran exceeds that held before."""
    before = memory.forget_peak()
    step()
    return memory.peak() - before


def touch_pages(size: int) -> None:
    """Take memory that malloc cannot have left over from other tests."""
    with mmap.mmap(-1, size) as pages:
        for page in range(0, size, mmap.PAGESIZE):
            pages[page] = 1


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header."""
    frame = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:frame] + struct.pack(">HH", height, width) + jpeg[frame + 4 :]


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (256, 512, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def png_of_zeros(width: int, height: int, rows: int | None = None) -> bytes:
    """Black; with only the first `rows` in it, where they are given."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes((3 * width + 1) * (rows or height)))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_picture_of_100_megapixels_is_refused_before_memory_is_taken(jpeg):
    def decode(data: bytes, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            decode_picture(data)

    for data in (with_size(jpeg, 14142, 7071), with_size(jpeg, 65535, 65535), png_of_zeros(14142, 7071, rows=99)):
        assert grown_by(lambda data=data: decode(data, "too large")) < 20 << 20
    assert grown_by(lambda: touch_pages(64 << 20)) > 60 << 20  # it is measured indeed


def test_a_small_message_cannot_claim_a_large_picture(jpeg):
    webp = cv2.imencode(".webp", np.zeros((4096, 8192, 3), np.uint8))[1].tobytes()
    for data in (webp, with_size(jpeg, 8192, 8190)[: 20_000]):
        with pytest.raises(ValueError, match="in only"):
            decode_picture(data)
    flat = decode_picture(png_of_zeros(3840, 1920))  # a camera in the dark is no attack
    assert flat.shape == (1920, 3840, 3)


@pytest.mark.parametrize("read", [read_image, VideoFile])
def test_a_header_cannot_make_ffmpeg_decode_a_large_picture_to_look_at_it(tmp_path, read):  # found by tests/fuzz
    webp = bytearray(cv2.imencode(".webp", np.zeros((64, 64, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 50])[1])
    start = webp.index(b"\x9d\x01\x2a") + 3
    webp[start : start + 4] = struct.pack("<HH", 14416, 15904)
    path = tmp_path / "large.webp"
    path.write_bytes(webp)

    def step():
        with pytest.raises(ValueError, match="too large|more than"):
            read(path)

    assert grown_by(step) < 100 << 20  # decoded it takes 340 MB


def test_a_png_cannot_claim_more_than_it_has():  # found by tests/fuzz
    png = bytearray(cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1])
    assert decode_picture(bytes(png)).shape == (64, 64, 3)
    assert decode_picture(bytes(png) + b"more").shape == (64, 64, 3)
    length = png.index(b"IDAT") - 4
    png[length : length + 4] = struct.pack(">I", 675 << 20)

    def step():
        with pytest.raises(ValueError, match="cut off"):
            decode_picture(bytes(png))

    assert grown_by(step) < 20 << 20


def test_a_jpeg_with_a_thousand_scans_is_refused(jpeg):
    scan = jpeg.index(b"\xff\xda")
    with pytest.raises(ValueError, match="1000 scans"):
        decode_picture(jpeg[:scan] + jpeg[scan : scan + 14] * 999 + jpeg[scan:])


@pytest.mark.parametrize("text", [
    "#EXTM3U\n#EXTINF:9,\nfile:///etc/hostname\n", "ffconcat version 1.0\nfile '/etc/hostname'\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    '<?xml version="1.0"?><MPD type="static"><Period><BaseURL>http://127.0.0.1:9/</BaseURL></Period></MPD>',
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".sdp", ".wav"])
def test_a_text_file_cannot_make_ffmpeg_open_other_files_or_the_network(tmp_path, text, suffix):
    path = tmp_path / f"list{suffix}"
    path.write_text(text)
    for read in (VideoFile, SoundFile, read_image):
        with pytest.raises(ValueError, match="no media file|cannot be opened|cannot be decoded as a picture"):
            read(path)


def test_names_of_files_are_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    strange = "concat:a.wav|b.wav"
    media.write_wav(Path(strange), media.tone(0.2, 8000), 8000)
    assert len(read_audio(strange)[0]) == 1600
    with pytest.raises(FileNotFoundError):
        read_audio("http://127.0.0.1:9/a.wav")


# ---- sound


def long_wav(path: Path, hours: float, rate: int = 48000, stored: int | None = None) -> Path:
    """A WAV whose header states `hours`; a sparse file holds the silence, or only its first `stored` bytes."""
    media.write_wav(path, np.zeros(10), rate)
    size = min(round(hours * 3600 * rate) * 2, 0xFFFFFE00)
    head = bytearray(path.read_bytes()[:44])
    struct.pack_into("<I", head, 4, 36 + size)
    struct.pack_into("<I", head, 40, size)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(44 + (size if stored is None else stored))
    return path


def test_a_wav_of_10_hours_is_refused_or_streamed(tmp_path):
    path = long_wav(tmp_path / "long.wav", 10)
    assert 10 * 3600 * 48000 > MAX_FILE_SAMPLES
    begin = time.process_time()  # decoding 10 hours is work; waiting for a busy machine is none

    def use():
        with pytest.raises(ValueError, match="more than 35 minutes.*cut it first"):
            read_audio(path)
        source = FileAudio(path, loop=True)
        source.start()
        assert wait_until(lambda: source.buffer.latest is not None, 30)
        assert source.status().state == "ok"
        source.stop()

    assert grown_by(use) < 50 << 20
    assert time.process_time() - begin < 5.0


def test_a_header_that_lies_about_10_hours_is_told(tmp_path):
    lie = long_wav(tmp_path / "lie.wav", 10, stored=32000)
    for read in (read_audio, FileAudio):
        with pytest.raises(ValueError, match="cut off|more than 35 minutes"):
            read(lie)


@pytest.mark.parametrize("rate", [1, 4_000_000_000])
def test_an_absurd_rate_is_refused_before_a_buffer_is_made_for_it(tmp_path, rate):
    path = media.write_wav(tmp_path / "a.wav", media.tone(0.2, 8000), 8000)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 24, rate)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="rate|cannot be opened"):
        FileAudio(path)


def test_a_run_of_a_day_keeps_a_bounded_number_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_LINES", 50)
    scenes = [Localization((), np.zeros((1, 1)), (), False, 0.1 * n) for n in range(1000)]
    with recording.Recording(tmp_path, 320, 160, 10, None) as files:
        for scene in scenes:
            files.add_scene(scene)
        files.add_frame(np.zeros((160, 320, 3), np.uint8), 0.0, scenes[0])
    times = [line["time"] for line in files.lines]
    assert 25 <= len(times) <= 51 and np.ptp(np.diff(times)) < 0.01 and times[-1] > 95  # evenly over the whole run
    assert len(files.sources_path.read_text().splitlines()) == 1000


def test_a_time_that_jumps_by_hours_ends_the_reading_and_is_told(tmp_path):
    path = tmp_path / "jump.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        voice = container.add_stream("flac", rate=8000, layout="mono")
        for number in (0, 1, 2, 400_000):  # tenths of a second
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 64, 3), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
            block = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts = 8000, 800 * number
            container.mux(voice.encode(block))
        for each in (stream, voice):
            container.mux(each.encode())
    video, sound = VideoFile(path), SoundFile(path)
    assert len(list(video)) == 3 and "goes from 0.3 to 40000.0 s" in video.error
    assert max(block_time for block_time, _ in sound) < 1.0 and "damaged" in sound.error


# ---- models and JSON


@pytest.mark.parametrize("missing", ["id", "label", "azimuth_deg", "confidence"])
def test_a_source_without_a_field_is_refused(missing):  # a missing id got through (found by tests/fuzz)
    source = Source(0.5, 0.1, 0.2, 0.9, "dog", 3, np.zeros(1), np.zeros((1, 1)), 4, "active", 1.0)
    line = Localization((source,), source.map, (), True, 1.0).to_dict()
    assert read_scene(json.dumps(line))["sources"][0]["id"] == 4
    del line["sources"][0][missing]
    with pytest.raises(ValueError, match="sources"):
        read_scene(json.dumps(line))



@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(shipped_models(), tmp_path / "models"))


def test_a_manifest_of_a_gigabyte_is_not_read(folder):
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="more than the 8000000"):
        encoders.read_manifest(folder)
    shutil.copy(shipped_models() / "manifest.json", folder)
    with (folder / "visual.onnx").open("r+b") as file:
        file.truncate(1 << 34)
    with pytest.raises(ValueError, match="visual.onnx has 17179869184 bytes, more than"):
        encoders.read_manifest(folder)


@pytest.mark.parametrize("part, name, value", [
    ("visual", "size", 10**9), ("visual", "size", "288"), ("audio", "seconds", 10**6), ("visual", "stride", 0),
    ("decision", "publish", "0.5"), ("decision", "stream", {"bias": 0, "weights": [None]}),
    ("decision", "stream", {"bias": 0, "weights": 15 * [1.0]}),
    ("decision", "same_cosine", 1.0), ("decision", "smallest_share", 0), ("decision", "audio_gate", -0.1),
    ("made_by", "crowd or applause", ["unicorn"]), ("visual", "sha256", None),
])  # fmt: skip
def test_a_manifest_with_absurd_values_names_them(folder, part, name, value):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[part][name] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"manifest.json: .*{name if part != 'made_by' else part}"):
        encoders.read_manifest(folder)


@pytest.mark.parametrize("text, said", [
    ("[" * 100_000, "too deep|no JSON"), ('{"a":' * 100_000, "too deep|no JSON"), ('{"a": NaN}', "finite"),
    ('{"a": 1e999}', "finite"), ('{"a": -Infinity}', "finite"), ("[1]", "must be a JSON object"),
    (b"\xff\xfe{", "JSON"),
    ('{"a": "' + "x" * 2000 + '"}', "more than the 1000"), ('{"a": ' + "9" * 900 + "}", None),
])  # fmt: skip
def test_json_is_bounded_in_size_depth_and_numbers(text, said):
    most = 1000 if said != "too deep|no JSON" else 1_000_000
    if said is None:
        assert isinstance(parse_object(text, "it", most)["a"], int)
        return
    with pytest.raises(ValueError, match=said):
        parse_object(text, "it", most)


def test_a_model_cannot_read_other_files(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is absent: pip install -e '.[train]'")
    from onnx import TensorProto, helper

    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype="<f4").tobytes())
    outside = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="secret.bin")
    given, result = (helper.make_tensor_value_info(name, 1, [4]) for name in ("log_mel", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["log_mel", "w"], ["y"])], "g", [given], [result], [outside])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    code = (  # in a process of its own, whose working folder is that of the file
        "import sys; from pathlib import Path; from avssl_ros import encoders as e\n"
        "try: e._session('audio', Path('m.onnx'), Path('m.onnx').read_bytes(), e._session_options(1),"
        " ['CPUExecutionProvider'])\n"
        "except ValueError as error: print(error)"
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    onnx.load(tmp_path / "m.onnx")  # it is a model, and reads the file where it is loaded by its path
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "not a model that ONNX Runtime can load" in said.stdout, said.stdout + said.stderr
