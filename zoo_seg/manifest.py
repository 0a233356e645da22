"""Every published weight as a typed record, decoded from `weights_manifest.json`.

The dataclasses below *are* the schema, see `decode.py`. A record is decoded, and so checked, when it is asked for.
Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from zoo_seg import settings
from zoo_seg.decode import Document, Mistake, Shared, decode, open_json, show, suggest
from zoo_seg.errors import UnknownNameError

SCHEMA_VERSION = 2
"""Of the published manifest; a user's own may still be of version 1."""

T = TypeVar("T")
Interpolation = Literal["opencv", "bilinear", "bicubic"]
TestMode = Literal["whole", "slide", "split"]
SortKey = Literal["dataset", "model", "source", "miou", "parameters", "multiply_adds", "seconds"]

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
        """The file's published name: the last part of its link, with its repository where that says nothing."""
        return _file_name(self.url)

    @property
    def names(self) -> tuple[str, ...]:
        """The published name, then the other names under which mirrors carry the same file."""
        return tuple(dict.fromkeys(map(_file_name, (self.url, *self.mirrors))))

    @property
    def packaged(self) -> Path | None:
        """Where the file lies inside this package; None where it must be fetched."""
        return Path(__file__).parent / "packaged" / self.name if self.url.startswith("package://") else None


def _file_name(url: str) -> str:
    """On the Hub weights of all repositories have one name, and in one folder must not be taken for each other."""
    same = re.fullmatch(r"hf://([^/]+)/([^/@]+)[^/]*/(?:.*/)?(model\.safetensors|pytorch_model\.bin)", url)
    return "--".join(same.groups()) if same else url.rsplit("/", 1)[-1]


_PLAIN_LINK = re.compile(r"(https|file|package)://(?!.*\.\.)(?:[A-Za-z0-9./_:+-]*/)?[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def _check_link(url: str) -> None:
    """A link of a manifest is public, so it may be shown, and names a file below its host and repository."""
    if _PLAIN_LINK.fullmatch(url):
        return  # nearly all of them, and a manifest has thousands
    from urllib.parse import unquote, urlsplit

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
class TestOptions:
    """How a network is tested: what `predict` takes, and what a metric was measured under."""

    __test__ = False  # pytest: this is none of its tests

    mode: TestMode = "whole"
    """The whole image at once, in overlapping windows, or in as few as cover it, evenly spread."""
    crop: tuple[int, int] | None = None
    """Height and width of a window in pixels; None for `whole`, or where nobody stated it."""
    stride: tuple[int, int] | None = None
    """Steps between windows of `slide`, down and across, in pixels."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the test size whose results are averaged."""
    flip: bool = False
    """Average with the result of the mirrored image as well."""

    def __post_init__(self) -> None:
        fits = self.scales and all(0 < scale <= _LARGEST_SCALE for scale in self.scales)
        _check(bool(fits), f"scales is {list(self.scales)}, expected factors of the image up to {_LARGEST_SCALE}")
        for name, sides, modes in (("crop", self.crop, ("slide", "split")), ("stride", self.stride, ("slide",))):
            expected = "'slide' only" + (", or 'split'" if "split" in modes else "")
            _check(sides is None or self.mode in modes, f"{name} is given, expected it with mode {expected}")
            _check(
                sides is None or all(0 < side <= LARGEST_SIDE for side in sides),
                f"{name} is {list(sides or ())}, expected two sides of 1 to {LARGEST_SIDE} pixels",
            )


@dataclass(frozen=True)
class Protocol:
    """The order of operations of a project's own testing, which its numbers depend on."""

    average: Literal["logits", "probabilities"]
    """What is averaged over scales and flips; a single result is the same in both."""
    via_input_size: bool
    """Logits are resized to the network's input first, and then to the image; else once, to the image."""
    rescale: Literal["tensor", "image"]
    """What the inputs at other scales are resized from: the normalised tensor, or the 8-bit image."""


PROTOCOLS: Mapping[str, Protocol] = {
    "ssseg": Protocol(average="logits", via_input_size=False, rescale="tensor"),
    "mmseg": Protocol(average="probabilities", via_input_size=True, rescale="image"),
    "transformers": Protocol(average="logits", via_input_size=False, rescale="image"),
    "transformers_upernet": Protocol(average="logits", via_input_size=True, rescale="image"),
    "torchvision": Protocol(average="logits", via_input_size=True, rescale="image"),
}
"""The presets by name, as the published manifest has them."""


@dataclass(frozen=True)
class Metric:
    """A number, the split and the options it was measured under, and who measured it."""

    name: str
    value: float
    """Percent."""
    split: str
    test: TestOptions
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
    batch_size: int | None
    epochs: int | None
    iterations: int | None
    optimizer: str | None
    lr: float | None
    schedule: str | None
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
    """To the largest size with the same aspect ratio inside `short` x `long` pixels (shorter x longer side)."""

    short: int
    long: int
    keep_ratio: bool = True
    """False: to these very sides, the longer one of the image (the width of a square one) to `long`."""
    rounding: Literal["nearest", "floor"] = "nearest"
    """Of the side that follows from the other: to the nearest pixel, or, as in torchvision and transformers, down."""
    divisor: int = 1
    """Both sides are then enlarged to a multiple of it; the image is stretched, not padded."""
    orientation: Literal["image", "landscape", "portrait"] = "image"
    """Without `keep_ratio`: whether `long` is the longer side of the image, or always the width or the height."""

    def __post_init__(self) -> None:
        _check(0 < self.divisor <= LARGEST_SIDE, f"divisor is {self.divisor}, expected 1 to {LARGEST_SIDE}")
        _check(
            0 < self.short <= self.long <= LARGEST_SIDE,
            f"short is {self.short} and long {self.long}, expected 0 < short <= long <= {LARGEST_SIDE}",
        )

    def __str__(self) -> str:
        if self.keep_ratio and self.long == LARGEST_SIDE:
            return f"shorter side {self.short}"
        return f"shorter side {self.short}, " + (f"at most {self.long}" if self.keep_ratio else f"longer {self.long}")


@dataclass(frozen=True)
class Preprocess:
    """From an image (0..255) to the network's input: resize (to uint8 again), then (x - mean) / std by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize | None
    bands: tuple[int, ...] | None = None
    """The numbers of a file's bands that are the channels, from 1 on; None: all, and colours as RGB."""
    range: tuple[tuple[float, float], ...] | None = None
    """The values that are black and white in images of more than 8 bits: a pair for all channels, or one for each."""
    interpolation: Interpolation = "opencv"
    """Of the resize: OpenCV's bilinear, which samples, or torch's with antialiasing, which averages what it shrinks."""

    def __post_init__(self) -> None:
        channels = len(self.mean)
        _check(channels == len(self.std), f"{channels} means, but std is {list(self.std)}; expected as many")
        _check(
            channels > 0 and min(self.std) > 0,
            f"std is {list(self.std)}, expected {'three' if channels == 3 else channels or 'some'} positive numbers",
        )
        _check(self.bands is None or len(self.bands) == channels, f"{channels} means, but bands is {self.bands}")
        _check(self.range is None or len(self.range) in (1, channels), f"{channels} means, but range is {self.range}")


@dataclass(frozen=True)
class Licence:
    """Four separate facts; None means that nobody stated it."""

    code: str | None
    weights: str | None
    data: str | None
    pretraining: str | None = None
    """Of the weights that training started from, where they bind."""


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
    ignore_color: tuple[int, int, int] | None = None
    """The colour of ignored pixels in its RGB masks."""
    label_ids: tuple[int, ...] | None = None
    """What its masks store for each class; None: the class id itself, and `ignore_index` where ignored."""
    ignored_ids: tuple[int, ...] = ()
    """What masks with `label_ids` store where ignored."""

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
        labels = (*(self.label_ids or ()), *self.ignored_ids)
        _check(
            self.label_ids is None or len(self.label_ids) == len(self.classes),
            f"{len(self.classes)} classes but {len(self.label_ids or ())} label_ids, expected as many",
        )
        _check(self.label_ids is not None or not labels, "ignored_ids without label_ids, expected both")
        _check(
            len(set(labels)) == len(labels) and all(0 <= label < 1 << 16 for label in labels),
            "label_ids and ignored_ids: a number stands there twice or is outside 0..65535",
        )


@dataclass(frozen=True)
class Host:
    """An address under which a source's files stand, all by the same paths."""

    url: str
    """Ends in a slash."""
    status: str
    """What is known of it."""

    def __post_init__(self) -> None:
        _check(self.url.endswith("/"), f"url is {self.url[:200]!r}, expected an address that ends in '/'")
        _check_link(f"{self.url}file")


@dataclass(frozen=True)
class Source:
    """A project that published weights, the protocol they were measured by, and where the files are."""

    title: str
    url: str
    revision: str | None
    licence_code: str | None
    licence_weights: str | None
    protocol: str
    """A name in the manifest's `protocols`."""
    hosts: tuple[Host, ...] = ()
    """In the order in which they are tried."""


@dataclass(frozen=True)
class Architecture:
    """How a network is built."""

    family: str
    backbone: str
    output_stride: int | None = None
    """Of the backbone's last feature maps; None is the backbone's own."""
    align_corners: bool = False
    """Of every bilinear resize of feature maps and logits."""
    size_divisor: int = 1
    """The input is padded with zeros, right and bottom, to a multiple of it; the logits are cut again."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The family's options that differ from its defaults, as plain JSON."""
    backbone_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("output_stride", "size_divisor"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"{name} is {value}, expected a positive number")


@dataclass(frozen=True)
class _Changes:
    """What a record may say of its network beside what its model says; options are merged by key."""

    align_corners: bool | None = None
    size_divisor: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone_options: Mapping[str, Any] = field(default_factory=dict)

    def applied(self, base: Architecture) -> Architecture:
        return replace(
            base,
            align_corners=base.align_corners if self.align_corners is None else self.align_corners,
            size_divisor=base.size_divisor if self.size_divisor is None else self.size_divisor,
            options={**base.options, **self.options},
            backbone_options={**base.backbone_options, **self.backbone_options},
        )


@dataclass(frozen=True)
class Model:
    """What a model name stands for."""

    name: str
    architecture: Architecture
    """Of its weights too, but for what a record says of itself."""
    title: str
    """Method and backbone as people write them: `PSPNet on ResNet-50-c`."""
    paper: str | None = None
    multiply_adds: int | None = None
    """Of one image of 512x512 in this library, without auxiliary heads; counted by `benchmarks/zoo.py`."""
    seconds: float | None = None
    """Median of a prediction on a 512x683 image with two CPU cores, float32, to compare models by; measured by
    `benchmarks/zoo.py`."""


@dataclass(frozen=True)
class Weights:
    """One published set of weights and everything known about it."""

    id: str
    """`model.tag`, unique."""
    model: str
    tag: str
    """`<dataset>_<source>`, and `_<variant>` where there are several."""
    dataset: str
    source: str
    num_classes: int
    classes: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)
    architecture: Architecture
    """The model's, with what is this record's own."""
    protocol: str
    """The source's, by its name."""
    rules: Protocol
    """What that name stands for."""
    files: tuple[File, ...]
    """In order of preference; each holds the same tensors."""
    metrics: tuple[Metric, ...]
    recipe: Recipe
    preprocess: Preprocess
    licence: Licence
    provenance: Provenance
    parameters: int
    """Trainable parameters of the network, auxiliary heads included."""
    multiply_adds: int | None = None
    """The model's."""
    seconds: float | None = None
    """The model's."""
    test: TestOptions = TestOptions()
    """How it was tested at a single scale: the defaults of `predict`."""
    notes: tuple[str, ...] = ()
    """What a user should know and no other field says."""

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
            if metric.name == "mIoU" and metric.test.scales == (1.0,) and not metric.test.flip:
                return metric.value
        return None

    def _repr_html_(self) -> str:
        """In a notebook: the record as a small table."""
        import html

        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top">{html.escape(label)}</th>'
            f'<td style="text-align:left">{cell}</td></tr>'
            for label, cell in _cells(self)
        )
        return f"<table><caption><b>{html.escape(self.id)}</b></caption><tbody>{rows}</tbody></table>"


def _cells(record: Weights) -> Iterator[tuple[str, str]]:
    """(label, HTML) of what one wants to know first; `zoo-seg info` has the rest."""
    import html

    first = ", ".join(record.classes[:4]) + (", ..." if record.num_classes > 4 else "")
    yield "data set", html.escape(f"{record.dataset}: {record.num_classes} classes ({first})")
    for metric in record.metrics:
        scales = ", ".join(f"{scale:g}" for scale in metric.test.scales)
        how = f"{metric.test.mode}, scales {scales}, {'flip' if metric.test.flip else 'no flip'}"
        yield metric.name, html.escape(f"{metric.value} % on {metric.split} ({metric.status}; {how})")
    yield "parameters", f"{record.parameters / 1e6:.2f} M"
    size = str(record.preprocess.resize or "the image's own")
    yield "test size", html.escape(f"{size}; {record.protocol} rules")
    for file in record.files:
        bytes_ = f", {file.size / 1e6:.1f} MB" if file.size else ""
        name = html.escape(file.name)
        link = f'<a href="{html.escape(file.url)}">{name}</a>' if file.url.startswith("https://") else name
        yield "file", link + bytes_
    for label, licence in (("code", record.licence.code), ("weights", record.licence.weights)):
        yield f"licence, {label}", html.escape(licence or "not stated")
    if record.licence.pretraining:
        yield "licence, pretraining", html.escape(record.licence.pretraining)
    yield "terms of the data", html.escape(record.licence.data or "not stated")


Pretrained: TypeAlias = bool | str | os.PathLike[str] | Weights | None
"""What `pretrained=` takes: see `zoo_seg.create_model`."""


# --- the manifest -------------------------------------------------------------------------------

_SECTIONS = ("protocols", "tests", "preprocess", "recipes", "sources", "datasets", "models", "weights")


class Section(Mapping[str, T]):
    """Records of one kind by name, in file order; each is decoded, and so checked, when it is asked for."""

    def __init__(self, decode: Callable[[str, Any], T], entries: Mapping[str, tuple[Document, Any]]) -> None:
        self._decode, self._entries = decode, entries
        self._decoded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """The record.

        Raises:
            KeyError: there is none of this name.
            ManifestError: with file, line and path of the first mistake in it.
        """
        if name not in self._decoded:
            document, value = self._entries[name]
            try:
                self._decoded[name] = self._decode(name, value)
            except Mistake as mistake:
                raise document.error(mistake) from None
        return self._decoded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Key(NamedTuple):
    """What a record is found by; known of each before it is decoded."""

    id: str
    model: str
    tag: str
    dataset: str
    source: str


class Manifest:
    """All records of one or more manifest files, by name, in file order; later files may refer to earlier ones.

    Raises:
        ManifestError: a file is not built as a manifest, or a record's id refers to what is not there. What else is
            wrong in a record is reported when it is decoded; `check` decodes them all.
    """

    def __init__(self, *documents: Document) -> None:
        self.documents = documents
        entries: dict[str, dict[str, tuple[Document, Any]]] = {section: {} for section in _SECTIONS}
        self.keys: dict[str, Key] = {}
        """By id."""
        for document in documents:
            try:
                raw = _sections(document.raw)
                for section in _SECTIONS:
                    for name, value in raw[section].items():
                        _check_name(section, name, entries[section])
                        entries[section][name] = document, value
                for name, value in raw["weights"].items():
                    self.keys[name] = _key(name, value, entries)
            except Mistake as mistake:
                raise document.error(mistake) from None
        self.protocols: Section[Protocol] = self._section(entries, "protocols", Protocol)
        self.tests: Section[TestOptions] = self._section(entries, "tests", TestOptions)
        self.preprocess: Section[Preprocess] = self._section(entries, "preprocess", Preprocess)
        self.recipes: Section[Recipe] = self._section(entries, "recipes", Recipe)
        self.datasets: Section[Dataset] = self._section(entries, "datasets", Dataset)
        self.sources = Section(self._source, entries["sources"])
        self.models = Section(self._model, entries["models"])
        self.weights = Section(self._weights, entries["weights"])
        self._shared: Shared = {TestOptions: self.tests, Preprocess: self.preprocess, Recipe: self.recipes}

    def check(self) -> None:
        """Decode everything.

        Raises:
            ManifestError: with file, line and path of the first mistake.
        """
        for section in _SECTIONS:
            for _ in getattr(self, section).values():
                pass

    @staticmethod
    def _section(entries: Mapping[str, Mapping[str, tuple[Document, Any]]], name: str, cls: type[T]) -> Section[T]:
        def decoded(key: str, value: Any) -> T:
            record: T = decode(cls, value, (name, key))
            return record

        return Section(decoded, entries[name])

    def _source(self, name: str, value: Any) -> Source:
        source: Source = decode(Source, value, ("sources", name))
        if source.protocol not in self.protocols:
            raise Mistake(
                f"no protocol {show(source.protocol)}; {suggest(source.protocol, self.protocols)}",
                *("sources", name, "protocol"),
            )
        return source

    def _model(self, name: str, value: Any) -> Model:
        model: Model = decode(Model, value, ("models", name), {"name": name})
        return model

    def _weights(self, id_: str, value: Any) -> Weights:
        path, (_, model, tag, dataset_name, source_name) = ("weights", id_), self.keys[id_]
        dataset, source = self.datasets[dataset_name], self.sources[source_name]
        own = {name: value[name] for name in value if name not in _FILLED}
        if isinstance(own.get("files"), list):
            own["files"] = [_whole_links(file, source, (*path, "files", i)) for i, file in enumerate(own["files"])]
        network = self.models[model]
        architecture = network.architecture
        if "architecture" in value:
            changes: _Changes = decode(_Changes, value["architecture"], (*path, "architecture"))
            architecture = changes.applied(architecture)
        for name in ("licence_weights", "licence_pretraining"):
            if value.get(name) is not None:
                decode(str, value[name], (*path, name))
        licence = value.get("licence_weights", source.licence_weights)
        origin = {"project": source.url, "revision": source.revision}
        known = {
            "id": id_,
            "model": model,
            "tag": tag,
            "dataset": dataset_name,
            "source": source_name,
            "num_classes": len(dataset.classes),
            "classes": dataset.classes,
            "palette": dataset.palette,
            "architecture": architecture,
            "multiply_adds": network.multiply_adds,
            "seconds": network.seconds,
            "protocol": source.protocol,
            "rules": self.protocols[source.protocol],
            "licence": Licence(source.licence_code, licence, dataset.licence, value.get("licence_pretraining")),
            "provenance": decode(Provenance, value.get("provenance", {}), (*path, "provenance"), origin),
        }
        record: Weights = decode(Weights, own, path, known, self._shared)
        return record


_FILLED = ("dataset", "source", "architecture", "provenance", "licence_weights", "licence_pretraining")
"""Keys of a record in the file that are not simply decoded."""


def _sections(raw: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(raw, dict):
        raise Mistake(f"found {show(raw)}, expected an object")
    version = raw.get("schema_version")
    if version not in (1, SCHEMA_VERSION) or type(version) is not int:
        raise Mistake(
            f"found {show(version)}, this library reads 1 to {SCHEMA_VERSION}; install a matching zoo_seg",
            "schema_version",
        )
    for key, section in raw.items():
        if key not in ("schema_version", *_SECTIONS):
            raise Mistake(f"unknown key; {suggest(key, _SECTIONS)}", key)
        if key in _SECTIONS and not isinstance(section, dict):
            raise Mistake(f"found {show(section)}, expected an object", key)
    sections = {section: raw.get(section, {}) for section in _SECTIONS}
    return _of_schema_1(sections) if version == 1 else sections


def _check_name(section: str, name: str, taken: Mapping[str, Any]) -> None:
    if section != "weights" and not re.fullmatch(r"[a-z0-9_]+", name):
        raise Mistake("a name is made of lower-case letters, digits and _", section, name)
    if name in taken:
        what = "id is taken by an earlier manifest; give the record another tag"
        raise Mistake(
            f"this {what if section == 'weights' else 'name is taken by an earlier manifest; choose another'}",
            *(section, name),
        )


def _key(id_: str, value: Any, known: Mapping[str, Mapping[str, Any]]) -> Key:
    """The parts of an id, which must be those that the record names."""
    path = ("weights", id_)
    if not isinstance(value, dict):
        raise Mistake(f"found {show(value)}, expected an object", *path)
    model, _, tag = id_.partition(".")
    for kind, section in (("source", "sources"), ("dataset", "datasets")):
        if kind not in value:
            raise Mistake(f"the key {kind!r} is missing", *path)
        if not isinstance(value[kind], str) or value[kind] not in known[section]:
            raise Mistake(f"no {kind} {show(value[kind])}; {suggest(str(value[kind]), known[section])}", *path, kind)
    if model not in known["models"]:
        raise Mistake(f"no model {show(model)}; {suggest(model, known['models'])}", *path)
    dataset, source = value["dataset"], value["source"]
    if not re.fullmatch(rf"{dataset}_{source}(_[a-z0-9_]+)?", tag):
        expected = f"{model}.{dataset}_{source}"
        raise Mistake(f"the id must be '<model>.<dataset>_<source>[_<variant>]', here '{expected}'", *path)
    return Key(id_, model, tag, dataset, source)


def _whole_links(file: Any, source: Source, path: tuple[str | int, ...]) -> Any:
    """A file given by its path under the source's hosts, with the links that this stands for."""
    if not isinstance(file, dict) or "path" not in file:
        return file
    if "url" in file:
        raise Mistake("found both 'path' and 'url', expected a path under the source's hosts or a whole link", *path)
    if not source.hosts:
        raise Mistake(f"{source.title} has no hosts, expected a whole link as 'url'", *path, "path")
    paths = [decode(str, file["path"], (*path, "path"))]
    paths += decode(tuple[str, ...], file.get("other_paths", []), (*path, "other_paths"))
    mirrors = file.get("mirrors", [])
    links = [host.url + each for each in paths for host in source.hosts]
    rest = {name: value for name, value in file.items() if name not in ("path", "other_paths", "mirrors")}
    return {"url": links[0], "mirrors": [*links[1:], *mirrors] if isinstance(mirrors, list) else mirrors, **rest}


def _of_schema_1(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections of a manifest of version 1, as version 2 has them; what is broken stays as it is."""
    models, weights = dict(sections["models"]), dict(sections["weights"])
    for name, model in models.items():
        if isinstance(model, dict):
            title = f"{model.get('family')} on {model.get('backbone')}"
            paper = {"paper": model["paper"]} if "paper" in model else {}
            models[name] = {"architecture": architecture_of_schema_1(model), "title": title, **paper}
    for id_, record in weights.items():
        if not isinstance(record, dict):
            continue
        weights[id_] = record = dict(record)
        model = record.pop("model", None)
        if model != id_.partition(".")[0]:
            raise Mistake(f"found {show(model)}, expected the model of the id", "weights", id_, "model")
        if isinstance(record.get("metrics"), list):
            record["metrics"] = [metric_of_schema_1(metric) for metric in record["metrics"]]
    return {**sections, "models": models, "weights": weights}


def architecture_of_schema_1(raw: Any) -> Any:
    """The JSON of an `Architecture` as it was before networks had options; the paper is the model's now."""
    if not isinstance(raw, dict):
        return raw
    result = {name: value for name, value in raw.items() if name not in ("channels", "paper")}
    return result if raw.get("channels") is None else {**result, "options": {"channels": raw["channels"]}}


def metric_of_schema_1(raw: Any) -> Any:
    """The JSON of a `Metric` whose options were called `protocol`."""
    if not isinstance(raw, dict):
        return raw
    return {"test" if name == "protocol" else name: value for name, value in raw.items()}


def published_manifest() -> Path:
    """The manifest of this library: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "weights_manifest.json"
    return inside if inside.is_file() else package.parent / "weights_manifest.json"


def read_manifest(path: Path, base: Manifest | None = None) -> Manifest:
    """The file at `path` on top of `base`; its records may refer to the names in `base`.

    Raises:
        ManifestError: see `Manifest`.
    """
    return Manifest(*(base.documents if base else ()), open_json(path))


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
    return Manifest(*(open_json(path) for path, _ in paths))


# --- names --------------------------------------------------------------------------------------


_ALIASES = {"semanticfpn": "semantic_fpn", "resnet50": "r50", "resnet101": "r101"}
"""Other ways to write a part of a model's name, or of a pattern."""


def _replaced(name: str, part: str, other: str) -> str:
    return re.sub(rf"(?<![a-z0-9]){part}(?![a-z0-9])", other, name)


def canonical_name(name: str) -> str:
    """`semantic_fpn_r50` -> `semanticfpn_resnet50`: what an alias stands for; other names unchanged."""
    for part, alias in _ALIASES.items():
        name = _replaced(name, alias, part)
    return name


def aliases(name: str) -> list[str]:
    """Every other way to write a model's name: `semanticfpn_resnet50` -> `semantic_fpn_r50` and two more."""
    names = [name]
    for part, alias in _ALIASES.items():
        names += [other for each in names if (other := _replaced(each, part, alias)) != each]
    return names[1:]


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


def find_model(name: str) -> Model | None:
    """The model of this name or alias; None where there is none."""
    models = load_manifest().models
    canonical = name if name in models else canonical_name(name)
    return models.get(canonical)


def get_model(name: str) -> Model:
    """The model of this name or alias.

    Raises:
        UnknownNameError: no model has this name; the message suggests near ones.
    """
    model = find_model(name)
    if model is None:
        raise UnknownNameError(f"there is no model {name!r}; {suggest(canonical_name(name), load_manifest().models)}")
    return model


def get_architecture(name: str) -> tuple[str, Architecture]:
    """The canonical name and the architecture of a model name or alias; raises as `get_model` does."""
    model = get_model(name)
    return model.name, model.architecture


def list_weights(
    model: str | None = None,
    dataset: str | None = None,
    source: str | None = None,
    *,
    min_miou: float | None = None,
    max_parameters: int | None = None,
    max_multiply_adds: int | None = None,
    max_seconds: float | None = None,
    best: bool = False,
    sort: SortKey | None = None,
) -> list[Weights]:
    """The published weights that pass every filter.

    Args:
        model: a model name, an alias, or a pattern such as `"pspnet*"`.
        dataset: `"voc"`, `"ade20k"`, `"cityscapes"` or one of your own manifest.
        source: `"ssseg"`, `"mmseg"` or one of your own manifest.
        min_miou: at least this published single-scale mIoU, in percent.
        max_parameters: at most so many trainable parameters.
        max_multiply_adds: at most so many for an image of 512x512.
        max_seconds: at most so many for a prediction, as `Model.seconds` measures it.
        best: only those to choose from: no other that passes has at least their mIoU on the same data set in less
            time (by multiply-adds where a time is not known); the cheapest first.
        sort: `"miou"` (best first), `"parameters"`, `"multiply_adds"`, `"seconds"` (smallest first), `"dataset"`,
            `"model"` or `"source"`; without it the manifest's order.

    Raises:
        UnknownNameError: a filter names what no manifest knows.
    """
    manifest = load_manifest()
    if model is not None and not any(_matches(name, model) for name in manifest.models):
        raise UnknownNameError(f"there is no model {model!r}; {suggest(canonical_name(model), manifest.models)}")
    for kind, value, known in (("data set", dataset, manifest.datasets), ("source", source, manifest.sources)):
        if value is not None and value not in known:
            raise UnknownNameError(f"there is no {kind} {value!r}; {suggest(value, known)}")
    models = {name for name in manifest.models if model is None or _matches(name, model)}
    records = [
        record
        for key in manifest.keys.values()
        if key.model in models and dataset in (None, key.dataset) and source in (None, key.source)
        for record in [manifest.weights[key.id]]
        if (min_miou is None or (record.miou is not None and record.miou >= min_miou))
        and all(
            most is None or (value is not None and value <= most)
            for value, most in (
                (record.parameters, max_parameters),
                (record.multiply_adds, max_multiply_adds),
                (record.seconds, max_seconds),
            )
        )
    ]
    if best:
        records = _front(records)
    if sort is not None:
        keys: dict[str, Callable[[Weights], Any]] = {
            "miou": lambda record: -(record.miou or 0.0),
            "parameters": lambda record: record.parameters,
            "multiply_adds": lambda record: (record.multiply_adds is None, record.multiply_adds),
            "seconds": lambda record: (record.seconds is None, record.seconds),
            "dataset": lambda record: record.dataset,
            "model": lambda record: record.model,
            "source": lambda record: record.source,
        }
        if sort not in keys:
            raise UnknownNameError(f"weights cannot be sorted by {sort!r}; {suggest(sort, keys)}")
        records.sort(key=keys[sort])
    return records


def _front(records: list[Weights]) -> list[Weights]:
    """The Pareto front of mIoU and cost, each data set's from the cheapest on; what lacks either is not on it."""
    timed = all(record.seconds is not None for record in records)
    costs = {record.id: record.seconds if timed else record.multiply_adds for record in records}
    fronts: dict[str, list[Weights]] = {record.dataset: [] for record in records}
    rated = [(cost, -record.miou, record) for record in records if (cost := costs[record.id]) and record.miou]
    for _, negative, record in sorted(rated, key=lambda each: each[:2]):
        front = fronts[record.dataset]
        if not front or -negative > (front[-1].miou or 0.0):
            front.append(record)
    return [record for front in fronts.values() for record in front]


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
    name, manifest = get_model(model).name, load_manifest()
    keys = [key for key in manifest.keys.values() if key.model == name]
    short = tag.removeprefix(f"{model}.").removeprefix(f"{name}.")
    for key in sorted(keys, key=lambda key: key.tag != short):  # a whole tag comes before what it is a default for
        if short in (key.tag, key.dataset, f"{key.dataset}_{key.source}"):
            return manifest.weights[key.id]
    if not keys:
        raise UnknownNameError(f"{name} has no published weights")
    tags = sorted({key.dataset for key in keys}) + [key.tag for key in keys]
    raise UnknownNameError(f"{name} has no weights {tag!r}; its tags are {', '.join(tags)}")
