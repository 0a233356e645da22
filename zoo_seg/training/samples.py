"""Training samples whose order and draws depend on the seed alone, not on workers, processes or interruptions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from zoo_seg.data.layouts import SegmentationData
from zoo_seg.errors import DataError
from zoo_seg.inference.memory import keep_large_blocks

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def seed_of(*parts: object) -> int:
    """A seed below 2**63 that these parts have and near ones do not share."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class TrainingSamples(Dataset[tuple[Tensor, Tensor, int]]):
    """Images and labels of a split, transformed with draws that (seed, epoch, index) decides.

    An item is addressed by (epoch, index): float image (C, h, w), labels (h, w) in uint8 (int64 where the ignored
    value is beyond 255), and the index.
    """

    def __init__(self, data: SegmentationData, split: str, transform: Transform, seed: int = 0) -> None:
        self.samples = data.samples(split)
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, address: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        keep_large_blocks()  # each step of the transform needs some: a third of the time
        epoch, index = address
        sample = self.samples[index]
        with _draws_of(seed_of(self.seed, epoch, index)):
            stored, labels = self.data.pair(sample)
            pixels = self.data.read_image(stored)
            if labels.dtype != np.uint8:
                labels = labels.astype(np.int32)  # torch before 2.3 has no uint16
            if pixels.shape[:2] != labels.shape:
                raise DataError(
                    f"{sample.place} is {labels.shape[0]}x{labels.shape[1]} and its image {pixels.shape[0]}x"
                    f"{pixels.shape[1]} (height x width); expected the same size. 'zoo-seg check-data' lists all of "
                    "them"
                )
            image, target = self.transform(torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels))
        return image, target, index


@contextmanager
def _draws_of(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python begin with this seed, and go on as before afterwards."""
    python, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch's own seeds every device
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch for one process: its share of each step's images; the last, smaller step is left out.

    A step is worked on in `parts`, one after another. With P processes, process r takes the r-th of P equal shares of
    every part, so that all of them together do what one process does.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, parts: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.parts = rank, world_size, parts
        self.epoch = 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)[: len(self) * self.batch_size]
        shares = order.reshape(len(self), self.parts, self.world_size, -1)[:, :, self.rank].flatten(1)
        for share in shares.tolist():
            yield [(self.epoch, index) for index in share]
