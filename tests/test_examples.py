"""The examples, run as their first lines say, and the notebook, run by a kernel."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient
from PIL import Image

import zoo_seg

pytestmark = pytest.mark.slow

EXAMPLES = REPOSITORY / "examples"
SCRIPTS = ["predict.py", "finetune.py", "export_onnx.py", "batch_folder.py", "lightning_loop.py", "trainer_loop.py"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, no network, and the checkout's package."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ZOO_SEG_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)


def run(script: str, folder: Path, *arguments: str | Path) -> str:
    """What it prints, run in this folder."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_are_short(script: str) -> None:
    lines = (EXAMPLES / script).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert f"python examples/{script}" in lines[0]


def test_predict(tmp_path: Path) -> None:
    printed = run("predict.py", tmp_path)
    assert "road" in printed
    with Image.open(tmp_path / "out/street_mask.png") as mask, Image.open(EXAMPLES / "street.jpg") as street:
        assert mask.mode == "P"
        assert mask.size == street.size
        assert np.asarray(mask).max() < 11
    assert (tmp_path / "out/street_overlay.png").is_file()


def test_finetune(tmp_path: Path) -> None:
    printed = run("finetune.py", tmp_path, "--epochs", "2")
    assert "<Segmentation 96x96 pixels" in printed
    assert "% on val" in printed
    assert (tmp_path / "out/run/model.safetensors").is_file()


@pytest.mark.parametrize("loop", ["lightning", "trainer"])
def test_other_loops(loop: str, tmp_path: Path) -> None:
    printed = run(f"{loop}_loop.py", tmp_path, "--epochs", "2")
    score = re.search(r"mIoU ([\d.]+) % on val", printed)
    assert score
    assert float(score[1]) > 35, "all of the ground would be 25"
    model = zoo_seg.from_pretrained(tmp_path / "out" / loop)
    assert model.classes == ("ground", "disc", "box")


def test_export_onnx(tmp_path: Path) -> None:
    printed = run("export_onnx.py", tmp_path)
    assert "onnxruntime: class map (1, 540, 960), uint8" in printed
    assert "100.00% of the pixels" in printed
    assert (tmp_path / "out/street.onnx").is_file()


def test_batch_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    with Image.open(EXAMPLES / "street.jpg") as street:
        street.resize((160, 90)).save(folder / "small.jpg")
        street.resize((90, 160)).save(folder / "deeper" / "tall.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    printed = run("batch_folder.py", tmp_path, folder, "--out", "results")
    assert "2 of 3 images" in printed
    assert "broken.jpg" in printed
    with (tmp_path / "results/areas.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("image") for row in rows] == ["deeper/tall.png", "small.jpg"]
    assert all(sum(map(float, row.values())) == pytest.approx(1, abs=0.001) for row in rows)
    with Image.open(tmp_path / "results/deeper/tall.png") as mask:
        assert mask.size == (90, 160)


def test_the_notebook_runs_and_shows_what_is_stored(tmp_path: Path) -> None:
    path = EXAMPLES / "tour.ipynb"
    assert path.stat().st_size < 1_000_000
    stored = nbformat.read(path, as_version=4)
    assert str(REPOSITORY.parent) not in path.read_text(encoding="utf-8")
    shutil.copy(EXAMPLES / "street.jpg", tmp_path)
    executed = nbformat.from_dict(stored)
    NotebookClient(executed, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = 0
    for before, after in zip(stored.cells, executed.cells, strict=True):
        kinds = [_kinds(cell.get("outputs", [])) for cell in (before, after)]
        assert kinds[0] == kinds[1], before.source
        shown += len(kinds[0])
    assert shown >= 8


def _kinds(outputs: list[nbformat.NotebookNode]) -> set[str]:
    """What a cell shows; stderr is left out, and the image of a result, which its HTML shows as well."""
    kinds = {
        kind for each in outputs if each.get("name") != "stderr" for kind in each.get("data", {each.output_type: None})
    }
    return kinds - {"image/png"} if "text/html" in kinds else kinds
