"""Swin Transformers: windows by hand, sizes, training, export. Published networks are held by `references/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo_seg
from zoo_seg.backbones.registry import find_backbone
from zoo_seg.backbones.swin import SwinTransformer, WindowAttention, Windows
from zoo_seg.errors import OptionError


def by_hand(attention: WindowAttention, x: Tensor, shift: int) -> Tensor:
    """Window after window, with the mask painted as in the paper's figure; (N, H, W, C)."""
    size, heads = attention.size, attention.heads
    height, width, channels = x.shape[1:]
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size)).roll((-shift, -shift), (1, 2))
    painted = torch.zeros(x.shape[1:3])
    parts = [slice(0, -size), slice(-size, -shift), slice(-shift, None)] if shift else [slice(None)]
    for number, (rows, columns) in enumerate((rows, columns) for rows in parts for columns in parts):
        painted[rows, columns] = number
    out = torch.empty_like(x)
    for top in range(0, x.shape[1], size):
        for left in range(0, x.shape[2], size):
            here = (slice(None), slice(top, top + size), slice(left, left + size))
            colours = painted[here[1:]].flatten()
            qkv = attention.qkv(x[here].flatten(1, 2))
            query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.split(channels, dim=2))
            scores = query @ key.transpose(2, 3) / (channels // heads) ** 0.5
            for i in range(size * size):
                for j in range(size * size):
                    down, right = i // size - j // size + size - 1, i % size - j % size + size - 1
                    scores[:, :, i, j] += attention.bias_table[down * (2 * size - 1) + right]
            scores = scores - 100 * (colours[:, None] != colours)
            mixed = (scores.softmax(3) @ value).transpose(1, 2).flatten(2)
            out[here] = attention.proj(mixed).unflatten(1, (size, size))
    return out.roll((shift, shift), (1, 2))[:, :height, :width]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("shape", [(1, 1), (4, 8), (9, 6), (3, 13)])
@torch.no_grad()
def test_windows_equal_those_by_hand(shape: tuple[int, int], shift: int) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(channels=8, heads=2, size=4)
    attention.bias_table.normal_()
    attention.qkv.bias.normal_()  # what padding is seen as
    x = torch.randn(2, *shape, 8)
    found = attention(x.flatten(1, 2), Windows.of(*shape, 4, shift, x)).view(x.shape)
    torch.testing.assert_close(found, by_hand(attention, x, shift), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 12])
@torch.inference_mode()
def test_maps_of_odd_sizes_are_rounded_up(size: int) -> None:
    backbone = SwinTransformer((1, 2, 1, 1), 1, size, in_chans=2).eval()
    for height, width in [(65, 33), (1, 1)]:
        maps = backbone(torch.randn(2, 2, height, width))
        sizes = [(2, 32 << i, -(-height // (4 << i)), -(-width // (4 << i))) for i in range(4)]
        assert [tuple(each.shape) for each in maps] == sizes
        assert all(each.isfinite().all() for each in maps)


@torch.inference_mode()
def test_levels_are_the_last_maps() -> None:
    whole = SwinTransformer((1, 2, 1, 1), 1).eval()
    maps = whole(torch.ones(1, 3, 40, 40))
    for levels in range(1, 5):
        part = SwinTransformer((1, 2, 1, 1), 1, levels=levels).eval()
        own = part.state_dict()
        assert not any(f"norm{index}.weight" in own for index in range(4 - levels))
        part.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in own})
        found = part(torch.ones(1, 3, 40, 40))
        assert all(torch.equal(a, b) for a, b in zip(found, maps[-levels:], strict=True))


def test_training_reaches_every_parameter_and_drops_branches() -> None:
    torch.manual_seed(0)
    backbone = SwinTransformer((1, 2, 1, 1), 1, drop_path_rate=0.5)
    x = torch.randn(2, 3, 40, 40)
    first, second = backbone(x)[-1], backbone(x)[-1]
    assert not torch.equal(first, second)
    torch.stack([(each * torch.randn_like(each)).sum() for each in backbone(x)]).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert backbone.layers[0].blocks[0].attn.bias_table.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 8}, "output stride is 8; expected 32"),
        ({"levels": 5}, "SwinTransformer has 1 to 4"),
        ({"pretrained": True}, "no ImageNet weights of 'swin_tiny'"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        find_backbone("swin_tiny").create(**options)


@pytest.mark.slow
def test_the_exported_network_is_the_same_at_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = zoo_seg.build_model("upernet", "swin_tiny", num_classes=3, channels=16).eval()
    del model.network.backbone.layers[2].blocks[2:]  # an export takes long
    zoo_seg.export(model, tmp_path / "network.onnx")
    loaded = zoo_seg.from_exported(tmp_path / "network.onnx")
    for size in [(75, 110), (128, 64), (33, 40)]:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert (loaded.predict(image).mask == model.predict(image).mask).mean() > 0.999
