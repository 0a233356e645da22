"""DPT as transformers saves it gives what transformers computes: the package itself is asked."""

from __future__ import annotations

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
from transformers import DPTForSemanticSegmentation, DPTImageProcessor

import zoo_seg
from zoo_seg.config import read_config
from zoo_seg.errors import ManifestError
from zoo_seg.families.registry import find_family
from zoo_seg.pretrained import from_tensors

pytestmark = pytest.mark.slow

NAMES = {index: f"thing {index}" for index in range(12)}
IMAGE = 64


@pytest.fixture(scope="module")
def original() -> DPTForSemanticSegmentation:
    transformers.utils.logging.disable_progress_bar()
    network: DPTForSemanticSegmentation = transformers_vit.varied("dpt", id2label=NAMES)
    return network


@pytest.fixture(scope="module")
def written(original: DPTForSemanticSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    original.save_pretrained(folder)
    DPTImageProcessor(size={"height": IMAGE, "width": IMAGE}).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A folder of a test's own, as transformers writes it."""
    return linked(written, tmp_path / "saved")


# --- the same numbers ---------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "as published": {},
    "without BatchNorm, token ignored": {"use_batch_norm_in_fusion_residual": False, "readout_type": "ignore"},
    "token added, no auxiliary head": {"readout_type": "add", "use_auxiliary_head": False},
    "biases": {"use_bias_in_fusion_residual": True, "layer_norm_eps": 1e-6},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@torch.inference_mode()
def test_logits_equal_the_original_s(kind: dict[str, Any], tmp_path: Path) -> None:
    network = transformers_vit.filled("dpt", **{**transformers_vit.SMALL["dpt"], **kind}, id2label=NAMES)
    network.save_pretrained(tmp_path)
    ours = zoo_seg.from_pretrained(tmp_path)
    assert ours.architecture is not None
    assert ours.architecture.backbone == "vit_tiny"
    for side in (64, 80, 101, 33):
        x = torch.from_numpy(image_tensor(side, side, batch=2))
        expected, found = network(x).logits, ours.forward_logits(x)
        assert (found - expected).abs().max() < 2e-5 * expected.std()


@pytest.mark.slow
@torch.inference_mode()
def test_logits_of_the_published_size() -> None:
    network = transformers_vit.filled("dpt", **transformers_vit.CONFIGS["dpt_vit_large"], num_labels=150)
    record = zoo_seg.get_weights("dpt_vit_large.ade20k")
    ours = from_tensors(Path("file"), network.state_dict(), record.architecture, stated=True).build()
    assert sum(each.numel() for each in ours.parameters()) == record.parameters
    for side in (96, 112):
        x = torch.from_numpy(image_tensor(side, side))
        expected, found = network(x).logits, ours.forward_logits(x)
        assert isinstance(found, torch.Tensor)
        assert (found - expected).abs().max() < 2e-5 * expected.std()


@torch.inference_mode()
def test_an_image_that_is_no_square_has_its_own_positions(saved: Path) -> None:
    """transformers refuses it; its halves must be seen where they are."""
    ours = zoo_seg.from_pretrained(saved)
    x = torch.from_numpy(image_tensor(64, 96))
    found = ours(x)
    assert found.shape == (1, 12, 64, 96)
    assert (ours(x.flip(-1)).flip(-1) - found).abs().max() > 0.1 * found.std()
    assert ours(torch.zeros(1, 3, 5, 9)).shape == (1, 12, 5, 9)


@torch.inference_mode()
def test_the_auxiliary_head_is_the_original_s(original: DPTForSemanticSegmentation, saved: Path) -> None:
    x = torch.from_numpy(image_tensor(64, 64))
    states = original.dpt(x, output_hidden_states=True).hidden_states[1:]
    fused = original.neck([states[index] for index in (2, 5, 8, 11)])
    expected = original.auxiliary_head(fused[-1])
    _, found = zoo_seg.from_pretrained(saved).network.forward_train(x)
    assert (found - expected).abs().max() < 2e-5 * expected.std()


RULES: dict[str, dict[str, Any]] = {
    "as published": {},
    "rounded": {"size": 90, "ensure_multiple_of": 32},
    "bilinear": {"size": {"height": 80, "width": 80}, "resample": 2, "image_mean": [0.4, 0.5, 0.6]},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_class_maps_equal_the_original_s(
    rules: dict[str, Any], original: DPTForSemanticSegmentation, saved: Path
) -> None:
    change(saved / "preprocessor_config.json", **rules)
    ours, processor = zoo_seg.from_pretrained(saved), DPTImageProcessor.from_pretrained(saved)
    seen: set[int] = set()
    for image in images() if not rules else images()[:4]:
        expected, found = class_map(original, processor, image), ours.predict(image)
        assert found.mask.shape == expected.shape
        assert (found.mask == expected).mean() >= 0.999
        seen |= set(np.unique(expected))
    assert len(seen) > 2, "maps of one class prove nothing"


# --- as any other network -----------------------------------------------------------------------


def test_weights_that_change_and_a_network_that_is_saved(saved: Path, tmp_path: Path) -> None:
    ours, image = zoo_seg.from_pretrained(saved), images()[0]
    first = ours.predict(image).mask
    ours.save_pretrained(tmp_path / "mine")
    again = zoo_seg.from_pretrained(tmp_path / "mine")
    assert again.architecture == ours.architecture
    assert np.array_equal(again.predict(image).mask, first)
    with torch.no_grad():
        ours.head.pixel.classifier.bias[3] += 1e4
    assert (ours.predict(image).mask == 3).all()


def test_every_parameter_is_trained(saved: Path) -> None:
    assert not untrained(zoo_seg.from_pretrained(saved).network, "dpt")


@pytest.mark.slow
def test_weights_are_fine_tuned_and_exported(saved: Path, tmp_path: Path) -> None:
    published, image = zoo_seg.from_pretrained(saved), images()[0]
    zoo_seg.export(published, tmp_path / "network.onnx")
    exported = zoo_seg.from_exported(tmp_path / "network.onnx")
    assert (exported.predict(image).mask == published.predict(image).mask).mean() > 0.999
    data = draw_folder(tmp_path / "data", train=2, val=1)
    run = tmp_path / "run"
    zoo_seg.finetune(data, weights=saved, out=run, epochs=1, batch_size=2, crop_size=(64, 64), workers=0, device="cpu")
    tuned = zoo_seg.from_pretrained(run)
    assert tuned.preprocess.interpolation == "bicubic"
    assert tuned.predict(image).mask.shape == image.size[::-1]


# --- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "hybrid": ("config.json", {"is_hybrid": True}, "is_hybrid.*found true, expected false"),
    "backbone": ("config.json", {"backbone_config": {"model_type": "bit"}}, "backbone_config.*expected null"),
    "width": ("config.json", {"hidden_size": 256}, r"hidden_size.*found 256 with.*1024, 24, 16 \(vit_large\)"),
    "blocks": ("config.json", {"backbone_out_indices": [1, 2, 3, 4]}, r"backbone_out_indices.*\[2, 5, 8, 11\]"),
    "factors": ("config.json", {"reassemble_factors": [2, 1, 0.5, 0.25]}, r"reassemble_factors.*\[4, 2, 1, 0.5\]"),
    "readout": ("config.json", {"readout_type": "mean"}, 'readout_type.*found "mean", expected ignore, add, project'),
    "maps": ("config.json", {"neck_hidden_sizes": [8, 8]}, r"neck_hidden_sizes.*found \[8, 8\]"),
    "ratio": ("preprocessor_config.json", {"keep_aspect_ratio": True}, "keep_aspect_ratio.*found true, expected false"),
    "padded": ("preprocessor_config.json", {"do_pad": True}, "do_pad.*found true, expected false"),
    "multiple": ("preprocessor_config.json", {"ensure_multiple_of": 0}, "ensure_multiple_of.*found 0, expected 1 to"),
}


@pytest.mark.parametrize(("name", "values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_named(saved: Path, name: str, values: dict[str, Any], message: str) -> None:
    change(saved / name, **values)
    with pytest.raises(ManifestError, match=message):
        zoo_seg.from_pretrained(saved)


# --- the record ---------------------------------------------------------------------------------


def test_the_record_and_the_repository_say_the_same(saved: Path) -> None:
    change(saved / "config.json", **transformers_vit.CONFIGS["dpt_vit_large"], fusion_hidden_size=256, image_size=384)
    DPTImageProcessor(size=480).save_pretrained(saved)
    info, record = read_config(saved), zoo_seg.get_weights("dpt_vit_large.ade20k_transformers")
    assert info.preprocess.resize is not None
    assert (info.preprocess.resize.short, info.preprocess.resize.long) == (480, 480)
    assert (info.preprocess.mean, info.preprocess.std) == (record.preprocess.mean, record.preprocess.std)
    assert (info.preprocess.interpolation, info.protocol, info.test) == (
        record.preprocess.interpolation,
        record.protocol,
        record.test,
    )
    assert info.architecture is not None
    assert info.architecture.backbone == record.architecture.backbone
    assert info.architecture.backbone_options == record.architecture.backbone_options
    family = find_family("dpt")
    assert family.make_options(info.architecture.options) == family.make_options(record.architecture.options)
    assert record.miou == 49.02
