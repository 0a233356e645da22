"""Images and masks that are paired by their names, by lists of them, and what is divided by no one yet."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from zoo_seg.data.annotations import read_lines
from zoo_seg.data.samples import ALL, Layout, Listing, Sample, split_of, words_of_splits
from zoo_seg.errors import DataError

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")
"""In order of preference; JPEG is found so that reading it tells why it is refused."""
_OTHERS = (".mat", ".json")
"""Labels that are no images, where a pattern asks for them."""
_LOOKED_AT = 20
"""Files whose names tell a data set."""
_SUFFIXES = ("_mask", "_L", "_masks", "_label", "_labels", "_gt", "_seg", "-mask")
"""What names of masks have more than those of their images."""


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
        return min(paths, key=lambda path: (*_MASKS, *_OTHERS).index(path.suffix.lower()))

    return Listing(
        tuple(Sample(paths[0], preferred(masks[name]), name) for name, paths in found.items() if name in masks),
        missing,
        without_mask=tuple(paths[0] for name, paths in found.items() if name not in masks),
        without_image=tuple(paths[0] for name, paths in masks.items() if name not in found),
        same_name=tuple(tuple(paths) for paths in found.values() if len(paths) > 1),
    )


# --- patterns -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
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
        spelled = self.spelled(root, split)
        found = _walk(root, self.images, spelled, _IMAGES)
        masks: dict[str, list[Path]] = {}
        for pattern in self.masks:
            other = tuple(suffix for suffix in _OTHERS if pattern.endswith(suffix))
            masks = _walk(root, pattern, spelled, other or _MASKS) | masks
            if pattern.rpartition("/")[0] == self.images.rpartition("/")[0]:  # a mask is no image without mask
                ending = pattern.rpartition("{name}")[2].rpartition(".")[0]
                found = {name: paths for name, paths in found.items() if not ending or not name.endswith(ending)}
        if self.names:  # the same folder has other files, such as masks in another numbering
            masks = {name: paths for name, paths in masks.items() if re.fullmatch(self.names, name)}
        if self.lists is None:
            return _pair(found, masks)
        lines = (root / self.lists.format(split=spelled)).read_text(encoding="utf-8").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        names = dict.fromkeys(line if line in found else line.split()[0] for line in lines)
        return _pair(
            {name: found[name] for name in names if name in found},
            {name: masks[name] for name in names if name in masks},
            tuple(root / self.images.format(name=name) for name in names if name not in found),
        )

    def spelled(self, root: Path, split: str) -> str:
        """The data set's own word for a split; of several the one that is a folder."""
        words = [own for own, ours in self.splits.items() if ours == split] or [split]
        return next((own for own in words if any(map(Path.is_dir, _folders(root, self.images, own)))), words[0])

    def _splits_of(self, root: Path, patterns: Iterable[str]) -> set[str]:
        found = set()
        for pattern in patterns:
            place = root / pattern.partition("{split}")[0]
            own = self.splits or {each: each for each in _folder_names(place)}
            own = own if "{split}" in pattern else {ALL: ALL}
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


# --- lists, and what is not divided -------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """Splits by lists: `train.txt` and others in the folder itself or in splits/.

    A line is a name, an image, or an image and its mask, as paths from the data set's folder.
    """

    undivided: Files | None = None
    """Where images and masks lie that are listed without their masks."""
    places: tuple[str, ...] = (".", "splits")
    splits: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.undivided or 'images and masks'}, as train.txt and val.txt list them"

    def lie_in(self, root: Path) -> bool:
        return any(self._listing(root, path).samples for path in self.lists(root).values())

    def parts(self, root: Path) -> tuple[set[str], set[str]]:
        lists = self.lists(root)
        has_masks = "test" in lists and bool(self._listing(root, lists["test"]).samples)  # it seldom has
        return set(lists), set(lists) - (set() if has_masks else {"test"})

    def lists(self, root: Path) -> dict[str, Path]:
        """The list of each split."""
        found: dict[str, Path] = {}
        for place in self.places:
            for path in sorted((root / place).glob("*.txt")):
                words = set(re.findall("[a-z]+", path.stem.lower())) - {"list", "ids", "images", "names"}
                split = ALL if words == {"default"} else path.stem if words == {"trainval"} else None
                if split or (len(words) == 1 and split_of(*words)):
                    found.setdefault(split or split_of(*words) or ALL, path)
        return found

    def listing(self, root: Path, split: str) -> Listing:
        return self._listing(root, self.lists(root)[split])

    def _listing(self, root: Path, path: Path) -> Listing:
        lying = self.undivided.listing(root, ALL) if self.undivided else Listing(())
        known = {key: sample for sample in lying.samples for key in (sample.name, *_keys(root, sample.image))}
        known |= {f"{sample.name}{sample.image.suffix}": sample for sample in lying.samples}
        bare = {key: image for image in lying.without_mask for key in (image.stem, *_keys(root, image))}
        samples, missing, without = dict[str, Sample](), list[Path](), list[Path]()
        for line in _lines(path):
            first, _, second = line.replace(",", " ").replace("\t", " ").partition(" ")
            entry = line if line in known else first
            if entry in known:
                samples.setdefault(known[entry].name, known[entry])
            elif (root / first).is_file() and (root / second.strip()).is_file():
                name = first.rpartition(".")[0]
                samples.setdefault(name, _listed(Path(path), root / first, root / second.strip(), name))
            elif entry in bare:
                without.append(bare[entry])
            else:
                missing.append(root / entry)
        return Listing(tuple(samples.values()), tuple(missing), tuple(without), same_name=lying.same_name)


def _listed(path: Path, image: Path, mask: Path, name: str) -> Sample:
    try:
        return Sample(image, mask, name)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _keys(root: Path, image: Path) -> tuple[str, str]:
    """How a list may name an image by its path."""
    path = image.relative_to(root).as_posix()
    return path, path.rpartition(".")[0]


def _lines(path: Path) -> Iterator[str]:
    for _, line in read_lines(path):
        yield line.removeprefix("./").removeprefix("/").replace(" /", " ")


@dataclass(frozen=True)
class Divided:
    """Some images of train, or of a data set without splits, as val: those whose names' hashes are the lowest.

    An image stays where it is when others come or go.
    """

    whole: Layout
    fraction: float
    splits: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.whole)

    def lie_in(self, root: Path) -> bool:
        return self.whole.lie_in(root)

    def parts(self, root: Path) -> tuple[set[str], set[str]]:
        images, masks = self.whole.parts(root)
        divided = {self._base(root)}
        return images - divided | {"train", "val"}, masks - divided | {"train", "val"}

    def listing(self, root: Path, split: str) -> Listing:
        if split not in ("train", "val"):
            return self.whole.listing(root, split)
        listing = self.whole.listing(root, self._base(root))
        places = {sample: _place_of(sample.name) for sample in listing.samples}
        held = {sample for sample, place in places.items() if place < self.fraction}
        if len(places) > 1:  # of very few images, one at least for each
            held = held or {min(places, key=places.__getitem__)}
            held = held if len(held) < len(places) else held - {max(places, key=places.__getitem__)}
        samples = tuple(sample for sample in listing.samples if (sample in held) == (split == "val"))
        return Listing(samples, listing.missing, listing.without_mask, listing.without_image, listing.same_name)

    def _base(self, root: Path) -> str:
        return "train" if "train" in self.whole.parts(root)[1] else ALL


def _place_of(name: str) -> float:
    """From 0 to 1, by the name alone."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


# --- a data set of one's own --------------------------------------------------------------------

OWN = Files("images/{split}/{name}.jpg", ["masks/{split}/{name}.png"])
"""What the folder of a data set of one's own looks like at its simplest."""

_PLACES = (
    ("images/{split}/{name}", "masks/{split}/{name}"),
    ("{split}/images/{name}", "{split}/masks/{name}"),
    ("images/{name}", "masks/{name}"),
    ("images/{split}/{name}", "images/{split}/{name}"),
    ("{split}/{name}", "{split}/{name}"),
    ("images/{name}", "images/{name}"),
    ("{name}", "{name}"),
)
"""Of images and masks, without the suffixes; the first that has pairs counts."""


def find_own(root: Path, mask_suffix: str | None, is_divided: bool) -> tuple[Files | Listed, str] | None:
    """How a data set of one's own lies, and what the names of its masks end with; None where there are no pairs.

    Args:
        mask_suffix: this ending; None finds it out.
        is_divided: someone else says what train and val are, unless the folders do.
    """
    lists = Listed().lists(root)
    for image, mask in _PLACES:
        is_beside, has_splits = image == mask, "{split}" in image
        suffixes = (mask_suffix,) if mask_suffix is not None else _SUFFIXES if is_beside else ("", *_SUFFIXES)
        splits = {} if image.startswith("images/{split}") and not is_beside else words_of_splits()
        places = Files(f"{image}.jpg", [f"{mask}.png"], splits)
        images, masks = places.parts(root)
        words = sorted(images & masks)
        if has_splits and (lists or is_divided) and "train" not in words:
            continue
        counts = dict.fromkeys(suffixes, 0)
        for word in words:
            _count_pairs(root, places, word, is_beside, counts)
        suffix = max(counts, key=counts.__getitem__)
        if counts[suffix]:
            files = Files(f"{image}.jpg", [f"{mask}{suffix}.png"], splits)
            return (Listed(files) if lists and not has_splits else files), suffix
    listed = Listed()
    return (listed, "") if listed.lie_in(root) else None


def _count_pairs(root: Path, places: Files, split: str, is_beside: bool, counts: dict[str, int]) -> None:
    """Add to each suffix the images that have a mask with it."""
    spelled = places.spelled(root, split)
    if is_beside and not _has_suffix(_folders(root, places.images, spelled)[0], counts):
        return  # before all below a folder is walked through, which may be anyone's
    images = _walk(root, places.images, spelled, _IMAGES)
    masks = _walk(root, places.masks[0], spelled, _MASKS)
    for suffix in counts:
        counts[suffix] += sum(name + suffix in masks for name in images)


def _has_suffix(folder: Path, suffixes: Iterable[str]) -> bool:
    return folder.is_dir() and any(
        path.suffix.lower() in _MASKS and path.stem.endswith(tuple(suffixes)) for path in folder.iterdir()
    )
