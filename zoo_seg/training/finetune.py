"""Fine-tuning from Python. On one process, or on several under torchrun or `accelerate launch`:

zoo-seg finetune --data my_data/ --model pspnet_resnet50_os8 --weights ade20k --out runs/mine
torchrun --nproc_per_node 4 -m zoo_seg finetune --data my_data/ ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zoo_seg.errors import MissingExtraError, OptionError

try:
    import matplotlib  # noqa: F401
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration
except ImportError as error:
    raise MissingExtraError(f"training needs more ({error.name} is missing): pip install 'zoo_seg[train]'") from None

from zoo_seg.data.check import check_data
from zoo_seg.data.findings import DataReport
from zoo_seg.data.labels import Colour
from zoo_seg.data.layouts import SegmentationData, open_data
from zoo_seg.evaluation.details import WORST
from zoo_seg.evaluation.measure import measure
from zoo_seg.evaluation.report import write_details
from zoo_seg.factory import from_pretrained
from zoo_seg.inference.predictor import choose_device
from zoo_seg.layers.losses import OwnLoss, SegmentationLoss, balanced_class_weights
from zoo_seg.manifest import Weights
from zoo_seg.model import SegmentationModel
from zoo_seg.training.callables import name_of
from zoo_seg.training.callbacks import Callbacks
from zoo_seg.training.figures import draw_curve, draw_sheet
from zoo_seg.training.journal import Journal
from zoo_seg.training.loop import Loop
from zoo_seg.training.pairs import DatasetPairs, check_pairs, of_datasets
from zoo_seg.training.run import CURVE, LOG, SAMPLES, Run
from zoo_seg.training.samples import EpochBatches, TrainingSamples, Transform
from zoo_seg.training.schedule import SCHEDULES, checked
from zoo_seg.training.settings import Settings
from zoo_seg.training.start import recipe_of, starting_network, use_statistics
from zoo_seg.training.trackers import chosen_trackers, tracking
from zoo_seg.training.transforms import OwnTransforms, published_transforms


def finetune(
    data: str | os.PathLike[str] | None = None,
    model: str | SegmentationModel | None = None,
    weights: str | os.PathLike[str] | Weights | bool | None = None,
    *,
    out: str | os.PathLike[str],
    train: Any = None,
    val: Any = None,
    classes: Sequence[str] | None = None,
    palette: Sequence[Colour] | None = None,
    ignore_index: int = 255,
    backbone: str | None = None,
    backbone_pretrained: bool = False,
    channels: int | None = None,
    layout: str = "auto",
    transforms: Transform | None = None,
    callbacks: Sequence[Any] = (),
    log_with: Any = None,
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
    together what one does (`ohem`, `dice`, `lovasz`, `dropout` and a loss of your own look at each one's share); all of
    them must see `out`.

    Args:
        data: the data set's folder, see `open_data`. It is read once and checked first, see `check_data`.
        model: a model name; with `backbone` a name for its family, or just `"fcn"`, `"pspnet"`, `"semanticfpn"`. Or a
            network, of which a copy is trained.
        weights: what training starts from: what `pretrained=` of a factory takes, or an id, an earlier run's folder
            or a repository as `"hf://org/repo"`, which need no `model`. Where the number of classes differs, the
            classifiers start anew. None or False is random values.
        out: the folder to write, made when training begins; a new one, unless with `resume`. It receives the best
            network (`model.safetensors`, `config.json` and a model card, for `from_pretrained(out)` and `--weights`),
            the last one in `last/`, `log.jsonl`, TensorBoard files, at the end `curve.png`, `samples.png` and what
            the best network does on val (`confusion.csv`, `confusion.png`, `images.csv`, `worst.png`), and `state.pt`
            for `resume`, which may be deleted when all is done.
        train, val: in place of `data`: torch Datasets with a length, of pairs of an image (uint8 array (H, W, 3) or
            tensor (3, H, W), or a PIL image) and a label (integers (H, W)). Every pair is read once and checked first.
            `val` must give the same each time; what `train` draws from torch's, numpy's or Python's global generator
            is drawn again when resumed.
        classes, palette, ignore_index: of `train` and `val`: a name and an RGB colour for each class id (None: VOC's
            colours), and the label that does not count.
        backbone: a timm model name, in place of the model's own; with random values.
        backbone_pretrained: fetch timm's ImageNet weights for the backbone.
        channels: width of the head of a network without weights; None is the family's own.
        layout: how the data lies in its folder, see `open_data`; `"auto"` finds out.
        val_fraction, mask_suffix: of data without a val split, and of masks beside their images; see `open_data`.
        transforms: in place of the published ones: a callable of (uint8 tensor (3, H, W), integer tensor (H, W)) into
            an image and a mask of at most `crop_size`, to which they are padded. A uint8 image is normalised
            afterwards, a float one is taken as it is.
        callbacks: objects with methods of `zoo_seg.training.callbacks.Callback`.
        log_with: where to log beside `log.jsonl` and TensorBoard: one of Accelerate's trackers or several, such as
            `"wandb"` or `"mlflow"`, by name or as objects.
        resume: go on with an interrupted run, given the same arguments, callables of your own by the same names. It
            ends as an unbroken one would, on another device or number of processes as well, but for float noise. A
            finished run returns its network at once, unless `epochs` are more than it had: then it is trained on from
            its last network, with the learning rate that `schedule` has there for the new number of epochs.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, ...; None is the fastest that is there.
        workers: processes that read and transform images; 0 does it in this one.
        progress: show a bar (on a terminal only), and a line after every epoch on stderr.
        options: see `zoo_seg.training.settings.Settings`: `epochs=50`, `batch_size=8`, `crop_size=(512, 512)`,
            `lr=0.01`, `optimizer="sgd"`, `seed=0`, `patience=`, `class_weights=`, `ema=`, `freeze=`, `precision=`, ...
            `loss` may be a callable or a module of (logits (N, C, H, W), float32, labels (N, H, W), int64) into a
            scalar, see `zoo_seg.layers.losses.SegmentationLoss`; it must leave `ignore_index` out itself, has no
            parameters that are trained, and its mean over processes is weighted by their labelled pixels. `schedule`
            may be a callable of the share of the steps that are done, 0 to 1, into a factor of `lr`.

    Returns:
        The best network, in `eval()` on the CPU.

    Raises:
        OptionError: an option is not allowed or unknown; `out` holds something else, or a run with other settings.
        UnknownNameError: no model, tag or backbone has this name.
        DataError, ImageError: the data set is not fit for training; the message names the files.
        CheckpointError, DownloadError: the weights cannot be had.
        OutOfMemoryError: the device has too little memory; the message says what lowers it.
        TrainingError: the loss is not a number any more, the disk is full, or a callable of your own failed; what was
            kept before is unharmed.
        MissingExtraError: the extra `train` is not installed.
    """
    _check_types(data, model, out)
    own = {name: options.pop(name) for name in ("loss", "schedule") if callable(options.get(name))}
    settings, run, watchers = Settings.of(options), Run(Path(out)), Callbacks(callbacks)
    if workers < 0:
        raise OptionError(f"workers is {workers}; expected a number of processes, or 0")
    if transforms is not None and not callable(transforms):
        raise OptionError(f"transforms is of type {type(transforms).__name__}; expected a callable of image and mask")
    accelerator = _accelerator(settings, device, run.folder, log_with)
    run.check(resume)
    source = _source(
        data, layout, train, val, classes, palette, ignore_index, val_fraction=val_fraction, mask_suffix=mask_suffix
    )
    batches = _batches(source, settings, accelerator)
    _check_class_weights(source, settings, own.get("loss"))
    torch.manual_seed(settings.seed)
    network, origin = starting_network(
        source, settings, model, weights, backbone=backbone, backbone_pretrained=backbone_pretrained, channels=channels
    )
    schedule = name_of(own["schedule"]) if "schedule" in own else settings.schedule
    network.recipe = recipe_of(settings, schedule, settings.epochs * len(batches), network)
    callables = {**dict.fromkeys(("loss", "schedule")), "transforms": transforms, **own}
    facts = {
        "classes": list(source.classes),
        "network": asdict(network.architecture) if network.architecture else None,
        "weights": origin,
        **{name: each and name_of(each) for name, each in callables.items()},
        **{split: [sample.name for sample in source.samples(split)] for split in ("train", "val")},
    }
    state = run.state(settings, facts) if resume else None
    shown = progress and accelerator.is_main_process
    if isinstance(source, DatasetPairs):
        pixels = check_pairs(source, workers=workers, progress=shown)
    else:
        with accelerator.main_process_first():  # the others find its result in the cache
            report = check_data(source, ("train", "val"), progress=shown, cache=True)
        report.raise_if_bad()
        use_statistics(network, report)
        pixels = _class_pixels(report, source)

    loop = Loop(
        network,
        source,
        _samples(source, network, settings, transforms),
        batches,
        _loss(source, pixels, settings, own.get("loss"), network.network.align_corners),
        checked(own["schedule"]) if "schedule" in own else SCHEDULES[settings.schedule],
        watchers,
        settings,
        accelerator,
        run,
        facts,
        workers,
    )
    if state is not None:
        loop.restore(state)
    is_drawn = loop.finished and (run.folder / WORST).is_file()
    with ExitStack() as stack:
        stack.enter_context(run.writing())
        journal = None
        if accelerator.is_main_process:
            run.begin(loop.epoch)
            track = stack.enter_context(tracking(accelerator, settings, run.folder))
            journal = stack.enter_context(_journal(loop, progress, track))
            journal.say("\n".join([_title(loop), *source.notes]))
        loop.train(journal)
        accelerator.wait_for_everyone()
        best = from_pretrained(run.folder)
        if not is_drawn:
            _draw(best, loop)
    accelerator.wait_for_everyone()
    return best


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return bool(PartialState().is_main_process)


def _check_types(data: object, model: object, out: object) -> None:
    for name, value in (("data", "" if data is None else data), ("out", out)):
        if not isinstance(value, (str, os.PathLike)):
            raise OptionError(f"{name} is of type {type(value).__name__}; expected the path of a folder")
    if isinstance(model, SegmentationModel):
        return
    if isinstance(model, torch.nn.Module):
        raise OptionError(
            "model is a network; expected a name, such as 'pspnet_resnet50_os8', or a SegmentationModel (it is a "
            f"{type(model).__name__})"
        )
    if model is not None and not isinstance(model, str):
        raise OptionError(f"model is of type {type(model).__name__}; expected a name, such as 'pspnet_resnet50_os8'")


def _source(
    data: str | os.PathLike[str] | None,
    layout: str,
    train: Any,
    val: Any,
    classes: Sequence[str] | None,
    palette: Sequence[Colour] | None,
    ignore_index: int,
    **options: Any,
) -> SegmentationData:
    """The folder, or the two Datasets."""
    if data is None and train is None and val is None:
        raise OptionError("there is no data; expected the path of a folder, or train= and val=")
    if data is None:
        return of_datasets(train, val, classes, palette, ignore_index)
    if any(each is not None for each in (train, val, classes, palette)):
        raise OptionError("data is given, which brings its own train, val, classes and palette; leave those out")
    return open_data(data if isinstance(data, str) else Path(data), layout, **options)


def _accelerator(settings: Settings, device: str | None, folder: Path, log_with: Any) -> Accelerator:
    trackers = chosen_trackers(log_with)
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
    project = ProjectConfiguration(str(folder), str(folder))
    return Accelerator(cpu=cpu, mixed_precision=precision, log_with=trackers or None, project_config=project)


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


def _check_class_weights(data: SegmentationData, settings: Settings, own: OwnLoss | None) -> None:
    weights = settings.class_weights
    if own is not None and weights != "none":
        raise OptionError("class_weights belong to the losses of zoo_seg; a loss of your own brings its own")
    if isinstance(weights, tuple) and len(weights) != data.num_classes:
        raise OptionError(f"class_weights are {len(weights)} for {data.num_classes} classes; expected as many")


def _samples(
    data: SegmentationData, network: SegmentationModel, settings: Settings, own: Transform | None
) -> TrainingSamples:
    transform: Transform = published_transforms(
        settings.crop_size,
        mean=network.preprocess.mean,
        std=network.preprocess.std,
        ignore_index=data.ignore_index,
        base=network.preprocess.resize,
        scale=settings.scale,
        flip=settings.flip,
        photometric=settings.photometric,
    )
    if own is not None:
        mean, std = network.preprocess.mean, network.preprocess.std
        transform = OwnTransforms(
            own,
            name_of(own),
            settings.crop_size,
            data.num_classes,
            mean=mean,
            std=std,
            ignore_index=data.ignore_index,
        )
    return TrainingSamples(data, "train", transform, settings.seed)


def _loss(
    data: SegmentationData, pixels: Sequence[int], settings: Settings, own: OwnLoss | None, align_corners: bool
) -> SegmentationLoss:
    chosen, weights = settings.class_weights, None
    if isinstance(chosen, tuple):
        weights = torch.tensor(chosen, dtype=torch.float32)
    elif chosen == "balanced":
        weights = balanced_class_weights(pixels)
    return SegmentationLoss(
        own or settings.loss, ignore_index=data.ignore_index, class_weights=weights, align_corners=align_corners
    )


def _class_pixels(report: DataReport, data: SegmentationData) -> list[int]:
    """Pixels of each class in the train split."""
    pixels = [0] * data.num_classes
    for split in report.splits:
        for value in split.values if split.name == "train" else ():
            if value.class_id is not None:
                pixels[value.class_id] += value.pixels
    return pixels


def _journal(loop: Loop, progress: bool, track: Callable[[dict[str, float], int], None]) -> Journal:
    return Journal(
        loop.run.folder / LOG,
        epochs=loop.settings.epochs,
        steps=loop.steps,
        epoch=loop.epoch,
        step=loop.step,
        best=loop.best,
        progress=progress,
        track=track,
    )


def _draw(best: SegmentationModel, loop: Loop) -> None:
    """What the run did, and what its best network does on val; every process measures its share."""
    accelerator, folder = loop.accelerator, loop.run.folder
    shares = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    measured = measure(best.to(loop.device), loop.data, "val", details=True, progress=False, **shares)
    best.cpu()
    if accelerator.is_main_process:
        draw_curve(folder / LOG, folder / CURVE)
        draw_sheet(best, loop.data, folder / SAMPLES)
        assert measured.details  # they were asked for
        write_details(measured.details, loop.data, "val", folder)


def _title(loop: Loop) -> str:
    """What is about to be done, in two lines."""
    data, network, accelerator = loop.data, loop.model.architecture, loop.accelerator
    name = f"{network.family} on {network.backbone}" if network else "the network"
    processes = f"{accelerator.num_processes} processes, " if accelerator.num_processes > 1 else ""
    epochs, steps = loop.settings.epochs, len(loop.batches)
    begins = f", going on after epoch {loop.epoch}" if loop.epoch else ""
    begins = ", finished already" if loop.finished else begins
    return (
        f"{data.root}: {len(loop.samples)} images of train, {len(data.samples('val'))} of val, "
        f"{data.num_classes} classes\n"
        f"{name}, from {loop.facts['weights'] or 'random values'}; {epochs} epoch{'s' if epochs > 1 else ''} "
        f"of {steps} step{'s' if steps > 1 else ''} ({processes}{loop.device.type}, {loop.settings.precision}){begins}"
    )
