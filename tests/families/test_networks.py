"""The networks compute what the original projects' code computes, and every published name and shape fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.reference import FIXTURES, fill, image_tensor, key_lists, keys, published_network

import zoo_seg
from zoo_seg.errors import OptionError, UnknownNameError
from zoo_seg.families.pspnet import POOL_SIZES, PSPHead
from zoo_seg.families.registry import find_family, list_families
from zoo_seg.layers.aspp import ASPP
from zoo_seg.layers.readout import Queries
from zoo_seg.layers.resample import bilinear_matrix, pooling_matrix, resize, resize_nearest
from zoo_seg.network import build_network

EXPECTED = sorted(FIXTURES.glob("expected_*.npz"))
ANY = [family for family in list_families() if find_family(family).backbones is None]
BACKBONES = [
    "resnet18",
    "mit_b0",
    "convnext_atto",
    "mobilenetv3_small_050",
    pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
]


def architecture_of(name: str) -> str:
    """`pspnet_resnet50_os8_ade20k`, `fpn_r50_ade20k`, `semanticfpn_resnet50_os32_voc` -> a model name."""
    name = re.sub("^fpn_r", "semanticfpn_resnet", name.rsplit("_", 1)[0])
    return name.removesuffix("_os32")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem.removeprefix("expected_"))
@torch.inference_mode()
def test_logits_equal_the_original_code(path: Path) -> None:
    stored = np.load(path)
    meta = json.loads(str(stored["meta"]))
    name = path.stem.removeprefix("expected_")
    group = "mmseg" if name.startswith("fpn_") else "ssseg"
    seed = meta["seed"]
    tensors = {key: torch.from_numpy(fill(key, shape, seed)) for key, shape in keys(group, name)}
    network = published_network(architecture_of(name), tensors)
    height, width = meta.get("input_size") or (meta["height"], meta["width"])
    x = torch.from_numpy(image_tensor(height, width, seed))

    features = network.forward_features(x)
    logits = network.forward_head(features)
    step = meta.get("subsample_chw") or [1, meta["spatial_stride"], meta["spatial_stride"]]
    assert difference(logits[:, :: step[0], :: step[1], :: step[2]], stored["logits"]) < 2e-5
    assert torch.equal(network(x), F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False))
    if "pred" in stored.files:
        assert (network(x).argmax(1)[0].numpy() == stored["pred"]).mean() > 0.9999
    assert ("aux_logits" in stored.files) == bool(network.aux_heads)
    for head in network.aux_heads:
        step = meta["aux_subsample_chw"]
        aux = head(features)[:, :: step[0], :: step[1], :: step[2]]
        assert difference(aux, stored["aux_logits"]) < 2e-5


def difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """The largest one, in standard deviations of theirs."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / theirs.std())


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), key_lists())
def test_every_published_name_and_shape_fits_strictly(group: str, name: str) -> None:
    tensors = {
        key: torch.empty(shape, device="meta", dtype=torch.int64 if key.endswith("num_batches_tracked") else None)
        for key, shape in keys(group, name)
    }
    network = published_network(architecture_of(name), tensors)
    parts = 4 if name.startswith("pspnet") else 0  # the bottleneck is kept in five parts instead of one
    assert len(network.state_dict()) == len(tensors) + parts


@pytest.mark.slow
def test_parameters_in_the_manifest_are_the_networks() -> None:
    counts: dict[tuple[str, int], int] = {}
    for record in zoo_seg.list_weights():
        key = f"{record.architecture}", record.num_classes
        if key not in counts:
            with torch.device("meta"):
                network = build_network(record.architecture, record.num_classes)
            counts[key] = sum(parameter.numel() for parameter in network.parameters())
        assert counts[key] == record.parameters, record.id


def textbook(head: PSPHead, x: torch.Tensor) -> torch.Tensor:
    """The paper's head: enlarge the pooled branches, concatenate, one 3x3 convolution."""
    size = (x.shape[-2], x.shape[-1])
    branches = [
        F.interpolate(branch(F.adaptive_avg_pool2d(x, bins)), size=size, mode="bilinear", align_corners=False)
        for bins, branch in zip(POOL_SIZES, head.branches, strict=True)
    ]
    weight = torch.cat([head.bottleneck.weight, *(tap.weight.transpose(0, 1) for tap in head.taps)], dim=1)
    return head.classifier(head.act(head.norm(F.conv2d(torch.cat([x, *branches], dim=1), weight, padding=1))))


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (13, 17), (64, 86)])
def test_pyramid_equals_its_textbook_form(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = PSPHead([24], 5, channels=8).eval()
    x = torch.randn(2, 24, *size)
    torch.testing.assert_close(head([x]), textbook(head, x), rtol=1e-4, atol=1e-5)


def test_pyramid_has_the_textbook_form_s_gradients() -> None:
    torch.manual_seed(0)
    head = PSPHead([8], 3, channels=4).eval()
    x = torch.randn(1, 8, 9, 11)
    gradients = []
    for form in (lambda: head([x]), lambda: textbook(head, x)):
        head.zero_grad()
        form().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in head.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (13, 17)])
def test_atrous_pyramid_equals_its_textbook_form(separable: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    aspp = ASPP(24, 8, (1, 2, 5), separable=separable).eval()
    x = torch.randn(2, 24, *size)
    pooled = aspp.pool(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *size)
    whole = torch.cat([*(branch(x) for branch in aspp.branches), pooled], dim=1)
    weight = torch.cat([aspp.bottleneck.weight, aspp.taps.weight.transpose(0, 1)], dim=1)
    expected = aspp.act(aspp.norm(F.conv2d(whole, weight, padding=1)))
    torch.testing.assert_close(aspp(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "new"), [(1, 5), (6, 64), (17, 4), (5, 5), (86, 683)])
def test_matrices_equal_torch(size: int, new: int) -> None:
    x = torch.randn(1, 1, size, 1)
    expected = F.interpolate(x, size=(new, 1), mode="bilinear", align_corners=False)
    torch.testing.assert_close(bilinear_matrix(size, new, x) @ x, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooling_matrix(size, new, x) @ x, F.adaptive_avg_pool2d(x, (new, 1)))
    assert resize(x, (size, 1)) is x
    assert torch.equal(resize_nearest(x, (new, 1)), F.interpolate(x, size=(new, 1), mode="nearest"))


@pytest.mark.parametrize("family", ANY)
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_any_backbone_takes_any_size(family: str, backbone: str) -> None:
    model = zoo_seg.build_model(family, backbone, num_classes=5, channels=16).eval()
    for size in [(97, 130), (33, 47), (1, 1)]:
        logits = model(torch.randn(1, 3, *size))
        assert logits.shape == (1, 5, *size)
        assert logits.isfinite().all()
    features = model.forward_features(torch.randn(1, 3, 64, 96))
    strides = [64 / each.shape[-2] for each in features]
    assert strides == sorted(strides)
    assert strides[-1] == 32
    for head in model.aux_heads:
        assert head(features).shape[1] == 5


@pytest.mark.parametrize(("stride", "expected"), [(8, (8, 8)), (16, (4, 4)), (None, (4, 2))])
def test_output_stride(stride: int | None, expected: tuple[int, int]) -> None:
    model = zoo_seg.build_model("fcn", "resnet18", num_classes=2, output_stride=stride, channels=8)
    assert [each.shape[-1] for each in model.eval().forward_features(torch.zeros(1, 3, 64, 64))] == list(expected)


def test_training_reaches_every_parameter() -> None:
    for family in ANY:
        model = zoo_seg.build_model(family, "resnet18", num_classes=3, channels=8)
        outputs = model.network.forward_train(torch.randn(2, 3, 64, 64))
        parts = [part for each in outputs for part in (each[:2] if isinstance(each, Queries) else [each])]
        torch.stack([(part * torch.randn_like(part)).sum() for part in parts]).sum().backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("fcn", "resnt18", 2), UnknownNameError, "did you mean 'resnet18'"),
        (("unet", "resnet18", 2), UnknownNameError, "there is no family 'unet'; known are"),
        (("fcn", "swin_tiny_patch4_window7_224", 2, 8), OptionError, "output stride"),
        (("fcn", "vit_tiny_patch16_224", 2), OptionError, "one size only"),
        (("fcn", "tresnet_m", 2), OptionError, r"'tresnet_m' takes images of some sizes only \(SpaceToDepth\)"),
        (("fcn", "lambda_resnet26t", 2), OptionError, r"of some sizes only \(LambdaLayer\)"),
        (("fcn", "halonet26t", 2), OptionError, r"of some sizes only \(HaloAttn\)"),
        (("fcn", "resnet18", 2, 4), OptionError, "output stride is 4"),
        (("fcn", "resnet18", 0), OptionError, "num_classes is 0"),
    ],
)
def test_wrong_arguments(arguments: tuple, error: type[Exception], says: str) -> None:
    family, backbone, num_classes, *stride = arguments
    with pytest.raises(error, match=says):
        zoo_seg.build_model(family, backbone, num_classes, output_stride=stride[0] if stride else None)


def test_unknown_head_option() -> None:
    with pytest.raises(OptionError, match="neck"):
        zoo_seg.build_model("fcn", "resnet18", 2, neck="conv")
    with pytest.raises(OptionError, match="conv_norm_act', 'conv'"):
        zoo_seg.build_model("semanticfpn", "resnet18", 2, neck="bn")
