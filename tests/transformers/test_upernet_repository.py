"""transformers' UPerNet and BEiT give what transformers computes: the package itself is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import reference
from helpers.hub_server import Hub, Repo
from helpers.registries import open_registry
from helpers.transformers_repository import class_map, images
from helpers.upernet_original import BEITS, UPERNETS, beit, convnext, filled, swin, upernet
from safetensors.torch import load_file
from transformers import BeitImageProcessor, PreTrainedModel, SegformerImageProcessor

import zoo_seg
from zoo_seg import Segmentation, SegmentationModel
from zoo_seg.backbones.beit import register_beit
from zoo_seg.backbones.registry import find_backbone
from zoo_seg.config import read_config
from zoo_seg.errors import ManifestError
from zoo_seg.manifest import list_weights
from zoo_seg.network import without_weights
from zoo_seg.transformers import beit as beit_reader

pytestmark = pytest.mark.slow

NAMES = {index: f"thing {index}" for index in range(12)}
SMALL = {"hidden_size": 32, "auxiliary_channels": 16, "id2label": NAMES}
"""Of UPerNet's heads."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A BEiT that is small enough for every test."""
    transformers.utils.logging.disable_progress_bar()
    open_registry(monkeypatch)
    register_beit("beit_tiny", 32, 2, 6, (1, 2, 3, 4))
    monkeypatch.setitem(beit_reader._SIZES, (32, 6, 2, 128), "beit_tiny")


def make(backbone: str, **config: Any) -> PreTrainedModel:
    if backbone in BEITS:
        return filled(beit(backbone, auxiliary_channels=16, id2label=NAMES, **config))
    return filled(upernet(UPERNETS[backbone](), **{**SMALL, **config}))


def saved(network: PreTrainedModel, folder: Path, **rules: Any) -> SegmentationModel:
    network.save_pretrained(folder)
    kind = BeitImageProcessor if network.config.model_type == "beit" else SegformerImageProcessor
    kind(**rules).save_pretrained(folder)
    return zoo_seg.from_pretrained(folder)


def all_classes_win(network: PreTrainedModel) -> PreTrainedModel:
    x = torch.from_numpy(reference.image_tensor(128, 128, batch=2))
    with torch.no_grad():
        network.decode_head.classifier.bias.sub_(network(x).logits.mean((0, 2, 3)))
    return network


SIZES = ((96, 128), (128, 96), (150, 150), (64, 201), (203, 77), (300, 225), (90, 91), (40, 40), (25, 9))


def sizes() -> list[Any]:
    """All, of which small ones are always run; `-m reference` runs those of gigabytes."""
    often, sometimes = ("beit_tiny",), ("swin_tiny", "convnext_tiny_seg", "swin_small")
    marks = [pytest.mark.slow, pytest.mark.reference]
    return [
        pytest.param(name, marks=[] if name in often else marks[:1] if name in sometimes else marks)
        for name in (*UPERNETS, *BEITS)
    ]


# --- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", sizes())
@torch.inference_mode()
def test_logits_equal_transformers(backbone: str, tmp_path: Path) -> None:
    network = make(backbone)
    ours = saved(network, tmp_path)
    assert ours.architecture is not None
    assert (ours.architecture.family, ours.architecture.backbone) == ("upernet", backbone)
    for sides in ((64, 96), (83, 121)):
        x = torch.from_numpy(reference.image_tensor(*sides, batch=2))
        expected = network(x).logits
        found = ours.forward_logits(x) if backbone in BEITS else ours(x)
        assert (found - expected).abs().max() < 2e-5 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["swin_tiny", "convnext_tiny_seg"])
@torch.inference_mode()
def test_a_published_upernet_s_width_as_well(backbone: str, tmp_path: Path) -> None:
    network = make(backbone, hidden_size=512, auxiliary_channels=256, id2label=None, num_labels=150)
    ours = saved(network, tmp_path)
    x = torch.from_numpy(reference.image_tensor(128, 160))
    expected = network(x).logits
    assert (ours(x) - expected).abs().max() < 2e-5 * expected.std()


@pytest.mark.parametrize(
    "options",
    [
        {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
        {"out_indices": [1, 2, 4, 6]},
        {"use_mask_token": True, "use_mean_pooling": False},
        {"image_size": [64, 64]},
    ],
    ids=["one table", "other blocks", "tensors that nobody reads", "another size"],
)
@torch.inference_mode()
def test_options_of_a_beit(options: dict[str, Any], tmp_path: Path) -> None:
    network = make("beit_tiny", **options)
    ours = saved(network, tmp_path)
    for sides in ((64, 64), (96, 96), (50, 170)):
        x = torch.from_numpy(reference.image_tensor(*sides))
        expected = network(x).logits
        assert (ours.forward_logits(x) - expected).abs().max() < 2e-5 * expected.std()


@pytest.mark.parametrize(
    "backbone",
    ["beit_tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin_tiny", "convnext_tiny_seg"))],
)
def test_class_maps_equal_transformers(backbone: str, tmp_path: Path) -> None:
    network = all_classes_win(make(backbone))
    ours = saved(network, tmp_path, size={"height": 96, "width": 96})
    assert ours.protocol == ("transformers" if backbone in BEITS else "transformers_upernet")
    kind = BeitImageProcessor if backbone in BEITS else SegformerImageProcessor
    processor = kind.from_pretrained(tmp_path)
    seen: set[int] = set()
    for image in images(SIZES):
        expected, found = class_map(network, processor, image), ours.predict(image)
        assert isinstance(found, Segmentation)
        assert found.mask.shape == expected.shape
        assert (found.mask == expected).mean() >= 0.999
        seen |= set(np.unique(expected))
    assert len(seen) > 2, "maps of one class prove nothing"


def test_without_a_preprocessor_config_the_class_s_defaults_are_meant(tmp_path: Path) -> None:
    make("beit_tiny").save_pretrained(tmp_path)
    theirs, ours = BeitImageProcessor(), zoo_seg.from_pretrained(tmp_path).preprocess
    assert (ours.resize.short, ours.resize.long) == (theirs.size["height"], theirs.size["width"]) == (224, 224)
    assert [each / 255 for each in (*ours.mean, *ours.std)] == [*theirs.image_mean, *theirs.image_std] == [0.5] * 6
    assert (ours.interpolation, int(theirs.resample)) == ("bicubic", 3)


def test_weights_that_are_edited_later_are_seen(tmp_path: Path) -> None:
    network = all_classes_win(make("beit_tiny"))
    ours = saved(network, tmp_path, size={"height": 96, "width": 96})
    image, processor = images(SIZES)[0], BeitImageProcessor.from_pretrained(tmp_path)
    ours.predict(image)
    with torch.no_grad():
        for table in (
            ours.backbone.biases[1].table,
            network.beit.layers[1].relative_position_bias.relative_position_bias_table,
        ):
            table.mul_(3).add_(torch.linspace(-4, 4, table.shape[0])[:, None])
    expected, found = class_map(network, processor, image), ours.predict(image)
    assert isinstance(found, Segmentation)
    assert (found.mask == expected).mean() >= 0.999


# --- files and the Hub --------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.take_the_place_of_the_hub(monkeypatch, no_token=tmp_path / "no token")
        yield hub


@pytest.mark.parametrize("backbone", ["beit_tiny", pytest.param("swin_tiny", marks=pytest.mark.slow)])
def test_the_hub_and_a_folder_of_ours(backbone: str, hub: Hub, tmp_path: Path) -> None:
    ours = saved(all_classes_win(make(backbone)), tmp_path / "theirs", size={"height": 64, "width": 96})
    image = images(SIZES)[3]
    expected = ours.predict(image).mask
    hub.repos["org/theirs"] = Repo()
    hub.repos["org/theirs"].commit({path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()})
    assert np.array_equal(zoo_seg.from_pretrained("org/theirs").predict(image).mask, expected)
    ours.save_pretrained(tmp_path / "mine")
    again = zoo_seg.from_pretrained(tmp_path / "mine")
    assert (again.architecture, again.preprocess, again.protocol) == (ours.architecture, ours.preprocess, ours.protocol)
    assert np.array_equal(again.predict(image).mask, expected)


def test_a_pickle_of_the_names_of_2021(tmp_path: Path) -> None:
    """With index tables, which were buffers then."""
    expected = saved(make("beit_tiny"), tmp_path).state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    assert "beit.encoder.layer.0.attention.attention.query.weight" in tensors
    assert "decode_head.psp_modules.0.1.bn.weight" in tensors
    prefix = "beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_"
    tensors[f"{prefix}index"] = torch.zeros(37, 37, dtype=torch.int64)
    assert f"{prefix}bias_table" in tensors
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = zoo_seg.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_file_alone_under_a_model_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its statistics are BEiT's, which are no other network's."""
    network = all_classes_win(make("beit_tiny", image_size=96))
    network.save_pretrained(tmp_path)
    published, record = zoo_seg.get_weights("upernet_beit_base.ade20k_transformers"), tmp_path / "manifest.json"
    architecture = {
        "family": "upernet",
        "backbone": "beit_tiny",
        "options": {"channels": 32, "aux_channels": 16},
        "backbone_options": {"image_size": 96},
    }
    weights = {
        "dataset": "ade20k",
        "source": "transformers",
        "parameters": 1,
        "files": [{"url": published.files[0].url}],
        "metrics": [],
        "recipe": "unilm_ade20k_640_base",
        "preprocess": "torch_half_640_square",
        "provenance": {"config_url": None, "log_url": None},
    }
    raw = {
        "schema_version": 2,
        "models": {"tiny": {"title": "Tiny", "architecture": architecture}},
        "weights": {"tiny.ade20k_transformers": weights},
    }
    record.write_text(json.dumps(raw), encoding="utf-8")
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(record))
    ours = zoo_seg.create_model("tiny", tmp_path / "model.safetensors")
    image, processor = images(SIZES)[0], BeitImageProcessor(size={"height": 72, "width": 96})
    found = ours.predict(image, resize=72)
    assert isinstance(found, Segmentation)
    assert (found.mask == class_map(network, processor, image)).mean() >= 0.999


# --- what is refused ----------------------------------------------------------------------------

UPERNET = {"architectures": ["UperNetForSemanticSegmentation"], "model_type": "upernet"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "its default backbone": (
        UPERNET,
        r'backbone_config.model_type.*found "resnet"; supported backbones are swin, conv',
    ),
    "another backbone": ({**UPERNET, "backbone_config": {"model_type": "dinov2"}}, 'model_type.*found "dinov2"'),
    "timm's": ({**UPERNET, "backbone": "resnet50", "use_timm_backbone": True}, 'model_type.*found "resnet50"'),
    "a swin": (
        {**UPERNET, "backbone_config": {**swin(96, (2, 2, 6, 2), 7).to_dict(), "window_size": 8}},
        "backbone_config.depths.*window_size 8",
    ),
    "a convnext": (
        {**UPERNET, "backbone_config": convnext(40, (2, 2, 6, 2)).to_dict()},
        r"backbone_config.depths.*found \[2, 2, 6, 2\] with hidden_sizes \[40, 80, 160, 320\]; supported are .*xlarge",
    ),
    "some maps": (
        {**UPERNET, "backbone_config": {**convnext(96, (3, 3, 9, 3)).to_dict(), "out_features": ["stage4"]}},
        r'out_features.*found \["stage4"\], expected stage1, stage2, stage3, stage4',
    ),
    "pools": (
        {**UPERNET, "backbone_config": {"model_type": "convnext"}, "pool_scales": [1, 2]},
        r"pool_scales.*found \[1, 2\], expected \[1, 2, 3, 6\]",
    ),
}
BEIT = {
    "architectures": ["BeitForSemanticSegmentation"],
    "use_relative_position_bias": True,
    "out_indices": [3, 5, 7, 11],
}
REFUSED_BEITS: dict[str, tuple[dict[str, Any], str]] = {
    "size": (
        {**BEIT, "hidden_size": 384},
        r"hidden_size.*found \[384, 12, 12, 3072\].*\(beit_base\) or .*\(beit_large\)",
    ),
    "no tables": ({**BEIT, "use_relative_position_bias": False}, "use_relative_position_bias.*expected true"),
    "absolute": ({**BEIT, "use_absolute_position_embeddings": True}, "use_absolute_position_embeddings.*found true"),
    "three maps": ({**BEIT, "out_indices": [3, 5, 7]}, r"out_indices.*found \[3, 5, 7\], expected four rising numbers"),
    "beyond": ({**BEIT, "out_indices": [3, 5, 7, 13]}, "out_indices.*of 1 to 12"),
    "side": ({**BEIT, "image_size": 0}, "image_size.*found 0, expected 1 to"),
    "sides": ({**BEIT, "image_size": [64, 96]}, "image_size"),
}


@pytest.mark.parametrize(
    ("config", "message"), [*REFUSED.values(), *REFUSED_BEITS.values()], ids=[*REFUSED, *REFUSED_BEITS]
)
def test_what_is_not_supported_is_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ManifestError, match=message):
        zoo_seg.from_pretrained(tmp_path)


def test_a_crop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"do_center_crop.*found true, expected false"):
        saved(make("beit_tiny"), tmp_path, do_center_crop=True)


# --- the records --------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["beit_base", "beit_large"])
def test_records_and_repositories_say_the_same(backbone: str, tmp_path: Path) -> None:
    config = {**BEITS[backbone], "image_size": 640, "use_relative_position_bias": True}
    raw = {"architectures": ["BeitForSemanticSegmentation"], "model_type": "beit", **config}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 640}), encoding="utf-8")
    read = read_config(tmp_path)
    record = zoo_seg.get_weights(f"upernet_{backbone}.ade20k_transformers")
    assert read.architecture is not None
    assert (read.architecture.family, read.architecture.backbone) == ("upernet", backbone)
    assert read.architecture.options == record.architecture.options
    with without_weights():
        ours, stated = (
            find_backbone(backbone).create(**options)
            for options in (read.architecture.backbone_options, record.architecture.backbone_options)
        )
    assert ours.read == stated.read
    assert [each.shape for each in ours.parameters()] == [each.shape for each in stated.parameters()]
    rules, expected = read.preprocess, record.preprocess
    assert (rules.mean, rules.std, rules.interpolation) == (expected.mean, expected.std, expected.interpolation)
    assert rules.resize is not None
    assert expected.resize is not None
    assert (rules.resize.short, rules.resize.long) == (expected.resize.short, expected.resize.long) == (640, 640)
    assert read.protocol == record.protocol
    assert record.metrics == ()


def test_records_change_no_default() -> None:
    for record in list_weights("upernet_*", source="transformers"):
        assert record.model.startswith("upernet_beit")
