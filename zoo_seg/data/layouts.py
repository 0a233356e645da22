"""Where a data set keeps its images and masks: a folder of one's own, or the published ones as they are distributed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo_seg.data.coco import CocoJson
from zoo_seg.data.description import DESCRIPTION, MISSING, Description, describe, labels_of
from zoo_seg.data.files import OWN, Divided, Files, find_own
from zoo_seg.data.labelmap import LabelMap
from zoo_seg.data.labelme import Labelme
from zoo_seg.data.labels import IGNORED, Colour, Ids, Labels, StoredValues
from zoo_seg.data.samples import Layout, Listing, Sample
from zoo_seg.data.shapes import BACKGROUNDS, IGNORED_LABELS, Legend
from zoo_seg.data.wording import name_some
from zoo_seg.errors import DataError, OptionError
from zoo_seg.images.bands import Range
from zoo_seg.images.reading import ImageLike, Pixels, read_image
from zoo_seg.info import voc_palette
from zoo_seg.manifest import load_manifest

__all__ = ["LAYOUTS", "Listing", "Sample", "SegmentationData", "open_data", "published_labels"]

DIVIDE = "--val-fraction 0.2 (val_fraction=0.2 in Python) takes a fifth of the images as val"
_ORDER = ("train", "trainaug", "trainval", "val", "test")


@dataclass(frozen=True)
class SegmentationData:
    """A data set on disk. `open_data` makes one."""

    root: Path
    layout: str
    """`"folder"`, or the name of a published data set."""
    labels: Labels
    source: Layout
    """How images and labels lie."""
    range: Range | tuple[Range, ...] | None = None
    """The values that are black and white in images of more than 8 bits: for all channels, or for each of them."""
    channels: int = 3
    """Of the images that `read_image` gives: three are RGB."""
    bands: tuple[int, ...] | None = None
    """The numbers of the files' bands that are the channels, from 1 on; None: all."""
    legend: Legend | None = None
    """What becomes of shapes; None where labels are masks."""
    notes: tuple[str, ...] = ()
    """What nobody said and was decided."""

    def read_image(self, image: ImageLike) -> Pixels:
        """An image of the data set: uint8, (H, W, channels); raises as `zoo_seg.images.reading.read_image` does."""
        return read_image(image, self.range, channels=self.channels, bands=self.bands)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    @property
    def palette(self) -> tuple[Colour, ...]:
        return self.labels.palette

    @property
    def ignore_index(self) -> int:
        return self.labels.ignore_index

    @property
    def num_classes(self) -> int:
        return len(self.labels.classes)

    @property
    def expected(self) -> str:
        """Where images and masks have to lie."""
        return str(self.source) if self.layout == "folder" and self.source != OWN else _expected(self.layout)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The parts that have images and masks, such as train and val."""
        found, masks = self.source.parts(self.root)
        return tuple(sorted(found & masks, key=_by_use))

    @cached_property
    def halves(self) -> tuple[str, ...]:
        """What the other parts lack, in words: a test split without masks, or folders that differ in their name."""
        found, masks = self.source.parts(self.root)
        return (
            *(f"{split} has images, but no masks" for split in sorted(found - masks)),
            *(f"{split} has masks, but no images" for split in sorted(masks - found)),
        )

    def samples(self, split: str) -> tuple[Sample, ...]:
        """The images of a split with their masks, in an order that is the same everywhere.

        Raises:
            OptionError: there is no such split.
            DataError: it is empty or incomplete.
        """
        listing = self.listing(split)
        faults = self.faults(listing)
        if faults:
            raise DataError(f"{self.root}: {split}: {faults[0]}")
        return listing.samples

    def pair(self, sample: Sample) -> tuple[ImageLike, Ids]:
        """What `read_image` takes, and the class ids (H, W), `ignore_index` where ignored.

        Raises:
            DataError: the mask cannot be read.
        """
        return sample.image, self.read_labels(sample)

    def faults(self, listing: Listing) -> list[str]:
        """Why a split cannot be used, as far as its files' names tell."""
        faults = []
        if listing.missing:
            faults.append(f"{len(listing.missing)} listed, but not there: {self.name_files(listing.missing)}")
        if listing.without_mask:
            count, masks = len(listing.without_mask), listing.without_image
            fault = f"{count} of {count + len(listing.samples)} images have no mask: "
            fault += self.name_files(listing.without_mask)
            fault += f"; masks without image: {self.name_files(masks)}" if masks else ""
            faults.append(f"{fault}; expected {self.expected}")
        if listing.same_name:
            faults.append(f"images that share a mask: {self.name_files(listing.same_name[0])}; keep one of them")
        if not (listing.samples or faults):
            faults.append(f"no image; expected {self.expected}")
        return faults

    def name_files(self, paths: Sequence[Path]) -> str:
        """The first few, relative to the root, and how many more there are."""
        return name_some([path.relative_to(self.root).as_posix() for path in paths])

    def listing(self, split: str) -> Listing:
        """What lies in a split, incomplete or not.

        Raises:
            OptionError: there is no such split.
        """
        split = self.source.splits.get(split, split)
        if split not in self.splits:
            raise OptionError(
                f"{self.root} has no split {split!r} with images and masks; it has {', '.join(self.splits)}"
                + (f" ({'; '.join(self.halves)})" if self.halves else "")
                + (f"; {DIVIDE}" if split in ("train", "val") else "")
            )
        return self.source.listing(self.root, split)

    def read_labels(self, sample: Sample) -> Ids:
        """The class ids (H, W) of an image, `ignore_index` where ignored, as `Labels.read` gives them.

        Raises:
            DataError: they cannot be read, or there is what is no class, with file and place.
        """
        if sample.drawing is None or self.legend is None:
            return self.labels.read(sample.mask)
        return sample.drawing.draw(self.legend).astype(self.labels.dtype, copy=False)

    def count_labels(self, sample: Sample) -> StoredValues:
        """What the labels of an image store, unknown values included.

        Raises:
            DataError: they cannot be read.
        """
        if sample.drawing is None:
            return self.labels.count(sample.mask)
        return self.labels.count_ids(self.read_labels(sample))

    def name_labels(self, sample: Sample) -> str:
        """Where the labels of an image stand, relative to the root."""
        return Path(sample.place).relative_to(self.root).as_posix()


def open_data(
    root: str | Path,
    layout: str = "auto",
    *,
    dataset: str | None = None,
    val_fraction: float | None = None,
    mask_suffix: str | None = None,
) -> SegmentationData:
    """A data set, recognised by what lies in the folder or in a folder within it.

    Args:
        root: the folder; also the one around it, such as VOCdevkit.
        layout: `"folder"` (images and masks of one's own), `"coco_json"`, `"labelme"`, `"cvat"`, or a published data
            set, such as `"voc"` or `"ade20k"`; `"auto"` finds out.
        dataset: the published data set to prefer where several are in one folder, as PASCAL Context's are.
        val_fraction: the share of the images (of train, where there is one) that become val, between 0 and 1; by a
            hash of their names, so that each stays where it is when others are added.
        mask_suffix: what the names of masks have more than those of their images, such as `"_mask"`; None finds it
            out.

    Raises:
        OptionError: there is no such folder or layout; there is a val split already.
        DataError: nothing of the sort lies there, several do, or the classes in dataset.json are wrong (with file
            and line).
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise OptionError(f"layout is {layout!r}, expected auto, {', '.join(LAYOUTS)}")
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise OptionError(f"val_fraction is {val_fraction}, expected a share between 0 and 1, such as 0.2")
    if mask_suffix is not None and (not mask_suffix or "/" in mask_suffix or "{" in mask_suffix):
        raise OptionError(f"mask_suffix is {mask_suffix!r}, expected the end of names, such as '_mask'")
    root = Path(root).expanduser()
    if not root.exists():
        raise OptionError(f"{root}: there is no such folder; check the path")
    if not root.is_dir():
        raise OptionError(f"{root} is a file; expected the folder of a data set")
    layouts: Iterable[str] = LAYOUTS if layout == "auto" else (layout,)
    found = _recognise(root, layouts, mask_suffix)
    if len(found) > 1:
        raise DataError(f"{root} holds several data sets: {name_some(list(found))}; name one of them")
    if not found:
        raise DataError(_not_recognised(root, layouts))
    ((root, names),) = found.items()
    if len(names) > 1 and dataset not in names:
        raise DataError(f"{root} can be read as {' or '.join(names)}: name one as the layout (--layout {names[0]})")
    name = dataset if dataset in names else names[0]
    if mask_suffix is not None and name != "folder":
        raise OptionError(f"mask_suffix is for masks beside images of one's own; {root} is read as {name}")
    data = _open(root, name, mask_suffix, val_fraction is not None)
    if val_fraction is not None:
        if "val" in data.splits:
            raise OptionError(f"{root} has a val split; leave out val_fraction (--val-fraction)")
        note = f"val is the {val_fraction:.0%} of the images whose names' hashes are the lowest"
        data = replace(data, source=Divided(data.source, val_fraction), notes=(*data.notes, note))
    if not data.splits:
        lacking = "".join(f"; {half}" for half in data.halves)
        raise DataError(f"{root}: no split has both images and masks{lacking}; expected {data.expected}")
    return data


def _open(root: Path, name: str, mask_suffix: str | None, is_divided: bool) -> SegmentationData:
    kinds = LAYOUTS[name]
    source = next((kind for kind in kinds if kind.lie_in(root)), kinds[0])
    if name == "folder":
        if not (root / DESCRIPTION).is_file():
            raise DataError(f"{root / DESCRIPTION} {MISSING}")
        described = describe(root, of_masks=True)
        own, suffix = find_own(root, mask_suffix, is_divided) or (OWN, "")
        notes = (f"masks are the files whose names end in {suffix!r}",) if suffix and not mask_suffix else ()
        labels = labels_of(described, described.classes or (), described.value_map())
        data = _data(root, name, labels, own, described, notes=notes)
        return data if described.map else _as_black_and_white(data)
    try:
        if isinstance(source, LabelMap):
            return _open_colours(root, name, source, describe(root))
        if isinstance(source, (CocoJson, Labelme)):
            return _open_shapes(root, name, source, describe(root))
    except OptionError as error:
        raise DataError(f"{root / DESCRIPTION}: {error}") from None
    return SegmentationData(root, name, published_labels(name), source)


def _data(
    root: Path, name: str, labels: Labels, source: Layout, described: Description, **others: Any
) -> SegmentationData:
    """With what dataset.json says of the images."""
    ranges, channels = described.range or described.ranges, described.count_channels()
    return SegmentationData(root, name, labels, source, ranges, channels, described.bands, **others)


def _open_shapes(root: Path, name: str, source: CocoJson | Labelme, described: Description) -> SegmentationData:
    classes = described.classes or described.named(each for each in source.names(root) if each not in IGNORED_LABELS)
    if not (described.classes or {*BACKGROUNDS} & {*classes}):
        classes = (BACKGROUNDS[0], *classes)
    labels = labels_of(described, classes)
    legend = described.legend(labels)
    rest = "ignored" if legend.unlabelled == labels.ignore_index else repr(classes[legend.unlabelled])
    on_top = "smaller" if legend.overlaps == "area" else "later"
    notes = (
        f'pixels without a shape are {rest} ("unlabelled" in {DESCRIPTION} says otherwise)',
        f'where shapes overlap, the {on_top} one is on top ("overlaps": "area" or "order" in {DESCRIPTION})',
    )
    return _data(root, name, labels, source, described, legend=legend, notes=notes)


def _open_colours(root: Path, name: str, source: LabelMap, described: Description) -> SegmentationData:
    colours = source.colours(root)
    classes = described.classes or described.named(colours)
    if described.palette is None:
        others = voc_palette(len(classes))
        own = tuple(colours.get(each, other) for each, other in zip(classes, others, strict=True))
        described = replace(described, palette=own)
    labels = labels_of(described, classes)
    ids = described.legend(labels).ids
    known = {colour: ids[label] for label, colour in colours.items() if label in ids}
    value_map = tuple((colour, IGNORED if each == labels.ignore_index else each) for colour, each in known.items())
    return _data(root, name, replace(labels, value_map=value_map, by_colour=True), source, described)


def _as_black_and_white(data: SegmentationData) -> SegmentationData:
    """With 255 as the second of two classes, where masks hold 0 and 255 and nothing else."""
    if data.num_classes != 2 or not _are_black_and_white(data):
        return data
    note = f'masks hold 0 and 255 only: 255 is {data.classes[1]!r} ("map" in {DESCRIPTION} says otherwise)'
    return replace(data, labels=replace(data.labels, value_map=((255, 1),)), notes=(*data.notes, note))


def _are_black_and_white(data: SegmentationData) -> bool:
    """Whether some mask holds 255 and none more than 0 and 255; the first one that does ends the search."""
    is_found = False
    for split in data.splits:
        for sample in data.listing(split).samples:
            try:
                stored = data.labels.count(sample.mask).pixels.keys()
            except DataError:  # told where it is read
                continue
            if not stored <= {0, 255}:
                return False
            is_found = is_found or 255 in stored
    return is_found


def _recognise(root: Path, layouts: Iterable[str], mask_suffix: str | None) -> dict[Path, list[str]]:
    """The folder itself, else the folders within it (VOCdevkit/VOC2012), with the names of the layouts that fit."""

    def fitting(folders: Iterable[Path]) -> dict[Path, list[str]]:
        found = {folder: _layouts_of(folder, layouts, mask_suffix) for folder in folders}
        return {folder: names for folder, names in found.items() if names}

    return (
        fitting([root])
        or fitting(sorted(each for each in root.iterdir() if each.is_dir()))
        or fitting(sorted(root.glob("VOCdevkit/VOC*")))
    )


def _layouts_of(folder: Path, layouts: Iterable[str], mask_suffix: str | None = None) -> list[str]:
    """The layouts that a folder has; where it is one's own data set, no other."""

    def fitting(names: Iterable[str]) -> list[str]:
        return [name for name in names if name in layouts and any(files.lie_in(folder) for files in LAYOUTS[name])]

    described, may_be_own = (folder / DESCRIPTION).is_file(), "folder" in layouts
    if may_be_own and (folder / "images").is_dir() and (folder / "masks").is_dir():
        return ["folder"]
    found = fitting(["cvat"]) or ([] if described and may_be_own else fitting(_PUBLISHED)) or fitting(_SHAPES)
    if not found and may_be_own and (described or find_own(folder, mask_suffix, False)):
        return ["folder"]
    return found


def _not_recognised(root: Path, layouts: Iterable[str]) -> str:
    around = next((each for each in list(root.resolve().parents)[:3] if _layouts_of(each, layouts)), None)
    if around is not None:
        return f"{root} is a part of the data set {around}; name that folder"
    there = sorted(each.name + ("/" if each.is_dir() else "") for each in root.iterdir())
    first, *others = layouts
    wanted = f"{first}: {_expected(first)}"
    if others:
        wanted += f"\n  or {', '.join(others)}; the option --layout NAME says how those lie"
    return f"{root} is no data set (it holds {name_some(there) if there else 'nothing'}); looked for {wanted}"


def _expected(layout: str) -> str:
    return ", or ".join(map(str, LAYOUTS[layout])) + (f", and {DESCRIPTION}" if layout == "folder" else "")


def _by_use(split: str) -> tuple[int, str]:
    return (_ORDER.index(split) if split in _ORDER else len(_ORDER), split)


# --- the layouts --------------------------------------------------------------------------------


def published_labels(dataset: str) -> Labels:
    """The classes of a published data set, as its masks store them."""
    record = load_manifest().datasets[dataset]
    return Labels(
        record.classes,
        record.palette,
        record.ignore_index,
        record.ignore_color,
        record.label_ids,
        record.ignored_ids,
        _PUBLISHED[dataset][0].id_ending,
        _PUBLISHED[dataset][0].first_id,
    )


_PARTS = {"train": "train", "val": "val", "test": "test"}

_COCO_STUFF_10K = Files(
    "images/{name}.jpg",
    ["annotations/{name}.mat"],
    {"train": "train", "test": "val"},
    lists="imageLists/{split}.txt",
)
_PASCAL_CONTEXT = (
    Files(
        "JPEGImages/{name}.jpg",
        ["SegmentationClassContext/{name}.png"],
        lists="ImageSets/SegmentationContext/{split}.txt",
    ),
)

_PUBLISHED: dict[str, tuple[Files, ...]] = {
    "voc": (
        Files(
            "JPEGImages/{name}.jpg",
            ["SegmentationClass/{name}.png", "SegmentationClassAug/{name}.png"],
            lists="ImageSets/Segmentation/{split}.txt",
        ),
    ),
    "ade20k": (
        Files(
            "images/{split}/{name}.jpg",
            ["annotations/{split}/{name}.png"],
            {"training": "train", "validation": "val"},
        ),
    ),
    "cityscapes": (
        Files(
            "leftImg8bit/{split}/{name}_leftImg8bit.png",
            ["gtFine/{split}/{name}_gtFine_labelIds.png", "gtFine/{split}/{name}_gtFine_labelTrainIds.png"],
            id_ending="_labelTrainIds",
        ),
    ),
    "coco_stuff_10k": (
        Files(
            "images/{split}/{name}.jpg",
            ["annotations/{split}/{name}_labelTrainIds.png"],
            {"train2014": "train", "test2014": "val"},
            id_ending="_labelTrainIds",
            first_id=1,
        ),
        _COCO_STUFF_10K,
    ),
    "coco_stuff_10k_182": (_COCO_STUFF_10K,),
    "coco_stuff_164k": tuple(
        Files(
            images,
            [
                "annotations/{split}/{name}.png",
                "stuffthingmaps/{split}/{name}.png",
                "annotations/{split}/{name}_labelTrainIds.png",
            ],
            {"train2017": "train", "val2017": "val"},
            names=r"\d+",
            id_ending="_labelTrainIds",
        )
        for images in ("images/{split}/{name}.jpg", "{split}/{name}.jpg")
    ),
    "pascal_context_59": _PASCAL_CONTEXT,
    "pascal_context_60": _PASCAL_CONTEXT,
    "loveda": (
        Files(
            "{split}/*/images_png/{name}.png",
            ["{split}/*/masks_png/{name}.png"],
            {"Train": "train", "Val": "val", "Test": "test"},
        ),
        Files("img_dir/{split}/{name}.png", ["ann_dir/{split}/{name}.png"], _PARTS, names=r"\d+"),
    ),
    "potsdam": (Files("img_dir/{split}/{name}.png", ["ann_dir/{split}/{name}.png"], _PARTS, names=r"\d+(_\d+){5}"),),
    "vaihingen": (
        Files("img_dir/{split}/{name}.png", ["ann_dir/{split}/{name}.png"], _PARTS, names=r"area\d+(_\d+){4}"),
    ),
    "isaid": (
        Files(
            "img_dir/{split}/{name}.png",
            ["ann_dir/{split}/{name}_instance_color_RGB.png"],
            _PARTS,
            names=r"P\d+(_\d+){4}",
        ),
    ),
    "mapillary": (
        Files(
            "{split}/images/{name}.jpg",
            ["{split}/v1.2/labels/{name}.png"],
            {"training": "train", "validation": "val", "testing": "test"},
        ),
    ),
    "lip": (
        Files("{split}_images/{name}.jpg", ["{split}_segmentations/{name}.png"], {"train": "train", "val": "val"}),
    ),
}
"""How the files of each data set lie, in one way or in several: as distributed, and as MMSegmentation's converters
write them. Of PASCAL Context, Potsdam, Vaihingen and iSAID the latter only: published numbers of the last three were
measured on its patches.
"""

_SHAPES: dict[str, tuple[CocoJson | Labelme, ...]] = {"coco_json": (CocoJson(),), "labelme": (Labelme(),)}

LAYOUTS: Mapping[str, tuple[Layout, ...]] = {"folder": (OWN,), **_PUBLISHED, "cvat": (LabelMap(),), **_SHAPES}
"""All of them, by the names that `open_data` takes. A further one is a line here, and a class if it is another kind."""
