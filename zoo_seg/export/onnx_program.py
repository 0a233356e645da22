"""A traced graph in ONNX's operators: what an ONNX file holds, and what OpenVINO reads."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.export import ExportedProgram

from zoo_seg.errors import ExportError, MissingExtraError
from zoo_seg.export.graph import brief, quiet


def to_onnx(program: ExportedProgram, opset: int, *, extra: Literal["onnx", "openvino"]) -> torch.onnx.ONNXProgram:
    """The program with readable names at both ends, and between them nothing that only its exporter reads.

    Args:
        opset: one of `OPSETS`.
        extra: what to install where packages are missing.
    """
    try:
        with quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=opset, external_data=False, verbose=False)
    except ImportError as error:
        raise MissingExtraError(
            f"writing ONNX needs more ({error.name} is missing): pip install 'zoo_seg[{extra}]'"
        ) from None
    except Exception as error:  # of many kinds, with long explanations
        raise ExportError(f"torch.onnx cannot write this network: {brief(error)}") from error
    assert exported is not None  # older exporters write files themselves
    _tidy(exported.model.graph)
    return exported


def _tidy(graph: Any) -> None:
    (x,), (y,) = graph.inputs, graph.outputs
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            if value is not y:
                value.shape = None
    is_image = x.shape[-1] == 3
    symbols = [str(x.shape[axis]) for axis in ((0, 1, 2) if is_image else (0, 2, 3))]
    names = dict(zip(symbols, ("batch", "height", "width"), strict=True))
    for value in (x, y):
        value.shape = type(value.shape)([names.get(str(side), side) for side in value.shape])
    x.name = "image" if is_image else "x"
    y.name = "logits" if len(y.shape) == 4 else "class_map"
