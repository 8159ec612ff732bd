"""Videos and pictures: frames and times, projection from metadata or shape, and files that are broken or hostile."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import media
import numpy as np
import PIL.Image
import pytest

from avssl_ros import video_input
from avssl_ros.video_input import VideoFile, image_projection, is_image, read_image


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    """2 s at 10 frames a second, 320x160, without sound."""
    return media.write_mp4(tmp_path_factory.mktemp("video") / "noise.mp4", media.noise_images(20))


def with_box(source, target, path, box):
    target.write_bytes(media.insert_box(source.read_bytes(), path, box))
    return target


def test_frames_come_in_order_with_their_times(mp4):
    video = VideoFile(mp4)
    frames = list(video)
    assert [round(time, 3) for time, _ in frames] == [round(number / 10, 3) for number in range(20)]
    assert (video.width, video.height, video.fps, video.has_audio) == (320, 160, 10.0, False)
    assert video.duration == pytest.approx(2.0)
    assert video.error is None
    assert frames[0][1].shape == (160, 320, 3) and frames[0][1].dtype == np.uint8


def test_pictures_are_rgb(tmp_path):
    red = np.zeros((64, 128, 3), np.uint8)
    red[..., 0] = 255
    cv2.imwrite(str(tmp_path / "red.png"), red[..., ::-1])
    _, frame = next(iter(VideoFile(media.write_mp4(tmp_path / "red.mp4", [red] * 3))))
    for image in (frame, read_image(tmp_path / "red.png")):
        assert image[32, 64, 0] > 200 and image[32, 64, 2] < 50


def test_a_telephone_held_upright_gives_an_upright_picture(tmp_path):
    stored = np.zeros((96, 192, 3), np.uint8)
    stored[:48, :96] = 255  # upper left
    video = VideoFile(media.write_mp4(tmp_path / "lying.mp4", [stored] * 3, rotation=90))
    _, image = next(iter(video))
    assert (video.width, video.height) == (96, 192)
    assert image[150, 20].mean() > 200 and image[40, 20].mean() < 50  # turned counter-clockwise: now lower left


@pytest.mark.parametrize("pixel, rotation, shape", [((4, 3), 0, (120, 160)), ((8, 9), 0, (160, 142)),
                                                    ((4, 3), 90, (160, 120)), ((900, 1), 0, (160, 160))])  # fmt: skip
def test_what_is_stored_squeezed_is_shown_as_it_was(tmp_path, pixel, rotation, shape):
    """A circle on the screen is stored as an ellipse: its directions would be wrong."""
    images = [np.full((160, 160, 3), 90, np.uint8)] * 3
    video = VideoFile(media.write_mp4(tmp_path / "squeezed.mp4", images, rotation=rotation, pixel=pixel))
    assert (video.height, video.width) == shape
    assert [image.shape[:2] for _, image in video] == [shape] * 3


def test_two_to_one_is_taken_for_360_degrees_and_says_why(mp4, tmp_path):
    assert VideoFile(mp4).projection == "equirectangular"
    assert "320x160" in VideoFile(mp4).projection_reason
    ordinary = media.write_mp4(tmp_path / "ordinary.mp4", media.noise_images(2, 320, 180))
    assert VideoFile(ordinary).projection == "perspective"
    assert VideoFile(ordinary, projection="equirectangular").projection == "equirectangular"
    with pytest.raises(ValueError, match="auto, equirectangular or perspective"):
        VideoFile(mp4, projection="fisheye")


@pytest.mark.parametrize(
    ("path", "box"),
    [([b"moov", b"trak"], media.spherical_v1()), (media.SAMPLE_ENTRY, media.spherical_v2(b"equi"))],
    ids=["V1", "V2"],
)
def test_spherical_metadata_outrank_the_shape(tmp_path, path, box):
    ordinary = media.write_mp4(tmp_path / "ordinary.mp4", media.noise_images(2, 320, 180))
    video = VideoFile(with_box(ordinary, tmp_path / "spherical.mp4", path, box))
    assert video.projection == "equirectangular"
    assert "metadata" in video.projection_reason
    assert len(list(video)) == 2


def test_projections_that_are_not_supported_are_named(mp4, tmp_path):
    cube = with_box(mp4, tmp_path / "cube.mp4", media.SAMPLE_ENTRY, media.spherical_v2(b"cbmp"))
    with pytest.raises(ValueError, match="cubemap.*v360"):
        VideoFile(cube)
    assert VideoFile(cube, projection="perspective").projection == "perspective"
    stereo = with_box(mp4, tmp_path / "stereo.mp4", media.SAMPLE_ENTRY, media.stereo_v2(1))
    with pytest.raises(ValueError, match="top and bottom"):
        VideoFile(stereo)


def test_a_cut_off_video_gives_what_it_can_and_says_so(tmp_path):
    whole = media.write_mp4(tmp_path / "whole.mp4", media.noise_images(20), index_first=True)
    video = VideoFile(media.cut_off(whole))
    frames = list(video)
    assert 5 <= len(frames) <= 15
    assert "cut off" in video.error and "cut_whole.mp4" in video.error


def soft_images(count: int) -> list[np.ndarray]:
    """A soft pattern that moves, which h264 stores as differences."""
    pattern = cv2.resize(media.noise_images(1, 12, 6)[0], (160, 80), interpolation=cv2.INTER_CUBIC)
    return [np.roll(pattern, 3 * number, 1) for number in range(count)]


@pytest.mark.parametrize(("packet", "least"), [(0, 40), (20, 45), (25, 55)], ids=["first", "key picture", "difference"])
def test_a_damaged_packet_costs_a_few_frames_only(tmp_path, packet, least):
    video = VideoFile(media.damaged(media.write_mp4(tmp_path / "soft.mp4", soft_images(60)), "video", packet))
    times = [time for time, _ in video]
    assert least <= len(times) < 60 and times[-1] == pytest.approx(5.9)
    assert all(later > earlier for earlier, later in zip(times, times[1:]))
    assert "damaged_soft.mp4 is damaged: parts of its video are missing, the first at" in video.error


def test_a_video_cut_before_its_index_says_so(mp4):
    with pytest.raises(ValueError, match="cut off before its index"):
        VideoFile(media.cut_off(mp4))


def test_files_that_are_no_video(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        VideoFile(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="empty"):
        VideoFile(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    with pytest.raises(ValueError, match="no media file"):
        VideoFile(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="no picture, only sound"):
        VideoFile(media.write_wav(tmp_path / "sound.wav", media.tone(0.5, 16000), 16000))


def test_a_picture_larger_than_memory_is_refused_before_it_is_decoded(mp4, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((200, 400, 3), np.uint8))
    monkeypatch.setattr(video_input, "MAX_PIXELS", 320 * 160 - 1)
    with pytest.raises(ValueError, match="320x160 pixels, more than"):
        VideoFile(mp4)
    with pytest.raises(ValueError, match="400x200 pixels, more than"):
        read_image(tmp_path / "large.png")


def test_pictures_and_videos_are_told_apart(mp4, tmp_path):
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp", "a.tiff"):
        cv2.imwrite(str(tmp_path / name), np.zeros((64, 128, 3), np.uint8))
        assert is_image(tmp_path / name), name
        assert read_image(tmp_path / name).shape == (64, 128, 3)
    assert not is_image(mp4)


def test_a_grey_picture_becomes_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((10, 20), 77, np.uint8))
    assert read_image(tmp_path / "grey.png").tolist() == np.full((10, 20, 3), 77).tolist()


def test_projection_of_a_picture(tmp_path):
    image = np.zeros((90, 160, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), image)
    assert image_projection(tmp_path / "a.jpg", image)[0] == "perspective"
    xmp = b"http://ns.adobe.com/xap/1.0/\0<GPano:ProjectionType>equirectangular</GPano:ProjectionType>"
    data = (tmp_path / "a.jpg").read_bytes()
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    (tmp_path / "b.jpg").write_bytes(data[:2] + segment + data[2:])
    assert image_projection(tmp_path / "b.jpg", read_image(tmp_path / "b.jpg"))[0] == "equirectangular"


@pytest.mark.parametrize("form", ['GPano:%s="%d" ', "<GPano:%s>%d</GPano:%s>"], ids=["attributes", "elements"])
@pytest.mark.parametrize(("width", "height"), [(512, 512), (1000, 250), (1000, 500)])
def test_a_part_of_a_panorama_is_not_taken_for_a_whole_sphere(tmp_path, form, width, height):
    sizes = {"CroppedAreaImageWidthPixels": width, "CroppedAreaImageHeightPixels": height,
             "FullPanoWidthPixels": 1000, "FullPanoHeightPixels": 500}  # fmt: skip
    xmp = 'GPano:ProjectionType="equirectangular" '
    xmp += "".join(form % ((name, size, name)[: form.count("%")]) for name, size in sizes.items())
    path, image = tmp_path / "a.jpg", np.zeros((100, 200, 3), np.uint8)
    path.write_bytes(xmp.encode())
    assert image_projection(path, image, "perspective")[0] == "perspective"
    if (width, height) == (1000, 500):
        assert image_projection(path, image)[0] == "equirectangular"
        return
    with pytest.raises(ValueError, match="part of the sphere.*(512 of 1000|250 of 500).*--projection"):
        image_projection(path, image)


@pytest.mark.shared
def test_a_real_360_recording_of_uneven_shape_is_taken_for_360_degrees():
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"

    video = VideoFile(shared / "video360" / "theta_walk_640x322_40s.mp4")
    assert (video.width, video.height, video.projection, video.has_audio) == (640, 322, "equirectangular", True)


# ------------------------------------------------------------------------------------------- JPEG, by either decoder


def jpegs() -> dict[str, bytes]:
    """Kinds of JPEG, of a picture with soft colours."""
    picture = PIL.Image.fromarray(media.noise_images(1, 32, 16)[0]).resize((640, 320), PIL.Image.BICUBIC)
    kinds = {"plain": (picture, {}), "odd size": (picture.crop((0, 0, 639, 319)), {}),
             "progressive": (picture, {"progressive": True}), "full colour": (picture, {"subsampling": 0}),
             "grey": (picture.convert("L"), {}), "cmyk": (picture.convert("CMYK"), {})}  # fmt: skip
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    kinds["turned"] = picture, {"exif": turned}
    made = {}
    for name, (image, options) in kinds.items():
        image.save(file := io.BytesIO(), "JPEG", quality=90, **options)
        made[name] = file.getvalue()
    return made


@pytest.mark.parametrize("kind", jpegs())
@pytest.mark.parametrize("enough", [None, 600, 300, 80])
def test_a_jpeg_is_the_same_with_and_without_simplejpeg(kind, enough, monkeypatch):
    data = jpegs()[kind]
    fast = video_input.decode_picture(data, enough)
    monkeypatch.setattr(video_input, "simplejpeg", None)
    slow = video_input.decode_picture(data, enough)
    assert fast.shape == slow.shape and fast.dtype == np.uint8
    difference = np.abs(fast.astype(int) - slow)
    assert difference.mean() < (3 if enough else 0.5)  # with `enough`, colour is repeated
    assert kind != "turned" or fast.shape[0] > fast.shape[1]
    assert enough is None or fast.shape[1] >= enough or kind == "turned"


@pytest.mark.parametrize("decoder", [video_input.simplejpeg, None])
def test_a_jpeg_that_is_cut_off_is_refused_by_both(decoder, monkeypatch):
    monkeypatch.setattr(video_input, "simplejpeg", decoder)
    with pytest.raises(ValueError, match="damaged"):
        video_input.decode_picture(jpegs()["plain"][:-2000])


def test_simplejpeg_decodes_what_cameras_send(monkeypatch):
    monkeypatch.setattr(video_input.cv2, "imdecode", None)
    assert video_input.decode_picture(jpegs()["plain"]).shape == (320, 640, 3)
