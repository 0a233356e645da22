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
from zoo_seg.manifest import Architecture, Interpolation, Preprocess, Resize, load_manifest

PREPROCESSOR = "preprocessor_config.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where the tensors may be, in order of preference: whole, or in several files that an index lists."""
_MOST_FILES = 1000
_MOST = 1 << 16
"""Channels, or classes: no network has more, and a number is believed before there is a file."""
_FILE = re.compile(r"\w[\w.-]*\.(safetensors|bin)", re.ASCII)
_INTERPOLATIONS: Mapping[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""By their numbers in Pillow, which the files hold."""
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


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
    architecture, default = _READERS[name](raw)
    classes = _classes(raw)
    palette, ignore_index = _colours(classes)
    channels = _count(raw, "num_channels", 3)
    path = folder / PREPROCESSOR

    def preprocess(said: object) -> Preprocess:
        return _preprocess(said, default, channels)

    return ModelInfo(
        classes=classes,
        palette=palette,
        preprocess=read_json(path, preprocess) if path.is_file() else preprocess({}),
        protocol="transformers",
        in_chans=channels,
        ignore_index=ignore_index,
        architecture=architecture,
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


# --- the network --------------------------------------------------------------------------------


def _architectures(raw: dict[str, Any]) -> tuple[str, ...]:
    names: tuple[str, ...] = decode(tuple[str, ...], raw.get("architectures") or [], ("architectures",))
    return names


_MIT_SHAPE: Mapping[str, Any] = {
    "num_encoder_blocks": 4,
    "sr_ratios": [8, 4, 2, 1],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "hidden_act": "gelu",
    "reshape_last_stage": True,
}
"""What all Mix Transformers have, which are transformers' defaults too."""
_MIT = {
    ((2, 2, 2, 2), (32, 64, 160, 256)): "mit_b0",
    ((2, 2, 2, 2), (64, 128, 320, 512)): "mit_b1",
    ((3, 4, 6, 3), (64, 128, 320, 512)): "mit_b2",
    ((3, 4, 18, 3), (64, 128, 320, 512)): "mit_b3",
    ((3, 8, 27, 3), (64, 128, 320, 512)): "mit_b4",
    ((3, 6, 40, 3), (64, 128, 320, 512)): "mit_b5",
}
"""By depths and widths."""


def _segformer(raw: dict[str, Any]) -> tuple[Architecture, dict[str, Any]]:
    for name, expected in _MIT_SHAPE.items():
        if raw.get(name, expected) != expected:
            raise Mistake(f"found {show(raw[name])}, expected {show(expected)} as in MiT-B0 to B5", name)
    depths = _read(tuple[int, ...], raw, "depths", (2, 2, 2, 2))
    widths = _read(tuple[int, ...], raw, "hidden_sizes", (32, 64, 160, 256))
    backbone = _MIT.get((depths, widths))
    if backbone is None:
        known = ", ".join(f"{show(each)} with {show(of)} ({name})" for (each, of), name in _MIT.items())
        raise Mistake(f"found {show(depths)} with hidden_sizes {show(widths)}; supported are {known}", "depths")
    architecture = Architecture(
        "segformer",
        backbone,
        options={"channels": _count(raw, "decoder_hidden_size", 256), "projection": "linear"},
        backbone_options={"norm_eps": 1e-5},  # whatever `layer_norm_eps` says, which transformers does not read
    )
    return architecture, {**_IMAGENET, "resample": 2, "size": {"height": 512, "width": 512}}


_READERS: Mapping[str, Callable[[dict[str, Any]], tuple[Architecture, dict[str, Any]]]] = {
    "SegformerForSemanticSegmentation": _segformer,
}
"""By transformers' class: its architecture, and the defaults of its image processor."""


def _classes(raw: dict[str, Any]) -> tuple[str, ...]:
    given = raw.get("id2label")
    if given is None:  # transformers leaves out its own default
        return tuple(f"LABEL_{index}" for index in range(_count(raw, "num_labels", 2)))
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


# --- images -------------------------------------------------------------------------------------


def _preprocess(said: object, default: dict[str, Any], channels: int) -> Preprocess:
    if not isinstance(said, dict):
        raise Mistake(f"found {show(said)}, expected an object")
    kind = said.get("image_processor_type") or said.get("feature_extractor_type") or "SegformerImageProcessor"
    if kind not in ("SegformerImageProcessor", "SegformerImageProcessorFast", "SegformerFeatureExtractor"):
        raise Mistake(f"found {show(kind)}; supported is SegformerImageProcessor", "image_processor_type")
    raw = {**default, **{name: value for name, value in said.items() if value is not None}}
    scale = _read(float, raw, "rescale_factor", 1 / 255) if _read(bool, raw, "do_rescale", True) else 1.0
    if not 0 < scale < float("inf"):
        raise Mistake(f"found {scale}, expected a positive number", "rescale_factor")
    mean, std = (0.0,) * channels, (1.0,) * channels
    if _read(bool, raw, "do_normalize", True):
        mean, std = (_numbers(raw, name, channels) for name in ("image_mean", "image_std"))
    resample = _read(int, raw, "resample", 2)
    if resample not in _INTERPOLATIONS:
        raise Mistake(f"found {resample}, expected 2 (bilinear) or 3 (bicubic)", "resample")
    try:
        return Preprocess(
            mean=tuple(round(each / scale, 9) for each in mean),
            std=tuple(round(each / scale, 9) for each in std),
            resize=_resize(raw["size"]) if _read(bool, raw, "do_resize", True) else None,
            interpolation=_INTERPOLATIONS[resample],
        )
    except ValueError as error:
        raise Mistake(str(error)) from None


def _numbers(raw: dict[str, Any], name: str, channels: int) -> tuple[float, ...]:
    each = raw[name] if isinstance(raw[name], list) else [raw[name]] * channels
    numbers: tuple[float, ...] = decode(tuple[float, ...], each, (name,))
    if len(numbers) != channels:
        raise Mistake(f"found {len(numbers)} numbers, expected one for each of the {channels} channels", name)
    return numbers


def _resize(size: object) -> Resize:
    """One number stands for a square."""
    sides = {"height": size, "width": size} if isinstance(size, int) else size
    if not isinstance(sides, dict) or set(sides) != {"height", "width"}:
        raise Mistake(f"found {show(size)}, expected height and width", "size")
    height, width = (_read(int, sides, name, None, "size") for name in ("height", "width"))
    short, long = sorted((height, width))
    return Resize(short, long, keep_ratio=False, orientation="portrait" if height > width else "landscape")


def _count(raw: Mapping[str, Any], name: str, default: int) -> int:
    count: int = _read(int, raw, name, default)
    if not 0 < count <= _MOST:
        raise Mistake(f"found {count}, expected 1 to {_MOST}", name)
    return count


def _read(kind: Any, raw: Mapping[str, Any], name: str, default: Any, *path: str) -> Any:
    return decode(kind, raw[name], (*path, name)) if name in raw else default
