"""`zoo-seg info`"""

from __future__ import annotations

import argparse
import textwrap
from urllib.parse import urlsplit

from zoo_seg import settings
from zoo_seg.cli.text import megabytes, print_json
from zoo_seg.hub.download import shown
from zoo_seg.manifest import Architecture, Weights, get_architecture, get_weights, list_weights

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
    name, architecture = get_architecture(arguments.id)
    records = list_weights(model=name)
    if arguments.json:
        print_json(records)
        return 0
    print(f"{name}\n")
    _row("family", architecture.family)
    _row("backbone", f"{architecture.backbone} (timm){_stride(architecture)}")
    _row("paper", architecture.paper)
    for record in records:
        number = "no mIoU known" if record.miou is None else f"mIoU {record.miou} %"
        _row("weights" if record is records[0] else "", f"{record.id}  {number}")
    return 0


def _print_record(record: Weights) -> None:
    _, architecture = get_architecture(record.model)
    print(f"{record.id}\n")
    _row("network", f"{architecture.family} on {architecture.backbone}{_stride(architecture)}")
    _row("paper", architecture.paper)
    _row("parameters", f"{record.parameters / 1e6:.2f} M")
    for metric in record.metrics:
        protocol = metric.protocol
        scales = ", ".join(f"{scale:g}" for scale in protocol.scales)
        how = f"{protocol.mode}, scales {scales}, {'flip' if protocol.flip else 'no flip'}"
        _row(metric.name, f"{metric.value} % on {metric.split} ({metric.status}; {how})")
        if metric.note:
            _row("", f"note: {metric.note}")
    recipe = record.recipe
    length = f"{recipe.epochs or 'unknown'} epochs"
    if recipe.iterations:
        length = f"{recipe.iterations} iterations"
    crop = f"{recipe.crop[0]}x{recipe.crop[1]} (height x width)"
    _row("recipe", f"{recipe.train_split}, {length}, batch {recipe.batch_size}, crop {crop}")
    further = {"momentum": recipe.momentum, "weight decay": recipe.weight_decay}
    known = "".join(f", {name} {value}" for name, value in further.items() if value is not None)
    _row("", f"{recipe.optimizer} lr {recipe.lr}{known}; {recipe.schedule}")
    resize = record.preprocess.resize
    size = f"shorter side {resize.short}, at most {resize.long}" if resize else "the picture's own size"
    _row("test size", f"{size}; {record.protocol} rules")
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
    _row("terms of the data", record.licence.data or "not stated")
    revision = record.provenance.revision
    _row("project", record.provenance.project + (f" (facts as of {revision})" if revision else ""))
    _row("config", record.provenance.config_url)
    _row("training log", record.provenance.log_url)
    _row(f"{record.num_classes} classes", ", ".join(f"{i} {name}" for i, name in enumerate(record.classes)))


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
