from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo_seg.errors import OptionError
from zoo_seg.images.preprocess import resize_uint8
from zoo_seg.manifest import Resize
from zoo_seg.training import transforms
from zoo_seg.training.transforms import (
    OwnTransforms,
    PadTo,
    PhotometricDistortion,
    RandomScaleCrop,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    published_transforms,
    resized_image,
    resized_mask,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "train_aug_seed.npz"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
IGNORE = 255
PLAIN = {"scale": (1.0, 1.0), "cat_max_ratio": 1.0, "flip": 0.0, "photometric": False}
"""Nothing is left to chance but the crop."""


def standard(crop: tuple[int, int], **options: object) -> v2.Transform:
    return published_transforms(crop, **{"mean": MEAN, "std": STD, "ignore_index": IGNORE, **options})


def random_picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)


def random_mask(height: int, width: int, classes: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes, (height, width), dtype=torch.uint8, generator=generator)


def levels(image: Tensor) -> Tensor:
    """Back from normalised values to 0..255."""
    return image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


# --- the original pipeline ----------------------------------------------------------------------


@pytest.fixture
def original() -> Iterator[dict[str, np.ndarray]]:
    """An image in BGR and what SSSegmentation's own transforms made of it under seeds of numpy's generator."""
    with np.load(FIXTURE) as stored:
        assert "np.random.seed(s) legacy RNG" in json.loads(str(stored["meta"]))["note"]
        yield dict(stored)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> np.random.RandomState:
    """Our transforms decide by numpy's generator, as the originals did."""
    state = np.random.RandomState()
    monkeypatch.setattr(transforms, "_uniform", state.uniform)
    monkeypatch.setattr(transforms, "_below", state.randint)
    monkeypatch.setattr(transforms, "_coin", lambda: bool(state.randint(2)))
    return state


def as_tensors(original: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(original["bgr"]).permute(2, 0, 1), torch.from_numpy(original["seg"])


@pytest.mark.parametrize(
    ("seed", "exact"),
    [
        pytest.param(100, False, id="saturation and hue"),
        pytest.param(101, False, id="all four, contrast last"),
        pytest.param(102, True, id="none"),
        pytest.param(103, False, id="brightness, contrast and hue"),
    ],
)
def test_colours_follow_the_original(
    original: dict[str, np.ndarray], draws: np.random.RandomState, seed: int, exact: bool
) -> None:
    draws.seed(seed)
    image, _ = PhotometricDistortion()(*as_tensors(original))
    difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - original[f"pmd_seed{seed}_bgr"])
    # the original rounds hue to 2 degrees and saturation to 1/255
    assert difference.max() <= (0 if exact else 4)
    assert difference.mean() < 0.6


def test_a_whole_sample_follows_the_original(original: dict[str, np.ndarray], draws: np.random.RandomState) -> None:
    draws.seed(7)
    pair = as_tensors(original)
    image, mask = RandomScaleCrop((64, 64), base=Resize(64, 256), ignore_index=IGNORE)(*pair)
    assert draws.random_sample() > 0.5  # no flip
    image, mask = PhotometricDistortion()(image, mask)
    image = v2.functional.normalize(image.flip(0).float(), list(MEAN), list(STD))
    image, mask = PadTo((64, 64), ignore_index=-100)(image, mask.long())
    np.testing.assert_array_equal(mask.numpy(), original["train_seed7_seg"])
    difference = np.abs(levels(image).numpy() - levels(torch.from_numpy(original["train_seed7_image"])).numpy())
    assert difference.max() < 4.01
    assert difference.mean() < 0.3


# --- scale and crop -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(45, 61), (23, 31), (90, 122), (77, 60), (1, 200)])
def test_a_box_is_cut_from_the_resized_picture(size: tuple[int, int]) -> None:
    image, mask = random_picture(45, 61), random_mask(45, 61)
    whole = resize_uint8(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), *size).astype(int)
    rows, columns = (
        [math.floor(i * (1 / (new / old))) for i in range(new)] for old, new in zip((45, 61), size, strict=True)
    )
    nearest = mask[rows][:, columns]
    for part in ((0.0, 0.0, 1.0, 1.0), (0.3, 0.1, 0.5, 0.6), (0.5, 0.5, 0.5, 0.5)):
        top, left, height, width = (int(each * side) for each, side in zip(part, size * 2, strict=True))
        box = top, left, max(height, 1), max(width, 1)
        place = slice(top, top + box[2]), slice(left, left + box[3])
        difference = np.abs(resized_image(image, size, box).permute(1, 2, 0).numpy() - whole[place])
        assert difference.max() <= 1, "OpenCV rounds twice"
        torch.testing.assert_close(resized_mask(mask, size, box), nearest[place])


def test_at_its_own_size_a_sample_is_a_cut_of_the_picture() -> None:
    image, mask = random_picture(40, 50), random_mask(40, 50)
    torch.manual_seed(3)
    x, y = standard((16, 24), **PLAIN)(image, mask)
    values = levels(x).round().to(torch.uint8)
    found = [
        (top, left)
        for top in range(25)
        for left in range(27)
        if torch.equal(values, image[:, top : top + 16, left : left + 24])
        and torch.equal(y.to(torch.uint8), mask[top : top + 16, left : left + 24])
    ]
    assert len(found) == 1


@pytest.mark.parametrize("crop", [(48, 64), (64, 48), (20, 20), (200, 100)])
def test_picture_and_mask_stay_aligned(crop: tuple[int, int]) -> None:
    """Blocks of a colour that stands for their class, through every random step but the colours."""
    mask = random_mask(6, 8, classes=9).repeat_interleave(12, 0).repeat_interleave(12, 1)
    image = (mask * 25).expand(3, -1, -1)
    step = standard(crop, photometric=False)
    for seed in range(12):
        torch.manual_seed(seed)
        x, y = step(image, mask)
        inside = y != IGNORE
        colours = levels(x)
        apart = (colours[0] - 25 * y).abs()
        assert (apart[inside] < 1).float().mean() > 0.7, "all but the blocks' borders"
        torch.testing.assert_close(x[:, ~inside], torch.zeros_like(x[:, ~inside]))
        assert (x.dtype, y.dtype, x.shape, y.shape) == (torch.float32, torch.uint8, (3, *crop), crop)
        assert type(x) is type(y) is Tensor


def test_every_scale_flip_and_place_occurs() -> None:
    """A ramp from left to right: its slope is the scale, its sign the flip, its middle the place."""
    image = torch.arange(0, 240, dtype=torch.uint8).expand(3, 120, -1)
    mask = random_mask(120, 240)
    step = standard((40, 60), photometric=False)
    slopes, middles = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        row = levels(step(image, mask)[0])[0, 20]
        slopes.append(float(row[50] - row[10]) / 40)
        middles.append(float(row[30]))
    scales = 1 / np.abs(slopes)
    assert 0.45 < scales.min() < 0.6
    assert 1.8 < scales.max() < 2.2
    assert 1.1 < scales.mean() < 1.4
    assert 70 < (np.array(slopes) < 0).sum() < 130
    assert min(middles) < 50
    assert max(middles) > 190


@pytest.mark.parametrize(
    ("base", "factor", "size"),
    [
        (None, 0.5, (50, 100)),
        (None, 2.0, (200, 400)),
        (64, 1.0, (64, 128)),
        (64, 1.5, (96, 192)),
        (Resize(64, 256), 1.5, (96, 192)),
        (Resize(64, 100), 1.0, (50, 100)),
    ],
)
def test_the_factor_multiplies_the_base(base: Resize | int | None, factor: float, size: tuple[int, int]) -> None:
    step = RandomScaleCrop((999, 999), base=base, scale=(factor, factor), ignore_index=IGNORE)
    image, mask = step(random_picture(100, 200), random_mask(100, 200))
    assert (image.shape, mask.shape) == ((3, *size), size)


@pytest.mark.parametrize("ignore_index", [255, -100, 65535])
def test_a_crop_holds_several_classes_where_that_is_possible(ignore_index: int) -> None:
    """One corner is of two other classes and half of the mask is ignored."""
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[:, 32:] = ignore_index
    mask[:32, :8], mask[:32, 8:16] = 1, 2
    options = {"scale": (1.0, 1.0), "ignore_index": ignore_index}
    limited, free = (RandomScaleCrop((16, 16), cat_max_ratio=ratio, **options) for ratio in (0.75, 1.0))

    def mixed(step: RandomScaleCrop, seed: int) -> bool:
        torch.manual_seed(seed)
        part = step(random_picture(64, 64), mask)[1]
        _, counts = part[part != ignore_index].unique(return_counts=True)
        return len(counts) > 1 and int(counts.max()) < 0.75 * int(counts.sum())

    with_limit, without = (sum(mixed(step, seed) for seed in range(100)) for step in (limited, free))
    assert 5 < without < 25
    assert abs(with_limit - 100 * (1 - (1 - without / 100) ** 10)) < 15, "ten tries"


@pytest.mark.parametrize("value", [0, IGNORE])
def test_a_mask_of_one_value_gets_a_crop_all_the_same(value: int) -> None:
    x, y = standard((16, 16))(random_picture(64, 64), torch.full((64, 64), value, dtype=torch.uint8))
    assert set(y.unique().tolist()) <= {value, IGNORE}
    assert x.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (2000, 2)])
def test_tiny_pictures_are_padded_around(size: tuple[int, int]) -> None:
    image, mask = random_picture(*size), torch.ones(size, dtype=torch.uint8)
    for seed in range(8):
        torch.manual_seed(seed)
        x, y = standard((24, 32))(image, mask)
        assert x.shape == (3, 24, 32)
        assert y.shape == (24, 32)
        rows, columns = (y == 1).any(1).nonzero().flatten(), (y == 1).any(0).nonzero().flatten()
        for lines, last in ((rows, 23), (columns, 31)):
            assert abs((last - lines[-1]) - lines[0]) <= 1, "centred"
        assert (y == 1).sum() == len(rows) * len(columns)
        assert (x[:, y == IGNORE] == 0).all()


@pytest.mark.parametrize("ignore_index", [255, 65535, -100])
@pytest.mark.parametrize("name", ["uint8", "uint16", "int16", "int32", "int64"])
def test_masks_of_every_integer_type(name: str, ignore_index: int) -> None:
    if not hasattr(torch, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    values = random_mask(40, 40).to(torch.int64) + (0 if name == "uint8" else 300)
    mask = torch.from_numpy(values.numpy().astype(name))
    torch.manual_seed(0)
    _, y = standard((64, 64), scale=(0.7, 0.7), ignore_index=ignore_index)(random_picture(40, 40), mask)
    assert y.dtype == (torch.uint8 if name == "uint8" and ignore_index == 255 else torch.int64)
    assert set(y.unique().tolist()) == {*values.unique().tolist(), ignore_index}


# --- colours ------------------------------------------------------------------------------------


def by_colorsys(pixel: list[int], turn: float = 0.0, factor: float = 1.0) -> list[float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(each / 255 for each in pixel))
    return [each * 255 for each in colorsys.hsv_to_rgb((hue + turn) % 1, min(saturation * factor, 1), value)]


def corner_colours() -> Tensor:
    """Grey, black, white and full colours, then random ones; (3, 1, n) of whole numbers."""
    corners = torch.cartesian_prod(*[torch.tensor([0, 1, 128, 254, 255])] * 3)
    return torch.cat([corners.float(), random_picture(1, 400).permute(1, 2, 0)[0].float()]).T[:, None]


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.93, 1.0, 1.5, 20.0])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    values = corner_colours()
    expected = torch.tensor([by_colorsys(pixel, factor=factor) for pixel in values[:, 0].T.tolist()]).T[:, None]
    assert (adjust_saturation(values, factor) - expected).abs().max() < 0.501


@pytest.mark.parametrize("steps", [-90, -18, -1, 0, 7, 17, 60, 179])
def test_hue_is_that_of_hsv(steps: int) -> None:
    values = corner_colours()
    expected = torch.tensor([by_colorsys(pixel, turn=steps / 180) for pixel in values[:, 0].T.tolist()]).T[:, None]
    assert (adjust_hue(values, steps) - expected).abs().max() < 0.501


def test_brightness_is_added_and_contrast_multiplied() -> None:
    values = torch.tensor([0.0, 10, 100, 250]).expand(3, 1, 4)
    assert adjust_brightness(values, 10.6)[0, 0].tolist() == [10, 20, 110, 255]
    assert adjust_brightness(values, -10.6)[0, 0].tolist() == [0, 0, 89, 239]
    assert adjust_contrast(values, 1.26)[0, 0].tolist() == [0, 12, 126, 255]


def test_colours_change_in_their_ranges_and_leave_the_mask() -> None:
    image, mask = torch.full((3, 4, 4), 100, dtype=torch.uint8), random_mask(4, 4)
    seen = set()
    for seed in range(300):
        torch.manual_seed(seed)
        result, same = PhotometricDistortion()(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert result.dtype == torch.uint8
        assert isinstance(result, tv_tensors.Image)
        assert torch.equal(same, mask)
        seen.add(int(result[0, 0, 0]))
    assert 34 <= min(seen) < 50
    assert 160 < max(seen) <= 198
    assert 100 in seen
    assert image.unique().tolist() == [100]


# --- together -----------------------------------------------------------------------------------


def test_a_users_v2_transforms_mix_in() -> None:
    image, mask = random_picture(50, 50), random_mask(50, 50)
    steps = [
        transforms.ToPair(),
        v2.RandomRotation(10, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}),
        RandomScaleCrop((32, 32), ignore_index=IGNORE),
        v2.RandomGrayscale(1.0),
        PhotometricDistortion(hue=0, saturation=(1, 1)),
        v2.ToDtype(torch.float32, scale=True),
        PadTo((32, 32), ignore_index=IGNORE),
    ]
    x, y = v2.Compose(steps)(image, mask)
    assert x.shape == (3, 32, 32)
    assert y.shape == (32, 32)
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(x[0], x[1]), "grey"


class Seeded(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self) -> None:
        self.step = standard((32, 40))

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(index)
        return self.step(random_picture(50, 60, index), random_mask(50, 60, seed=index))


def test_the_seed_decides_the_sample_whoever_makes_it() -> None:
    alone = [Seeded()[index] for index in reversed(range(6))][::-1]
    assert len({float(x.sum()) for x, _ in alone}) == 6
    for (x, y), (image, mask) in zip(alone, DataLoader(Seeded(), num_workers=2), strict=True):
        assert torch.equal(x, image[0])
        assert torch.equal(y, mask[0])


def test_the_input_stays_as_it_is() -> None:
    image, mask = random_picture(30, 30), random_mask(30, 30)
    before = image.clone(), mask.clone()
    for seed in range(10):
        torch.manual_seed(seed)
        standard((30, 30), scale=(1.0, 1.0))(image, mask)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


# --- one's own ------------------------------------------------------------------------------------


def own(transforms: Any) -> OwnTransforms:
    mean, std = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    return OwnTransforms(transforms, "mine", (8, 10), 3, mean=mean, std=std, ignore_index=255)


def test_what_ones_own_transforms_return_is_normalised_and_padded() -> None:
    image, mask = torch.randint(256, (3, 8, 6), dtype=torch.uint8), torch.randint(3, (8, 6), dtype=torch.int32)
    found, labels = own(lambda image, mask: (image, mask))(image, mask)
    mean, std = (torch.tensor(each)[:, None, None] for each in ([100.0, 110.0, 120.0], [50.0, 60.0, 70.0]))
    torch.testing.assert_close(found[:, :, 2:8], (image - mean) / std)
    assert (found.shape, found.dtype, labels.shape, labels.dtype) == ((3, 8, 10), torch.float32, (8, 10), torch.uint8)
    assert torch.equal(labels[:, 2:8], mask.to(torch.uint8))
    assert (found[:, :, :2] == 0).all()
    assert (labels[:, 8:] == 255).all()
    taken, _ = own(lambda image, mask: (image / 255, mask))(image, mask)
    torch.testing.assert_close(taken[:, :, 2:8], image / 255)


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        (lambda image, mask: image, "mine returned Tensor; expected two tensors"),
        (lambda image, mask: {"image": image}, "mine returned dict; expected two tensors"),
        (lambda image, mask: (image.numpy(), mask), "mine returned ndarray, Tensor; expected two tensors"),
        (
            lambda image, mask: (image[:, 1:], mask),
            "uint8 (3, 7, 6) and torch.uint8 (8, 6); expected an image (3, h, w)",
        ),
        (lambda image, mask: (image.repeat(1, 2, 2), mask.repeat(2, 2)), "of at most the crop_size, (8, 10)"),
        (lambda image, mask: (image, mask.float()), "torch.float32 (8, 6); expected an image"),
        (lambda image, mask: (image, mask.long() - 1), "a mask with class id -1; expected 0 to 2, or 255 (ignored)"),
        (lambda image, mask: (image, mask + 3), "a mask with class id 3; expected 0 to 2, or 255 (ignored)"),
    ],
)
def test_what_ones_own_transforms_must_not_return(transforms: Any, words: str) -> None:
    with pytest.raises(OptionError) as raised:
        own(transforms)(torch.zeros(3, 8, 6, dtype=torch.uint8), torch.zeros(8, 6, dtype=torch.uint8))
    assert words in str(raised.value)
