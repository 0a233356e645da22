"""The fine-tuning loop. On one process, or on several under torchrun or `accelerate launch`:

zoo-seg finetune --data my_data/ --model pspnet_resnet50_os8 --weights ade20k --out runs/mine
torchrun --nproc_per_node 4 -m zoo_seg finetune --data my_data/ ...
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from zoo_seg.data.check import check_data
from zoo_seg.data.layouts import Layout, SegmentationData, open_data
from zoo_seg.data.report import Report
from zoo_seg.errors import DataError, MissingExtraError, OptionError, OutOfMemoryError, TrainingError
from zoo_seg.evaluation.measure import measure
from zoo_seg.factory import build_model, create_model, from_pretrained
from zoo_seg.inference.predictor import choose_device
from zoo_seg.manifest import Metric, Protocol, Recipe, Resize, get_architecture
from zoo_seg.model import SegmentationModel
from zoo_seg.networks.network import FAMILIES
from zoo_seg.training.losses import SegmentationLoss, balanced_class_weights
from zoo_seg.training.report import draw_curve, draw_sheet
from zoo_seg.training.run import Run
from zoo_seg.training.samples import EpochBatches, TrainingSamples, seed_of
from zoo_seg.training.settings import Settings
from zoo_seg.training.syncnorm import synchronise
from zoo_seg.training.transforms import published_transforms

try:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise MissingExtraError(f"training needs more ({error.name} is missing): pip install 'zoo_seg[train]'") from None

_LOG_EVERY = 10
"""Steps between two lines of the log."""


def finetune(
    data: str | os.PathLike[str],
    model: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str],
    backbone: str | None = None,
    backbone_pretrained: bool = False,
    channels: int | None = None,
    layout: Layout | Literal["auto"] = "auto",
    resume: bool = False,
    device: str | None = None,
    workers: int = 2,
    progress: bool = True,
    **options: Any,
) -> SegmentationModel:
    """Train a network on a data set with a train and a val split; return the best one, measured on val every epoch.

    SGD with poly decay, random scale, crop, flip and photometric distortion: SSSegmentation's published recipe.

    Args:
        data: the data set's folder, see `zoo_seg.data.layouts`; it is checked first, see `check_data`.
        model: a model name; with `backbone` a name for its family, or just `"fcn"`, `"pspnet"`, `"semanticfpn"`.
        weights: what `pretrained=` of a factory takes; None starts from random values. `model` may be left out
            where it is a folder of an earlier run.
        out: the folder to write: `model.safetensors`, `config.json` and a model card of the best network (the last
            one's in `last/`), `log.jsonl`, `curve.png`, `samples.png`, TensorBoard files, and `state.pt` for `resume`.
        backbone: a timm model name, in place of the model's own; with random values.
        backbone_pretrained: fetch timm's ImageNet weights for it.
        channels: width of the head of a network without weights; None is the family's own.
        layout: how the data lies in its folder, see `open_data`; `"auto"` finds out.
        resume: go on with an interrupted run. It ends as an unbroken one would.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, ...; None is the fastest that is there.
        workers: processes that read and transform pictures.
        progress: show a bar, on a terminal only.
        options: see `Settings`: `epochs=`, `batch_size=`, `crop_size=`, `lr=`, `seed=`, ...

    Raises:
        OptionError: an option is not allowed, or a resumed run had others.
        DataError: the data set is not fit for training; the message names the files.
        TrainingError: the loss is not a number any more, or the disk is full.
        MissingExtraError: the extra `train` is not installed.
    """
    settings = Settings.of(options)
    accelerator = _accelerator(settings, device)
    if settings.batch_size % (accelerator.num_processes * settings.accumulate):
        raise OptionError(
            f"batch_size {settings.batch_size} cannot be shared by {accelerator.num_processes} processes in "
            f"{settings.accumulate} parts (accumulate) each"
        )
    source = open_data(Path(data), layout)
    with accelerator.main_process_first():  # the others find its result in the cache
        report = check_data(source, ("train", "val"), progress=progress and accelerator.is_main_process, cache=True)
    report.raise_if_bad()
    if source.num_classes < 2:
        raise DataError(
            f"{source.root} has one class, {source.classes[0]!r}; expected at least two (is background one?)"
        )
    torch.manual_seed(settings.seed)
    network = _network(source, settings, model, weights, backbone, backbone_pretrained, channels)
    facts = {
        "classes": list(source.classes),
        "network": asdict(network.architecture) if network.architecture else None,
        "weights": None if weights is None else os.fspath(weights),
        "train": [sample.name for sample in source.samples("train")],
    }
    run = Run(Path(out))
    with accelerator.main_process_first():
        if not resume and accelerator.is_main_process:
            run.begin()
        state = run.resume(settings, facts) if resume else None
    loop = _Loop(network, source, _class_pixels(report, source), settings, accelerator, run, facts, workers, progress)
    loop.train(state)
    accelerator.wait_for_everyone()
    return from_pretrained(run.folder)


def _accelerator(settings: Settings, device: str | None) -> Accelerator:
    if device is not None:
        chosen = choose_device(device)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)
    cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if cpu and settings.precision == "float16":
        raise OptionError("precision is 'float16', which needs a GPU; expected 'float32' or 'bfloat16' on the CPU")
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[settings.precision]
    AcceleratorState._reset_state()  # a second run in one process may have another precision
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=True
    )  # some timm backbones have values they do not use
    return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[unused])


def _network(
    data: SegmentationData,
    settings: Settings,
    model: str | None,
    weights: str | os.PathLike[str] | None,
    backbone: str | None,
    backbone_pretrained: bool,
    channels: int | None,
) -> SegmentationModel:
    """The network to train, with the data's classes."""
    count = data.num_classes
    if weights is not None:
        if backbone is not None or channels is not None:
            raise OptionError(
                "weights bring their own backbone and head; leave out backbone and channels, or the weights"
            )
        if model is None and not Path(weights).is_dir():
            raise OptionError(f"weights {os.fspath(weights)!r} need a model name; zoo_seg.list_models() lists them")
        start = (
            create_model(model, weights, num_classes=count) if model else from_pretrained(weights, num_classes=count)
        )
    elif model is None:
        raise OptionError("there is no model; expected a model name, such as 'pspnet_resnet50_os8'")
    else:
        family, stride, body = model, None, backbone
        if model not in FAMILIES:
            _, architecture = get_architecture(model)
            family, stride, body = architecture.family, architecture.output_stride, backbone or architecture.backbone
            channels = channels or (architecture.channels if backbone is None else None)
        if body is None:
            raise OptionError(f"{model!r} is a family; add a backbone, such as backbone='mobilenetv4_conv_small'")
        head: dict[str, Any] = {} if channels is None else {"channels": channels}
        start = build_model(family, body, count, output_stride=stride, backbone_pretrained=backbone_pretrained, **head)
    for module in start.modules():
        if isinstance(module, nn.Dropout2d) and settings.dropout is not None:
            module.p = settings.dropout
    resize = None if settings.resize is None else Resize(settings.resize, 4 * settings.resize)
    return SegmentationModel(
        start,
        classes=data.classes,
        palette=data.palette,
        preprocess=replace(start.preprocess, resize=resize),
        protocol=start.protocol,
        architecture=start.architecture,
    )


class _Heads(nn.Module):
    """What a training step computes: the logits of both heads, at their own strides."""

    def __init__(self, model: SegmentationModel, auxiliary: bool) -> None:
        super().__init__()
        self.model, self.auxiliary = model, auxiliary

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.model.forward_features(x)
        logits = [self.model.forward_head(features)]
        if self.auxiliary and self.model.aux_head is not None:
            logits.append(self.model.aux_head(features))
        return logits


class _Loop:
    """One run: the network in training, what is kept of it, and the way from epoch to epoch."""

    def __init__(
        self,
        model: SegmentationModel,
        data: SegmentationData,
        class_pixels: Sequence[int],
        settings: Settings,
        accelerator: Accelerator,
        run: Run,
        facts: dict[str, Any],
        workers: int,
        progress: bool,
    ) -> None:
        self.data, self.settings, self.accelerator, self.run, self.facts = data, settings, accelerator, run, facts
        self.progress = progress
        rank, world = accelerator.process_index, accelerator.num_processes
        transform = published_transforms(
            settings.crop_size,
            mean=model.preprocess.mean,
            std=model.preprocess.std,
            ignore_index=data.ignore_index,
            base=model.preprocess.resize,
            scale=settings.scale,
            flip=settings.flip,
            photometric=settings.photometric,
        )
        self.samples = TrainingSamples(data, "train", transform, settings.seed)
        self.batches = EpochBatches(len(self.samples), settings.batch_size, settings.seed, rank, world)
        if not len(self.batches):
            raise OptionError(
                f"batch_size {settings.batch_size} is more than the {len(self.samples)} pictures of train"
            )
        self.loader = DataLoader(
            self.samples,
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.steps = settings.epochs * len(self.batches)
        model.recipe = _recipe(settings, self.steps, model.aux_head is not None)

        self.kept = copy.deepcopy(model).eval()  # plain modules, whatever happens to those in training
        self.frozen = _freeze(model, settings)
        if world > 1 and settings.freeze != "batchnorm":
            synchronise(model, accelerator.device)
        self.model = model.to(accelerator.device).to(memory_format=torch.channels_last)
        self.ema = None
        if settings.ema is not None:
            self.ema = ModelEmaV3(self.kept, settings.ema, use_warmup=True, device=accelerator.device)
            self.kept = self.ema.module
        balanced = settings.class_weights == "balanced"
        self.loss = SegmentationLoss(
            settings.loss,
            ignore_index=data.ignore_index,
            class_weights=balanced_class_weights(class_pixels) if balanced else None,
        ).to(accelerator.device)
        trained = [each for each in model.parameters() if each.requires_grad]
        self.optimizer: Any = (
            torch.optim.AdamW(trained, settings.lr, weight_decay=settings.weight_decay)
            if settings.optimizer == "adamw"
            else torch.optim.SGD(trained, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
        )
        self.heads, self.optimizer = accelerator.prepare(_Heads(model, settings.aux_weight > 0), self.optimizer)
        self.epoch, self.step, self.best = 0, 0, -1.0

    # --- the way through the epochs ---------------------------------------------------------------

    def train(self, state: dict[str, Any] | None) -> None:
        """Train to the last epoch, from the beginning or from a state."""
        if state is not None:
            self._restore(state)
        main = self.accelerator.is_main_process
        if main:
            history = self.run.keep_log(self.epoch)
            board = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=self.step)
        # disable=None: a bar on a terminal only
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=None if self.progress and main else True)
        started, first = time.monotonic(), self.epoch
        with bar:
            while self.epoch < self.settings.epochs:
                self.epoch += 1
                mean_loss = 0.0
                for line in self._epoch(bar):
                    mean_loss += (line["loss"] - mean_loss) * line["steps"] / line["done"]
                    if main:
                        self.run.log({key: line[key] for key in ("epoch", "step", "loss", "lr")})
                        board.add_scalar("loss", line["loss"], self.step)
                        board.add_scalar("lr", line["lr"], self.step)
                scores = self._validate()
                if main:
                    line = {"epoch": self.epoch, "step": self.step, "loss": mean_loss, "lr": self._lr(), **scores}
                    self._keep(scores["mIoU"])
                    self.run.log(line)
                    history.append(line)
                    board.add_scalar("mIoU", scores["mIoU"], self.step)
                    self._save()
                    left = (time.monotonic() - started) / (self.epoch - first) * (self.settings.epochs - self.epoch)
                    tqdm.write(
                        f"epoch {self.epoch}/{self.settings.epochs}  loss {mean_loss:.3f}  mIoU {scores['mIoU']:.2f}  "
                        f"best {self.best:.2f}  {_duration(left)} left",
                        file=sys.stderr,
                    )
        if main:
            board.close()
            draw_curve(self.run.folder / "log.jsonl", self.run.folder / "curve.png")
            draw_sheet(from_pretrained(self.run.folder), self.data, self.run.folder / "samples.png")

    def _epoch(self, bar: Any) -> Iterator[dict[str, Any]]:
        """One pass over the train split; yields what goes into the log, every few steps and at the end."""
        self.heads.train()
        for module in self.frozen:
            module.eval()
        torch.manual_seed(seed_of(self.settings.seed, "dropout", self.epoch, self.accelerator.process_index))
        self.batches.epoch = self.epoch
        losses: list[float] = []
        for done, (images, labels, indices) in enumerate(self.loader, 1):
            lr = self._lr()
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            losses.append(self._step(images, labels, indices))
            self.step += 1
            bar.update()
            if done % _LOG_EVERY == 0 or done == len(self.batches):
                mean = sum(losses) / len(losses)
                bar.set_postfix(epoch=self.epoch, loss=f"{mean:.3f}", mIoU=f"{max(self.best, 0):.2f}")
                yield {
                    "epoch": self.epoch,
                    "step": self.step,
                    "loss": mean,
                    "lr": lr,
                    "steps": len(losses),
                    "done": done,
                }
                losses = []

    def _step(self, images: Tensor, labels: Tensor, indices: Tensor) -> float:
        """One step of the optimiser; returns the loss over all processes' pictures."""
        parts, device, total = self.settings.accumulate, self.accelerator.device, torch.zeros((), device=images.device)
        total = total.to(device)
        self.optimizer.zero_grad()
        for number, (x, y) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True), 1):
            x = x.to(device, non_blocking=True, memory_format=torch.channels_last)
            y = y.to(device, non_blocking=True)
            last = number == parts
            with self.accelerator.no_sync(self.heads) if not last else nullcontext():
                loss = self._loss(x, y) / parts
                self.accelerator.backward(loss)
            total += loss.detach()
        value = float(self.accelerator.reduce(total, "mean"))
        if value != value or value in (float("inf"), float("-inf")):
            names = ", ".join(self.samples.samples[index].name for index in indices.tolist())
            raise TrainingError(
                f"the loss is {value} in epoch {self.epoch}, step {self.step} (pictures: {names}); expected a number. "
                f"Lower the learning rate (now {self._lr():g}); the state of epoch {self.epoch - 1} is kept"
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        return value

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            logits = self.heads(x)
        except torch.OutOfMemoryError:
            raise OutOfMemoryError(
                f"{x.device} has too little memory for {x.shape[0]} pictures of {x.shape[2]}x{x.shape[3]}; lower "
                "batch_size or crop_size, raise accumulate, or use precision='bfloat16'"
            ) from None
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise OptionError(
                f"BatchNorm cannot train on one picture pooled to one value (batch_size {self.settings.batch_size}, "
                f"accumulate {self.settings.accumulate}); expected two pictures at a time, or freeze='batchnorm'"
            ) from None
        total: Tensor = torch.zeros((), device=x.device)
        for each, share in zip(logits, (1.0, self.settings.aux_weight), strict=False):
            sums = self.loss(each, y)
            weight = self.accelerator.reduce(sums.weight.detach(), "sum").clamp(min=1e-12)
            # gradients are averaged over the processes, so each one's part counts that many times
            total = total + share * sums.total * self.accelerator.num_processes / weight
        return total

    def _lr(self) -> float:
        """Poly decay to a hundredth, per step, after the warmup."""
        settings = self.settings
        lowest = settings.lr / 100
        lr = (settings.lr - lowest) * (1 - self.step / self.steps) ** 0.9 + lowest
        return float(lr * min(1.0, (self.step + 1) / (settings.warmup + 1)))

    # --- measuring and keeping --------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        if self.ema is None:
            self.kept.load_state_dict(self.model.state_dict())
        self.kept.to(self.accelerator.device)
        measured = measure(
            self.kept,
            self.data,
            "val",
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            progress=False,
        )
        return {name: measured.scores[name] for name in ("mIoU", "aAcc")}

    def _keep(self, miou: float) -> None:
        """The network of this epoch, as the last one and, where it is, as the best one."""
        metric = Metric("mIoU", miou, "val", Protocol("whole", (1.0,), False), "reproduced")
        folders = [self.run.folder / "last"]
        if miou > self.best:
            self.best = miou
            folders.append(self.run.folder)
        for folder in folders:
            self.kept.save_pretrained(
                folder,
                ignore_index=self.data.ignore_index,
                metrics=[metric],
                started_from=self.facts["weights"],
            )

    def _save(self) -> None:
        self.run.save(
            {
                "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.settings).items()},
                "facts": self.facts,
                "epoch": self.epoch,
                "step": self.step,
                "best": self.best,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _class_pixels(report: Report, data: SegmentationData) -> list[int]:
    """Pixels of each class in the train split."""
    pixels = [0] * data.num_classes
    for split in report.splits:
        for value in split.values if split.name == "train" else ():
            if value.class_id is not None:
                pixels[value.class_id] += value.pixels
    return pixels


def _freeze(model: SegmentationModel, settings: Settings) -> list[nn.Module]:
    """Switch off the gradients of what stays as it is; the modules that must stay in `eval()` are returned."""
    if settings.aux_weight == 0 and model.aux_head is not None:
        model.aux_head.requires_grad_(False)
    if settings.freeze == "none":
        return []
    if settings.freeze == "backbone":
        frozen: list[nn.Module] = [model.backbone]
    else:
        frozen = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def _recipe(settings: Settings, steps: int, auxiliary: bool) -> Recipe:
    """The settings as the record of published weights has them."""
    return Recipe(
        train_split="train",
        crop=settings.crop_size,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        iterations=steps,
        optimizer={"sgd": "SGD", "adamw": "AdamW"}[settings.optimizer],
        lr=settings.lr,
        schedule="poly",
        momentum=settings.momentum if settings.optimizer == "sgd" else None,
        weight_decay=settings.weight_decay,
        aux_loss_weight=settings.aux_weight if auxiliary else None,
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
