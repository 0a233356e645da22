"""Write a full-size checkpoint whose values follow from the entries' names and shapes alone.

The published files are 100 to 500 MB and cannot be kept in a repository. A file with the same entries, and values that
anyone can rebuild bit for bit from a seed, exercises the same roads (open, convert, load, compute), so that numbers
made once by the original projects can be compared with ours.

The rule, per entry, with a generator PCG64([crc32(name), seed]) of its own (float64 draws, then cast to float32):

    *num_batches_tracked          0 (int64)
    *relative_position_index      Swin's table for a window of its size, a constant of the network (int64)
    *running_mean                 normal(0, 0.1)
    *running_var                  uniform(0.5, 1.5)
    two or more dimensions        normal(0, sqrt(2 / fan_in)), fan_in = product of all dimensions but the first
    other *weight                 uniform(0.5, 1.5), times 0.25 for *.bn3.weight (the end of a residual block)
    everything else (biases)      normal(0, 0.1)

The damping keeps activations in range through a hundred layers. Logits nevertheless have a standard deviation of some
5 to 250; where probabilities matter, `scale_entries` multiplies the classifier by a power of two, which is exact.
`filled_state_dict` takes `scales`, [[pattern, factor], ...]: every entry whose name a pattern finds is multiplied, for
networks whose chains the damping above does not reach.

The entries come from a JSON list of [name, shape, dtype], or from a network's own `state_dict()`:

    python benchmarks/reference_checkpoint.py --keys keys.json --layout ssseg --out pspnet_resnet50os8_voc.pth
    python benchmarks/reference_checkpoint.py --keys keys.json --layout mmseg --container legacy --out fpn_r50.pth
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Entry = tuple[str, tuple[int, ...], str]


def fill(name: str, shape: Iterable[int], seed: int = 0) -> np.ndarray:
    """The values of one entry, as the module's text defines them."""
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("relative_position_index"):
        return relative_position_index(shape)
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean") or (len(shape) < 2 and not name.endswith("weight")):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        values = rng.standard_normal(shape) * np.sqrt(2.0 / int(np.prod(shape[1:])))
    else:
        values = rng.uniform(0.5, 1.5, shape)
        if name.endswith(".bn3.weight"):
            values = 0.25 * values
    return np.ascontiguousarray(values, dtype=np.float32)


def relative_position_index(shape: tuple[int, ...]) -> np.ndarray:
    """For a window of w x w pixels, shape (w * w, w * w): the row of Swin's bias table for each pair of pixels."""
    side = round(shape[0] ** 0.5)
    rows, columns = np.divmod(np.arange(side * side), side)
    down, right = rows[:, None] - rows[None, :], columns[:, None] - columns[None, :]
    return (down + side - 1) * (2 * side - 1) + right + side - 1


def image_tensor(height: int, width: int, seed: int = 0, batch: int = 1) -> np.ndarray:
    """A normalised network input (batch, 3, height, width): 8x8 blocks of normal(0, 1) plus normal(0, 0.25)."""
    rng = np.random.Generator(np.random.PCG64([7, seed]))
    blocks = rng.standard_normal((batch, 3, -(-height // 8), -(-width // 8)))
    blocks = np.kron(blocks, np.ones((8, 8)))[:, :, :height, :width]
    return np.ascontiguousarray(blocks + 0.25 * rng.standard_normal((batch, 3, height, width)), dtype=np.float32)


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An RGB uint8 image (height, width, 3): coloured blocks with a gradient and some grain, in 16 levels."""
    rng = np.random.Generator(np.random.PCG64([11, seed]))
    blocks = np.kron(rng.integers(0, 13, (-(-height // 12), -(-width // 12), 3)), np.ones((12, 12, 1), np.int64))
    rows, columns = np.ogrid[:height, :width]
    gradient = (rows * 2 // height + columns * 2 // width)[..., None]
    grain = (rng.integers(0, 4, (height, width)) == 0)[..., None]
    return ((blocks[:height, :width] + gradient + grain) * 17).astype(np.uint8)


def entries_of(state_dict: Mapping[str, torch.Tensor]) -> list[Entry]:
    """[name, shape, dtype] of a network's own state dict, in its order."""
    return [(name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in state_dict.items()]


def read_entries(path: str | Path) -> list[Entry]:
    """[name, shape, dtype] from a JSON list."""
    return [(name, tuple(shape), dtype) for name, shape, dtype in json.loads(Path(path).read_text())]


def filled_state_dict(
    entries: Iterable[Entry], seed: int = 0, scales: Iterable[tuple[str, float]] = ()
) -> OrderedDict[str, torch.Tensor]:
    """A state dict with every entry filled."""
    state_dict = OrderedDict()
    for name, shape, dtype in entries:
        # from_numpy keeps 0-dimensional counters 0-dimensional
        state_dict[name] = torch.from_numpy(np.asarray(fill(name, shape, seed))).to(getattr(torch, dtype))
    for pattern, factor in scales:
        scale_entries(state_dict, [name for name in state_dict if re.search(pattern, name)], factor)
    return state_dict


def scale_entries(state_dict: Mapping[str, torch.Tensor], names: Iterable[str], factor: float) -> None:
    """Multiply some entries in place. With a power of two the result is exact."""
    for name in names:
        state_dict[name].mul_(factor)


def checkpoint(
    state_dict: Mapping[str, torch.Tensor],
    layout: str,
    *,
    classes: Iterable[str] | None = None,
    palette: Iterable[Iterable[int]] | None = None,
    optimizer: bool = False,
) -> dict[str, Any]:
    """The dictionary that a project saves: ssseg {epoch, model}, mmseg {meta, state_dict}; or the bare state dict.

    `optimizer` adds what ssseg's training left in its files: SGD with a momentum buffer for every parameter.
    """
    if layout == "bare":
        return dict(state_dict)
    if layout == "ssseg":
        content: dict[str, Any] = {"epoch": 1, "model": state_dict}
    elif layout == "mmseg":
        meta: dict[str, Any] = {
            "mmseg_version": "0.5.0+reference",
            "epoch": 1,
            "iter": 1,
            "config": "# reference values",
        }
        if classes is not None:
            meta["CLASSES"] = tuple(classes)
        if palette is not None:
            meta["PALETTE"] = [list(colour) for colour in palette]
        content = {"meta": meta, "state_dict": state_dict}
    else:
        raise ValueError(f"layout is ssseg, mmseg or bare, not {layout!r}")
    if optimizer:
        counters = ("running_mean", "running_var", "num_batches_tracked")
        parameters = [value for name, value in state_dict.items() if not name.endswith(counters)]
        group = {"lr": 0.01, "momentum": 0.9, "dampening": 0, "weight_decay": 5e-4, "nesterov": False}
        content["optimizer"] = {
            "state": {i: {"momentum_buffer": torch.zeros_like(value)} for i, value in enumerate(parameters)},
            "param_groups": [{**group, "params": list(range(len(parameters)))}],
        }
    return content


def save(content: Mapping[str, Any], path: str | Path, container: str = "zip") -> None:
    """Write it as torch >= 1.6 does ("zip") or as torch < 1.6 did ("legacy")."""
    torch.save(content, path, _use_new_zipfile_serialization={"zip": True, "legacy": False}[container])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint with deterministic values.")
    parser.add_argument("--keys", required=True, help="JSON list of [name, shape, dtype]")
    parser.add_argument("--out", required=True, help="the .pth file to write")
    parser.add_argument("--layout", choices=("ssseg", "mmseg", "bare"), required=True)
    parser.add_argument("--container", choices=("zip", "legacy"), default="zip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", action="store_true", help="add SGD momentum buffers, as ssseg's training does")
    parser.add_argument(
        "--scale", nargs="+", metavar="FACTOR NAME", help="multiply entries: a factor, then their names"
    )
    arguments = parser.parse_args()
    state_dict = filled_state_dict(read_entries(arguments.keys), arguments.seed)
    if arguments.scale:
        scale_entries(state_dict, arguments.scale[1:], float(arguments.scale[0]))
    save(checkpoint(state_dict, arguments.layout, optimizer=arguments.optimizer), arguments.out, arguments.container)
    print(f"{arguments.out}: {len(state_dict)} entries, {Path(arguments.out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
