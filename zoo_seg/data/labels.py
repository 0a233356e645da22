"""From what a mask stores to class ids: the one place where a label rule is applied."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from zoo_seg.data.matlab import read_matrix
from zoo_seg.data.wording import many, name_some
from zoo_seg.errors import DataError
from zoo_seg.images.reading import loses_bits, stored_mode, upright
from zoo_seg.info import voc_palette

Colour = tuple[int, int, int]
"""RGB, 0..255."""
Stored = int | Colour
"""What a mask stores in a pixel: an index, or a colour."""
Ids = npt.NDArray[np.uint8 | np.uint16]
"""Class ids (H, W), `ignore_index` where ignored: uint8, or uint16 where 8 bits are too few."""
Rule = Literal["ids", "labels"]
"""What a mask's indices are: class ids, or numbers of the data set's own, which `Labels.label_ids` translates."""

IGNORED, UNKNOWN = -1, -2
"""Meanings of a stored value beside the class ids."""

_EXACT = {"PNG", "BMP", "TIFF", "PPM", "GIF"}
"""Formats that keep every value as it was."""
_COLOURLESS = ("1", "L", "P", "LA", "PA")
"""Modes that a tool writes to save space where it was told colours."""
_BLOCK = 1 << 20
"""Pixels worked on at a time: bounds the memory of a huge mask, and fits a processor's cache."""
_LARGEST = 65535
MOST_UNKNOWN = 1000
"""Different ones that are counted each: a photograph in the place of a mask holds any number."""
_SHOWN = 8
_MANY = 40
"""Unknown labels beyond which no table of classes explains them."""


def mistake_in(
    classes: Sequence[str], palette: Sequence[Colour], ignore_index: int, ignore_color: Colour | None
) -> tuple[str, str] | None:
    """(field, what is wrong with it) of classes that nobody can train on; None where all is well."""
    count = len(classes)
    if count < 2:
        return "classes", f"found {count}, expected at least 2; name the background as a class of its own"
    if len(set(classes)) < count or not all(name.strip() for name in classes):
        twice = next((name for name in classes if classes.count(name) > 1), "")
        return "classes", f"the name {twice!r} stands for two classes" if twice.strip() else "a class has no name"
    if len(palette) != count:
        return "palette", f"{len(palette)} colours for {count} classes, expected as many"
    if not all(0 <= channel <= 255 for colour in (*palette, ignore_color or (0, 0, 0)) for channel in colour):
        return "palette", "a colour is outside 0..255"
    if not count <= ignore_index <= _LARGEST:
        taken = f"is class {classes[ignore_index]!r}" if 0 <= ignore_index < count else "cannot be stored in a mask"
        free = 255 if count <= 255 else _LARGEST
        return "ignore_index", f"{ignore_index} {taken}; expected a value from {count} to {_LARGEST}, such as {free}"
    if ignore_color in palette:
        return "ignore_color", f"it is the colour of class {classes[palette.index(ignore_color)]!r}"
    return None


@dataclass
class StoredValues:
    """What one mask, or many of one rule, store."""

    size: tuple[int, int]
    """(height, width)"""
    rule: Rule
    pixels: dict[Stored, int] = field(default_factory=dict)
    """Stored value -> number of pixels."""
    meanings: dict[Stored, int] = field(default_factory=dict)
    """Stored value -> class id, IGNORED or UNKNOWN."""
    unknown: list[Stored] = field(default_factory=list)
    """The values that are no class; the first of them where there are very many."""

    def add(self, value: Stored, meaning: int, pixels: int) -> None:
        """Count a value, unless it is one unknown label too many."""
        if value not in self.pixels:
            if meaning == UNKNOWN:
                if len(self.unknown) == MOST_UNKNOWN:
                    return
                self.unknown.append(value)
            self.meanings[value] = meaning
        self.pixels[value] = self.pixels.get(value, 0) + pixels


@dataclass(frozen=True)
class Labels:
    """The classes of a data set, and how its masks store them.

    Raises:
        DataError: fewer than two classes, a palette of another length, or an `ignore_index` that is a class.
    """

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_index: int
    """The id of ignored pixels, outside the classes."""
    ignore_color: Colour | None = None
    """The colour of ignored pixels in RGB masks; None: every colour must be a class's."""
    label_ids: tuple[int, ...] | None = None
    """What an index mask stores for each class; None: the class id itself, and `ignore_index` where ignored."""
    ignored_ids: tuple[int, ...] = ()
    """What it stores where ignored, if there are `label_ids`."""
    id_ending: str | None = None
    """How the names of masks end that store class ids in spite of `label_ids`, such as `_labelTrainIds`."""
    first_id: int = 0
    """1: those store the class id + 1, and 0 where ignored."""
    has_palette: bool = True
    """False: nobody said that masks are in the palette's colours, and RGB ones are refused."""
    value_map: tuple[tuple[Stored, int], ...] = ()
    """(stored value, class id or IGNORED) beside the class ids; a class with a value here is stored as this alone."""
    by_colour: bool = False
    """The colours of a palette PNG count, not its indices, and only those in `value_map` are known."""

    def __post_init__(self) -> None:
        mistake = mistake_in(self.classes, self.palette, self.ignore_index, self.ignore_color)
        if mistake:
            raise DataError(": ".join(mistake))

    def read(self, path: Path) -> Ids:
        """The class ids (H, W) of a mask, `ignore_index` where ignored.

        A mask is an index PNG of 1, 2, 4, 8 or 16 bits, a palette PNG (its indices count, never its colours), or
        RGB in the palette's colours; other lossless formats are read likewise. Of 1 bit, white is 1. It is turned
        upright (EXIF orientation) as images are. Of a MATLAB file the variable `S` counts.

        Raises:
            DataError: the file cannot be read, loses values (JPEG), or stores what is no class; the message
                names the values, what is allowed and the likely cause.
        """
        ids, stored = self._read(path)
        if stored.unknown:
            raise DataError(f"{path}: {self.explain(stored)}")
        return ids

    def count(self, path: Path) -> StoredValues:
        """What a mask stores, unknown labels included.

        Raises:
            DataError: the file cannot be read, or loses values (JPEG).
        """
        return self._read(path)[1]

    def count_ids(self, ids: Ids) -> StoredValues:
        """What class ids (H, W) that are no mask's come to."""
        stored = StoredValues((ids.shape[0], ids.shape[1]), "ids")
        counts = np.bincount(ids.ravel())
        for value in np.flatnonzero(counts).tolist():
            stored.add(value, IGNORED if value == self.ignore_index else value, int(counts[value]))
        return stored

    def explain(self, stored: StoredValues) -> str:
        """Which values are no class, what is allowed, and what probably went wrong."""
        unknown = sorted(stored.unknown, key=lambda value: value if isinstance(value, tuple) else (value,))
        shown = ", ".join(map(str, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        what = "colour" if isinstance(unknown[0], tuple) else "value"
        found = f"the {what}s {shown} are no classes" if len(unknown) > 1 else f"the {what} {shown} is no class"
        cause = self._cause(stored)
        if what == "colour" and not self.has_palette and cause is None:
            return self._palette_to_paste(unknown)
        return f"{found}; allowed are {self._allowed(what, stored.rule)}" + (f". {cause}" if cause else "")

    # --- reading --------------------------------------------------------------------------------

    def _read(self, path: Path) -> tuple[Ids, StoredValues]:
        pixels = _read_pixels(path, self.by_colour)
        if pixels.ndim == 3 and self.has_palette and not self.by_colour and self._shared_colour:
            names = [self.classes[index] for index, colour in enumerate(self.palette) if colour == self._shared_colour]
            raise DataError(
                f"{path}: an RGB mask, but the classes {', '.join(names)} share the colour {self._shared_colour}; "
                "give each a colour of its own, or store class ids"
            )
        holds_ids = self.label_ids is None or (self.id_ending is not None and path.stem.endswith(self.id_ending))
        rule: Rule = "ids" if holds_ids else "labels"
        ids = np.empty(pixels.shape[:2], self.dtype)
        stored = StoredValues((pixels.shape[0], pixels.shape[1]), rule)
        rows = max(_BLOCK // pixels.shape[1], 1)
        for top in range(0, len(pixels), rows):
            strip = slice(top, top + rows)
            if pixels.ndim == 3:
                self._read_colours(pixels[strip], ids[strip], stored)
            else:
                self._read_indices(pixels[strip], ids[strip], stored)
        return ids, stored

    def _read_indices(self, pixels: Ids, ids: Ids, stored: StoredValues) -> None:
        meanings = self._meanings[stored.rule]
        counts = np.bincount(pixels.ravel())
        present = np.flatnonzero(counts)
        for value, meaning, count in zip(
            present.tolist(), meanings[present].tolist(), counts[present].tolist(), strict=True
        ):
            stored.add(value, meaning, count)
        self._tables[stored.rule].take(pixels, out=ids, mode="clip")  # all are in the table; mode "raise" copies

    def _read_colours(self, pixels: Ids, ids: Ids, stored: StoredValues) -> None:
        codes, meanings = self._colours
        found = _pack(pixels)
        places = np.minimum(codes.searchsorted(found), len(codes) - 1)
        self._ids(meanings).take(places, out=ids)
        known = (codes[places] == found) & self.has_palette
        if not known.all():
            values, counts = np.unique(found[~known], return_counts=True)
            for code, count in zip(values.tolist(), counts.tolist(), strict=True):
                stored.add(_unpack(code), UNKNOWN, count)
            places = places[known]
        counts = np.bincount(places.ravel(), minlength=len(codes))
        for code, meaning, count in zip(codes.tolist(), meanings.tolist(), counts.tolist(), strict=True):
            if count:
                stored.add(_unpack(code), meaning, count)

    def _ids(self, meanings: npt.NDArray[np.int32]) -> Ids:
        """A table of what becomes of each meaning; unknown labels are refused elsewhere."""
        ids: Ids = np.where(meanings < 0, self.ignore_index, meanings).astype(self.dtype)
        return ids

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Of class ids."""
        return np.uint8 if self.ignore_index <= 255 else np.uint16

    @cached_property
    def _meanings(self) -> dict[Rule, npt.NDArray[np.int32]]:
        """What each index from 0 to 65535 means, by rule."""
        ids, labels = np.full((2, _LARGEST + 1), UNKNOWN, np.int32)
        classes = np.arange(len(self.classes))
        ids[classes + self.first_id], ids[0 if self.first_id else self.ignore_index] = classes, IGNORED
        own = [(value, meaning) for value, meaning in self.value_map if isinstance(value, int)]
        ids[[meaning for _, meaning in own if meaning != IGNORED]] = UNKNOWN
        for value, meaning in own:
            ids[value] = meaning
        if self.label_ids is not None:
            labels[list(self.label_ids)], labels[list(self.ignored_ids)] = classes, IGNORED
        return {"ids": ids, "labels": labels}

    @cached_property
    def _tables(self) -> dict[Rule, Ids]:
        """What becomes of each index from 0 to 65535, by rule."""
        return {rule: self._ids(meanings) for rule, meanings in self._meanings.items()}

    @cached_property
    def _colours(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
        """The known colours, packed and ascending, and what each means."""
        known = {} if self.by_colour else {colour: index for index, colour in enumerate(self.palette)}
        known |= {self.ignore_color: IGNORED} if self.ignore_color else {}
        known |= {value: meaning for value, meaning in self.value_map if isinstance(value, tuple)}
        codes = _pack(np.array([*known], np.uint8))
        meanings = np.array([*known.values()], np.int32)
        order = codes.argsort()
        return codes[order], meanings[order]

    @cached_property
    def _shared_colour(self) -> Colour | None:
        """A colour that stands for two classes (ADE20K has some), so that RGB masks cannot be read."""
        return next((colour for colour, count in Counter(self.palette).items() if count > 1), None)

    # --- what went wrong ------------------------------------------------------------------------

    def _allowed(self, what: str, rule: Rule) -> str:
        last = len(self.classes) - 1
        if what == "colour":
            if self.by_colour:
                return ", ".join(str(value) for value, _ in self.value_map)
            return "the palette's colours" + (f" and {self.ignore_color} (ignored)" if self.ignore_color else "")
        if rule == "ids" and self.first_id:
            return f"0 (ignored) and 1 to {last + 1}"
        if rule == "labels":
            ignored = f"{_in_ranges(self.ignored_ids)} (ignored) and " if self.ignored_ids else ""
            return ignored + _in_ranges(self.label_ids or ())
        if self.value_map:
            meanings = self._meanings["ids"]
            known, ignored = (np.flatnonzero(found).tolist() for found in (meanings >= 0, meanings == IGNORED))
            return f'{_in_ranges(known)}, and {_in_ranges(ignored)} (ignored); "map" in dataset.json adds to them'
        return f"0 to {last}, and {self.ignore_index} (ignored)"

    def _cause(self, stored: StoredValues) -> str | None:
        if self.value_map and not self.by_colour:
            return None
        unknown, count = stored.unknown, len(self.classes)
        telling = set(stored.pixels) - {(0, 0, 0), (self.ignore_index,) * 3}  # black and white are colours as well
        if telling and telling <= self._ids_as_grey:
            return "These are class ids in red, green and blue alike: store them in one channel (mode L), not in RGB"
        if len(unknown) > (_MANY if self.has_palette else _MANY + count):
            return (
                "So many different ones: an image in the place of a mask, or a mask that was a JPEG once or was "
                "resized with interpolation (resize masks with 'nearest')"
            )
        if isinstance(unknown[0], tuple):
            if not self.has_palette:
                return None
            if len(unknown) == 1:
                return f"If {unknown[0]} stands for ignored pixels, set 'ignore_color' to {list(unknown[0])}"
            return "Correct the palette or the masks"
        if stored.rule == "labels" and self.id_ending is not None:
            return f"Class ids are read from files called '*{self.id_ending}.png'"
        if stored.rule == "labels" or self.first_id:
            after_zero = self.first_id or self.label_ids == tuple(range(1, count + 1))
            first = f"masks are read as distributed, with 1 for {self.classes[0]!r}"
            return f"Perhaps 1 was subtracted already: {first}" if after_zero and self.ignore_index in unknown else None
        present = {value for value in stored.pixels if value not in (0, self.ignore_index)}
        if present <= self._greys and len(present) > 1:
            return "These are a palette's colours turned into grey: store the indices (mode P), or the colours (RGB)"
        if present == {255}:
            return (
                'Black and white: store 1 in the place of 255, or say "map": '
                f'{{"255": "{self.classes[1]}"}} in dataset.json (or set '
                "'ignore_index' to 255 if it is to be ignored)"
            )
        if unknown == [count] and 0 not in stored.pixels:
            return f"The ids seem to start at 1: subtract 1, so that {self.classes[0]!r} is 0"
        if unknown in ([255], [count]):
            named = f"; if it is a class, name it: 'classes' has {count} names" if unknown == [count] else ""
            return f"If {unknown[0]} stands for ignored pixels, set 'ignore_index' to {unknown[0]}{named}"
        if (last := max(value for value in unknown if isinstance(value, int))) <= count + _MANY:
            return f"There are ids up to {last}: if all are classes, 'classes' needs {last + 1} names, it has {count}"
        return None

    def _palette_to_paste(self, colours: Sequence[Stored]) -> str:
        count = len(self.classes)
        text = (
            f"{many(len(colours), 'colour')} (RGB), and nothing says which class each of them is. Add a palette to "
            f'dataset.json, in the order of the classes ({name_some(self.classes)}). The colours found are "palette": '
            f"{json.dumps(colours)}"
        )
        if len(colours) > count:
            return f"{text}; these are more than the {count} classes: the one that is ignored is 'ignore_color'"
        return text + (f"; those of {count - len(colours)} more are needed" if len(colours) < count else "")

    @cached_property
    def _ids_as_grey(self) -> set[Stored]:
        stored = (*range(len(self.classes)), self.ignore_index, *(self.label_ids or ()), *self.ignored_ids)
        return {(index, index, index) for index in stored}

    @cached_property
    def _greys(self) -> set[Stored]:
        """What becomes of the palette's colours, and of VOC's, when a tool reads a mask as grey."""
        voc = voc_palette(256)
        colours = np.array([*self.palette, *voc[: len(self.classes)], voc[255]])
        return set(np.rint(colours @ (0.299, 0.587, 0.114)).astype(int).tolist())


def _in_ranges(numbers: Iterable[int]) -> str:
    """`0, 3 to 7`"""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _pack(colours: Ids) -> npt.NDArray[np.uint32]:
    """One number for each colour (..., 3)."""
    packed = colours[..., 0].astype(np.uint32)
    for channel in (1, 2):
        packed <<= np.uint32(8)
        packed |= colours[..., channel]
    return packed


def _unpack(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _read_pixels(path: Path, by_colour: bool = False) -> Ids:
    """Indices (H, W), uint8 or uint16, or colours (H, W, 3); turned as the EXIF orientation says.

    Args:
        by_colour: the colours of indices and grey values are asked for.
    """
    try:
        if path.suffix == ".mat":
            return read_matrix(path, "S")
        with path.open("rb") as file, Image.open(file) as image:
            if image.format not in _EXACT:
                raise DataError(
                    f"{path}: {image.format} can alter the values it stores; expected a PNG made "
                    "from the original annotation (converting this file keeps the damage)"
                )
            largest = _largest_stored(image)
            if loses_bits(image):
                raise DataError(f"{path}: colours or alpha of 16 bits; expected class ids, or colours of 8 bits")
            if largest == 0:
                raise DataError(f"{path}: a TIFF whose 0 is white, in which ids are inverted; save it as a PNG")
            if by_colour and image.mode in _COLOURLESS:
                return np.asarray(upright(image).convert("RGBA"))[:, :, :3]
            pixels = _pixels(upright(image), path)
        if largest is not None and pixels.ndim == 2:  # Pillow has scaled them to 0..255 or 0..65535
            pixels = np.rint(pixels * (largest / (255 if largest <= 255 else _LARGEST))).astype(np.uint16)
        return pixels
    except (DataError, MemoryError):
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; expected a mask") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that Pillow can read; expected a PNG") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); expected a complete PNG") from None


def _largest_stored(image: ImageFile) -> int | None:
    """What an opened file stores for white where Pillow scales grey values; 0 where it inverts them, else None."""
    mode = stored_mode(image)
    if image.format == "PPM" and isinstance(image.tile[0][3], tuple) and mode == "L":
        return int(image.tile[0][3][1])
    if not mode.startswith("L;"):
        return None
    return 0 if "I" in mode else {"2": 3, "4": 15}.get(mode[2])


def _pixels(image: Image.Image, path: Path) -> Ids:
    mode = image.mode
    if mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint8, copy=False)
    if mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0))
    if mode in ("RGB", "RGBA"):
        return np.asarray(image)[:, :, :3]
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() >= 0 and values.max() <= _LARGEST:
            return values.astype(np.uint16)
        raise DataError(f"{path}: values from {values.min()} to {values.max()}, expected 0 to {_LARGEST}")
    raise DataError(f"{path}: a mask of mode {mode}; expected class ids (mode L, P or I;16) or colours (RGB)")
