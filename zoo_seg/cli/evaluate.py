"""`zoo-seg evaluate`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo_seg.cli.network import check_test_arguments, dataset_of, device_of, load_network
from zoo_seg.data.layouts import SegmentationData, open_data
from zoo_seg.errors import OptionError
from zoo_seg.evaluation.chart import draw_chart
from zoo_seg.evaluation.comparison import Comparison, as_json, compare, write_json
from zoo_seg.evaluation.measure import Measurement, measure
from zoo_seg.evaluation.report import write_details
from zoo_seg.manifest import Metric, TestOptions
from zoo_seg.model import SegmentationModel
from zoo_seg.text import table

JSON, CHART = "evaluation.json", "iou.png"


def run(arguments: argparse.Namespace) -> int:
    """Measure, compare with the published number; 1 when the whole split gives another one."""
    data = _check_options(arguments)
    model = load_network(arguments)
    name = model.weights.id if model.weights else Path(arguments.weights).resolve().name
    _warn_of_other_classes(model, data)
    for note in data.notes:
        print(f"zoo-seg: {note}", file=sys.stderr)
    protocol = _protocol(arguments, model.metrics, model.test)
    out = Path(arguments.out or _default_folder(name, arguments.split, protocol))
    out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    measurement = measure(
        model,
        data,
        arguments.split,
        mode=protocol.mode,
        scales=protocol.scales,
        flip=protocol.flip,
        crop=arguments.crop,
        stride=arguments.stride,
        resize=arguments.resize,
        batch_size=arguments.batch_size,
        device=device_of(arguments),
        dtype=arguments.dtype,
        compile=arguments.compile,
        limit=arguments.limit,
        details=True,
    )
    comparison = compare(measurement, model, arguments.tolerance)
    write_json(as_json(name, model, data, measurement, comparison), out / JSON)
    title = f"{name}\n{data.root.resolve().name}, {measurement.split}, {_images(measurement)}: "
    draw_chart(measurement, data.palette, f"{title}mIoU {measurement.scores['mIoU']:.2f} %", out / CHART)
    assert measurement.details  # they were asked for
    more = write_details(measurement.details, data, arguments.split, out)
    _print(name, measurement, comparison, model.metrics)
    print(", ".join(map(str, (out / JSON, out / CHART, *more))))
    return 1 if comparison and measurement.is_whole and not comparison.is_within else 0


def _check_options(arguments: argparse.Namespace) -> SegmentationData:
    """Open the data and refuse what cannot be done before anything is fetched or loaded."""
    if arguments.out is not None and Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise OptionError(f"--out {arguments.out} is a file; expected a folder")
    if not arguments.tolerance >= 0:
        raise OptionError(f"--tolerance is {arguments.tolerance}; expected percent points of mIoU, such as 0.1")
    check_test_arguments(arguments)
    data = open_data(
        arguments.data,
        arguments.dataset,
        dataset=dataset_of(arguments),
        val_fraction=arguments.val_fraction,
        mask_suffix=arguments.mask_suffix,
    )
    data.samples(arguments.split)
    return data


def _protocol(arguments: argparse.Namespace, reported: Sequence[Metric], test: TestOptions) -> TestOptions:
    """What the options say; where they say nothing, how the weights' first number for this split was measured.

    Without one it is the weights' own test.
    """
    metrics = [metric for metric in reported if _is_for(metric, arguments.split)]
    published = metrics[0].test if metrics else test
    return TestOptions(
        arguments.mode or published.mode,
        scales=tuple(arguments.scales or published.scales),
        flip=published.flip if arguments.flip is None else arguments.flip,
    )


def _is_for(metric: Metric, split: str) -> bool:
    return (metric.name, metric.split) == ("mIoU", split)


def _default_folder(name: str, split: str, protocol: TestOptions) -> Path:
    """Another one for every protocol, so that none overwrites the other's report."""
    scales = [f"{scale:g}" for scale in protocol.scales] if protocol.scales != (1.0,) else []
    return Path("evaluation", "_".join([name, split, protocol.mode, *scales, *(["flip"] if protocol.flip else [])]))


def _warn_of_other_classes(model: SegmentationModel, data: SegmentationData) -> None:
    """A file without a record does not know its classes' names; one with a record may be meant for other classes."""
    if not model.metrics or len(model.classes) != len(data.classes):
        return
    for index, (theirs, ours) in enumerate(zip(model.classes, data.classes, strict=True)):
        if theirs != ours:
            print(f"zoo-seg: warning: class {index} is {theirs!r} to the weights, {ours!r} here", file=sys.stderr)
            return


# --- what is printed ------------------------------------------------------------------------------


def _print(name: str, measurement: Measurement, comparison: Comparison | None, reported: Sequence[Metric]) -> None:
    columns = ("IoU", "Acc", "Dice")
    rows = [
        [str(index), label, *(_percent(float(measurement.per_class[column][index])) for column in columns)]
        for index, label in enumerate(measurement.classes)
    ]
    print(table(["id", "class", *(f"{column} %" for column in columns)], rows, right=(0, 2, 3, 4)))
    print(f"\n{name} on {measurement.split}, {_images(measurement)}, {_how(measurement.protocol)}")
    print("  ".join(f"{key} {_percent(value)}" for key, value in measurement.scores.items()))
    print(_verdict(measurement, comparison, reported))


def _verdict(measurement: Measurement, comparison: Comparison | None, reported: Sequence[Metric]) -> str:
    if comparison is None:
        known = [
            f"{metric.value:.2f} on {metric.split} ({_how(metric.test)})"
            for metric in reported
            if metric.name == "mIoU"
        ]
        return f"no number was reported for this; reported is {' and '.join(known)}" if known else "no reported number"
    outcome = "within" if comparison.is_within else "outside"
    if not measurement.is_whole:
        outcome = "a part of the split says nothing about"
    return (
        f"reported {comparison.reported.value:.2f}, measured {measurement.scores['mIoU']:.2f}, "
        f"difference {comparison.difference:+.2f}: {outcome} the tolerance of {comparison.tolerance:g}"
    )


def _images(measurement: Measurement) -> str:
    count = measurement.images
    return f"{'' if measurement.is_whole else 'the first '}{count} image{'' if count == 1 else 's'}"


def _how(protocol: TestOptions) -> str:
    scales = " ".join(f"{scale:g}" for scale in protocol.scales)
    return f"{protocol.mode}, scales {scales}, {'flip' if protocol.flip else 'no flip'}"


def _percent(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"
