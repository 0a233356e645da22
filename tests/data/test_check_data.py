"""`zoo-seg check-data`: what is printed, and the exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.drawn import draw_ade20k, draw_cityscapes, draw_folder, draw_voc
from PIL import Image

from zoo_seg.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `zoo-seg check-data`: (exit code, output, errors), both with every gap as one space."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = main(["check-data", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), " ".join(captured.err.split())

    return run


Run = Callable[..., tuple[int, str, str]]


def test_a_sound_data_set(run: Run, tmp_path: Path) -> None:
    code, out, err = run(draw_folder(tmp_path, train=4, val=2, size=(48, 64)))
    assert (code, err) == (0, "")
    assert f"{tmp_path}: layout folder, 3 classes, 255 is ignored" in out
    assert "train 4 64x48 64x48 val 2 64x48 64x48" in out
    assert "value class train % masks val % masks" in out
    assert "255 ignored 1.56 4 1.56 2" in out
    assert out.endswith("all is well")


@pytest.mark.parametrize("draw", [draw_voc, draw_ade20k, draw_cityscapes])
def test_published_layouts(draw: Callable[[Path], Path], run: Run, tmp_path: Path) -> None:
    code, out, _ = run(draw(tmp_path))
    assert code == 0
    assert f"layout {draw.__name__.removeprefix('draw_')}" in out
    assert "classes never appear" in out
    assert out.endswith("warnings)")


def test_what_training_would_stumble_over(run: Run, tmp_path: Path) -> None:
    draw_folder(tmp_path, train=4, val=2)
    Image.new("L", (64, 48), 38).save(tmp_path / "masks" / "train" / "001.png")
    (tmp_path / "masks" / "val" / "000.png").unlink()
    code, out, err = run(tmp_path)
    assert (code, err) == (1, "")
    assert "38 unknown label 25.00 1 - -" in out
    assert "error: train: the value 38 is no class; allowed are 0 to 2, and 255 (ignored)." in out
    assert "In 1 of 4 masks: masks/train/001.png" in out
    assert "error: val: 1 of 2 images have no mask: images/val/000.jpg" in out
    assert out.endswith("2 errors: training would fail")
    assert run(tmp_path, "--split", "val")[1].endswith("1 error: training would fail")


def test_pictures_in_the_place_of_masks(run: Run, tmp_path: Path) -> None:
    draw_folder(tmp_path, suffix=".png")
    for old, new in (("images", "swap"), ("masks", "images"), ("swap", "masks")):
        (tmp_path / old).rename(tmp_path / new)
    code, out, _ = run(tmp_path)
    assert code == 1
    assert "an image in the place of a mask" in out
    assert "further unknown labels)" in out
    assert len(out) < 5000


def test_json_holds_everything(run: Run, tmp_path: Path) -> None:
    draw_folder(tmp_path, train=3, val=1)
    Image.new("L", (9, 9)).save(tmp_path / "masks" / "train" / "001.png")
    code, out, err = run(tmp_path, "--json", "--workers", "2")
    report: dict[str, Any] = json.loads(out)
    assert (code, err, report["layout"], len(report["errors"])) == (1, "", "folder", 1)
    train, val = report["splits"]
    assert (train["pictures"], val["pictures"], train["largest"]) == (3, 1, [48, 64])
    for split, count in ((train, 2), (val, 1)):
        pixels = count * 48 * 64 + (81 if count == 2 else 0)
        assert sum(each["pixels"] for each in split["values"]) == pixels
        assert sum(each["share"] for each in split["values"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "nowhere: there is no such folder"),
        (["data/dataset.json"], 2, "is a file; expected the folder"),
        (["data", "--split", "test"], 2, "no split 'test' with images and masks; it has train, val"),
        (["data", "--layout", "coco"], 2, "layout is 'coco', expected auto, folder, voc"),
        (["data", "--workers", "0"], 2, "not a whole number of at least 1"),
        ([], 2, "the following arguments are required: DIR"),
        ([""], 2, "it is empty"),
        (["data/images/train"], 1, "is a part of the data set"),
        (["pictures"], 1, "is no data set (it holds 000.jpg, 001.jpg)"),
        (["data", "--layout", "voc"], 1, "looked for voc: JPEGImages/"),
    ],
)
def test_careless_usage(
    arguments: list[str], code: int, message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "data", train=2, val=1)
    shutil.copytree(tmp_path / "data" / "images" / "train", tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
