"""The graph that is exported: preprocessing on request, the network, and the resize, with argmax on request."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from zoo_seg.errors import ExportError, MissingExtraError
from zoo_seg.export.facts import Facts
from zoo_seg.export.windows import count_in_windows
from zoo_seg.inference.labels import id_type
from zoo_seg.layers.readout import HeadOutput, Queries, mixed_early
from zoo_seg.network import SegmentationNetwork

_BATCH, _HEIGHT, _WIDTH = 3, 397, 509
"""What the graph is traced with: numbers that no stride divides, so that no branch is taken for being even, and of
several windows of a transformer."""


class Graph(nn.Module):
    """A network between the input and the output that its facts name."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: SegmentationNetwork, facts: Facts, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.takes_image, self.gives_ids = facts.input == "image", facts.output == "class_map"
        self.ids = id_type(len(facts.info.classes))
        if self.takes_image:
            self.register_buffer("mean", torch.tensor(facts.info.preprocess.mean).view(-1, 1, 1))
            self.register_buffer("std", torch.tensor(facts.info.preprocess.std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.takes_image:
            x = (x.permute(0, 3, 1, 2).float() - self.mean) / self.std
        size = (x.shape[-2], x.shape[-1])
        output = mixed_early(self.network.forward_logits(x.to(self.dtype)))
        if isinstance(output, Queries) or self.network.size_divisor > 1:
            output = self.network.read(output, size)
        # The last resize of the graph, of one size to the same as well: `from_exported` takes the logits before it.
        align_corners = self.network.align_corners
        logits = F.interpolate(output.float(), size=size, mode="bilinear", align_corners=align_corners)
        return logits.argmax(1).to(self.ids) if self.gives_ids else logits


class Logits(nn.Module):
    """A network up to its head's logits, at their own stride."""

    takes_image = False

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> HeadOutput:
        return mixed_early(self.network.forward_logits(x))


@torch.no_grad()
def trace(graph: Graph | Logits, in_chans: int) -> ExportedProgram:
    """The graph's operators, for any batch, height and width.

    Raises:
        ExportError: the network does something that torch.export cannot follow.
        MissingExtraError: torch is too old.
    """
    if torch.__version__ < "2.8":  # which compares versions, not letters
        raise MissingExtraError(f"exporting needs a newer torch than {torch.__version__}: pip install 'torch>=2.8'")
    if graph.takes_image:
        example = torch.zeros(_BATCH, _HEIGHT, _WIDTH, in_chans, dtype=torch.uint8)
    else:
        example = torch.zeros(_BATCH, in_chans, _HEIGHT, _WIDTH)
    sides = (1, 2) if graph.takes_image else (2, 3)
    count_in_windows(graph)
    try:
        with quiet():
            program = torch.export.export(
                graph.eval(),
                (example,),
                dynamic_shapes=(dict.fromkeys((0, *sides), Dim.DYNAMIC),),
                strict=False,
            )
    except Exception as error:  # of many kinds, with long explanations
        raise ExportError(f"torch.export cannot follow this network: {brief(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names this machine's folders
    return program


class _Quiet:
    """Who is quiet at the moment: logging has one switch for all threads, and the last one puts it back."""

    lock = threading.Lock()
    count = 0
    before = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell their developers about themselves."""
    with _Quiet.lock:
        if not _Quiet.count:
            _Quiet.before = logging.root.manager.disable
            logging.disable(logging.WARNING)
        _Quiet.count += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        with _Quiet.lock:
            _Quiet.count -= 1
            if not _Quiet.count:
                logging.disable(_Quiet.before)


def brief(error: Exception) -> str:
    """An error of another library on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
