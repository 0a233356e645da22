"""`zoo_seg.export`: write a network for another runtime, and see there that it still is the same."""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from zoo_seg.errors import CheckpointError, DataError, ExportError, OptionError
from zoo_seg.export.calibration import Calibration, open_calibration
from zoo_seg.export.check import TOLERANCES, Difference, Trial, trials
from zoo_seg.export.facts import Dtype, Facts
from zoo_seg.export.formats import OPSETS, Format, Handler, format_of, handler, quantiser
from zoo_seg.export.graph import Graph, brief, trace
from zoo_seg.export.int8 import AGREEMENT, Inputs, compare
from zoo_seg.inference.prepare import fold_batchnorm
from zoo_seg.model import SegmentationModel
from zoo_seg.network import SegmentationNetwork


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    format: Format
    size: int
    """Bytes, of both files where a format has two."""
    facts: Facts
    differences: tuple[Difference, ...]
    """From the network, one for every size that was tried; empty without a check."""
    tolerance: float
    """What `Difference.largest` was allowed to be."""


def export(
    model: SegmentationModel,
    path: str | os.PathLike[str],
    format: Format | None = None,  # noqa: A002
    *,
    preprocess: bool = False,
    argmax: bool = False,
    dtype: Dtype = "float32",
    opset: int | None = None,
    calibration: str | os.PathLike[str] | None = None,
    calibration_images: int = 200,
    check: bool = True,
    progress: bool = True,
) -> Exported:
    """Write a network as a file for ONNX Runtime, OpenVINO or torch.export, for any batch, height and width.

    The graph takes `x`, normalised float32 (N, in_chans, H, W), and gives `logits`, float32 (N, num_classes, H, W), as
    `model(x)` does. The file carries classes, palette, preprocessing and the weights' id as metadata (JSON), and
    `from_exported` and `zoo-seg predict --weights` take it in place of a network.

    Args:
        model: a network with its classes; it stays as it is.
        path: replaced once the new file has passed its check. Folders are made.
        format: `"onnx"` (.onnx), `"openvino"` (.xml, with its values in a .bin beside it) or `"torch_export"` (.pt2);
            None follows the path's ending. A torch.export file refuses images so small that the backbone's last map
            is one cell (32 pixels, usually), OpenVINO some that are smaller still.
        preprocess: normalise in the graph, which then takes `image`: uint8 (N, H, W, in_chans), RGB for three
            channels.
        argmax: choose the class in the graph, which then gives `class_map`: (N, H, W), uint8, or int16 beyond 256
            classes.
        dtype: `"float16"` halves the file. ONNX and torch compute in it, OpenVINO in what its device prefers.
            `"int8"` quarters it: weights and feature maps are 8-bit integers, for ONNX and OpenVINO.
        opset: ONNX's, 18 to 23; None is 18.
        calibration: for int8, a folder of images like those that the file is for, or a data set. The ranges of the
            feature maps are taken from a part of them (of a data set from `train`), as `predict` prepares them, and
            the file is compared with the network on others (`val`), with labels by its mIoU as well.
        calibration_images: at most so many to calibrate with, and at most so many to compare on.
        check: run the file in its runtime at three sizes, one with a batch, and compare with the network. For int8
            this is done before it is quantised; then its class maps have to agree in 90 % of the pixels.
        progress: a line on stderr for every step, with its seconds.

    Raises:
        ExportError: the network cannot be written so, or the file's answer is another one; nothing was written.
        OptionError: an option is not allowed, or does not go with the path.
        DataError, ImageError: what int8 is calibrated or compared with cannot be read; nothing was written.
        MissingExtraError: the format's packages are not installed; the message names the pip command.
        OSError: the file cannot be written.
    """
    if not isinstance(model, SegmentationModel):
        raise OptionError(f"model is a {type(model).__name__}; expected one of build_model or create_model")
    target = Path(path)
    kind, writer = choose(target, format, dtype, opset, calibration)
    images = None if calibration is None else open_calibration(calibration, calibration_images)
    if images and images.data and images.data.num_classes != model.num_classes:
        raise DataError(
            f"{images.data.root} has {images.data.num_classes} classes, the network {model.num_classes}; expected as "
            "many, or a folder of images alone"
        )
    facts = Facts.of(model, "image" if preprocess else "x", "class_map" if argmax else "logits", dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".zoo_seg-") as folder:  # fails before the work does
        network = _bare(model)
        for name, value in network.state_dict().items():
            if not value.isfinite().all():
                raise ExportError(f"the network's {name} holds values that are not finite; train or load it again")
        expected = trials(network, facts) if check else []
        if not fold_batchnorm(network):
            network = _bare(model)
        # OpenVINO's files hold float16 values of a network that is written in float32.
        inside = torch.float16 if dtype == "float16" and kind != "openvino" else torch.float32
        with _step("tracing the network for any size of image", progress):
            program = trace(Graph(network.to(inside), facts, inside), model.in_chans)
        new = Path(folder, *(["float32"] if images else []), target.name)
        new.parent.mkdir(exist_ok=True)
        with _step(f"writing {target.name}" + (" in float32" if images else ""), progress):
            writer.write(program, new, facts, opset)
        differences: tuple[Difference, ...] = ()
        if expected:
            with _step("comparing it with the network", progress):
                differences = _compare(writer, new, expected, dtype)
        if images:
            facts = _quantise(model, kind, new, facts, images, check=check, progress=progress)
        parts = sorted(each for each in Path(folder).iterdir() if each.is_file())  # .bin before .xml
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            part.replace(target.with_name(part.name))
    return Exported(target, kind, size, facts, differences, TOLERANCES[dtype])


@contextmanager
def _step(what: str, progress: bool) -> Iterator[None]:
    """Say what is being done, and at its end how long it took."""
    began = time.monotonic()
    if progress:
        print(f"{what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if progress:
            print(f" {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def _quantise(
    model: SegmentationModel,
    kind: Format,
    source: Path,
    facts: Facts,
    images: Calibration,
    *,
    check: bool,
    progress: bool,
) -> Facts:
    """Write the int8 file of a float32 one into the folder above, and say how it answers."""
    writer, path = quantiser(kind), source.parent.parent / source.name
    with _step(f"quantising it with {len(images.images)} images", progress):
        quantised = writer.quantise(source, Inputs(source, images))
    if check:
        tried = source.parent.with_name("int8") / source.name  # what was opened stays as it is until it is closed
        tried.parent.mkdir()
        writer.save(quantised, tried, facts)
        with _step(f"comparing it with the network on {len(images.others)} other images", progress):
            quantisation = compare(model, tried, images)
        if quantisation.agreement < AGREEMENT:
            raise ExportError(
                f"{path.name} has the network's class in {quantisation.agreement:.1%} of the pixels of "
                f"{quantisation.compared} images; expected at least {AGREEMENT:.0%}. It was removed: calibrate with "
                "more images, of the kind that it is for, or use float16"
            )
        facts = replace(facts, quantisation=quantisation)
    writer.save(quantised, path, facts)
    return facts


def choose(
    path: Path,
    format: str | None,  # noqa: A002
    dtype: str,
    opset: int | None,
    calibration: str | os.PathLike[str] | None = None,
) -> tuple[Format, Handler]:
    """The format and who writes it, as far as it can be said before there is a network.

    Raises:
        OptionError, MissingExtraError: see `export`.
    """
    kind = format_of(path, format)
    if dtype not in get_args(Dtype):
        raise OptionError(f"dtype is {dtype!r}; expected one of {', '.join(get_args(Dtype))}")
    if opset is not None and (kind != "onnx" or opset not in OPSETS):
        raise OptionError(f"opset is {opset!r} for {kind}; expected {OPSETS[0]} to {OPSETS[-1]}, with ONNX alone")
    if path.is_dir():
        raise OptionError(f"{path} is a folder; expected a file that ends in {path.suffix}")
    if dtype == "int8":
        if calibration is None:
            raise OptionError("int8 needs images: name a folder or a data set, calibration=DIR (--calibration DIR)")
        quantiser(kind)
    elif calibration is not None:
        raise OptionError(f"calibration is for int8; dtype is {dtype!r}, choose dtype='int8' (--dtype int8)")
    return kind, handler(kind)


def _compare(writer: Handler, path: Path, expected: list[Trial], dtype: Dtype) -> tuple[Difference, ...]:
    """The file beside the network, for every trial that the runtime takes: the last and largest, some refuse less."""
    tolerance, differences = TOLERANCES[dtype], []
    try:
        opened = writer.open_file(path, before_resize=False)
        for trial in expected:
            with nullcontext() if trial is expected[-1] else suppress(OptionError):
                differences.append(trial.difference(opened.run(trial.x)))
    except (CheckpointError, OptionError) as error:
        raise ExportError(f"what was written cannot be run, and was removed: {brief(error)}") from error
    for each in differences:
        if not each.largest <= tolerance:  # NaN as well
            raise ExportError(
                f"{path.name} computes something else ({each}; allowed are {tolerance:g}), and was removed"
                + ("; its network may need more digits than float16 has, use float32" if dtype == "float16" else "")
            )
    return tuple(differences)


def _bare(model: SegmentationModel) -> SegmentationNetwork:
    """A copy in float32 on the CPU, in `eval()`, without the auxiliary head."""
    backbone, head = copy.deepcopy((model.backbone, model.head))
    return model.network.with_parts(backbone, head).eval().requires_grad_(False).float().cpu()
