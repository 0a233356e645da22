"""Class maps and averaged logits equal what the original projects' own test code gives.

Each fixture was made by `benchmarks/peers/make_protocol_fixtures.py` in an environment with mmseg or ssseg.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.reference import FIXTURES, fill, image_tensor, published_network

from zoo_seg.errors import OptionError
from zoo_seg.inference import Predictor, predict_logits
from zoo_seg.inference.augmented import windows
from zoo_seg.inference.protocol import check_test_options
from zoo_seg.manifest import Architecture, Preprocess, Resize
from zoo_seg.network import SegmentationNetwork, build_network

pytestmark = pytest.mark.slow

CASES = sorted(FIXTURES.glob("protocol_*.npz"))
MODELS = {"fpn_r50": "semanticfpn_resnet50", "pspnet_r50_d8": "pspnet_resnet50_os8"}
OPTIONS = ("mode", "crop", "stride", "scales", "flip")


@cache
def network(path: Path) -> SegmentationNetwork:
    """The network of a case (the same for all cases of a family)."""
    stored = np.load(path)
    meta = json.loads(str(stored["meta"]))
    tensors = {}
    for name, shape, *_ in json.loads(str(stored["keys"])):
        scale = meta["classifier_scale"] if name in meta.get("scaled_entries", []) else 1
        values = fill(name, tuple(shape), meta["seed"])
        tensors[name] = torch.from_numpy(values if scale == 1 else values * np.float32(scale))
    return published_network(MODELS.get(meta["family"], meta["family"]), tensors)


def first_of_its_kind(path: Path) -> Path:
    source, family = (json.loads(str(np.load(path)["meta"]))[name] for name in ("source", "family"))
    return next(each for each in CASES if each.stem.startswith(f"protocol_{source}_{family}"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem.removeprefix("protocol_"))
def test_equals_the_original_project(path: Path) -> None:
    stored = np.load(path)
    meta = json.loads(str(stored["meta"]))
    model = network(first_of_its_kind(path))
    options: dict[str, Any] = {name: meta[name] for name in OPTIONS}
    if "picture" not in stored:
        x: Any = torch.from_numpy(image_tensor(*meta["input_size"], meta["image_seed"]))
        mask = None
    else:
        width, height = meta["test_scale"]
        resize = Resize(height, width, meta.get("keep_ratio", True))
        predictor = predictor_of(model, meta["num_classes"], resize, meta["source"])
        mask = next(predictor.stream([stored["picture"]], test=check_test_options(**options))).mask
        x = predictor.inputs(stored["picture"], scales=meta["scales"])
    logits = predict_logits(model, x, output_size=meta["output_size"], protocol=meta["source"], **options)

    step = meta["subsample"]
    difference = np.abs(logits[0, :, ::step, ::step].numpy() - stored["logits"]).max() / meta["std"]
    assert difference < 5e-5
    assert (logits.argmax(1)[0].numpy() == stored["mask"]).mean() >= 0.999
    if mask is not None:
        assert (mask == stored["mask"]).mean() >= 0.999


def predictor_of(model: SegmentationNetwork, num_classes: int, resize: Resize, protocol: str) -> Predictor:
    return Predictor(
        model,
        classes=[f"class_{i}" for i in range(num_classes)],
        palette=[(0, 0, 0)] * num_classes,
        preprocess=Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), resize),
        protocol=protocol,
    )


@pytest.mark.parametrize(
    ("size", "crop", "stride", "expected"),
    [
        (97, 64, 48, [(0, 64), (33, 97)]),
        (64, 64, 48, [(0, 64)]),
        (10, 64, 48, [(0, 10)]),
        (112, 64, 48, [(0, 64), (48, 112)]),
        (113, 64, 48, [(0, 64), (48, 112), (49, 113)]),
    ],
)
def test_windows_are_shifted_inward(size: int, crop: int, stride: int, expected: list[tuple[int, int]]) -> None:
    assert windows(size, crop, stride) == expected


@pytest.fixture(scope="module")
def small() -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(Architecture("fcn", "resnet18", options={"channels": 8}), 4).eval()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "tile"}, "'tile'.*'whole', 'slide' or 'split'"),
        ({"mode": "slide"}, "needs crop"),
        ({"mode": "slide", "crop": (32, 32), "stride": (40, 32)}, r"stride \(40, 32\) is larger than crop \(32, 32\)"),
        ({"mode": "slide", "crop": (0, 32), "stride": (1, 1)}, r"crop is \(0, 32\)"),
        ({"mode": "slide", "crop": (32,), "stride": (16, 16)}, r"crop is \(32,\).*\(height, width\)"),
        ({"mode": "slide", "crop": (32, 32), "stride": (0, 16)}, r"stride is \(0, 16\)"),
        ({"crop": (32, 32)}, "belong to mode='slide'"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"scales": (float("nan"),)}, "scales"),
        ({"protocol": "pascal"}, "known are ssseg, mmseg"),
    ],
)
def test_wrong_options(small: SegmentationNetwork, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        predict_logits(small, torch.zeros(1, 3, 64, 64), output_size=(64, 64), **options)


@pytest.mark.parametrize("x", [torch.zeros(3, 64, 64), torch.zeros(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_wrong_inputs(small: SegmentationNetwork, x: torch.Tensor) -> None:
    with pytest.raises(OptionError, match=r"expected a normalised float \(N, 3, H, W\)"):
        predict_logits(small, x, output_size=(8, 8))


def test_nan_is_refused(small: SegmentationNetwork) -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[0, 1, 2, 3] = float("nan")
    with pytest.raises(OptionError, match="x holds 1 values that are NaN or infinite"):
        predict_logits(small, x, output_size=(8, 8))


def test_other_channels_are_refused(small: SegmentationNetwork) -> None:
    with pytest.raises(OptionError, match="x has 4 channels; expected 3"):
        predict_logits(small, torch.zeros(1, 4, 8, 8), output_size=(8, 8))


def test_a_stride_left_out_is_two_thirds_of_the_crop(small: SegmentationNetwork) -> None:
    x = torch.from_numpy(image_tensor(70, 90, 1))
    options: dict[str, Any] = {"output_size": (70, 90), "mode": "slide", "crop": (48, 33)}
    assert torch.equal(predict_logits(small, x, **options), predict_logits(small, x, stride=(32, 22), **options))
