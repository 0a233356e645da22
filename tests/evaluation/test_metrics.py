"""The metric: equal to both original projects', to a plain re-count, and across processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zoo_seg.errors import OptionError
from zoo_seg.evaluation import SegmentationMetrics

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metric"
MEANS = ("mIoU", "aAcc", "mAcc", "mDice", "mFscore")
Pair = tuple[np.ndarray, np.ndarray]


def expected(project: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FIXTURES / project / "expected.json").read_text(encoding="utf-8"))
    return content


def mmseg_pairs() -> list[Pair]:
    files = [np.load(FIXTURES / "mmseg" / f"pair{i}.npz") for i in range(5)]
    return [(file["pred"], file["label"]) for file in files]


def ssseg_pairs() -> list[Pair]:
    file = np.load(FIXTURES / "ssseg" / "pairs.npz")
    return list(zip(file["preds"], file["labels"], strict=True))


def score(pairs: list[Pair], num_classes: int = 7, ignore_index: int = 255) -> dict[str, Any]:
    metric = SegmentationMetrics(num_classes, ignore_index)
    for pred, label in pairs:
        metric.update(pred, label)
    return metric.compute()


def percent(fractions: list[float | None]) -> list[float]:
    return [math.nan if value is None else 100 * value for value in fractions]


# --- equal to the original projects ---------------------------------------------------------------


@pytest.mark.parametrize("which", ["all", 0, 1, 2, 3, 4])
def test_equals_mmseg(which: str | int) -> None:
    facts, pairs = expected("mmseg"), mmseg_pairs()
    one = facts["all"] if which == "all" else facts["per_pair"][which]
    found = score(pairs if which == "all" else [pairs[int(which)]])
    for name in ("IoU", "Acc", "Dice", "Fscore"):  # the original adds up and divides in float32
        np.testing.assert_allclose(found[name], percent(one["per_class"][name]), rtol=1e-6)
    assert [found[name] for name in MEANS] == pytest.approx(
        [one["unrounded_means_percent"][name] for name in MEANS], rel=1e-6
    )
    assert [round(found[name], 2) for name in MEANS] == pytest.approx([one["compute_metrics"][name] for name in MEANS])


@pytest.mark.parametrize("which", ["all", 0, 1, 2, 3, 4])
def test_equals_ssseg(which: str | int) -> None:
    facts, pairs = expected("ssseg")["ssseg_evaluation"], ssseg_pairs()
    one = facts["all"] if which == "all" else facts["per_pair"][which]
    found = score(pairs if which == "all" else [pairs[int(which)]])
    for name, theirs in {"IoU": "iou", "Acc": "accuracy", "Dice": "dice", "Fscore": "fscore"}.items():
        np.testing.assert_allclose(found[name], percent(one[theirs]), rtol=1e-12)
    for name, theirs in {"mIoU": "miou", "aAcc": "all_accuracy", "mDice": "mdice", "mFscore": "mfscore"}.items():
        assert found[name] == pytest.approx(100 * one[theirs], rel=1e-12)


def test_equals_the_backend_of_the_published_tables() -> None:
    theirs, found = expected("ssseg")["chainercv_eval_semantic_segmentation_all"], score(ssseg_pairs())
    seen = len(theirs["iou"])  # chainercv drops classes behind the last one it saw
    np.testing.assert_allclose(found["IoU"][:seen], percent(theirs["iou"]), rtol=1e-12)
    assert np.isnan(found["IoU"][seen:]).all()
    assert found["mIoU"] == pytest.approx(100 * theirs["miou"], rel=1e-12)
    assert found["aAcc"] == pytest.approx(100 * theirs["pixel_accuracy"], rel=1e-12)
    assert found["mAcc"] == pytest.approx(100 * theirs["mean_class_accuracy"], rel=1e-12)


def test_absent_classes() -> None:
    """0 found in part, 1 never predicted, 2 only predicted, 3 absent from both."""
    found = score([(np.array([0, 0, 2, 2]), np.array([0, 0, 0, 1]))], num_classes=4)
    nan = math.nan
    np.testing.assert_allclose(found["IoU"], [200 / 3, 0, 0, nan])
    np.testing.assert_allclose(found["Acc"], [200 / 3, 0, nan, nan])
    np.testing.assert_allclose(found["Dice"], [80, 0, 0, nan])
    np.testing.assert_allclose(found["Fscore"], [80, nan, nan, nan])
    assert [found[name] for name in MEANS] == pytest.approx([200 / 9, 50, 100 / 3, 80 / 3, 80])
    assert all(type(found[name]) is float for name in MEANS)


# --- equal to a plain re-count --------------------------------------------------------------------


def recount(pairs: list[Pair], num_classes: int, ignore_index: int) -> dict[str, Any]:
    """The definitions, class by class, in Python's whole numbers."""
    ious, accs, dices, fscores, hits, labelled = [], [], [], [], 0, 0
    for c in range(num_classes):
        tp = fp = fn = 0
        for pred, label in pairs:
            counts = label != ignore_index
            tp += int(((pred == c) & (label == c) & counts).sum())
            fp += int(((pred == c) & (label != c) & counts).sum())
            fn += int(((pred != c) & (label == c) & counts).sum())
        hits, labelled = hits + tp, labelled + tp + fn
        ious += [tp / (tp + fp + fn)] if tp + fp + fn else [math.nan]
        accs += [tp / (tp + fn)] if tp + fn else []
        dices += [2 * tp / (2 * tp + fp + fn)] if tp + fp + fn else []
        if tp:
            precision, recall = tp / (tp + fp), tp / (tp + fn)
            fscores.append(2 * precision * recall / (precision + recall))
    means = {"mIoU": [iou for iou in ious if iou == iou], "mAcc": accs, "mDice": dices, "mFscore": fscores}
    return {
        "IoU": percent(ious),
        "aAcc": 100 * hits / labelled if labelled else math.nan,
        **{name: 100 * sum(values) / len(values) if values else math.nan for name, values in means.items()},
    }


@pytest.mark.parametrize("seed", range(12))
def test_equals_a_recount(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(1, 12))
    ignore_index = int(rng.choice([255, num_classes, 0, 100]))
    shape = tuple(rng.integers(1, 9, size=rng.integers(1, 4)))
    pairs = []
    for _ in range(3):
        present = rng.integers(0, num_classes, size=rng.integers(1, num_classes + 1))
        label = rng.choice(present, shape)
        label[rng.random(shape) < 0.2] = ignore_index
        pairs.append((rng.integers(0, num_classes, shape), label))
    found, again = score(pairs, num_classes, ignore_index), recount(pairs, num_classes, ignore_index)
    for name in ("IoU", *MEANS):
        np.testing.assert_allclose(found[name], again[name], rtol=1e-12, err_msg=name)


KINDS = [np.uint8, np.int8, np.uint16, np.int32, np.uint64, torch.uint8, torch.int16, torch.int64]


@pytest.mark.parametrize("pred_kind", KINDS, ids=str)
@pytest.mark.parametrize("label_kind", KINDS, ids=str)
def test_takes_any_integer_type(pred_kind: Any, label_kind: Any) -> None:
    def cast(ids: list[list[int]], kind: Any) -> Any:
        return torch.tensor(ids, dtype=kind) if isinstance(kind, torch.dtype) else np.array(ids, dtype=kind)

    pred, label = cast([[0, 1], [1, 2]], pred_kind), cast([[0, 1], [2, 100]], label_kind)
    np.testing.assert_allclose(score([(pred, label)], 3, 100)["IoU"], [100, 50, 0])


def test_a_batch_is_its_pictures() -> None:
    file = np.load(FIXTURES / "ssseg" / "pairs.npz")
    assert score([(file["preds"], file["labels"])])["mIoU"] == score(ssseg_pairs())["mIoU"]


def test_counts_every_pixel_of_large_data() -> None:
    """Where float32 sums would stand still: one wrong pixel after 2**24 and more right ones."""
    metric = SegmentationMetrics(2)
    metric.true_positives += 2**40
    metric.update(np.array([1]), np.array([0]))
    assert (metric.false_positives.tolist(), metric.false_negatives.tolist()) == ([0, 1], [1, 0])
    found = metric.compute()
    assert 0 < 100 - found["aAcc"] < 1e-9
    assert found["IoU"][1] == 100 * 2**40 / (2**40 + 1)


def test_as_many_classes_as_a_mask_can_hold() -> None:
    """A matrix of all pairs would take 34 GB."""
    label = np.arange(65536, dtype=np.uint16)
    pred = label.copy()
    pred[0] = 65534
    found = score([(pred, label)], 65535, 65535)
    assert found["mIoU"] == pytest.approx(100 * (65533 + 0.5) / 65535)


def test_nothing_to_count_is_nan() -> None:
    found = score([(np.zeros((2, 2), int), np.full((2, 2), 255))], 3)
    assert all(math.isnan(found[name]) for name in MEANS)
    assert np.isnan(found["IoU"]).all()


def test_what_is_predicted_on_ignored_pixels_does_not_matter() -> None:
    label = np.array([0, 1, 255])
    assert score([(label, label)], 2)["mIoU"] == 100
    assert score([(np.array([0, 1, 99]), np.array([0, 1, -100]))], 2, -100)["mIoU"] == 100


def test_reset_starts_anew() -> None:
    metric = SegmentationMetrics(2)
    metric.update(np.array([0, 1]), np.array([1, 0]))
    assert metric.compute()["mIoU"] == 0
    metric.reset()
    metric.update(np.array([0, 1]), np.array([0, 1]))
    assert metric.compute()["mIoU"] == 100


# --- clear errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pred", "label", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"pred has shape \(2, 3\) and label \(3, 2\)"),
        (np.zeros((1, 2), int), np.zeros(2, int), "expected the same shape"),
        (np.zeros(2), np.zeros(2, int), "pred has type float64; expected class ids"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2), "label has type float32"),
        (np.array([0, 3]), np.array([0, 1]), "pred holds class id 3; expected 0 to 2"),
        (np.array([0, -1]), np.array([0, 1]), "pred holds class id -1"),
        (np.array([0, 1]), np.array([0, 3]), "label holds class id 3; expected 0 to 2 or ignore_index 255"),
        (np.array([0, 1]), np.array([0, 254]), "label holds class id 254"),
        (np.array([0, 1]), np.array([0, -1]), "label holds class id -1"),
    ],
)
def test_refuses_what_cannot_be_counted(pred: Any, label: Any, message: str) -> None:
    metric = SegmentationMetrics(3)
    with pytest.raises(OptionError, match=message):
        metric.update(pred, label)
    assert math.isnan(metric.compute()["aAcc"])


def test_refuses_no_classes() -> None:
    with pytest.raises(OptionError, match="num_classes is 0"):
        SegmentationMetrics(0)


@pytest.mark.slow
def test_without_torchmetrics_the_message_names_the_extra() -> None:
    code = "import sys; sys.modules['torchmetrics'] = None\nfrom zoo_seg.evaluation import SegmentationMetrics"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "MissingExtraError: measuring needs torchmetrics" in result.stderr
    assert "pip install 'zoo_seg[evaluate]'" in result.stderr


# --- several processes ----------------------------------------------------------------------------


def _share(rank: int, folder: str) -> None:
    """Of five images one process counts three, the other two; each then has the whole score."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    try:
        ious: list[float] = score(ssseg_pairs()[rank::2])["IoU"].tolist()
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(ious))


@pytest.mark.slow
def test_two_processes_count_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    other = mp.get_context("spawn").Process(target=_share, args=(1, str(tmp_path)))
    other.start()
    _share(0, str(tmp_path))
    other.join(60)
    assert other.exitcode == 0
    for rank in range(2):
        np.testing.assert_array_equal(json.loads((tmp_path / f"{rank}.json").read_text()), score(ssseg_pairs())["IoU"])
