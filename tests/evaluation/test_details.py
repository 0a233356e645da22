"""What a measurement leaves beside its scores: confusion matrix, scores of each image, the worst images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.drawn import draw_folder
from PIL import Image

from zoo_seg import SegmentationModel, build_model
from zoo_seg.cli import main
from zoo_seg.data.layouts import SegmentationData, open_data
from zoo_seg.evaluation.details import MOST_CLASSES, Collector, Details, merged
from zoo_seg.evaluation.measure import measure
from zoo_seg.evaluation.report import draw_confusion, write_details

Ids = npt.NDArray[Any]
FILES = ["confusion.csv", "confusion.png", "images.csv", "worst.png"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SegmentationData:
    return open_data(draw_folder(tmp_path_factory.mktemp("data") / "shapes", train=1, val=5))


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return build_model("semanticfpn", "mobilenetv3_small_050", 3, channels=8).eval()


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_matrix_and_scores_are_those_of_the_class_maps(
    data: SegmentationData, model: SegmentationModel, tmp_path: Path
) -> None:
    measured = measure(model, data, details=True)
    assert measured.details
    assert [path.name for path in write_details(measured.details, data, "val", tmp_path)] == FILES
    matrix, scores = np.zeros((3, 3), int), []
    for sample in data.samples("val"):
        found, truth = model.predict(sample.image).mask, data.labels.read(sample.mask)
        image = np.array([[((truth == row) & (found == column)).sum() for column in range(3)] for row in range(3)])
        hit, either = image.diagonal(), image.sum(0) + image.sum(1) - image.diagonal()
        scores.append(np.mean([100 * h / e for h, e in zip(hit, either, strict=True) if e]))
        matrix += image
    header, *rows = rows_of(tmp_path / "confusion.csv")
    assert header == ["label \\ prediction", *data.classes]
    assert [row[0] for row in rows] == list(data.classes)
    assert np.array_equal([list(map(int, row[1:])) for row in rows], matrix)
    iou = 100 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert measured.per_class["IoU"] == pytest.approx(iou)
    header, *rows = rows_of(tmp_path / "images.csv")
    assert header == ["image", "mIoU", "aAcc", "pixels", "worst class", "its IoU"]
    assert [row[0] for row in rows] == [sample.name for sample in data.samples("val")]
    assert [float(row[1]) for row in rows] == pytest.approx(scores, abs=1e-4)
    assert sum(int(row[3]) for row in rows) == matrix.sum()
    assert [score.miou for score, _ in measured.details.worst] == pytest.approx(sorted(scores))
    for name in ("confusion.png", "worst.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200


def test_without_being_asked_nothing_is_kept(data: SegmentationData, model: SegmentationModel) -> None:
    assert measure(model, data).details is None


def test_the_command_line_writes_them(
    data: SegmentationData, model: SegmentationModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "net")
    out = tmp_path / "out"
    words = ["--weights", str(tmp_path / "net"), "--data", str(data.root), "--out", str(out), "--limit", "3"]
    assert main(["evaluate", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == ", ".join(
        str(out / name) for name in ("evaluation.json", "iou.png", *FILES)
    )
    assert len(rows_of(out / "images.csv")) == 4


def collected(count: int, num_classes: int = 3, size: int = 8, **share: int) -> Collector:
    """Images of which the i-th has i wrong pixels of class 1."""
    collector = Collector(num_classes, 255)
    for index in range(share.get("first", 0), count, share.get("step", 1)):
        label = np.zeros((size, size), np.uint8)
        label[:4] = 1
        predicted = label.copy()
        predicted.ravel()[:index] = 2
        collector.add(index, f"image {index}", predicted, label)
    return collector


def same(found: Details, expected: Details) -> bool:
    worst = [[(score, mask.tobytes()) for score, mask in each.worst] for each in (found, expected)]
    return (
        found.images == expected.images
        and np.array_equal(found.confusion, expected.confusion)
        and (  # type: ignore[arg-type]
            worst[0] == worst[1]
        )
    )


def test_processes_find_together_what_one_finds() -> None:
    whole = merged([collected(20)])
    assert same(merged([collected(20, first=first, step=3) for first in range(3)]), whole)
    assert [score.index for score, _ in whole.worst] == [19, 18, 17, 16, 15, 14, 13, 12]
    assert whole.images[19].worst_class == 1
    assert whole.images[19].worst_iou == pytest.approx(100 * 13 / 32)


def test_an_image_without_labels_has_no_score() -> None:
    collector = Collector(3, 255)
    collector.add(0, "blank", np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    details = merged([collector])
    (score,) = details.images
    assert (score.pixels, score.worst_class) == (0, None)
    assert np.isnan([score.miou, score.aacc, score.worst_iou]).all()
    assert not details.worst


def test_memory_is_bounded_by_classes_and_size() -> None:
    many = merged([collected(3, num_classes=MOST_CLASSES + 1)])
    assert many.confusion is None
    assert many.images == merged([collected(3)]).images
    collector = Collector(3, 255)
    collector.add(0, "large", np.zeros((1500, 900), np.uint8), np.zeros((1500, 900), np.uint8))
    assert merged([collector]).worst[0][1].shape == (500, 300)


@pytest.mark.parametrize("count", [2, 19, 150])
def test_the_matrix_is_readable_with_any_number_of_classes(count: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    matrix = random.integers(0, 9, (count, count)) + np.diag(random.integers(0, 900, count))
    matrix[1] = 0  # a class that no label has
    draw_confusion(matrix, [f"class number {each}" for each in range(count)], tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as image:
        assert min(image.size) > 200
        assert max(image.size) < 4000
