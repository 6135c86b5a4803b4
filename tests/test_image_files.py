"""What decorates an image file never stops it from being read: its pixels count, and its orientation if possible."""

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cds_nerf.errors import UserError
from cds_nerf.image_files import is_image_name
from cds_nerf.pictures import read_image, write_png

ROWS, COLUMNS = np.mgrid[:24, :40]
PICTURE = Image.fromarray(np.stack([ROWS * 10, COLUMNS * 6, 100 + 0 * ROWS], axis=-1).astype(np.uint8))
BIG = zlib.compress(b"x" * 2_000_000)
"""More text than Pillow takes."""


def written(*suffixes: str) -> list[str]:
    """The endings of those formats that this Pillow writes."""
    Image.init()
    return [suffix for suffix in suffixes if Image.registered_extensions().get(f".{suffix}") in Image.SAVE]


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(*before: bytes, after: bytes = b"") -> bytes:
    """The picture with chunks before and behind its pixels."""
    buffer = BytesIO()
    PICTURE.save(buffer, "PNG")
    content, header = buffer.getvalue(), 8 + 12 + 13
    return content[:header] + b"".join(before) + content[header:-12] + after + content[-12:]


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    """The picture with segments (marker, data) before all others."""
    buffer = BytesIO()
    PICTURE.save(buffer, "JPEG", quality=98, subsampling=0)
    content = buffer.getvalue()
    packed = [struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments]
    return content[:2] + b"".join(packed) + content[2:]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data with entries of (tag, type, count, four bytes)."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + b"\0\0\0\0"


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
NOWHERE = (0x8769, 4, 1, struct.pack("<I", 99999))
FILES: dict[str, Callable[[], bytes]] = {
    "text.png": lambda: png(chunk(b"zTXt", b"Comment\0\0" + BIG)),
    "text-behind.png": lambda: png(after=chunk(b"zTXt", b"Comment\0\0" + BIG)),
    "international-text.png": lambda: png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + BIG)),
    "texts.png": lambda: png(
        *(chunk(b"iTXt", b"%d\0\1\0\0\0" % index + zlib.compress(b"y" * 1_000_000)) for index in range(70))
    ),
    "text-of-nothing.png": lambda: png(chunk(b"zTXt", b""), chunk(b"iTXt", b"a"), chunk(b"tEXt", b"")),
    "checksum.png": lambda: png(chunk(b"tEXt", b"a\0b", checksum=1)),
    "profile.png": lambda: png(chunk(b"iCCP", b"p\0\0" + BIG)),
    "broken-profile.png": lambda: png(chunk(b"iCCP", b"p\0\0no profile")),
    "resolution.png": lambda: png(chunk(b"pHYs", b"\0")),
    "colours.png": lambda: png(chunk(b"cHRM", b"\0\0"), chunk(b"gAMA", b""), chunk(b"sRGB", b"")),
    "exif.png": lambda: png(chunk(b"eXIf", b"no EXIF data")),
    "raw-profile.png": lambda: png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 5\nzzzz\n")),
    "exif.jpg": lambda: jpeg((0xE1, b"Exif\0\0no EXIF data")),
    "exif-that-ends.jpg": lambda: jpeg((0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "exif-of-nothing.jpg": lambda: jpeg((0xE1, b"Exif\0\0")),
    "orientation-in-words.jpg": lambda: jpeg((0xE1, b"Exif\0\0" + exif((0x0112, 2, 4, b"six\0")))),
    "several-pictures.jpg": lambda: jpeg((0xE2, b"MPF\0" + exif((0xB001, 4, 1, struct.pack("<I", 2))))),
    "no-pictures.jpg": lambda: jpeg((0xE2, b"MPF\0II*\0")),
    "jfif.jpg": lambda: jpeg((0xE0, b"JFIF\0")),
    "adobe.jpg": lambda: jpeg((0xEE, b"Adobe")),
    "photoshop.jpg": lambda: jpeg((0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab")),
    "profile.jpg": lambda: jpeg((0xE2, b"ICC_PROFILE\0\1\1no profile")),
    "profiles.jpg": lambda: jpeg((0xE2, b"ICC_PROFILE\0")),
}
TURNED_FILES: dict[str, Callable[[], bytes]] = {
    "turned.jpg": lambda: jpeg((0xE1, b"Exif\0\0" + exif(TURNED))),
    "unwritable.jpg": lambda: jpeg((0xE1, b"Exif\0\0" + exif(TURNED, (0x010F, 3, 1, b"\xff\xff\0\0"), NOWHERE))),
    "turned-with-text.png": lambda: png(chunk(b"eXIf", exif(TURNED)), chunk(b"zTXt", b"Comment\0\0" + BIG)),
    "turned-with-profile.png": lambda: png(chunk(b"eXIf", exif(TURNED, NOWHERE)), chunk(b"iCCP", b"p\0\0" + BIG)),
    "turned-with-pictures.jpg": lambda: jpeg((0xE1, b"Exif\0\0" + exif(TURNED)), (0xE2, b"MPF\0" + exif(NOWHERE))),
    "turned-with-jfif.jpg": lambda: jpeg((0xE0, b"JFIF\0"), (0xE1, b"Exif\0\0" + exif(TURNED)), (0xEE, b"Adobe")),
}


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name]())
    assert_shows(read_image(tmp_path / name), PICTURE)


@pytest.mark.parametrize("name", TURNED_FILES)
def test_orientation_is_honoured_beside_what_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TURNED_FILES[name]())
    assert_shows(read_image(tmp_path / name), PICTURE.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("suffix", written("tiff", "avif", "webp", "jfif", "png"))
def test_orientation_is_honoured_in_every_format(tmp_path: Path, suffix: str) -> None:
    data = Image.Exif()
    data[0x0112] = 6
    PICTURE.save(tmp_path / f"a.{suffix}", exif=data, quality=98)
    assert_shows(read_image(tmp_path / f"a.{suffix}"), PICTURE.transpose(Image.Transpose.ROTATE_270))


def test_tiffs_with_broken_tags_are_read_upright(tmp_path: Path) -> None:
    for compression in (None, "tiff_lzw"):
        PICTURE.save(tmp_path / "a.tiff", compression=compression, tiffinfo={274: 6, 34665: 99999, 271: "maker"})
        assert_shows(read_image(tmp_path / "a.tiff"), PICTURE.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize(
    "suffix", written("avif", "bmp", "gif", "ico", "jfif", "jp2", "jpe", "mpo", "ppm", "qoi", "tga", "tif")
)
def test_what_pillow_reads_is_an_image_by_its_name_and_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix.upper()}"
    PICTURE.save(path, **({"quality": 98} if suffix in ("avif", "jfif", "jpe", "mpo") else {}))
    assert is_image_name(path)
    assert read_image(path).mode == "RGB"
    if suffix not in ("gif", "ico"):  # which have fewer colours, or are made smaller
        assert_shows(read_image(path), PICTURE)


def assert_shows(image: Image.Image, expected: Image.Image) -> None:
    assert image.size == expected.size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 4  # what JPEG and its kin lose


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jxl", "a.svg", "a.dng", "a.eps"])
def test_what_is_not_read_is_an_image_by_its_name_and_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    assert is_image_name(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not of a kind that is read here: convert it to PNG or JPEG"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["notes.txt", "model.h5", "clip.mpg", "paper.pdf", "transforms.json", "png"])
def test_other_files_are_no_images_by_their_names(name: str) -> None:
    assert not is_image_name(Path(name))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_of_32_bits_keep_their_tones(tmp_path: Path, dtype: type) -> None:
    values = np.array([[0, 64, 128, 255]])
    scale = 1 / 255 if dtype is np.float32 else 257
    Image.fromarray((values * scale).astype(dtype)).save(tmp_path / "a.tiff")
    assert np.asarray(read_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == values[0].tolist()


@pytest.mark.parametrize(
    "profile", [b"no profile", bytes(16) + b"CMYK" + bytes(16) + b"acsp", b"RGB " * 4 + os.urandom(2_000_000)]
)
def test_a_profile_that_says_nothing_of_rgb_is_not_written(tmp_path: Path, profile: bytes) -> None:
    PICTURE.save(tmp_path / "a.jpg", icc_profile=profile)
    image = read_image(tmp_path / "a.jpg")
    write_png(tmp_path / "a.png", image, {}, image.info.get("icc_profile"))
    with Image.open(tmp_path / "a.png") as written:
        written.load()
        assert "icc_profile" not in written.info


def test_pictures_with_too_many_pixels_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"a\.png has more pixels than can be trusted to an image reader"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("error", [struct.error("no buffer"), KeyError(274), OverflowError(), MemoryError()], ids=repr)
def test_whatever_a_reader_raises_is_told_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    PICTURE.save(tmp_path / "a.bmp")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=r"a\.bmp cannot be read: \w+"):
        read_image(tmp_path / "a.bmp")
