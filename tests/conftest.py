"""Every test runs in a cache of its own, untouched by the user's settings and without the internet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Result, Run, runner
from helpers.reliability import Reliability

REPOSITORY = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:  # workers that each start a thread per core wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-reliability", action="store_true", help="write the tables of docs/reliability.md")


@pytest.fixture(scope="session")
def reliability(request: pytest.FixtureRequest) -> Iterator[Reliability]:
    """The tables of docs/reliability.md."""
    tables = Reliability(request.config.getoption("--write-reliability"))
    yield tables
    tables.finish()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no setting of the user's."""
    for name in [name for name in os.environ if name.startswith("ZOO_SEG_") or name == "HF_HUB_OFFLINE"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("zoo_seg.hub.download._silent", {})
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZOO_SEG_HOME", str(home))
    return home


def toy_manifest() -> dict[str, Any]:
    """A user's manifest of a small network in two trainings, on a data set and from a source of their own."""

    def weights(dataset: str) -> dict[str, Any]:
        return {
            "dataset": dataset,
            "source": "me",
            "parameters": 295430,
            "files": [{"url": f"https://zoo.invalid/{dataset}.pth"}],
            "metrics": [
                {
                    "name": "mIoU",
                    "value": 12.5,
                    "split": "val",
                    "test": {"mode": "whole", "scales": [1], "flip": False},
                    "status": "reproduced",
                }
            ],
            "recipe": {
                "train_split": "train",
                "crop": [48, 64],
                "batch_size": 2,
                "epochs": 1,
                "iterations": None,
                "optimizer": "SGD",
                "lr": 0.01,
                "schedule": "poly",
            },
            "preprocess": {"mean": [120, 120, 120], "std": [60, 60, 60], "resize": {"short": 64, "long": 256}},
            "provenance": {"config_url": None, "log_url": None},
        }

    def dataset(title: str) -> dict[str, Any]:
        return {
            "title": title,
            "url": "https://zoo.invalid/data",
            "licence": None,
            "ignore_index": 255,
            "classes": ["ground", "wall", "sky"],
            "palette": [[10, 20, 30], [200, 0, 0], [0, 0, 200]],
        }

    return {
        "schema_version": 2,
        "sources": {
            "me": {
                "title": "Me",
                "url": "https://zoo.invalid",
                "revision": None,
                "licence_code": "MIT",
                "licence_weights": None,
                "protocol": "ssseg",
            }
        },
        "datasets": {"toys": dataset("Toys"), "games": dataset("Games")},
        "models": {
            "toy_r50": {  # looks like an alias, but is a name
                "title": "FCN on MobileNetV3-Small",
                "architecture": {
                    "family": "fcn",
                    "backbone": "mobilenetv3_small_050",
                    "output_stride": 16,
                    "options": {"channels": 8},
                },
            }
        },
        "weights": {f"toy_r50.{name}_me": weights(name) for name in ("toys", "games")},
    }


@dataclass(frozen=True)
class Zoo:
    """The toy manifest in force, and the folder that serves its files as `ZOO_SEG_MIRROR`."""

    manifest: Path
    mirror: Path


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    import torch
    from helpers.reference import image_tensor, state_dict

    from zoo_seg import build_model

    folder = tmp_path_factory.mktemp("toys")
    (folder / "toys.json").write_text(json.dumps(toy_manifest(), indent=1), encoding="utf-8")
    model = build_model("fcn", "mobilenetv3_small_050", 3, output_stride=16, channels=8)
    tensors = state_dict((name, tuple(value.shape)) for name, value in model.state_dict().items())
    model.load_state_dict(tensors)
    with torch.inference_mode():  # so that each class is the likeliest somewhere
        tensors["head.classifier.bias"] -= model.eval()(torch.from_numpy(image_tensor(64, 96))).mean((0, 2, 3))
    (folder / "mirror").mkdir()
    for name in ("toys", "games"):
        torch.save({"epoch": 1, "model": tensors}, folder / "mirror" / f"{name}.pth")
    return Zoo(folder / "toys.json", folder / "mirror")


@pytest.fixture
def zoo(toy_files: Zoo, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """Two small weights beside the published ones: `toy_r50.toys_me` and `toy_r50.games_me`."""
    monkeypatch.setenv("ZOO_SEG_MANIFEST", str(toy_files.manifest))
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(toy_files.mirror))
    return toy_files


@pytest.fixture
def predict(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`zoo-seg predict` with the toy weights unless others are named, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    run = runner(capfd)

    def predict(*arguments: str | Path) -> Result:
        weights = [] if "--weights" in arguments else ["--weights", "toy_r50.toys"]
        return run("predict", *arguments, *weights)

    return predict
