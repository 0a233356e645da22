"""`zoo-seg info`"""

from __future__ import annotations

import argparse
import textwrap
from urllib.parse import urlsplit

from zoo_seg import settings
from zoo_seg.cli.text import megabytes, print_json
from zoo_seg.hub.download import shown
from zoo_seg.manifest import (
    Architecture,
    Model,
    TestOptions,
    Weights,
    get_model,
    get_weights,
    list_weights,
    load_manifest,
)

_WIDTH = 18


def run(arguments: argparse.Namespace) -> int:
    """Print one record, or a model's architecture and its tags."""
    if "." in arguments.id:
        record = get_weights(arguments.id)
        if arguments.json:
            print_json(record)
        else:
            _print_record(record)
        return 0
    model = get_model(arguments.id)
    records, architecture = list_weights(model=model.name), model.architecture
    if arguments.json:
        print_json(records)
        return 0
    print(f"{model.name}\n")
    _row("network", f"{model.title}{_stride(architecture)}")
    _row("paper", model.paper)
    _cost(model)
    for record in records:
        number = "no mIoU known" if record.miou is None else f"mIoU {record.miou} %"
        _row("weights" if record is records[0] else "", f"{record.id}  {number}")
    return 0


def _print_record(record: Weights) -> None:
    architecture = record.architecture
    print(f"{record.id}\n")
    _row("network", f"{architecture.family} on {architecture.backbone}{_stride(architecture)}")
    _row("paper", get_model(record.model).paper)
    _row("parameters", f"{record.parameters / 1e6:.2f} M")
    _cost(record)
    for metric in record.metrics:
        test = metric.test
        scales = ", ".join(f"{scale:g}" for scale in test.scales)
        how = f"{_mode(test)}, scales {scales}, {'flip' if test.flip else 'no flip'}"
        _row(metric.name, f"{metric.value} % on {metric.split} ({metric.status}; {how})")
        if metric.note:
            _row("", f"note: {metric.note}")
    recipe = record.recipe
    length = f"{recipe.epochs or 'unknown'} epochs"
    if recipe.iterations:
        length = f"{recipe.iterations} iterations"
    crop = f"{recipe.crop[0]}x{recipe.crop[1]} (height x width)"
    _row("recipe", f"{recipe.train_split}, {length}, batch {recipe.batch_size or 'unknown'}, crop {crop}")
    further = {"lr": recipe.lr, "momentum": recipe.momentum, "weight decay": recipe.weight_decay}
    known = "".join(f", {name} {value}" for name, value in further.items() if value is not None)
    _row("", f"{recipe.optimizer or 'optimizer unknown'}{known}; {recipe.schedule or 'schedule unknown'}")
    size = record.preprocess.resize or "the image's own size"
    _row("test size", f"{size}; {_mode(record.test)}; {record.protocol} rules")
    _row("mean, std (RGB)", f"{list(record.preprocess.mean)}, {list(record.preprocess.std)}")
    for file in record.files:
        _row("file", file.name)
        _row("size", megabytes(file.size) if file.size else "not published")
        _row("sha256", file.sha256 or "not published; recorded at the first download")
        if file.sha256_prefix_claimed:
            _row("", f"the publisher's file name claims {file.sha256_prefix_claimed}... (not enforced)")
        if file.packaged:
            _row("link", "comes with the package; nothing is fetched")
            continue
        for url in (file.url, *file.mirrors):
            _row("link" if url == file.url else "mirror", url)
        _row("hosts asked", ", ".join(dict.fromkeys(_hosts(file.url, *file.mirrors))))
    _row("licence, code", record.licence.code or "not stated")
    _row("licence, weights", record.licence.weights or "not stated by the publisher")
    if record.licence.pretraining:
        _row("pretraining", record.licence.pretraining)
    _row("terms of the data", record.licence.data or "not stated")
    revision = record.provenance.revision
    _row("project", record.provenance.project + (f" (facts as of {revision})" if revision else ""))
    _row("config", record.provenance.config_url)
    _row("training log", record.provenance.log_url)
    for host in load_manifest().sources[record.source].hosts:
        _row("host", f"{urlsplit(host.url).hostname}: {host.status}")
    for note in record.notes:
        _row("note", note)
    _row(f"{record.num_classes} classes", ", ".join(f"{i} {name}" for i, name in enumerate(record.classes)))


def _cost(network: Model | Weights) -> None:
    if network.multiply_adds is not None:
        _row("multiply-adds", f"{network.multiply_adds / 1e9:.1f} G for an image of 512x512")
    if network.seconds is not None:
        _row("time", f"{network.seconds:g} s for an image of 512x683 on two CPU cores")


def _mode(test: TestOptions) -> str:
    """`whole`, or `slide` with the window and the step where they are known."""
    sides = [f"{name} {sides[0]}x{sides[1]}" for name, sides in (("crop", test.crop), ("stride", test.stride)) if sides]
    return " ".join([test.mode, *sides])


def _stride(architecture: Architecture) -> str:
    return f", output stride {architecture.output_stride}" if architecture.output_stride else ""


def _hosts(*urls: str) -> list[str]:
    mirror = settings.mirror()
    addresses = [settings.hub() if url.startswith("hf://") else url for url in urls]
    hosts = [urlsplit(address).hostname or "none (a file of this machine)" for address in addresses]
    return [*([shown(mirror)] if mirror else []), *hosts]


def _row(label: str, text: str | None) -> None:
    """A label and its text, wrapped but for links."""
    if text is None:
        text = "not known"
    lines = [text] if "://" in text else textwrap.wrap(text, 100, break_long_words=False) or [""]
    for i, line in enumerate(lines):
        print(f"{label if i == 0 else '':{_WIDTH}}{line}")
