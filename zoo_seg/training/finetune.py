"""Fine-tuning from Python. On one process, or on several under torchrun or `accelerate launch`:

zoo-seg finetune --data my_data/ --model pspnet_resnet50_os8 --weights ade20k --out runs/mine
torchrun --nproc_per_node 4 -m zoo_seg finetune --data my_data/ ...
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zoo_seg.errors import MissingExtraError, OptionError

try:
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
except ImportError as error:
    raise MissingExtraError(f"training needs more ({error.name} is missing): pip install 'zoo_seg[train]'") from None

from zoo_seg.data.check import check_data
from zoo_seg.data.findings import DataReport
from zoo_seg.data.layouts import SegmentationData, open_data
from zoo_seg.factory import from_pretrained
from zoo_seg.inference.predictor import choose_device
from zoo_seg.layers.losses import SegmentationLoss, balanced_class_weights
from zoo_seg.manifest import Weights
from zoo_seg.model import SegmentationModel
from zoo_seg.training.figures import draw_curve, draw_sheet
from zoo_seg.training.journal import Journal
from zoo_seg.training.loop import Loop
from zoo_seg.training.run import CURVE, LOG, SAMPLES, Run
from zoo_seg.training.samples import EpochBatches, TrainingSamples
from zoo_seg.training.settings import Settings
from zoo_seg.training.start import recipe_of, starting_network, use_statistics
from zoo_seg.training.transforms import published_transforms


def finetune(
    data: str | os.PathLike[str],
    model: str | None = None,
    weights: str | os.PathLike[str] | Weights | bool | None = None,
    *,
    out: str | os.PathLike[str],
    backbone: str | None = None,
    backbone_pretrained: bool = False,
    channels: int | None = None,
    layout: str = "auto",
    val_fraction: float | None = None,
    mask_suffix: str | None = None,
    resume: bool = False,
    device: str | None = None,
    workers: int = 2,
    progress: bool = True,
    **options: Any,
) -> SegmentationModel:
    """Train a network on the train split of a data set; return the best one, by its mIoU on val after every epoch.

        model = zoo_seg.finetune("my_data", "pspnet_resnet50_os8", "ade20k", out="runs/mine", epochs=20)

    The options' defaults are SSSegmentation's published recipe: SGD with poly decay, random scale, crop, flip and
    photometric distortion. Under torchrun or `accelerate launch` several processes share each step's images and do
    together what one does (`ohem`, `dice` and `dropout` look at each one's share); all of them must see `out`.

    Args:
        data: the data set's folder, see `open_data`. It is read once and checked first, see `check_data`.
        model: a model name; with `backbone` a name for its family, or just `"fcn"`, `"pspnet"`, `"semanticfpn"`.
        weights: what training starts from: what `pretrained=` of a factory takes, or an id, an earlier run's folder
            or a repository as `"hf://org/repo"`, which need no `model`. Where the number of classes differs, the
            classifiers start anew. None or False is random values.
        out: the folder to write, made when training begins; a new one, unless with `resume`. It receives the best
            network (`model.safetensors`, `config.json` and a model card, for `from_pretrained(out)` and `--weights`),
            the last one in `last/`, `log.jsonl`, TensorBoard files, `curve.png` and `samples.png` at the end, and
            `state.pt` for `resume`, which may be deleted when all is done.
        backbone: a timm model name, in place of the model's own; with random values.
        backbone_pretrained: fetch timm's ImageNet weights for the backbone.
        channels: width of the head of a network without weights; None is the family's own.
        layout: how the data lies in its folder, see `open_data`; `"auto"` finds out.
        val_fraction, mask_suffix: of data without a val split, and of masks beside their images; see `open_data`.
        resume: go on with an interrupted run, given the same arguments. It ends as an unbroken one would, on another
            device or number of processes as well, but for float noise. A finished run returns its network at once.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, ...; None is the fastest that is there.
        workers: processes that read and transform images; 0 does it in this one.
        progress: show a bar (on a terminal only), and a line after every epoch on stderr.
        options: see `zoo_seg.training.settings.Settings`: `epochs=50`, `batch_size=8`, `crop_size=(512, 512)`,
            `lr=0.01`, `optimizer="sgd"`, `seed=0`, `ema=`, `freeze=`, `precision=`, ...

    Returns:
        The best network, in `eval()` on the CPU.

    Raises:
        OptionError: an option is not allowed or unknown; `out` holds something else, or a run with other settings.
        UnknownNameError: no model, tag or backbone has this name.
        DataError, ImageError: the data set is not fit for training; the message names the files.
        CheckpointError, DownloadError: the weights cannot be had.
        OutOfMemoryError: the device has too little memory; the message says what lowers it.
        TrainingError: the loss is not a number any more, or the disk is full; what was kept before is unharmed.
        MissingExtraError: the extra `train` is not installed.
    """
    _check_types(data, model, out)
    settings, run = Settings.of(options), Run(Path(out))
    if workers < 0:
        raise OptionError(f"workers is {workers}; expected a number of processes, or 0")
    accelerator = _accelerator(settings, device)
    run.check(resume)
    source = open_data(
        data if isinstance(data, str) else Path(data), layout, val_fraction=val_fraction, mask_suffix=mask_suffix
    )
    batches = _batches(source, settings, accelerator)
    torch.manual_seed(settings.seed)
    network, origin = starting_network(
        source, settings, model, weights, backbone=backbone, backbone_pretrained=backbone_pretrained, channels=channels
    )
    network.recipe = recipe_of(settings, settings.epochs * len(batches), network)
    facts = {
        "classes": list(source.classes),
        "network": asdict(network.architecture) if network.architecture else None,
        "weights": origin,
        **{split: [sample.name for sample in source.samples(split)] for split in ("train", "val")},
    }
    state = run.state(settings, facts) if resume else None
    with accelerator.main_process_first():  # the others find its result in the cache
        report = check_data(source, ("train", "val"), progress=progress and accelerator.is_main_process, cache=True)
    report.raise_if_bad()
    use_statistics(network, report)

    loop = Loop(
        network,
        source,
        _samples(source, network, settings),
        batches,
        _loss(source, report, settings, network.network.align_corners),
        settings,
        accelerator,
        run,
        facts,
        workers,
    )
    if state is not None:
        loop.restore(state)
    with ExitStack() as stack:
        stack.enter_context(run.writing())
        journal = None
        if accelerator.is_main_process:
            run.begin(loop.epoch)
            journal = stack.enter_context(_journal(loop, progress))
            journal.say("\n".join([_title(loop), *source.notes]))
        loop.train(journal)
        if accelerator.is_main_process:
            draw_curve(run.folder / LOG, run.folder / CURVE)
            draw_sheet(from_pretrained(run.folder), source, run.folder / SAMPLES)
    accelerator.wait_for_everyone()
    return from_pretrained(run.folder)


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return bool(PartialState().is_main_process)


def _check_types(data: object, model: object, out: object) -> None:
    for name, value in (("data", data), ("out", out)):
        if not isinstance(value, (str, os.PathLike)):
            raise OptionError(f"{name} is of type {type(value).__name__}; expected the path of a folder")
    if isinstance(model, torch.nn.Module):
        raise OptionError(
            "model is a network; expected a name, such as 'pspnet_resnet50_os8'. To train this one, write "
            "model.save_pretrained('mine') and pass weights='mine'"
        )
    if model is not None and not isinstance(model, str):
        raise OptionError(f"model is of type {type(model).__name__}; expected a name, such as 'pspnet_resnet50_os8'")


def _accelerator(settings: Settings, device: str | None) -> Accelerator:
    if device is not None:
        chosen = choose_device(device)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)
    cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if cpu and settings.precision == "float16":
        raise OptionError("precision is 'float16', which needs a GPU; expected 'float32' or 'bfloat16' on the CPU")
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[settings.precision]
    # an earlier run in this process may have had another device or precision
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=cpu, mixed_precision=precision)


# --- the parts of a run ---------------------------------------------------------------------------


def _batches(data: SegmentationData, settings: Settings, accelerator: Accelerator) -> EpochBatches:
    """What is trained on in which order; refuses at once what would fail after everything was read."""
    size, processes, batch = len(data.samples("train")), accelerator.num_processes, settings.batch_size
    data.samples("val")
    if batch > size:
        raise OptionError(f"batch_size {batch} is more than the {size} images of train")
    if batch % (processes * settings.accumulate):
        raise OptionError(
            f"batch_size {batch} cannot be shared equally; expected a multiple of {processes} processes times "
            f"{settings.accumulate} parts (accumulate)"
        )
    return EpochBatches(size, batch, settings.seed, accelerator.process_index, processes, settings.accumulate)


def _samples(data: SegmentationData, network: SegmentationModel, settings: Settings) -> TrainingSamples:
    transform = published_transforms(
        settings.crop_size,
        mean=network.preprocess.mean,
        std=network.preprocess.std,
        ignore_index=data.ignore_index,
        base=network.preprocess.resize,
        scale=settings.scale,
        flip=settings.flip,
        photometric=settings.photometric,
    )
    return TrainingSamples(data, "train", transform, settings.seed)


def _loss(data: SegmentationData, report: DataReport, settings: Settings, align_corners: bool) -> SegmentationLoss:
    weights = balanced_class_weights(_class_pixels(report, data)) if settings.class_weights == "balanced" else None
    return SegmentationLoss(
        settings.loss, ignore_index=data.ignore_index, class_weights=weights, align_corners=align_corners
    )


def _class_pixels(report: DataReport, data: SegmentationData) -> list[int]:
    """Pixels of each class in the train split."""
    pixels = [0] * data.num_classes
    for split in report.splits:
        for value in split.values if split.name == "train" else ():
            if value.class_id is not None:
                pixels[value.class_id] += value.pixels
    return pixels


def _journal(loop: Loop, progress: bool) -> Journal:
    return Journal(
        loop.run.folder / LOG,
        epochs=loop.settings.epochs,
        steps=loop.steps,
        epoch=loop.epoch,
        step=loop.step,
        best=loop.best,
        progress=progress,
    )


def _title(loop: Loop) -> str:
    """What is about to be done, in two lines."""
    data, network, accelerator = loop.data, loop.model.architecture, loop.accelerator
    name = f"{network.family} on {network.backbone}" if network else "the network"
    processes = f"{accelerator.num_processes} processes, " if accelerator.num_processes > 1 else ""
    epochs, steps = loop.settings.epochs, len(loop.batches)
    begins = f", going on after epoch {loop.epoch}" if loop.epoch else ""
    begins = ", finished already" if loop.epoch == epochs else begins
    return (
        f"{data.root}: {len(loop.samples)} images of train, {len(data.samples('val'))} of val, "
        f"{data.num_classes} classes\n"
        f"{name}, from {loop.facts['weights'] or 'random values'}; {epochs} epoch{'s' if epochs > 1 else ''} "
        f"of {steps} step{'s' if steps > 1 else ''} ({processes}{loop.device.type}, {loop.settings.precision}){begins}"
    )
