"""ONNX files in 8-bit integers (QDQ), made by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zoo_seg.errors import ExportError, MissingExtraError, ZooSegError
from zoo_seg.export.graph import brief, quiet
from zoo_seg.export.int8 import Inputs
from zoo_seg.export.onnx_file import save as save  # what is quantised is written alike

try:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError as error:
    raise MissingExtraError(f"int8 needs more ({error.name} is missing): pip install 'zoo_seg[quantize]'") from None

_TYPES = ["Conv", "Gemm", "MatMul", "Add", "Concat", "MaxPool", "Relu"]
"""What is worth it on a CPU; resizes, softmax and normalisation stay in float32."""


def quantise(source: Path, inputs: Inputs) -> Any:
    """The model of a float32 file with quantised weights (per channel) and activations.

    Raises:
        ExportError: ONNX Runtime cannot quantise it.
    """
    try:
        with TemporaryDirectory(dir=source.parent) as folder, quiet():
            prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            quantize_static(
                prepared,
                made,
                _Reader(graph.input[0].name, inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_TYPES,
                nodes_to_exclude=_left_alone(graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(made)
    except ZooSegError:  # an image
        raise
    except Exception as error:  # has no common base
        raise ExportError(f"ONNX Runtime cannot quantise this network: {brief(error)}") from error


def _left_alone(graph: Any) -> list[str]:
    """What is computed from the input's size, such as matrices and masks, and what takes it; products without a matrix.

    The ranges of the former would be those of the calibration's sizes alone, and 256 steps are too few for places and
    masks. For the latter ONNX Runtime has no operator in integers.
    """
    weights = {each.name: len(each.dims) for each in graph.initializer}
    image, sizes = {graph.input[0].name}, set[str]()
    names = []
    for node in graph.node:
        from_sizes = bool(sizes.intersection(node.input))
        if node.op_type != "Shape" and image.intersection(node.input):
            image.update(node.output)
        elif node.op_type == "Shape" or from_sizes:
            sizes.update(node.output)
        other_weights = node.op_type == "MatMul" and (node.input[0] in weights or weights.get(node.input[1], 2) != 2)
        if node.op_type in _TYPES and (from_sizes or other_weights):
            names.append(node.name)
    return names


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, inputs: Inputs) -> None:
        self._name, self._given = name, iter(inputs)

    def get_next(self) -> Any:
        x = next(self._given, None)
        return None if x is None else {self._name: x}
