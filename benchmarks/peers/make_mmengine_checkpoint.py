"""Writes `tests/fixtures/mmengine_numpy1.pth` or `..._numpy2.pth`: what mmengine's own runner saves after three steps.

    python benchmarks/peers/make_mmengine_checkpoint.py

Run it in the peers' environment (numpy 2), and once more with `numpy<2` in front on the path: the two versions of numpy
write their names differently. The network is one convolution; what matters is what mmengine saves around it: its
configuration, the optimizer, and the message hub with `HistoryBuffer`s and numpy's own numbers.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"


class Model(BaseModel):
    """One convolution with known weights, which a learning rate of 0 keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 1)
        self.conv.weight.data.copy_(torch.arange(6.0).reshape(3, 2, 1, 1))
        self.conv.bias.data.copy_(torch.arange(3.0) - 1)

    def forward(self, x: Tensor, mode: str = "tensor") -> Any:
        y = self.conv(x)
        return {"loss": y.square().mean()} if mode == "loss" else [y]


class Score(BaseMetric):
    """numpy's number, as mmseg's IoU is."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"mIoU": np.round(np.nanmean(np.array([0.25, 0.5])) * 100, 2)}


class Images(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(2, 4, 4)


def main() -> None:
    data = {"batch_size": 1, "num_workers": 0, "dataset": Images()}
    data["sampler"] = {"type": "DefaultSampler", "shuffle": False}
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        Runner(
            model,
            folder,
            train_dataloader=data,
            val_dataloader=data,
            train_cfg={"by_epoch": False, "max_iters": 3, "val_interval": 3},
            val_cfg={},
            val_evaluator=Evaluator(Score()),
            optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)),
            default_hooks={"checkpoint": CheckpointHook(interval=3, by_epoch=False, save_best="mIoU")},
            experiment_name="fixture",
        ).train()
        version = np.__version__.partition(".")[0]
        shutil.copyfile(next(Path(folder).glob("best_*.pth")), FIXTURES / f"mmengine_numpy{version}.pth")


if __name__ == "__main__":
    main()
