"""Data sets: label rules, layouts on disk, and the check before training."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.drawn import draw_ade20k, draw_cityscapes, draw_folder, draw_voc, index_picture, palette_picture
from helpers.stored import write_png, write_tiff
from PIL import Image

from zoo_seg.data import Labels, check, open_data
from zoo_seg.data.check import check_data
from zoo_seg.data.findings import DataReport, SplitReport, ValueCount
from zoo_seg.data.labels import voc_palette
from zoo_seg.data.layouts import published_labels
from zoo_seg.errors import DataError, OptionError, ZooSegError
from zoo_seg.images.reading import read_image
from zoo_seg.manifest import load_manifest

DRAW = {"folder": draw_folder, "voc": draw_voc, "ade20k": draw_ade20k, "cityscapes": draw_cityscapes}
WHITE = (255, 255, 255)


VOC, ADE20K, CITYSCAPES = map(published_labels, ("voc", "ade20k", "cityscapes"))


def own(count: int, ignore_index: int = 255, **options: Any) -> Labels:
    return Labels(tuple(f"c{index}" for index in range(count)), voc_palette(count), ignore_index, **options)


def mask(*rows: list[int]) -> npt.NDArray[np.int64]:
    return np.array(rows)


def from_colours(*rows: list[tuple[int, int, int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, np.uint8))


# --- label rules --------------------------------------------------------------------------------

IDS = mask([0, 1, 20], [255, 3, 0])


@pytest.mark.parametrize(
    ("image", "labels", "expected"),
    [
        pytest.param(index_picture(IDS), VOC, IDS, id="index"),
        pytest.param(palette_picture(IDS), VOC, IDS, id="palette"),
        pytest.param(Image.fromarray(IDS.astype(np.uint16)), VOC, IDS, id="16 bits"),
        pytest.param(Image.fromarray(mask([0, 1]) > 0), own(2), mask([0, 1]), id="1 bit"),
        pytest.param(
            Image.merge("LA", [index_picture(IDS), index_picture(IDS * 0 + 200)]),
            own(21),
            IDS,
            id="grey with transparency",
        ),
        pytest.param(
            index_picture(mask([0, 299, 65535])), own(300, 65535), mask([0, 299, 65535]), id="more than 256 classes"
        ),
        pytest.param(index_picture(mask([0, 10, 11])), own(11, 11), mask([0, 10, 11]), id="ignored after the classes"),
        pytest.param(index_picture(mask([0, 1, 150])), ADE20K, mask([255, 0, 149]), id="ADE20K"),
        pytest.param(
            index_picture(mask([0, 6, 7, 8, 9, 16], [17, 18, 29, 30, 31, 33])),
            CITYSCAPES,
            mask([255, 255, 0, 1, 255, 255], [5, 255, 255, 255, 16, 18]),
            id="Cityscapes",
        ),
        pytest.param(
            from_colours([(0, 0, 0), (0, 128, 0)], [WHITE, (128, 0, 0)]),
            own(3, ignore_color=WHITE),
            mask([0, 2], [255, 1]),
            id="RGB",
        ),
        pytest.param(from_colours([(128, 128, 128), (0, 0, 128)]).convert("RGBA"), own(8), mask([7, 4]), id="RGBA"),
    ],
)
def test_masks_become_class_ids(
    image: Image.Image, labels: Labels, expected: npt.NDArray[np.int64], tmp_path: Path
) -> None:
    image.save(tmp_path / "mask.png")
    ids = labels.read(tmp_path / "mask.png")
    assert ids.dtype == (np.uint8 if labels.ignore_index <= 255 else np.uint16)
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_masks_of_any_depth_hold_the_ids_that_are_stored(bits: int, tmp_path: Path) -> None:
    ids = np.arange(70).reshape(7, 10) % min(2**bits, 21)
    palette = bytes(range(3)) * min(2**bits, 256)
    files = [write_png(tmp_path / "grey.png", ids, bits), write_tiff(tmp_path / "grey.tif", ids, bits)]
    files += [write_png(tmp_path / "palette.png", ids, bits, "palette", palette)] if bits <= 8 else []
    for path in files:
        np.testing.assert_array_equal(own(21).read(path), ids)


@pytest.mark.parametrize("largest", [2, 3, 20, 255, 300, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_holds_the_ids_that_are_stored(largest: int, plain: bool, tmp_path: Path) -> None:
    ids = np.arange(70).reshape(7, 10) % 3
    content = b" ".join(b"%d" % value for value in ids.ravel())
    if not plain:
        content = ids.astype(np.uint8 if largest <= 255 else ">u2").tobytes()
    (tmp_path / "mask.ppm").write_bytes(b"P%d 10 7 %d\n" % (2 if plain else 5, largest) + content)
    np.testing.assert_array_equal(own(3).read(tmp_path / "mask.ppm"), ids)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_image_is(orientation: int, tmp_path: Path) -> None:
    """A tool that writes the camera's orientation into both leaves them lying on each other."""
    ids = np.arange(6).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif"):
        index_picture(ids).save(tmp_path / name, exif=exif)
        np.testing.assert_array_equal(own(6).read(tmp_path / name), read_image(tmp_path / name)[:, :, 0])


def test_masks_whose_values_pillow_alters_are_refused(tmp_path: Path) -> None:
    ids = np.arange(6).reshape(2, 3)
    for bits in (2, 4, 8):
        with pytest.raises(DataError, match="whose 0 is white"):
            own(6).read(write_tiff(tmp_path / "a.tif", ids % 4, bits, white_is_zero=True))
    for path in (
        write_png(tmp_path / "a.png", np.stack([ids] * 2, 2), 16, "grey+alpha"),
        write_png(tmp_path / "b.png", np.stack([ids] * 3, 2), 16, "rgb"),
        write_tiff(tmp_path / "b.tif", np.stack([ids] * 3, 2), 16, planar=True),
    ):
        with pytest.raises(DataError, match="colours or alpha of 16 bits; expected class ids"):
            own(6).read(path)


def test_train_ids_of_cityscapes_are_told_by_their_name(tmp_path: Path) -> None:
    path = tmp_path / "aachen_000000_000019_gtFine_labelTrainIds.png"
    index_picture(mask([0, 18, 255])).save(path)
    assert CITYSCAPES.read(path).tolist() == [[0, 18, 255]]


def test_masks_larger_than_a_strip_are_read_whole(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 8, (1100, 1000))
    index_picture(ids).save(tmp_path / "index.png")
    Image.fromarray(np.array(voc_palette(8), np.uint8)[ids]).save(tmp_path / "colours.png")
    for name in ("index.png", "colours.png"):
        np.testing.assert_array_equal(own(8).read(tmp_path / name), ids)


def test_labels_go_to_worker_processes(tmp_path: Path) -> None:
    palette_picture(IDS).save(tmp_path / "mask.png")
    labels = VOC
    first = labels.read(tmp_path / "mask.png")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels)).read(tmp_path / "mask.png"), first)


def test_voc_palette_is_vocs() -> None:
    assert voc_palette(21) == load_manifest().datasets["voc"].palette
    assert voc_palette(256)[255] == (224, 224, 192)
    assert len(set(voc_palette(1000))) == 1000


GREY = palette_picture(mask([0, 1, 2, 3])).convert("L")
NOISE = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)


UNKNOWN = {
    "palette read as grey": (
        GREY, own(4), r"the values 38, 75, 113 are no classes; allowed are 0 to 3, and 255 \(ignored\).*into grey",
    ),
    "black and white": (
        index_picture(mask([0, 255])), own(2, 254), "the value 255 is no class.*store 1 in the place of 255",
    ),
    "counted from 1": (index_picture(mask([1, 2, 3])), own(3), "3 is no class.*start at 1: subtract 1"),
    "255 for ignored": (index_picture(mask([0, 1, 255])), own(3, 3), "set 'ignore_index' to 255"),
    "after the classes": (index_picture(mask([0, 1, 3])), own(3), "set 'ignore_index' to 3"),
    "photograph": (Image.fromarray(NOISE), own(3), r"the colours \(.*, \.\.\. are no classes.*image in the place"),
    "interpolated": (
        Image.fromarray(NOISE[..., 0]), own(3), r"the values .*, \.\.\. are no classes.*'nearest'",
    ),
    "ids saved as RGB": (
        index_picture(mask([0, 1, 2, 255])).convert("RGB"), own(3), r"\(1, 1, 1\).*one channel",
    ),
    "ignored colour": (
        from_colours([(0, 0, 0), WHITE]), own(3),
        r"the colour \(255, 255, 255\) is no class; allowed are the palette's colours.*'ignore_color' to \[255, 255,",
    ),
    "one colour for two classes": (from_colours([(0, 0, 0), (1, 2, 3)]), ADE20K, "share the colour"),
    "ADE20K shifted twice": (
        index_picture(mask([0, 149, 255])), ADE20K,
        r"255 is no class; allowed are 0 \(ignored\) and 1 to 150.*1 was subtracted already",
    ),
    "train ids as label ids": (
        index_picture(mask([0, 18, 255])), CITYSCAPES,
        r"255 is no class; allowed are 0 to 6, 9, 10, .*29, 30 \(ignored\) and 7, 8, .* 31 to 33.*_labelTrainIds",
    ),
    "fewer names than ids": (
        index_picture(mask([0, 3, 5])), own(3), "up to 5: if all are classes, 'classes' needs 6 names, it has 3",
    ),
    "one name too few": (index_picture(mask([0, 3])), own(3), "if it is a class, name it: 'classes' has 3 names"),
    "colours without a palette": (
        from_colours([(0, 128, 0), (128, 0, 0)], [(0, 0, 0), (0, 0, 0)]), own(3, has_palette=False),
        r"3 colours .*palette to dataset.json, in the order of the classes \(c0, c1, c2\)\. "
        r'The colours found are "palette": \[\[0, 0, 0\], \[0, 128, 0\], \[128, 0, 0\]\]$',
    ),
    "ignored colour without a palette": (
        from_colours([(0, 128, 0), (128, 0, 0), WHITE]), own(2, has_palette=False),
        r"3 colours .* more than the 2 classes: the one that is ignored is 'ignore_color'",
    ),
    "black without a palette": (
        from_colours([(0, 0, 0)]), own(3, has_palette=False), r"1 colour \(RGB\).*those of 2 more are needed",
    ),
    "ids saved as RGB without a palette": (
        index_picture(mask([0, 1, 2])).convert("RGB"), own(3, has_palette=False), "one channel",
    ),
    "floating point": (Image.fromarray(np.ones((2, 2), np.float32)), own(3), "mode F"),
}  # fmt: skip


@pytest.mark.parametrize(("image", "labels", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_strays_are_named_with_their_cause(image: Image.Image, labels: Labels, message: str, tmp_path: Path) -> None:
    path = tmp_path / ("mask.tif" if image.mode == "F" else "mask.png")
    image.save(path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{message}"):
        labels.read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mask.jpg", None, "JPEG can alter the values"),
        ("mask.png", None, "JPEG can alter the values"),  # what a file is counts, not what it is called
        ("mask.png", b"no image", "not an image"),
        ("mask.png", b"", "not an image"),
        ("none.png", None, "no such file"),
    ],
)
def test_files_that_are_no_masks_are_refused(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name.startswith("mask"):
        index_picture(IDS).save(path, format="JPEG")
    with pytest.raises(DataError, match=message):
        own(21).read(path)


def test_a_truncated_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    index_picture(NOISE[..., 0] % 3).save(path)
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: cannot be read"):
        own(3).read(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a",), voc_palette(1), 255), "classes: found 1, expected at least 2"),
        ((("a", "b"), voc_palette(3), 255), "palette: 3 colours for 2 classes"),
        ((("a", "b"), voc_palette(2), 1), "ignore_index: 1 is class 'b'; expected a value from 2 to 65535"),
        ((("a", "b"), voc_palette(2), -1), "ignore_index: -1 cannot be stored"),
        ((("a", "a"), voc_palette(2), 255), "'a' stands for two classes"),
    ],
)
def test_impossible_labels_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Labels(*arguments)


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", DRAW)
@pytest.mark.parametrize("given", ["auto", "its own"])
def test_each_layout_is_recognised_and_read(layout: str, given: str, tmp_path: Path) -> None:
    root = DRAW[layout](tmp_path / "data", train=3, val=2)
    data = open_data(root, "auto" if given == "auto" else layout)
    assert (data.root, data.layout) == (root, layout)
    assert data.splits == (("train", "trainval", "val") if layout == "voc" else ("train", "val"))
    if layout != "folder":
        record = load_manifest().datasets[layout]
        assert (data.classes, data.palette, data.ignore_index) == (record.classes, record.palette, 255)
    for split, count in (("train", 3), ("val", 2)):
        samples = data.samples(split)
        assert len(samples) == len({sample.name for sample in samples}) == count
        assert list(samples) == sorted(samples, key=lambda sample: sample.name)
        for sample in samples:
            ids = data.labels.read(sample.mask)
            with Image.open(sample.image) as picture:
                assert ids.shape == (picture.height, picture.width)
            assert set(np.unique(ids)) <= {*range(data.num_classes), 255}
            assert 255 in ids
            assert 0 in ids
    assert not check_data(data, progress=False).errors


@pytest.mark.parametrize(
    ("layout", "inner"), [("voc", "VOC2012"), ("voc", "VOCdevkit/VOC2012"), ("ade20k", "ADEChallengeData2016")]
)
def test_the_folder_around_a_data_set_does(layout: str, inner: str, tmp_path: Path) -> None:
    root = DRAW[layout](tmp_path / "down" / inner, train=1, val=1)
    data = open_data(tmp_path / "down")
    assert (data.root, data.layout) == (root, layout)


def test_masks_in_all_encodings_are_the_same(tmp_path: Path) -> None:
    kinds = ("index", "palette", "rgb")
    found = []
    for kind in kinds:
        data = open_data(draw_folder(tmp_path / kind, train=2, masks=kind))
        found.append([data.labels.read(sample.mask).tolist() for sample in data.samples("train")])
    assert found[0] == found[1] == found[2]


def test_pictures_of_several_suffixes_in_folders(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, train=3)
    for part, names in (("images", ["b/z.JPG", "b/y.jpeg", "a/z.jpg"]), ("masks", ["b/z.PNG", "b/y.png", "a/z.png"])):
        for old, name in zip(sorted((root / part / "train").iterdir()), names, strict=True):
            new = root / part / "train" / name
            new.parent.mkdir(exist_ok=True)
            old.rename(new)
    (root / "images" / "train" / "._hidden.jpg").write_bytes(b"left by a file manager")
    (root / "images" / "train" / "notes.txt").write_text("no image")
    data = open_data(root)
    assert [sample.name for sample in data.samples("train")] == ["a/z", "b/y", "b/z"]
    assert not check_data(data, progress=False).errors


def test_a_palette_and_a_title_are_optional(tmp_path: Path) -> None:
    root = draw_folder(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"], "title": "Mine", "licence": "CC0"}))
    data = open_data(root)
    assert data.palette == voc_palette(3)
    assert data.ignore_index == 255


def test_colours_mean_nothing_without_a_palette(tmp_path: Path) -> None:
    """A palette of one's own whose first colours are VOC's in another order: cats would be dogs, and all well."""
    root = draw_folder(tmp_path, masks="rgb")
    description = json.loads((root / "dataset.json").read_text())
    palette = description.pop("palette")
    (root / "dataset.json").write_text(json.dumps(description))
    report = check_data(open_data(root), progress=False)
    assert len(report.errors) == 2  # train and val
    message = report.errors[0]
    pasted = json.loads("{" + re.search(r'"palette": \[\[.*?\]\]', message)[0] + "}")["palette"]  # type: ignore[index]
    assert sorted(pasted) == sorted([*palette, [255, 255, 255]])
    assert "'ignore_color'" in message
    (root / "dataset.json").write_text(json.dumps({**description, "palette": palette}))
    assert not check_data(open_data(root), progress=False).errors


def test_images_of_12_bits_have_their_range_in_the_description(tmp_path: Path) -> None:
    root = draw_folder(tmp_path)
    for path in root.glob("images/*/*.jpg"):
        write_png(path.with_suffix(".png"), np.asarray(Image.open(path)).astype(int) * 4095 // 255, 16, "rgb")
        path.unlink()
    report = check_data(open_data(root), progress=False)
    assert re.search(r'cannot be used: values from .*"range": \[0, 4095\] in a dataset.json', report.errors[0])
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**description, "range": [0, 4095]}))
    data = open_data(root)
    assert data.range == (0, 4095)
    assert not check_data(data, progress=False).errors
    (root / "dataset.json").write_text(json.dumps({**description, "range": [4095, 0]}))
    with pytest.raises(DataError, match=r"range: range is \(4095.0, 0.0\); expected the values"):
        open_data(root)


def test_the_augmented_list_of_voc(tmp_path: Path) -> None:
    data = open_data(draw_voc(tmp_path, train=2, val=1, augmented=2))
    assert data.splits == ("train", "trainaug", "trainval", "val")
    assert [sample.mask.parent.name for sample in data.samples("trainaug")] == [
        "SegmentationClass", "SegmentationClass", "SegmentationClassAug", "SegmentationClassAug",
    ]  # fmt: skip
    assert {len(np.unique(data.labels.read(sample.mask))) > 1 for sample in data.samples("trainaug")} == {True}


def test_ade20k_takes_the_names_of_its_folders(tmp_path: Path) -> None:
    data = open_data(draw_ade20k(tmp_path))
    assert data.samples("training") == data.samples("train")
    assert data.samples("validation") == data.samples("val")


def test_cityscapes_prefers_what_is_distributed(tmp_path: Path) -> None:
    draw_cityscapes(tmp_path, train_ids=True)
    data = open_data(draw_cityscapes(tmp_path))
    (first, *_) = data.samples("train")
    assert first.name == "aachen/aachen_000000_000019"
    assert first.mask.name.endswith("_labelIds.png")
    ids = data.labels.read(first.mask)
    np.testing.assert_array_equal(ids, data.labels.read(Path(str(first.mask).replace("labelIds", "labelTrainIds"))))


def without(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def describe(**fields: Any) -> Callable[[Path], None]:
    return lambda root: (root / "dataset.json").write_text(json.dumps(fields, indent=1)) and None


@pytest.mark.parametrize(
    ("change", "where", "error", "message"),
    [
        (without(), "nowhere", OptionError, "no such folder"),
        (without(), "dataset.json", OptionError, "is a file; expected the folder"),
        (without(), "images", DataError, "is a part of the data set .*; name that folder"),
        (without(), "images/train", DataError, "is a part of the data set"),
        (without("dataset.json"), "", DataError, r"dataset.json is missing; .* for example"),
        (without("dataset.json", "masks"), "", DataError, r"no data set .*images/\); looked for folder: .*\n  or voc"),
        (without("masks/train", "masks/val"), "", DataError, "no split has both.*train has images, but no masks"),
        (describe(classes=["a"]), "", DataError, r"dataset.json:2: classes: found 1"),
        (describe(classes=["a", "b"], ignore_index=1), "", DataError, r"dataset.json:6: ignore_index: 1 is class 'b'"),
        (describe(classes=["a", "b"], palette=[[0, 0, 0]]), "", DataError, r"dataset.json:6: palette: 1 colours for 2"),
        (describe(classes=["a", "b"], palette=[[0, 0, 0], [0, 0, 256]]), "", DataError, ":6: palette: .*outside"),
        (describe(classes=["a", "b"], pallete=[]), "", DataError, r":6: pallete: unknown key; did you mean 'palette'"),
        (describe(palette=[]), "", DataError, "the key 'classes' is missing"),
    ],
)  # fmt: skip
def test_careless_folders_are_told_what_is_expected(
    change: Callable[[Path], None], where: str, error: type[ZooSegError], message: str, tmp_path: Path
) -> None:
    change(draw_folder(tmp_path / "data", train=1, val=1))
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        open_data(tmp_path / "data" / where)


def test_further_folders_do_not_confuse(tmp_path: Path) -> None:
    for name in ("annotations", "JPEGImages", "raw"):
        (draw_folder(tmp_path) / name).mkdir()
    assert open_data(tmp_path).layout == "folder"
    draw_ade20k(tmp_path)  # into the same images/
    assert open_data(tmp_path).layout == "folder"
    assert open_data(tmp_path, "ade20k").splits == ("train", "val")


def test_two_data_sets_in_one_folder_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("first", "second"):
        draw_folder(tmp_path / name, train=1, val=1)
    with pytest.raises(DataError, match=r"several data sets: .*first, .*second"):
        open_data(tmp_path)
    with pytest.raises(OptionError, match="layout is 'coco', expected auto, folder"):
        open_data(tmp_path, "coco")


def test_samples_of_an_incomplete_split_are_refused(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, train=3, val=1)
    (root / "masks" / "train" / "001.png").rename(root / "masks" / "train" / "001_mask.png")
    data = open_data(root)
    with pytest.raises(DataError, match=r"train: 1 of 3 images have no mask: images/train/001.jpg; .*001_mask.png"):
        data.samples("train")
    with pytest.raises(OptionError, match="no split 'test' with images and masks; it has train, val"):
        data.samples("test")
    without("images/val/000.jpg")(root)
    with pytest.raises(DataError, match="val: no image; expected images/train"):
        data.samples("val")


# --- the check ----------------------------------------------------------------------------------


def part(report: DataReport, name: str) -> SplitReport:
    return next(split for split in report.splits if split.name == name)


def test_the_histogram_counts_every_pixel(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, train=1, val=1, size=(4, 5))
    index_picture(np.repeat([[0, 0, 1, 1, 255]], 4, axis=0)).save(root / "masks" / "train" / "000.png")
    split = part(check_data(open_data(root), progress=False), "train")
    assert split.values == (
        ValueCount("0", "ground", 0, 8, 0.4, 1, ()),
        ValueCount("1", "thing 1", 1, 8, 0.4, 1, ()),
        ValueCount("255", "ignored", None, 4, 0.2, 1, ()),
    )
    assert (split.pictures, split.smallest, split.largest, split.absent) == (1, (4, 5), (4, 5), ("thing 2",))


def test_sizes_are_of_the_smallest_and_largest_picture(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, train=1, size=(40, 50))
    for name, size in (("small", (30, 20)), ("large", (90, 80))):
        Image.new("RGB", size).save(root / "images" / "train" / f"{name}.png")
        Image.new("L", size).save(root / "masks" / "train" / f"{name}.png")
    split = part(check_data(open_data(root), progress=False), "train")
    assert (split.smallest, split.largest) == ((20, 30), (80, 90))


def break_picture(root: Path) -> None:
    path = root / "images" / "train" / "001.jpg"
    path.write_bytes(path.read_bytes()[:400])


def break_mask(root: Path) -> None:
    (root / "masks" / "train" / "001.png").write_bytes(b"\x89PNG")


def shrink_mask(root: Path) -> None:
    Image.new("L", (32, 24)).save(root / "masks" / "train" / "001.png")


def turn_picture(root: Path) -> None:
    path = root / "images" / "train" / "001.jpg"
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def each_mask(change: Callable[[npt.NDArray[np.uint8]], Any], suffix: str = ".png") -> Callable[[Path], None]:
    def change_all(root: Path) -> None:
        for path in sorted(root.glob("masks/*/*.png")):
            stored = change(np.array(Image.open(path)))
            path.unlink()
            Image.fromarray(stored.astype(np.uint8)).save(path.with_suffix(suffix))

    return change_all


def copy_picture(to: str) -> Callable[[Path], None]:
    return lambda root: shutil.copy(root / "images" / "train" / "001.jpg", root / "images" / to) and None


FAULTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "broken image": (break_picture, [r"train: 1 file cannot be used: cannot be read .*: images/train/001.jpg"]),
    "broken mask": (break_mask, [r"train: 1 file cannot be used: not an image .*: masks/train/001.png"]),
    "size": (shrink_mask, [r"train: 1 mask of another size .*: images/train/001.jpg is 64x48 pixels, its mask 32x24"]),
    "orientation": (
        turn_picture,
        [r"train: 1 mask of another size .*001.jpg is 48x64 pixels, its mask 64x48 \(the EXIF"],
    ),
    "no mask": (without("masks/train/001.png"), [r"train: 1 of 4 images have no mask: images/train/001.jpg"]),
    "same name": (
        copy_picture("train/001.JPEG"),
        [r"train: images that share a mask: images/train/001.JPEG, images/train/001.jpg"],
    ),
    "no image": (without("images/val/000.jpg", "images/val/001.jpg"), [r"val: no image; expected images/"]),
    "no split": (without("masks/val"), [r"there is no split 'val'"]),
    "JPEG masks": (
        each_mask(lambda ids: ids, ".jpg"),
        [r"train: 4 files cannot be used: JPEG can alter .*: masks/train/000.jpg, ", r"val: 2 files "],
    ),
    "unknown labels": (
        each_mask(lambda ids: ids + np.uint8(2)),
        [r"train: the values 3, 4 are no classes; .*\. In 4 of 4 masks: masks/train/000.png, ", r"val: "],
    ),
    "all ignored": (
        each_mask(lambda ids: ids * 0 + 255),
        [r"train: every pixel of every mask is ignored", r"val: every pixel"],
    ),
    "one class": (
        each_mask(lambda ids: np.where(ids == 0, 0, 255)),
        [r"train: all pixels that are not ignored are 'ground': .*; if 255 stands for a class"],
    ),
}


@pytest.mark.parametrize(("change", "messages"), FAULTS.values(), ids=FAULTS)
def test_whatever_training_would_stumble_over(
    change: Callable[[Path], None], messages: list[str], tmp_path: Path
) -> None:
    change(draw_folder(tmp_path))
    report = check_data(open_data(tmp_path), progress=False)
    assert len(report.errors) == len(messages)
    for found, expected in zip(report.errors, messages, strict=True):
        assert re.match(expected, found), found
    with pytest.raises(DataError, match=re.escape(report.errors[0])):
        report.raise_if_bad()


def blank_one(root: Path) -> None:
    Image.new("L", (64, 48), 255).save(root / "masks" / "train" / "001.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("images/train/001.jpg"), "train: 1 mask without image, not used: masks/train/001.png"),
        (blank_one, "train: 1 of 4 masks are ignored in every pixel: masks/train/001.png"),
        (each_mask(lambda ids: np.where(ids == 2, 0, ids)), "train: 1 of 3 classes never appear: thing 2"),
        (copy_picture("val/001.jpg"), "train and val share 1 image: 001"),
        (lambda root: (root / "masks" / "more").mkdir(), "more has masks, but no images: left out"),
    ],
)  # fmt: skip
def test_oddities_are_no_hindrance(change: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    change(draw_folder(tmp_path))
    report = check_data(open_data(tmp_path), progress=False)
    assert message in report.warnings
    assert report.errors == ()
    report.raise_if_bad()


def test_a_sound_data_set_has_nothing_to_report(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    (tmp_path / "images" / "test").mkdir()
    report = check_data(open_data(tmp_path), progress=False)
    assert report.errors == report.warnings == ()


def test_lists_of_voc_overlap_as_they_should_and_no_more(tmp_path: Path) -> None:
    root = draw_voc(tmp_path, augmented=1)
    overlaps = [text for text in check_data(open_data(root), progress=False).warnings if "share" in text]
    assert overlaps == []
    lists = root / "ImageSets" / "Segmentation"
    names = (lists / "val.txt").read_text().split()
    (lists / "trainaug.txt").write_text("\n".join([names[0], "2007_nowhere"]))
    report = check_data(open_data(root), ["trainaug", "val"], progress=False)
    assert f"trainaug and val share 1 image: {names[0]}" in report.warnings
    assert report.errors == ("trainaug: 1 listed, but not there: JPEGImages/2007_nowhere.jpg",)


def test_unknown_labels_are_counted_with_the_first_files(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, train=8)
    for number in (2, 5):
        Image.new("L", (64, 48), 9).save(root / "masks" / "train" / f"00{number}.png")
    report = check_data(open_data(root), progress=False)
    unknown = part(report, "train").values[-1]
    assert (unknown.value, unknown.meaning, unknown.pixels, unknown.files) == ("9", "unknown label", 2 * 48 * 64, 2)
    assert unknown.first == ("masks/train/002.png", "masks/train/005.png")
    assert part(report, "val").values[-1].meaning == "ignored"


@pytest.mark.parametrize("workers", [1, 3])
def test_the_report_does_not_depend_on_the_workers(workers: int, tmp_path: Path) -> None:
    root = draw_folder(tmp_path, train=9)
    break_picture(root)
    shrink_mask(root)
    data = open_data(root)
    assert check_data(data, workers=workers, progress=False) == check_data(data, progress=False)
    with pytest.raises(OptionError, match="workers is 0"):
        check_data(data, workers=0)


# --- what is remembered -------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that the check reads."""
    pictures: list[Path] = []
    look = check._look

    def counting(sample: Any, data: Any) -> Any:
        pictures.append(sample.image)
        return look(sample, data)

    monkeypatch.setattr(check, "_look", counting)
    return pictures


def edit_mask(root: Path) -> None:
    path = root / "masks" / "train" / "001.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def rename_class(root: Path) -> None:
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text.replace("thing 1", "cat"))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda root: None, False),
        (edit_mask, True),
        (rename_class, True),
        (without("images/train/001.jpg", "masks/train/001.png"), True),
        (lambda root: (root / "masks" / "more").mkdir(), True),
    ],
)
def test_a_good_report_is_remembered(
    change: Callable[[Path], None], again: bool, tmp_path: Path, reads: list[Path]
) -> None:
    draw_folder(tmp_path)
    first = check_data(open_data(tmp_path), cache=True, progress=False)
    assert len(reads) == 6
    reads.clear()
    change(tmp_path)
    report = check_data(open_data(tmp_path), cache=True, progress=False)
    assert bool(reads) == again
    assert again or report == first
    assert check_data(open_data(tmp_path), ["val"], cache=True, progress=False).splits[0].name == "val"


def test_a_bad_report_and_a_damaged_one_are_not_remembered(tmp_path: Path, home: Path, reads: list[Path]) -> None:
    root = draw_folder(tmp_path)
    shrink_mask(root)
    assert check_data(open_data(root), cache=True, progress=False).errors
    assert not (home / "checked").exists()
    index_picture(np.zeros((48, 64))).save(root / "masks" / "train" / "001.png")
    check_data(open_data(root), cache=True, progress=False)
    (path,) = (home / "checked").iterdir()
    path.write_text("{")
    reads.clear()
    assert not check_data(open_data(root), cache=True, progress=False).errors
    assert len(reads) == 6
