"""An exported file beside the network that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo_seg.export.facts import Facts
from zoo_seg.images.preprocess import normalise

SIZES = ((2, 97, 131), (1, 160, 128), (1, 269, 307))
"""(batch, height, width) that a file is tried with: odd sides and a batch, sides that every stride divides, and sides
of several windows of a transformer."""

TOLERANCES = {"float32": 1e-3, "float16": 5e-2, "int8": 1e-3}
"""How far a file's logits may be from the network's, in standard deviations of the network's; int8 files are held to
it before they are quantised."""


@dataclass(frozen=True)
class Difference:
    """How a file answered one input."""

    shape: tuple[int, int, int]
    """(batch, height, width)"""
    largest: float
    """In standard deviations of the network's logits; of a class map: by how much a chosen class falls short."""
    pixels: float
    """The share of pixels with another class than the network's, 0 to 1."""

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return (
            f"{size}: logits differ by {self.largest:.1e} of their standard deviation, "
            f"classes in {self.pixels:.3%} of the pixels"
        )


@dataclass(frozen=True)
class Trial:
    """An input, as a file takes it, and the network's logits for it."""

    x: Tensor
    logits: Tensor

    def difference(self, answer: Tensor) -> Difference:
        """How far a file's answer, logits or a class map, is from the network's."""
        winner, ids = self.logits.max(1)
        if answer.is_floating_point():
            distance, chosen = (answer - self.logits).abs(), answer.argmax(1)
        else:
            chosen = answer.long()
            distance = winner - self.logits.gather(1, chosen[:, None])[:, 0]
        batch, height, width = ids.shape
        largest = float(distance.max() / self.logits.std())
        return Difference((batch, height, width), largest, float((chosen != ids).double().mean()))


def trials(network: Callable[[Tensor], Tensor], facts: Facts) -> list[Trial]:
    """Drawn inputs of every size, and what the network, in `eval()`, makes of them."""
    random = np.random.default_rng(0)
    found = []
    for batch, height, width in SIZES:
        images = random.integers(0, 256, (batch, height, width, facts.info.in_chans), np.uint8)
        rules = facts.info.preprocess
        x = torch.cat([normalise(image, rules.mean, rules.std) for image in images])
        given = torch.from_numpy(images) if facts.input == "image" else x
        with torch.inference_mode():
            found.append(Trial(given, network(x)))
    return found
