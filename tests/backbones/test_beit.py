"""BEiT: sizes, options, training, export. What it computes is held by transformers' own, see tests/transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.drawn import draw_folder
from helpers.registries import open_registry
from torch import nn

import zoo_seg
from zoo_seg.backbones.beit import BEiT, PositionBias, register_beit, ways_between
from zoo_seg.backbones.registry import find_backbone
from zoo_seg.errors import OptionError
from zoo_seg.factory import new_model
from zoo_seg.families.registry import find_family, list_families
from zoo_seg.manifest import Architecture

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    open_registry(monkeypatch)
    register_beit("beit_tiny", 32, 2, 6, (1, 2, 3, 4))


def small(**options: Any) -> BEiT:
    return BEiT(16, 2, (1, 2, 3, 4), image_size=64, **options)


@torch.inference_mode()
def test_maps_are_rounded_down_and_small_images_padded() -> None:
    backbone = small(in_chans=2).eval()
    for height, width in [(95, 70), (64, 64), (32, 33), (31, 9), (1, 1)]:
        maps = backbone(torch.randn(2, 2, height, width))
        places = [max(side, 32) // 16 for side in (height, width)]
        expected = [(2, 16, *(int(side * factor) for side in places)) for factor in (4, 2, 1, 0.5)]
        assert [tuple(each.shape) for each in maps] == expected
        assert all(each.isfinite().all() for each in maps)


@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (4, 2)])
def test_ways_are_those_of_the_table(sides: tuple[int, int]) -> None:
    """Counted one by one."""
    height, width = sides
    ways = ways_between(height, width, torch.zeros(1))
    places = [None, *((y, x) for y in range(height) for x in range(width))]
    count = (2 * height - 1) * (2 * width - 1)
    for i, here in enumerate(places):
        for j, there in enumerate(places):
            if here is None:
                expected = count + 2 if there is None else count
            elif there is None:
                expected = count + 1
            else:
                down, right = here[0] - there[0] + height - 1, here[1] - there[1] + width - 1
                expected = down * (2 * width - 1) + right
            assert ways[i, j] == expected


@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (6, 4)])
def test_both_ways_to_read_a_table_are_the_same(sides: tuple[int, int]) -> None:
    bias = PositionBias(3, 4)
    nn.init.normal_(bias.table)
    assert torch.equal(bias(*sides, None), bias(*sides, ways_between(*sides, bias.table)))


def test_maps_are_the_same_with_gradients() -> None:
    backbone = small().eval()
    for bias in backbone.biases:
        nn.init.normal_(bias.table)
    x = torch.randn(1, 3, 96, 50)
    with torch.no_grad():
        expected = backbone(x)
    for found, each in zip(backbone(x), expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_training_reaches_every_parameter_and_drops_branches(shared: bool) -> None:
    torch.manual_seed(0)
    backbone = small(drop_path_rate=0.5, shared_bias=shared)
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(backbone(x)[-1], backbone(x)[-1])
    torch.stack([(each * torch.randn_like(each)).sum() for each in backbone(x)]).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_levels_are_the_last_maps() -> None:
    for levels in (1, 2, 3, 4):
        backbone = small(levels=levels)
        maps = backbone(torch.randn(1, 3, 64, 64))
        assert backbone.strides == (4, 8, 16, 32)[-levels:] == tuple(64 // each.shape[-1] for each in maps)
        assert backbone.channels == (16,) * levels
        maps[-1].sum().backward()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output_stride": 8}, "output stride is 8; expected 32"),
        ({"pretrained": True}, "no ImageNet weights of 'beit_base'"),
        ({"blocks": [1, 2, 3]}, r"blocks is \[1, 2, 3\]; expected four rising numbers"),
        ({"blocks": [4, 3, 2, 1]}, "four rising numbers"),
        ({"levels": 5}, "5 feature maps are asked for"),
        ({"image_size": 15}, "image_size is 15; expected at least 16"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        find_backbone("beit_base").create(**options)


def network(**options: Any) -> zoo_seg.SegmentationModel:
    architecture = Architecture("upernet", "beit_tiny", options={"channels": 8}, backbone_options=options)
    return new_model(architecture, 3)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("family", [name for name in list_families() if find_family(name).backbones is None])
@torch.inference_mode()
def test_every_family_stands_on_it(family: str) -> None:
    model = zoo_seg.build_model(family, "beit_tiny", num_classes=5, channels=16).eval()
    for size in [(97, 130), (33, 47), (1, 1)]:
        logits = model(torch.randn(1, 3, *size))
        assert logits.shape == (1, 5, *size)
        assert logits.isfinite().all()


@pytest.mark.usefixtures("tiny")
def test_it_is_saved_and_loaded_with_its_options(tmp_path: Path) -> None:
    options = {"blocks": [0, 2, 3, 5], "image_size": 96, "shared_bias": True}
    model = network(**options).eval()
    model.save_pretrained(tmp_path)
    again = zoo_seg.from_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["architecture"]
    assert stored["backbone_options"] == options
    x = torch.randn(1, 3, 70, 90)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_it_is_fine_tuned(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", train=4, val=2)
    network(image_size=64).save_pretrained(tmp_path / "start")
    options = {"epochs": 1, "batch_size": 2, "crop_size": (64, 64), "workers": 0, "device": "cpu"}
    tuned = zoo_seg.finetune(tmp_path / "data", weights=tmp_path / "start", out=tmp_path / "run", **options)
    again = zoo_seg.from_pretrained(tmp_path / "run")
    assert again.architecture == tuned.architecture
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(again.predict(image).mask, tuned.predict(image).mask)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["network.onnx", "network.pt2"])
def test_the_exported_network_is_the_same_at_any_size(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = network(image_size=96).eval()
    zoo_seg.export(model, tmp_path / name)
    loaded = zoo_seg.from_exported(tmp_path / name)
    for size in [(75, 110), (128, 64), (96, 96)]:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert (loaded.predict(image).mask == model.predict(image).mask).mean() > 0.999
