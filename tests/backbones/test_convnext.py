"""ConvNeXt: sizes, training, export. Published networks are held by `references/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import zoo_seg
from zoo_seg.backbones.convnext import ConvNeXt
from zoo_seg.backbones.registry import find_backbone, list_backbones
from zoo_seg.errors import OptionError


def test_no_name_is_one_of_timms() -> None:
    ours = [name for name in list_backbones() if name.startswith(("convnext", "swin"))]
    assert len(ours) == 11
    assert not set(ours) & set(timm.list_models())


@torch.inference_mode()
def test_the_stages_are_timms() -> None:
    """The norms of the maps are ours alone."""
    theirs = timm.create_model("convnext_atto", features_only=True, ls_init_value=1.0).eval()
    ours = ConvNeXt((2, 2, 6, 2), 40).eval()
    with torch.no_grad():
        for mine, other in zip(
            (each for name, each in ours.named_parameters() if not name.startswith("norm")),
            _ordered(theirs),
            strict=True,
        ):
            mine.copy_(other.view(mine.shape))
    x = torch.randn(2, 3, 70, 101)
    for found, expected in zip(ours(x), theirs(x), strict=True):
        normed = torch.nn.functional.layer_norm(expected.permute(0, 2, 3, 1), expected.shape[1:2], eps=1e-6)
        torch.testing.assert_close(found, normed.permute(0, 3, 1, 2), rtol=1e-3, atol=1e-4)


def _ordered(theirs: torch.nn.Module) -> list[torch.Tensor]:
    """timm's parameters in the order of ours: the ways down, then the stages."""
    named = dict(theirs.named_parameters())
    down = [name for name in named if name.startswith("stem") or "downsample" in name]
    blocks = [name for name in named if name not in down]
    order = ("gamma", "conv_dw.weight", "conv_dw.bias", "norm.weight", "norm.bias", "fc1", "fc2")

    def place(name: str) -> tuple[str, int]:
        block = name.split(".blocks.")[0] + name.split(".blocks.")[1].split(".")[0].zfill(2)
        return block, next(i for i, part in enumerate(order) if part in name)

    return [named[name] for name in (*down, *sorted(blocks, key=place))]


@torch.inference_mode()
def test_maps_are_rounded_down_and_small_images_padded() -> None:
    backbone = ConvNeXt((1, 1, 1, 1), 8, in_chans=2).eval()
    for height, width in [(95, 70), (32, 32), (31, 9), (1, 1)]:
        maps = backbone(torch.randn(2, 2, height, width))
        sizes = [(2, 8 << i, max(height // (4 << i), 1), max(width // (4 << i), 1)) for i in range(4)]
        assert [tuple(each.shape) for each in maps] == sizes
        assert all(each.isfinite().all() for each in maps)


def test_training_reaches_every_parameter_and_drops_branches() -> None:
    torch.manual_seed(0)
    backbone = ConvNeXt((1, 2, 1, 1), 8, drop_path_rate=0.5, levels=2)
    x = torch.randn(2, 3, 40, 40)
    assert not torch.equal(backbone(x)[-1], backbone(x)[-1])
    torch.stack([(each * torch.randn_like(each)).sum() for each in backbone(x)]).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_options_that_are_not_allowed() -> None:
    with pytest.raises(OptionError, match="output stride is 8; expected 32"):
        find_backbone("convnext_tiny_seg").create(output_stride=8)
    with pytest.raises(OptionError, match="no ImageNet weights of 'convnext_tiny_seg'"):
        find_backbone("convnext_tiny_seg").create(pretrained=True)


@pytest.mark.slow
def test_the_exported_network_is_the_same_at_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = zoo_seg.build_model("upernet", "convnext_tiny_seg", num_classes=3, channels=16).eval()
    for stage in model.network.backbone.layers:
        del stage[1:]
    zoo_seg.export(model, tmp_path / "network.onnx")
    loaded = zoo_seg.from_exported(tmp_path / "network.onnx")
    for size in [(75, 110), (128, 64), (33, 40)]:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert (loaded.predict(image).mask == model.predict(image).mask).mean() > 0.999
