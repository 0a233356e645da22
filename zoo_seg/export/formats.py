"""The formats, each a module of its own that is imported when it is asked for: each needs packages of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from torch import Tensor
from torch.export import ExportedProgram

from zoo_seg.errors import OptionError
from zoo_seg.export.facts import Facts
from zoo_seg.export.graph import brief

if TYPE_CHECKING:
    from zoo_seg.export.int8 import Inputs

Format = Literal["onnx", "torch_export", "openvino"]
OPSETS = range(18, 24)
"""ONNX's, those that torch's exporter writes by itself; the first is the default, for the oldest runtimes."""
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch_export", ".xml": "openvino"}


@dataclass(frozen=True)
class Opened:
    """A file in its runtime, on the CPU."""

    path: Path
    metadata: Mapping[str, str]
    compute: Callable[[Tensor], Tensor]
    """The file's input -> its output, or the logits in front of its last resize."""

    def run(self, x: Tensor) -> Tensor:
        """`compute`; raises OptionError for an input that the runtime does not take."""
        try:
            return self.compute(x)
        except Exception as error:  # has no common base
            raise OptionError(
                f"{self.path} cannot be run on an input of {'x'.join(map(str, x.shape))} ({brief(error)}); take a "
                "larger one, or where memory ran out a smaller one"
            ) from None


class Handler(Protocol):
    """What a format's module has."""

    def write(self, program: ExportedProgram, path: Path, facts: Facts, opset: int | None = None) -> None:
        """Write the program; `opset` is ONNX's alone."""

    def open_file(self, path: Path, *, before_resize: bool) -> Opened:
        """Open what `write` wrote; raises CheckpointError for what it did not, or cannot be run here."""


def handler(format: Format) -> Handler:  # noqa: A002
    """The module of a format.

    Raises:
        MissingExtraError: its packages are not installed.
    """
    if format == "onnx":
        from zoo_seg.export import onnx_file

        return onnx_file
    if format == "openvino":
        from zoo_seg.export import openvino_file

        return openvino_file
    from zoo_seg.export import torch_file

    return torch_file


class Quantiser(Protocol):
    """What makes a format's int8 files."""

    def quantise(self, source: Path, inputs: Inputs) -> Any:
        """A float32 file's model in int8, calibrated with these inputs; raises ExportError where it cannot be."""

    def save(self, model: Any, path: Path, facts: Facts) -> None:
        """Write it with its facts."""


def quantiser(format: Format) -> Quantiser:  # noqa: A002
    """The module that makes a format's int8 files.

    Raises:
        OptionError: none does.
        MissingExtraError: its packages are not installed.
    """
    if format == "onnx":
        from zoo_seg.export import onnx_int8

        return onnx_int8
    if format == "openvino":
        from zoo_seg.export import openvino_int8

        return openvino_int8
    raise OptionError(f"int8 is for ONNX and OpenVINO, not for {format}; write a .onnx or a .xml")


def format_of(path: Path, format: str | None = None) -> Format:  # noqa: A002
    """The format of a file by its ending, which a given format must agree with."""
    if format is not None and format not in get_args(Format):
        raise OptionError(f"format is {format!r}; expected one of {', '.join(get_args(Format))}")
    found = SUFFIXES.get(path.suffix)
    if found is None or format not in (None, found):
        endings = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items() if format in (None, name))
        raise OptionError(f"{path} ends in {path.suffix or 'nothing'!r}; expected {endings}")
    return found
