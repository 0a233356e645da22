"""Where a data set keeps its images and masks: a folder of one's own, or the published ones as they are distributed."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from zoo_seg.data.labels import Colour, Ids, Labels, mistake_in, voc_palette
from zoo_seg.data.wording import name_some
from zoo_seg.decode import Mistake, decode, read_json
from zoo_seg.errors import DataError, ManifestError, OptionError
from zoo_seg.images.reading import RGB, ImageLike, Range, check_range, read_image
from zoo_seg.manifest import load_manifest

DESCRIPTION = "dataset.json"
"""The classes of a data set of one's own."""
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")
"""In order of preference; JPEG is found so that reading it tells why it is refused."""
_ORDER = ("train", "trainaug", "trainval", "val", "test")
_LOOKED_AT = 20
"""Files whose names tell a data set."""


@dataclass(frozen=True)
class Sample:
    """An image and its mask."""

    image: Path
    mask: Path
    name: str
    """Relative to the split, without suffix; unique in it: `aachen/aachen_000000_000019`."""


@dataclass(frozen=True)
class Listing:
    """What lies in a split, sound or not; each in sorted order."""

    samples: tuple[Sample, ...]
    missing: tuple[Path, ...] = ()
    """Images that a list of names has."""
    without_mask: tuple[Path, ...] = ()
    without_image: tuple[Path, ...] = ()
    """Masks: nothing reads them."""
    same_name: tuple[tuple[Path, ...], ...] = ()
    """Images that differ in their suffix only, so that one mask stands for them all."""


@dataclass(frozen=True)
class SegmentationData:
    """A data set on disk. `open_data` makes one."""

    root: Path
    layout: str
    """`"folder"`, or the name of a published data set."""
    labels: Labels
    range: Range | None = None
    """The values that are black and white in images of more than 8 bits, see `read_image`."""

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
        return _expected(self.layout)

    @cached_property
    def _files(self) -> _Files:
        kinds = LAYOUTS[self.layout]
        return next((files for files in kinds if files.lie_in(self.root)), kinds[0])

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The parts that have images and masks, such as train and val."""
        found, masks = self._files.parts(self.root)
        return tuple(sorted(found & masks, key=_by_use))

    @cached_property
    def halves(self) -> tuple[str, ...]:
        """What the other parts lack, in words: a test split without masks, or folders that differ in their name."""
        found, masks = self._files.parts(self.root)
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

    def read_image(self, image: ImageLike) -> RGB:
        """An image of the data set; raises as `zoo_seg.images.reading.read_image` does."""
        return read_image(image, self.range)

    def pair(self, sample: Sample) -> tuple[ImageLike, Ids]:
        """What `read_image` takes, and the class ids (H, W), `ignore_index` where ignored.

        Raises:
            DataError: the mask cannot be read.
        """
        return sample.image, self.labels.read(sample.mask)

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
        split = self._files.splits.get(split, split)
        if split not in self.splits:
            raise OptionError(
                f"{self.root} has no split {split!r} with images and masks; it has {', '.join(self.splits)}"
                + (f" ({'; '.join(self.halves)})" if self.halves else "")
            )
        return self._files.listing(self.root, split)


def open_data(root: str | Path, layout: str = "auto", *, dataset: str | None = None) -> SegmentationData:
    """A data set, recognised by what lies in the folder or in a folder within it.

    Args:
        root: the folder; also the one around it, such as VOCdevkit.
        layout: `"folder"` (images/, masks/ and dataset.json), or a published data set, such as `"voc"` or
            `"ade20k"`; `"auto"` finds out.
        dataset: the published data set to prefer where several are in one folder, as PASCAL Context's are.

    Raises:
        OptionError: there is no such folder or layout.
        DataError: nothing of the sort lies there, several do, or the classes in dataset.json are wrong (with file
            and line).
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise OptionError(f"layout is {layout!r}, expected auto, {', '.join(LAYOUTS)}")
    root = Path(root).expanduser()
    if not root.exists():
        raise OptionError(f"{root}: there is no such folder; check the path")
    if not root.is_dir():
        raise OptionError(f"{root} is a file; expected the folder of a data set")
    layouts: Iterable[str] = LAYOUTS if layout == "auto" else (layout,)
    found = _recognise(root, layouts)
    if len(found) > 1:
        raise DataError(f"{root} holds several data sets: {name_some(list(found))}; name one of them")
    if not found:
        raise DataError(_not_recognised(root, layouts))
    ((root, names),) = found.items()
    if len(names) > 1 and dataset not in names:
        raise DataError(f"{root} can be read as {' or '.join(names)}: name one as the layout (--layout {names[0]})")
    name = dataset if dataset in names else names[0]
    data = SegmentationData(
        root, name, *(_describe_folder(root) if name == "folder" else (published_labels(name), None))
    )
    if not data.splits:
        lacking = "".join(f"; {half}" for half in data.halves)
        raise DataError(f"{root}: no split has both images and masks{lacking}; expected {data.expected}")
    return data


def _recognise(root: Path, layouts: Iterable[str]) -> dict[Path, list[str]]:
    """The folder itself, else the folders within it (VOCdevkit/VOC2012), with the names of the layouts that fit."""

    def fitting(folders: Iterable[Path]) -> dict[Path, list[str]]:
        found = {folder: _layouts_of(folder, layouts) for folder in folders}
        return {folder: names for folder, names in found.items() if names}

    return (
        fitting([root])
        or fitting(sorted(each for each in root.iterdir() if each.is_dir()))
        or fitting(sorted(root.glob("VOCdevkit/VOC*")))
    )


def _layouts_of(folder: Path, layouts: Iterable[str]) -> list[str]:
    """The layouts that a folder has; where it is one's own data set, no other."""
    if "folder" in layouts and (
        (folder / DESCRIPTION).is_file() or ((folder / "images").is_dir() and (folder / "masks").is_dir())
    ):
        return ["folder"]
    return [name for name in layouts if name != "folder" and any(files.lie_in(folder) for files in LAYOUTS[name])]


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


# --- files --------------------------------------------------------------------------------------


def _by_use(split: str) -> tuple[int, str]:
    return (_ORDER.index(split) if split in _ORDER else len(_ORDER), split)


def _folder_names(place: Path) -> list[str]:
    if not place.is_dir():
        return []
    return [each.name for each in place.iterdir() if each.is_dir() and not each.name.startswith(".")]


def _folders(root: Path, pattern: str, split: str) -> list[Path]:
    """Where the files of a pattern begin."""
    folder = pattern.format(split=split, name="\0").partition("\0")[0]
    return sorted(root.glob(folder)) if "*" in folder else [root / folder]


def _walk(root: Path, pattern: str, split: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of a pattern by `{name}`, with any of the suffixes, sorted; hidden ones are left out."""
    ending = pattern.rpartition("{name}")[2].rpartition(".")[0]
    found = defaultdict(list)
    for folder in _folders(root, pattern, split):
        for where, folders, files in os.walk(folder, followlinks=True):
            folders[:] = [each for each in folders if not each.startswith(".")]
            inside = Path(where).relative_to(folder).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            for file in files:
                stem, suffix = os.path.splitext(file)  # noqa: PTH122  (called for every file of a data set)
                if suffix.lower() in suffixes and stem.endswith(ending) and not file.startswith("."):
                    found[prefix + stem.removesuffix(ending)].append(Path(where, file))
    return {name: sorted(found[name]) for name in sorted(found)}


def _pair(found: dict[str, list[Path]], masks: dict[str, list[Path]], missing: tuple[Path, ...] = ()) -> Listing:
    def preferred(paths: list[Path]) -> Path:
        return min(paths, key=lambda path: (*_MASKS, ".mat").index(path.suffix.lower()))

    return Listing(
        tuple(Sample(paths[0], preferred(masks[name]), name) for name, paths in found.items() if name in masks),
        missing,
        without_mask=tuple(paths[0] for name, paths in found.items() if name not in masks),
        without_image=tuple(paths[0] for name, paths in masks.items() if name not in found),
        same_name=tuple(tuple(paths) for paths in found.values() if len(paths) > 1),
    )


# --- the layouts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """Where the images and masks of a data set lie below its folder.

    Patterns have `{split}`, the split in the data set's own words, and `{name}`, which an image and its mask share and
    which may begin with folders; a `*` is any one folder. Other suffixes than the pattern's are found as well.
    """

    images: str
    masks: Sequence[str]
    """In order of preference, where several have a mask of one name."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """The data set's own words -> ours; none: every folder in the place of `{split}` is one."""
    lists: str | None = None
    """Files with the names of each split, where it has no folder; "test" has no masks."""
    names: str = ""
    """What all names look like (a regular expression), where the folders alone do not tell the data set."""
    id_ending: str | None = None
    """How the names of masks end that store class ids, where the others have `label_ids` of the data set."""
    first_id: int = 0
    """1: those store the class id + 1, and 0 where ignored."""

    def __str__(self) -> str:
        def example(pattern: str) -> str:
            return pattern.format(split=next(iter(self.splits), "train"), name="NAME")

        listed = f", and the names in {example(self.lists)}" if self.lists else ""
        return f"{example(self.images)} with {' or '.join(map(example, self.masks))}{listed}"

    def lie_in(self, root: Path) -> bool:
        """Whether there are images and masks, of one split or of several."""
        found, masks = self.parts(root)
        return bool(found and masks) and (not self.names or self._are_named_so(root, found))

    def parts(self, root: Path) -> tuple[set[str], set[str]]:
        """Our names of the splits that have images, and of those that have masks."""
        if self.lists is None:
            return self._splits_of(root, [self.images]), self._splits_of(root, self.masks)
        lists = {path.stem for path in root.glob(self.lists.format(split="*"))}
        lists = {ours for own, ours in self.splits.items() if own in lists} if self.splits else lists
        found, masks = (
            any(each.is_dir() for pattern in patterns for each in _folders(root, pattern, ""))
            for patterns in ([self.images], self.masks)
        )
        return lists if found else set(), lists - {"test"} if masks else set()

    def listing(self, root: Path, split: str) -> Listing:
        """The images of a split, by its list if there is one, with their masks."""
        spelled = next((own for own, ours in self.splits.items() if ours == split), split)
        found = _walk(root, self.images, spelled, _IMAGES)
        masks: dict[str, list[Path]] = {}
        for pattern in self.masks:
            masks = _walk(root, pattern, spelled, (".mat",) if pattern.endswith(".mat") else _MASKS) | masks
        if self.names:  # the same folder has other files, such as masks in another numbering
            masks = {name: paths for name, paths in masks.items() if re.fullmatch(self.names, name)}
        if self.lists is None:
            return _pair(found, masks)
        lines = (root / self.lists.format(split=spelled)).read_text(encoding="utf-8").splitlines()
        names = dict.fromkeys(line.split()[0] for line in lines if line.strip())
        return _pair(
            {name: found[name] for name in names if name in found},
            {name: masks[name] for name in names if name in masks},
            tuple(root / self.images.format(name=name) for name in names if name not in found),
        )

    def _splits_of(self, root: Path, patterns: Iterable[str]) -> set[str]:
        found = set()
        for pattern in patterns:
            place = root / pattern.partition("{split}")[0]
            own = self.splits or {each: each for each in _folder_names(place)}
            found |= {ours for word, ours in own.items() if any(map(Path.is_dir, _folders(root, pattern, word)))}
        return found

    def _are_named_so(self, root: Path, splits: set[str]) -> bool:
        """Of the first few files that are found: a data set may have a hundred thousand."""
        for own, ours in self.splits.items():
            if ours in splits:
                for folder in _folders(root, self.images, own):
                    if any(re.fullmatch(self.names, path.stem) for path in islice(folder.iterdir(), _LOOKED_AT)):
                        return True
        return False


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
        LAYOUTS[dataset][0].id_ending,
        LAYOUTS[dataset][0].first_id,
    )


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
        key, message = wrong
        raise Mistake(message, key)
    try:
        check_range(described.range)
    except OptionError as error:
        raise Mistake(str(error), "range") from None
    labels = Labels(
        described.classes,
        palette,
        described.ignore_index,
        described.ignore_color,
        has_palette=bool(described.palette),
    )
    return labels, described.range


_PARTS = {"train": "train", "val": "val", "test": "test"}

_COCO_STUFF_10K = _Files(
    "images/{name}.jpg",
    ["annotations/{name}.mat"],
    {"train": "train", "test": "val"},
    lists="imageLists/{split}.txt",
)
_PASCAL_CONTEXT = (
    _Files(
        "JPEGImages/{name}.jpg",
        ["SegmentationClassContext/{name}.png"],
        lists="ImageSets/SegmentationContext/{split}.txt",
    ),
)

LAYOUTS: dict[str, tuple[_Files, ...]] = {
    "folder": (_Files("images/{split}/{name}.jpg", ["masks/{split}/{name}.png"]),),
    "voc": (
        _Files(
            "JPEGImages/{name}.jpg",
            ["SegmentationClass/{name}.png", "SegmentationClassAug/{name}.png"],
            lists="ImageSets/Segmentation/{split}.txt",
        ),
    ),
    "ade20k": (
        _Files(
            "images/{split}/{name}.jpg",
            ["annotations/{split}/{name}.png"],
            {"training": "train", "validation": "val"},
        ),
    ),
    "cityscapes": (
        _Files(
            "leftImg8bit/{split}/{name}_leftImg8bit.png",
            ["gtFine/{split}/{name}_gtFine_labelIds.png", "gtFine/{split}/{name}_gtFine_labelTrainIds.png"],
            id_ending="_labelTrainIds",
        ),
    ),
    "coco_stuff_10k": (
        _Files(
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
        _Files(
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
        _Files(
            "{split}/*/images_png/{name}.png",
            ["{split}/*/masks_png/{name}.png"],
            {"Train": "train", "Val": "val", "Test": "test"},
        ),
        _Files("img_dir/{split}/{name}.png", ["ann_dir/{split}/{name}.png"], _PARTS, names=r"\d+"),
    ),
    "potsdam": (_Files("img_dir/{split}/{name}.png", ["ann_dir/{split}/{name}.png"], _PARTS, names=r"\d+(_\d+){5}"),),
    "vaihingen": (
        _Files("img_dir/{split}/{name}.png", ["ann_dir/{split}/{name}.png"], _PARTS, names=r"area\d+(_\d+){4}"),
    ),
    "isaid": (
        _Files(
            "img_dir/{split}/{name}.png",
            ["ann_dir/{split}/{name}_instance_color_RGB.png"],
            _PARTS,
            names=r"P\d+(_\d+){4}",
        ),
    ),
    "mapillary": (
        _Files(
            "{split}/images/{name}.jpg",
            ["{split}/v1.2/labels/{name}.png"],
            {"training": "train", "validation": "val", "testing": "test"},
        ),
    ),
    "lip": (
        _Files("{split}_images/{name}.jpg", ["{split}_segmentations/{name}.png"], {"train": "train", "val": "val"}),
    ),
}
"""How the files of each data set lie, in one way or in several: as distributed, and as MMSegmentation's converters
write them. Of PASCAL Context, Potsdam, Vaihingen and iSAID the latter only: published numbers of the last three were
measured on its patches.
"""
