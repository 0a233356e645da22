"""OpenVINO files, converted from ONNX. The `.xml` has a `.bin` of the same name beside it, with the values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from zoo_seg.errors import CheckpointError, ExportError, MissingExtraError
from zoo_seg.export.facts import Facts
from zoo_seg.export.formats import OPSETS, Opened
from zoo_seg.export.graph import brief
from zoo_seg.export.onnx_program import to_onnx

try:
    import openvino as openvino  # for `backend` as well
except ImportError as error:
    raise MissingExtraError(f"OpenVINO needs more ({error.name} is missing): pip install 'zoo_seg[openvino]'") from None

_SECTION = "zoo_seg"


@cache
def core() -> Any:
    """OpenVINO's core, one for the life of the process.

    It gives the thread that first uses it a stack for signals, and takes the memory back when it goes, in whatever
    thread that is: the next signal would end the process.
    """
    return openvino.Core()


def write(program: ExportedProgram, path: Path, facts: Facts, opset: int | None = None) -> None:
    """Two files; float16 is how they hold the values, in a graph that computes in float32."""
    with TemporaryDirectory(dir=path.parent) as folder:  # where there is space for what it becomes
        save(convert(program, Path(folder)), path, facts)


def save(model: Any, path: Path, facts: Facts) -> None:
    """A model with its facts."""
    for name, value in facts.as_strings().items():
        model.set_rt_info(value, [_SECTION, name])
    try:
        openvino.save_model(model, path, compress_to_fp16=facts.dtype == "float16")
    except RuntimeError as error:  # a full disk as well
        raise ExportError(f"OpenVINO cannot write {path.name}: {brief(error)}") from error


def convert(program: ExportedProgram, folder: Path) -> Any:
    """The program as OpenVINO's model, by way of a file in `folder`, which it may go on reading.

    Raises:
        ExportError: OpenVINO, or ONNX between, cannot have it.
    """
    between = folder / "model.onnx"
    to_onnx(program, OPSETS[0], extra="openvino").save(between, external_data=False)
    try:
        return openvino.convert_model(between)
    except Exception as error:  # has no common base
        raise ExportError(f"OpenVINO cannot convert this network: {brief(error)}") from error


def open_file(path: Path, *, before_resize: bool) -> Opened:
    """In OpenVINO's runtime, on the CPU, in float32 whatever the processor would prefer."""
    if not path.with_suffix(".bin").is_file():
        raise CheckpointError(f"{path} has no {path.stem}.bin beside it; copy both files, they belong together")
    try:
        model = core().read_model(path)
        metadata = _metadata(model)
        if before_resize:
            model = _end_before_resize(path, model)
        compiled = core().compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} cannot be run by OpenVINO {openvino.__version__}: {brief(error)}; take a newer openvino, or "
            "export the network again"
        ) from None

    def compute(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled([x.contiguous().numpy()])[0])

    return Opened(path, metadata, compute)


def _metadata(model: Any) -> dict[str, str]:
    if not model.has_rt_info(_SECTION):
        return {}
    return {name: str(value) for name, value in model.get_rt_info(_SECTION).value.items()}


def _end_before_resize(path: Path, model: Any) -> Any:
    """The same model up to what its last resize reads."""
    node = model.get_results()[0]
    while node.get_type_name() != "Interpolate":
        if not node.inputs():
            raise CheckpointError(f"{path} does not end in a resize; expected a file that zoo-seg export wrote")
        node = node.input(0).get_source_output().get_node()
    return openvino.Model([node.input(0).get_source_output()], model.get_parameters())
