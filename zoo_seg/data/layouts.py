"""Where a data set keeps its images and masks: a folder of one's own, VOC, ADE20K and Cityscapes as distributed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from zoo_seg.data.labels import Colour, Labels, Rule, mistake_in, voc_palette
from zoo_seg.data.wording import name_some
from zoo_seg.decode import Mistake, decode, read_json
from zoo_seg.errors import DataError, ManifestError, OptionError
from zoo_seg.images.reading import Range, check_range
from zoo_seg.manifest import load_manifest

FolderLayout = Literal["folder", "voc", "ade20k", "cityscapes"]

DESCRIPTION = "dataset.json"
"""The classes of a data set of one's own."""
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")
"""In order of preference; JPEG is found so that reading it tells why it is refused."""
_ORDER = ("train", "trainaug", "trainval", "val", "test")


@dataclass(frozen=True)
class Sample:
    """An image and its mask."""

    picture: Path
    mask: Path
    name: str
    """Relative to the split, without suffix; unique in it: `aachen/aachen_000000_000019`."""


@dataclass(frozen=True)
class Listing:
    """What lies in a split, sound or not; each in sorted order."""

    samples: tuple[Sample, ...]
    missing: tuple[Path, ...] = ()
    """Images that a list of VOC's names."""
    without_mask: tuple[Path, ...] = ()
    without_picture: tuple[Path, ...] = ()
    """Masks: nothing reads them."""
    same_name: tuple[tuple[Path, ...], ...] = ()
    """Images that differ in their suffix only, so that one mask stands for them all."""


@dataclass(frozen=True)
class SegmentationData:
    """A data set on disk. `open_data` makes one."""

    root: Path
    layout: FolderLayout
    labels: Labels
    range: Range | None = None
    """The values that are black and white in images of more than 8 bits, see `read_picture`."""

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
        return _LAYOUTS[self.layout].expected

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The parts that have images and masks, such as train and val."""
        pictures, masks = _LAYOUTS[self.layout].parts(self.root)
        return tuple(sorted(pictures & masks, key=_by_use))

    @cached_property
    def halves(self) -> tuple[str, ...]:
        """What the other parts lack, in words: a test split without masks, or folders that differ in their name."""
        pictures, masks = _LAYOUTS[self.layout].parts(self.root)
        return (
            *(f"{split} has images, but no masks" for split in sorted(pictures - masks)),
            *(f"{split} has masks, but no images" for split in sorted(masks - pictures)),
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

    def faults(self, listing: Listing) -> list[str]:
        """Why a split cannot be used, as far as its files' names tell."""
        faults = []
        if listing.missing:
            faults.append(f"{len(listing.missing)} listed, but not there: {self.name_files(listing.missing)}")
        if listing.without_mask:
            count, masks = len(listing.without_mask), listing.without_picture
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
        kind = _LAYOUTS[self.layout]
        split = kind.aliases.get(split, split)
        if split not in self.splits:
            raise OptionError(
                f"{self.root} has no split {split!r} with images and masks; it has {', '.join(self.splits)}"
                + (f" ({'; '.join(self.halves)})" if self.halves else "")
            )
        return kind.listing(self.root, split)


def open_data(root: str | Path, layout: FolderLayout | Literal["auto"] = "auto") -> SegmentationData:
    """A data set, recognised by what lies in the folder or in a folder within it.

    Args:
        root: the folder; also the one around it, such as VOCdevkit.
        layout: `"folder"` (images/, masks/ and dataset.json), `"voc"`, `"ade20k"` or `"cityscapes"`;
            `"auto"` finds out.

    Raises:
        OptionError: there is no such folder or layout.
        DataError: nothing of the sort lies there, or the classes in dataset.json are wrong (with file and line).
    """
    if layout != "auto" and layout not in _LAYOUTS:
        raise OptionError(f"layout is {layout!r}, expected auto, {', '.join(_LAYOUTS)}")
    root = Path(root).expanduser()
    if not root.exists():
        raise OptionError(f"{root}: there is no such folder; check the path")
    if not root.is_dir():
        raise OptionError(f"{root} is a file; expected the folder of a data set")
    kinds: Iterable[FolderLayout] = _LAYOUTS if layout == "auto" else (layout,)
    found = _recognise(root, kinds)
    if len(found) > 1:
        raise DataError(f"{root} holds several data sets: {name_some([path for path, _ in found])}; name one of them")
    if not found:
        raise DataError(_not_recognised(root, kinds))
    root, layout = found[0]
    data = SegmentationData(root, layout, *_LAYOUTS[layout].describe(root))
    if not data.splits:
        lacking = "".join(f"; {half}" for half in data.halves)
        raise DataError(f"{root}: no split has both images and masks{lacking}; expected {data.expected}")
    return data


def _recognise(root: Path, kinds: Iterable[FolderLayout]) -> list[tuple[Path, FolderLayout]]:
    """The folder itself, else the folders within it (VOCdevkit/VOC2012)."""

    def fitting(folders: Iterable[Path]) -> list[tuple[Path, FolderLayout]]:
        first = ((folder, next((kind for kind in kinds if _LAYOUTS[kind].lies_in(folder)), None)) for folder in folders)
        return [(folder, kind) for folder, kind in first if kind]

    return (
        fitting([root])
        or fitting(sorted(each for each in root.iterdir() if each.is_dir()))
        or fitting(sorted(root.glob("VOCdevkit/VOC*")))
    )


def _not_recognised(root: Path, kinds: Iterable[FolderLayout]) -> str:
    around = next((each for each, _ in _recognise_around(root, kinds)), None)
    if around is not None:
        return f"{root} is a part of the data set {around}; name that folder"
    there = sorted(each.name + ("/" if each.is_dir() else "") for each in root.iterdir())
    wanted = "".join(f"\n  {name}: {_LAYOUTS[name].expected}" for name in kinds)
    return f"{root} is no data set (it holds {name_some(there) if there else 'nothing'}); looked for{wanted}"


def _recognise_around(root: Path, kinds: Iterable[FolderLayout]) -> Iterator[tuple[Path, FolderLayout]]:
    for folder in list(root.resolve().parents)[:3]:
        for kind in kinds:
            if _LAYOUTS[kind].lies_in(folder):
                yield folder, kind


# --- files --------------------------------------------------------------------------------------


def _by_use(split: str) -> tuple[int, str]:
    return (_ORDER.index(split) if split in _ORDER else len(_ORDER), split)


def _folders(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")}


def _walk(folder: Path, ending: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files called `<name><ending><suffix>`, by name relative to the folder and sorted; hidden ones are left out."""
    found = defaultdict(list)
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [each for each in folders if not each.startswith(".")]
        inside = Path(where).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for file in files:
            stem, suffix = os.path.splitext(file)  # noqa: PTH122  (called for every file of a data set)
            if suffix.lower() in suffixes and stem.endswith(ending) and not file.startswith("."):
                found[prefix + stem.removesuffix(ending)].append(Path(where, file))
    return {name: sorted(found[name]) for name in sorted(found)}


def _pair(pictures: dict[str, list[Path]], masks: dict[str, list[Path]]) -> Listing:
    def preferred(paths: list[Path]) -> Path:
        return min(paths, key=lambda path: _MASKS.index(path.suffix.lower()))

    return Listing(
        tuple(Sample(paths[0], preferred(masks[name]), name) for name, paths in pictures.items() if name in masks),
        without_mask=tuple(paths[0] for name, paths in pictures.items() if name not in masks),
        without_picture=tuple(paths[0] for name, paths in masks.items() if name not in pictures),
        same_name=tuple(tuple(paths) for paths in pictures.values() if len(paths) > 1),
    )


# --- the layouts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """A layout: how to tell it, its classes, its splits and their files."""

    expected: str
    lies_in: Callable[[Path], bool]
    describe: Callable[[Path], tuple[Labels, Range | None]]
    """The classes, and the images' range."""
    parts: Callable[[Path], tuple[set[str], set[str]]]
    """Names of the splits that have images, and of those that have masks."""
    listing: Callable[[Path, str], Listing]
    aliases: dict[str, str]


def _published(dataset: str, rule: Rule, ignore_color: Colour | None = None) -> Callable[[Path], tuple[Labels, None]]:
    def describe(_: Path) -> tuple[Labels, None]:
        record = load_manifest().datasets[dataset]
        return Labels(record.classes, record.palette, record.ignore_index, rule, ignore_color), None

    return describe


@dataclass(frozen=True)
class _Description:
    """dataset.json."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...] | None = None
    ignore_index: int = 255
    ignore_color: Colour | None = None
    range: Range | None = None
    title: str | None = None
    url: str | None = None
    licence: str | None = None


def _describe_folder(root: Path) -> tuple[Labels, Range | None]:
    path = root / DESCRIPTION
    if not path.is_file():
        raise DataError(
            f"{path} is missing; it names the classes in the order of their ids, for example:\n"
            '  {"classes": ["background", "cat", "dog"], "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0]], '
            '"ignore_index": 255}'
        )
    try:
        return read_json(path, _decode_description)
    except ManifestError as error:
        raise DataError(str(error)) from None


def _decode_description(raw: Any) -> tuple[Labels, Range | None]:
    described: _Description = decode(_Description, raw, ())
    palette = described.palette or voc_palette(len(described.classes))
    wrong = mistake_in(described.classes, palette, described.ignore_index, described.ignore_color)
    if wrong:
        field, message = wrong
        raise Mistake(message, field)
    try:
        check_range(described.range)
    except OptionError as error:
        raise Mistake(str(error), "range") from None
    labels = Labels(
        described.classes,
        palette,
        described.ignore_index,
        "identity",
        described.ignore_color,
        has_palette=bool(described.palette),
    )
    return labels, described.range


def _folder_listing(root: Path, split: str) -> Listing:
    return _pair(_walk(root / "images" / split, "", _PICTURES), _walk(root / "masks" / split, "", _MASKS))


def _voc_lists(root: Path) -> Path:
    return root / "ImageSets" / "Segmentation"


def _voc_parts(root: Path) -> tuple[set[str], set[str]]:
    lists = {path.stem for path in _voc_lists(root).glob("*.txt")}
    return lists, lists - {"test"}  # its masks were never published


def _voc_listing(root: Path, split: str) -> Listing:
    """By list; a mask of the augmented set where VOC itself has none."""
    pictures = _walk(root / "JPEGImages", "", _PICTURES)
    masks = _walk(root / "SegmentationClassAug", "", _MASKS) | _walk(root / "SegmentationClass", "", _MASKS)
    lines = (_voc_lists(root) / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    names = dict.fromkeys(line.split()[0] for line in lines if line.strip())
    missing = tuple(root / "JPEGImages" / f"{name}.jpg" for name in names if name not in pictures)
    listing = _pair(
        {name: pictures[name] for name in names if name in pictures},
        {name: masks[name] for name in names if name in masks},
    )
    return replace(listing, missing=missing)


_ADE20K_FOLDERS = {"train": "training", "val": "validation"}


def _ade20k_parts(root: Path) -> tuple[set[str], set[str]]:
    names = {folder: split for split, folder in _ADE20K_FOLDERS.items()}
    pictures, masks = ({names.get(each, each) for each in _folders(root / kind)} for kind in ("images", "annotations"))
    return pictures, masks


def _ade20k_listing(root: Path, split: str) -> Listing:
    folder = _ADE20K_FOLDERS.get(split, split)
    return _pair(_walk(root / "images" / folder, "", _PICTURES), _walk(root / "annotations" / folder, "", _MASKS))


def _cityscapes_listing(root: Path, split: str) -> Listing:
    masks = _walk(root / "gtFine" / split, "_gtFine_labelTrainIds", (".png",))
    masks |= _walk(root / "gtFine" / split, "_gtFine_labelIds", (".png",))
    return _pair(_walk(root / "leftImg8bit" / split, "_leftImg8bit", _PICTURES), masks)


_LAYOUTS: dict[FolderLayout, _Kind] = {
    "folder": _Kind(
        "images/train/NAME.jpg with masks/train/NAME.png, the same below val/, and dataset.json with the classes",
        lambda root: (root / DESCRIPTION).is_file() or ((root / "images").is_dir() and (root / "masks").is_dir()),
        _describe_folder,
        lambda root: (_folders(root / "images"), _folders(root / "masks")),
        _folder_listing,
        {},
    ),
    "voc": _Kind(
        "JPEGImages/NAME.jpg with SegmentationClass/NAME.png (or SegmentationClassAug), and the names in "
        "ImageSets/Segmentation/train.txt and val.txt",
        lambda root: (root / "JPEGImages").is_dir() and _voc_lists(root).is_dir(),
        _published("voc", "identity", (224, 224, 192)),
        _voc_parts,
        _voc_listing,
        {},
    ),
    "ade20k": _Kind(
        "images/training/NAME.jpg with annotations/training/NAME.png, the same below validation/",
        lambda root: any((root / "annotations" / folder).is_dir() for folder in _ADE20K_FOLDERS.values()),
        _published("ade20k", "minus_one", (0, 0, 0)),
        _ade20k_parts,
        _ade20k_listing,
        {folder: split for split, folder in _ADE20K_FOLDERS.items()},
    ),
    "cityscapes": _Kind(
        "leftImg8bit/train/CITY/NAME_leftImg8bit.png with gtFine/train/CITY/NAME_gtFine_labelIds.png (or "
        "_labelTrainIds.png), the same below val/",
        lambda root: (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir(),
        _published("cityscapes", "cityscapes", (0, 0, 0)),
        lambda root: (_folders(root / "leftImg8bit"), _folders(root / "gtFine")),
        _cityscapes_listing,
        {},
    ),
}
