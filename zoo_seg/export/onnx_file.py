"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from zoo_seg.errors import CheckpointError, MissingExtraError
from zoo_seg.export.facts import Facts
from zoo_seg.export.formats import OPSETS, Opened
from zoo_seg.export.graph import brief
from zoo_seg.export.onnx_program import to_onnx

try:
    import onnx
    import onnxruntime
except ImportError as error:
    raise MissingExtraError(f"ONNX files need more ({error.name} is missing): pip install 'zoo_seg[onnx]'") from None

_FATAL = 4


def write(program: ExportedProgram, path: Path, facts: Facts, opset: int | None = None) -> None:
    """One file with the values in it."""
    exported = to_onnx(program, opset or OPSETS[0], extra="onnx")
    exported.model.metadata_props.update(facts.as_strings())
    exported.save(path, external_data=False)


def save(model: Any, path: Path, facts: Facts) -> None:
    """A model that was changed, with these facts alone."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts.as_strings())
    onnx.save(model, path)


def open_file(path: Path, *, before_resize: bool) -> Opened:
    """In ONNX Runtime, on the CPU."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's own
        raise CheckpointError(f"{path} is no ONNX file, or damaged ({brief(error)})") from None
    if before_resize:
        _end_before_resize(path, model.graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL  # what fails is raised as well
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # has no common base
        opsets = ", ".join(f"{each.domain or 'opset'} {each.version}" for each in model.opset_import)
        raise CheckpointError(
            f"{path} ({opsets}) cannot be run by onnxruntime {onnxruntime.__version__}: {brief(error)}; take a newer "
            f"onnxruntime, or export the network again with opset={OPSETS[0]}"
        ) from None
    name = session.get_inputs()[0].name

    def compute(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])

    return Opened(path, {each.key: each.value for each in model.metadata_props}, compute)


def _end_before_resize(path: Path, graph: Any) -> None:
    """Make what the last resize reads the graph's output; what is not needed then, the runtime leaves out."""
    made_by = {name: node for node in graph.node for name in node.output}
    name = graph.output[0].name if graph.output else ""
    while name in made_by and made_by[name].op_type != "Resize":
        name = next(iter(made_by.pop(name).input), "")  # once: a damaged graph may go in circles
    if name not in made_by:
        raise CheckpointError(f"{path} does not end in a resize; expected a file that zoo-seg export wrote")
    del graph.output[:]
    before = next(iter(made_by[name].input), "")
    graph.output.append(onnx.helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, None))
