"""Networks as files of other runtimes: the same class map there, or one line that says what to do."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from helpers.disk import largest_file
from PIL import Image

import zoo_seg
from zoo_seg.backbones import registry
from zoo_seg.backbones.registry import Backbone, find_backbone
from zoo_seg.cli import main
from zoo_seg.errors import CheckpointError, ExportError, ImageError, MissingExtraError, OptionError
from zoo_seg.export import onnx_file, openvino_file, torch_file, write
from zoo_seg.export.facts import NAMES
from zoo_seg.export.formats import Format, handler
from zoo_seg.export.graph import quiet
from zoo_seg.export.loaded import ExportedModel
from zoo_seg.export.windows import count_in_windows
from zoo_seg.export.write import Exported
from zoo_seg.images.preprocess import normalise
from zoo_seg.model import SegmentationModel

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2"}
CLASSES = ("road", "Straße", "sky")
PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 200))
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "fcn": ("test_efficientnet", {}),
    "pspnet": ("test_resnet", {"preprocess": True, "argmax": True}),
    "semanticfpn": ("test_resnet", {"dtype": "float16"}),
}
"""The backbone of each family and what it is exported with: an export takes seconds, so each option has one family."""


@torch.no_grad()
def build(family: str, backbone: str, num_classes: int = 3, **options: Any) -> SegmentationModel:
    """Random values of which each has a say, and of which each class is the likeliest somewhere."""
    torch.manual_seed(0)
    model = zoo_seg.build_model(family, backbone, num_classes, channels=8, **options).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(0, 0.1) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of one run
    x = torch.randn(2, model.in_chans, 96, 128)
    model.train()(x)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    model.head.classifier.bias -= model.eval()(x).mean((0, 2, 3))
    return model


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)[:height, :width].copy()


Export = Callable[[str, str], Exported]
Open = Callable[[str, str], ExportedModel]


@cache
def network(family: str) -> SegmentationModel:
    return build(family, NETWORKS[family][0], classes=CLASSES, palette=PALETTE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A family in a format, made when it is first asked for; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def made(family: str, kind: str) -> Exported:
        return zoo_seg.export(network(family), folder / f"{family}.v1{SUFFIXES[kind]}", **NETWORKS[family][1])

    return made


@pytest.fixture(scope="module")
def opened(exported: Export) -> Open:
    """The file of a family in a format, opened once."""
    return cache(lambda family, kind: zoo_seg.from_exported(exported(family, kind).path))


@pytest.fixture
def copied(exported: Export, tmp_path: Path) -> Callable[..., Path]:
    """A copy, with its .bin, to be spoiled."""

    def copied(kind: str, family: str = "fcn") -> Path:
        source = exported(family, kind).path
        for each in (source, source.with_suffix(".bin")):
            if each.is_file():
                (tmp_path / each.name).write_bytes(each.read_bytes())
        return tmp_path / source.name

    return copied


def refused(path: Path, *words: str) -> None:
    """Opening it fails with one line that says these words."""
    with pytest.raises(CheckpointError) as caught:
        zoo_seg.from_exported(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800, message
    assert all(word in message for word in (path.stem, *words)), message


every_format = pytest.mark.parametrize("kind", SUFFIXES)
every_family = pytest.mark.parametrize("family", NETWORKS)


# --- the same answers ---------------------------------------------------------------------------


@every_format
@every_family
def test_the_file_predicts_as_the_network(family: str, kind: str, opened: Open) -> None:
    model, loaded = network(family), opened(family, kind)
    pictures = [picture(75, 110, 1), picture(75, 110, 2), picture(64, 96, 3), picture(90, 61, 4)]
    masks = [result.mask for result in loaded.predict(pictures, batch_size=2)]
    for mask, expected in zip(masks, model.predict(pictures, batch_size=2), strict=True):
        assert len(np.unique(expected.mask)) > 1, "else nothing could be told apart"
        assert mask.shape == expected.mask.shape
        assert mask.dtype == expected.mask.dtype
        assert (mask != expected.mask).mean() <= (0.01 if family == "semanticfpn" else 0.001)


@every_format
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "slide", "crop": (64, 64), "stride": (40, 40)},
        {"scales": (0.75, 1.5), "flip": True},
        {"resize": 60},
    ],
    ids=["slide", "scales and flip", "resize"],
)
def test_every_option_of_predict(kind: str, options: dict[str, Any], opened: Open) -> None:
    image = picture(75, 110)
    found = opened("fcn", kind).predict(image, **options, confidence=True, probabilities=True)
    expected = network("fcn").predict(image, **options, probabilities=True)
    assert (found.mask != expected.mask).mean() <= 0.001
    assert (found.mask == opened("fcn", kind).predict(image, **options).mask).all()
    assert np.abs(found.probabilities - expected.probabilities).max() < 0.01
    assert (found.confidence == np.take_along_axis(found.probabilities, found.mask[None].astype(int), 0)[0]).all()


@every_format
@every_family
def test_what_was_measured_is_told(family: str, kind: str, exported: Export) -> None:
    written = exported(family, kind)
    parts = [written.path, *([written.path.with_suffix(".bin")] if kind == "openvino" else [])]
    assert written.format == kind
    assert written.size == sum(part.stat().st_size for part in parts)
    (batch, *odd), (one, *even), _ = (each.shape for each in written.differences)
    assert batch > 1
    assert one == 1
    assert odd != even
    for each in written.differences:
        assert 0 <= each.largest <= written.tolerance
        assert each.pixels < 0.01


@every_format
@every_family
def test_the_file_knows_its_classes(family: str, kind: str, opened: Open) -> None:
    loaded = opened(family, kind)
    assert (loaded.classes, loaded.palette, loaded.num_classes) == (CLASSES, PALETTE, 3)
    assert (loaded.format, loaded.in_chans, loaded.weights) == (kind, 3, None)
    assert (loaded.preprocess, loaded.protocol) == (network(family).preprocess, network(family).protocol)
    assert loaded.dtype == ("float16" if family == "semanticfpn" else "float32")


def test_float16_halves_the_file(exported: Export) -> None:
    values = 4 * sum(value.numel() for value in network("semanticfpn").parameters())
    for kind in ("onnx", "openvino"):
        assert exported("semanticfpn", kind).size < 0.75 * values


def test_convnext_to_torch_export(tmp_path: Path) -> None:
    """Its graph is for sizes that are told apart with `torch.sym_max`."""
    model = build("fcn", "test_convnext2")
    written = zoo_seg.export(model, tmp_path / "net.pt2", check=False)
    image = picture(75, 110)
    assert (zoo_seg.from_exported(written.path).predict(image).mask == model.predict(image).mask).mean() > 0.999


@pytest.mark.slow
def test_padding_that_some_sizes_do_not_need(tmp_path: Path) -> None:
    """Views of what is cut off bound a graph to sizes that have something to cut."""
    model = build("fcn", "mobilenetv4_conv_small")
    model.network.size_divisor = 32
    written = zoo_seg.export(model, tmp_path / "net.pt2", check=False)
    loaded = zoo_seg.from_exported(written.path)
    for size in ((96, 128), (75, 128), (96, 110), (75, 110)):
        image = picture(*size)
        assert (loaded.predict(image).mask == model.predict(image).mask).mean() > 0.999


@pytest.fixture
def small_swin(monkeypatch: pytest.MonkeyPatch) -> SegmentationModel:
    """One stage of timm's Swin, with a plain and a shifted block, and little of the others."""
    size = {"depths": (2, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 1, 1)}
    create = partial(find_backbone("swin_tiny_patch4_window7_224").create, **size)
    monkeypatch.setitem(registry._REGISTERED, "small_swin", Backbone("small_swin", create))
    return build("fcn", "small_swin")


def test_swin_in_other_words(small_swin: SegmentationModel) -> None:
    images = [torch.randn(2, 3, *size) for size in ((96, 128), (100, 60), (224, 224))]
    with torch.inference_mode():
        expected = [small_swin(x) for x in images]
        count_in_windows(small_swin.network)
        for x, logits in zip(images, expected, strict=True):
            assert torch.equal(small_swin(x), logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_swin_of_any_size(kind: str, small_swin: SegmentationModel, tmp_path: Path) -> None:
    """As timm writes its windows, torch.export needs more than ten minutes: `export/windows.py`."""
    written = zoo_seg.export(small_swin, tmp_path / f"net{SUFFIXES[kind]}")
    loaded = zoo_seg.from_exported(written.path)
    for size in ((300, 420), (512, 260)):
        image = picture(*size)
        assert (loaded.predict(image).mask == small_swin.predict(image).mask).mean() > 0.999
    if kind == "torch_export":  # as it refuses a last map of one cell, it refuses one of one window
        with pytest.raises(OptionError, match="take a larger one"):
            loaded.predict(picture(75, 110))


def test_many_classes_need_16_bits(tmp_path: Path) -> None:
    model, image = build("fcn", "test_efficientnet", 300), picture(75, 110)
    written = zoo_seg.export(model, tmp_path / "net.pt2", preprocess=True, argmax=True, check=False)
    ids = torch.export.load(written.path).module()(torch.from_numpy(image)[None])
    expected = model.predict(image)
    assert ids.dtype == torch.int16
    assert expected.mask.dtype == np.uint16
    assert expected.mask.max() > 255
    assert (ids[0].numpy() != expected.mask).mean() <= 0.001
    assert (zoo_seg.from_exported(written.path).predict(image).mask != expected.mask).mean() <= 0.001


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kind", SUFFIXES)
def test_other_pictures_than_rgb(kind: str, channels: int, tmp_path: Path) -> None:
    """The file compares itself with the network; predicted are the bands and the range of the training."""
    model = build("fcn", "test_efficientnet", in_chans=channels)
    bands = tuple(range(5, 5 - channels, -1))
    model.preprocess = replace(model.preprocess, range=((0, 999),), bands=bands)
    deep = np.random.default_rng(0).integers(0, 1000, (70, 90, 6), np.uint16)
    expected = model.predict(deep).mask
    for preprocess in (False, True):
        path = tmp_path / f"{preprocess}{SUFFIXES[kind]}"
        written = zoo_seg.export(model, path, preprocess=preprocess, argmax=preprocess, progress=False)
        assert all(each.largest <= written.tolerance for each in written.differences)
        loaded = zoo_seg.from_exported(path)
        assert (loaded.in_chans, loaded.preprocess) == (channels, model.preprocess)
        assert (loaded.predict(deep).mask == expected).mean() > 0.999
        with pytest.raises(ImageError, match="3 bands, expected at least 5"):
            loaded.predict(deep[:, :, :3].astype(np.uint8))


def test_the_network_stays_as_it_was(tmp_path: Path) -> None:
    model = build("fcn", "test_efficientnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zoo_seg.export(model, tmp_path / "new" / "folder" / "net.pt2", check=False)
    assert all(module.training for module in model.modules())
    assert len(model.aux_heads) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["net.pt2"]


# --- torch.jit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["model", "network"])
def test_torch_jit_script_is_refused(part: str) -> None:
    model = network("fcn")
    with pytest.raises(ExportError, match=r"torch\.jit\.script is not supported; zoo_seg\.export\(model, 'net\.pt2'\)"):
        torch.jit.script(model if part == "model" else model.network)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["fcn", "pspnet"])
def test_torch_jit_trace_warns_of_other_sizes(family: str) -> None:
    """Of these two it is right there; nobody promises it of all."""
    model = network(family)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="may keep the input's size, 64x96: compare the trace at others"):
            traced = torch.jit.trace(model, torch.randn(1, 3, 64, 96), check_trace=False)
        for x in (torch.randn(1, 3, 64, 96), torch.randn(2, 3, 75, 110)):
            torch.testing.assert_close(traced(x), model(x), atol=1e-4, rtol=1e-4)


# --- without this library -----------------------------------------------------------------------


def test_onnx_logits_of_any_size(exported: Export) -> None:
    session = onnxruntime.InferenceSession(exported("fcn", "onnx").path)
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("x", "tensor(float)", ["batch", 3, "height", "width"])
    assert (made.name, made.type, made.shape) == ("logits", "tensor(float)", ["batch", 3, "height", "width"])
    for shape in ((1, 3, 64, 96), (3, 3, 75, 50), (2, 3, 9, 200)):
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = network("fcn")(x)
        (logits,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(logits, expected, atol=1e-4 * float(expected.std()))


def colours_and_classes(metadata: dict[str, str]) -> None:
    assert set(metadata) >= set(NAMES)
    info = json.loads(metadata["info"])
    assert info["classes"] == list(CLASSES)
    assert info["palette"] == [list(colour) for colour in PALETTE]


def test_onnx_from_picture_to_class_map(exported: Export) -> None:
    session = onnxruntime.InferenceSession(exported("pspnet", "onnx").path)
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (made.name, made.type, made.shape) == ("class_map", "tensor(uint8)", ["batch", "height", "width"])
    for size in ((75, 110), (64, 96)):
        pictures = np.stack([picture(*size, 1), picture(*size, 2)])
        (ids,) = session.run(None, {"image": pictures})
        expected = [result.mask for result in network("pspnet").predict(list(pictures))]
        assert ids.dtype == np.uint8
        assert (ids != np.stack(expected)).mean() <= 0.001
    colours_and_classes(session.get_modelmeta().custom_metadata_map)


def test_openvino_from_picture_to_class_map(exported: Export) -> None:
    model = openvino_file.core().read_model(exported("pspnet", "openvino").path)
    image = picture(75, 110)
    ids = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([image[None]])["class_map"]
    assert ids.dtype == np.uint8
    assert (ids[0] != network("pspnet").predict(image).mask).mean() <= 0.001
    colours_and_classes({name: str(value) for name, value in model.get_rt_info("zoo_seg").value.items()})


def test_torch_export_from_picture_to_class_map(exported: Export) -> None:
    metadata = dict.fromkeys(NAMES, "")
    program = torch.export.load(exported("pspnet", "torch_export").path, extra_files=metadata)
    image = picture(75, 110)
    ids = program.module()(torch.from_numpy(image)[None])
    assert ids.dtype == torch.uint8
    assert (ids[0].numpy() != network("pspnet").predict(image).mask).mean() <= 0.001
    colours_and_classes(metadata)


@every_format
def test_no_folder_of_this_machine_is_told(kind: str, exported: Export) -> None:
    path = exported("fcn", kind).path
    content = path.read_bytes()
    if kind == "torch_export":
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(REPOSITORY).encode() not in content
    assert b"site-packages" not in content


# --- failures leave what was there --------------------------------------------------------------


def spoil_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is another network than the one that was given."""
    real = write.trace

    def trace(graph: torch.nn.Module, in_chans: int) -> Any:
        with torch.no_grad():
            next(graph.parameters()).mul_(1.1)
        return real(graph, in_chans)

    monkeypatch.setattr(write, "trace", trace)


def spoil_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that torch.export cannot follow."""
    monkeypatch.setattr(write.Graph, "forward", lambda self, x: x if x.sum() > 0 else -x)


def spoil_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime cannot read what was written."""
    monkeypatch.setattr(torch_file, "write", lambda program, path, *_: path.write_bytes(b"PK nothing"))


def spoil_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no word\nfor this operator")

    monkeypatch.setattr(torch.export, "save", save)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_values, "computes something else .* standard deviation, .* allowed are 0.001"),
        (spoil_network, "torch.export cannot follow this network"),
        (spoil_file, "cannot be run"),
        (spoil_saving, "cannot write this network: no word for this operator"),
    ],
)
def test_a_failure_leaves_the_folder_as_it_was(
    spoil: Callable[[pytest.MonkeyPatch], None],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"the file before")
    spoil(monkeypatch)
    with pytest.raises(ExportError, match=words) as caught:
        zoo_seg.export(network("fcn"), path)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt2"]
    assert path.read_bytes() == b"the file before"


@every_format
def test_a_mismatch_leaves_nothing(
    kind: Format, exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the file of another network."""
    other, source = copy.deepcopy(network("fcn")), exported("fcn", kind).path

    def write_another(program: Any, path: Path, *_: object) -> None:
        for suffix in {SUFFIXES[kind], ".bin"} if kind == "openvino" else {SUFFIXES[kind]}:
            path.with_suffix(suffix).write_bytes(source.with_suffix(suffix).read_bytes())

    monkeypatch.setattr(handler(kind), "write", write_another)
    zoo_seg.export(network("fcn"), tmp_path / "same" / f"net{SUFFIXES[kind]}")
    with torch.no_grad():
        other.head.classifier.weight[0, 0] += 0.01
    with pytest.raises(ExportError, match="computes something else"):
        zoo_seg.export(other, tmp_path / "other" / f"net{SUFFIXES[kind]}")
    assert len(list((tmp_path / "same").iterdir())) == (2 if kind == "openvino" else 1)
    assert not list((tmp_path / "other").iterdir())


def test_a_mismatch_in_float16_says_what_else_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_values(monkeypatch)
    with pytest.raises(ExportError, match=r"allowed are 0\.05.*use float32"):
        zoo_seg.export(network("fcn"), tmp_path / "net.pt2", dtype="float16")


def test_values_that_are_no_numbers_fail(tmp_path: Path) -> None:
    model = build("fcn", "test_efficientnet")
    with torch.no_grad():
        model.head.classifier.bias[0] = float("nan")
    with pytest.raises(ExportError, match=r"head\.classifier\.bias holds values that are not finite"):
        zoo_seg.export(model, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(exported: Export, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"the file before")
    with largest_file(100_000), pytest.raises(OSError, match="File too large"):
        zoo_seg.export(network("fcn"), path)
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt2"]
    assert path.read_bytes() == b"the file before"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("net.onnx", {"format": "tflite"}, "format is 'tflite'; expected one of onnx, torch_export, openvino"),
        ("net.onnx", {"format": "openvino"}, r"ends in '.onnx'; expected .xml \(openvino\)"),
        ("net.XML", {}, "ends in '.XML'; expected .onnx"),
        ("net.pth", {}, r"ends in '.pth'; expected .onnx \(onnx\), .pt2 \(torch_export\), .xml"),
        ("net", {"format": "onnx"}, "ends in 'nothing'; expected .onnx"),
        ("net.onnx", {"dtype": "bfloat16"}, "dtype is 'bfloat16'; expected one of float32, float16"),
        ("net.onnx", {"opset": 99}, "opset is 99 for onnx; expected 18 to 23"),
        ("net.onnx", {"opset": 11}, "opset is 11 for onnx; expected 18 to 23"),
        ("net.pt2", {"opset": 18}, "opset is 18 for torch_export; expected 18 to 23, with ONNX alone"),
        ("folder.onnx", {}, "is a folder; expected a file that ends in .onnx"),
    ],
)
def test_wrong_usage(name: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OptionError, match=words):
        zoo_seg.export(network("fcn"), tmp_path / name, **options)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize("first", ["zoo_seg.export.loaded", "zoo_seg.export"])
def test_export_is_the_function_whatever_is_imported_first(first: str) -> None:
    code = f"import {first}; from zoo_seg import export; import zoo_seg; assert zoo_seg.export is export; export(1, '')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert "OptionError: model is a int" in result.stderr


def test_only_networks_are_exported(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="model is a Conv2d"):
        zoo_seg.export(torch.nn.Conv2d(3, 3, 1), tmp_path / "net.onnx")  # type: ignore[arg-type]


# --- files that cannot be used ------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("share", [0, 0.3, 0.98])
def test_a_file_that_was_cut_off(kind: str, share: float, copied: Callable[..., Path]) -> None:
    path = copied(kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


@every_format
def test_a_file_of_something_else(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{SUFFIXES[kind]}"
    path.with_suffix(".bin").write_bytes(b"")
    path.write_bytes(b"<html><body>Not found</body></html>\n" * 20)
    refused(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "net.onnx", "there is no file", "zoo-seg export writes one")
    with pytest.raises(OptionError, match=r"expected \.onnx"):
        zoo_seg.from_exported(tmp_path / "net.pth")


@pytest.mark.parametrize("size", [None, 0, 1000])
def test_openvino_without_its_values(size: int | None, copied: Callable[..., Path]) -> None:
    path = copied("openvino")
    values = path.with_suffix(".bin")
    if size is None:
        values.unlink()
        refused(path, "has no fcn.v1.bin beside it")
    else:
        values.write_bytes(values.read_bytes()[:size])
        refused(path)


def edit_onnx(path: Path, edit: Callable[[Any], object]) -> None:
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())


def turn_around(model: Any) -> None:
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    last.op_type, last.input[0] = "Identity", last.output[0]
    del last.input[1:]


def rename_metadata(model: Any) -> None:
    model.metadata_props[0].key = "something"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 99), ["opset 99", "again with opset=18"]),
        (lambda model: setattr(model, "ir_version", 99), ["onnxruntime", "again with opset=18"]),
        (lambda model: model.ClearField("metadata_props"), ["not written by zoo-seg export"]),
        (lambda model: setattr(model.graph.node[0], "op_type", "Unheard"), ["Unheard", "again with opset=18"]),
        (lambda model: model.graph.ClearField("output"), ["does not end in a resize"]),
        (lambda model: model.ClearField("graph"), ["does not end in a resize"]),
        (turn_around, ["does not end in a resize"]),
        (rename_metadata, ["export the network again"]),
    ],
    ids=["opset", "ir", "no metadata", "operator", "no output", "no graph", "circle", "renamed"],
)
def test_onnx_of_another_kind(edit: Callable[[Any], object], words: list[str], copied: Callable[..., Path]) -> None:
    path = copied("onnx")
    edit_onnx(path, edit)
    refused(path, *words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("schema_version", "3", "schema_version is 3, this library reads 2"),
        ("info", lambda info: info.update(classes=["road"]), "1 classes but 3 palette colours"),
        ("info", lambda info: info.update(palette=[[0, 0, 0], [0, 0], 7]), "palette"),
        ("info", lambda info: info.update(preprocess=None), "preprocess"),
        ("info", "road", "damaged"),
        ("info", "[" * 100_000, "damaged"),
        ("input", '"video"', "input"),
    ],
)
def test_metadata_that_make_no_sense(name: str, value: Any, words: str, copied: Callable[..., Path]) -> None:
    path = copied("onnx")

    def edit(model: Any) -> None:
        entry = next(each for each in model.metadata_props if each.key == name)
        if isinstance(value, str):
            entry.value = value
        else:
            content = json.loads(entry.value)
            value(content)
            entry.value = json.dumps(content)

    edit_onnx(path, edit)
    refused(path, words, "export the network again")


def test_openvino_of_somebody_else(copied: Callable[..., Path]) -> None:
    path = copied("openvino")
    path.write_text(path.read_text(encoding="utf-8").replace("<zoo_seg>", "<other>").replace("</zoo_seg>", "</other>"))
    refused(path, "not written by zoo-seg export")
    text = path.read_text().replace('version="opset1"', 'version="opset99"')
    path.write_text(text)
    refused(path, "OpenVINO", "export the network again")


def edit_pt2(path: Path, edit: Callable[[str, bytes], bytes], **more: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: edit(name, archive.read(name)) for name in archive.namelist()}
    root = next(iter(parts)).split("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, **{f"{root}/{name}": content for name, content in more.items()}}.items():
            archive.writestr(name, content)


def in_model(old: str, new: str) -> Callable[[str, bytes], bytes]:
    """An edit of the graph's JSON."""

    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        assert old.encode() in content, f"{old} is nowhere: the format has changed, and the test with it"
        return content.replace(old.encode(), new.encode())

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (in_model("torch.ops.aten.conv2d.default", "os.system"), "its graph calls 'os.system'"),
        (in_model("torch.ops.aten.conv2d.default", "torch.ops.aten.conv2d.default;x"), "its graph calls"),
        (in_model('"guards_code": [', '"guards_code": ["__import__(\'os\').getcwd()", '), "its sizes are computed by"),
        (in_model('"guards_code": [', '"guards_code": ["torch.load(x)", '), "its sizes are computed by"),
        (in_model('"guards_code": [', '"guards_code": ["torch.sym_max.Load(1)", '), "its sizes are computed by"),
        (in_model('"major": ', '"major": 9'), "cannot be read by torch"),
    ],
    ids=["call", "name", "import", "load", "attribute", "another version"],
)
def test_torch_export_of_another_kind(
    edit: Callable[[str, bytes], bytes], words: str, copied: Callable[..., Path]
) -> None:
    path = copied("torch_export")
    edit_pt2(path, edit)
    refused(path, words)


def test_torch_export_with_a_pickle(
    copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers import hostile

    monkeypatch.chdir(tmp_path)
    bomb = hostile.zipped(hostile.execute())
    for edit, more in (
        (lambda name, content: bomb if name.endswith("model.pt") else content, {}),
        (lambda name, content: content, {"data/aotinductor/model/code.so": b"\x7fELF"}),
        (lambda name, content: content.replace(b'"use_pickle": false', b'"use_pickle": true'), {}),
    ):
        path = copied("torch_export")
        edit_pt2(path, edit, **more)
        refused(path, "was not opened: it holds", "which zoo-seg export does not write")
    assert not (tmp_path / "executed").exists()


def test_torch_export_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt2"
    torch.export.save(torch.export.export(torch.nn.Conv2d(3, 3, 1), (torch.zeros(1, 3, 4, 4),)), path)
    refused(path, "expected a file that zoo-seg export wrote")


@pytest.mark.parametrize("kind", ["openvino", "torch_export"])
def test_a_picture_that_is_too_small(kind: str, opened: Open) -> None:
    loaded = opened("semanticfpn", kind)
    with pytest.raises(OptionError, match=r"an input of 1x3x1x1 .*take a larger one") as caught:
        loaded.predict(picture(1, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "runs on the CPU"),
        ({"dtype": "bfloat16"}, "computes in float32, export another one"),
        ({"compile": True}, "compile is for networks"),
    ],
)
def test_what_a_file_cannot_do(options: dict[str, Any], words: str, opened: Open) -> None:
    with pytest.raises(OptionError, match=words):
        opened("fcn", "onnx").predict(picture(64, 64), **options)


# --- missing packages ---------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that a package is not installed."""

    def without(package: str) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, package, None)
        for module in (onnx_file, openvino_file):
            monkeypatch.delitem(sys.modules, module.__name__)
            monkeypatch.delattr(sys.modules["zoo_seg.export"], module.__name__.rpartition(".")[2])

    return without


MISSING = [("onnx", "onnx", "onnx"), ("onnxruntime", "onnx", "onnx"), ("openvino", "openvino", "openvino")]


@pytest.mark.parametrize(("package", "kind", "extra"), MISSING)
def test_missing_packages_name_the_command(
    package: str, kind: str, extra: str, exported: Export, without: Callable[[str], None], tmp_path: Path
) -> None:
    path = exported("fcn", kind).path
    without(package)
    for call in (lambda: zoo_seg.from_exported(path), lambda: zoo_seg.export(network("fcn"), tmp_path / path.name)):
        with pytest.raises(MissingExtraError) as caught:
            call()
        assert f"({package} is missing): pip install 'zoo_seg[{extra}]'" in str(caught.value)


@pytest.mark.parametrize(("kind", "extra"), [("onnx", "onnx"), ("openvino", "openvino")])
def test_without_the_exporters_package(kind: str, extra: str, without: Callable[[str], None], tmp_path: Path) -> None:
    without("onnxscript")
    with pytest.raises(MissingExtraError) as caught:
        zoo_seg.export(network("fcn"), tmp_path / f"net{SUFFIXES[kind]}")
    assert f"pip install 'zoo_seg[{extra}]'" in str(caught.value)


def test_an_old_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.7.1"))
    with pytest.raises(MissingExtraError, match=r"pip install 'torch>=2\.8'"):
        zoo_seg.export(network("fcn"), tmp_path / "net.pt2")


# --- on the command line ------------------------------------------------------------------------


def command(*arguments: str | Path) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's way to end
        assert isinstance(stop.code, int)
        return stop.code


def test_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, path = tmp_path / "run", tmp_path / "net.onnx"
    network("fcn").save_pretrained(folder)
    Image.fromarray(picture(75, 110)).save(tmp_path / "street.png")
    assert command("export", "--weights", folder, "--out", path, "--preprocess", "--argmax", "--opset", "20") == 0
    shown = capfd.readouterr()
    steps = [line.partition(" ...")[0] for line in shown.err.splitlines() if " ... " in line]
    assert steps == [
        "tracing the network for any size of image",
        "writing net.onnx",
        "comparing it with the network",
    ]
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"{path}: onnx, float32, ")
    assert lines[0].endswith("image -> class_map")
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["2x97x131", "1x160x128", "1x269x307"]
    assert all("of their standard deviation" in line and "allowed 0.001" in line for line in lines[1:4])
    assert lines[4] == f"zoo-seg predict IMAGE --weights {path}"
    assert onnx.load(path).opset_import[0].version == 20

    assert command("predict", tmp_path / "street.png", "--weights", path, "--out", tmp_path / "out") == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "street_mask.png"))
    assert (mask != network("fcn").predict(tmp_path / "street.png").mask).mean() <= 0.001
    assert "Traceback" not in capfd.readouterr().err


def test_command_line_with_the_packaged_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    street, path = REPOSITORY / "examples" / "street.jpg", tmp_path / "small.pt2"
    assert command("export", "--out", path, "--no-check") == 0
    assert "not checked" in capfd.readouterr().out
    model, loaded = zoo_seg.create_model("semanticfpn_mobilenetv4_small", "camvid"), zoo_seg.from_exported(path)
    assert model.weights is not None
    assert (loaded.weights, loaded.classes) == (model.weights.id, model.classes)
    assert (loaded.predict(street).mask != model.predict(street).mask).mean() <= 0.001


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export"], 2, "--out"),
        (["export", "--out", "net.pth"], 2, "ends in '.pth'"),
        (["export", "--out", "net.onnx", "--format", "openvino"], 2, "expected .xml"),
        (["export", "--out", "net.onnx", "--opset", "99"], 2, "opset is 99"),
        (["export", "--out", "net.onnx", "--weights", "other.onnx"], 2, "is an exported file"),
        (["predict", "street.png", "--weights", "missing.onnx"], 1, "there is no file missing.onnx"),
        (["predict", "street.png", "--weights", "damaged.onnx"], 1, "no ONNX file, or damaged"),
        (["predict", "street.png", "--weights", "fcn.v1.onnx", "--model", "fcn_r50_os8"], 2, "its own network"),
        (["predict", "street.png", "--weights", "fcn.v1.onnx", "--device", "meta"], 2, "device 'meta'"),
        (["predict", "street.png", "--weights", "fcn.v1.onnx", "--dtype", "bfloat16"], 2, "computes in float32"),
    ],
)
def test_command_line_refuses(
    arguments: list[str],
    code: int,
    words: str,
    copied: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    copied("onnx")
    Image.fromarray(picture(40, 50)).save("street.png")
    Path("damaged.onnx").write_bytes(b"damaged")
    assert command(*arguments) == code
    error = capfd.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert "unexpected" not in error


def test_command_line_without_packages(
    without: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is fetched: no weights of this model are to be had here."""
    without("onnxruntime")
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    assert command("export", "--model", "pspnet_r50_os8", "--out", tmp_path / "net.onnx") == 1
    assert "pip install 'zoo_seg[onnx]'" in capfd.readouterr().err


def test_normalising_in_the_graph_is_the_librarys(opened: Open) -> None:
    """Without argmax and resize in between: the image's logits, value by value."""
    image, model = picture(64, 96), network("pspnet")
    with torch.inference_mode():
        expected = model.forward_logits(normalise(image, model.preprocess.mean, model.preprocess.std))
    logits = opened("pspnet", "onnx").forward_logits(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.std()), rtol=0)


def test_quiet_in_several_threads_leaves_logging_as_it_was() -> None:
    inside = threading.Barrier(2, timeout=10)

    def first() -> None:
        with quiet():
            inside.wait()  # both are quiet
            inside.wait()  # the other one is no more

    thread = threading.Thread(target=first)
    thread.start()
    with quiet():
        inside.wait()
    assert logging.root.manager.disable == logging.WARNING
    inside.wait()
    thread.join()
    assert logging.root.manager.disable == logging.NOTSET
