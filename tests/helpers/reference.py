"""Full-size stand-ins for the published checkpoints: their names and shapes, filled by a rule.

The same (name, shape, seed) gives the same bytes on every machine. The logits in `fixtures/` were
computed by the original projects' own code with these very values.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from zoo_seg import Weights

if TYPE_CHECKING:
    from zoo_seg.network import SegmentationNetwork

FIXTURES = Path(__file__).parent.parent / "fixtures"
REFERENCES = Path(__file__).parent.parent / "references"

Key = tuple[str, tuple[int, ...]]
Group = Literal["ssseg", "mmseg", "ssseg_before_2020_12_14"]


def fill(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The values of one parameter or buffer (float32; int64 for counters)."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("relative_position_index"):
        return relative_position_index(shape)
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
    if name.endswith("running_mean"):
        values = 0.1 * rng.standard_normal(shape)
    elif name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = rng.standard_normal(shape) * np.sqrt(2.0 / int(np.prod(shape[1:])))
    elif name.endswith("weight"):
        values = rng.uniform(0.5, 1.5, shape)
        if name.endswith(".bn3.weight"):  # the end of a residual block, damped to keep activations in range
            values = 0.25 * values
    else:
        values = 0.1 * rng.standard_normal(shape)
    return np.ascontiguousarray(values, np.float32)


def relative_position_index(shape: tuple[int, ...]) -> np.ndarray:
    """Swin's constant table (w * w, w * w) for a window of w x w: where the bias of each pair of pixels stands."""
    side = round(shape[0] ** 0.5)
    rows, columns = np.divmod(np.arange(side * side), side)
    down, right = rows[:, None] - rows[None, :], columns[:, None] - columns[None, :]
    table: np.ndarray = (down + side - 1) * (2 * side - 1) + right + side - 1
    return table


def image_tensor(height: int, width: int, seed: int = 0, batch: int = 1) -> np.ndarray:
    """A normalised network input (batch, 3, height, width), float32."""
    rng = np.random.Generator(np.random.PCG64([7, seed]))
    coarse = rng.standard_normal((batch, 3, -(-height // 8), -(-width // 8)))
    smooth = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
    return np.ascontiguousarray(smooth + 0.25 * rng.standard_normal((batch, 3, height, width)), np.float32)


@cache
def _all_keys() -> dict[Group, dict[str, list[tuple[str, list[int]]]]]:
    lists: dict[Group, dict[str, list[tuple[str, list[int]]]]]
    lists = json.loads(gzip.decompress((FIXTURES / "keys.json.gz").read_bytes()))
    return lists


def key_lists() -> list[tuple[Group, str]]:
    """The (group, name) of every list there is."""
    return [(group, name) for group, lists in _all_keys().items() for name in lists]


def keys(group: Group, name: str) -> list[Key]:
    """The parameters and buffers of one published checkpoint, in file order: (name, shape)."""
    return [(key, tuple(shape)) for key, shape in _all_keys()[group][name]]


def key_list(weights: Weights) -> tuple[Group, str]:
    """The (group, name) of a record's list: `keys(*key_list(weights))`."""
    if weights.source == "mmseg":
        model = weights.model.replace("semanticfpn_resnet", "fpn_r")
        return "mmseg", f"{model}_{weights.dataset}"
    stride = "_os32" if weights.model.startswith("semanticfpn") else ""
    return "ssseg", f"{weights.model}{stride}_{weights.dataset}"


def state_dict(
    keys: Iterable[Key], seed: int = 0, scales: Iterable[tuple[str, float]] = ()
) -> OrderedDict[str, torch.Tensor]:
    """The values for these names and shapes; entries that a pattern of `scales` finds are multiplied by its factor."""
    tensors = OrderedDict((name, torch.from_numpy(fill(name, shape, seed))) for name, shape in keys)
    for pattern, factor in scales:
        for name in tensors:
            if re.search(pattern, name):
                tensors[name] *= factor
    return tensors


@dataclass(frozen=True)
class Run:
    """One input of a published reference, and what the original network makes of it."""

    size: tuple[int, int]
    image_seed: int
    shape: tuple[int, int, int]  # of the logits, at the size of the input
    std: float  # of all logits
    positions: np.ndarray  # into the flattened logits
    logits: np.ndarray  # there

    def image(self) -> torch.Tensor:
        """The normalised input (1, 3, h, w)."""
        return torch.from_numpy(image_tensor(*self.size, seed=self.image_seed))

    def error(self, logits: torch.Tensor) -> float:
        """The largest difference of logits (1, C, h, w) to the original's, in standard deviations."""
        assert tuple(logits.shape) == (1, *self.shape)
        return float(np.abs(logits.detach().reshape(-1)[self.positions].numpy() - self.logits).max() / self.std)


@dataclass(frozen=True)
class PublishedReference:
    """A network of a project, run by its own code (benchmarks/peers/references.py)."""

    meta: Mapping[str, Any]
    keys: list[Key]
    runs: list[Run]

    @property
    def tolerance(self) -> float:
        """A fair bound for the runs' `error`: four times what float32 costs the original itself, or the usual 2e-5."""
        return max(2e-5, 4 * float(self.meta["rounding"]))

    def state_dict(self) -> OrderedDict[str, torch.Tensor]:
        """The parameters and buffers in the project's names."""
        return state_dict(self.keys, self.meta["seed"], self.meta["scales"])


def published_reference(name: str) -> PublishedReference:
    """`tests/references/<name>.npz`, name `<model>.<project>[_<variant>]`."""
    with np.load(REFERENCES / f"{name}.npz") as file:
        meta, keys = json.loads(file["meta"].item()), json.loads(file["keys"].item())
        samples = [file[f"logits_{index}"] for index in range(len(meta["sizes"]))]
    runs = []
    for index, (logits, run) in enumerate(zip(samples, meta["sizes"], strict=True)):
        rng = np.random.Generator(np.random.PCG64([13, index]))
        positions = rng.integers(0, int(np.prod(run["output"])), len(logits))
        size, shape = tuple(run["input"]), tuple(run["output"])
        runs.append(Run(size, run["image_seed"], shape, run["std"], positions, logits))
    return PublishedReference(meta, [(key, tuple(shape)) for key, shape in keys], runs)


def checkpoint(
    path: Path, keys: Iterable[Key], *, layout: Literal["ssseg", "mmseg"], legacy: bool = False, seed: int = 0
) -> Path:
    """Save a checkpoint as a project published it, in torch's zip container or the legacy one."""
    tensors = state_dict(keys, seed)
    content = (
        {"epoch": 1, "model": tensors}
        if layout == "ssseg"
        else {"meta": {"epoch": 1, "iter": 1, "mmseg_version": "0.5.0"}, "state_dict": tensors, "optimizer": {}}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def published_network(model: str, tensors: dict[str, torch.Tensor]) -> SegmentationNetwork:
    """A model's network, filled strictly with a published checkpoint's names."""
    from zoo_seg.manifest import get_architecture  # here: most tests load no network
    from zoo_seg.pretrained import from_tensors

    return from_tensors(Path("checkpoint.pth"), tensors, get_architecture(model)[1]).build()
