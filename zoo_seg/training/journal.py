"""What a run tells while it goes on: `log.jsonl`, TensorBoard files, a bar, and a line for every epoch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zoo_seg.errors import MissingExtraError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    raise MissingExtraError("training needs more (tensorboard is missing): pip install 'zoo_seg[train]'") from None

_EVERY = 10
"""Steps between two lines of the log."""


class Journal:
    """Written by the main process alone.

    Args:
        log: `log.jsonl`, to which lines are added.
        epochs, steps: of the whole run.
        epoch, step: after which it begins.
        best: the highest mIoU so far.
        progress: show the bar (on a terminal only) and the lines, on stderr.
        track: given the values of each line and its step, beside TensorBoard.
    """

    def __init__(
        self,
        log: Path,
        *,
        epochs: int,
        steps: int,
        epoch: int,
        step: int,
        best: float,
        progress: bool,
        track: Callable[[dict[str, float], int], None],
    ) -> None:
        self.track = track
        self.log, self.epochs, self.best, self.progress = log, epochs, best, progress
        self.board = SummaryWriter(str(log.parent / "tensorboard"), purge_step=step)
        # disable=None: a bar on a terminal only
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if progress else True)
        self.began, self.first = time.monotonic(), epoch
        self.losses: list[float] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        with suppress(OSError):  # of a full disk, which then was told already
            self.board.close()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    def add_step(self, epoch: int, step: int, loss: float, lr: float, *, last: bool) -> None:
        """Every few steps, and after the `last` one of an epoch, the mean loss goes into the log."""
        self.losses.append(loss)
        self.bar.update()
        if len(self.losses) < _EVERY and not last:
            return
        mean = sum(self.losses) / len(self.losses)
        self.losses = []
        self._write({"epoch": epoch, "step": step, "loss": mean, "lr": lr})
        self.bar.set_postfix(epoch=epoch, loss=f"{mean:.3f}", mIoU=f"{max(self.best, 0):.2f}")

    def add_epoch(self, epoch: int, step: int, loss: float, lr: float, scores: dict[str, float]) -> None:
        """After a validation; `loss` is the mean over the epoch."""
        self.best = max(self.best, scores["mIoU"])
        self._write({"epoch": epoch, "step": step, "loss": loss, "lr": lr, **scores})
        left = (time.monotonic() - self.began) / (epoch - self.first) * (self.epochs - epoch)
        self.say(
            f"epoch {epoch}/{self.epochs}  loss {loss:.3f}  mIoU {scores['mIoU']:.2f}  best {self.best:.2f}"
            + (f"  {_duration(left)} left" if epoch < self.epochs else "")
        )

    def _write(self, line: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        values = {name: line[name] for name in (("mIoU", "aAcc") if "mIoU" in line else ("loss", "lr"))}
        for name, value in values.items():
            self.board.add_scalar(name, value, line["step"])
        self.track(values, line["step"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
