"""Which images the paths on a command line stand for."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image

from zoo_seg.errors import OptionError
from zoo_seg.scale.jobs import ENDINGS, ON_A_MAP
from zoo_seg.scale.marks import read_mark

SETTINGS = "zoo_seg_predict.json"
"""Beside results: the settings that they were made with."""
LIST = ".txt"
"""Ending of a file that names images."""
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
"""Formats that Pillow knows by name, but does not decode itself."""
_CLIPS = {
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".webm", ".wmv", ".y4m"),
}


def images(path: str, on_trouble: Callable[[Path, str], None]) -> Iterator[tuple[Path, Path]]:
    """Every image with the folder it lies in, relative to the folder that was named.

    Of a folder all that ends like an image, in all its folders. A link to a file is read wherever it leads. A
    link to a folder is not entered, so that nothing is found twice or without end. Hidden files and folders
    (`.thumbnails/`, `._a.jpg`) are passed over.

    Args:
        path: a file, a folder or a glob.
        on_trouble: called with what stands for no images or cannot be listed, and the reason.
    """
    named = Path(path)
    if os.path.isdir(named):  # noqa: PTH112  (never raises)
        found, troubles = _walk(named)
        for folder, reason in troubles:
            on_trouble(folder, reason)
        if not found and not troubles:
            kinds = ", ".join(sorted(suffixes()))
            on_trouble(named, f"holds no images ({kinds}); hidden files and links to folders are passed over")
        root = named
    elif os.path.lexists(named) or not glob.has_magic(path):
        found, root = [named], named.parent
    else:
        found, root = _matches(path)
        if not found:
            on_trouble(named, "no file matches this pattern")
    for each in found:
        yield each, each.relative_to(root).parent


def entries(text: str) -> list[str]:
    """The lines of a list of images; blank ones and those after a # are passed over.

    Raises:
        ValueError: the list is empty, or no text.
    """
    if "\0" in text:
        raise ValueError("is no text file; expected a path or URL on each line")
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError("names no images; expected a path or URL on each line")
    return lines


def whole_name(image: str) -> str:
    """All the folders of a list's image and its stem: two lists never put two images in one place."""
    name = os.path.normpath(image)
    if name.startswith(os.pardir):
        name = os.path.abspath(name)  # noqa: PTH100
    return Path(name).relative_to(Path(name).anchor).with_suffix("").as_posix()


def is_clip(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return path.suffix.lower() in _CLIPS and not path.is_dir()


def is_wanted(name: str) -> bool:
    """Whether a file in a folder is taken: it ends like an image, and neither it nor a folder above is hidden."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower() in suffixes() and not any(part.startswith(".") for part in parts)


def is_named_like_result(name: str) -> bool:
    """Whether a file is called as results are."""
    endings = [*ENDINGS.values(), *ON_A_MAP.values()]
    return name.endswith(tuple(ending for ending in endings if ending.endswith((".png", ".tif"))))


def trouble(image: Path) -> str | None:
    """Why a file cannot be read, as far as can be told without opening it."""
    try:
        if stat.S_ISDIR(image.stat().st_mode):
            return "is a folder; expected an image"
    except FileNotFoundError:
        return "the link leads nowhere" if image.is_symlink() else "there is no such file; check the path"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _walk(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The images below a folder, and the folders that cannot be listed."""
    found: list[Path] = []
    errors: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            each = Path(place, name)
            if not name.startswith(".") and each.suffix.lower() in suffixes():
                found += [each] if _may_be_file(each) and not _is_result(each) else []
    return sorted(found), [(Path(error.filename), f"cannot be listed ({error.strerror})") for error in errors]


def _may_be_file(path: Path) -> bool:
    """No folder, pipe or device; what cannot be asked is left for `trouble`."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _is_result(path: Path) -> bool:
    """Written by an earlier run: a second one must not predict the first one's results."""
    if not is_named_like_result(path.name):
        return False
    try:
        with path.open("rb") as file:
            return read_mark(file) is not None
    except OSError:
        return False


@cache
def suffixes() -> frozenset[str]:
    """The file endings that Pillow reads as images, in lower case."""
    kinds = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in kinds.items() if kind in Image.OPEN and kind not in _NO_PIXELS)


def _matches(pattern: str) -> tuple[list[Path], Path]:
    """The files that fit a glob, and the folders in front of its first wildcard."""
    parts = Path(pattern).parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root, rest = Path(*parts[:first]), list(parts[first:])
    if rest[-1] == "**":
        rest.append("*")
    try:  # Path's `**` enters no link to a folder, which could lead in a circle
        found = sorted(root.glob("/".join(rest)))
    except ValueError as error:
        raise OptionError(f"{pattern!r}: {error}") from None
    return [each for each in found if not _is_hidden(each, root) and _may_be_file(each) and not _is_result(each)], root


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
