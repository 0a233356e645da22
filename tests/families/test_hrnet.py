"""HRNet under FCN and OCRNet: names of its own, several maps read as one, and the coarse head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.onnx import check_onnx

import zoo_seg
from zoo_seg import SegmentationModel
from zoo_seg.backbones.registry import find_backbone, list_backbones
from zoo_seg.errors import OptionError
from zoo_seg.families.registry import find_family
from zoo_seg.inference import cpu
from zoo_seg.inference.prepare import prepare
from zoo_seg.layers.fused import FusedConv
from zoo_seg.layers.losses import SegmentationLoss
from zoo_seg.network import build_network

HRNETS = [name for name in list_backbones() if name.startswith("hrnet")]


@pytest.mark.parametrize(
    "sizes", [[(32, 43), (16, 22), (8, 11), (4, 6)], [(5, 9), (5, 9), (3, 5), (1, 2)], [(1, 1)] * 4]
)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_fused_convolution_equals_its_textbook_form(
    kernel_size: int, align_corners: bool, sizes: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    widths = [3, 4, 5, 6]
    conv = FusedConv(widths, 7, kernel_size, align_corners=align_corners).double()
    maps = [torch.randn(2, width, *size, dtype=torch.float64) for width, size in zip(widths, sizes, strict=True)]
    whole = torch.cat(
        [F.interpolate(x, size=sizes[0], mode="bilinear", align_corners=align_corners) for x in maps], dim=1
    )
    expected = F.conv2d(whole, conv.weight, padding=kernel_size // 2)
    torch.testing.assert_close(conv(maps), expected)
    gradients = [torch.autograd.grad(each.square().sum(), conv.weight)[0] for each in (conv(maps), expected)]
    torch.testing.assert_close(*gradients)


def test_a_fused_convolution_is_small() -> None:
    with pytest.raises(OptionError, match="5 wide; expected 1 or 3"):
        FusedConv([3, 4], 7, 5)
    with pytest.raises(OptionError, match="fuse goes with"):
        zoo_seg.build_model("fcn", "resnet18", 2, fuse=True, concat_input=True)


def test_hrnet_s_names_are_not_timm_s() -> None:
    import timm

    assert len(HRNETS) == 3
    assert not set(HRNETS) & set(timm.list_models())
    wanted = find_backbone("hrnetv2_w18_small").create().state_dict()
    theirs = timm.create_model("hrnet_w18_small_v2", pretrained=False).state_dict()
    assert all(theirs[name].shape == tensor.shape for name, tensor in wanted.items())
    with pytest.raises(OptionError, match="output stride is 8"):
        zoo_seg.build_model("fcn", "hrnetv2_w18_small", 2, output_stride=8)


@pytest.fixture(scope="module", params=["fcn", "ocrnet"])
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    torch.manual_seed(0)
    options = {"num_convs": 1, "kernel_size": 1} if request.param == "fcn" else {"coarse_kernel_size": 1}
    made = zoo_seg.build_model(request.param, "hrnetv2_w18_small", num_classes=5, channels=16, fuse=True, **options)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made.eval()


@torch.inference_mode()
def test_any_size(model: SegmentationModel) -> None:
    for size in [(97, 130), (33, 47), (1, 1)]:
        logits = model(torch.randn(1, 3, *size))
        assert logits.shape == (1, 5, *size)
        assert logits.isfinite().all()
    assert [each.shape[-1] for each in model.forward_features(torch.randn(1, 3, 64, 96))] == [24, 12, 6, 3]


def test_a_prepared_network_computes_the_same(model: SegmentationModel) -> None:
    ready, x = prepare(model.network, torch.device("cpu"), torch.float32), torch.randn(2, 3, 70, 90)
    kinds = [type(module) for module in ready.modules()]
    assert torch.nn.BatchNorm2d not in kinds
    assert (cpu.ResidualBlock in kinds and cpu.ConvReLU in kinds) == cpu.can_add_in_place(torch.float32)
    with torch.inference_mode():
        expected, found = model.forward_logits(x), ready.forward_logits(x)
    assert (found - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.slow
def test_onnx_of_any_size(model: SegmentationModel, tmp_path: Path) -> None:
    check_onnx(model, tmp_path, (1, 3, 64, 96), (2, 3, 75, 50))


def test_the_coarse_head_is_trained() -> None:
    torch.manual_seed(0)
    model = zoo_seg.build_model("ocrnet", "resnet18", num_classes=3, output_stride=8, channels=8)
    outputs = model.network.forward_train(torch.randn(2, 3, 64, 64))
    assert [tuple(each.shape) for each in outputs] == [(2, 3, 8, 8), (2, 3, 8, 8)]
    labels = torch.randint(0, 3, (2, 64, 64))
    family, pixel = find_family("ocrnet"), SegmentationLoss(ignore_index=255)
    terms = [each.total.item() for each in family.loss(outputs, labels, pixel, 0.4)]
    wanted = [pixel(each, labels).total.item() for each in outputs]
    assert terms == pytest.approx([wanted[0], 0.4 * wanted[1]])
    assert family.is_classifier("head.classifier.bias")
    assert family.is_classifier("head.coarse.classifier.weight")


@torch.inference_mode()
def test_objects_are_projected_in_place_of_pixels() -> None:
    torch.manual_seed(0)
    head = zoo_seg.build_model("ocrnet", "resnet18", num_classes=3, channels=8, key_channels=4).head.eval()
    head.out["norm"].running_mean.normal_()
    x, coarse = torch.randn(2, 8, 5, 6), torch.randn(2, 3, 5, 6)
    objects = (coarse.flatten(2).softmax(2) @ x.flatten(2).mT).mT[..., None]
    query, key, value = (each.flatten(2).mT for each in (head.query(x), head.key(objects), head.value(objects)))

    def project(pixels: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = head.out["norm"](head.out["conv"](pixels)).relu()
        return projected

    expected = project(F.scaled_dot_product_attention(query, key, value).mT.unflatten(2, (5, 6)))
    torch.testing.assert_close(head._context(x, coarse), expected)


def test_coarser_maps_are_resized_to_the_head_s() -> None:
    with torch.inference_mode():
        model = zoo_seg.build_model("ocrnet", "resnet18", num_classes=3, channels=8).eval()
        assert model.forward_logits(torch.randn(1, 3, 64, 64)).shape == (1, 3, 2, 2)


def test_dilated_auxiliary_head() -> None:
    architecture = zoo_seg.build_model("fcn", "resnet18", 2, channels=8, dilation=6).architecture
    assert architecture is not None
    network = build_network(architecture, 2)
    assert network.aux_heads[0].convs[0].conv.dilation == network.head.convs[0].conv.dilation == (6, 6)
