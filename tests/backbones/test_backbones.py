"""The backbones that are written here compute what timm's and mmsegmentation's own code computes."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import reference
from timm.models import adapt_input_conv as timm_adapt_input_conv
from torch import Tensor, nn

import zoo_seg
from zoo_seg.backbones.registry import find_backbone
from zoo_seg.backbones.staged import StagedBackbone
from zoo_seg.checkpoints.restore import adapt_first_conv
from zoo_seg.errors import OptionError
from zoo_seg.families.registry import list_families
from zoo_seg.manifest import load_manifest


def create(name: str, **options: Any) -> StagedBackbone:
    backbone = find_backbone(name).create(**options)
    assert isinstance(backbone, StagedBackbone)
    return backbone


def filled(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and statistics that leave nothing at zero or one."""
    return {
        name: torch.from_numpy(reference.fill(name, tuple(tensor.shape)))
        for name, tensor in module.state_dict().items()
    }


@cache
def names_of(backbone: str) -> list[str]:
    return list(create(backbone).state_dict())


def image(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.from_numpy(reference.image_tensor(height, width, batch=batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("resnet18", 8),
        ("resnet18d", 16),
        ("resnet34", 32),
        ("resnet50", 16),
        ("resnet50c", 8),
        ("resnet50c", 16),
        ("resnet50c", 32),
        ("resnet50d", 8),
        ("resnet101c", 8),
        ("resnet101d", 32),
        ("mobilenetv4_conv_small", 8),
        ("mobilenetv4_conv_small", 32),
    ],
)
def test_same_as_timm_to_the_bit(name: str, output_stride: int) -> None:
    theirs = timm.create_model(name, features_only=True, output_stride=output_stride)
    ours = create(name, output_stride=output_stride)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    weights = filled(theirs)
    theirs.load_state_dict(weights)
    ours.load_state_dict(weights)
    assert ours.channels == tuple(theirs.feature_info.channels())
    assert ours.strides == tuple(theirs.feature_info.reduction())
    x = image(49, 70, batch=2)
    for training in (False, True):
        theirs.train(training)
        ours.train(training)
        with torch.no_grad():
            expected, found = theirs(x), ours(x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    statistics = theirs.state_dict()
    assert all(torch.equal(value, statistics[key]) for key, value in ours.state_dict().items())


def test_random_weights_are_drawn_as_timm_does() -> None:
    for name in ("resnet18", "mobilenetv4_conv_small"):
        theirs = timm.create_model(name, features_only=True).state_dict()
        for key, value in create(name).state_dict().items():
            if value.ndim == 4 and value.numel() > 50_000:
                torch.testing.assert_close(value.std(), theirs[key].std(), rtol=0.02, atol=0)
            elif value.ndim < 4:
                assert torch.equal(value, theirs[key])


MMSEG: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18_os8": ("resnet18", {"output_stride": 8, "dilation_style": "mmseg"}),
    "resnet18c_os8": ("resnet18c", {"output_stride": 8, "dilation_style": "mmseg"}),
    "resnet18c_os32": ("resnet18c", {"output_stride": 32}),
    "resnet50c_os8": ("resnet50c", {"output_stride": 8}),
    "resnet50_os16": ("resnet50", {"output_stride": 16}),
    "resnet50c_os16_mg124": ("resnet50c", {"output_stride": 16, "multi_grid": [1, 2, 4]}),
    "resnet50c_d32_dilated": ("resnet50c", {"dilations": [1, 1, 2, 4]}),
    "resnet50d_os8": ("resnet50d", {"output_stride": 8, "dilation_style": "mmseg"}),
}


@pytest.mark.parametrize("case", MMSEG)
def test_same_as_mmseg(case: str) -> None:
    """`resnet_mmseg.npz` is what mmsegmentation 1.2.2's ResNet gave, every 64th channel of its last map."""
    name, options = MMSEG[case]
    backbone = create(name, levels=1, **options).eval()
    key_map = find_backbone(name).key_maps["mmseg"]
    theirs = {key: key_map.original(key) for key in backbone.state_dict()}
    backbone.load_state_dict(
        {
            key: torch.from_numpy(reference.fill(theirs[key] or "", tuple(tensor.shape)))
            for key, tensor in backbone.state_dict().items()
        }
    )
    with torch.no_grad():
        found = backbone(image(97, 66))[0][0, ::64].numpy()
    with np.load(reference.FIXTURES / "resnet_mmseg.npz") as expected:
        np.testing.assert_allclose(found, expected[case], rtol=1e-5, atol=1e-5 * float(expected[case].std()))


@pytest.mark.parametrize(("height", "width"), [(33, 65), (64, 47), (1, 1)])
@pytest.mark.parametrize(
    ("name", "output_stride"), [("resnet18c", None), ("resnet18", 8), ("resnet50d", 16), ("mit_b0", None)]
)
def test_maps_of_odd_sizes_are_rounded_up(name: str, output_stride: int | None, height: int, width: int) -> None:
    backbone = create(name, output_stride=output_stride).eval()
    with torch.no_grad():
        maps = backbone(image(height, width))
    for each, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert each.shape == (1, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("name", ["resnet18c", "mobilenetv4_conv_small"])
def test_levels_are_the_last_maps(name: str) -> None:
    whole = create(name).eval()
    with torch.no_grad():
        maps = whole(image(64, 64))
        for levels in range(1, 6):
            part = create(name, levels=levels).eval()
            part.load_state_dict(whole.state_dict())
            assert (part.channels, part.strides) == (whole.channels[-levels:], whole.strides[-levels:])
            assert len(part.stages()) == levels
            assert all(torch.equal(a, b) for a, b in zip(part(image(64, 64)), maps[-levels:], strict=True))


def test_hooks_on_a_stage_are_called() -> None:
    backbone, called = create("resnet18").eval(), []
    backbone.get_submodule("layer3").register_forward_hook(lambda *_: called.append("layer3"))
    backbone(torch.zeros(1, 3, 32, 32))
    assert called == ["layer3"]


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 7])
def test_other_channels_as_timm(in_chans: int) -> None:
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    if in_chans != 3:  # who needs none, does not ask
        assert torch.equal(adapt_first_conv(weight, in_chans), timm_adapt_input_conv(in_chans, weight.clone()))
    maps = create("resnet18c", in_chans=in_chans, levels=1)(torch.zeros(2, in_chans, 32, 32))
    assert maps[0].shape == (2, 512, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "output stride is 4; expected 8, 16 or 32"),
        ({"levels": 6}, "6 feature maps are asked for; ResNet has 1 to 5"),
        ({"levels": 0}, "0 feature maps"),
        ({"dilations": [1, 2]}, r"dilations is \[1, 2\]; expected 4 positive integers"),
        ({"dilations": "1124"}, "dilations is '1124'"),
        ({"multi_grid": [1, 2, 4]}, "expected 2 positive integers, one for each block of the last stage"),
        ({"multi_grid": [0, 1]}, "multi_grid is"),
        ({"dilation_style": "paper"}, "dilation_style is 'paper'; expected one of"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create("resnet18", **options)


@pytest.mark.parametrize(("group", "name"), reference.key_lists())
def test_published_names_and_ours_are_the_same_ones(group: reference.Group, name: str) -> None:
    depth = 101 if "101" in name else 50
    prefix, project = ("backbone.", "mmseg") if group == "mmseg" else ("backbone_net.", "ssseg")
    key_map = find_backbone(f"resnet{depth}c").key_maps[project]
    theirs = [key.removeprefix(prefix) for key, _ in reference.keys(group, name) if key.startswith(prefix)]
    ours = [key_map.rename(key) for key in theirs]
    assert sorted(map(str, ours)) == sorted(names_of(f"resnet{depth}c"))
    assert [key_map.original(str(key)) for key in ours] == theirs


def test_a_plain_stem_is_no_deep_one() -> None:
    plain, deep = (find_backbone(name).key_maps["mmseg"] for name in ("resnet50", "resnet50c"))
    assert plain.rename("conv1.weight") == "conv1.weight"
    assert not deep.has("conv1.weight")
    assert not plain.has("stem.0.weight")


def test_imagenet_weights_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    original, fetched = timm.create_model, []

    def create_model(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        assert pretrained  # there is no network here
        fetched.append(original(name, **options))
        return fetched[-1]

    monkeypatch.setattr(timm, "create_model", create_model)
    for name in ("resnet18", "mobilenetv4_conv_small"):
        ours = find_backbone(name).create(in_chans=4, levels=2, pretrained=True).state_dict()
        assert all(torch.equal(value, ours[key]) for key, value in fetched[-1].state_dict().items())
    with pytest.raises(OptionError, match="no ImageNet weights of 'resnet18c'"):
        find_backbone("resnet18c").create(levels=2, pretrained=True)


@pytest.mark.slow
def test_timm_and_torchvision_are_not_imported() -> None:
    script = """
import sys, torch
from zoo_seg.backbones.registry import find_backbone
import zoo_seg.training.syncnorm
for name in ("resnet18c", "mobilenetv4_conv_small"):
    find_backbone(name).create(levels=4)
print({"timm", "torchvision"} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.parametrize("family", list_families())
def test_a_network_without_weights_needs_no_compiler(family: str) -> None:
    """Filling tensors of the meta device made torch import its compiler and sympy: seconds, and 100 MiB."""
    name = next(name for name, model in load_manifest().models.items() if model.architecture.family == family)
    script = f"""
import sys
from zoo_seg.manifest import get_architecture
from zoo_seg.network import build_network, without_weights
with without_weights():
    network = build_network(get_architecture({name!r})[1], 5)
assert all(parameter.is_meta for parameter in network.parameters())
print({{"sympy", "torch._dynamo", "torch._inductor"}} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_packaged_network_computes_what_it_did_on_timm() -> None:
    ours = zoo_seg.create_model("semanticfpn_mobilenetv4_small", "camvid")
    x = image(96, 128)
    with torch.no_grad():
        features = ours.forward_features(x)
        theirs = timm.create_model("mobilenetv4_conv_small", features_only=True, out_indices=(1, 2, 3, 4)).eval()
        theirs.load_state_dict(ours.network.backbone.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(features, theirs(x), strict=True))
