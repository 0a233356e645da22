"""How images are prepared, read from a `preprocessor_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from zoo_seg.decode import Mistake, decode, show
from zoo_seg.manifest import Interpolation, Preprocess, Resize
from zoo_seg.transformers.reading import Reading, read

_INTERPOLATIONS: Mapping[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""By their numbers in Pillow, which the files hold."""


def read_preprocess(said: object, reading: Reading, channels: int) -> Preprocess:
    """What a file says, or the class's default where it is silent.

    Raises:
        Mistake: it is no description, or asks for what is not done here.
    """
    if not isinstance(said, dict):
        raise Mistake(f"found {show(said)}, expected an object")
    kind = said.get("image_processor_type") or said.get("feature_extractor_type") or reading.processor
    extractor = reading.processor.replace("ImageProcessor", "FeatureExtractor")
    if kind not in (reading.processor, f"{reading.processor}Fast", extractor):
        raise Mistake(f"found {show(kind)}; supported is {reading.processor}", "image_processor_type")
    raw = reading.adapt({**reading.defaults, **{name: value for name, value in said.items() if value is not None}})
    if read(bool, raw, "do_center_crop", False):
        raise Mistake("found true, expected false: what is cut off would get no class", "do_center_crop")
    scale = read(float, raw, "rescale_factor", 1 / 255) if read(bool, raw, "do_rescale", True) else 1.0
    if not 0 < scale < float("inf"):
        raise Mistake(f"found {scale}, expected a positive number", "rescale_factor")
    mean, std = (0.0,) * channels, (1.0,) * channels
    if read(bool, raw, "do_normalize", True):
        mean, std = (_numbers(raw, name, channels) for name in ("image_mean", "image_std"))
    if raw.get("pad_size") is not None:
        raise Mistake("images are not padded here; expected null", "pad_size")
    resample = read(int, raw, "resample", 2)
    if resample not in _INTERPOLATIONS:
        raise Mistake(f"found {resample}, expected 2 (bilinear) or 3 (bicubic)", "resample")
    try:
        return Preprocess(
            mean=tuple(round(each / scale, 9) for each in mean),
            std=tuple(round(each / scale, 9) for each in std),
            resize=_resize(raw, reading) if read(bool, raw, "do_resize", True) else None,
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


def _resize(raw: dict[str, Any], reading: Reading) -> Resize:
    """One number stands for a square, or for the shorter side where the class keeps the aspect ratio."""
    size, usual = raw["size"], reading.defaults["size"]
    by_edge = isinstance(usual, dict) and "shortest_edge" in usual
    longest = {"longest_edge": raw["max_size"]} if by_edge and "max_size" in raw else {}  # as version 4 wrote it
    sides: Any = {**usual, **longest} if by_edge and size is usual else size
    if isinstance(size, int):
        sides = {"shortest_edge": size, **longest} if by_edge else {"height": size, "width": size}
    divisor = read(int, raw, "size_divisor", 0) if "size_divisor" in reading.defaults else 0
    edges = ("shortest_edge", "longest_edge")
    if by_edge and isinstance(sides, dict) and set(sides) == set(edges):
        short, long = (read(int, sides, name, None, "size") for name in edges)
        return Resize(short, long, rounding="floor", divisor=max(divisor, 1))
    if not isinstance(sides, dict) or set(sides) != {"height", "width"}:
        expected = "height and width" + (", or shortest_edge and longest_edge" if by_edge else "")
        raise Mistake(f"found {show(size)}, expected {expected}", "size")
    height, width = (read(int, sides, name, None, "size") for name in ("height", "width"))
    short, long = sorted((height, width))
    orientation: Literal["landscape", "portrait"] = "portrait" if height > width else "landscape"
    return Resize(short, long, keep_ratio=False, divisor=max(divisor, 1), orientation=orientation)
