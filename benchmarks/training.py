"""Images a second of whole training steps, loading included, beside torchvision's own reference recipe.

    python benchmarks/training.py [--models fcn_resnet50_os8 --steps 8] [--batch 8] [--device cuda] [--runs 3]

Ours is `zoo_seg.finetune` with its defaults. The recipe is that of `references/segmentation/train.py`: its transforms
on PIL images or tensors, its collating, SGD, a learning rate that falls every step, full-size logits, and cross
entropy with 0.5 of the auxiliary one. Both train the same network from random values on the same generated images,
with the same batch, crop and workers. They take turns, each time in a process of its own. A step's time and its wait
for data are taken at the same places of torch for both: the end of `Optimizer.step` and the DataLoader's iterator.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from loading import BATCH, SIZE, Recipe, alone, collate, draw, recipe
from PIL import Image
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

import zoo_seg
from zoo_seg.data.layouts import open_data

WARM_UP = 2


@dataclass(frozen=True)
class Work:
    model: str
    data: Path
    crop: tuple[int, int]
    batch: int
    steps: int
    workers: int
    device: str
    threads: int


@dataclass(frozen=True)
class Speed:
    rate: float
    """Images a second, from the median step."""
    waited: float
    """Share of the time that was spent waiting for data."""
    processor: float
    """Seconds of processor time a step without its workers: steadier than the rate on a shared machine."""


# --- the two sides ------------------------------------------------------------------------------


def ours(work: Work) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        zoo_seg.finetune(
            work.data,
            work.model,
            out=Path(scratch) / "run",
            epochs=1,
            batch_size=work.batch,
            crop_size=work.crop,
            workers=work.workers,
            device=work.device,
            progress=False,
        )


class Torchvisions(nn.Module):
    """Our network as torchvision's are: full-size logits by name."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.network.forward_features(x)
        heads = {"out": self.network.forward_head, "aux": self.network.aux_head}
        return {
            name: F.interpolate(head(features), size=x.shape[-2:], mode="bilinear", align_corners=False)
            for name, head in heads.items()
            if head is not None
        }


def criterion(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
    losses = {name: F.cross_entropy(x, target, ignore_index=255) for name, x in outputs.items()}
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


def recipe_on_images(work: Work) -> None:
    torchvisions(work, "PIL")


def recipe_on_tensors(work: Work) -> None:
    torchvisions(work, "tensor")


def torchvisions(work: Work, backend: str) -> None:
    data, device = open_data(work.data), torch.device(work.device)
    with Image.open(data.samples("train")[0].image) as first:
        dataset = Recipe(data, recipe(work.crop, backend, min(first.size)))
    loader = DataLoader(
        dataset,
        batch_size=work.batch,
        sampler=[(0, index) for index in torch.randperm(len(dataset)).tolist()],
        num_workers=work.workers,
        collate_fn=collate,
        drop_last=True,
    )
    network = zoo_seg.create_model(work.model, num_classes=data.num_classes)
    model = Torchvisions(network).to(device).train()
    slow = [each for name, each in network.named_parameters() if not name.startswith("aux_head")]
    fast = [each for name, each in network.named_parameters() if name.startswith("aux_head")]
    groups: list[dict[str, Any]] = [{"params": slow}, {"params": fast, "lr": 0.1}] if fast else [{"params": slow}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=len(loader), power=0.9)
    for image, target in loader:
        image, target = image.to(device), target.to(device)
        loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss.item()


SIDES = {"torchvision, PIL": recipe_on_images, "torchvision, tensor": recipe_on_tensors, "ours": ours}


# --- measuring ----------------------------------------------------------------------------------


class Enough(Exception):
    """As many steps as were asked for."""


@dataclass
class Clock:
    steps: int
    """After which it ends the training."""
    ends: list[float] = field(default_factory=list)
    """When each step was done, by the clock on the wall."""
    work: list[float] = field(default_factory=list)
    """The same in this process' time on processors."""
    waits: list[float] = field(default_factory=list)
    """Seconds until each batch was there."""

    def tick(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        self.work.append(time.process_time())
        if len(self.ends) == self.steps:
            raise Enough

    def waiting(self, get: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(iterator: Any) -> Any:
            started = time.perf_counter()
            batch = get(iterator)
            self.waits.append(time.perf_counter() - started)
            return batch

        return timed


def measure(side: str, work: Work) -> Speed:
    """Of the steps after the first ones."""
    torch.set_num_threads(work.threads)
    clock = Clock(work.steps)
    register_optimizer_step_post_hook(clock.tick)
    get = mock.patch.object(_BaseDataLoaderIter, "__next__", clock.waiting(_BaseDataLoaderIter.__next__))
    with get, contextlib.suppress(Enough):
        SIDES[side](work)
    wall, processor = (
        [end - start for start, end in pairwise(times[WARM_UP - 1 :])] for times in (clock.ends, clock.work)
    )
    return Speed(
        work.batch / statistics.median(wall), sum(clock.waits[WARM_UP:]) / sum(wall), statistics.median(processor)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["fcn_resnet50_os8", "semanticfpn_mobilenetv4_small"])
    parser.add_argument("--crop", type=int, nargs=2, default=SIZE)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 24], help="of each model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a busy machine 1 is steadier")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    crop = options.crop[0], options.crop[1]

    with tempfile.TemporaryDirectory() as scratch:
        data = draw(Path(scratch) / "drawn", options.batch * max(options.steps) + 2)
        print(
            f"{options.device}, {options.threads} threads and {options.workers} workers, crop {crop[0]}x{crop[1]}, "
            f"batches of {options.batch}; the factor is to the faster of torchvision's"
        )
        for model, steps in zip(options.models, options.steps, strict=True):
            work = Work(model, data, crop, options.batch, steps, options.workers, options.device, options.threads)
            runs = [{side: alone(measure, side, work) for side in SIDES} for _ in range(options.runs)]
            rates = {side: statistics.median(run[side].rate for run in runs) for side in SIDES}
            best = max(rate for side, rate in rates.items() if side != "ours")
            for side, rate in rates.items():
                waited = statistics.median(run[side].waited for run in runs)
                processor = statistics.median(run[side].processor for run in runs)
                print(
                    f"{model}  {side:20} {rate:6.2f} images/s  {rate / best:.2f}x  {waited:6.2%} of it waiting for "
                    f"data, {processor:6.2f} s of processor time a step",
                    flush=True,
                )


if __name__ == "__main__":
    main()
