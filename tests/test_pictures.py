"""Image files of all kinds are read as people see them, and edited at a size that suits the model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.image.sizing import edit_size
from cds_nerf.pictures import SETTINGS_KEY, read_image, write_png


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True})])
def test_lossless_files_give_their_pixels(tmp_path: Path, suffix: str, options: dict) -> None:
    picture().save(tmp_path / f"a.{suffix}", **options)
    assert read_image(tmp_path / f"a.{suffix}").tobytes() == picture().tobytes()


def test_a_jpeg_is_turned_upright_as_its_exif_data_say(tmp_path: Path) -> None:
    upright = Image.new("RGB", (32, 16), "red")
    upright.paste("blue", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of how it is seen
    upright.rotate(90, expand=True).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (32, 16)
    assert image.getpixel((4, 8))[2] > 200
    assert image.getpixel((28, 8))[0] > 200


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    picture(mode).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (30, 20))


def test_sixteen_bit_grey_keeps_its_tones(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_composited_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.save(tmp_path / "a.png")
    image.convert("P").save(tmp_path / "p.png", transparency=0)
    assert [read_image(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    assert read_image(tmp_path / "p.png").mode == "RGB"


def test_the_first_picture_of_an_animation_is_taken(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", (30, 20))], lossless=True)
    assert read_image(tmp_path / "a.webp").tobytes() == picture().tobytes()


def truncated_jpeg() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    Image.effect_noise((200, 200), 90).save(buffer, "JPEG")
    return buffer.getvalue()[:3000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"This is no picture.", "is not a PNG, JPEG or WebP image"),
        ("empty.png", b"", "is not a PNG, JPEG or WebP image"),
        ("header.png", b"\x89PNG\r\n\x1a\n", "is not a PNG, JPEG or WebP image|cannot be read"),
        ("cut.jpg", truncated_jpeg(), "cannot be read: image file is truncated"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} ({message})"):
        read_image(tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no image .*a\.png"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path)


def test_written_pngs_hold_their_settings(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "a.png", picture(), {"target_prompt": "ein Wölfchen", "seed": 3})
    with Image.open(tmp_path / "new" / "a.png") as file:
        assert isinstance(file, PngImagePlugin.PngImageFile)
        assert file.text[SETTINGS_KEY] == '{"target_prompt": "ein Wölfchen", "seed": 3}'
    assert read_image(tmp_path / "new" / "a.png").tobytes() == picture().tobytes()


def test_a_file_that_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as file:
        file.write_text("half")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (680, 512)), ((480, 640), (512, 680)), ((512, 512), (512, 512)), ((3000, 1000), (1536, 512))],
)
def test_the_shorter_side_takes_the_resolution_and_the_longer_is_rounded(size: tuple, expected: tuple) -> None:
    assert edit_size(*size, resolution=512, multiple=8) == expected


def test_a_square_is_square() -> None:
    assert edit_size(640, 480, resolution=512, multiple=8, square=True) == (512, 512)


@pytest.mark.parametrize(
    ("size", "resolution", "message"),
    [
        ((1, 1), 512, "1x1 pixels; each side must have at least 8"),
        ((20000, 10), 512, "20000x10 pixels; one side may be at most 8 times"),
        ((64, 64), 500, "resolution is 500.*nearest is 496 or 504"),
        ((64, 64), 0, "resolution is 0.*nearest is 8"),
        ((64, 64), -8, "resolution is -8.*nearest is 8"),
    ],
)
def test_sizes_that_cannot_be_edited_are_named(size: tuple, resolution: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        edit_size(*size, resolution=resolution, multiple=8)
