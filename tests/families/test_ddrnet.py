"""DDRNet: any size, and what goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.onnx import check_onnx

import zoo_seg
from zoo_seg import SegmentationModel
from zoo_seg.errors import OptionError


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return zoo_seg.build_model("ddrnet", "ddrnet_23_slim", num_classes=5).eval()


@torch.inference_mode()
def test_any_size(model: SegmentationModel) -> None:
    for size in [(113, 75), (9, 40), (1, 1)]:
        logits = model(torch.randn(1, 3, *size))
        assert logits.shape == (1, 5, *size)
        assert logits.isfinite().all()


def test_training_reaches_every_parameter() -> None:
    network = zoo_seg.build_model("ddrnet", "ddrnet_23_slim", num_classes=3).network
    outputs = network.forward_train(torch.randn(2, 3, 64, 64))
    assert [tuple(each.shape) for each in outputs] == [(2, 3, 8, 8), (2, 3, 8, 8)]
    torch.stack([(each * torch.randn_like(each)).sum() for each in outputs]).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_a_saved_network_comes_back(model: SegmentationModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        x = torch.randn(1, 3, 72, 56)
        assert torch.equal(zoo_seg.from_pretrained(tmp_path).eval()(x), model(x))


def test_the_trunk_and_the_family_belong_together() -> None:
    with pytest.raises(OptionError, match="ddrnet stands on ddrnet_23_slim or"):
        zoo_seg.build_model("ddrnet", "resnet18", 3)
    with pytest.raises(OptionError, match="output_stride is 16"):
        zoo_seg.build_model("ddrnet", "ddrnet_23", 3, output_stride=16)
    with pytest.raises(OptionError, match="no ImageNet weights"):
        zoo_seg.build_model("ddrnet", "ddrnet_23", 3, backbone_pretrained=True)


@pytest.mark.slow
def test_onnx_of_any_size(model: SegmentationModel, tmp_path: Path) -> None:
    check_onnx(model, tmp_path, (1, 3, 64, 96), (2, 3, 75, 50))
