"""torchvision's segmentation networks compute what torchvision itself computes, on the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.drawn import draw_folder
from helpers.reference import image_tensor
from helpers.torchvision_original import filled
from PIL import Image
from torchvision.models import get_model_weights

import zoo_seg
from zoo_seg import Weights
from zoo_seg.manifest import get_weights, list_weights
from zoo_seg.pretrained import from_tensors

EXAMPLES = Path(__file__).parents[2] / "examples"
RECORDS = list_weights(source="torchvision")


def cases(*fast: str) -> list[Any]:
    """All, of which the named are always run; `-m reference` runs the others."""
    slow = [pytest.mark.reference, pytest.mark.slow]
    return [pytest.param(each, marks=() if each.model in fast else slow, id=each.model) for each in RECORDS]


# --- what was published -------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.model)
def test_the_facts_are_torchvision_s(record: Weights) -> None:
    weights = get_model_weights(record.model).DEFAULT
    (file,), (metric,) = record.files, record.metrics
    stated = weights.meta["_metrics"]["COCO-val2017-VOC-labels"]
    assert file.url == weights.url
    assert (record.parameters, record.miou) == (weights.meta["num_params"], stated["miou"])
    assert f"pixel accuracy of {stated['pixel_acc']} %" in (metric.note or "")
    assert record.classes == ("background", *weights.meta["categories"][1:])
    assert (file.size, file.sha256, record.licence.code, record.licence.weights) == (None, None, "BSD-3-Clause", None)
    assert record.palette == get_weights("fcn_resnet50_os8.voc").palette


def test_all_of_them_are_here() -> None:
    from torchvision.models import list_models, segmentation

    assert sorted(record.model for record in RECORDS) == sorted(list_models(module=segmentation))


# --- the networks -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "record", cases("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
)
@torch.inference_mode()
def test_logits_equal_torchvision_s(record: Weights) -> None:
    original, values = filled(record.model)
    file = from_tensors(Path("file.pth"), values, record.architecture, stated=True)
    network = file.build()
    assert file.naming == "torchvision"
    for size in ((64, 96), (65, 83)):
        x = torch.from_numpy(image_tensor(*size))
        expected = original(x)
        found = [network(x), *(F.interpolate(each, size, mode="bilinear") for each in network.forward_train(x)[1:])]
        for ours, theirs in zip(found, expected.values(), strict=True):
            assert (ours - theirs).abs().max() < 2e-5 * theirs.std()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "other"), [("fcn_resnet50", "fcn_resnet50b_os8"), ("deeplabv3_resnet50", None)])
def test_a_file_without_a_record_is_known_by_its_names_and_shapes(
    model: str, other: str | None, tmp_path: Path
) -> None:
    _, values = filled(model)
    torch.save(values, tmp_path / "file.pth")
    loaded = zoo_seg.create_model(other or model, pretrained=tmp_path / "file.pth")
    assert loaded.protocol == "torchvision"
    expected = get_weights(model, "coco_voc").architecture.options
    assert loaded.architecture is not None
    assert {name: loaded.architecture.options[name] for name in expected} == dict(expected)


# --- class maps ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("record", cases("lraspp_mobilenet_v3_large"))
def test_class_maps_equal_torchvision_s_recipe(
    record: Weights, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transform, its network, its logits at the input's size, and those at the image's."""
    original, values = filled(record.model)
    torch.save(values, tmp_path / record.files[0].name)
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path))
    model = zoo_seg.create_model(record.model, record.tag)
    transform = get_model_weights(record.model).DEFAULT.transforms()
    with Image.open(EXAMPLES / "street.jpg") as street:
        for size in ((120, 161), (200, 150)):
            image = street.convert("RGB").resize((size[1], size[0]))
            x = transform(image)[None]
            difference = (model.predictor().inputs(image)[0] - x).abs()
            assert difference.max() < 0.0176  # 1 of 255: Pillow resizes to 8 bits as torch does, but for rounding
            assert (difference > 2e-6).float().mean() < 1e-3
            with torch.inference_mode():
                logits = F.interpolate(original(x)["out"], size, mode="bilinear")
            expected = logits.argmax(1)[0].numpy()
            assert len(np.unique(expected)) > 2
            assert (model.predict(image).mask == expected).mean() >= 0.999


# --- as any other network -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_weights_are_fine_tuned_saved_and_exported(
    model: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = get_weights(model, "coco_voc")
    torch.save(filled(model)[1], tmp_path / record.files[0].name)
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path))
    published = zoo_seg.create_model(model, record.tag)
    zoo_seg.export(published, tmp_path / "network.onnx")
    exported = zoo_seg.from_exported(tmp_path / "network.onnx")
    assert exported.preprocess == record.preprocess
    mask = published.predict(EXAMPLES / "street.jpg").mask
    assert (exported.predict(EXAMPLES / "street.jpg").mask == mask).mean() > 0.999
    folder = draw_folder(tmp_path / "data", train=2, val=1)
    run = tmp_path / "run"
    zoo_seg.finetune(
        folder, model, record.tag, out=run, epochs=1, batch_size=2, crop_size=(64, 64), workers=0, device="cpu"
    )
    tuned = zoo_seg.from_pretrained(run)
    assert tuned.protocol == "torchvision"
    assert tuned.preprocess.interpolation == "bilinear"
    tuned_mask = tuned.predict(EXAMPLES / "street.jpg").mask
    tuned.save_pretrained(tmp_path / "saved")
    assert (zoo_seg.from_pretrained(tmp_path / "saved").predict(EXAMPLES / "street.jpg").mask == tuned_mask).all()
