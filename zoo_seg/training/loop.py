"""The way from epoch to epoch: steps over the train split, a measurement on val, and what is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo_seg.data.layouts import SegmentationData
from zoo_seg.errors import OptionError, OutOfMemoryError, TrainingError, ZooSegError
from zoo_seg.evaluation.measure import measure
from zoo_seg.families.registry import find_family
from zoo_seg.inference.memory import keep_large_blocks
from zoo_seg.layers.losses import SegmentationLoss, pixel_losses
from zoo_seg.layers.readout import HeadOutput
from zoo_seg.manifest import Metric, TestOptions
from zoo_seg.model import SegmentationModel
from zoo_seg.network import SegmentationNetwork
from zoo_seg.training.callbacks import Callbacks, TrainingState
from zoo_seg.training.journal import Journal
from zoo_seg.training.run import Run
from zoo_seg.training.samples import EpochBatches, TrainingSamples, seed_of
from zoo_seg.training.schedule import Schedule
from zoo_seg.training.settings import Settings, as_plain
from zoo_seg.training.start import freeze, freeze_unused
from zoo_seg.training.syncnorm import synchronise

if TYPE_CHECKING:
    from accelerate import Accelerator


class _Heads(nn.Module):
    """What a training step computes: the outputs of all heads, at their own strides."""

    def __init__(self, network: SegmentationNetwork, auxiliary: bool) -> None:
        super().__init__()
        self.network, self.auxiliary = network, auxiliary

    def forward(self, x: Tensor) -> list[HeadOutput]:
        return self.network.forward_train(x, auxiliary=self.auxiliary)


class Loop:
    """One run: the network in training, the one that is measured and kept, and how far they are.

    Args:
        model: the network to train; it is changed.
        data: has a train and a val split.
        samples, batches: the train split, and this process's share of every step.
        loss: of a batch.
        schedule: of the learning rate.
        callbacks: called by the main process.
        settings, accelerator, run: how it is trained, on what, and the folder to write.
        facts: what a resumed run must have the same of, and `"weights"`: what the values are from.
        workers: processes that read images.
    """

    def __init__(
        self,
        model: SegmentationModel,
        data: SegmentationData,
        samples: TrainingSamples,
        batches: EpochBatches,
        loss: SegmentationLoss,
        schedule: Schedule,
        callbacks: Callbacks,
        settings: Settings,
        accelerator: Accelerator,
        run: Run,
        facts: dict[str, Any],
        workers: int,
    ) -> None:
        keep_large_blocks()
        self.data, self.samples, self.batches, self.settings = data, samples, batches, settings
        self.schedule, self.callbacks = schedule, callbacks
        self.accelerator, self.run, self.facts, self.device = accelerator, run, facts, accelerator.device
        self.loader = DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else a new loader takes a number from the generator of dropout
        )
        self.epoch, self.step, self.best = 0, 0, -1.0
        self.waited, self.finished = 0, False
        self.metrics: dict[str, float] = {}
        self.steps = settings.epochs * len(batches)
        self.loss = loss.to(self.device)
        architecture = model.architecture
        self.terms = find_family(architecture.family).loss if architecture else pixel_losses

        self.kept = copy.deepcopy(model).eval()  # plain modules, whatever happens to those in training
        self.frozen = freeze(model, settings)
        heads = _Heads(model.network, settings.aux_weight > 0)
        freeze_unused(heads.eval(), model.parameters(), model.in_chans)
        if accelerator.num_processes > 1 and settings.freeze != "batchnorm":
            synchronise(model, self.device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        if settings.ema is not None:
            self.kept.to(self.device)
        self.heads, self.optimizer = accelerator.prepare(heads, _optimizer(model, settings))

    # --- the way through the epochs ---------------------------------------------------------------

    def train(self, journal: Journal | None) -> None:
        """Train to the last epoch; the main process has a journal."""
        first = self.epoch
        while not self.finished:
            self.epoch += 1
            losses, lr = [], 0.0
            for loss, lr in self._epoch():
                losses.append(loss)
                if journal is not None:
                    journal.add_step(self.epoch, self.step, loss, lr, last=len(losses) == len(self.batches))
                    self.callbacks.call("on_step_end", self._told(self.model, loss, lr))
            self.metrics = self._validate()
            if journal is not None:
                self._keep(self.metrics["mIoU"])
                state = self._told(self.kept, sum(losses) / len(losses), lr)
                journal.add_epoch(self.epoch, self.step, state.loss, lr, self.metrics)
                patient = self.settings.patience is None or self.waited < self.settings.patience
                self.finished = self.epoch == self.settings.epochs or not patient
                try:
                    self.finished = self.callbacks.call("on_epoch_end", state) or self.finished
                finally:  # an epoch that is done is not lost by a callback
                    self.run.save(self._state())
            ended = torch.tensor(float(self.finished), device=self.device)
            self.finished = bool(self.accelerator.reduce(ended, "sum"))
        if journal is not None and self.epoch > first:
            self.callbacks.call("on_train_end", state)

    def _told(self, model: SegmentationModel, loss: float, lr: float) -> TrainingState:
        return TrainingState(
            epoch=self.epoch,
            epochs=self.settings.epochs,
            step=self.step,
            steps=self.steps,
            loss=loss,
            lr=lr,
            metrics=self.metrics,
            best=self.best if self.best >= 0 else None,
            model=model,
            folder=self.run.folder,
        )

    def _epoch(self) -> Iterator[tuple[float, float]]:
        """One pass over the train split; yields the loss and the learning rate of every step."""
        self.heads.train()
        for module in self.frozen:
            module.eval()
        torch.manual_seed(seed_of(self.settings.seed, "dropout", self.epoch, self.accelerator.process_index))
        self.batches.epoch = self.epoch
        for images, labels, indices in self._loaded():
            lr = self._lr()
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            try:
                loss = self._step(images, labels, indices)
            except ZooSegError:
                raise
            except (RuntimeError, ValueError) as error:
                raise self._explained(error, images) or error from None
            self.step += 1
            yield loss, lr

    def _loaded(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        try:
            yield from self.loader
        except ZooSegError as error:  # torch puts the traceback of the worker before the message
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].rstrip()) from None
        except (RuntimeError, OSError) as error:
            reason = str(error).rstrip().rpartition("\n")[2]
            raise TrainingError(
                f"the images of epoch {self.epoch} could not be loaded ({reason}). If memory is short, go on with "
                "fewer workers and --resume (resume=True), or begin anew with a smaller batch_size or crop_size"
            ) from None

    def _step(self, images: Tensor, labels: Tensor, indices: Tensor) -> float:
        """One step of the optimiser; returns the loss over all processes' images."""
        parts, total = self.settings.accumulate, torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        for number, (x, y) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True), 1):
            x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            y = y.to(self.device, non_blocking=True)
            with self.accelerator.no_sync(self.heads) if number < parts else nullcontext():
                loss = self._loss(x, y) / parts
                self.accelerator.backward(loss)
            total += loss.detach()
        value = float(self.accelerator.reduce(total, "mean"))
        if not math.isfinite(value):
            raise self._not_finite(value, indices)
        self.optimizer.step()
        if self.settings.ema is not None:
            _follow(self.kept, self.model, self.settings.ema, self.step)
        return value

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros((), device=self.device)
        y = self.model.network.pad(y, self.data.ignore_index)
        for sums in self.terms(self.heads(x), y, self.loss, self.settings.aux_weight):
            weight = self.accelerator.reduce(sums.weight.detach(), "sum").clamp(min=1e-12)
            # gradients are averaged over the processes, so each one's part counts that many times
            total = total + sums.total * self.accelerator.num_processes / weight
        return total

    def _lr(self) -> float:
        """As the schedule has it, per step, and less in the warmup."""
        settings = self.settings
        warmup = min(1.0, (self.step + 1) / (settings.warmup + 1))
        return settings.lr * self.schedule(self.step / self.steps) * warmup

    # --- what can go wrong in a step --------------------------------------------------------------

    def _not_finite(self, loss: float, indices: Tensor) -> TrainingError:
        everyones = self.accelerator.gather(indices.to(self.device)).tolist()
        names = ", ".join(self.samples.samples[index].name for index in everyones)
        return TrainingError(
            f"the loss is {loss} in epoch {self.epoch}, step {self.step + 1} (images: {names}); expected a number. "
            f"Begin anew with a lower lr (this run has {self.settings.lr:g}) or a warmup"
            + (f"; {self.run.folder} keeps the network of the best epoch" if self.best >= 0 else "")
        )

    def _explained(self, error: Exception, images: Tensor) -> ZooSegError | None:
        count = images.shape[0] // self.settings.accumulate
        if "more than 1 value per channel" in str(error):
            return OptionError(
                f"BatchNorm cannot train on one image pooled to one value (batch_size {self.settings.batch_size}, "
                f"accumulate {self.settings.accumulate}); expected two images at a time, or freeze='batchnorm'"
            )
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return OutOfMemoryError(
                f"{self.device} has too little memory for {count} images of {images.shape[2]}x{images.shape[3]} "
                "at a time; lower batch_size or crop_size, raise accumulate, or use precision='bfloat16'"
            )
        return None

    # --- measuring and keeping --------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        if self.settings.ema is None:
            self.kept.load_state_dict(self.model.state_dict())
        measured = measure(
            self.kept.to(self.device),
            self.data,
            "val",
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            progress=False,
        )
        return {name: measured.scores[name] for name in ("mIoU", "aAcc")}

    def _keep(self, miou: float) -> None:
        """The network of this epoch, as the last one and, where it is, as the best one."""
        metric = Metric("mIoU", miou, "val", TestOptions(), "reproduced")
        folders = [self.run.folder / "last"]
        self.waited += 1
        if miou > self.best:
            self.best, self.waited = miou, 0
            folders.append(self.run.folder)
        for folder in folders:
            self.kept.save_pretrained(
                folder,
                ignore_index=self.data.ignore_index,
                metrics=[metric],
                started_from=self.facts["weights"],
                dataset=self.data.root.resolve().name,
            )

    def _state(self) -> dict[str, Any]:
        """All that the next epoch starts from."""
        return {
            "settings": as_plain(self.settings),
            "facts": self.facts,
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "waited": self.waited,
            "finished": self.finished,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.settings.ema is None else self.kept.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `_state` was."""
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.waited, self.finished = state["waited"], state["finished"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.settings.ema is not None:
            self.kept.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move an exponential moving average towards the model; the decay grows from 0, so that the start is forgotten."""
    share = 1 - min(decay, 1 - max(step, 1) ** (-2 / 3))
    old, new = average.state_dict().values(), model.state_dict().values()
    pairs = list(zip(old, new, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([kept for kept, _ in floats], [now for _, now in floats], share)
    for kept, now in pairs:
        if not kept.is_floating_point():
            kept.copy_(now)


def _optimizer(model: SegmentationModel, settings: Settings) -> torch.optim.Optimizer:
    trained = [each for each in model.parameters() if each.requires_grad]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(trained, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
