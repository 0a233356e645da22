"""OpenVINO files in 8-bit integers, made by NNCF."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from zoo_seg.errors import ExportError, MissingExtraError
from zoo_seg.export.graph import brief, quiet
from zoo_seg.export.int8 import Inputs
from zoo_seg.export.openvino_file import core
from zoo_seg.export.openvino_file import save as save  # what is quantised is written alike

_logger_class = logging.getLoggerClass()
try:
    import nncf
except ImportError as error:
    raise MissingExtraError(f"int8 needs more ({error.name} is missing): pip install 'zoo_seg[quantize]'") from None
finally:
    logging.setLoggerClass(_logger_class)  # NNCF makes its own the one of the process


def quantise(source: Path, inputs: Inputs) -> Any:
    """The model of a float32 file with quantised weights (per channel) and activations.

    Raises:
        ExportError: NNCF cannot quantise it.
    """
    model = core().read_model(source)
    has_attention = any(each.get_type_name() in _ATTENTION for each in model.get_ops())
    try:
        with quiet(), redirect_stdout(io.StringIO()):  # progress bars
            return nncf.quantize(
                model,
                nncf.Dataset(inputs),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=_computed_from_sizes(model), validate=False),
                model_type=nncf.ModelType.TRANSFORMER if has_attention else None,
            )
    except (nncf.InternalError, nncf.ValidationError, RuntimeError) as error:
        raise ExportError(f"NNCF cannot quantise this network: {brief(error)}") from error


_ATTENTION = ("Softmax", "ScaledDotProductAttention")


def _computed_from_sizes(model: Any) -> list[str]:
    """Where the graph makes matrices and masks for the input's size, and what takes them.

    Their ranges would be those of the calibration's sizes alone, and 256 steps are too few for places and masks.
    """
    image: set[str] = set()
    sizes: set[str] = set()
    names = []
    for node in model.get_ordered_ops():
        name, given = node.get_friendly_name(), [each.get_source_output() for each in node.inputs()]
        from_image, from_sizes = (
            [each for each in given if each.get_node().get_friendly_name() in of] for of in (image, sizes)
        )
        if node.get_type_name() == "ShapeOf" or (from_sizes and not from_image):
            sizes.add(name)
            names.append(name)
        elif from_image or node.get_type_name() == "Parameter":
            image.add(name)
            if any(each.get_element_type().is_real() for each in from_sizes):
                names.append(name)
    return names
