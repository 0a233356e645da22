"""A repository as transformers saves it, described as this library describes networks; transformers is not needed.

`config.json` tells the network and its classes, `preprocessor_config.json` how images are prepared; what they leave out
is the default of transformers' classes (read in 5.23.0). Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from zoo_seg.decode import Mistake, decode, read_json, show
from zoo_seg.info import ModelInfo, voc_palette
from zoo_seg.manifest import Preprocess, TestOptions, load_manifest
from zoo_seg.transformers.beit import read_beit
from zoo_seg.transformers.dpt import read_dpt
from zoo_seg.transformers.eomt import read_eomt
from zoo_seg.transformers.mask2former import read_mask2former
from zoo_seg.transformers.maskformer import read_maskformer
from zoo_seg.transformers.processor import read_preprocess
from zoo_seg.transformers.reading import Reading, count_of
from zoo_seg.transformers.segformer import read_segformer
from zoo_seg.transformers.upernet import read_upernet

PREPROCESSOR = "preprocessor_config.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where the tensors may be, in order of preference: whole, or in several files that an index lists."""
_MOST_FILES = 1000
_FILE = re.compile(r"\w[\w.-]*\.(safetensors|bin)", re.ASCII)
_READERS: Mapping[str, Callable[[dict[str, Any]], Reading]] = {
    "SegformerForSemanticSegmentation": read_segformer,
    "UperNetForSemanticSegmentation": read_upernet,
    "BeitForSemanticSegmentation": read_beit,
    "EomtForUniversalSegmentation": read_eomt,
    "DPTForSemanticSegmentation": read_dpt,
    "Mask2FormerForUniversalSegmentation": read_mask2former,
    "MaskFormerForInstanceSegmentation": read_maskformer,
}
"""By transformers' class."""


def is_transformers(raw: object) -> TypeGuard[dict[str, Any]]:
    """Whether a `config.json` is one of transformers."""
    return isinstance(raw, dict) and "schema_version" not in raw and ("model_type" in raw or "architectures" in raw)


def info_from(raw: dict[str, Any], folder: Path) -> ModelInfo:
    """What a `config.json` and the `preprocessor_config.json` beside it say.

    Raises:
        Mistake: the network is not one of those that are built here; the message names it.
        ManifestError: the second file is broken, or asks for what is not done here.
    """
    found = _architectures(raw)
    name = next((each for each in found if each in _READERS), None)
    if name is None:
        what = ", ".join(found) or f"no name of a class (model_type {show(raw.get('model_type'))})"
        raise Mistake(f"found {what}; supported are {', '.join(_READERS)}", "architectures")
    reading = _READERS[name](raw)
    classes = _classes(raw)
    palette, ignore_index = _colours(classes)
    channels = count_of(raw, "num_channels", 3)
    path = folder / PREPROCESSOR

    def preprocess(said: object) -> Preprocess:
        return read_preprocess(said, reading, channels)

    rules = read_json(path, preprocess) if path.is_file() else preprocess({})
    test = TestOptions()
    if reading.splits and rules.resize is not None:
        test = TestOptions("split", crop=(rules.resize.short, rules.resize.short))
    return ModelInfo(
        classes=classes,
        palette=palette,
        preprocess=rules,
        protocol=reading.protocol,
        test=test,
        in_chans=channels,
        ignore_index=ignore_index,
        architecture=reading.architecture,
    )


def files_of(index: Path) -> list[str]:
    """The files that an index lists.

    Raises:
        ManifestError: it is broken, or names what is no file beside it.
    """

    def names(raw: object) -> list[str]:
        listed = raw.get("weight_map") if isinstance(raw, dict) else None
        if not isinstance(listed, dict) or not listed:
            raise Mistake("expected the file of each tensor", "weight_map")
        for tensor, name in listed.items():
            if not isinstance(name, str) or not _FILE.fullmatch(name):
                raise Mistake(f"found {show(name)}, expected the plain name of a file", "weight_map", tensor)
        files = sorted(set(listed.values()))
        if len(files) > _MOST_FILES:
            raise Mistake(f"{len(files)} files, expected at most {_MOST_FILES}", "weight_map")
        return files

    return read_json(index, names)


def weight_paths(folder: Path) -> list[Path]:
    """The files with the tensors in a folder, of the container that is preferred; none where there is none."""
    for path in (folder / name for name in WEIGHT_FILES):
        if path.is_file():
            return [folder / name for name in files_of(path)] if path.suffix == ".json" else [path]
    return []


def _architectures(raw: dict[str, Any]) -> tuple[str, ...]:
    names: tuple[str, ...] = decode(tuple[str, ...], raw.get("architectures") or [], ("architectures",))
    return names


def _classes(raw: dict[str, Any]) -> tuple[str, ...]:
    given = raw.get("id2label")
    if given is None:  # transformers leaves out its own default
        return tuple(f"LABEL_{index}" for index in range(count_of(raw, "num_labels", 2)))
    if not isinstance(given, dict):
        raise Mistake(f"found {show(given)}, expected an object", "id2label")
    numbers = sorted(int(each) for each in given if re.fullmatch("[0-9]{1,6}", each))
    if not given or numbers != list(range(len(given))):
        raise Mistake(f"expected a name for each of 0 to {max(len(given) - 1, 0)}, by number", "id2label")
    names = {int(index): decode(str, name, ("id2label", index)) for index, name in given.items()}
    return tuple(names[index].strip() or f"class_{index}" for index in numbers)


def _colours(classes: tuple[str, ...]) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """Those of the published data set with these very classes, and what it ignores; else VOC's."""
    for dataset in load_manifest().datasets.values():
        if [name.strip().lower() for name in dataset.classes] == [name.lower() for name in classes]:
            return dataset.palette, dataset.ignore_index
    return voc_palette(len(classes)), 255
