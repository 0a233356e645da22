"""Images of any number of channels: which bands are read, and what does not fit."""

from __future__ import annotations

import builtins
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from helpers.stored import write_png
from PIL import Image
from rasterio.enums import ColorInterp

from zoo_seg.errors import ImageError, MissingExtraError, OptionError
from zoo_seg.images import raster
from zoo_seg.images.reading import as_rgb, read_image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 6), dtype=np.uint8)


def tiff(path: Path, values: Any, **options: Any) -> Path:
    """A TIFF with the bands of (H, W, bands)."""
    height, width, count = values.shape
    profile = {"driver": "GTiff", "count": count, "dtype": values.dtype, "height": height, "width": width, **options}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(values, 2, 0))
    return path


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", ["none", "lzw", "deflate"])
@pytest.mark.parametrize("channels", [2, 4, 5, 6])
def test_all_bands_of_a_tiff(tmp_path: Path, channels: int, compress: str, interleave: str) -> None:
    values = BYTES[:, :, :channels]
    path = tiff(tmp_path / "a.tif", values, interleave=interleave, compress=compress)
    found = read_image(path, channels=channels)
    np.testing.assert_array_equal(found, values)
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_every_number_type_with_its_range(tmp_path: Path, dtype: str, channels: int) -> None:
    values = (np.random.default_rng(1).random((5, 7, channels)) * 3000).astype(dtype)
    path = tiff(tmp_path / "a.tif", values)
    expected = np.rint(np.interp(values, (100, 2900), (0, 255)))
    np.testing.assert_array_equal(read_image(path, (100, 2900), channels=channels), expected)
    with pytest.raises(ImageError, match=r"a\.tif: values from .* Say which values are black and white"):
        read_image(path, channels=channels)


def test_a_range_for_each_channel(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 5000, (5, 7, 3), np.uint16)
    ranges = [(0, 1000), (500, 5000), (0, 4999)]
    expected = np.stack([np.rint(np.interp(values[:, :, i], ranges[i], (0, 255))) for i in (0, 1, 2)], axis=2)
    np.testing.assert_array_equal(read_image(tiff(tmp_path / "a.tif", values), ranges, bands=[1, 2, 3]), expected)
    np.testing.assert_array_equal(read_image(values, ranges), expected)
    with pytest.raises(OptionError, match="one pair of values, or 3"):
        read_image(values, ranges[:2])


@pytest.mark.parametrize("bands", [[1], [4, 1, 2], [6, 6], [3, 2, 1]])
def test_bands_are_chosen_by_their_numbers(tmp_path: Path, bands: list[int]) -> None:
    expected = BYTES[:, :, [band - 1 for band in bands]]
    path = tiff(tmp_path / "a.tif", BYTES)
    tensor = torch.from_numpy(BYTES).permute(2, 0, 1)
    for image in (path, BYTES, tensor):
        np.testing.assert_array_equal(read_image(image, channels=len(bands), bands=bands), expected)


def test_a_tiff_within_an_archive(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", BYTES)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.tif")
    inside = zipfile.Path(tmp_path / "a.zip", "a.tif")
    np.testing.assert_array_equal(read_image(inside, channels=6), BYTES)


# --- what Pillow reads --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_rgb_with_a_fourth_band(tmp_path: Path, suffix: str) -> None:
    """To three channels the fourth is alpha, which is dropped; four are all read; fewer must be chosen."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(BYTES[:, :, :4]).save(path)
    np.testing.assert_array_equal(read_image(path), BYTES[:, :, :3])
    np.testing.assert_array_equal(read_image(path, channels=4), BYTES[:, :, :4])
    np.testing.assert_array_equal(read_image(path, channels=2, bands=[4, 1]), BYTES[:, :, [3, 0]])
    with pytest.raises(ImageError, match=r'4 bands, expected 2; choose bands, such as "bands": \[1, 2\]'):
        read_image(path, channels=2)


def test_an_alpha_that_is_one_too_many_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, BYTES[:, :, :5])
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [*file.colorinterp[:4], ColorInterp.alpha]
    np.testing.assert_array_equal(read_image(path, channels=4), BYTES[:, :, :4])
    np.testing.assert_array_equal(read_image(path, channels=5), BYTES[:, :, :5])


def test_grey_is_one_channel(tmp_path: Path) -> None:
    grey = BYTES[:, :, :1]
    Image.fromarray(grey[:, :, 0]).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", grey, grey[:, :, 0], torch.from_numpy(grey).permute(2, 0, 1)):
        np.testing.assert_array_equal(read_image(image, channels=1), grey)
    alpha = np.concatenate([grey, 255 - grey], axis=2)
    Image.fromarray(alpha, "LA").save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", channels=1), grey)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", channels=2), alpha)
    Image.fromarray(grey[:, :, 0] > 99).save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_image(tmp_path / "c.png", channels=1), (grey > 99) * 255)


def test_16_bits_of_four_bands_of_a_png(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 4096, (5, 7, 4))
    path = write_png(tmp_path / "a.png", values, 16, "rgba")
    np.testing.assert_array_equal(read_image(path, (0, 4095), channels=4), np.rint(values * 255 / 4095))
    with pytest.raises(ImageError, match=r"values from .* expected 8 bits"):  # the fourth band is dark as well
        read_image(path, channels=4)


def test_nothing_is_invented(tmp_path: Path) -> None:
    """Colours of a palette or of another colour space are three; grey with alpha of 16 bits is no RGBA."""
    image = Image.fromarray(BYTES[:, :, :3])
    for mode, name in (("P", "a.png"), ("CMYK", "a.jpg"), ("RGB", "b.png")):
        image.convert(mode).save(tmp_path / name)
        with pytest.raises(ImageError, match=r"3 bands, expected 4; take images of 4 bands, or a network of 3 chan"):
            read_image(tmp_path / name, channels=4)
        with pytest.raises(ImageError, match="expected 1; convert it to grey first"):
            read_image(tmp_path / name, channels=1)
    deep = np.random.default_rng(1).integers(40000, 60000, (5, 7, 2))
    path = write_png(tmp_path / "c.png", deep, 16, "grey+alpha")
    with pytest.raises(ImageError, match="2 bands, expected 4"):
        read_image(path, channels=4)
    np.testing.assert_array_equal(read_image(path, channels=1)[:, :, 0], deep[:, :, 0] >> 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [4, 5, 6])
def test_nothing_beside_rgb_is_dropped_unseen(tmp_path: Path, count: int, dtype: Any) -> None:
    """Pillow reads RGB with further bands as RGB."""
    values = BYTES[:, :, :count].astype(dtype) * (256 if dtype is np.uint16 else 1)
    path = tiff(tmp_path / "a.tif", values, photometric="RGB", alpha="NO")
    with pytest.raises(ImageError, match=rf'a\.tif: {count} bands, expected 3; .*"channels": {count} trains'):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, bands=[1, 2, 3]), BYTES[:, :, :3])


def test_a_float_tiff_of_three_bands(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random((5, 7, 3), np.float32)
    path = tiff(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_image(path, (0, 1)), np.rint(np.interp(values, (0, 1), (0, 255))))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, ImageError, r"a\.tif: 6 bands, expected 3; .*--bands 1 2 3.*\"channels\": 6 trains"),
        ({"channels": 4}, ImageError, r"6 bands, expected 4; .*bands=\[1, 2, 3, 4\]"),
        ({"channels": 7}, ImageError, "6 bands, expected 7; take images of 7 bands, or a network of 6 channels"),
        ({"bands": [7, 1, 2]}, ImageError, r"6 bands, expected at least 7 for the bands \[7, 1, 2\]"),
        ({"bands": [1, 2]}, OptionError, "expected 3, as many as the network has channels"),
        ({"bands": [0, 1, 2]}, OptionError, "numbers of bands, from 1 on"),
        ({"bands": []}, OptionError, "numbers of bands, from 1 on"),
        ({"bands": 5}, OptionError, "numbers of bands, from 1 on"),
        ({"range": [(0, 1), (2, 1), (0, 1)]}, OptionError, "black and white"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, options: dict[str, Any], error: type[Exception], match: str) -> None:
    path = tiff(tmp_path / "a.tif", BYTES)
    with pytest.raises(error, match=match):
        read_image(path, **options)


@pytest.mark.parametrize(
    ("image", "channels", "match"),
    [
        (BYTES, 4, r"\(5, 7, 6\).*expected 4 channels \(H, W, 4\); choose bands"),
        (BYTES.transpose(2, 0, 1), 6, r"transpose\(1, 2, 0\)"),
        (BYTES[:, :, 0], 4, "expected 4 channels"),
        (BYTES[None], 6, r"list\(images\)"),
        (torch.from_numpy(BYTES), 6, r"permute\(2, 0, 1\)"),
        (torch.from_numpy(BYTES[:, :, 0]), 1, r"expected 1 channel \(1, H, W\)"),
    ],
)
def test_arrays_that_do_not_fit(image: Any, channels: int, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        read_image(image, channels=channels)


def test_damaged_and_odd_tiffs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiff(tmp_path / "a.tif", BYTES.repeat(20, 0).repeat(20, 1), compress="deflate")
    content = path.read_bytes()
    for end in range(0, len(content), max(len(content) // 30, 1)):
        path.write_bytes(content[:end])
        with pytest.raises(ImageError, match=r"a\.tif"):
            read_image(path, channels=6)
    nan = tiff(tmp_path / "nan.tif", np.full((2, 2, 4), np.nan, np.float32))
    with pytest.raises(ImageError, match="not a number"):
        read_image(nan, (0, 1), channels=4)
    with pytest.raises(ImageError, match="complex64, expected whole or floating-point"):
        read_image(tiff(tmp_path / "c.tif", np.zeros((2, 2, 2), np.complex64)), (0, 1), channels=2)
    monkeypatch.setenv("ZOO_SEG_MAX_PIXELS", "20")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # which the variable sets for the process
    with pytest.raises(ImageError, match=r"35 pixels.*exceeds limit of 20"):
        read_image(tiff(tmp_path / "b.tif", BYTES), channels=6)


def test_without_rasterio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiff(tmp_path / "a.tif", BYTES)
    odd = tiff(tmp_path / "odd.tif", np.zeros((5, 7, 3), np.float32))
    monkeypatch.setattr(raster, "_quiet_rasterio", raster._quiet_rasterio.__wrapped__)
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("rasterio"):
            raise ImportError("No module named 'rasterio'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"a\.tif: .*pip install 'zoo_seg\[aerial\]'"):
        read_image(path, channels=6)
    with pytest.raises(ImageError, match=r"odd\.tif: .*pip install 'zoo_seg\[aerial\]'"):  # one of many is passed over
        read_image(odd, (0, 1))
    with pytest.raises(ImageError, match="6 bands, expected 3"):
        read_image(path)


def test_what_is_looked_at() -> None:
    for channels, expected in {1: [0, 0, 0], 2: [0, 0, 0], 3: [0, 1, 2], 6: [0, 1, 2]}.items():
        np.testing.assert_array_equal(as_rgb(BYTES[:, :, :channels]), BYTES[:, :, expected])
