"""Saved is what is loaded: parameters, buffers and class maps, for every family, many backbones and all options."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import zoo_seg
from zoo_seg.errors import OptionError
from zoo_seg.families.registry import find_family, list_families

FEW = ["resnet18", "swin_tiny_patch4_window7_224", "tiny_vit_5m_224", "convnext_atto"]
MORE = [
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "mobilenetv3_small_050",
    "mobilenetv3_large",
    "mobilenetv4_conv_small",
    "efficientnet_lite0",
    "convnextv2_atto",
    "pvt_v2_b0",
    "poolformer_s12",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "repvgg_a0",
    "regnetx_002",
    "densenet121",
    "dla34",
    "hrnet_w18_small",
    "seresnext26d_32x4d",
    "ghostnet_050",
    "fastvit_t8",
    "vgg11_bn",
    "resnetv2_50",
    "resnest14d",
    "focalnet_tiny_srf",
    "davit_tiny",
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "fcn": [{"num_convs": 1, "level": -2}, {"concat_input": True, "aux_channels": 4}, {"dilation": 2}],
    "pspnet": [{"aux_channels": 4}],
    "deeplabv3": [{"refine": True}],
    "semanticfpn": [{"neck": "conv"}],
}
ANY = [family for family in list_families() if find_family(family).backbones is None]


def saved_and_loaded(family: str, backbone: str, folder: Path, **options: Any) -> None:
    torch.manual_seed(0)
    if "channels" in {field.name for field in fields(find_family(family).options)}:
        options = {"channels": 8, **options}
    model = zoo_seg.build_model(family, backbone, num_classes=3, **options).eval()
    for name, tensor in model.state_dict().items():  # statistics that are not those of a new network
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    again = zoo_seg.from_pretrained(folder)

    for kind in ("named_parameters", "named_buffers"):
        here, there = (dict(getattr(each, kind)()) for each in (model, again))
        assert here.keys() == there.keys()
        for name, tensor in here.items():
            assert tensor.dtype == there[name].dtype, name
            assert torch.equal(tensor, there[name]), name
    x = torch.randn(1, 3, 70, 90)
    with torch.inference_mode():
        expected = model(x)
        assert (again(x) - expected).abs().max() <= 1e-6 * expected.std()
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    assert np.array_equal(again.predict(image).mask, model.predict(image).mask)
    assert again.info.architecture == model.info.architecture


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FEW)
def test_a_network_comes_back_bit_for_bit(backbone: str, tmp_path: Path) -> None:
    saved_and_loaded("semanticfpn", backbone, tmp_path)


def matrix() -> Iterator[Any]:
    """Every backbone with one family in turn; with all of them by `-m reference`."""
    for number, backbone in enumerate(FEW + MORE):
        for place, family in enumerate(ANY):
            marks = [pytest.mark.slow] if place == number % len(ANY) else [pytest.mark.slow, pytest.mark.reference]
            yield pytest.param(family, backbone, marks=marks, id=f"{family}-{backbone}")


@pytest.mark.parametrize(("family", "backbone"), list(matrix()))
def test_every_family_on_every_kind_of_backbone_comes_back(family: str, backbone: str, tmp_path: Path) -> None:
    saved_and_loaded(family, backbone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"), [(family, options) for family in OPTIONS for options in OPTIONS[family]], ids=str
)
def test_every_option_comes_back(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    saved_and_loaded(family, "resnet18", tmp_path, **options)
    stored = json.loads((tmp_path / "config.json").read_text())["architecture"]["options"]
    assert options.items() <= stored.items()
    assert stored.keys() == {field.name for field in fields(find_family(family).options)}, "stored whole"


# --- what cannot be rebuilt is refused ------------------------------------------------------------


class LowRank(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def replaced_activation(model: zoo_seg.SegmentationModel) -> None:
    model.head.convs[0].act = nn.GELU()


def another_convolution(model: zoo_seg.SegmentationModel) -> None:
    old = model.head.convs[0].conv
    model.head.convs[0].conv = LowRank(old.in_channels, old.out_channels, 3, padding=1, bias=False)


def another_width(model: zoo_seg.SegmentationModel) -> None:
    model.head.classifier = nn.Conv2d(8, 5, 1)


def another_eps(model: zoo_seg.SegmentationModel) -> None:
    model.head.convs[0].norm.eps = 0.1


def parametrised(model: zoo_seg.SegmentationModel) -> None:
    parametrizations.weight_norm(model.head.convs[0].conv)


def patched(model: zoo_seg.SegmentationModel) -> None:
    model.head.classifier.forward = lambda x: x[:, :3]


@pytest.mark.parametrize(
    "change", [replaced_activation, another_convolution, another_width, another_eps, parametrised, patched]
)
def test_a_changed_network_is_refused_before_anything_is_written(
    change: Callable[[zoo_seg.SegmentationModel], None], tmp_path: Path
) -> None:
    model = zoo_seg.build_model("fcn", "resnet18", num_classes=3, channels=8)
    change(model)
    with pytest.raises(OptionError, match=r"head\.(convs\.0|classifier).*after loading"):
        model.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_buffer_that_is_not_saved_must_be_as_it_was_built(tmp_path: Path) -> None:
    model = zoo_seg.build_model("fcn", "swin_tiny_patch4_window7_224", num_classes=3, channels=8)
    (name, buffer), *_ = ((n, b) for n, b in model.network.named_buffers() if n not in model.network.state_dict())
    buffer.add_(1)
    with pytest.raises(OptionError, match=rf"{name} is not saved"):
        model.save_pretrained(tmp_path / "net")


# --- what is claimed is true of what is saved -----------------------------------------------------


def assigned(model: zoo_seg.SegmentationModel) -> None:
    model.load_state_dict({name: 2 * tensor for name, tensor in model.state_dict().items()}, assign=True)


def through_data(model: zoo_seg.SegmentationModel) -> None:
    next(model.parameters()).data.mul_(1.5)


def fused_step(model: zoo_seg.SegmentationModel) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(1, 3, 64, 64)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("change", [assigned, through_data, fused_step])
def test_nothing_published_is_claimed_of_changed_weights(
    change: Callable[[zoo_seg.SegmentationModel], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = zoo_seg.semanticfpn_mobilenetv4_small(pretrained="camvid")
    model.save_pretrained(tmp_path / "same")
    same = json.loads((tmp_path / "same" / "config.json").read_text())
    assert same["weights"] == "semanticfpn_mobilenetv4_small.camvid_zoo"
    assert same["metrics"]
    assert not caplog.messages

    change(model)
    model.save_pretrained(tmp_path / "changed")
    config = json.loads((tmp_path / "changed" / "config.json").read_text())
    assert (config["weights"], config["metrics"], config["provenance"]) == (None, [], None)
    assert config["started_from"] == same["started_from"]
    assert "left out" in caplog.text
    assert zoo_seg.from_pretrained(tmp_path / "changed").weights is None


def test_a_loaded_folder_keeps_its_claims_as_long_as_they_hold(tmp_path: Path) -> None:
    zoo_seg.semanticfpn_mobilenetv4_small(pretrained="camvid").save_pretrained(tmp_path / "a")
    again = zoo_seg.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()
    assert again.weights is not None
    assert again.metrics
