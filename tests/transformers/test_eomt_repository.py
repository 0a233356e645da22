"""EoMT as transformers saves it gives what transformers computes: the package itself is asked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import transformers_vit
from helpers.drawn import draw_folder
from helpers.reference import image_tensor
from helpers.transformers_repository import change, class_map, images, linked, untrained
from torch import Tensor
from transformers import EomtForUniversalSegmentation, EomtImageProcessor

import zoo_seg
from zoo_seg import SegmentationModel
from zoo_seg.cli import main
from zoo_seg.config import read_config
from zoo_seg.errors import CheckpointError, ManifestError, OptionError
from zoo_seg.inference.augmented import windows
from zoo_seg.layers.readout import Queries
from zoo_seg.manifest import TestOptions
from zoo_seg.network import SegmentationNetwork
from zoo_seg.pretrained import from_tensors

pytestmark = pytest.mark.slow

NAMES = {index: f"thing {index}" for index in range(12)}
IMAGE = 64


SIZES = (
    (96, 128),
    (128, 96),
    (150, 150),
    (64, 64),
    (64, 201),
    (260, 77),
    (300, 225),
    (90, 91),
    (40, 190),
    (257, 129),
)
"""Of one to five windows, along either side."""


@pytest.fixture(scope="module")
def original() -> EomtForUniversalSegmentation:
    transformers.utils.logging.disable_progress_bar()
    network: EomtForUniversalSegmentation = transformers_vit.varied("eomt", id2label=NAMES)
    return network


def save(network: EomtForUniversalSegmentation, folder: Path) -> Path:
    network.save_pretrained(folder)
    EomtImageProcessor(size={"shortest_edge": IMAGE}, do_split_image=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written(original: EomtForUniversalSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(original, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A folder of a test's own, as transformers writes it."""
    return linked(written, tmp_path / "saved")


def assert_same_maps(
    ours: SegmentationModel, network: EomtForUniversalSegmentation, folder: Path, several: Any
) -> None:
    processor = EomtImageProcessor.from_pretrained(folder)
    seen: set[int] = set()
    for image in several:
        expected, found = class_map(network, processor, image), ours.predict(image)
        assert found.mask.shape == expected.shape
        assert (found.mask == expected).mean() >= 0.999
        seen |= set(np.unique(expected))
    assert len(seen) > 2, "maps of one class prove nothing"


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


@torch.inference_mode()
def assert_same_queries(ours: SegmentationNetwork, network: Any, side: int = IMAGE) -> None:
    x = torch.from_numpy(image_tensor(side, side, batch=2))
    expected, found, trained = network(x), ours.forward_logits(x), ours.forward_train(x)
    assert isinstance(found, Queries)
    assert isinstance(trained[0], Queries)
    assert error(found.masks, expected.masks_queries_logits) < 2e-5
    assert error(found.classes, expected.class_queries_logits.softmax(-1)[..., :-1]) < 2e-5
    assert error(trained[0].classes, expected.class_queries_logits) < 2e-5
    assert error(trained[0].masks, expected.masks_queries_logits) < 2e-5


# --- the same numbers ---------------------------------------------------------------------------


def test_masks_and_classes_equal_the_original_s(original: EomtForUniversalSegmentation, saved: Path) -> None:
    ours = zoo_seg.from_pretrained(saved)
    assert_same_queries(ours.network, original)
    assert ours.architecture is not None
    assert (ours.architecture.backbone, ours.classes) == ("dinov2_small", tuple(NAMES.values()))
    assert ours.test == TestOptions("split", crop=(IMAGE, IMAGE))


@pytest.mark.slow
def test_the_published_size() -> None:
    config = {**transformers_vit.CONFIGS["eomt_dinov2_large"], "image_size": 96}
    network = transformers_vit.filled("eomt", **config, num_labels=150)
    record = zoo_seg.get_weights("eomt_dinov2_large.ade20k")
    architecture = replace(record.architecture, backbone_options={"image_size": 96})
    ours = from_tensors(Path("file"), network.state_dict(), architecture, stated=True).build()
    assert_same_queries(ours, network, 96)


def test_other_registers_and_blocks(tmp_path: Path) -> None:
    config = {**transformers_vit.SMALL["eomt"], "num_register_tokens": 1, "num_blocks": 2, "num_upscale_blocks": 1}
    network = transformers_vit.filled("eomt", **config, id2label=NAMES)
    assert_same_queries(zoo_seg.from_pretrained(save(network, tmp_path)).network, network)


def test_class_maps_equal_the_original_s(original: EomtForUniversalSegmentation, saved: Path) -> None:
    assert_same_maps(zoo_seg.from_pretrained(saved), original, saved, images(SIZES))


@pytest.mark.slow
@pytest.mark.parametrize("probabilities", [(1, 1, 1, 1), (0, 0, 1, 1)])
def test_masks_that_have_not_faded_away(probabilities: tuple[int, ...], saved: Path, tmp_path: Path) -> None:
    network, plain = transformers_vit.varied("eomt", id2label=NAMES), zoo_seg.from_pretrained(saved)
    network.attn_mask_probs.copy_(torch.tensor(probabilities))
    ours = zoo_seg.from_pretrained(save(network, tmp_path / "masked"))
    assert ours.architecture is not None
    assert ours.architecture.options["masked"] == sum(probabilities)
    assert_same_queries(ours.network, network)
    assert_same_maps(ours, network, tmp_path / "masked", images(SIZES)[:3])
    x = torch.from_numpy(image_tensor(IMAGE, IMAGE))
    with torch.inference_mode():
        assert not torch.allclose(ours(x), plain(x), atol=1e-3)
    ours.save_pretrained(tmp_path / "ours")
    again = zoo_seg.from_pretrained(tmp_path / "ours")
    with torch.inference_mode():
        assert torch.equal(again(x), ours(x))


def test_masks_that_are_fading_are_refused(original: EomtForUniversalSegmentation, tmp_path: Path) -> None:
    network = transformers_vit.filled("eomt", **transformers_vit.SMALL["eomt"], id2label=NAMES)
    network.attn_mask_probs.copy_(torch.tensor([0.0, 0.25, 1.0, 1.0]))
    with pytest.raises(CheckpointError, match=r"attn_mask_probs are \[0.0, 0.25, 1.0, 1.0\].*masks at random"):
        zoo_seg.from_pretrained(save(network, tmp_path))


def test_windows_are_spread_as_the_original_does() -> None:
    for crop in (64, 512, 1000):
        for size in range(crop, 9 * crop, 7):
            count = math.ceil(size / crop)
            overlap = (count * crop - size) / max(count - 1, 1)
            starts = [int(each * (crop - overlap)) for each in range(count)]
            found = windows(size, crop, None)
            assert found[:-1] == [(start, start + crop) for start in starts[:-1]]
            assert found[-1] == (size - crop, size)
            assert 0 <= found[-1][0] - starts[-1] <= 1, "theirs is rounded as well"
    assert windows(40, 64, None) == [(0, 40)]


# --- as any other network -----------------------------------------------------------------------


def test_other_modes_and_weights_that_change(saved: Path) -> None:
    ours, (image, *_) = zoo_seg.from_pretrained(saved), images(SIZES)
    first = ours.predict(image).mask
    assert ours.predict(image, mode="split").mask.tolist() == first.tolist()
    assert ours.predict(image, mode="whole").mask.shape == first.shape
    assert ours.predict(image, mode="slide", stride=(32, 32)).mask.shape == first.shape
    with pytest.raises(OptionError, match="windows of mode='split' are evenly spread"):
        ours.predict(image, stride=(32, 32))
    with torch.no_grad():
        ours.head.classifier.bias[3] += 100
    assert (ours.predict(image).mask == 3).all()


def test_it_is_saved_and_opened_as_any_other(saved: Path, tmp_path: Path) -> None:
    ours, image = zoo_seg.from_pretrained(saved), images(SIZES)[4]
    ours.save_pretrained(tmp_path / "mine")
    again = zoo_seg.from_pretrained(tmp_path / "mine")
    assert (again.classes, again.preprocess, again.protocol, again.test) == (
        ours.classes,
        ours.preprocess,
        ours.protocol,
        ours.test,
    )
    assert np.array_equal(again.predict(image).mask, ours.predict(image).mask)


@pytest.mark.slow
def test_evaluate_measures_as_predict_does(tmp_path: Path) -> None:
    network = transformers_vit.varied("eomt", id2label={index: NAMES[index] for index in range(3)})
    folder, data = save(network, tmp_path / "saved"), draw_folder(tmp_path / "data", train=1, val=1)
    assert main(["evaluate", "--weights", str(folder), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["protocol"]["mode"] == "split"


def test_every_parameter_is_trained(saved: Path) -> None:
    assert not untrained(zoo_seg.from_pretrained(saved).network, "eomt")


@pytest.mark.slow
def test_weights_are_fine_tuned_and_exported(saved: Path, tmp_path: Path) -> None:
    published, image = zoo_seg.from_pretrained(saved), images(SIZES)[0]
    zoo_seg.export(published, tmp_path / "network.onnx")
    exported = zoo_seg.from_exported(tmp_path / "network.onnx")
    assert exported.test == published.test
    assert (exported.predict(image).mask == published.predict(image).mask).mean() > 0.999
    data = draw_folder(tmp_path / "data", train=2, val=1)
    run = tmp_path / "run"
    zoo_seg.finetune(data, weights=saved, out=run, epochs=1, batch_size=2, crop_size=(64, 64), workers=0, device="cpu")
    tuned = zoo_seg.from_pretrained(run)
    assert tuned.test == TestOptions()
    assert tuned.predict(image).mask.shape == image.size[::-1]


# --- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another width": (
        "config.json",
        {"hidden_size": 1536},
        r"hidden_size.*found 1536 with num_hidden_layers 12.*768, 12, 12 \(dinov2_base\)",
    ),
    "gated": ("config.json", {"use_swiglu_ffn": True}, "use_swiglu_ffn.*found true, expected false"),
    "patches": ("config.json", {"patch_size": 14}, "patch_size.*found 14, expected 16"),
    "no square": ("config.json", {"image_size": [64, 96]}, r"image_size.*found \[64, 96\], expected a square"),
    "no windows": ("preprocessor_config.json", {"do_split_image": False}, "do_split_image.*found false, expected true"),
    "limited": (
        "preprocessor_config.json",
        {"size": {"shortest_edge": 64, "longest_edge": 64}},
        "longest_edge.*found 64, expected null",
    ),
    "fixed": ("preprocessor_config.json", {"size": {"height": 64, "width": 64}}, "size.*expected shortest_edge"),
}


@pytest.mark.parametrize(("name", "values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_named(saved: Path, name: str, values: dict[str, Any], message: str) -> None:
    change(saved / name, **values)
    with pytest.raises(ManifestError, match=message):
        zoo_seg.from_pretrained(saved)


# --- the records --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "side"), [("ade20k", 512), ("cityscapes", 1024)])
def test_records_and_repositories_say_the_same(dataset: str, side: int, saved: Path) -> None:
    large = {**transformers_vit.CONFIGS["eomt_dinov2_large"], "image_size": side}
    change(saved / "config.json", **large)
    EomtImageProcessor(size={"shortest_edge": side}, do_split_image=True).save_pretrained(saved)
    info = read_config(saved)
    record = zoo_seg.get_weights(f"eomt_dinov2_large.{dataset}_transformers")
    assert (info.preprocess, info.test, info.protocol) == (record.preprocess, record.test, record.protocol)
    assert info.architecture is not None
    assert info.architecture.backbone == record.architecture.backbone
    assert info.architecture.size_divisor == record.architecture.size_divisor
    assert info.architecture.backbone_options == {**record.architecture.backbone_options, "registers": 4}
    assert info.architecture.options == {"queries": 100, "blocks": 4, "upscales": 2}
    assert record.metrics == ()
