"""Mask2Former: the original's logits, queries on every road, and training with matched queries."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.drawn import draw_folder
from helpers.reference import published_reference

import zoo_seg
from zoo_seg import SegmentationModel
from zoo_seg.errors import OptionError
from zoo_seg.families.registry import find_family
from zoo_seg.images.preprocess import normalise
from zoo_seg.inference.protocol import predict_logits
from zoo_seg.info import ModelInfo
from zoo_seg.layers.losses import SegmentationLoss
from zoo_seg.layers.queries import assign
from zoo_seg.layers.readout import Queries
from zoo_seg.manifest import Architecture, get_architecture
from zoo_seg.network import build_network, with_all_options
from zoo_seg.pretrained import from_tensors

pytestmark = pytest.mark.slow

THIN = {
    "channels": 16,
    "queries": 8,
    "encoder_layers": 1,
    "encoder_hidden": 16,
    "decoder_layers": 3,
    "decoder_hidden": 16,
}


def build(size_divisor: int = 32) -> SegmentationModel:
    """A thin network of three classes whose queries differ."""
    torch.manual_seed(0)
    architecture = with_all_options(Architecture("mask2former", "resnet18", size_divisor=size_divisor, options=THIN))
    network = build_network(architecture, 3)
    info = ModelInfo(
        classes=("road", "wall", "sky"), palette=((0, 0, 0), (9, 9, 9), (99, 9, 9)), architecture=architecture
    )
    return SegmentationModel(network, info)


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    """One whose classes are each the likeliest somewhere."""
    made = build().eval()
    with torch.no_grad():
        made.head.classifier.weight.mul_(8)
        made.head.mask_embed[4].weight.mul_(30)
        image = normalise(picture(), made.preprocess.mean, made.preprocess.std)
        made.head.classifier.bias -= made.network.forward_train(image)[0].classes.mean((0, 1))
    return made


def picture(height: int = 75, width: int = 110) -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)[:height, :width].copy()


@torch.inference_mode()
def test_logits_equal_the_original_code() -> None:
    published = published_reference("mask2former_resnet50.mmseg")
    _, architecture = get_architecture("mask2former_resnet50")
    network = from_tensors(Path("checkpoint.pth"), published.state_dict(), architecture).build().eval()
    for run in published.runs:
        assert run.error(network(run.image())) < published.tolerance
    assert sum(each.numel() for each in network.parameters()) == published.meta["parameters"]


# --- every road -------------------------------------------------------------------------------------


@torch.inference_mode()
def test_predict_is_the_argmax_of_the_logits(model: SegmentationModel) -> None:
    image = picture()
    x = normalise(image, model.preprocess.mean, model.preprocess.std)
    expected = model(x).argmax(1)[0].numpy()
    assert len(np.unique(expected)) > 1, "else nothing could be told apart"
    assert (model.predict(image).mask == expected).mean() > 0.999
    logits = predict_logits(model.network, x, output_size=(75, 110))
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"mode": "slide", "crop": (48, 64)}, {"scales": (0.75, 1.5), "flip": True}],
    ids=["slide", "scales and flip"],
)
@torch.inference_mode()
def test_every_option_of_predict(model: SegmentationModel, options: dict[str, Any]) -> None:
    image = picture()
    x = normalise(image, model.preprocess.mean, model.preprocess.std)
    expected = predict_logits(model.network, x, output_size=(75, 110), protocol=model.protocol, **options)
    assert (model.predict(image, **options).mask == expected.argmax(1)[0].numpy()).mean() > 0.999


@torch.inference_mode()
def test_a_saved_network_comes_back(model: SegmentationModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = zoo_seg.from_pretrained(tmp_path)
    assert again.architecture == model.architecture
    x = torch.randn(1, 3, 40, 70)
    assert torch.equal(again(x), model(x))
    assert "mask2former" in (tmp_path / "README.md").read_text().lower()
    renewed = zoo_seg.from_pretrained(tmp_path, num_classes=7)
    assert renewed(x).shape == (1, 7, 40, 70)
    assert torch.equal(renewed.head.query_feat.weight, model.head.query_feat.weight)


def test_options_are_read_from_a_file_without_a_record(model: SegmentationModel) -> None:
    read = find_family("mask2former").read_options
    assert read is not None
    assert read({name: tuple(each.shape) for name, each in model.network.state_dict().items()}) == THIN
    with pytest.raises(OptionError, match="channels is 12"):
        zoo_seg.build_model("mask2former", "resnet18", 3, channels=12)


def test_the_exported_graph_reads_queries_out_at_the_input_s_size(model: SegmentationModel, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = copy.deepcopy(model)
    del model.head.layers[1:]  # an export takes long
    zoo_seg.export(model, tmp_path / "network.onnx")
    loaded = zoo_seg.from_exported(tmp_path / "network.onnx")
    for size in [(75, 110), (64, 96)]:
        image = picture(*size)
        assert (loaded.predict(image).mask == model.predict(image).mask).mean() > 0.999
        ours, theirs = (each.predict(image, confidence=True).confidence for each in (model, loaded))
        assert np.abs(ours - theirs).mean() < 1e-3  # parts of the scores' sum, no softmax of scores


# --- training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3), (5, 5), (0, 4)])
def test_assignment_is_the_cheapest(shape: tuple[int, int]) -> None:
    for seed in range(5):
        cost = np.random.default_rng(seed).normal(size=shape)
        rows, columns = assign(cost)
        assert len(rows) == min(shape) == len(set(rows)) == len(set(columns))
        small = cost if shape[0] <= shape[1] else cost.T
        every = itertools.permutations(range(small.shape[1]), small.shape[0])
        best = min(sum(small[i, column] for i, column in enumerate(each)) for each in every)
        assert cost[rows, columns].sum() == pytest.approx(best)


def test_the_loss_is_least_where_each_class_has_a_query() -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.uint8)
    labels[:, 10:20, 10:20], labels[:, :4] = 2, 255
    masks = torch.full((1, 4, 32, 32), -20.0)
    masks[0, 1][labels[0] == 2], masks[0, 3][labels[0] == 0] = 20, 20
    right, wrong = torch.full((1, 4, 4), -20.0), torch.full((1, 4, 4), -20.0)
    right[0, range(4), [3, 2, 3, 0]] = 20
    wrong[0, range(4), [3, 0, 3, 2]] = 20
    pixel, loss = SegmentationLoss(ignore_index=255), find_family("mask2former").loss

    def terms(masks: torch.Tensor, logits: torch.Tensor) -> tuple[float, float]:
        found = loss([Queries(masks, logits)] * 2, labels, pixel, 1)
        assert [float(each.weight) for each in found] == pytest.approx([2.2, 2])  # two classes, two queries of none
        return tuple(float(each.total / each.weight) for each in found)  # type: ignore[return-value]

    good = terms(masks, right)
    assert good[0] < 1e-3, "the sum of two layers' class losses"
    assert terms(masks, wrong)[0] > 20
    assert terms(-masks, right)[1] > 5 * good[1]


def test_a_batch_without_labels_changes_nothing() -> None:
    queries = Queries(torch.randn(1, 4, 8, 8).requires_grad_(), torch.randn(1, 4, 4).requires_grad_())
    labels, pixel = torch.full((1, 32, 32), 255), SegmentationLoss(ignore_index=255)
    _, masks = find_family("mask2former").loss([queries], labels, pixel, 1)
    assert masks.total.item() == masks.weight.item() == 0
    assert not torch.autograd.grad(masks.total, queries.masks)[0].any()


def test_another_loss_is_refused() -> None:
    queries = Queries(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4))
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    for pixel in (
        SegmentationLoss("ohem", ignore_index=255),
        SegmentationLoss(ignore_index=255, class_weights=torch.ones(3)),
    ):
        with pytest.raises(OptionError, match="by its own loss"):
            find_family("mask2former").loss([queries], labels, pixel, 1)


def test_fine_tuning_lowers_the_loss(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "shapes", train=2, val=1)
    build().save_pretrained(tmp_path / "start")
    options = {"crop_size": (48, 60), "workers": 0, "device": "cpu", "progress": False, "optimizer": "adamw"}
    trained = zoo_seg.finetune(
        data,
        weights=tmp_path / "start",
        out=tmp_path / "run",
        epochs=5,
        batch_size=2,
        scale=(1, 1),
        photometric=False,
        lr=0.003,
        **options,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "mIoU" not in line and "loss" in line]
    assert len(losses) == 5
    assert losses[-1] < 0.9 * losses[0]
    assert trained.architecture
    assert trained.architecture.size_divisor == 32
