"""Sound: the ring buffer, files in all conditions, a file played as a microphone, and a real (virtual) microphone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import media
import numpy as np
import pytest

from avssl_ros import audio_input
from avssl_ros.audio_input import (
    AudioBuffer,
    AudioDeviceError,
    FileAudio,
    Microphone,
    SoundFile,
    list_devices,
    read_audio,
)
from avssl_ros.video_input import VideoFile

RECOVERY_SECONDS = 3.0  # from the return of the sound server to the first sound; PulseAudio itself takes 2 of them
NOTICE_SECONDS = 2.0  # until silence of a microphone that has sounded is noticed


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        is_late = time.monotonic() >= end  # before the look, so that there is one after a pause of the machine
        if condition():
            return True
        if is_late:
            return False
        time.sleep(0.05)


def pitch(samples: np.ndarray, rate: int) -> float:
    """Strongest frequency in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def mp3(path: Path, samples: np.ndarray, rate: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp3", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for part in (frame, None):
            container.mux(stream.encode(part))
    return path


class TestAudioBuffer:
    def test_read_gives_the_window_that_ends_at_a_time(self):
        buffer = AudioBuffer(100, seconds=1.0)
        for start in range(0, 350, 7):  # goes round the ring three times
            buffer.write(np.arange(start, start + 7), capture_time=5 + start / 100)
        assert buffer.latest == pytest.approx(5 + 3.49)
        assert buffer.read(8.49, 0.05).tolist() == [345, 346, 347, 348, 349]
        assert buffer.read(8.00, 0.03).tolist() == [298, 299, 300]
        assert buffer.read(8.49, 99.0).tolist() == list(range(250, 350))

    def test_what_is_not_there_is_never_invented(self):
        buffer = AudioBuffer(100, seconds=1.0)
        assert buffer.read(1.0, 1.0).size == 0 and buffer.latest is None
        buffer.write(np.ones(10), capture_time=1.0)
        assert buffer.read(1.0 - 0.02, 1.0).size == 0  # all of it is newer
        assert buffer.read(1.11, 0.05).tolist() == [1, 1, 1]  # its newest 20 ms are not there yet
        assert buffer.read(9.0, 1.0).size == 0  # all of it is older

    @pytest.mark.parametrize("start", [1.5, 0.2], ids=["gap", "clock set back"])
    def test_sounds_that_were_apart_are_not_joined(self, start):
        buffer = AudioBuffer(100, seconds=10.0)
        buffer.write(np.ones(10), capture_time=1.0)
        buffer.write(np.full(10, 2.0), capture_time=start)
        assert buffer.read(start + 0.09, 10.0).tolist() == [2.0] * 10

    def test_jitter_of_the_clock_is_no_gap(self):
        buffer = AudioBuffer(100, seconds=10.0)
        for number, jitter in enumerate((0, 0.03, -0.02, 0.01)):
            buffer.write(np.full(10, number), capture_time=number / 10 + jitter)
        assert buffer.read(buffer.latest, 10.0).size == 40

    def test_more_than_it_holds_keeps_the_newest(self):
        buffer = AudioBuffer(100, seconds=0.5)
        buffer.write(np.arange(120), capture_time=0.0)
        assert buffer.read(1.19, 9.0).tolist() == list(range(70, 120))

    def test_one_thread_writes_while_another_reads(self):
        buffer = AudioBuffer(10000, seconds=0.5)
        stop = threading.Event()

        def write():
            for start in range(0, 400_000, 100):
                buffer.write(np.arange(start, start + 100) % 5000, capture_time=start / 10000)
            stop.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not stop.is_set():
            samples = buffer.read(buffer.latest or 0.0, 0.2)
            assert np.all(np.isin(np.diff(samples), (1, -4999)))  # never a torn window
        writer.join()

    def test_wrong_input_is_refused(self):
        with pytest.raises(ValueError, match="sample_rate"):
            AudioBuffer(0, 1.0)
        with pytest.raises(ValueError, match=r"mono samples.*\(4, 2\)"):
            AudioBuffer(100, 1.0).write(np.zeros((4, 2)), 0.0)
        with pytest.raises(ValueError, match="finite time"):
            AudioBuffer(100, 1.0).write(np.zeros(4), float("nan"))


class TestFiles:
    @pytest.mark.parametrize("rate", [8000, 44100, 96000])
    def test_wav_of_any_rate_keeps_its_rate(self, tmp_path, rate):
        samples, read_rate = read_audio(media.write_wav(tmp_path / "tone.wav", media.tone(1.0, rate), rate))
        assert (read_rate, samples.dtype, len(samples)) == (rate, np.float32, rate)
        assert pitch(samples, rate) == pytest.approx(440, abs=2)
        assert np.abs(samples).max() == pytest.approx(0.5, abs=0.01)

    def test_channels_are_averaged(self, tmp_path):
        stereo = np.stack([np.full(1000, 0.8), np.full(1000, 0.2)], axis=1)
        samples, _ = read_audio(media.write_wav(tmp_path / "stereo.wav", stereo, 16000))
        assert samples == pytest.approx(0.5, abs=0.001)

    def test_the_sound_of_a_video(self, tmp_path):
        path = media.write_mp4(tmp_path / "v.mp4", media.noise_images(10), sound=media.tone(1.0, 44100))
        samples, rate = read_audio(path)
        assert rate == 44100 and len(samples) / rate == pytest.approx(1.0, abs=0.05)
        assert pitch(samples, rate) == pytest.approx(440, abs=3)

    def test_blocks_carry_their_times(self, tmp_path):
        sound = SoundFile(media.write_wav(tmp_path / "tone.wav", media.tone(3.0, 16000), 16000))
        end = 0.0
        for block_time, samples in sound:
            assert block_time == pytest.approx(end)
            end = block_time + len(samples) / sound.sample_rate
        assert end == pytest.approx(3.0) and sound.error is None and sound.duration == pytest.approx(3.0)

    def test_files_without_usable_sound(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_audio(tmp_path / "none.wav")
        with pytest.raises(FileNotFoundError, match="not a file"):
            read_audio(tmp_path)
        (tmp_path / "empty.wav").touch()
        with pytest.raises(ValueError, match="empty"):
            read_audio(tmp_path / "empty.wav")
        (tmp_path / "text.wav").write_text("not a sound\n" * 99)
        with pytest.raises(ValueError, match="no media file"):
            read_audio(tmp_path / "text.wav")
        with pytest.raises(ValueError, match="no sound stream"):
            read_audio(media.write_mp4(tmp_path / "mute.mp4", media.noise_images(2)))
        with pytest.raises(ValueError, match="without a single sample"):
            read_audio(media.write_wav(tmp_path / "none.wav", np.zeros(0), 16000))
        strange = media.write_wav(tmp_path / "strange.wav", media.tone(0.1, 16000), 16000)
        content = bytearray(strange.read_bytes())
        content[20:22] = b"\x77\x77"  # the codec
        strange.write_bytes(content)
        with pytest.raises(ValueError, match="unknown; convert it"):
            read_audio(strange)

    def test_files_that_were_cut_off(self, tmp_path):
        wav = media.write_wav(tmp_path / "a.wav", media.tone(2.0, 16000), 16000)
        with pytest.raises(ValueError, match="cut off"):
            read_audio(media.cut_off(wav))
        mp4 = tmp_path / "a.mp4"
        media.write_mp4(mp4, media.noise_images(20), sound=media.tone(2.0, 44100), index_first=True)
        cut = SoundFile(media.cut_off(mp4))
        heard = sum(len(samples) for _, samples in cut) / cut.sample_rate
        assert 0.5 < heard < 1.5  # what is there is given ...
        assert "cut off" in cut.error  # ... and what is not is said
        with pytest.raises(ValueError, match="cut off"):
            read_audio(cut.path)

    @pytest.mark.parametrize("suffix", ["mp4", "mp3"])
    def test_a_damaged_packet_costs_its_own_sound_only(self, tmp_path, suffix):
        path = media.write_mp4(tmp_path / "a.mp4", media.noise_images(40, 64, 32), sound=media.tone(4.0, 44100))
        if suffix == "mp3":
            path = mp3(tmp_path / "a.mp3", media.tone(4.0, 44100), 44100)
        damaged = SoundFile(media.damaged(path, "audio", 60))
        blocks = list(damaged)
        assert 3.8 < sum(len(samples) for _, samples in blocks) / 44100 < 4.0
        ends = [block_time + len(samples) / 44100 for block_time, samples in blocks]
        gaps = [block_time for end, (block_time, _) in zip(ends, blocks[1:]) if block_time - end > 0.01]
        assert len(gaps) == 1 and 1.3 < gaps[0] < 1.8  # what follows keeps its times
        assert "parts of its sound are missing, the first at 1." in damaged.error
        with pytest.raises(ValueError, match="parts of its sound are missing"):
            read_audio(damaged.path)

    def test_garbage_ends(self, tmp_path, monkeypatch):
        monkeypatch.setattr(audio_input, "MAX_BAD_PACKETS", 20)
        path = media.write_mp4(tmp_path / "a.mp4", media.noise_images(30, 64, 32), sound=media.tone(3.0, 44100))
        content = path.read_bytes()
        start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
        path.write_bytes(content[:start] + b"\xff" * (end - start) + content[end:])
        sound = SoundFile(path)
        assert not list(sound) and "can be read up to 0.0 s" in sound.error
        with pytest.raises(ValueError, match="not one frame"):
            VideoFile(path)

    @pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
    def test_a_clock_that_begins_hours_from_0_is_set_to_0(self, tmp_path, name):
        whole = media.write_mp4(tmp_path / "a.mp4", media.noise_images(20, 64, 32), sound=media.tone(2.0, 44100))
        late = media.moved(whole, tmp_path / name, 7200.0)
        sound, video, reference = SoundFile(late), VideoFile(late), SoundFile(whole)
        sounds, pictures = [time for time, _ in sound], [time for time, _ in video]
        assert sound.error is None and video.error is None and video.duration == pytest.approx(2.0, abs=0.1)
        assert sounds[0] == pytest.approx(0.0, abs=0.001) and len(sounds) >= len(list(reference))
        assert len(pictures) == 20
        # The codec's first block is before the pictures; an mp4's edit list hides it.
        assert pictures[0] - sounds[0] == pytest.approx(1024 / 44100, abs=0.002)

    def test_a_small_start_is_part_of_the_times(self, tmp_path):
        whole = media.write_mp4(tmp_path / "a.mp4", media.noise_images(20, 64, 32), sound=media.tone(2.0, 44100))
        late = media.moved(whole, tmp_path / "late.mp4", 0.5)
        assert next(iter(VideoFile(late)))[0] == pytest.approx(0.5, abs=0.001)
        assert next(iter(SoundFile(late)))[0] == pytest.approx(0.5, abs=0.03)


class TestFileAudio:
    def test_plays_in_step_with_the_clock(self, tmp_path):
        times = []

        def clock() -> float:  # goes on by 1/16 s when it is asked: the ends are exact, however late it is asked
            times.append(1000.0 + len(times) / 16)
            return times[-1]

        ramp = np.linspace(0, 0.9, 8000)
        source = FileAudio(media.write_wav(tmp_path / "ramp.wav", ramp, 8000), clock=clock)
        assert source.status().state == "absent" and source.sample_rate == 8000
        source.start()
        assert wait_until(lambda: source.status().state == "stale", 30)
        assert "to its end" in source.status().detail
        assert source.buffer.latest == pytest.approx(1000.0 + 7999 / 8000, abs=1e-6)
        assert times[-1] == 1001.0 + 1 / 16  # the first one after the last sample, 1 s after the start
        assert source.buffer.read(source.buffer.latest, 5.0) == pytest.approx(ramp, abs=0.001)
        source.stop()

    def test_loops_without_a_gap(self, tmp_path):
        source = FileAudio(media.write_wav(tmp_path / "a.wav", media.tone(0.2, 8000, 400), 8000), loop=True)
        source.start()
        assert wait_until(lambda: source.buffer.read(time.time(), 9.0).size > 8000, 5)
        assert source.status().state == "ok"
        samples = source.buffer.read(source.buffer.latest, 1.0)
        assert pitch(samples, 8000) == pytest.approx(400, abs=1)
        source.stop()

    def test_goes_on_after_a_jump_of_the_clock(self, tmp_path):
        offset = [0.0]
        path = media.write_wav(tmp_path / "a.wav", media.tone(30, 8000), 8000)
        source = FileAudio(path, clock=lambda: time.time() + offset[0])

        def is_in_step():
            return abs((source.buffer.latest or 0.0) - time.time() - offset[0]) < 0.2

        source.start()
        assert wait_until(is_in_step, 3)
        for offset[0] in (1000.0, -1000.0):
            assert wait_until(is_in_step, 3)
        source.stop()


class Pulse:
    """PulseAudio with one virtual microphone: what is played into its sink is what the microphone hears."""

    def start(self):
        modules = ("module-native-protocol-unix", "module-null-sink sink_name=robot rate=16000 channels=1")
        loads = [word for module in modules for word in ("-L", module)]
        # What it says goes to a file: a daemon has closed its standard error when it fails.
        log = f"--log-target=newfile:{self._folder() / 'server.log'}"
        subprocess.run(["pulseaudio", "--daemonize=yes", "--exit-idle-time=-1", "-vv", log, "-n", *loads], check=True)
        subprocess.run(["pactl", "set-default-source", "robot.monitor"], check=True)

    def kill(self, by_force=False):
        if by_force:
            self.signal(signal.SIGKILL)
            self._pid_file().unlink()  # a container may leave a zombie, which would count as a server that runs
        elif subprocess.run(["pulseaudio", "--kill"], check=False).returncode != 0:
            print("the sound server had ended by itself; it said:", self.last_words())

    def signal(self, number):
        os.kill(int(self._pid_file().read_text()), number)

    def last_words(self):
        """The end of what the servers of this test said, in their order."""
        logs = sorted(self._folder().glob("server.log*"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text()[-2000:] for path in logs)

    def _folder(self):
        return Path(os.environ["XDG_RUNTIME_DIR"])

    def _pid_file(self):
        return self._folder() / "pulse" / "pid"

    def play(self, path, in_background=False):
        # A low latency makes the sink deliver in small blocks; by itself it takes 2 s to its first one.
        player = subprocess.Popen(["paplay", "--latency-msec=20", str(path)])
        return player if in_background else player.wait()


@pytest.fixture
def pulse(tmp_path, monkeypatch, microphones_end):
    (tmp_path / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("PULSE_SERVER", raising=False)
    server = Pulse()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def long_tone(tmp_path):
    return media.write_wav(tmp_path / "tone.wav", media.tone(60.0, 16000, 700), 16000)


@pytest.mark.debian
class TestMicrophone:
    def test_hears_what_is_played_with_its_time(self, pulse, tmp_path, long_tone):
        microphone = Microphone()
        microphone.start()
        player = pulse.play(long_tone, in_background=True)
        assert wait_until(lambda: np.abs(microphone.buffer.read(time.time(), 0.5)).sum() > 100, 30)
        # Sooner or later: on a busy machine a process waits for its turn.
        assert wait_until(lambda: microphone.status().state == "ok", 30), microphone.status()
        assert wait_until(lambda: abs(microphone.status().last_time - time.time()) < 0.5, 10), microphone.status()

        def is_the_tone() -> bool:
            samples, rate = microphone.buffer.read(microphone.status().last_time, 0.4), microphone.sample_rate
            return samples.size > 0.39 * rate and pitch(samples, rate) == pytest.approx(700, abs=5)

        assert wait_until(is_the_tone, 30)  # a pause of the machine begins what is kept anew
        assert microphone.status().overflows == 0
        player.kill()
        microphone.stop()
        assert microphone.status().state == "absent"

    @pytest.mark.parametrize("by_force", [False, True], ids=["server ends", "server is killed"])
    def test_comes_back_after_the_device_was_gone(self, pulse, long_tone, by_force):
        microphone = Microphone()
        microphone.start()
        player = pulse.play(long_tone, in_background=True)
        assert wait_until(lambda: microphone.status().state == "ok", 30), microphone.status()
        pulse.kill(by_force)
        player.wait()
        assert wait_until(lambda: "Plug one in" in microphone.status().detail, 30)
        assert microphone.status().state == "absent"
        gone = microphone.status().last_time
        pulse.start()
        player = pulse.play(long_tone, in_background=True)
        assert wait_until(lambda: microphone.status().state == "ok", RECOVERY_SECONDS), microphone.status()
        assert microphone.status().restarts == 1
        returned = microphone.buffer
        assert returned.latest > gone
        assert (
            returned.read(returned.latest, 60.0).size / returned.sample_rate < returned.latest - gone
        )  # nothing joined
        player.kill()
        microphone.stop()

    @pytest.mark.slow
    def test_comes_back_every_time(self, pulse, long_tone):
        microphone = Microphone()
        microphone.start()
        player = pulse.play(long_tone, in_background=True)
        assert wait_until(lambda: microphone.status().state == "ok", 30), microphone.status()
        for number in range(10):
            pulse.kill(by_force=number % 2 == 1)
            player.wait()
            assert wait_until(lambda: microphone.status().state != "ok", NOTICE_SECONDS)
            time.sleep(0.4 * number)  # returns at another moment of the back-off each time
            pulse.start()
            player = pulse.play(long_tone, in_background=True)
            assert wait_until(lambda: microphone.status().state == "ok", RECOVERY_SECONDS), microphone.status()
            assert microphone.status().restarts == number + 1
        player.kill()
        microphone.stop()

    def test_a_sound_server_that_hangs_is_noticed_and_survived(self, pulse, long_tone):
        microphone = Microphone()
        microphone.start()
        player = pulse.play(long_tone, in_background=True)
        assert wait_until(lambda: microphone.status().state == "ok", 30), microphone.status()
        pulse.signal(signal.SIGSTOP)
        assert wait_until(lambda: microphone.status().state == "stale", NOTICE_SECONDS)
        time.sleep(1.0)
        pulse.signal(signal.SIGCONT)
        assert wait_until(lambda: microphone.status().state == "ok", RECOVERY_SECONDS), microphone.status()
        player.kill()
        microphone.stop()

    def test_samples_carry_the_time_at_which_they_were_recorded(self, pulse, long_tone):
        microphone = Microphone(sample_rate=32000)
        microphone.start()
        player = pulse.play(long_tone, in_background=True)
        assert wait_until(lambda: microphone.buffer.read(time.time(), 0.5).size > 15000, 30)
        before = time.time()
        subprocess.run(["pactl", "set-source-mute", "robot.monitor", "1"], check=True)
        after = time.time()
        assert wait_until(lambda: microphone.buffer.latest > after + 0.3, 30)
        latest = microphone.buffer.latest
        samples = microphone.buffer.read(latest, 2.0)
        silent = len(samples) - 1 - np.flatnonzero(np.abs(samples) > 0.001)[-1]
        assert before - 0.1 < latest - silent / 32000 < after + 0.1
        player.kill()
        microphone.stop()

    def test_a_name_that_is_not_there_lists_those_that_are(self, pulse):
        microphone = Microphone("ReSpeaker")
        microphone.start()
        assert wait_until(lambda: "'ReSpeaker'" in microphone.status().detail, 8)  # start() waits for 2 s of them
        status = microphone.status()
        assert status.state == "absent" and "pulse" in status.detail
        microphone.stop()

    def test_an_index_is_remembered_by_name(self, pulse, long_tone):
        by_name = Microphone("pulse")
        by_name.start()
        index = next(device["index"] for device in list_devices() if device["name"] == "pulse")
        by_name.stop()
        microphone = Microphone(index, sample_rate=8000)
        microphone.start()
        player = pulse.play(long_tone, in_background=True)
        assert wait_until(lambda: microphone.status().state == "ok", 8)
        assert microphone.status().detail == "microphone 'pulse' at 8000 Hz" and microphone.sample_rate == 8000
        player.kill()
        microphone.stop()


NO_PORTAUDIO = "import ctypes.util; ctypes.util.find_library = lambda name: None\n"


def run_python(code: str, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


def test_without_the_portaudio_library_the_error_says_what_to_install():
    code = NO_PORTAUDIO + (
        "from avssl_ros.audio_input import Microphone, AudioDeviceError\n"
        "try: Microphone()\n"
        "except AudioDeviceError as error: print(error)"
    )
    assert "apt install libportaudio2" in run_python(code).stdout


def test_without_sounddevice_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(AudioDeviceError, match="pip install sounddevice"):
        Microphone()


@pytest.mark.debian
def test_sound_hardware_is_not_touched_by_the_process_itself():
    code = (
        "import sys; from avssl_ros.audio_input import Microphone, list_devices\n"
        "list_devices(); microphone = Microphone(); microphone.start(); microphone.stop()\n"
        "print('sounddevice' in sys.modules)"
    )
    assert run_python(code).stdout.strip() == "False"


def test_the_command_says_so_too_and_files_can_still_be_read(tmp_path):
    result = run_python(NO_PORTAUDIO + "from avssl_ros.cli import main; raise SystemExit(main(['devices']))")
    assert result.returncode == 2
    assert result.stderr.startswith("avssl: error:") and "libportaudio2" in result.stderr
    wav = media.write_wav(tmp_path / "a.wav", media.tone(0.1, 8000), 8000)
    code = NO_PORTAUDIO + f"from avssl_ros.audio_input import FileAudio; print(FileAudio({str(wav)!r}).sample_rate)"
    assert run_python(code).stdout.strip() == "8000"


@pytest.mark.debian
def test_without_a_microphone_the_source_waits_and_says_what_to_do(tmp_path):
    code = (
        "import time; from avssl_ros.audio_input import Microphone, list_devices\n"
        "print(list_devices())\n"
        "microphone = Microphone(); microphone.start(); end = time.monotonic() + 30\n"
        "while 'Plug one in' not in microphone.status().detail and time.monotonic() < end: time.sleep(0.05)\n"
        "print(microphone.status()); microphone.stop()"
    )
    result = run_python(code, XDG_RUNTIME_DIR=str(tmp_path), HOME=str(tmp_path))
    if result.stdout.startswith("[{"):
        pytest.skip("this machine has a sound card")
    assert "state='absent'" in result.stdout and "no sound input. Plug one in" in result.stdout
