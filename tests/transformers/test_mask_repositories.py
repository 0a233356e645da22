"""transformers' Mask2Former and MaskFormer give what transformers computes: the package itself is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import reference, transformers_masks
from helpers.transformers_repository import change, images, linked
from PIL import Image
from safetensors.torch import load_file
from transformers import Mask2FormerImageProcessor, MaskFormerImageProcessor, PreTrainedModel

import zoo_seg
from zoo_seg import Segmentation, SegmentationModel
from zoo_seg.errors import CheckpointError, ManifestError
from zoo_seg.inference.protocol import predict_logits
from zoo_seg.layers.readout import Queries
from zoo_seg.manifest import Resize, list_weights

pytestmark = pytest.mark.slow

MODELS = {"mask2former": "mask2former_swin_tiny", "maskformer": "maskformer_swin_tiny"}
PROCESSORS = {"mask2former": Mask2FormerImageProcessor, "maskformer": MaskFormerImageProcessor}
NAMES = {index: f"thing {index}" for index in range(7)}
SMALL: dict[str, dict[str, Any]] = {
    "mask2former": {"num_queries": 10, "encoder_layers": 2, "decoder_layers": 4},
    "maskformer": {"decoder_config": {"model_type": "detr", "num_queries": 10, "decoder_layers": 2}},
}
LOUDER = {
    "mask2former": {"mask_embedder.2.0": 4, "class_predictor": 4},
    "maskformer": {"mask_embedder.2.0": 8, "class_predictor": 8, "encoder_attn.o_proj": 16, "mlp.fc2": 8},
}
"""What makes queries differ."""


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def original(family: str) -> PreTrainedModel:
    """One whose classes all win somewhere."""
    transformers.utils.logging.disable_progress_bar()
    network = transformers_masks.filled(MODELS[family], id2label=NAMES, **SMALL[family])
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            for end, factor in LOUDER[family].items():
                if name.endswith(f"{end}.weight"):
                    tensor.mul_(factor)
        x = PROCESSORS[family](size={"height": 96, "width": 96})(images=images()[:4], return_tensors="pt")[
            "pixel_values"
        ]
        pixels = network(x).pixel_decoder_last_hidden_state
        network.model.pixel_level_module.decoder.mask_projection.bias.sub_(pixels.mean((0, 2, 3)))
        network.class_predictor.bias.sub_(network(x).class_queries_logits.mean((0, 1)))
    return network


@pytest.fixture(scope="module")
def written(family: str, original: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    original.save_pretrained(folder)
    PROCESSORS[family](size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A folder of a test's own, as transformers writes it; of the tensors' file there is one."""
    return linked(written, tmp_path / "saved")


# --- the same numbers ---------------------------------------------------------------------------


def sizes_of(family: str) -> list[Any]:
    larger = {record.model for record in list_weights(source="transformers")}
    names = sorted(name for name in {*larger, MODELS[family]} if name.startswith(f"{family}_"))
    return [pytest.param(name, marks=[] if name == MODELS[family] else pytest.mark.reference) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("model", [*sizes_of("mask2former"), *sizes_of("maskformer")])
@torch.inference_mode()
def test_queries_equal_the_original_s(model: str, tmp_path: Path) -> None:
    network = transformers_masks.filled(model, id2label=NAMES)
    network.save_pretrained(tmp_path)
    ours, network = zoo_seg.from_pretrained(tmp_path).double(), network.double()  # masks have a threshold
    assert ours.architecture is not None
    assert f"{ours.architecture.family}_{ours.architecture.backbone}" == model
    for sides in ((64, 96), (83, 121)):
        x = torch.from_numpy(reference.image_tensor(*sides)).double()
        expected, found = network(x), ours.network.forward_train(x)[0]
        assert isinstance(found, Queries)
        for theirs, own in (
            (expected.masks_queries_logits, found.masks),
            (expected.class_queries_logits, found.classes),
        ):
            assert own.shape == theirs.shape
            assert (own - theirs).abs().max() < 2e-5 * theirs.std()


@torch.inference_mode()
def answers(family: str, network: PreTrainedModel, processor: Any, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Their class map and the scores (C, H, W) that it is made of."""
    outputs = network(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[image.size[::-1]], return_segmentation_scores=True
    )
    return np.asarray(found["segmentation"]), np.asarray(found["segmentation_scores"])


def assert_same_maps(
    family: str, ours: SegmentationModel, network: PreTrainedModel, folder: Path, several: list[Image.Image]
) -> None:
    processor = PROCESSORS[family].from_pretrained(folder)
    seen: set[int] = set()
    for image in several:
        expected, scores = answers(family, network, processor, image)
        found = ours.predict(image, probabilities=True)
        assert isinstance(found, Segmentation)
        assert found.mask.shape == expected.shape
        assert (found.mask == expected).mean() >= 0.999
        assert found.probabilities is not None
        somewhere = scores.sum(0) > 0.1  # in a mask
        assert np.abs((found.probabilities - scores / scores.sum(0)) * somewhere).mean() < 1e-3
        seen |= set(np.unique(expected))
    assert len(seen) > 2, "maps of one class prove nothing"


def test_class_maps_equal_the_original_s(family: str, original: PreTrainedModel, saved: Path) -> None:
    assert_same_maps(family, zoo_seg.from_pretrained(saved), original, saved, images())


@pytest.mark.parametrize(
    "rules",
    [
        {"size": {"height": 50, "width": 100}},
        {"size": {"height": 100, "width": 50}, "size_divisor": 0},
        {"size": {"shortest_edge": 60, "longest_edge": 100}},
        {"size": {"shortest_edge": 64, "longest_edge": 100}, "size_divisor": 1},
        {"size": {"shortest_edge": 150, "longest_edge": 200}, "size_divisor": 1},
        {"size": 64, "max_size": 120, "resample": 3},
        {"size": ..., "max_size": 900},
        {"do_resize": False, "do_normalize": False},
    ],
    ids=["landscape", "portrait", "edges", "edges as they are", "near the limit", "old", "old limit", "as it is"],
)
def test_every_preprocessing_is_theirs(family: str, saved: Path, rules: dict[str, Any]) -> None:
    change(saved / "preprocessor_config.json", **rules)
    ours, theirs = zoo_seg.from_pretrained(saved).predictor(), PROCESSORS[family].from_pretrained(saved)
    for image in images():
        (found,) = ours.inputs(image)
        torch.testing.assert_close(found, theirs(images=image, return_tensors="pt")["pixel_values"], rtol=0, atol=1e-5)


def test_the_default_is_the_class_s(family: str, saved: Path) -> None:
    (saved / "preprocessor_config.json").unlink()
    ours = zoo_seg.from_pretrained(saved)
    assert ours.preprocess.resize == Resize(800, 1333, rounding="floor", divisor=32)
    assert ours.protocol == "transformers"


@pytest.mark.parametrize("family", ["mask2former"], indirect=True)
def test_a_file_alone_under_a_model_s_name(saved: Path) -> None:
    ours = zoo_seg.create_model("mask2former_swin_tiny", saved / "model.safetensors")
    assert ours.architecture is not None
    assert (ours.protocol, ours.architecture.options["mixed_at"]) == ("transformers", "384x384")
    assert (ours.architecture.options["queries"], ours.architecture.size_divisor) == (10, 1)


# --- on all roads -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"mode": "slide", "crop": (64, 64)}, {"scales": (0.75, 1.25), "flip": True}, {"batch_size": 2}],
    ids=["slide", "scales and flip", "batch"],
)
@torch.inference_mode()
def test_every_option_of_predict(saved: Path, options: dict[str, Any]) -> None:
    ours, image = zoo_seg.from_pretrained(saved), images()[4]
    how = {name: value for name, value in options.items() if name != "batch_size"}
    inputs = ours.predictor().inputs(image, scales=how.get("scales", (1.0,)))
    expected = predict_logits(ours.network, inputs, output_size=image.size[::-1], protocol=ours.protocol, **how)
    found = ours.predict([image, image], **options)
    assert all((each.mask == expected.argmax(1)[0].numpy()).mean() > 0.999 for each in found)


@pytest.mark.slow
def test_it_is_saved_and_opened_as_any_other(saved: Path, tmp_path: Path) -> None:
    ours, image = zoo_seg.from_pretrained(saved), images()[4]
    ours.save_pretrained(tmp_path / "mine")
    again = zoo_seg.from_pretrained(tmp_path / "mine")
    assert (again.classes, again.preprocess, again.protocol) == (ours.classes, ours.preprocess, ours.protocol)
    assert again.architecture == ours.architecture
    assert np.array_equal(again.predict(image).mask, ours.predict(image).mask)


def test_names_in_files_are_known_to_the_tests(original: PreTrainedModel, written: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(written / "model.safetensors").items()}
    assert shapes == transformers_masks.file_shapes(original)


# --- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another backbone": (
        "config.json",
        {"backbone_config": {"model_type": "resnet"}},
        r'backbone_config.*found "resnet"; the only supported backbone is a Swin Transformer',
    ),
    "another size": (
        "config.json",
        {"backbone_config": {"model_type": "swin", "depths": [1, 1, 1, 1]}},
        r"backbone_config.depths.*found \[1, 1, 1, 1\] with embed_dim 96 and window_size 7; supported are .*swin_base",
    ),
    "heads": (
        "config.json",
        {"backbone_config": {"model_type": "swin", "num_heads": [1, 2, 4, 8]}},
        r"backbone_config.num_heads.*found \[1, 2, 4, 8\], expected \[3, 6, 12, 24\]",
    ),
    "channels": (
        "config.json",
        {"backbone_config": {"model_type": "swin", "num_channels": 4}},
        "backbone_config.num_channels.*found 4, expected 3",
    ),
    "maps": (
        "config.json",
        {"backbone_config": {"model_type": "swin", "out_features": ["stage4"]}},
        "backbone_config.out_features.*expected stage1, stage2, stage3, stage4",
    ),
    "widths": ("config.json", {"mask_feature_size": 128}, "expected one multiple of 256"),
    "padding": ("preprocessor_config.json", {"pad_size": {"height": 9, "width": 9}}, "images are not padded"),
    "one number": ("preprocessor_config.json", {"size": 64}, "found 64, expected .*or shortest_edge and longest_edge"),
    "one edge": ("preprocessor_config.json", {"size": {"shortest_edge": 9}}, "or shortest_edge and longest_edge"),
    "another processor": (
        "preprocessor_config.json",
        {"image_processor_type": "SegformerImageProcessor"},
        'found "SegformerImageProcessor"; supported is Mask',
    ),
}


@pytest.mark.parametrize(("name", "values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_named(saved: Path, name: str, values: dict[str, Any], message: str) -> None:
    change(saved / name, **values)
    with pytest.raises(ManifestError, match=message):
        zoo_seg.from_pretrained(saved)


def test_missing_tensors_have_their_names_in_files(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    gone = [name for name in tensors if name.endswith(("self_attn.q_proj.weight", "mask_projection.bias"))]
    torch.save({name: each for name, each in tensors.items() if name not in gone}, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="does not fit the network") as refusal:
        zoo_seg.from_pretrained(saved)
    assert "model.pixel_level_module.decoder.mask_projection.bias" in str(refusal.value)


# --- the records --------------------------------------------------------------------------------


def test_records_say_where_queries_are_mixed() -> None:
    records = [record for record in list_weights(source="transformers") if record.model.split("_")[0] in MODELS]
    assert len(records) == 10
    for record in records:
        is_newer = record.architecture.family == "mask2former"
        assert record.architecture.options == ({"mixed_at": "384x384"} if is_newer else {})
        assert record.metrics == ()
