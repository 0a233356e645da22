"""An exported file in place of a network."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from zoo_seg.errors import CheckpointError, OptionError
from zoo_seg.export.facts import read_facts
from zoo_seg.export.formats import SUFFIXES, format_of, handler
from zoo_seg.families.registry import find_family
from zoo_seg.inference.backends import Backend
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import Predictor
from zoo_seg.manifest import Preprocess, TestOptions


def is_exported(name: str) -> bool:
    """Whether a file of this name would be an exported one."""
    return Path(name).suffix.lower() in SUFFIXES


def from_exported(path: str | os.PathLike[str]) -> ExportedModel:
    """What `export` wrote, in its own runtime on the CPU, with `predict` and `stream` as a network has them.

    Every mode, scale and flip is the network's: the graph is run up to its logits, whatever it does with them.
    With preprocessing in the graph, inputs that are resized from a normalised tensor (ssseg's rule at several scales)
    are rounded to whole grey levels.

    Args:
        path: `.onnx`, `.xml` with its `.bin` beside it, or `.pt2`.

    Raises:
        CheckpointError: there is no such file, `export` did not write it, or its runtime cannot run it.
        OptionError: the name has another ending.
        MissingExtraError: the format's packages are not installed; the message names the pip command.
    """
    return ExportedModel(Path(path))


class ExportedModel(Predicting):
    """A network in a file of another runtime.

    Attributes:
        path, format, dtype: the file, `"onnx"`, `"openvino"` or `"torch_export"`, and what it computes in.
        info: what the network is, how its images are prepared, and where its weights come from.
        quantisation: of an int8 file: how far its class maps were from the network's.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.format = path, format_of(path)
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}; zoo-seg export writes one")
        opened = handler(self.format).open_file(path, before_resize=True)
        facts = read_facts(path, opened.metadata)
        self.info, self.dtype, self.quantisation = facts.info, facts.dtype, facts.quantisation
        self._takes_image, self._run = facts.input == "image", opened.run
        architecture = self.info.architecture
        # A family whose queries may stand for no object: the graph reads them out.
        self._gives_scores = bool(architecture and find_family(architecture.family).no_object)
        self._predictor: Predictor | None = None

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """In another process it is opened anew; its file must be there under the same path."""
        return from_exported, (self.path.absolute(),)

    @property
    def num_classes(self) -> int:
        """How many classes the logits have."""
        return len(self.info.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class id."""
        return self.info.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The RGB colour (0..255) of each class id."""
        return self.info.palette

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the network's input."""
        return self.info.preprocess

    @property
    def protocol(self) -> str:
        """Whose order of operations `predict` follows."""
        return self.info.protocol

    @property
    def weights(self) -> str | None:
        """The id of the published weights that it was made from, or None."""
        return self.info.weights

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.info.in_chans

    @property
    def align_corners(self) -> bool:
        """Of the resize of its logits."""
        return bool(self.info.architecture and self.info.architecture.align_corners)

    @property
    def size_divisor(self) -> int:
        """Its graph pads by itself."""
        return 1

    @property
    def test(self) -> TestOptions:
        """How the weights were tested, which `predict` does unless told otherwise."""
        return self.info.test

    @property
    def training_crop(self) -> tuple[int, int] | None:
        """(height, width) of the crops that the weights were trained on; None where nobody said."""
        return self.info.training_crop

    def forward_logits(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W), float32 -> logits (N, num_classes, h, w) at the head's own stride.

        Normalised; pixels from 0 to 255 for a file that preprocesses.
        """
        return self._run(self.graph_input(x))

    def graph_input(self, x: Tensor) -> Tensor:
        """What `forward_logits` takes as the graph takes it."""
        return x.round().to(torch.uint8).permute(0, 2, 3, 1) if self._takes_image else x

    def predictor(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002
        backend: Backend | None = None,
    ) -> Predictor:
        """What `predict` uses; kept.

        Raises:
            OptionError: another device than the CPU, another type or runtime than the file's, or `compile`.
        """
        if device is not None and torch.device(device).type != "cpu":
            raise OptionError(f"device is {str(device)!r}; {self.path.name} runs on the CPU, use the network itself")
        if str(dtype).removeprefix("torch.") not in ("float32", self.dtype):
            raise OptionError(f"dtype is {str(dtype)!r}; {self.path.name} computes in {self.dtype}, export another one")
        if compile:
            raise OptionError(f"compile is for networks; {self.path.name} was compiled by its runtime")
        if backend not in (None, self.format):
            raise OptionError(f"backend is {backend!r}; {self.path.name} runs in its own, {self.format}; leave it out")
        if self._predictor is None:
            rules = self.preprocess
            if self._takes_image:
                rules = replace(rules, mean=(0.0,) * self.in_chans, std=(1.0,) * self.in_chans)
            self._predictor = Predictor(
                self,
                classes=self.classes,
                palette=self.palette,
                preprocess=rules,
                protocol=self.protocol,
                scores=self._gives_scores,
            )
        return self._predictor
