"""A mask is read as its painter meant it, whatever the program saved it as."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cds_nerf.errors import UserError
from cds_nerf.masks import as_mask
from cds_nerf.pictures import read_mask

WHITE = np.zeros((20, 30), dtype=bool)
WHITE[5:15, 8:22] = True
"""Where the masks of these tests are white."""
GREY = np.where(WHITE, 255, 0).astype(np.uint8)
ROWS, COLUMNS = np.mgrid[:20, :30]
PHOTO = np.stack([ROWS * 12, COLUMNS * 8, 120 + 0 * ROWS], axis=-1).astype(np.uint8)


def drawn(mode: str) -> Image.Image:
    return Image.fromarray(GREY).convert(mode)


def rgba(colours: np.ndarray, opacity: np.ndarray) -> Image.Image:
    colours = np.broadcast_to(colours if colours.ndim > 1 else colours[None, None], (20, 30, 3))
    return Image.fromarray(np.dstack([colours, opacity]).astype(np.uint8))


def with_palette(indices: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(colours)
    return image


def with_ones(mode: str) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(WHITE.astype(np.uint8))] * len(mode))


MASKS: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: drawn("1"),
    "L": lambda: drawn("L"),
    "LA": lambda: drawn("LA"),
    "La": lambda: drawn("LA").convert("La"),
    "P": lambda: drawn("P"),
    "PA": lambda: drawn("RGBA").convert("PA"),
    "RGB": lambda: drawn("RGB"),
    "RGBA": lambda: drawn("RGBA"),
    "RGBa": lambda: drawn("RGBA").convert("RGBa"),
    "RGBX": lambda: drawn("RGB").convert("RGBX"),
    "CMYK": lambda: drawn("RGB").convert("CMYK"),
    "YCbCr": lambda: drawn("RGB").convert("YCbCr"),
    "HSV": lambda: drawn("RGB").convert("HSV"),
    "16 bits": lambda: Image.fromarray(GREY.astype(np.uint16) * 257),
    "16 bits, up to 255": lambda: Image.fromarray(GREY.astype(np.uint16)),
    "16 bits, ones": lambda: Image.fromarray(WHITE.astype(np.uint16)),
    "16 bits, the other byte order": lambda: Image.frombytes("I;16B", (30, 20), (GREY.astype(">u2") * 257).tobytes()),
    "32 bits": lambda: Image.fromarray(np.where(WHITE, 2**31 - 1, 0).astype(np.int32)),
    "32 bits, up to 65535": lambda: Image.fromarray(GREY.astype(np.int32) * 257),
    "32 bits, up to 255": lambda: Image.fromarray(GREY.astype(np.int32)),
    "32 bits, ones": lambda: Image.fromarray(WHITE.astype(np.int32)),
    "floats to 1": lambda: Image.fromarray(WHITE.astype(np.float32)),
    "floats to 255": lambda: Image.fromarray(GREY.astype(np.float32)),
    "ones": lambda: with_ones("L"),
    "ones in three channels": lambda: with_ones("RGB"),
    "ones in four channels": lambda: with_ones("RGBA"),
    "ones, opaque": lambda: rgba(np.dstack([WHITE] * 3), 255 + 0 * GREY),
    "ones and transparency": lambda: with_ones("LA"),
    "labels without colours": lambda: with_palette(WHITE, [0, 0, 0]),
    "labels of all one colour": lambda: with_palette(WHITE, [9, 9, 9] * 256),
    "labels 0 and 255 without colours": lambda: with_palette(GREY, [0, 0, 0]),
    "labels as greys": lambda: with_palette(WHITE, [0, 0, 0, 1, 1, 1]),
    "labels with a segmentation's colours": lambda: with_palette(WHITE, [0, 0, 0, 128, 0, 0, 0, 128, 0]),
    "a palette in any order": lambda: with_palette(~WHITE, [255, 255, 255, 0, 0, 0]),
    "white paint on a transparent layer": lambda: rgba(np.array([255, 255, 255]), GREY),
    "red paint on a transparent layer": lambda: rgba(np.array([255, 0, 0]), GREY),
    "a photograph with a part erased": lambda: rgba(PHOTO, GREY),
    "a grey photograph with a part erased": lambda: rgba(PHOTO[..., 1:2].repeat(3, axis=2), GREY),
    "a drawing, its black partly erased": lambda: rgba(np.dstack([GREY] * 3), np.where(COLUMNS > 4, 255, 0)),
    "a drawing, all opaque but a corner of white": lambda: rgba(
        np.dstack([np.where(ROWS < 2, 255, GREY)] * 3), np.where(ROWS < 2, 0, 255)
    ),
}


def mask_of(picture: Image.Image) -> np.ndarray:
    mask = as_mask(picture)
    assert mask.mode == "L"
    return np.asarray(mask)


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_picture_is_white_where_it_was_painted(kind: str) -> None:
    assert np.array_equal(mask_of(MASKS[kind]()), GREY)


PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"}
SAVED = {
    "png": [kind for kind, make in MASKS.items() if make().mode in PNG_MODES],
    "tiff": [kind for kind, make in MASKS.items() if make().mode in PNG_MODES | {"CMYK", "PA", "I", "F"}],
    "webp": ["RGB", "RGBA", "ones in three channels", "ones and transparency", "a photograph with a part erased"],
    "gif": ["1", "L", "P", "labels without colours", "ones", "white paint on a transparent layer"],
    "bmp": ["1", "L", "P", "RGB", "ones", "labels with a segmentation's colours"],
}
"""The kinds that a file of each format holds."""


@pytest.mark.parametrize(("suffix", "kind"), [(suffix, kind) for suffix, kinds in SAVED.items() for kind in kinds])
def test_what_a_program_saved_says_the_same(tmp_path: Path, suffix: str, kind: str) -> None:
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    MASKS[kind]().save(tmp_path / f"mask.{suffix}", **options)
    assert np.array_equal(np.asarray(read_mask(tmp_path / f"mask.{suffix}")), GREY)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_ones_of_every_depth_of_a_png_are_white(tmp_path: Path, bits: int) -> None:
    (tmp_path / "mask.png").write_bytes(grey_png(WHITE.astype(int), bits))
    assert np.array_equal(np.asarray(read_mask(tmp_path / "mask.png")), GREY)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A PNG of the given depth, which Pillow does not write."""
    rows = []
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(b"\0" + bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8)))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_soft_edges_stay_soft() -> None:
    ramp = np.linspace(0, 255, 600).round().astype(np.uint8).reshape(20, 30)
    assert np.array_equal(mask_of(Image.fromarray(ramp)), ramp)
    assert np.array_equal(mask_of(rgba(np.array([200, 30, 30]), ramp)), ramp)
    assert np.array_equal(mask_of(Image.fromarray(ramp.astype(np.uint16) * 257)), ramp)
    assert np.array_equal(mask_of(Image.fromarray(ramp.astype(np.float32) / 255)), ramp)


def test_a_relevance_map_of_which_a_part_was_erased_lies_on_black() -> None:
    relevance = np.clip(COLUMNS * 30 - 300, 0, 255)
    assert ((relevance > 32) & (relevance < 223)).any()
    erased = ROWS < 6
    mask = mask_of(rgba(np.dstack([relevance] * 3), np.where(erased, 0, 255)))
    assert np.array_equal(mask, np.where(erased, 0, relevance))


def test_a_night_photograph_with_a_part_erased_counts_by_its_opacity() -> None:
    night = PHOTO // 12
    night[:, ::8] = (250, 160, 40)  # its lights
    assert np.array_equal(mask_of(rgba(night, GREY)), GREY)


def test_a_mask_is_turned_upright_like_its_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn("RGB").rotate(90, expand=True).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(np.asarray(read_mask(tmp_path / "mask.png", size=(30, 20))), GREY)


def test_nothing_visible_is_no_mask() -> None:
    assert not mask_of(rgba(np.array([255, 255, 255]), 0 * GREY)).any()


def test_a_mask_of_another_size_is_told_with_both_sizes(tmp_path: Path) -> None:
    drawn("L").save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask .*mask\.png is 30x20 pixels; it must be 64x48"):
        read_mask(tmp_path / "mask.png", size=(64, 48))


def test_values_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    Image.fromarray(np.where(WHITE, np.nan, 0).astype(np.float32)).save(tmp_path / "mask.tiff")
    with pytest.raises(UserError, match=r"mask\.tiff cannot be read: it has values that are no numbers"):
        read_mask(tmp_path / "mask.tiff")


def test_compressed_tiffs_are_read(tmp_path: Path) -> None:
    MASKS["16 bits"]().save(tmp_path / "mask.tiff", compression="tiff_deflate")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "mask.tiff")), GREY)
