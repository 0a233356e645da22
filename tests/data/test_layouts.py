"""Published data sets as they are distributed: which files are found, and what their masks come to."""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.drawn import index_picture, save
from PIL import Image

from zoo_seg.cli.main import main
from zoo_seg.cli.network import dataset_of
from zoo_seg.data import open_data
from zoo_seg.data.check import check_data
from zoo_seg.data.layouts import LAYOUTS, published_labels
from zoo_seg.errors import DataError
from zoo_seg.manifest import load_manifest

DATASETS = load_manifest().datasets
FIXTURES = Path(__file__).parents[1] / "fixtures"


class Case(NamedTuple):
    dataset: str
    files: dict[str, list[tuple[str, str]]]
    """The image and the mask of each sample, by split."""
    stored: dict[int, int]
    """What masks store -> class ids."""
    stray: int
    """What no mask stores."""
    lists: str | None = None
    """The folder of the splits' lists."""


def coco(images: str, masks: str, ending: str = "") -> dict[str, list[tuple[str, str]]]:
    names = {"train": ("000000000009", "000000000025"), "val": ("000000000139",)}
    return {
        split: [
            (images.format(split) + f"/{name}.jpg", masks.format(split) + f"/{name}{ending}.png")
            for name in names[split]
        ]
        for split in names
    }


def patches(names: dict[str, list[str]], ending: str = "") -> dict[str, list[tuple[str, str]]]:
    return {
        split: [(f"img_dir/{split}/{name}.png", f"ann_dir/{split}/{name}{ending}.png") for name in listed]
        for split, listed in names.items()
    }


CONTEXT = {
    split: [(f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png") for name in names]
    for split, names in {"train": ["2008_000002", "2008_000003"], "val": ["2008_000009"]}.items()
}
CONTEXT_LISTS = "ImageSets/SegmentationContext"
MATLAB = {
    split: [(f"images/{name}.jpg", f"annotations/{name}.mat") for name in names]
    for split, names in {"train": ["COCO_train2014_000000000077", "COCO_train2014_000000000349"],
                         "test": ["COCO_train2014_000000000431"]}.items()
}  # fmt: skip
AFTER_ZERO = {0: 255, 1: 0, 2: 1}
CASES = {
    "COCO-Stuff 10k": Case(
        "coco_stuff_10k",
        {
            split: [
                (f"images/{folder}/COCO_train2014_{number:012}.jpg",
                 f"annotations/{folder}/COCO_train2014_{number:012}_labelTrainIds.png")
                for number in numbers
            ]
            for split, folder, numbers in (("train", "train2014", (77, 349)), ("val", "test2014", (431,)))
        },
        {**AFTER_ZERO, 171: 170},
        172,
    ),
    "COCO-Stuff 10k, MATLAB": Case(
        "coco_stuff_10k", MATLAB, {0: 255, 1: 0, 11: 10, 13: 11, 92: 80, 182: 170}, 12, "imageLists"  # 12: street sign
    ),
    "COCO-Stuff 10k, 182 classes": Case(
        "coco_stuff_10k_182", MATLAB, {0: 255, 1: 0, 11: 10, 13: 12, 92: 91, 182: 181}, 183, "imageLists"
    ),
    "COCO-Stuff 164k": Case(
        "coco_stuff_164k",
        coco("images/{}2017", "annotations/{}2017"),
        {255: 255, 0: 0, 10: 10, 12: 11, 24: 23, 26: 24, 89: 79, 91: 80, 181: 170},
        11,  # street sign: removed from COCO
    ),
    "COCO-Stuff 164k beside COCO": Case(
        "coco_stuff_164k", coco("{}2017", "stuffthingmaps/{}2017"), {255: 255, 0: 0, 91: 80, 181: 170}, 90
    ),
    "COCO-Stuff 164k, train ids": Case(
        "coco_stuff_164k",
        coco("images/{}2017", "annotations/{}2017", "_labelTrainIds"),
        {255: 255, 0: 0, 11: 11, 170: 170},
        171,
    ),
    "PASCAL Context 59": Case("pascal_context_59", CONTEXT, {**AFTER_ZERO, 59: 58}, 60, CONTEXT_LISTS),
    "PASCAL Context 60": Case("pascal_context_60", CONTEXT, {0: 0, 1: 1, 59: 59, 255: 255}, 60, CONTEXT_LISTS),
    "LoveDA": Case(
        "loveda",
        {
            split: [(f"{part}/images_png/{number}.png", f"{part}/masks_png/{number}.png") for part, number in listed]
            for split, listed in {
                "train": [("Train/Rural", 0), ("Train/Urban", 1366)], "val": [("Val/Urban", 3514)]
            }.items()
        },
        {**AFTER_ZERO, 7: 6},
        8,
    ),
    "LoveDA, one folder a split": Case(
        "loveda", patches({"train": ["0", "1366"], "val": ["3514"]}), {**AFTER_ZERO, 7: 6}, 8
    ),
    "Potsdam": Case(
        "potsdam",
        patches({"train": ["2_10_0_0_512_512", "2_10_0_512_512_1024"], "val": ["2_13_0_0_512_512"]}),
        {**AFTER_ZERO, 6: 5},
        7,
    ),
    "Vaihingen": Case(
        "vaihingen",
        patches({"train": ["area1_0_0_512_512", "area1_0_512_512_1024"], "val": ["area2_0_0_512_512"]}),
        {**AFTER_ZERO, 6: 5},
        7,
    ),
    "iSAID": Case(
        "isaid",
        patches({"train": ["P0002_0_896_0_896", "P0002_0_896_512_1408"], "val": ["P0003_0_896_0_896"]},
                "_instance_color_RGB"),
        {0: 0, 1: 1, 15: 15, 255: 255},
        16,
    ),
    "Mapillary": Case(
        "mapillary",
        {
            split: [(f"{folder}/images/{name}.jpg", f"{folder}/v1.2/labels/{name}.png") for name in names]
            for split, folder, names in (
                ("train", "training", ["__CRyFzoDOXn6unQ6a3DnQ", "-1J0IcWUY6X2GRIYQHx1hw"]),
                ("val", "validation", ["03G8WHFnNfiJR-457i0MWQ"]),
            )
        },
        {0: 0, 64: 64, 65: 65},
        66,
    ),
    "LIP": Case(
        "lip",
        {
            split: [(f"{split}_images/{name}.jpg", f"{split}_segmentations/{name}.png") for name in names]
            for split, names in {"train": ["1000_1234574", "77_471474"], "val": ["100034_483681"]}.items()
        },
        {0: 0, 1: 1, 19: 19, 255: 255},
        20,
    ),
}  # fmt: skip


def lay_out(root: Path, case: Case) -> np.ndarray:
    """Write the files of a case, each mask with all its values, and return what they store."""
    stored = np.resize(np.array(list(case.stored)), (12, 16))
    random = np.random.default_rng(0)
    for split, samples in case.files.items():
        for picture, mask in samples:
            save(Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)), root / picture)
            if mask.endswith(".mat"):
                (root / mask).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(FIXTURES / f"label_map_{'compressed' if split == 'train' else 'plain'}.mat", root / mask)
            else:
                save(index_picture(stored), root / mask)
        if case.lists:
            lists = root / case.lists
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("".join(f"{Path(picture).stem}\n" for picture, _ in samples))
    return stored


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_layout_is_recognised_and_its_masks_are_class_ids(case: Case, tmp_path: Path) -> None:
    stored = lay_out(tmp_path, case)
    data = open_data(tmp_path, dataset=case.dataset)
    record = DATASETS[case.dataset]
    assert (data.layout, data.splits, data.classes) == (case.dataset, ("train", "val"), record.classes)
    for split, files in case.files.items():
        samples = data.samples({"test": "val"}.get(split, split))
        pairs = [(sample.image, sample.mask) for sample in samples]
        assert sorted(pairs) == sorted((tmp_path / picture, tmp_path / mask) for picture, mask in files)
        for sample in samples:
            expected = np.vectorize(case.stored.__getitem__)(stored)
            np.testing.assert_array_equal(data.labels.read(sample.mask), expected)
    assert set(case.stored.values()) >= {0, data.num_classes - 1, data.ignore_index}
    assert check_data(data, progress=False).errors == ()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_that_no_mask_stores_are_refused(case: Case, tmp_path: Path) -> None:
    lay_out(tmp_path, case)
    data = open_data(tmp_path, case.dataset)
    sample = data.samples("val")[0]
    if sample.mask.suffix == ".mat":
        matlab = sample.mask.read_bytes()
        sample.mask.write_bytes(matlab.replace(bytes([182]), bytes([case.stray])))
    else:
        save(index_picture(np.full((12, 16), case.stray)), sample.mask)
    with pytest.raises(DataError, match=f"the value {case.stray} is no class; allowed are "):
        data.labels.read(sample.mask)
    (error,) = check_data(data, progress=False).errors
    assert error.startswith(f"val: the value {case.stray} is no class; allowed are ")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layout_without_masks_is_told_where_they_lie(case: Case, tmp_path: Path) -> None:
    lay_out(tmp_path, case)
    for _, mask in itertools.chain(*case.files.values()):
        (tmp_path / mask).rename((tmp_path / mask).with_suffix(".txt"))
    data = open_data(tmp_path, case.dataset)
    with pytest.raises(DataError, match=r"train: 2 of 2 images have no mask: .*; expected \S+ with \S+NAME"):
        data.samples("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:300], "cannot be read"),
        (lambda content: content[:140] + b"\0" * 8 + content[148:], "cannot be read"),
        (lambda content: b"MATLAB 7.3 MAT-file" + content[19:], "not a MATLAB file of level 5"),
        (lambda content: content[:128], "holds no variable 'S'"),
    ],
)
def test_damaged_matlab_files_are_refused(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    """`label_map_*.mat` were written by `scipy.io.savemat`."""
    path = tmp_path / "a.mat"
    path.write_bytes(change((FIXTURES / "label_map_compressed.mat").read_bytes()))
    with pytest.raises(DataError, match=f"{path}: {message}"):
        published_labels("coco_stuff_10k").read(path)


def test_colour_masks_of_aerial_images(tmp_path: Path) -> None:
    labels = published_labels("potsdam")
    colours = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0)]
    Image.fromarray(np.array([colours], np.uint8)).save(tmp_path / "top_potsdam_2_10_label_noBoundary.tif")
    ids = labels.read(tmp_path / "top_potsdam_2_10_label_noBoundary.tif")
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5, 255]]


def test_both_numberings_of_coco_stuff_are_the_same(tmp_path: Path) -> None:
    """The converter writes its masks beside the distributed ones."""
    lay_out(tmp_path, CASES["COCO-Stuff 164k"])
    data = open_data(tmp_path)
    before = data.samples("train")
    for sample in before:
        converted = sample.mask.with_name(f"{sample.mask.stem}_labelTrainIds.png")
        index_picture(data.labels.read(sample.mask)).save(converted)
        np.testing.assert_array_equal(data.labels.read(converted), data.labels.read(sample.mask))
    assert open_data(tmp_path).samples("train") == before
    assert check_data(data, progress=False).errors == ()


def test_pascal_context_has_two_numbers_of_classes_and_vocs_folder(tmp_path: Path) -> None:
    lay_out(tmp_path, CASES["PASCAL Context 59"])
    with pytest.raises(
        DataError, match="can be read as pascal_context_59 or pascal_context_60: name one as the layout"
    ):
        open_data(tmp_path)
    assert open_data(tmp_path, "pascal_context_59").num_classes == 59
    assert open_data(tmp_path, dataset="pascal_context_60").num_classes == 60
    (tmp_path / "ImageSets" / "Segmentation").mkdir()
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("2008_000002\n")
    save(index_picture(np.zeros((12, 16))), tmp_path / "SegmentationClass" / "2008_000002.png")
    with pytest.raises(DataError, match="voc or pascal_context_59 or pascal_context_60"):
        open_data(tmp_path)
    assert open_data(tmp_path, "voc").num_classes == 21


@pytest.mark.parametrize(
    ("model", "weights", "dataset"),
    [
        (None, None, "camvid"),
        ("pspnet_resnet50_os8", "voc", "voc"),
        (None, "pspnet_resnet50_os8.ade20k", "ade20k"),
        ("pspnet_resnet50_os8", "mine.pth", None),
    ],
)
def test_evaluate_prefers_the_data_set_of_the_weights(
    model: str | None, weights: str | None, dataset: str | None
) -> None:
    assert dataset_of(argparse.Namespace(model=model, weights=weights)) == dataset


def test_check_data_reads_a_published_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path, CASES["LoveDA"])
    assert main(["check-data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "layout loveda, 7 classes" in out
    assert "agricultural" in out


# --- the manifest's data sets ---------------------------------------------------------------------

SHARED_COLOURS = {
    "ade20k": 1,
    "coco_stuff_10k": 9,
    "coco_stuff_164k": 9,
    "pascal_context_59": 1,
    "pascal_context_60": 1,
}
"""Colours that the published palettes give to several classes."""


@pytest.mark.parametrize("name", DATASETS)
def test_classes_colours_and_labels_of_a_published_data_set(name: str) -> None:
    record = DATASETS[name]
    count = len(record.classes)
    assert len(record.palette) == count == len(set(record.classes))
    assert count - len(set(record.palette)) == SHARED_COLOURS.get(name, 0)
    assert count <= record.ignore_index <= 255
    if record.label_ids is not None:
        assert sorted(record.label_ids) == list(record.label_ids)
        assert record.ignored_ids
        assert max(*record.label_ids, *record.ignored_ids) <= 255
    if name in LAYOUTS:
        assert published_labels(name).classes == record.classes  # which refuses a palette that cannot be
