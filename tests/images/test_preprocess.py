from __future__ import annotations

import json
import math
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from zoo_seg.errors import OptionError
from zoo_seg.images.preprocess import normalise, resize_uint8, resized_size
from zoo_seg.manifest import LARGEST_SIDE, Resize

FIXTURES = Path(__file__).parents[1] / "fixtures"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SHORT = {"ade20k": Resize(512, 2048), "voc": Resize(512, 2048), "cityscapes": Resize(1024, 2048)}


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- the published pipeline ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ade20k_land", "cityscapes_land", "voc_port"])
def test_the_network_input_equals_the_original_pipelines(name: str) -> None:
    with np.load(FIXTURES / f"testpipe_{name}.npz") as stored:
        picture, expected, meta = stored["rgb"], stored["net_input_sub"], json.loads(str(stored["meta"]))
    height, width = resized_size(*picture.shape[:2], SHORT[meta["dataset"]])
    assert [3, height, width] == meta["output_shape"]
    x = normalise(resize_uint8(picture, height, width), MEAN, STD)
    step_y, step_x = meta["subsample_hw"]
    np.testing.assert_array_equal(x[0, :, ::step_y, ::step_x].numpy(), expected)


# --- resizing -----------------------------------------------------------------------------------


def one_by_one(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """OpenCV's rule for one value after the other, in Python's integers."""

    def neighbours(size: int, new_size: int, i: int, whole_at_border: bool) -> tuple[int, int, int, int]:
        centre = np.float32((i + 0.5) * (1.0 / (new_size / size)) - 0.5)
        first = math.floor(centre)
        share = centre - np.float32(first)
        if whole_at_border and not 0 <= first < size - 1:
            share = np.float32(0)
        near, far = (round(Fraction(float(each)) * 2048) for each in (np.float32(1) - share, share))
        return max(first, 0), min(first + 1, size - 1), near, far

    result = np.empty((height, width, 3), np.uint8)
    values = picture.tolist()
    for row in range(height):
        y0, y1, upper, lower = neighbours(picture.shape[0], height, row, whole_at_border=False)
        for column in range(width):
            x0, x1, left, right = neighbours(picture.shape[1], width, column, whole_at_border=True)
            for c in range(3):
                above, below = (values[y][x0][c] * left + values[y][x1][c] * right >> 4 for y in (y0, y1))
                result[row, column, c] = (upper * above >> 16) + (lower * below >> 16) + 2 >> 2
    return result


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
def test_every_channel_is_worked_on_as_those_of_rgb_are(channels: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (37, 51, channels), np.uint8)
    mean, std = np.linspace(90, 130, channels).tolist(), np.linspace(40, 70, channels).tolist()
    resized = resize_uint8(picture, 60, 23)
    x = normalise(resized, mean, std)
    assert resized.shape == (60, 23, channels)
    assert x.shape == (1, channels, 60, 23)
    for i in range(channels):
        grey = np.repeat(picture[:, :, i, None], 3, axis=2)
        expected = resize_uint8(grey, 60, 23)
        np.testing.assert_array_equal(resized[:, :, i], expected[:, :, 0])
        np.testing.assert_array_equal(x[0, i], normalise(expected, [mean[i]] * 3, [std[i]] * 3)[0, 0])


def random_sizes() -> list[tuple[int, int, int, int]]:
    random = np.random.default_rng(7)
    sizes = [tuple(int(side) for side in random.integers(1, 40, 4)) for _ in range(60)]
    sizes += [(1, 1, 1, 1), (1, 1, 5, 4), (1, 30, 1, 45), (30, 1, 45, 1), (1, 30, 7, 11), (30, 2, 1, 1), (2, 2, 3, 3)]
    return [*sizes, (20, 30, 10, 15), (20, 30, 40, 60), (21, 31, 42, 62), (90, 80, 9, 8), (3, 4, 33, 65)]


@pytest.mark.parametrize("size", random_sizes(), ids=str)
def test_resizing_follows_opencvs_rule(size: tuple[int, int, int, int]) -> None:
    height, width, new_height, new_width = size
    picture = random_picture(height, width, seed=sum(size))
    result = resize_uint8(picture, new_height, new_width)
    np.testing.assert_array_equal(result, one_by_one(picture, new_height, new_width))
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


@pytest.mark.parametrize(
    ("seed", "size", "new_size", "crc"),  # the crc is that of OpenCV 5.0's result
    [
        (0, (45, 61), (512, 694), 0x4037195B),
        (1, (61, 40), (781, 512), 0x0BE65D31),
        (2, (300, 200), (77, 131), 0xFD789BD8),
        (3, (64, 48), (32, 24), 0x0453411C),
        (4, (37, 53), (74, 106), 0xFACC7F88),
        (5, (1, 97), (5, 33), 0xDE3090BC),
        (6, (120, 1), (33, 7), 0xD04F96BD),
        (7, (97, 101), (1, 1), 0x1B279D19),
        (8, (50, 1), (77, 5463), 0xD31C9D6B),  # the rule for border columns shows only here
    ],
)
def test_resizing_equals_opencv(seed: int, size: tuple[int, int], new_size: tuple[int, int], crc: int) -> None:
    assert zlib.crc32(resize_uint8(random_picture(*size, seed), *new_size).tobytes()) == crc


def test_resizing_a_flat_picture_changes_no_value() -> None:
    for value in (0, 1, 127, 254, 255):
        picture = np.full((31, 47, 3), value, np.uint8)
        assert (resize_uint8(picture, 113, 29) == value).all()


def test_the_same_size_costs_nothing() -> None:
    picture = random_picture(5, 6)
    assert resize_uint8(picture, 5, 6) is picture


# --- the size -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((375, 500), Resize(512, 2048), (512, 683)),
        ((500, 375), Resize(512, 2048), (683, 512)),
        ((100, 1000), Resize(512, 2048), (205, 2048)),  # the long side is the limit
        ((1024, 2048), Resize(1024, 2048), (1024, 2048)),
        ((1080, 1920), Resize(512, 2048), (512, 910)),
        ((100, 1000), 512, (512, 5120)),
        ((375, 500), 188, (188, 251)),  # 250.67 is rounded
        ((7, 9000), Resize(512, 2048), (2, 2048)),
        ((1, 90000), Resize(512, 2048), (1, 2048)),  # never 0
        ((640, 3), 1, (213, 1)),
        ((375, 500), Resize(520, 520), (390, 520)),  # both sides of the frame are the longer side's limit
        ((500, 375), Resize(520, 520), (520, 390)),
        ((896, 896), Resize(896, 896), (896, 896)),
        ((300, 500), Resize(473, 473, keep_ratio=False), (473, 473)),
        ((300, 500), Resize(200, 400, keep_ratio=False), (200, 400)),
        ((500, 300), Resize(200, 400, keep_ratio=False), (400, 200)),
        ((300, 300), Resize(200, 400, keep_ratio=False), (200, 400)),
        ((33, 47), None, (33, 47)),
        ((375, 500), Resize(520, 2048, rounding="floor"), (520, 693)),  # 693.33
        ((500, 334), Resize(520, 2048, rounding="floor"), (778, 520)),  # 778.44
        ((300, 449), Resize(520, 2048, rounding="floor"), (520, 778)),  # 778.27
        ((300, 500), Resize(521, 2048, rounding="floor"), (521, 868)),  # 868.33
        ((480, 641), Resize(520, 2048, rounding="floor"), (520, 694)),  # 694.42
        ((100, 1000), Resize(640, 2560, rounding="floor"), (256, 2560)),
        ((375, 500), Resize(512, 2048, divisor=32), (512, 704)),  # 683, stretched
        ((300, 500), Resize(400, 400, keep_ratio=False, divisor=32), (416, 416)),
        ((427, 640), Resize(640, 2560, rounding="floor", divisor=32), (640, 960)),  # 959
    ],
)
def test_resized_size(size: tuple[int, int], resize: Resize | int | None, expected: tuple[int, int]) -> None:
    assert resized_size(*size, resize) == expected


@pytest.mark.parametrize("resize", [0, -5])
def test_a_size_below_1_is_refused(resize: int) -> None:
    with pytest.raises(OptionError, match=f"resize is {resize}, expected at least 1 pixel"):
        resized_size(375, 500, resize)


# --- normalising --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (32, 5), (77, 41)])
def test_normalise(size: tuple[int, int]) -> None:
    picture = random_picture(*size)
    mean, std = (100.0, 20.5, 0.0), (1.0, 64.0, 255.0)  # three different channels; nothing to round before the division
    x = normalise(picture, mean, std)
    expected = ((picture - np.array(mean)) / np.array(std)).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-7)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_normalise_leaves_the_picture_alone() -> None:
    picture = random_picture(4, 5)
    normalise(picture, MEAN, STD)
    np.testing.assert_array_equal(picture, random_picture(4, 5))


# --- as torchvision and transformers have it ----------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "short"), [((375, 500), 520), ((333, 251), 97), ((61, 40), 40), ((33, 800), 520)])
def test_antialiased_resizing_is_torchvisions(
    size: tuple[int, int], short: int, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    """The size and every value."""
    picture = random_picture(*size, seed=1)
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    expected = v2.functional.resize(x, [short], v2.InterpolationMode(interpolation), antialias=True)
    new_size = resized_size(*size, Resize(short, LARGEST_SIDE, rounding="floor"))
    result = resize_uint8(picture, *new_size, interpolation)
    np.testing.assert_array_equal(result, expected.permute(1, 2, 0).numpy())
    assert result.flags.c_contiguous


def test_antialiasing_takes_any_number_of_channels() -> None:
    bands = np.concatenate([random_picture(40, 50, seed) for seed in (1, 2)], axis=2)
    expected = [resize_uint8(np.ascontiguousarray(bands[..., i : i + 1]), 23, 31, "bilinear") for i in range(6)]
    np.testing.assert_array_equal(resize_uint8(bands, 23, 31, "bilinear"), np.concatenate(expected, axis=2))


def test_antialiasing_leaves_a_read_only_image_alone() -> None:
    picture = random_picture(40, 50, 1)
    picture.flags.writeable = False
    assert resize_uint8(picture, 40, 50, "bicubic") is picture
    assert resize_uint8(picture, 20, 25, "bicubic").shape == (20, 25, 3)
