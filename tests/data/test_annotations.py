"""Labels that are shapes: COCO's JSON, of masks encoded by pycocotools, and labelme's."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.drawn import IGNORED, scenes
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from zoo_seg.cli import main
from zoo_seg.data import SegmentationData, open_data
from zoo_seg.data.check import check_data
from zoo_seg.errors import DataError, MissingExtraError, OptionError, ZooSegError
from zoo_seg.training.samples import TrainingSamples

HEIGHT, WIDTH = 24, 32
Array = npt.NDArray[Any]


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.as_posix())).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def write_coco(path: Path, annotations: list[dict[str, Any]], images: int = 1, **others: Any) -> Path:
    """A file with the categories cat (5) and dog (9), and images beside it that do not exist yet."""
    document = {
        "info": {"description": "größte Tiere", "nested": [{"images": [1]}]},
        "images": [
            {"id": 10 + index, "file_name": f"ä{index}.png", "height": HEIGHT, "width": WIDTH}
            for index in range(images)
        ],
        "annotations": [
            {"id": 100 + index, "image_id": 10, "iscrowd": 0, **each} for index, each in enumerate(annotations)
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
        **others,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    for index in range(images):
        save_image(path.parent.parent / "images" / f"ä{index}.png")
    return path


def labels_of(data: SegmentationData, split: str = "train") -> list[list[int]]:
    return data.read_labels(data.samples(split)[0]).tolist()  # type: ignore[no-any-return]


def run_lengths(mask: Array) -> dict[str, Any]:
    """COCO's uncompressed form: runs of 0 and 1 in turn, column by column."""
    pixels = mask.ravel(order="F")
    borders = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [2]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], borders])).tolist()}


def compressed(mask: Array) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


@pytest.mark.parametrize("encode", [run_lengths, compressed], ids=["run lengths", "compressed"])
def test_coco_run_lengths_are_the_masks_they_were_made_from(
    encode: Callable[[Array], dict[str, Any]], tmp_path: Path
) -> None:
    """A crowd is its category; the corner that no annotation covers is background."""
    ((image, ids),) = scenes(1, (HEIGHT, WIDTH), 3, seed=4)
    write_coco(
        tmp_path / "annotations" / "instances_train.json",
        [
            {"category_id": {1: 5, 2: 9}[value], "segmentation": encode(ids == value), "iscrowd": value - 1}
            for value in (1, 2)
        ],
    )
    image.save(tmp_path / "images" / "ä0.png")
    data = open_data(tmp_path)
    assert (data.layout, data.classes, data.splits) == ("coco_json", ("background", "cat", "dog"), ("train",))
    assert [sample.name for sample in data.samples("train")] == ["ä0"]
    assert labels_of(data) == np.where(ids == IGNORED, 0, ids).tolist()
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(data)).read_labels(pickle.loads(pickle.dumps(data.samples("train")[0]))),
        labels_of(data),
    )


def test_coco_polygons_are_drawn_as_pycocotools_draws_them(tmp_path: Path) -> None:
    parts = [[2.5, 3.2, 20.1, 4.0, 11.7, 19.9], box(24, 2, 40, 8)]  # the second one reaches beyond the image
    write_coco(tmp_path / "annotations" / "train.json", [{"category_id": 9, "segmentation": parts}])
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, HEIGHT, WIDTH))) * 2
    assert expected.any()
    assert labels_of(open_data(tmp_path)) == expected.tolist()


@pytest.mark.parametrize(("overlaps", "on_top"), [(None, 1), ("area", 1), ("order", 2)])
def test_overlaps_are_resolved_by_area_unless_told_otherwise(
    overlaps: str | None, on_top: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(
        tmp_path / "annotations" / "train.json",
        [
            {"category_id": 5, "segmentation": [box(4, 4, 8, 8)]},
            {"category_id": 9, "segmentation": [box(0, 0, 16, 16)]},
        ],
    )
    if overlaps:
        (tmp_path / "dataset.json").write_text(json.dumps({"overlaps": overlaps}))
    labels = labels_of(open_data(tmp_path))
    assert (labels[5][5], labels[1][1], labels[20][20]) == (on_top, 2, 0)
    main(["check-data", str(tmp_path), "--split", "train"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"where shapes overlap, the {'smaller' if on_top == 1 else 'later'} one is on top" in out
    assert "pixels without a shape are 'background'" in out


def test_a_description_says_what_annotations_mean(tmp_path: Path) -> None:
    write_coco(
        tmp_path / "annotations" / "train.json",
        [
            {"category_id": 5, "segmentation": [box(0, 0, 4, 4)]},
            {"category_id": 9, "segmentation": [box(8, 8, 12, 12)]},
        ],
    )
    describe = tmp_path / "dataset.json"
    describe.write_text('{"classes": ["ground", "animal"], "map": {"cat": "animal", "dog": "ignored"}}')
    labels = labels_of(open_data(tmp_path))
    assert (labels[1][1], labels[9][9], labels[20][20]) == (1, 255, 255)
    describe.write_text('{"map": {"dog": "cat"}, "unlabelled": "ignored"}')
    data = open_data(tmp_path)
    assert data.classes == ("background", "cat")
    assert (labels_of(data)[9][9], labels_of(data)[20][20]) == (1, 255)
    describe.write_text('{"classes": ["cat", "tree"], "unlabelled": "grass"}')
    with pytest.raises(DataError, match=r"dataset.json: unlabelled: 'grass' is no class; expected one of cat, tree"):
        open_data(tmp_path)
    describe.write_text('{"classes": ["cat", "tree"], "unlabelled": "tree"}')
    with pytest.raises(DataError, match=r"train.json: annotation 101 of ä0.png: 'dog' is no class; .*\"map\""):
        labels_of(open_data(tmp_path))


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["annotations/instances_train2017.json", "annotations/instances_val2017.json"], ("train", "val")),
        (["train/_annotations.coco.json", "valid/_annotations.coco.json"], ("train", "val")),
        (["annotations/instances_default.json"], ("all",)),
        (["labels.json"], ("all",)),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_splits_and_images_are_found(files: list[str], splits: tuple[str, ...], beside: bool, tmp_path: Path) -> None:
    for number, file in enumerate(files):
        path = write_coco(tmp_path / file, [{"category_id": 5, "segmentation": [box(0, 0, 9, 9)]}], images=2)
        found = path.parent.parent / "images"
        folder = path.parent if beside else tmp_path / "images" / splits[number]
        for image in sorted(found.glob("*.png")):
            folder.mkdir(parents=True, exist_ok=True)
            image.rename(folder / image.name)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    data = open_data(tmp_path)
    assert data.splits == splits
    assert [len(data.samples(split)) for split in splits] == [2] * len(splits)
    assert {bool(np.any(data.read_labels(sample))) for sample in data.samples(splits[0])} == {True, False}


BAD_COCO: dict[str, tuple[dict[str, Any], str]] = {
    "unknown category": ({"category_id": 7}, r"annotation 100: category_id 7 is unknown; the file has 5, 9"),
    "unknown image": ({"image_id": 11}, r"has the image_id 11, which no image has"),
    "no category": ({"category_id": "cat"}, r"\(id 100\) has 'category_id' 'cat'; expected a whole number"),
    "outside": (
        {"segmentation": [box(100, 0, 110, 9)]},
        r"annotation 100 of ä0.png: the polygon from \(100, 0\) lies outside the image of 32x24",
    ),
    "far outside": ({"segmentation": [[0, 0, 1e12, 0, 9, 9]]}, "a corner far outside"),
    "odd": ({"segmentation": [[0, 0, 9, 0, 9]]}, "annotation 100 of ä0.png: a polygon that is no list of pairs"),
    "no polygon": ({"segmentation": [["a", 0, 9, 0, 9, 9]]}, "annotation 100 of ä0.png: "),
    "box alone": ({"segmentation": []}, "no 'segmentation'"),
    "another size": ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"run lengths of \[9, 9\]"),
    "too few": ({"segmentation": {"size": [24, 32], "counts": [3, 5]}}, "run lengths of 8 pixels for an image of 768"),
    "too many": ({"segmentation": {"size": [24, 32], "counts": "z" * 40}}, "annotation 100 of ä0.png: "),
    "no counts": ({"segmentation": {"size": [24, 32]}}, "annotation 100 of ä0.png: 'counts'"),
}


@pytest.mark.parametrize(("annotation", "message"), BAD_COCO.values(), ids=BAD_COCO)
def test_bad_annotations_are_named(
    annotation: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(
        tmp_path / "annotations" / "train.json",
        [{"category_id": 5, "segmentation": [box(0, 0, 9, 9)], **annotation}],
    )
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        labels_of(open_data(tmp_path))
    assert main(["check-data", str(tmp_path)]) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert re.search(message, said), said
    assert "unexpected" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], r":\d+:\d+: not valid JSON: "),
        (lambda text: text.replace('"iscrowd": 0,', '"iscrowd": 0', 1), r":25:4: not valid JSON: Expecting ','"),
        (lambda text: text.replace('"annotations": [', '"annotations": {"a": ['), r":\d+:\d+: not valid JSON"),
        (lambda text: text.replace("]", "]]", 1), r":\d+:\d+: not valid JSON"),
        (lambda text: text.replace('"iscrowd": 0', '"iscrowd": NaN', 1), "NaN is no number"),
        (lambda text: text.replace("ä0.png", "../../etc/passwd"), r"image 10 \(../../etc/passwd\) lies outside"),
        (lambda text: text.replace('"height": 24', '"height": 99999999'), "image 10 .* is 32x99999999 pixels"),
        (lambda text: text.replace('"height": 24', '"height": 0'), "image 10 .* is 32x0 pixels"),
        (lambda text: text.replace('"id": 9', '"id": 5'), "the category id 5 is 'dog' and 'cat'"),
        (lambda text: text.replace('"image_id": 10', '"image_id": 0'), "has the image_id 0, which no image has"),
    ],
)
def test_broken_json_is_told_with_line_and_column(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "annotations" / "train.json", [{"category_id": 5, "segmentation": [box(0, 0, 9, 9)]}])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match=f"^{path}.*{message}"):
        labels_of(open_data(tmp_path))


def test_an_image_of_another_size_is_told(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations" / "train.json", [{"category_id": 5, "segmentation": [box(0, 0, 9, 9)]}])
    save_image(tmp_path / "images" / "ä0.png", (20, 10))
    report = check_data(open_data(tmp_path), ["train"], progress=False)
    assert report.errors == (
        "train: 1 mask of another size than the image: images/ä0.png is 20x10 pixels, its mask 32x24",
    )
    samples = TrainingSamples(open_data(tmp_path), "train", lambda *pair: pair)
    with pytest.raises(DataError, match=r"train.json \(ä0\) is 24x32 and its image 10x20"):
        samples[0, 0]
    (tmp_path / "images" / "ä0.png").unlink()
    report = check_data(open_data(tmp_path), ["train"], progress=False)
    assert report.errors == ("train: 1 listed, but not there: images/ä0.png",)


def test_without_pycocotools_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "annotations" / "train.json", [{"category_id": 5, "segmentation": [box(0, 0, 9, 9)]}])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'zoo_seg\[annotations\]'"):
        labels_of(open_data(tmp_path))


def test_a_file_that_changes_meanwhile_is_not_read_at_the_wrong_place(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "annotations" / "train.json", [{"category_id": 5, "segmentation": [box(0, 0, 9, 9)]}])
    data = open_data(tmp_path)
    (sample,) = data.samples("train")
    path.write_text(" " + path.read_text())
    with pytest.raises(DataError, match="has changed since it was opened"):
        data.read_labels(sample)


# --- labelme ------------------------------------------------------------------------------------


def shape(label: str, points: list[list[float]], kind: str = "polygon", **others: Any) -> dict[str, Any]:
    """As labelme 5 writes it."""
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **others}


def write_labelme(path: Path, shapes: list[dict[str, Any]], **others: Any) -> Path:
    save_image(path.with_suffix(".jpg"))
    document = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": path.with_suffix(".jpg").name,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **others,
    }
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return path


def stamp(mask: Array) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def by_labelme(kind: str, points: list[list[float]]) -> Array:
    """labelme's `shape_to_mask` (labelme/utils/shape.py, 5.5)."""
    mask = Image.new("L", (WIDTH, HEIGHT))
    draw, xy = ImageDraw.Draw(mask), [(x, y) for x, y in points]
    if kind == "circle":
        (cx, cy), (px, py) = xy
        d = ((cx - px) ** 2 + (cy - py) ** 2) ** 0.5
        draw.ellipse([cx - d, cy - d, cx + d, cy + d], outline=1, fill=1)
    elif kind == "rectangle":
        draw.rectangle(xy, outline=1, fill=1)
    elif kind in ("line", "linestrip"):
        draw.line(xy=xy, fill=1, width=10)
    elif kind == "point":
        draw.ellipse([xy[0][0] - 5, xy[0][1] - 5, xy[0][0] + 5, xy[0][1] + 5], outline=1, fill=1)
    else:
        draw.polygon(xy=xy, outline=1, fill=1)
    return np.array(mask)


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", [[2.4, 3.1], [28.8, 5.0], [14.2, 40.0]]),
        ("rectangle", [[3.5, 4.5], [20.2, 10.9]]),
        ("circle", [[10.0, 10.0], [14.5, 12.0]]),
        ("line", [[0.0, 0.0], [20.0, 15.0]]),
        ("linestrip", [[0.0, 0.0], [20.0, 5.0], [25.0, 20.0]]),
        ("point", [[12.0, 9.0]]),
    ],
)
def test_shapes_are_drawn_as_labelme_draws_them(kind: str, points: list[list[float]], tmp_path: Path) -> None:
    write_labelme(tmp_path / "a.json", [shape("cat", points, kind)])
    data = open_data(tmp_path)
    assert (data.layout, data.classes, data.splits) == ("labelme", ("background", "cat"), ("all",))
    expected = by_labelme(kind, points)
    assert 0 < expected.sum() < expected.size
    assert labels_of(data, "all") == expected.tolist()


def test_a_mask_in_a_labelme_file(tmp_path: Path) -> None:
    mask = np.arange(12).reshape(3, 4) % 3 == 0
    write_labelme(tmp_path / "a.json", [shape("cat", [[5, 6], [8, 8]], "mask", mask=stamp(mask))])
    labels = np.array(labels_of(open_data(tmp_path), "all"))
    assert labels[6:9, 5:9].tolist() == mask.astype(int).tolist()
    assert labels.sum() == mask.sum()


def test_shapes_of_one_group_are_one_thing(tmp_path: Path) -> None:
    """A dog in two parts, together larger than the cat that overlaps one of them."""
    left, right = [[0, 0], [10, 10]], [[14, 0], [24, 10]]
    cat = shape("cat", [[5, 0], [17, 10]], "rectangle")
    dogs = [shape("dog", part, "rectangle", group_id=3) for part in (left, right)]
    path = write_labelme(tmp_path / "a.json", [cat, *dogs])
    assert labels_of(open_data(tmp_path), "all")[5][6] == 1
    for each in dogs:
        each["group_id"] = None
    write_labelme(path, [cat, *dogs])
    assert labels_of(open_data(tmp_path), "all")[5][6] == 2


def test_labels_are_sorted_or_those_of_labels_txt(tmp_path: Path) -> None:
    write_labelme(tmp_path / "train" / "a.json", [shape("dog", [[0, 0], [4, 4]], "rectangle")])
    write_labelme(
        tmp_path / "val" / "b.json",
        [shape("cat", [[0, 0], [4, 4]], "rectangle"), shape("__ignore__", [[9, 9], [12, 12]], "rectangle")],
    )
    data = open_data(tmp_path)
    assert (data.splits, data.classes) == (("train", "val"), ("background", "cat", "dog"))
    labels = labels_of(data, "val")
    assert (labels[2][2], labels[10][10], labels[20][20]) == (1, 255, 0)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    data = open_data(tmp_path)
    assert data.classes == ("_background_", "dog", "cat")
    assert labels_of(data, "val")[2][2] == 2
    (tmp_path / "labels.txt").write_text("dog\n")
    with pytest.raises(
        DataError, match=r"b.json: shape 1 \('cat'\): 'cat' is no class; expected one of background, dog"
    ):
        labels_of(open_data(tmp_path), "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"shapes": [\n  {"label": }\n]}', r"a.json:2:13: not valid JSON: Expecting value"),
        ('{"shapes": [{"label": "a"}]}', r"a.json: shape 1: expected a 'label' and 'points'"),
        ('{"shapes": [{"label": "a", "points": [[1, 2]]}]}', r"a.json: shape 1 \('a'\): a polygon of 1 points"),
        ('{"shapes": [{"label": "a", "points": [[1, 2]], "shape_type": "blob"}]}', "of the type 'blob'"),
        (
            '{"shapes": [{"label": "a", "points": [[100, 0], [110, 0], [110, 9]]}]}',
            r"a.json: shape 1 \('a'\) lies outside the image of 32x24 pixels",
        ),
        ('{"shapes": [{"label": "a", "points": [[0, 0], [4, 4]], "shape_type": "mask"}]}', "its mask cannot be read"),
        (
            '{"shapes": [{"label": "a", "points": [[0, 0], [1e308, 4]], "shape_type": "circle"}]}',
            r"a.json: shape 1 \('a'\) has a corner far outside the image",
        ),
        ('{"shapes": [], "imageHeight": "a", "imageWidth": 3}', "imageWidth and imageHeight are"),
    ],
)
def test_bad_labelme_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    write_labelme(tmp_path / "a.json", []).write_text(content)
    (tmp_path / "labels.txt").write_text("a\n")
    with pytest.raises(ZooSegError, match=message):
        labels_of(open_data(tmp_path), "all")
    assert main(["check-data", str(tmp_path), "--split", "all"]) == 1


def test_what_has_no_splits_is_divided(tmp_path: Path) -> None:
    for number in range(6):
        write_labelme(tmp_path / f"{number}.json", [shape("cat", [[0, 0], [4, 4]], "rectangle")])
    with pytest.raises(OptionError, match=r"no split 'train' .*it has all; --val-fraction 0.2"):
        open_data(tmp_path).samples("train")
    data = open_data(tmp_path, val_fraction=0.5)
    train, val = ({sample.name for sample in data.samples(split)} for split in ("train", "val"))
    assert train
    assert val
    assert sorted(train | val) == list("012345")
    assert not train & val
    assert check_data(data, progress=False).errors == ()
