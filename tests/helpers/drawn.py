"""Small data sets of coloured shapes, drawn in each layout in which data sets are distributed.

A class is told by its colour, so that a network learns one in a few steps. Every mask has some ignored pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from zoo_seg.info import voc_palette
from zoo_seg.manifest import load_manifest

Size = tuple[int, int]
Ids = npt.NDArray[np.integer]
IGNORED = 65535
"""In what `scenes` draws."""


def picture(path: str | Path, seed: int = 0, *, width: int = 40, height: int = 30) -> Path:
    """An image file of coloured blocks; as BMP of the same size in bytes whatever it shows."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)[:height, :width]).save(path)
    return Path(path)


def scenes(count: int, size: Size, classes: int, seed: int) -> Iterator[tuple[Image.Image, Ids]]:
    """Images and their class ids (H, W): boxes and discs of the higher classes on class 0, a corner IGNORED."""
    height, width = size
    random = np.random.default_rng(seed)
    palette = np.array(voc_palette(classes + 1))[:classes] // 2 + 60
    for number in range(count):
        canvas = Image.new("I", (width, height), 0)
        draw = ImageDraw.Draw(canvas)
        for shape in range(4):
            index = 1 + (number * 4 + shape) % (classes - 1)
            x, y = int(random.integers(width * 3 // 4)), int(random.integers(height * 3 // 4))
            box = (x, y, x + width // 3, y + height // 3)
            (draw.rectangle if index % 2 else draw.ellipse)(box, fill=index)
        ids = np.array(canvas)
        noisy = palette[ids] + random.normal(0, 8, (height, width, 3))
        ids[: max(height // 16, 1), : max(width // 4, 1)] = IGNORED
        yield Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), ids


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def index_picture(values: Ids) -> Image.Image:
    """One channel of 8 bits, or of 16 where they are needed."""
    return Image.fromarray(values.astype(np.uint8 if values.max() <= 255 else np.uint16))


def palette_picture(values: Ids) -> Image.Image:
    """Indices with VOC's colours, as VOC's masks."""
    image = index_picture(values)
    image.putpalette([channel for colour in voc_palette(256) for channel in colour])
    return image


def draw_folder(
    root: Path,
    train: int = 4,
    val: int = 2,
    size: Size = (48, 64),
    classes: int = 3,
    *,
    ignore_index: int | None = None,
    masks: Literal["index", "palette", "rgb"] = "index",
    suffix: str = ".jpg",
    seed: int = 0,
) -> Path:
    """`images/{train,val}`, `masks/{train,val}` and `dataset.json`; an RGB mask is white where ignored."""
    ignore_index = ignore_index or (255 if classes <= 255 else 65535)
    colours = np.zeros((ignore_index + 1, 3), np.uint8)
    colours[:classes], colours[ignore_index] = voc_palette(classes), (255, 255, 255)
    for place, (split, count) in enumerate({"train": train, "val": val}.items()):
        for number, (picture, ids) in enumerate(scenes(count, size, classes, 2 * seed + place)):
            stored = np.where(ids == IGNORED, ignore_index, ids)
            mask = {"index": index_picture, "palette": palette_picture}.get(masks)
            save(picture, root / "images" / split / f"{number:03}{suffix}")
            save(
                mask(stored) if mask else Image.fromarray(colours[stored]), root / "masks" / split / f"{number:03}.png"
            )
    description = {
        "classes": ["ground", *(f"thing {index}" for index in range(1, classes))],
        "palette": voc_palette(classes),
        "ignore_index": ignore_index,
        **({"ignore_color": [255, 255, 255]} if masks == "rgb" else {}),
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    return root


def draw_bands(
    root: Path, bands: int, dtype: str, /, train: int = 4, val: int = 2, size: Size = (48, 64), **description: object
) -> Path:
    """A folder of TIFFs with so many bands of a type: whole numbers to 4000, or fractions to 1.

    A class is told by one band alone, the last, in which class 2 is brightest; the others are noise around 1/4.
    """
    import rasterio

    draw_folder(root, train, val, size)
    random = np.random.default_rng(1)
    for mask in sorted(root.glob("masks/*/*.png")):
        ids = np.asarray(Image.open(mask)).astype(float)
        values = random.normal(0.25, 0.05, (bands, *ids.shape))
        values[-1] = np.where(ids == 255, 0.0, 0.2 + 0.3 * ids) + random.normal(0, 0.02, ids.shape)
        stored = (values.clip(0, 1) * (1 if dtype.startswith("float") else 4000)).astype(dtype)
        image = root / "images" / mask.parent.name / f"{mask.stem}.tif"
        image.with_suffix(".jpg").unlink()
        height, width = ids.shape
        profile = {"driver": "GTiff", "count": bands, "dtype": dtype, "height": height, "width": width}
        with rasterio.open(image, "w", **profile) as file:
            file.write(stored)
    known = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    (root / "dataset.json").write_text(json.dumps({**known, **description}, indent=1), encoding="utf-8")
    return root


def draw_voc(
    root: Path, train: int = 4, val: int = 2, size: Size = (48, 64), *, augmented: int = 0, seed: int = 0
) -> Path:
    """As `VOC2012/`; `augmented` further images have index masks in `SegmentationClassAug`, listed in trainaug."""
    names: dict[str, list[str]] = {"train": [], "val": [], "aug": []}
    for place, (split, count) in enumerate({"train": train, "val": val, "aug": augmented}.items()):
        for number, (picture, ids) in enumerate(scenes(count, size, 21, 3 * seed + place)):
            name = f"2007_{place}{number:05}"
            names[split].append(name)
            stored = np.where(ids == IGNORED, 255, ids)
            save(picture, root / "JPEGImages" / f"{name}.jpg")
            if split == "aug":
                save(index_picture(stored), root / "SegmentationClassAug" / f"{name}.png")
            else:
                save(palette_picture(stored), root / "SegmentationClass" / f"{name}.png")
    lists = {"train": names["train"], "val": names["val"], "trainval": names["train"] + names["val"]}
    if augmented:
        lists["trainaug"] = names["train"] + names["aug"]
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for split, listed in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    return root


def draw_ade20k(root: Path, train: int = 4, val: int = 2, size: Size = (48, 64), *, seed: int = 0) -> Path:
    """As `ADEChallengeData2016/`."""
    for place, (split, short, count) in enumerate([("training", "train", train), ("validation", "val", val)]):
        for number, (picture, ids) in enumerate(scenes(count, size, 150, 2 * seed + place), start=1):
            name = f"ADE_{short}_{number:08}"
            save(picture, root / "images" / split / f"{name}.jpg")
            save(index_picture(np.where(ids == IGNORED, 0, ids + 1)), root / "annotations" / split / f"{name}.png")
    return root


_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def draw_cityscapes(
    root: Path, train: int = 4, val: int = 2, size: Size = (48, 96), *, train_ids: bool = False, seed: int = 0
) -> Path:
    """`leftImg8bit` and `gtFine`, with labelIds or, with `train_ids`, labelTrainIds."""
    classes = len(load_manifest().datasets["cityscapes"].classes)
    for place, (split, city, count) in enumerate([("train", "aachen", train), ("val", "lindau", val)]):
        for number, (picture, ids) in enumerate(scenes(count, size, classes, 2 * seed + place)):
            name, folder = f"{city}_{number:06}_000019", Path(split, city)
            ignored = ids == IGNORED
            known = np.where(ignored, 0, ids)
            stored = known if train_ids else np.take(_LABEL_IDS, known)
            stored = np.where(ignored, 255 if train_ids else 3, stored)
            kind = "labelTrainIds" if train_ids else "labelIds"
            save(picture, root / "leftImg8bit" / folder / f"{name}_leftImg8bit.png")
            save(index_picture(stored), root / "gtFine" / folder / f"{name}_gtFine_{kind}.png")
    return root
