"""Every published weight as a typed record, decoded from `weights_manifest.json`.

The dataclasses below *are* the schema, see `decode.py`. Nothing here imports torch.
"""

from __future__ import annotations

import html
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from zoo_seg import settings
from zoo_seg.decode import Mistake, decode, read_json, show, suggest
from zoo_seg.errors import UnknownNameError

SCHEMA_VERSION = 1

T = TypeVar("T")
SortKey = Literal["dataset", "model", "source", "miou", "parameters"]

# What a manifest can ask of a machine: beyond these it is a mistake, or worse.
LARGEST_SIDE = 1 << 15
"""Pixels."""
_LARGEST_SCALE = 16


# --- records ------------------------------------------------------------------------------------


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class File:
    """One file that holds the weights, under its published link and any number of mirrors."""

    url: str
    mirrors: tuple[str, ...] = ()
    size: int | None = None
    """Bytes, or None where nobody published it."""
    sha256: str | None = None
    """64 hex digits, enforced, or None where nobody published it."""
    tensors_sha256: str | None = None
    """The digest of the tensors themselves, the same in every container, see `weights/digest.py`; enforced."""
    sha256_prefix_claimed: str | None = None
    """Hex digits in the publisher's file name: reported, never enforced."""

    def __post_init__(self) -> None:
        for url in (self.url, *self.mirrors):
            _check_link(url)
        _check(self.size is None or self.size > 0, f"size is {self.size}, expected a positive number of bytes or null")
        for name, digits in (("sha256", self.sha256), ("tensors_sha256", self.tensors_sha256)):
            _check(
                digits is None or bool(re.fullmatch("[0-9a-f]{64}", digits)),
                f"{name} is {digits!r}, expected 64 lower-case hex digits or null",
            )

    @property
    def name(self) -> str:
        """The file's published name: the last part of its link."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """The published name, then the other names under which mirrors carry the same file."""
        return tuple(dict.fromkeys(url.rsplit("/", 1)[-1] for url in (self.url, *self.mirrors)))

    @property
    def packaged(self) -> Path | None:
        """Where the file lies inside this package; None where it must be fetched."""
        return Path(__file__).parent / "packaged" / self.name if self.url.startswith("package://") else None


def _check_link(url: str) -> None:
    """A link of a manifest is public, so it may be shown, and names a file below its host and repository."""
    public = re.sub("//[^/]*@", "//", re.split("[?#]", url)[0])[:200]
    _check(
        bool(re.match(r"(https|hf|file|package)://.", url)),
        f"found {public!r}, expected an https://, hf:// or file:// link",
    )
    parts = urlsplit(url)
    _check(
        "@" not in parts.netloc and not parts.query and not parts.fragment,
        f"the link {public!r} holds credentials or a query, expected one that everybody may see",
    )
    name = public.rsplit("/", 1)[-1]
    _check(_safe_name(name), f"the link ends in {name!r}, expected a plain file name")
    steps = unquote(parts.path).replace("\\", "/").split("/")
    _check(".." not in steps, f"the link {public!r} leads upwards by '..', expected one below its host")


def _safe_name(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name))


@dataclass(frozen=True)
class Protocol:
    """How a metric was measured: the same options `predict` takes."""

    mode: Literal["whole", "slide"]
    scales: tuple[float, ...]
    flip: bool

    def __post_init__(self) -> None:
        fits = self.scales and all(0 < scale <= _LARGEST_SCALE for scale in self.scales)
        _check(bool(fits), f"scales is {list(self.scales)}, expected factors of the picture up to {_LARGEST_SCALE}")


@dataclass(frozen=True)
class Metric:
    """A number, the split and the protocol it was measured under, and who measured it."""

    name: str
    value: float
    """Percent."""
    split: str
    protocol: Protocol
    status: Literal["reported", "reproduced"]
    """`reported` by the publisher, or `reproduced` by a measurement with this library."""
    note: str | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.value <= 100, f"value is {self.value}, expected percent between 0 and 100")


@dataclass(frozen=True)
class Recipe:
    """How the weights were trained; None where it is not known."""

    train_split: str
    crop: tuple[int, int]
    """Height and width in pixels."""
    batch_size: int
    epochs: int | None
    iterations: int | None
    optimizer: str
    lr: float
    schedule: str
    momentum: float | None = None
    weight_decay: float | None = None
    aux_loss_weight: float | None = None
    """Weight of the auxiliary head's loss; None without an auxiliary head."""

    def __post_init__(self) -> None:
        _check(
            all(0 < side <= LARGEST_SIDE for side in self.crop),
            f"crop is {list(self.crop)}, expected two sides of 1 to {LARGEST_SIDE} pixels",
        )


@dataclass(frozen=True)
class Resize:
    """Keep the aspect ratio; the longest fit inside `short` x `long` pixels (shorter x longer side)."""

    short: int
    long: int

    def __post_init__(self) -> None:
        _check(
            0 < self.short <= self.long <= LARGEST_SIDE,
            f"short is {self.short} and long {self.long}, expected 0 < short <= long <= {LARGEST_SIDE}",
        )


@dataclass(frozen=True)
class Preprocess:
    """From an RGB picture (0..255) to the network's input: resize (uint8, bilinear), then (x - mean) / std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize | None

    def __post_init__(self) -> None:
        _check(min(self.std) > 0, f"std is {list(self.std)}, expected three positive numbers")


@dataclass(frozen=True)
class Licence:
    """Three separate facts; None means that nobody stated it."""

    code: str | None
    weights: str | None
    data: str | None


@dataclass(frozen=True)
class Provenance:
    """Where the record's facts come from."""

    project: str
    revision: str | None
    config_url: str | None
    log_url: str | None


@dataclass(frozen=True)
class Dataset:
    """The classes of a data set; the index in `classes` and `palette` is the class id."""

    title: str
    url: str
    licence: str | None
    ignore_index: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        _check(bool(self.classes), "classes is empty, expected at least one name")
        _check(
            len(self.classes) == len(self.palette),
            f"{len(self.classes)} classes but {len(self.palette)} palette colours, expected as many",
        )
        _check(
            all(0 <= channel <= 255 for colour in self.palette for channel in colour),
            "a palette colour is outside 0..255",
        )


@dataclass(frozen=True)
class Source:
    """A project that published weights, and the rules its weights were measured under."""

    title: str
    url: str
    revision: str | None
    licence_code: str | None
    licence_weights: str | None
    protocol: Literal["ssseg", "mmseg"]
    """`ssseg`: one resize of the logits to the picture; `mmseg`: by way of the network's input size."""


@dataclass(frozen=True)
class Architecture:
    """What a model name stands for: a family on a timm backbone."""

    family: str
    backbone: str
    output_stride: int | None
    """Of the backbone's last map; None is the backbone's own."""
    channels: int | None = None
    """Width of the head; None is the family's own."""
    paper: str | None = None


@dataclass(frozen=True)
class Weights:
    """One published set of weights and everything known about it."""

    id: str
    """`model.tag`, unique."""
    model: str
    tag: str
    """`<dataset>_<source>`."""
    dataset: str
    source: str
    num_classes: int
    classes: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)
    protocol: Literal["ssseg", "mmseg"]
    files: tuple[File, ...]
    """In order of preference; each holds the same tensors."""
    metrics: tuple[Metric, ...]
    recipe: Recipe
    preprocess: Preprocess
    licence: Licence
    provenance: Provenance
    parameters: int
    """Trainable values of the network, auxiliary head included."""

    def __post_init__(self) -> None:
        _check(bool(self.files), "files is empty, expected at least one")
        digests = {file.tensors_sha256 for file in self.files} - {None}
        _check(len(digests) < 2, "the files have different tensors_sha256, expected the same tensors in each")

    @property
    def tensors_sha256(self) -> str | None:
        """The digest of the tensors, which every file holds; None where it is not known."""
        return next((file.tensors_sha256 for file in self.files if file.tensors_sha256), None)

    @property
    def miou(self) -> float | None:
        """The mIoU in percent at a single scale without flip; None when nobody published it."""
        for metric in self.metrics:
            if metric.name == "mIoU" and metric.protocol.scales == (1.0,) and not metric.protocol.flip:
                return metric.value
        return None

    def _repr_html_(self) -> str:
        """In a notebook: the record as a small table."""
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top">{html.escape(label)}</th>'
            f'<td style="text-align:left">{cell}</td></tr>'
            for label, cell in _cells(self)
        )
        return f"<table><caption><b>{html.escape(self.id)}</b></caption><tbody>{rows}</tbody></table>"


def _cells(record: Weights) -> Iterator[tuple[str, str]]:
    """(label, HTML) of what one wants to know first; `zoo-seg info` has the rest."""
    first = ", ".join(record.classes[:4]) + (", ..." if record.num_classes > 4 else "")
    yield "data set", html.escape(f"{record.dataset}: {record.num_classes} classes ({first})")
    for metric in record.metrics:
        scales = ", ".join(f"{scale:g}" for scale in metric.protocol.scales)
        how = f"{metric.protocol.mode}, scales {scales}, {'flip' if metric.protocol.flip else 'no flip'}"
        yield metric.name, html.escape(f"{metric.value} % on {metric.split} ({metric.status}; {how})")
    yield "parameters", f"{record.parameters / 1e6:.2f} M"
    resize = record.preprocess.resize
    size = f"shorter side {resize.short}, at most {resize.long}" if resize else "the picture's own"
    yield "test size", html.escape(f"{size}; {record.protocol} rules")
    for file in record.files:
        bytes_ = f", {file.size / 1e6:.1f} MB" if file.size else ""
        name = html.escape(file.name)
        link = f'<a href="{html.escape(file.url)}">{name}</a>' if file.url.startswith("https://") else name
        yield "file", link + bytes_
    for label, licence in (("code", record.licence.code), ("weights", record.licence.weights)):
        yield f"licence, {label}", html.escape(licence or "not stated")
    yield "terms of the data", html.escape(record.licence.data or "not stated")


# --- the manifest -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """All records of one or more manifest files, by name, in file order."""

    sources: Mapping[str, Source]
    datasets: Mapping[str, Dataset]
    models: Mapping[str, Architecture]
    weights: Mapping[str, Weights]

    @cached_property
    def by_model(self) -> Mapping[str, tuple[Weights, ...]]:
        groups: dict[str, list[Weights]] = {name: [] for name in self.models}
        for record in self.weights.values():
            groups[record.model].append(record)
        return {name: tuple(group) for name, group in groups.items()}


_EMPTY = Manifest({}, {}, {}, {})
_SECTIONS = ("sources", "datasets", "models", "weights")


def published_manifest() -> Path:
    """The manifest of this library: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "weights_manifest.json"
    return inside if inside.is_file() else package.parent / "weights_manifest.json"


def read_manifest(path: Path, base: Manifest = _EMPTY) -> Manifest:
    """Decode the file at `path` on top of `base`; its records may refer to the names in `base`.

    Raises:
        ManifestError: with file, line and path of the first mistake.
    """
    return read_json(path, lambda raw: _decode_manifest(raw, base))


def _decode_manifest(raw: Any, base: Manifest) -> Manifest:
    if not isinstance(raw, dict):
        raise Mistake(f"found {show(raw)}, expected an object")
    if raw.get("schema_version") != SCHEMA_VERSION:
        found = show(raw.get("schema_version"))
        raise Mistake(
            f"found {found}, this library reads {SCHEMA_VERSION}; install a matching zoo_seg", "schema_version"
        )
    for key, section in raw.items():
        if key not in ("schema_version", *_SECTIONS):
            raise Mistake(f"unknown key; {suggest(key, _SECTIONS)}", key)
        if key in _SECTIONS and not isinstance(section, dict):
            raise Mistake(f"found {show(section)}, expected an object", key)

    sources = _section(raw, "sources", base.sources, Source)
    datasets = _section(raw, "datasets", base.datasets, Dataset)
    models = _section(raw, "models", base.models, Architecture)
    weights = dict(base.weights)
    for key, value in raw.get("weights", {}).items():
        if key in weights:
            raise Mistake("this id is taken by an earlier manifest; give the record another tag", "weights", key)
        weights[key] = _decode_weights(key, value, sources, datasets, models)
    return Manifest(sources, datasets, models, weights)


def _section(raw: dict[str, Any], section: str, base: Mapping[str, T], cls: type[T]) -> dict[str, T]:
    records = dict(base)
    for key, value in raw.get(section, {}).items():
        if not re.fullmatch(r"[a-z0-9_]+", key):
            raise Mistake("a name is made of lower-case letters, digits and _", section, key)
        if key in records:
            raise Mistake("this name is taken by an earlier manifest; choose another", section, key)
        records[key] = decode(cls, value, (section, key))
    return records


def _decode_weights(
    key: str,
    value: Any,
    sources: Mapping[str, Source],
    datasets: Mapping[str, Dataset],
    models: Mapping[str, Architecture],
) -> Weights:
    path = ("weights", key)
    if not isinstance(value, dict):
        raise Mistake(f"found {show(value)}, expected an object", *path)
    names: dict[str, Mapping[str, Any]] = {"source": sources, "dataset": datasets, "model": models}
    for name, known in names.items():
        if name not in value:
            raise Mistake(f"the key {name!r} is missing", *path)
        if not isinstance(value[name], str) or value[name] not in known:
            raise Mistake(f"no {name} {show(value[name])}; {suggest(str(value[name]), known)}", *path, name)
    source, dataset = sources[value["source"]], datasets[value["dataset"]]
    tag = f"{value['dataset']}_{value['source']}"
    if key != f"{value['model']}.{tag}":
        raise Mistake(f"the id must be '<model>.<dataset>_<source>', here '{value['model']}.{tag}'", *path)
    provenance = value.get("provenance", {})
    if not isinstance(provenance, dict):
        raise Mistake(f"found {show(provenance)}, expected an object", *path, "provenance")
    known_fields = {
        "id": key,
        "tag": tag,
        "num_classes": len(dataset.classes),
        "classes": dataset.classes,
        "palette": dataset.palette,
        "protocol": source.protocol,
        "licence": Licence(source.licence_code, source.licence_weights, dataset.licence),
        "provenance": decode(
            Provenance, provenance, (*path, "provenance"), {"project": source.url, "revision": source.revision}
        ),
    }
    return typing.cast(
        Weights, decode(Weights, {k: v for k, v in value.items() if k != "provenance"}, path, known_fields)
    )


def load_manifest() -> Manifest:
    """The published manifest and those of `ZOO_SEG_MANIFEST`; read again when a file changes."""
    return _load(tuple((path, _stamp(path)) for path in (published_manifest(), *settings.manifests())))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _load(paths: tuple[tuple[Path, tuple[int, int]], ...]) -> Manifest:
    manifest = _EMPTY
    for path, _ in paths:
        manifest = read_manifest(path, manifest)
    return manifest


# --- names --------------------------------------------------------------------------------------


def canonical_name(name: str) -> str:
    """`semantic_fpn_r50` -> `semanticfpn_resnet50`: what an alias stands for; other names unchanged."""
    name = re.sub(r"^semantic_fpn(?![a-z0-9])", "semanticfpn", name)
    return re.sub(r"_r(50|101)(?![a-z0-9])", r"_resnet\1", name)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern, or what it stands for, fits; a user's own `mine_r50` keeps its name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, canonical_name(pattern))


def list_models(pattern: str | None = None) -> list[str]:
    """The names that `create_model` knows, in the manifest's order.

    Args:
        pattern: keep the names that match, with `*` and `?` as in file names: `"pspnet*"`.
    """
    models = list(load_manifest().models)
    return models if pattern is None else [name for name in models if _matches(name, pattern)]


def get_architecture(name: str) -> tuple[str, Architecture]:
    """The canonical name and the architecture of a model name or alias.

    Raises:
        UnknownNameError: no model has this name; the message suggests near ones.
    """
    models = load_manifest().models
    canonical = name if name in models else canonical_name(name)
    if canonical not in models:
        raise UnknownNameError(f"there is no model {name!r}; {suggest(canonical, models)}")
    return canonical, models[canonical]


def list_weights(
    model: str | None = None,
    dataset: str | None = None,
    source: str | None = None,
    *,
    min_miou: float | None = None,
    max_parameters: int | None = None,
    sort: SortKey | None = None,
) -> list[Weights]:
    """The published weights that pass every filter.

    Args:
        model: a model name, an alias, or a pattern such as `"pspnet*"`.
        dataset: `"voc"`, `"ade20k"`, `"cityscapes"` or one of your own manifest.
        source: `"ssseg"`, `"mmseg"` or one of your own manifest.
        min_miou: at least this published single-scale mIoU, in percent.
        max_parameters: at most so many trainable values.
        sort: `"miou"` (best first), `"parameters"` (smallest first), `"dataset"`, `"model"` or
            `"source"`; without it the manifest's order.

    Raises:
        UnknownNameError: a filter names what no manifest knows.
    """
    manifest = load_manifest()
    if model is not None and not any(_matches(name, model) for name in manifest.models):
        raise UnknownNameError(f"there is no model {model!r}; {suggest(canonical_name(model), manifest.models)}")
    for kind, value, known in (("data set", dataset, manifest.datasets), ("source", source, manifest.sources)):
        if value is not None and value not in known:
            raise UnknownNameError(f"there is no {kind} {value!r}; {suggest(value, known)}")
    records = [
        record
        for record in manifest.weights.values()
        if (model is None or _matches(record.model, model))
        and (dataset is None or record.dataset == dataset)
        and (source is None or record.source == source)
        and (min_miou is None or (record.miou is not None and record.miou >= min_miou))
        and (max_parameters is None or record.parameters <= max_parameters)
    ]
    if sort is not None:
        keys: dict[str, Callable[[Weights], Any]] = {
            "miou": lambda record: -(record.miou or 0.0),
            "parameters": lambda record: record.parameters,
            "dataset": lambda record: record.dataset,
            "model": lambda record: record.model,
            "source": lambda record: record.source,
        }
        if sort not in keys:
            raise UnknownNameError(f"weights cannot be sorted by {sort!r}; {suggest(sort, keys)}")
        records.sort(key=keys[sort])
    return records


def get_weights(model: str, tag: str | None = None) -> Weights:
    """The record of a model's tag, or of a whole id.

    Args:
        model: a model name or alias; or an id (`"pspnet_resnet50_os8.ade20k_ssseg"`) without `tag`.
        tag: `"ade20k_ssseg"`, or the bare data set for its default weights (the first in the manifest);
            this model's whole id does as well.

    Raises:
        UnknownNameError: no such model or tag; the message lists the tags there are.
    """
    if tag is None:
        model, dot, tag = model.partition(".")
        if not dot:
            raise UnknownNameError(f"{model!r} names no weights; write 'model.tag', such as '{model}.ade20k'")
    name, _ = get_architecture(model)
    records = load_manifest().by_model[name]
    short = tag.removeprefix(f"{model}.").removeprefix(f"{name}.")
    for record in records:
        if short in (record.tag, record.dataset):
            return record
    if not records:
        raise UnknownNameError(f"{name} has no published weights")
    tags = sorted({record.dataset for record in records}) + [record.tag for record in records]
    raise UnknownNameError(f"{name} has no weights {tag!r}; its tags are {', '.join(tags)}")
