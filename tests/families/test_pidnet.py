"""PIDNet: the original's logits, any size, and training with its boundary branch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.drawn import draw_folder
from helpers.reference import image_tensor, published_reference

import zoo_seg
from zoo_seg import SegmentationModel
from zoo_seg.errors import OptionError
from zoo_seg.families.pidnet import boundaries
from zoo_seg.families.registry import find_family
from zoo_seg.images.preprocess import normalise
from zoo_seg.layers.losses import SegmentationLoss, pixel_losses
from zoo_seg.manifest import get_architecture
from zoo_seg.network import build_network
from zoo_seg.pretrained import from_tensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return zoo_seg.create_model("pidnet_small", num_classes=5).eval()


@pytest.mark.parametrize("name", ["pidnet_small", "pidnet_medium", "pidnet_large"])
@torch.inference_mode()
def test_logits_equal_the_original_code(name: str) -> None:
    published = published_reference(f"{name}.mmseg")
    network = from_tensors(Path("checkpoint.pth"), published.state_dict(), get_architecture(name)[1]).build().eval()
    for run in published.runs:
        assert run.error(network(run.image())) < published.tolerance
    assert sum(each.numel() for each in network.parameters()) == published.meta["parameters"]


@torch.inference_mode()
def test_any_size(model: SegmentationModel) -> None:
    for size in [(113, 75), (9, 40), (1, 1)]:
        logits = model(torch.randn(1, 3, *size))
        assert logits.shape == (1, 5, *size)
        assert logits.isfinite().all()


@torch.inference_mode()
def test_predict_is_the_argmax_and_a_saved_network_comes_back(model: SegmentationModel, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    expected = model(normalise(image, model.preprocess.mean, model.preprocess.std)).argmax(1)[0].numpy()
    assert (model.predict(image).mask == expected).mean() > 0.999
    model.save_pretrained(tmp_path)
    again = zoo_seg.from_pretrained(tmp_path)
    assert again.architecture == model.architecture
    assert again.architecture
    assert again.architecture.align_corners
    x = torch.from_numpy(image_tensor(72, 56))
    assert torch.equal(again(x), model(x))


def test_the_trunk_and_the_family_belong_together() -> None:
    with pytest.raises(OptionError, match="pidnet stands on pidnet_small or"):
        zoo_seg.build_model("pidnet", "resnet18", 3)
    with pytest.raises(OptionError, match="output_stride is 16"):
        zoo_seg.build_model("pidnet", "pidnet_small", 3, output_stride=16)
    with pytest.raises(OptionError, match="no ImageNet weights"):
        zoo_seg.build_model("pidnet", "pidnet_small", 3, backbone_pretrained=True)


def test_the_boundary_head_is_no_classifier() -> None:
    family = find_family("pidnet")
    assert family.is_classifier("aux_heads.0.classifier.weight")
    assert family.is_classifier("head.classifier.bias")
    assert not family.is_classifier("aux_heads.1.classifier.weight")


# --- training -----------------------------------------------------------------------------------


def test_boundaries_are_two_pixels_wide_on_each_side() -> None:
    labels = torch.zeros(1, 9, 12, dtype=torch.uint8)
    labels[..., 6:] = 3
    labels[:, :3] = 255  # ignored: no class, and no border to one
    found = boundaries(labels, 255)[0]
    assert found[3:].all(0).tolist() == [4 <= column < 8 for column in range(12)]
    assert not found[0].any()
    assert not boundaries(torch.full((1, 4, 4), 255), 255).any()


def test_the_boundary_branch_is_trained() -> None:
    torch.manual_seed(0)
    _, architecture = get_architecture("pidnet_small")
    network = build_network(architecture, 3).train()
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[:, 20:44, 20:44] = 1
    labels[:, :5] = 255
    pixel = SegmentationLoss(ignore_index=255, align_corners=True)
    outputs = network.forward_train(torch.randn(2, 3, 64, 64))
    terms = find_family("pidnet").loss(outputs, labels, pixel, 0.4)
    assert [float(each.weight) for each in terms[:3]] == [2 * 59 * 64, 2 * 59 * 64, 2 * 64 * 64]
    sum(each.total / each.weight.clamp(min=1) for each in terms).backward()
    assert network.aux_heads[1].classifier.weight.grad.abs().sum() > 0
    nothing = find_family("pidnet").loss(outputs, torch.full_like(labels, 255), pixel, 0.4)
    assert all(each.total.item() == 0 for each in nothing)
    alone = find_family("pidnet").loss(outputs[:1], labels, pixel, 0.0)
    assert [each.total for each in alone] == [each.total for each in pixel_losses(outputs[:1], labels, pixel, 0.0)]


def test_fine_tuning_lowers_the_loss(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "shapes", train=4, val=1)
    options = {"crop_size": (48, 64), "workers": 0, "device": "cpu", "progress": False, "optimizer": "adamw"}
    zoo_seg.finetune(
        data,
        "pidnet_small",
        out=tmp_path / "run",
        epochs=4,
        batch_size=4,
        scale=(1, 1),
        photometric=False,
        lr=0.001,
        **options,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "mIoU" not in line and "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
    trained = zoo_seg.from_pretrained(tmp_path / "run")
    assert trained.architecture
    assert trained.architecture.align_corners
