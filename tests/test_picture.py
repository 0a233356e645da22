from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo_seg.errors import ImageError
from zoo_seg.images.reading import read_picture

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()


def grey3(grey: Any) -> Any:
    return np.stack([grey] * 3, axis=2)


def saved(folder: Path, image: Image.Image, name: str = "picture.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


# --- the kinds of input -------------------------------------------------------------------------


def test_every_kind_of_input_gives_the_same_picture(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    for image in (path, str(path), Image.open(path), RGB, RGB[::-1][::-1], np.asfortranarray(RGB), tensor):
        picture = read_picture(image)
        np.testing.assert_array_equal(picture, RGB)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous and picture.flags.writeable


def test_a_grey_array_is_repeated() -> None:
    np.testing.assert_array_equal(read_picture(GREY), grey3(GREY))


def test_the_result_does_not_share_memory_with_the_input() -> None:
    array, tensor = RGB.copy(), torch.from_numpy(RGB).permute(2, 0, 1).contiguous()
    from_array, from_tensor = read_picture(array), read_picture(tensor)
    array[:], tensor[:] = 0, 0
    np.testing.assert_array_equal(from_array, RGB)
    np.testing.assert_array_equal(from_tensor, RGB)


# --- PIL modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "La", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_pil_modes_agree_with_pils_own_conversion(mode: str) -> None:
    image = Image.fromarray(RGB)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    image = image.convert(mode)
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    np.testing.assert_array_equal(read_picture(image), np.asarray(straight.convert("RGB")))


def test_transparency_is_dropped_and_the_colours_beneath_kept() -> None:
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[2:] = 100
    np.testing.assert_array_equal(read_picture(Image.fromarray(np.concatenate([RGB, alpha], axis=2))), RGB)
    grey = Image.fromarray(np.concatenate([GREY[:, :, None], alpha], axis=2), "LA")
    np.testing.assert_array_equal(read_picture(grey), grey3(GREY))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palette_pictures(tmp_path: Path, transparency: Any) -> None:
    colours = [(255, 0, 0), (0, 200, 10), (3, 4, 250)]
    indices = np.arange(35, dtype=np.uint8).reshape(5, 7) % 3
    image = Image.fromarray(indices)
    image.putpalette([channel for colour in colours for channel in colour])
    path = saved(tmp_path, image, **({} if transparency is None else {"transparency": transparency}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_picture(path)
    np.testing.assert_array_equal(picture, np.array(colours, np.uint8)[indices])


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str, dtype: str) -> None:
    deep = np.linspace(0, 65535, 35).astype(dtype).reshape(5, 7)
    path = saved(tmp_path, Image.fromarray(deep), f"deep.{suffix}")
    np.testing.assert_array_equal(read_picture(path), grey3(deep >> 8))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GREY.astype(np.int32), GREY),
        (GREY.astype(np.int32) * 256 + 17, GREY),
        (GREY.astype(np.float32) + 0.4 * (GREY < 255), GREY),
    ],
)
def test_32_bit_grey(values: Any, expected: Any) -> None:
    np.testing.assert_array_equal(read_picture(Image.fromarray(values)), grey3(expected))


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 2), 70000, np.int32),
        np.full((2, 2), -1, np.int32),
        np.full((2, 2), 0.5, np.float32),
        np.full((2, 2), 256.5, np.float32),
        np.full((2, 2), np.nan, np.float32),
    ],
)
def test_32_bit_grey_of_an_unknown_scale_is_refused(values: Any) -> None:
    with pytest.raises(ImageError, match=r"mode [IF].* has values from .* expected 0 to 255"):
        read_picture(Image.fromarray(values))


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    # what the camera stored: from the definition of each value (first row, first column of the file)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("picture.png", "picture.tif"):
        path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif)
        np.testing.assert_array_equal(read_picture(path), upright)
        np.testing.assert_array_equal(read_picture(Image.open(path)), upright)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_picture(saved(tmp_path, Image.fromarray(RGB), exif=exif)), RGB)


def test_a_damaged_exif_block_is_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB), exif=b"Exif\x00\x00MM\x00\x2a\xff\xff")
    np.testing.assert_array_equal(read_picture(path), RGB)


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert (read_picture(path) == (255, 0, 0)).all()
    second = Image.open(path)
    second.seek(1)
    assert (read_picture(second) == (0, 255, 0)).all()


@pytest.mark.parametrize("cut", [0, 40])
def test_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    files = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *args: files.append(opened(*args)) or files[-1])
    with pytest.raises(ImageError) if cut else nullcontext():
        read_picture(path)
    assert [file.closed for file in files] == [True]


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    def refused(path: Path | str, match: str) -> None:
        with pytest.raises(ImageError, match=match):
            read_picture(path)

    refused(tmp_path / "none.jpg", r"none\.jpg: there is no such file; check the path")
    refused("https://example.com/a.jpg", "download the link first")
    refused(tmp_path, "cannot be read .*directory|cannot be read .*denied")
    for name, content in (("empty.png", b""), ("text.png", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, f"{name}: not a picture")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp"])
def test_every_truncation_is_an_image_error_or_a_whole_picture(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    whole, content = read_picture(path), path.read_bytes()
    refused = 0
    for end in range(0, len(content) - 1, max(len(content) // 40, 1)):
        path.write_bytes(content[:end])
        try:
            np.testing.assert_array_equal(read_picture(path), whole)
        except ImageError as error:
            refused += 1
            assert name in str(error)
    assert refused >= 30


def test_a_decompression_bomb_is_named_and_can_be_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    opened = Image.open(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match=r"picture\.png: .*35 pixels.*pass that picture, or pass an array"):
        read_picture(path)
    np.testing.assert_array_equal(read_picture(opened), RGB)


def test_a_closed_pil_picture_is_refused(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path, Image.fromarray(RGB))) as image:
        pass
    with pytest.raises(ImageError, match="the PIL picture: cannot be read"):
        read_picture(image)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((2, 5, 7, 3), np.uint8), r"\(2, 5, 7, 3\).*list\(pictures\)"),
        (np.zeros((3, 5, 7), np.uint8), r"\(3, 5, 7\).*transpose\(1, 2, 0\)"),
        (np.zeros((5, 7, 4), np.uint8), r"\(5, 7, 4\).*\[:, :, :3\]"),
        (np.zeros((5, 7, 1), np.uint8), r"\[:, :, 0\]"),
        (np.zeros((5, 7, 2), np.uint8), r"expected RGB \(H, W, 3\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((5, 7, 3), np.float32), r"float32, expected uint8 .* multiply by 255"),
        (np.zeros((5, 7), np.float64), r"float64, expected uint8 .* multiply by 255"),
        (np.zeros((5, 7, 3), np.uint16), r"uint16, expected uint8 .*>> 8"),
        (np.zeros((5, 7), bool), r"bool, expected uint8"),
        (np.zeros((0, 7, 3), np.uint8), r"at least 1x1"),
        (np.zeros((5, 0), np.uint8), r"at least 1x1"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8), r"\(5, 7, 3\).*expected RGB \(3, H, W\).*permute\(2, 0, 1\)"),
        (torch.zeros(1, 3, 5, 7, dtype=torch.uint8), r"list\(pictures\)"),
        (torch.zeros(1, 5, 7, dtype=torch.uint8), r"expand\(3, -1, -1\)"),
        (torch.zeros(5, 7, dtype=torch.uint8), r"expand\(3, -1, -1\)"),
        (torch.zeros(4, 5, 7, dtype=torch.uint8), r"expected RGB \(3, H, W\)"),
        (torch.zeros(3, 5, 7), r"float32, expected uint8 .* multiply by 255"),
        (torch.zeros(3, 0, 7, dtype=torch.uint8), r"at least 1x1"),
        (Image.new("RGB", (0, 4)), r"0x4 pixels, expected at least 1x1"),
        (b"\xff\xd8", r"found bytes.*PIL\.Image\.open"),
        (None, r"found NoneType, expected a path"),
        ([RGB], r"found list"),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        read_picture(image)


def test_a_tensor_with_3_rows_and_3_columns_is_read_channels_first() -> None:
    tensor = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(read_picture(tensor), tensor.permute(1, 2, 0).numpy())
