"""How sure a prediction is: the same class map, probabilities that add up to 1, and few of them at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import zoo_seg
from zoo_seg.errors import OptionError, OutOfMemoryError
from zoo_seg.families.registry import find_family, list_families
from zoo_seg.inference import labels, protocol
from zoo_seg.inference.protocol import predict_logits
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.layers.readout import Queries
from zoo_seg.model import SegmentationModel

CLASSES = 5
THIN: dict[str, dict[str, Any]] = {
    "fcn": {"channels": 16},
    "mask2former": {
        "channels": 16,
        "queries": 8,
        "encoder_layers": 1,
        "encoder_hidden": 16,
        "decoder_layers": 3,
        "decoder_hidden": 16,
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "slide": {"mode": "slide", "crop": (48, 48), "stride": (32, 32)},
    "scales and flip": {"scales": (0.75, 1.0), "flip": True},
    "bfloat16": {"dtype": "bfloat16"},
}


@cache
@torch.no_grad()
def model_of(family: str) -> SegmentationModel:
    """Of the families that are looked at closely, one whose classes are each the likeliest somewhere."""
    torch.manual_seed(0)
    backbone = (find_family(family).backbones or ("resnet18",))[0]
    made = zoo_seg.build_model(family, backbone, CLASSES, **THIN.get(family, {})).eval()
    if family in THIN:
        x = made.predictor().inputs(noise())[0]
        made.head.classifier.weight.mul_(8)
        if family == "mask2former":
            made.head.mask_embed[4].weight.mul_(30)
        output = made.network.forward_train(x)[0]
        mean = output.classes.mean((0, 1)) if isinstance(output, Queries) else output.mean((0, 2, 3))
        made.head.classifier.bias -= mean
    return made


def noise(height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def check(found: Segmentation, plain: Segmentation) -> None:
    """Their class maps are the same, and what else was found fits it."""
    assert plain.confidence is None
    assert plain.probabilities is None
    assert found.confidence is not None
    assert found.probabilities is not None
    np.testing.assert_array_equal(found.mask, plain.mask)
    assert found.confidence.dtype == found.probabilities.dtype == np.float32
    assert found.probabilities.shape == (CLASSES, *plain.mask.shape)
    assert found.probabilities.min() >= 0
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-6 * CLASSES)
    winners = np.take_along_axis(found.probabilities, found.mask[None].astype(int), 0)[0]
    np.testing.assert_array_equal(found.confidence, winners)
    assert (found.probabilities.max(0) - winners).max() < 1e-5  # the winner, or one that ties with it


@pytest.mark.parametrize("rules", ["ssseg", "mmseg"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["fcn", "mask2former"])
def test_the_class_map_is_the_same(family: str, way: str, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    monkeypatch.setattr(model, "protocol", rules)
    monkeypatch.setattr(protocol, "_STRIP", CLASSES * 80 * 20)  # several strips
    plain = model.predict(noise(), **WAYS[way])
    check(model.predict(noise(), confidence=True, probabilities=True, **WAYS[way]), plain)
    assert np.ptp(plain.mask) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", list_families())
def test_every_family_says_how_sure_it_is(family: str) -> None:
    model = model_of(family)
    plain = model.predict(noise())
    found = model.predict(noise(), confidence=True, probabilities=True)
    check(found, plain)
    assert found.confidence is not None
    assert 1 / CLASSES < found.confidence.mean() < 1


@pytest.mark.parametrize("way", ["whole", "slide", "scales and flip"])
@pytest.mark.parametrize("rules", ["ssseg", "mmseg"])
def test_probabilities_are_those_of_the_logits(rules: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("fcn")
    monkeypatch.setattr(model, "protocol", rules)
    options = WAYS[way]
    inputs = model.predictor().inputs(noise(), scales=options.get("scales", (1.0,)))
    x = inputs if len(inputs) > 1 else inputs[0]
    values = predict_logits(model.network, x, output_size=(64, 80), protocol=rules, **options)[0]
    averaged = rules == "mmseg" and way == "scales and flip"  # these rules average probabilities
    expected = values if averaged else values.softmax(0)
    found = model.predict(noise(), probabilities=True, **options).probabilities
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("rules", ["ssseg", "mmseg"])
def test_scores_of_queries_are_parts_of_their_sum(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rules would take a softmax of them, in which five scores from 0 to 1 are all about 1/5."""
    model = model_of("mask2former")
    with torch.inference_mode():
        scores = model(model.predictor().inputs(noise())[0])[0]
    once = model.predict(noise(), probabilities=True).probabilities
    np.testing.assert_allclose(once, (scores / scores.sum(0)).numpy(), atol=1e-5)
    monkeypatch.setattr(model, "protocol", rules)
    twice = model.predict(noise(), probabilities=True, scales=(1.0, 1.0)).probabilities
    least = scores - scores.amin(0) if rules == "mmseg" else scores
    np.testing.assert_allclose(twice, (least / least.sum(0)).numpy(), atol=1e-4)


def test_where_no_query_is_all_classes_are_as_likely() -> None:
    rules = protocol.find_protocol("ssseg")
    found = protocol.probabilities(torch.zeros(1, 4, 2, 2), rules, several=False, scores=True)
    assert torch.equal(found, torch.full((1, 4, 2, 2), 0.25))


class Largest(TorchDispatchMode):
    """Notes the most values of a tensor that is made meanwhile."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.most = max(self.most, each.numel())
        return result


@pytest.mark.parametrize("way", ["whole", "slide", "scales and flip"])
def test_confidence_never_holds_all_classes_at_full_size(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = zoo_seg.build_model("fcn", "test_resnet", 20, channels=8).eval(), noise(64, 256)
    every = 20 * image.shape[0] * image.shape[1]
    predictor, test = model.predictor(), model.test_options(**WAYS[way])
    monkeypatch.setattr(predictor, "_infer", outside(predictor._infer))
    monkeypatch.setattr(labels, "_BLOCK", 1 << 12)
    most = {}
    for rows in (8, 64):
        monkeypatch.setattr(protocol, "_STRIP", 20 * image.shape[1] * rows)
        monkeypatch.setattr(protocol, "_FIRST_ROWS", rows)
        with Largest() as made:
            list(predictor.stream([image], test=test, confidence=True))
        most[rows] = made.most
    assert most[8] <= every / 4
    assert most[64] >= every / 2  # so it is seen; windows end strips as well


def outside(infer: Any) -> Any:
    """The network itself, whose feature maps do not count."""
    from torch.utils._python_dispatch import _disable_current_modes

    def run(x: Any) -> Any:
        with _disable_current_modes():
            return infer(x)

    return run


def test_lists_batches_and_half_precision() -> None:
    model, images = model_of("fcn"), [noise(seed=seed) for seed in range(3)]
    together = model.predict(images, confidence=True, probabilities="float16", batch_size=3)
    for image, found in zip(images, together, strict=True):
        alone = model.predict(image, confidence=True)
        np.testing.assert_allclose(found.confidence, alone.confidence, atol=1e-5)
        assert found.probabilities.dtype == np.float16
        np.testing.assert_allclose(found.probabilities.sum(0, dtype=np.float32), 1, atol=1e-3)


def test_only_what_is_asked_for_is_given() -> None:
    found = model_of("fcn").predict(noise(), probabilities=True)
    assert found.confidence is None
    found = model_of("fcn").predict(noise(), confidence=True)
    assert found.probabilities is None
    grey = np.asarray(found.confidence_image())
    np.testing.assert_array_equal(grey, np.rint(found.confidence * 255))
    with pytest.raises(OptionError, match=r"no confidence; ask for it: predict\(\.\.\., confidence=True\)"):
        model_of("fcn").predict(noise()).confidence_image()


@pytest.mark.parametrize("value", ["float64", 3.5, "yes"])
def test_other_types_of_probabilities_are_refused(value: Any) -> None:
    if value == 3.5:
        value = np.float64
    with pytest.raises(OptionError, match=r"probabilities is .*; expected True, 'float32', 'float16' or False"):
        model_of("fcn").predict(noise(), probabilities=value)


def test_probabilities_that_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: tuple[int, ...], *options: Any) -> Any:
        if shape[0] == CLASSES:
            raise MemoryError
        return empty(shape, *options)

    empty = np.empty
    model, image = model_of("fcn"), noise()
    model.predict(image)
    monkeypatch.setattr("zoo_seg.inference.predictor.np.empty", full)
    with pytest.raises(OutOfMemoryError, match=r"of shape \(5, 64, 80\) each, take 0\.0 GB; use confidence=True"):
        model.predict(image, probabilities=True)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("confidence", np.zeros((2, 3), np.float32)),
        ("confidence", np.zeros((2, 2), np.uint8)),
        ("probabilities", np.zeros((2, 2, 2), np.float32)),
    ],
)
def test_parts_that_do_not_fit(name: str, values: np.ndarray) -> None:
    mask = np.zeros((2, 2), np.uint8)
    with pytest.raises(OptionError, match=f"{name} is .*; expected floats of"):
        Segmentation(mask, ("a",), ((0, 0, 0),), **{name: values})
