"""MaskFormer: its published loss, and queries mixed at the masks' own size on every road."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.drawn import draw_folder
from helpers.transformers_masks import original
from transformers.models.maskformer.modeling_maskformer import MaskFormerLoss

import zoo_seg
from zoo_seg import SegmentationModel
from zoo_seg.errors import OptionError
from zoo_seg.families.registry import find_family
from zoo_seg.images.preprocess import normalise
from zoo_seg.inference.protocol import predict_logits
from zoo_seg.info import ModelInfo
from zoo_seg.layers.losses import SegmentationLoss
from zoo_seg.layers.readout import Queries
from zoo_seg.manifest import Architecture
from zoo_seg.network import build_network, with_all_options

pytestmark = pytest.mark.slow

THIN = {"channels": 16, "queries": 8, "decoder_layers": 2, "decoder_hidden": 16}


def build(**options: Any) -> SegmentationModel:
    """A thin network of three classes, each the likeliest somewhere."""
    torch.manual_seed(0)
    architecture = with_all_options(Architecture("maskformer", "resnet18", options={**THIN, **options}))
    network = build_network(architecture, 3)
    info = ModelInfo(
        classes=("road", "wall", "sky"), palette=((0, 0, 0), (9, 9, 9), (99, 9, 9)), architecture=architecture
    )
    made = SegmentationModel(network, info).eval()
    with torch.no_grad():
        made.head.query_embed.weight.mul_(4)
        made.head.classifier.weight.mul_(8)
        made.head.mask_embed[4].weight.mul_(30)
        image = normalise(picture(), made.preprocess.mean, made.preprocess.std)
        made.head.classifier.bias -= made.network.forward_train(image)[0].classes.mean((0, 1))
    return made


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return build()


def picture(height: int = 75, width: int = 110) -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)[:height, :width].copy()


# --- every road -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed_at", ["masks", "384x384", "input"])
@torch.inference_mode()
def test_where_queries_are_mixed(mixed_at: str) -> None:
    made, image = build(mixed_at=mixed_at), picture()
    x = normalise(image, made.preprocess.mean, made.preprocess.std)
    masks, logits, _ = made.network.forward_train(x)[0]
    if mixed_at != "masks":
        size = (75, 110) if mixed_at == "input" else (384, 384)
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
    mixed = torch.einsum("nqc,nqhw->nchw", logits.softmax(-1)[..., :-1], masks.sigmoid())
    expected = F.interpolate(mixed, (75, 110), mode="bilinear", align_corners=False)
    torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict_logits(made.network, x, output_size=(75, 110)), expected, rtol=1e-4, atol=1e-5)
    ids = expected.argmax(1)[0].numpy()
    assert len(np.unique(ids)) > 1, "else nothing could be told apart"
    found = made.predict(image, probabilities=True)
    assert (found.mask == ids).mean() > 0.999
    assert np.abs(found.probabilities - (expected / expected.sum(1, keepdim=True))[0].numpy()).max() < 1e-4


@pytest.mark.parametrize("mixed_at", ["masks", "384x384"])
@pytest.mark.parametrize("flip", [False, True])
@torch.inference_mode()
def test_windows_are_mixed_each_for_itself(mixed_at: str, flip: bool) -> None:
    made, image = build(mixed_at=mixed_at), picture(64, 160)
    x = normalise(image, made.preprocess.mean, made.preprocess.std)
    total, count = torch.zeros(1, 3, 64, 160), torch.zeros(64, 160)
    for left in (0, 48, 96):
        window = x[..., left : left + 64]
        total[..., left : left + 64] += made(window)
        if flip:
            total[..., left : left + 64] += made(window.flip(-1)).flip(-1)
        count[:, left : left + 64] += 1 + flip
    options: dict[str, Any] = {"mode": "slide", "crop": (64, 64), "stride": (48, 48), "flip": flip}
    found = predict_logits(made.network, x, output_size=(64, 160), **options)
    torch.testing.assert_close(found, total / count, rtol=1e-4, atol=1e-5)
    ids = (total / count).argmax(1)[0].numpy()
    assert (made.predict(image, **options).mask == ids).mean() > 0.999


@torch.inference_mode()
def test_a_saved_network_comes_back(model: SegmentationModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = zoo_seg.from_pretrained(tmp_path)
    assert again.architecture == model.architecture
    x = torch.randn(1, 3, 40, 70)
    assert torch.equal(again(x), model(x))
    renewed = zoo_seg.from_pretrained(tmp_path, num_classes=7)
    assert renewed(x).shape == (1, 7, 40, 70)
    assert torch.equal(renewed.head.query_embed.weight, model.head.query_embed.weight)


def test_options_are_read_from_a_file_without_a_record(model: SegmentationModel) -> None:
    read = find_family("maskformer").read_options
    assert read is not None
    assert read({name: tuple(each.shape) for name, each in model.network.state_dict().items()}) == THIN
    with pytest.raises(OptionError, match="channels is 12"):
        zoo_seg.build_model("maskformer", "resnet18", 3, channels=12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mixed_at"),
    [("network.onnx", "masks"), ("network.onnx", "384x384"), ("network.pt2", "masks"), ("network.xml", "masks")],
)
def test_the_exported_graph_reads_queries_out(name: str, mixed_at: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "xml": "openvino"}.get(name.rpartition(".")[2], "torch"))
    made = build(mixed_at=mixed_at)
    zoo_seg.export(made, tmp_path / name)
    loaded = zoo_seg.from_exported(tmp_path / name)
    for size in [(75, 110), (64, 96)]:
        ours, theirs = (each.predict(picture(*size), probabilities=True).probabilities for each in (made, loaded))
        assert np.abs(ours - theirs).max() < 1e-4


# --- training ---------------------------------------------------------------------------------------


def test_the_loss_is_the_original_s() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (2, 4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[0, :8] = 255
    queries = Queries(torch.randn(2, 9, 16, 16), torch.randn(2, 9, 6))
    ids = [each.unique() for each in labels]
    ids = [each[each != 255] for each in ids]
    masks = [(image == own[:, None, None]).float() for image, own in zip(labels, ids, strict=True)]
    with torch.device("meta"):
        network = original("maskformer_swin_tiny", num_labels=5)
    criterion = MaskFormerLoss(5, network.matcher, network.weight_dict, network.config.no_object_weight)
    torch.nn.init.ones_(criterion.empty_weight)[-1] = network.config.no_object_weight
    parts = criterion(queries.masks, queries.classes, masks, ids)
    expected = sum(network.weight_dict[name] * float(value) for name, value in parts.items())
    found = find_family("maskformer").loss([queries], labels, SegmentationLoss(ignore_index=255), 1)
    assert sum(float(each.mean) for each in found) == pytest.approx(expected, rel=1e-4)


def test_another_loss_is_refused() -> None:
    queries = Queries(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4))
    with pytest.raises(OptionError, match="MaskFormer trains its queries by its own loss"):
        find_family("maskformer").loss(
            [queries], torch.zeros(1, 32, 32, dtype=torch.long), SegmentationLoss("ohem", ignore_index=255), 1
        )


@pytest.mark.slow
def test_fine_tuning_lowers_the_loss(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "shapes", train=2, val=1)
    build().save_pretrained(tmp_path / "start")
    trained = zoo_seg.finetune(
        data,
        weights=tmp_path / "start",
        out=tmp_path / "run",
        epochs=5,
        batch_size=2,
        scale=(1, 1),
        photometric=False,
        lr=0.003,
        crop_size=(48, 60),
        workers=0,
        device="cpu",
        progress=False,
        optimizer="adamw",
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "mIoU" not in line and "loss" in line]
    assert len(losses) == 5
    assert losses[-1] < 0.9 * losses[0]
    assert trained.architecture
    assert trained.architecture.options["mixed_at"] == "masks"
