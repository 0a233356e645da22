from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stored import transparent, write_png, write_tiff
from PIL import Image

from zoo_seg.errors import ImageError, OptionError
from zoo_seg.images.reading import read_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()


def grey3(grey: Any) -> Any:
    return np.stack([grey] * 3, axis=2)


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


# --- the kinds of input -------------------------------------------------------------------------


def test_every_kind_of_input_gives_the_same_picture(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    for image in (path, str(path), Image.open(path), RGB, RGB[::-1][::-1], np.asfortranarray(RGB), tensor):
        picture = read_image(image)
        np.testing.assert_array_equal(picture, RGB)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        assert picture.flags.writeable


def test_a_grey_array_is_repeated() -> None:
    np.testing.assert_array_equal(read_image(GREY), grey3(GREY))


def test_the_result_does_not_share_memory_with_the_input() -> None:
    array, tensor = RGB.copy(), torch.from_numpy(RGB).permute(2, 0, 1).contiguous()
    from_array, from_tensor = read_image(array), read_image(tensor)
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
    np.testing.assert_array_equal(read_image(image), np.asarray(straight.convert("RGB")))


def test_transparency_is_dropped_and_the_colours_beneath_kept() -> None:
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[2:] = 100
    np.testing.assert_array_equal(read_image(Image.fromarray(np.concatenate([RGB, alpha], axis=2))), RGB)
    grey = Image.fromarray(np.concatenate([GREY[:, :, None], alpha], axis=2), "LA")
    np.testing.assert_array_equal(read_image(grey), grey3(GREY))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palette_pictures(tmp_path: Path, transparency: Any) -> None:
    colours = [(255, 0, 0), (0, 200, 10), (3, 4, 250)]
    indices = np.arange(35, dtype=np.uint8).reshape(5, 7) % 3
    image = Image.fromarray(indices)
    image.putpalette([channel for colour in colours for channel in colour])
    path = saved(tmp_path, image, **({} if transparency is None else {"transparency": transparency}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_image(path)
    np.testing.assert_array_equal(picture, np.array(colours, np.uint8)[indices])


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str, dtype: str) -> None:
    deep = np.linspace(0, 65535, 35).astype(dtype).reshape(5, 7)
    path = saved(tmp_path, Image.fromarray(deep), f"deep.{suffix}")
    np.testing.assert_array_equal(read_image(path), grey3(deep >> 8))


# --- more than 8 bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_reaches_white(tmp_path: Path, bits: int) -> None:
    values = np.arange(35).reshape(5, 7) % 2**bits
    path = write_png(tmp_path / "few.png", values, bits)
    np.testing.assert_array_equal(read_image(path), grey3(values * (255 // (2**bits - 1))))


def write_deep(folder: Path, kind: str, values: Any) -> Path:
    """16 bits a channel, with alpha where the kind has it."""
    name, _, how = kind.partition(" ")
    if how in ("rgba", "grey+alpha"):
        values = np.concatenate([values, np.full((*values.shape[:2], 1), 65535)], axis=2)
    if name == "png":
        return write_png(folder / "deep.png", values, 16, how)
    return write_tiff(folder / "deep.tif", values, 16, order=">" if "big" in how else "<", deflate="deflate" in how)


GREYS = ["png grey", "tif grey", "tif grey big", "tif grey deflate"]
COLOURS = ["png rgb", "png rgba", "tif rgb", "tif rgb big", "tif rgb deflate", "tif rgb big deflate"]


def deep(kind: str, top: int) -> Any:
    values = np.random.default_rng(3).integers(0, top + 1, (5, 7, 3))
    values[0, 0] = (0, top // 3, top)
    return values[:, :, 2] if "grey" in kind else values


def as_rgb(values: Any) -> Any:
    return grey3(values) if values.ndim == 2 else values


@pytest.mark.parametrize("kind", [*GREYS, *COLOURS])
def test_16_bits_that_use_the_top_one_lose_the_lower_8(tmp_path: Path, kind: str) -> None:
    values = deep(kind, 32768)
    np.testing.assert_array_equal(read_image(write_deep(tmp_path, kind, values)), as_rgb(values >> 8))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
@pytest.mark.parametrize("kind", [*GREYS, *COLOURS])
def test_fewer_bits_in_16_are_refused_or_scaled(tmp_path: Path, kind: str, bits: int) -> None:
    top = 2**bits - 1
    values = deep(kind, top)
    path = write_deep(tmp_path, kind, values)
    with pytest.raises(ImageError, match=rf"deep\.\w+: values from .* to {top} .*--range 0 {top} .*range=\(0, {top}\)"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, (0, top)), as_rgb(np.rint(values * 255 / top)))


def test_a_range_cuts_off_what_lies_outside(tmp_path: Path) -> None:
    path = write_png(tmp_path / "deep.png", np.array([[0, 100, 160, 200, 65535]]), 16)
    assert read_image(path, (100, 200))[0, :, 0].tolist() == [0, 0, 153, 255, 255]


def test_a_range_leaves_8_bits_alone() -> None:
    np.testing.assert_array_equal(read_image(RGB, (0, 4095)), RGB)
    np.testing.assert_array_equal(read_image(Image.fromarray(RGB), (0, 4095)), RGB)


def test_black_needs_no_range(tmp_path: Path) -> None:
    assert not read_image(write_png(tmp_path / "black.png", np.zeros((2, 2), int), 16)).any()


@pytest.mark.parametrize(
    ("values", "found", "suggested"),
    [
        (np.array([[0, 4.3]]), "0 to 4.3", "0 5"),
        (np.array([[0.25, 0.5]]), "0.25 to 0.5", "0 1"),
        (np.array([[0, 254.5]]), "0 to 254.5", "0 255"),
        (np.array([[-1.5, 2]]), "-1.5 to 2", "-2 2"),
        (np.array([[0, 0]]), "0 to 0", "0 1"),
    ],
)
def test_floating_point_is_refused_or_scaled(tmp_path: Path, values: Any, found: str, suggested: str) -> None:
    path = write_tiff(tmp_path / "float.tif", values.astype(np.float32), 32)
    with pytest.raises(ImageError, match=f"values from {found} .*--range {suggested} "):
        read_image(path)
    low, high = map(float, suggested.split())
    np.testing.assert_array_equal(read_image(path, (low, high)), grey3(np.rint((values - low) * 255 / (high - low))))


@pytest.mark.parametrize("value", [-1, 70000])
def test_32_bits_are_refused_or_scaled(value: int) -> None:
    image = Image.fromarray(np.array([[0, value]], np.int32))
    with pytest.raises(ImageError, match=f"values from .*{value} .*--range"):
        read_image(image)
    assert read_image(image, (-1, 70000)).max() == (255 if value > 0 else 0)


def test_pixels_that_are_no_number_are_refused() -> None:
    for range_ in (None, (0, 1)):
        with pytest.raises(ImageError, match="not a number"):
            read_image(Image.fromarray(np.array([[0.5, np.nan]], np.float32)), range_)


def test_16_bits_that_pillow_misreads_are_refused(tmp_path: Path) -> None:
    values = deep("rgb", 65535)
    with pytest.raises(ImageError, match="separate planes"):
        read_image(write_tiff(tmp_path / "a.tif", values, 16, planar=True))
    with pytest.raises(ImageError, match="multiplied by alpha"):
        read_image(write_tiff(tmp_path / "a.tif", np.concatenate([values, values[:, :, :1]], 2), 16, extra=1))
    with pytest.raises(ImageError, match="whose 0 is white"):
        read_image(write_tiff(tmp_path / "a.tif", values[:, :, 0], 16, white_is_zero=True))
    few = np.stack([GREY.astype(int), np.full(GREY.shape, 65535)], axis=2)
    with pytest.raises(ImageError, match=r"16-bit LA, .* save it as 8-bit RGB"):
        read_image(write_png(tmp_path / "a.png", few, 16, "grey+alpha"))
    with pytest.raises(ImageError, match=r"16-bit RGB, .* pass its path"):
        read_image(Image.open(write_png(tmp_path / "a.png", deep("rgb", 4095), 16, "rgb")))


def test_grey_with_alpha_of_16_bits(tmp_path: Path) -> None:
    values = deep("grey", 65535)
    path = write_png(tmp_path / "a.png", np.stack([values, values // 2], axis=2), 16, "grey+alpha")
    np.testing.assert_array_equal(read_image(path), grey3(values >> 8))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_keeps_its_brightness(tmp_path: Path, bits: int) -> None:
    values = np.arange(35).reshape(5, 7) % 2**bits
    values[0, 0] = 2**bits - 1
    path = write_png(tmp_path / "a.png", values, bits, chunks=transparent(2**bits - 1))
    np.testing.assert_array_equal(read_image(path), grey3(np.floor(values * 255 / (2**bits - 1) + 1e-9)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_tiff_whose_0_is_white(tmp_path: Path, bits: int) -> None:
    values = np.arange(35).reshape(5, 7) % 2**bits
    path = write_tiff(tmp_path / "a.tif", values, bits, white_is_zero=True)
    np.testing.assert_array_equal(read_image(path), grey3(255 - values * (255 // (2**bits - 1))))


def test_arrays_and_tensors_with_a_range() -> None:
    twelve = deep("rgb", 4095)
    expected = np.rint(twelve * 255 / 4095)
    for kind in (np.uint16, np.int32, np.float64):
        np.testing.assert_array_equal(read_image(twelve.astype(kind), (0, 4095)), expected)
    np.testing.assert_array_equal(read_image(twelve[:, :, 0].astype(np.uint16), (0, 4095)), grey3(expected[:, :, 0]))
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    np.testing.assert_array_equal(read_image(tensor / 255, (0, 1)), RGB)
    np.testing.assert_array_equal(read_image(tensor.bfloat16().requires_grad_(), (0, 255)), RGB)


@pytest.mark.parametrize("range_", [(0, 0), (1, 0), (0, np.nan), (0, np.inf), (1,), 5, "ab"])
def test_what_is_no_range_is_refused(range_: Any) -> None:
    with pytest.raises(OptionError, match="expected the values that are black and white"):
        read_image(RGB, range_)


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
    for name in ("image.png", "image.tif"):
        path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif)
        np.testing.assert_array_equal(read_image(path), upright)
        np.testing.assert_array_equal(read_image(Image.open(path)), upright)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(RGB), exif=exif)), RGB)


def test_a_damaged_exif_block_is_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB), exif=b"Exif\x00\x00MM\x00\x2a\xff\xff")
    np.testing.assert_array_equal(read_image(path), RGB)


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert (read_image(path) == (255, 0, 0)).all()
    second = Image.open(path)
    second.seek(1)
    assert (read_image(second) == (0, 255, 0)).all()


@pytest.mark.parametrize("cut", [0, 40])
def test_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    files = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *args: files.append(opened(*args)) or files[-1])
    with pytest.raises(ImageError) if cut else nullcontext():
        read_image(path)
    assert [file.closed for file in files] == [True]


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    def refused(path: Path | str, match: str) -> None:
        with pytest.raises(ImageError, match=match):
            read_image(path)

    refused(tmp_path / "none.jpg", r"none\.jpg: there is no such file; check the path")
    refused("https://example.com/a.jpg", "download the link first")
    refused(tmp_path, "cannot be read .*directory|cannot be read .*denied")
    for name, content in (("empty.png", b""), ("text.png", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, f"{name}: not an image")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp"])
def test_every_truncation_is_an_image_error_or_a_whole_picture(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    whole, content = read_image(path), path.read_bytes()
    refused = 0
    for end in range(0, len(content) - 1, max(len(content) // 40, 1)):
        path.write_bytes(content[:end])
        try:
            np.testing.assert_array_equal(read_image(path), whole)
        except ImageError as error:
            refused += 1
            assert name in str(error)
    assert refused >= 30


def test_a_decompression_bomb_is_named_and_can_be_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    opened = Image.open(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match=r"image\.png: .*35 pixels.*pass that image, or pass an array"):
        read_image(path)
    np.testing.assert_array_equal(read_image(opened), RGB)


def test_a_closed_pil_picture_is_refused(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path, Image.fromarray(RGB))) as image:
        pass
    with pytest.raises(ImageError, match="the PIL image: cannot be read"):
        read_image(image)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((2, 5, 7, 3), np.uint8), r"\(2, 5, 7, 3\).*list\(images\)"),
        (np.zeros((3, 5, 7), np.uint8), r"\(3, 5, 7\).*transpose\(1, 2, 0\)"),
        (np.zeros((5, 7, 4), np.uint8), r"\(5, 7, 4\).*\[:, :, :3\]"),
        (np.zeros((5, 7, 1), np.uint8), r"\[:, :, 0\]"),
        (np.zeros((5, 7, 2), np.uint8), r"expected RGB \(H, W, 3\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((5, 7, 3), np.float32), r"float32, expected uint8 .* range=\(0, 1\)"),
        (np.zeros((5, 7), np.float64), r"float64, expected uint8 .* range=\(0, 1\)"),
        (np.zeros((5, 7, 3), np.uint16), r"uint16, expected uint8 .* range=\(0, 65535\)"),
        (np.zeros((5, 7), bool), r"bool, expected uint8"),
        (np.zeros((0, 7, 3), np.uint8), r"at least 1x1"),
        (np.zeros((5, 0), np.uint8), r"at least 1x1"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8), r"\(5, 7, 3\).*expected RGB \(3, H, W\).*permute\(2, 0, 1\)"),
        (torch.zeros(1, 3, 5, 7, dtype=torch.uint8), r"list\(images\)"),
        (torch.zeros(1, 5, 7, dtype=torch.uint8), r"expand\(3, -1, -1\)"),
        (torch.zeros(5, 7, dtype=torch.uint8), r"expand\(3, -1, -1\)"),
        (torch.zeros(4, 5, 7, dtype=torch.uint8), r"expected RGB \(3, H, W\)"),
        (torch.zeros(3, 5, 7), r"float32, expected uint8 .* range=\(0, 1\)"),
        (torch.zeros(3, 5, 7, dtype=torch.uint8, device="meta"), r"is meta, expected one that holds pixels"),
        (torch.zeros(3, 5, 7, dtype=torch.uint8).to_sparse(), r"is sparse, expected one that holds pixels"),
        (torch.zeros(3, 0, 7, dtype=torch.uint8), r"at least 1x1"),
        (Image.new("RGB", (0, 4)), r"0x4 pixels, expected at least 1x1"),
        (b"\xff\xd8", r"found bytes.*PIL\.Image\.open"),
        (None, r"found NoneType, expected a path"),
        ([RGB], r"found list"),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        read_image(image)


def test_a_tensor_with_3_rows_and_3_columns_is_read_channels_first() -> None:
    tensor = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(read_image(tensor), tensor.permute(1, 2, 0).numpy())
