"""Files in 8-bit integers: how far their class maps are from the network's, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

import zoo_seg
from zoo_seg.cli import main
from zoo_seg.errors import DataError, ExportError, ImageError, OptionError
from zoo_seg.export import write
from zoo_seg.export.calibration import open_calibration
from zoo_seg.export.int8 import Inputs
from zoo_seg.export.write import Exported
from zoo_seg.images.preprocess import resize_uint8
from zoo_seg.manifest import TestOptions
from zoo_seg.model import SegmentationModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("zoo_seg.export.openvino_int8", exc_type=ImportError)
pytest.importorskip("onnxruntime")

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
WHOLE = {"onnx": {}, "openvino": {"preprocess": True, "argmax": True}}
"""Each format with another graph."""
every_format = pytest.mark.parametrize("kind", SUFFIXES)


@cache
def network() -> SegmentationModel:
    return zoo_seg.create_model("semanticfpn_mobilenetv4_small", "camvid")


def streets(count: int, first: int = 0) -> list[Image.Image]:
    with Image.open(REPOSITORY / "examples" / "street.jpg") as image:
        image = image.convert("RGB")
    places = range(first, first + count)
    return [image.crop((24 * place, 8 * place, 24 * place + 192, 8 * place + 160)) for place in places]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose labels are what the network finds."""
    root = tmp_path_factory.mktemp("calibration") / "data"
    for split, images in (("train", streets(5)), ("val", streets(3, first=5))):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for place, image in enumerate(images):
            image.save(root / "images" / split / f"{place}.png")
            network().predict(image).save(root / "masks" / split / f"{place}.png")
    description = {"classes": network().classes, "palette": network().palette}
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def exported(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    folder = tmp_path_factory.mktemp("int8")

    @cache
    def made(kind: str) -> Exported:
        path = folder / f"street{SUFFIXES[kind]}"
        return zoo_seg.export(network(), path, dtype="int8", calibration=data, **WHOLE[kind])

    return made


# --- which images -------------------------------------------------------------------------------


def test_a_data_set_is_calibrated_on_train_and_compared_on_val(data: Path) -> None:
    found = open_calibration(data)
    assert [path.relative_to(data).as_posix() for path in found.images] == [f"images/train/{n}.png" for n in range(5)]
    assert [path.relative_to(data).as_posix() for path in found.others] == [f"images/val/{n}.png" for n in range(3)]
    masks = [each.mask.relative_to(data).as_posix() for each in found.samples]
    assert masks == [f"masks/val/{n}.png" for n in range(3)]


def test_every_fifth_image_of_a_folder_is_held_out(tmp_path: Path) -> None:
    for place in range(12):
        (tmp_path / f"{place:02}.jpg").touch()
    (tmp_path / "notes.txt").touch()
    found = open_calibration(tmp_path)
    assert [path.stem for path in found.others] == ["00", "05", "10"]
    assert len(found.images) == 9
    assert not set(found.images) & set(found.others)
    assert found.data is None
    some = open_calibration(tmp_path, 3)
    assert [path.stem for path in some.images] == ["01", "04", "08"]
    assert len(open_calibration(tmp_path, 2).others) == 2


def test_a_folder_inside_of_a_data_set_is_one_of_images(data: Path) -> None:
    found = open_calibration(data / "images" / "train")
    assert (len(found.images), len(found.others), found.data) == (4, 1, None)


def test_a_data_set_without_val(data: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes((data / "dataset.json").read_bytes())
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "train").symlink_to(data / kind / "train")
    found = open_calibration(tmp_path)
    assert (len(found.images), len(found.others), len(found.samples)) == (4, 1, 1)


def test_folders_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such folder"):
        open_calibration(tmp_path / "missing")
    with pytest.raises(DataError, match="is no data set"):
        open_calibration(tmp_path)
    (tmp_path / "one.png").touch()
    with pytest.raises(OptionError, match="holds 1 image; expected some to calibrate with and others"):
        open_calibration(tmp_path)
    (tmp_path / "two.png").touch()
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_calibration(tmp_path)
    with pytest.raises(OptionError, match="calibration_images is 0"):
        open_calibration(data, 0)


# --- the files ----------------------------------------------------------------------------------


@pytest.mark.slow
@every_format
def test_what_others_log_is_left_alone(kind: str, exported: Callable[[str], Exported], caplog: Any) -> None:
    exported(kind)
    assert logging.getLoggerClass() is logging.Logger
    assert (logging.root.manager.disable, caplog.handler.level) == (logging.NOTSET, logging.NOTSET)
    logging.getLogger("someone").warning("heard")
    assert "heard" in caplog.text


@pytest.mark.slow
@every_format
def test_it_says_how_it_answers(kind: str, exported: Callable[[str], Exported], data: Path) -> None:
    written = exported(kind)
    found = written.facts.quantisation
    assert found is not None
    assert (found.calibrated, found.compared) == (5, 3)
    assert found.miou is not None
    network_miou, file_miou = found.miou
    assert network_miou == pytest.approx(100)
    assert 70 < file_miou < 100
    loaded = zoo_seg.from_exported(written.path)
    assert (loaded.dtype, loaded.quantisation) == ("int8", found)
    images = sorted((data / "images" / "val").iterdir())
    pairs = zip(network().predict(images), loaded.predict(images), strict=True)
    assert found.agreement == pytest.approx(np.mean([(one.mask == two.mask).mean() for one, two in pairs]))


@pytest.mark.slow
@every_format
def test_its_weights_are_bytes(kind: str, exported: Callable[[str], Exported]) -> None:
    written = exported(kind)
    values = sum(value.numel() for value in network().parameters())
    assert written.size < 2 * values, "float32 would be 4 bytes a value"
    if kind == "onnx":
        operators = {node.op_type for node in onnx.load(written.path).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    else:
        assert "FakeQuantize" in written.path.read_text(encoding="utf-8")
        assert 'element_type="i8"' in written.path.read_text(encoding="utf-8")


@pytest.mark.slow
@every_format
def test_it_takes_any_size_and_batch(kind: str, exported: Callable[[str], Exported]) -> None:
    loaded = zoo_seg.from_exported(exported(kind).path)
    (street,) = streets(1)
    images = [street.resize((130, 75)), street.resize((130, 75)), street.resize((320, 300))]
    for result, image in zip(loaded.predict(images, batch_size=2), images, strict=True):
        assert result.mask.shape == (image.height, image.width)
        assert (result.mask == network().predict(image).mask).mean() > 0.8
    assert loaded.predict(street, scales=(0.75, 1.25), flip=True).mask.shape == (160, 192)


@pytest.mark.slow
def test_it_is_calibrated_with_what_predict_computes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = network(), open_calibration(data)
    monkeypatch.setattr(model, "test", TestOptions("slide", crop=(96, 96), stride=(64, 64), scales=(0.5, 1.0)))
    for preprocess in (False, True):
        written = zoo_seg.export(model, tmp_path / "net.onnx", preprocess=preprocess, check=False)
        given = list(Inputs(written.path, images))
        assert len(given) == len(images.images)
        pixels = resize_uint8(np.array(Image.open(images.images[1])), 360, 432)  # the test size
        (expected,) = model.predictor().inputs(images.images[1])
        if preprocess:
            assert all(each.dtype == np.uint8 and each.shape == (1, 96, 96, 3) for each in given)
            assert np.array_equal(given[1][0], pixels[:96, 64:160])  # of the second image the second window
        else:
            np.testing.assert_allclose(given[1], expected[..., :96, 64:160].numpy())


@pytest.mark.slow
def test_a_file_that_is_too_far_off_is_not_left(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"the file before")
    monkeypatch.setattr(write, "AGREEMENT", 1.01)
    with pytest.raises(ExportError, match=r"% of the pixels of 3 images; expected at least 101%.*calibrate with more"):
        zoo_seg.export(network(), path, dtype="int8", calibration=data)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"the file before"


@pytest.mark.slow
def test_images_and_labels_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for place, image in enumerate(streets(3)):
        image.save(images / f"{place}.png")
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[: len(content) // 2])
    for suffix in SUFFIXES.values():
        with pytest.raises(ImageError, match=r"1\.png"):
            zoo_seg.export(network(), out / f"net{suffix}", dtype="int8", calibration=images)
    assert not list(out.iterdir())


def test_other_classes_are_told_at_once(data: Path, tmp_path: Path) -> None:
    model = zoo_seg.build_model("fcn", "test_efficientnet", 3)
    with pytest.raises(DataError, match="has 11 classes, the network 3; expected as many, or a folder of images alone"):
        zoo_seg.export(model, tmp_path / "net.onnx", dtype="int8", calibration=data)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("net.onnx", {"dtype": "int8"}, r"int8 needs images: .* \(--calibration DIR\)"),
        ("net.onnx", {"calibration": "."}, "calibration is for int8; dtype is 'float32'"),
        ("net.pt2", {"dtype": "int8", "calibration": "."}, "int8 is for ONNX and OpenVINO, not for torch_export"),
        ("net.onnx", {"dtype": "int8", "calibration": "missing"}, "missing: there is no such folder"),
    ],
)
def test_wrong_usage(name: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=words):
        zoo_seg.export(network(), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_line(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.xml"
    arguments = ["--dtype", "int8", "--calibration", data, "--calibration-images", "2"]
    assert main([str(each) for each in ["export", "--out", path, *arguments]]) == 0
    shown = capfd.readouterr()
    assert "quantising it with 2 images ..." in shown.err
    assert "comparing it with the network on 2 other images ..." in shown.err
    first, *lines = shown.out.splitlines()
    assert first.startswith(f"{path}: openvino, int8, ")
    assert all(line.startswith("  in float32: ") for line in lines[:3])
    assert lines[3] == "  calibrated with 2 images, compared on 2 others:"
    assert lines[4].endswith("% of the pixels have the network's class; expected 90% or more")
    assert lines[5].startswith("  mIoU 100.00 % -> ")
    assert lines[5].endswith("points lost")
    assert lines[6] == f"zoo-seg predict IMAGE --weights {path}"
    assert len(lines) == 7

    (street,) = streets(1)
    street.save(tmp_path / "street.png")
    assert main(["predict", str(tmp_path / "street.png"), "--weights", str(path), "--out", str(tmp_path / "out")]) == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "street_mask.png"))
    assert (mask == network().predict(street).mask).mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--dtype", "int8"], 2, "--calibration DIR"),
        (["--calibration", "."], 2, "calibration is for int8"),
        (["--dtype", "int8", "--calibration", "missing"], 2, "missing: there is no such folder"),
        (["--dtype", "int8", "--calibration", "."], 1, "is no data set"),
    ],
)
def test_command_line_refuses(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Before anything is fetched: no weights of this model are to be had here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert main(["export", "--model", "pspnet_r50_os8", "--out", "net.onnx", *arguments]) == code
    assert words in capfd.readouterr().err
