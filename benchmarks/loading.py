"""Training samples a second of a DataLoader, beside torchvision's own reference recipe for segmentation.

    python benchmarks/loading.py [--data DIR] [--workers 0 1 2] [--crop 360 480] [--runs 3]

Both sides read the same JPEG images and PNG masks (generated ones of 360x480, or the train split of a folder) and
give batches of 8 normalised float32 crops with their masks. They take turns, each time in a process of its own; the
medians are printed. torchvision's transforms are those of `references/segmentation/presets.py`, on PIL images and on
tensors: random size, flip, padding, random crop, normalising. Ours are the published protocol, with its colours (which
the recipe has none of) and without.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo_seg.data.layouts import SegmentationData, open_data
from zoo_seg.training.samples import EpochBatches, TrainingSamples
from zoo_seg.training.transforms import published_transforms

Result = TypeVar("Result")

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BATCH, WARM_UP = 8, 4
SIZE = (360, 480)


def draw(root: Path, count: int = 64) -> Path:
    """A folder data set of soft random shapes with some texture, about as large in bytes as street scenes."""
    height, width = SIZE
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        for split in ("train", "val"):
            (root / folder / split).mkdir(parents=True)
    for number in range(count):
        image = np.zeros((height, width, 3))
        for cells, strength in ((4, 90), (24, 45), (120, 45)):
            noise = random.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            image += (
                np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) * strength / 180
            )
        classes = Image.fromarray(random.integers(0, 11, (9, 12), dtype=np.uint8))
        name = f"{'train' if number < count - 2 else 'val'}/{number:03}"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.jpg", quality=90)
        classes.resize((width, height), Image.Resampling.NEAREST).save(root / "masks" / f"{name}.png")
    names = [f"class {index}" for index in range(11)]
    palette = [[20 * index, 100, 250 - 20 * index] for index in range(11)]
    (root / "dataset.json").write_text(json.dumps({"classes": names, "palette": palette, "ignore_index": 255}))
    return root


# --- torchvision's recipe -----------------------------------------------------------------------


class PadIfSmaller(v2.Transform):
    """As `references/segmentation/v2_extras.py`."""

    def __init__(self, size: tuple[int, int], fill: dict[Any, int]) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def forward(self, *inputs: Any) -> Any:
        height, width = v2.functional.get_size(inputs[0])
        bottom, right = max(self.size[0] - height, 0), max(self.size[1] - width, 0)
        return tuple(
            v2.functional.pad(each, [0, 0, right, bottom], fill=self.fill.get(type(each), 0)) for each in inputs
        )


def recipe(crop: tuple[int, int], backend: str, short: int) -> v2.Transform:
    """`SegmentationPresetTrain` with `use_v2`: the shorter side between half and twice its size, then the crop."""
    kind = tv_tensors.Image if backend == "tensor" else Tensor
    return v2.Compose(
        [
            *([v2.ToImage()] if backend == "tensor" else []),
            v2.RandomResize(min_size=short // 2, max_size=short * 2),
            v2.RandomHorizontalFlip(0.5),
            PadIfSmaller(crop, fill={tv_tensors.Mask: 255}),
            v2.RandomCrop(crop),
            *([v2.PILToTensor()] if backend == "PIL" else []),
            v2.ToDtype(
                {kind: torch.float32, tv_tensors.Mask: torch.int64, "others": None},
                scale=True,
            ),
            v2.Normalize([each / 255 for each in MEAN], [each / 255 for each in STD]),
            v2.ToPureTensor(),
        ]
    )


class Recipe(Dataset[tuple[Tensor, Tensor]]):
    """Files to samples as torchvision's data sets have it: Pillow opens both."""

    def __init__(self, data: SegmentationData, transform: v2.Transform) -> None:
        self.samples, self.transform = data.samples("train"), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, address: tuple[int, int]) -> tuple[Tensor, Tensor]:
        sample = self.samples[address[1]]
        image = Image.open(sample.image).convert("RGB")
        mask = tv_tensors.Mask(np.array(Image.open(sample.mask)))
        return self.transform(image, mask)


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """As `references/segmentation/utils.py`."""

    def joined(parts: Sequence[Tensor], fill: int) -> Tensor:
        largest = [max(sides) for sides in zip(*(part.shape for part in parts), strict=True)]
        whole = parts[0].new_full((len(parts), *largest), fill)
        for part, place in zip(parts, whole, strict=True):
            place[..., : part.shape[-2], : part.shape[-1]].copy_(part)
        return whole

    images, masks = zip(*samples, strict=True)
    return joined(images, 0), joined(masks, 255)


# --- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    rate: float
    """Samples a second."""
    work: float
    """Milliseconds of processor time a sample, in all processes: steadier than the rate on a shared machine."""


def alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """In a process of its own: ours tunes the memory's allocator, of which the other side is to have nothing."""
    with ProcessPoolExecutor(1, get_context("spawn"), as_a_script) as process:
        return process.submit(function, *arguments).result()


def as_a_script() -> None:
    """Workers start in the system's usual way; a process that was spawned would spawn them, which takes seconds."""
    set_start_method(None, force=True)


def measure(dataset: Dataset[Any], workers: int, batches: int) -> Speed:
    """Of a loader in full swing, whose batches are thrown away."""
    torch.set_num_threads(1)  # with 0 workers; a worker has one thread anyway
    count = len(dataset)  # type: ignore[arg-type]
    order = EpochBatches(BATCH * (batches + WARM_UP), BATCH, seed=0)
    addresses = [[(index // count, index % count) for _, index in batch] for batch in order]
    joined = collate if isinstance(dataset, Recipe) else None
    loader: Iterable[Any] = DataLoader(dataset, batch_sampler=addresses, num_workers=workers, collate_fn=joined)
    before, started = processor_seconds(), 0.0
    for number, _ in enumerate(loader, start=1):
        if number == WARM_UP:
            started = time.perf_counter()
    rate = BATCH * batches / (time.perf_counter() - started)
    return Speed(rate, 1000 * (processor_seconds() - before) / (BATCH * len(addresses)))


def processor_seconds() -> float:
    """Of this process and of its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set of 'zoo-seg check-data' instead of generated images")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--crop", type=int, nargs=2, default=SIZE)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    crop = options.crop[0], options.crop[1]

    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(options.data or draw(Path(scratch) / "drawn"))
        with Image.open(data.samples("train")[0].image) as first:
            short = min(first.size)
        published: dict[str, Any] = {"mean": MEAN, "std": STD, "ignore_index": data.ignore_index}
        sides: dict[str, Dataset[Any]] = {
            "torchvision, PIL": Recipe(data, recipe(crop, "PIL", short)),
            "torchvision, tensor": Recipe(data, recipe(crop, "tensor", short)),
            "ours": TrainingSamples(data, "train", published_transforms(crop, **published)),
            "ours, no colours": TrainingSamples(
                data, "train", published_transforms(crop, photometric=False, **published)
            ),
        }
        print(f"crop {crop[0]}x{crop[1]}, batches of {BATCH}; the factor is to the faster of torchvision's")
        for workers in options.workers:
            runs = [
                {name: alone(measure, side, workers, options.batches) for name, side in sides.items()}
                for _ in range(options.runs)
            ]
            rates = {name: statistics.median(run[name].rate for run in runs) for name in sides}
            best = max(rate for name, rate in rates.items() if name.startswith("torchvision"))
            for name, rate in rates.items():
                work = statistics.median(run[name].work for run in runs)
                print(
                    f"{workers} workers  {name:20} {rate:5.0f} samples/s  {rate / best:.2f}x  "
                    f"{work:5.2f} ms of processor time a sample",
                    flush=True,
                )


if __name__ == "__main__":
    main()
