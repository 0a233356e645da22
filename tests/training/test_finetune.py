"""Fine-tuning: what a run leaves, how it goes on after a kill, what each setting does, and what is refused."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from conftest import Zoo
from helpers.disk import largest_file
from helpers.drawn import draw_folder
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import zoo_seg
import zoo_seg.training.finetune as finetune_module
from zoo_seg import SegmentationModel, build_model, create_model, finetune, from_pretrained, get_weights
from zoo_seg.cli import main
from zoo_seg.data.layouts import open_data
from zoo_seg.errors import CheckpointError, DataError, MissingExtraError, OptionError, TrainingError, UnknownNameError
from zoo_seg.layers.losses import SegmentationLoss
from zoo_seg.training.callbacks import TrainingState
from zoo_seg.training.loop import Loop
from zoo_seg.training.run import Run
from zoo_seg.training.samples import EpochBatches
from zoo_seg.training.settings import Settings
from zoo_seg.training.start import freeze_unused

pytestmark = pytest.mark.slow

BACKBONE = "mobilenetv3_small_050"
NETWORK = {"model": "semanticfpn", "backbone": BACKBONE, "channels": 16}
TINY = {"batch_size": 4, "crop_size": (48, 64), "workers": 0}
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images to train on and three to measure, 48x64, of three classes."""
    return draw_folder(tmp_path_factory.mktemp("data") / "shapes", train=12, val=3)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train on: one step an epoch."""
    return draw_folder(tmp_path_factory.mktemp("data") / "few", train=4, val=1)


def arguments(data: Path, out: Path, **options: Any) -> list[str]:
    """The command line of `finetune(data, out=out, **options)`."""
    words = ["finetune", "--data", str(data), "--out", str(out)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def log_of(out: Path) -> Lines:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def config_of(out: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


def assert_same_values(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def assert_same_run(found: Path, expected: Path, **tolerance: float) -> None:
    """The same best and last network, and the same log."""
    for part in ("", "last"):
        assert_same_values(
            load_file(found / part / "model.safetensors"), load_file(expected / part / "model.safetensors"), **tolerance
        )
        assert config_of(found / part)["metrics"][0] == {
            **config_of(expected / part)["metrics"][0],
            "value": pytest.approx(config_of(expected / part)["metrics"][0]["value"], abs=1e-3),
        }
    lines = log_of(expected)
    assert log_of(found) == [{key: pytest.approx(value, 1e-4) for key, value in line.items()} for line in lines]


# --- what a run leaves ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    out: Path
    model: SegmentationModel
    lines: Lines


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network that has learnt the shapes, from random values."""
    out = tmp_path_factory.mktemp("runs") / "shapes"
    model = finetune(data, out=out, epochs=6, lr=0.1, scale=(1.0, 1.0), photometric=False, **NETWORK, **TINY)
    return Trained(out, model, log_of(out))


def test_it_learns(trained: Trained) -> None:
    scores = [line["mIoU"] for line in trained.lines if "mIoU" in line]
    assert len(scores) == 6
    assert max(scores) > 45, "all of the ground would be 22"
    assert trained.lines[-1]["loss"] < trained.lines[0]["loss"] / 2


def test_the_folder_holds_all_that_is_promised(trained: Trained) -> None:
    names = {path.relative_to(trained.out).as_posix() for path in trained.out.rglob("*")}
    network = {"model.safetensors", "config.json", "README.md"}
    board = {name for name in names if name.startswith("tensorboard/events")}
    others = {"last", "log.jsonl", "state.pt", "curve.png", "samples.png", "tensorboard"}
    others |= {"confusion.csv", "confusion.png", "images.csv", "worst.png"}
    assert names == network | {f"last/{name}" for name in network} | board | others
    assert len(board) == 1
    for name in ("curve.png", "samples.png", "confusion.png", "worst.png"):
        with Image.open(trained.out / name) as image:
            colours = image.convert("RGB").getcolors(1 << 24)
            assert min(image.size) > 300
            assert colours is not None
            assert len(colours) > 50


def test_the_log_has_every_epoch(trained: Trained) -> None:
    assert all({"epoch", "step", "loss", "lr"} <= line.keys() for line in trained.lines)
    assert [line["epoch"] for line in trained.lines if "mIoU" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in trained.lines if "mIoU" in line] == [3, 6, 9, 12, 15, 18]
    board = EventAccumulator(str(trained.out / "tensorboard")).Reload()
    for name, wanted in {"mIoU": True, "loss": False, "lr": False}.items():
        expected = [(line["step"], line[name]) for line in trained.lines if ("mIoU" in line) == wanted]
        found = [(event.step, event.value) for event in board.Scalars(name)]
        assert found == [(step, pytest.approx(value, 1e-5)) for step, value in expected]


def test_the_learning_rate_falls_to_a_hundredth(trained: Trained) -> None:
    found = [line["lr"] for line in trained.lines if "mIoU" not in line]
    last_steps = [2, 5, 8, 11, 14, 17]
    assert found == [pytest.approx(0.099 * (1 - step / 18) ** 0.9 + 0.001) for step in last_steps]


def test_config_and_card_say_what_is_true(trained: Trained, data: Path) -> None:
    config = config_of(trained.out)
    best = max(line["mIoU"] for line in trained.lines if "mIoU" in line)
    assert config["metrics"][0]["value"] == best
    assert (config["metrics"][0]["split"], config["started_from"]) == ("val", None)
    assert config_of(trained.out / "last")["metrics"][0]["value"] == trained.lines[-1]["mIoU"]
    assert config["classes"] == list(open_data(data).classes)
    assert config["ignore_index"] == 255
    expected = {"epochs": 6, "iterations": 18, "batch_size": 4, "crop": [48, 64], "lr": 0.1, "optimizer": "SGD"}
    assert expected.items() <= config["recipe"].items()
    card = (trained.out / "README.md").read_text()
    assert f"{best:.2f}" in card
    assert "thing 1" in card
    assert "random values" in card


def test_the_returned_network_is_the_best_one(trained: Trained) -> None:
    assert not trained.model.training
    assert_same_values(trained.model.state_dict(), from_pretrained(trained.out).state_dict(), rtol=0, atol=0)
    assert trained.model.classes == ("ground", "thing 1", "thing 2")
    assert trained.model.metrics[0].value == max(line["mIoU"] for line in trained.lines if "mIoU" in line)


def test_evaluate_finds_the_logged_number(
    trained: Trained, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["evaluate", "--weights", str(trained.out), "--data", str(data), "--out", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    measured = json.loads((tmp_path / "evaluation.json").read_text())["scores"]["mIoU"]
    assert measured == pytest.approx(max(line["mIoU"] for line in trained.lines if "mIoU" in line), abs=1e-9)


def test_predict_takes_the_folder(
    trained: Trained, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = data / "images" / "val" / "000.jpg"
    assert main(["predict", str(picture), "--weights", str(trained.out), "--out", str(tmp_path)]) == 0
    (mask,) = tmp_path.rglob("*_mask.png")
    with Image.open(mask) as image:
        assert np.array_equal(np.asarray(image), trained.model.predict(picture).mask)


# --- quick runs from here on ----------------------------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the images at the end, which take longer than such a run."""
    monkeypatch.setattr(finetune_module, "_draw", lambda *_: None)


@pytest.fixture
def quick(tmp_path: Path, undrawn: None) -> Callable[..., Path]:
    """Runs finetune with small settings; returns its folder."""

    def run(data: Path, name: str = "out", **options: Any) -> Path:
        chosen = {"epochs": 1, "progress": False, **TINY, **options}
        if chosen.get("weights") is None and "model" not in chosen:
            chosen = {**NETWORK, **chosen}
        finetune(data, out=tmp_path / name, **chosen)
        return tmp_path / name

    return run


def test_a_line_every_ten_steps(data: Path, quick: Callable[..., Path]) -> None:
    lines = log_of(quick(data, batch_size=1, freeze="batchnorm"))
    assert [line["step"] for line in lines] == [10, 12, 12]
    assert lines[2]["loss"] == pytest.approx((10 * lines[0]["loss"] + 2 * lines[1]["loss"]) / 12)


def test_progress_is_told_on_stderr(
    few: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(few, tmp_path / "out", epochs=2, **NETWORK, **TINY)) == 0
    told = capsys.readouterr()
    assert "4 images of train, 1 of val, 3 classes" in told.err
    assert "2 epochs of 1 step (cpu" in told.err
    assert re.search(r"epoch 1/2  loss [\d.]+  mIoU [\d.]+  best [\d.]+  \d+ s left", told.err)
    assert f"--weights {tmp_path / 'out'}" in told.out
    assert "mIoU" in told.out


def test_progress_false_is_silent(few: Path, quick: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    quick(few)
    assert capfd.readouterr() == ("", "")


# --- killed and resumed ---------------------------------------------------------------------------

LONG = {
    **NETWORK,
    **TINY,
    "epochs": 3,
    "optimizer": "adamw",
    "lr": 0.01,
    "ema": 0.8,
    "dropout": 0.3,
    "class_weights": "balanced",
    "warmup": 3,
}
"""Everything on that has a memory or draws numbers; three steps an epoch."""


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    finetune(data, out=out, progress=False, **LONG)
    return out


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int, error: BaseException) -> None:
    """Raise instead of the n-th call of a method from now on."""
    original, left = getattr(owner, name), iter(range(calls - 1))

    def method(*args: Any) -> Any:
        if next(left, None) is None:
            raise error
        return original(*args)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [(Loop, "_step", 2), (Loop, "_step", 5), (Run, "save", 1), (Run, "save", 2)],
    ids=["first epoch", "middle of an epoch", "first state", "best before state"],
)
def test_an_interrupted_run_ends_as_an_unbroken_one(
    owner: type,
    name: str,
    calls: int,
    workers: int,
    data: Path,
    unbroken: Path,
    tmp_path: Path,
    undrawn: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if workers and (owner, name, calls) != (Loop, "_step", 5):
        pytest.skip("once is enough")
    command = arguments(data, tmp_path, **{**LONG, "workers": workers})
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, calls, KeyboardInterrupt())
        assert main(command) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert_same_run(tmp_path, unbroken)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_ends_as_an_unbroken_one(data: Path, unbroken: Path, tmp_path: Path, undrawn: None) -> None:
    command = arguments(data, tmp_path, **LONG)
    process = subprocess.Popen([sys.executable, "-m", "zoo_seg", *command], stderr=subprocess.DEVNULL)
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 300
    while not (log.is_file() and "mIoU" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "last" / "model.safetensors.0.part").write_bytes(b"what a kill may leave")
    assert main([*command, "--resume"]) == 0
    assert_same_run(tmp_path, unbroken)
    assert not list(tmp_path.rglob("*.part"))


def test_a_finished_run_returns_its_network(
    data: Path, unbroken: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (unbroken / "log.jsonl").read_bytes()
    model = finetune(data, out=unbroken, resume=True, **LONG)
    assert "finished already" in capsys.readouterr().err
    assert (unbroken / "log.jsonl").read_bytes() == before
    assert_same_values(model.state_dict(), load_file(unbroken / "model.safetensors"), rtol=0, atol=0)


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    def epoch(number: int, seed: int = 0, **share: int) -> list[list[tuple[int, int]]]:
        batches = EpochBatches(22, 8, seed, **share)
        batches.epoch = number
        return list(batches)

    assert epoch(3) == epoch(3)
    assert len({str(epoch(1)), str(epoch(2)), str(epoch(1, seed=1))}) == 3
    steps = epoch(1)
    assert [len(step) for step in steps] == [8, 8]
    assert len({index for step in steps for _, index in step}) == 16
    for parts in (1, 2):
        halves = [epoch(1, rank=rank, world_size=2, parts=parts) for rank in range(2)]
        for whole, *both in zip(steps, *halves, strict=True):
            size = 8 // parts  # of one part, of which each process has half
            together = [half[p * size // 2 : (p + 1) * size // 2] for p in range(parts) for half in both]
            assert [address for share in together for address in share] == whole


# --- opened: one's own loss, schedule, transforms, callbacks, data and network ---------------------


def _word(value: object) -> str:
    """A function by its name: its address is another one in every process."""
    return str(getattr(value, "__name__", value))


def soft_iou(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss of one's own."""
    shares = logits.softmax(1) * (labels != 255)[:, None]
    truth = F.one_hot(labels.where(labels != 255, 3), 4)[..., :3].movedim(-1, 1)
    both = (shares * truth).sum((0, 2, 3))
    return 1 - (both / (shares.sum((0, 2, 3)) + truth.sum((0, 2, 3)) - both)).mean()


def falling(done: float) -> float:
    return 1 - 0.5 * done


def jittered(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Draws from every generator there is."""
    shift = int(torch.randint(9, ())) + random.randrange(9) + int(np.random.randint(9))
    top = random.randrange(17)
    return (image // 2 + shift)[:, top : top + 32], mask[top : top + 32]


class Drawn(torch.utils.data.Dataset[Any]):
    """The files of a split."""

    def __init__(self, data: Path, split: str) -> None:
        self.files = sorted((data / "images" / split).iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path = self.files[index]
        mask = path.parents[2] / "masks" / path.parent.name / f"{path.stem}.png"
        return np.asarray(Image.open(path)), torch.from_numpy(np.array(Image.open(mask))).long()


OPENED: dict[str, dict[str, Any]] = {
    **{loss: {"loss": loss} for loss in ("ohem", "focal", "dice", "lovasz")},
    "own loss": {"loss": soft_iou},
    "cosine": {"schedule": "cosine"},
    "constant": {"schedule": "constant", "class_weights": [1, 2, 3]},
    "own schedule": {"schedule": falling},
    "own transforms": {"transforms": jittered},
}


@pytest.mark.parametrize("options", OPENED.values(), ids=OPENED)
def test_it_resumes_to_the_last_bit(
    options: dict[str, Any], few: Path, tmp_path: Path, quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 3, "lr": 0.05, **options}
    unbroken = quick(few, "unbroken", **options)
    with monkeypatch.context() as patch:
        interrupt(patch, Loop, "_step", 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quick(few, "broken", **options)
    assert len(log_of(tmp_path / "broken")) == 4
    broken = quick(few, "broken", resume=True, **options)
    for part in ("", "last"):
        found, expected = (load_file(out / part / "model.safetensors") for out in (broken, unbroken))
        assert_same_values(found, expected, rtol=0, atol=0)
    assert log_of(broken) == log_of(unbroken)


@pytest.mark.parametrize(("name", "value"), [("loss", soft_iou), ("schedule", falling), ("transforms", jittered)])
def test_a_callable_of_ones_own_must_be_named_again(
    name: str, value: Any, few: Path, quick: Callable[..., Path]
) -> None:
    out = quick(few, **{name: value})
    with pytest.raises(OptionError, match=re.escape(f"{name} 'test_finetune.{value.__name__}' (now None)")):
        quick(few, resume=True)
    assert config_of(out)["recipe"]["schedule"] == ("test_finetune.falling" if name == "schedule" else "poly")
    quick(few, resume=True, **{name: value})


@pytest.mark.parametrize("schedule", ["cosine", "constant", falling])
def test_the_learning_rate_follows_the_schedule(schedule: Any, few: Path, quick: Callable[..., Path]) -> None:
    lines = log_of(quick(few, epochs=4, schedule=schedule, lr=0.02, freeze="batchnorm"))
    factors = {
        "cosine": [0.01 + 0.99 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)],
        "constant": [1] * 4,
        falling: [1, 0.875, 0.75, 0.625],
    }[schedule]
    assert [line["lr"] for line in lines if "mIoU" not in line] == pytest.approx([0.02 * each for each in factors])


def test_a_finished_run_is_extended_as_one_that_was_longer(few: Path, quick: Callable[..., Path]) -> None:
    options = {"schedule": "constant", "lr": 0.05, "ema": 0.5}
    longer = quick(few, "longer", epochs=4, **options)
    quick(few, "extended", epochs=2, **options)
    extended = quick(few, "extended", epochs=4, resume=True, **options)
    for part in ("", "last"):
        found, expected = (load_file(out / part / "model.safetensors") for out in (extended, longer))
        assert_same_values(found, expected, rtol=0, atol=0)
    assert log_of(extended) == log_of(longer)
    assert config_of(extended / "last")["recipe"]["epochs"] == 4


def test_an_extended_run_goes_on_along_the_new_curve(
    few: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**NETWORK, **TINY, "lr": 0.05}
    command = [arguments(few, tmp_path, **options, epochs=epochs) for epochs in (2, 5)]
    assert main(command[0]) == 0
    with monkeypatch.context() as patch:  # a run that is being extended is one to go on with
        interrupt(patch, Loop, "_step", 2, KeyboardInterrupt())
        assert main([*command[1], "--resume"]) == 130
    assert main([*command[1], "--resume"]) == 0
    assert main([*command[0], "--resume"]) == 2
    assert "epochs 5 (now 2)" in capsys.readouterr().err
    found = [line["lr"] for line in log_of(tmp_path) if "mIoU" not in line]
    expected = [0.0495 * (1 - step / of) ** 0.9 + 0.0005 for step, of in ((0, 2), (1, 2), (2, 5), (3, 5), (4, 5))]
    assert found == pytest.approx(expected)


def test_patience_ends_a_run_that_no_longer_gets_better(few: Path, quick: Callable[..., Path]) -> None:
    options = {"patience": 2, "lr": 1e-9, "freeze": "batchnorm", "schedule": "constant"}
    out = quick(few, epochs=9, **options)
    assert [line["epoch"] for line in log_of(out) if "mIoU" in line] == [1, 2, 3]
    quick(few, epochs=9, resume=True, **options)  # it is finished
    assert len(log_of(out)) == 6
    quick(few, epochs=10, resume=True, **options)  # and gets as much patience again
    assert [line["epoch"] for line in log_of(out) if "mIoU" in line] == [1, 2, 3, 4, 5]


class Watch:
    """Notes what it is given; ends a run or fails, if told so."""

    def __init__(self, stop: int = 0, fail: tuple[str, int] = ("", 0)) -> None:
        self.stop, self.fail = stop, fail
        self.seen: list[tuple[str, TrainingState]] = []
        self.training: list[bool] = []

    def note(self, hook: str, state: TrainingState) -> None:
        if self.fail == (hook, state.epoch):
            raise ZeroDivisionError("by design")
        self.seen.append((hook, state))
        self.training.append(state.model.training)

    def on_step_end(self, state: TrainingState) -> None:
        self.note("step", state)

    def on_epoch_end(self, state: TrainingState) -> bool:
        self.note("epoch", state)
        return state.epoch == self.stop

    def on_train_end(self, state: TrainingState) -> None:
        self.note("train", state)


def test_callbacks_are_told_how_far_it_is_and_may_end_it(few: Path, quick: Callable[..., Path]) -> None:
    watch = Watch(stop=2)
    out = quick(few, epochs=5, callbacks=[watch], freeze="batchnorm", batch_size=2)
    hooks, states = zip(*watch.seen, strict=True)
    assert hooks == ("step", "step", "epoch", "step", "step", "epoch", "train")
    assert [state.step for state in states] == [1, 2, 2, 3, 4, 4, 4]
    assert watch.training == [True, True, False, True, True, False, False]
    first, last = states[0], states[-1]
    assert (first.epoch, first.epochs, first.steps, first.lr) == (1, 5, 10, 0.01)
    assert (first.metrics, first.best, first.folder) == ({}, None, out)
    measured = [line for line in log_of(out) if "mIoU" in line]
    assert [line["epoch"] for line in measured] == [1, 2]
    assert last.metrics == {name: measured[1][name] for name in ("mIoU", "aAcc")}
    assert last.best == max(line["mIoU"] for line in measured)
    assert states[2].loss == pytest.approx((states[0].loss + states[1].loss) / 2)
    again = Watch()
    quick(few, epochs=5, callbacks=[again], freeze="batchnorm", batch_size=2, resume=True)
    assert not again.seen  # it was ended


@pytest.mark.parametrize(("hook", "epochs"), [("epoch", 2), ("step", 1)])
def test_a_callback_that_fails_costs_nothing(
    hook: str, epochs: int, few: Path, tmp_path: Path, quick: Callable[..., Path]
) -> None:
    unbroken = quick(few, "unbroken", epochs=3, lr=0.05)
    with pytest.raises(TrainingError, match=rf"Watch\.on_{hook}_end \(epoch 2, step 2\) raised ZeroDivisionError: by"):
        quick(few, "failed", epochs=3, lr=0.05, callbacks=[Watch(fail=(hook, 2))])
    assert torch.load(tmp_path / "failed" / "state.pt", weights_only=True)["epoch"] == epochs
    failed = quick(few, "failed", epochs=3, lr=0.05, resume=True)
    assert_same_run(failed, unbroken)


@pytest.mark.parametrize("workers", [0, 1])
def test_transforms_that_fail_are_named(workers: int, few: Path, quick: Callable[..., Path]) -> None:
    def failing(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        raise LookupError("nothing to cut")

    with pytest.raises(TrainingError, match=r"transforms test_finetune\..*failing raised LookupError: nothing to cut"):
        quick(few, transforms=failing, workers=workers)


def test_datasets_train_as_the_folder_does(few: Path, tmp_path: Path, quick: Callable[..., Path]) -> None:
    folder = quick(few, "folder", class_weights="balanced", epochs=2)
    pairs: dict[str, Any] = {split: Drawn(few, split) for split in ("train", "val")}
    source = open_data(few)
    options = {**NETWORK, **TINY, "epochs": 2, "class_weights": "balanced", "progress": False}
    options |= {**pairs, "classes": source.classes, "palette": source.palette}
    trained = finetune(out=tmp_path / "pairs", **options)
    assert_same_values(load_file(tmp_path / "pairs" / "model.safetensors"), load_file(folder / "model.safetensors"))
    assert log_of(tmp_path / "pairs") == log_of(folder)
    assert (trained.classes, trained.palette) == (source.classes, source.palette)
    assert config_of(tmp_path / "pairs")["dataset"] == "Drawn"
    pairs["train"].files.pop()
    with pytest.raises(OptionError, match=r"4 in train \(now 3\)"):
        finetune(out=tmp_path / "pairs", resume=True, **{**options, "batch_size": 3})


def test_a_network_in_memory_is_copied_and_trained(few: Path, quick: Callable[..., Path]) -> None:
    model = hand_network().train()
    model.preprocess = replace(model.preprocess, mean=(100.0, 100.0, 100.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = quick(few, model=model, lr=0.05)
    assert_same_values(model.state_dict(), before, rtol=0, atol=0)
    assert model.training
    found = load_file(out / "model.safetensors")
    assert any(not torch.equal(found[name], value) for name, value in before.items())
    assert config_of(out)["started_from"] == "a network in memory"
    assert config_of(out)["preprocess"]["mean"] == [100.0, 100.0, 100.0]
    still = load_file(quick(few, "still", model=model, lr=1e-9, freeze="batchnorm") / "model.safetensors")
    assert_same_values(still, before)


def by_hand(model: SegmentationModel) -> SegmentationModel:
    return SegmentationModel(model.network, replace(model.info, architecture=None))


def patched(model: SegmentationModel) -> SegmentationModel:
    model.head.classifier = nn.Sequential(nn.Conv2d(8, 3, 1))
    return model


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (by_hand, {}, "this network has no architecture to save; make it with build_model or create_model"),
        (patched, {}, "head.classifier is torch.nn.modules.container.Sequential"),
        (lambda _: build_model("fcn", BACKBONE, 7, channels=8), {}, "the model has 7 classes, the data 3"),
        (lambda model: model, {"weights": "toys"}, "the model brings its own weights"),
        (lambda model: model, {"channels": 8}, "the model brings its own weights, backbone and head"),
    ],
    ids=["by hand", "patched", "classes", "weights", "channels"],
)
def test_a_network_in_memory_that_cannot_be_meant(
    change: Callable[[SegmentationModel], Any], options: dict[str, Any], words: str, few: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        finetune(few, change(hand_network()), out=tmp_path / "out", **{**TINY, **options})
    assert not (tmp_path / "out").exists()


def test_there_must_be_data(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no data; expected the path of a folder, or train= and val="):
        finetune(out=tmp_path / "out", **NETWORK)


class Kept(GeneralTracker):  # type: ignore[misc]
    """What Accelerate gives a tracker."""

    name, requires_logging_directory = "kept", False

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.ended = False

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.lines.append((step or 0, values))

    def finish(self) -> None:
        self.ended = True


def test_accelerates_trackers_are_given_every_line(few: Path, quick: Callable[..., Path]) -> None:
    kept = Kept()
    out = quick(few, epochs=2, log_with=[kept, "tensorboard"], lr=0.02, crop_size=(48, 64))
    assert kept.ended
    assert {"epochs": 2, "lr": 0.02, "crop_size": "[48, 64]", "out": str(out)}.items() <= kept.config.items()
    expected = [
        (line["step"], {name: line[name] for name in (("mIoU", "aAcc") if "mIoU" in line else ("loss", "lr"))})
        for line in log_of(out)
    ]
    assert kept.lines == expected
    assert list(out.glob("tensorboard/events*"))


def test_a_tracker_without_its_package_is_named(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(few, tmp_path / "out", **NETWORK, **TINY), "--log-with", "comet_ml"]) == 1
    assert "log_with 'comet_ml' needs its package: pip install comet_ml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_a_word_or_a_number_for_each_class(
    few: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(few, tmp_path / "out", **NETWORK, **TINY, epochs=1)
    assert main([*command, "--class-weights", "1", "2", "0.5", "--schedule", "cosine", "--loss", "focal"]) == 0
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    assert state["settings"]["class_weights"] == [1.0, 2.0, 0.5]
    assert (state["settings"]["schedule"], state["settings"]["loss"]) == ("cosine", "focal")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--class-weights", "rare"])
    assert stopped.value.code == 2
    assert "'rare' is not none or balanced, nor a number for each class" in capsys.readouterr().err


# --- two processes --------------------------------------------------------------------------------


def test_two_processes_train_as_one(data: Path, tmp_path: Path, quick: Callable[..., Path]) -> None:
    options = {**NETWORK, **TINY, "epochs": 2, "freeze": "batchnorm", "accumulate": 2, "dropout": 0.0, "ema": 0.5}
    options |= {"class_weights": "balanced", "device": "cpu"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "zoo_seg", *arguments(data, tmp_path / "two", **options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    one = quick(data, "one", **options)
    assert_same_run(tmp_path / "two", one, rtol=1e-4, atol=1e-6)
    assert len(result.stdout.splitlines()) == 2
    assert result.stdout.count("mIoU") == 1
    assert [result.stderr.count(f"epoch {number}/2") for number in (1, 2)] == [1, 1]
    assert "Warning" not in result.stderr
    assert "zoo-seg" not in result.stderr


# --- settings, against a step by hand -------------------------------------------------------------


def hand_network() -> SegmentationModel:
    """What a run with seed 0 begins with."""
    torch.manual_seed(0)
    model = build_model("fcn", BACKBONE, 3, channels=8)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return model


STILL = {"scale": (1.0, 1.0), "flip": 0.0, "photometric": False, "dropout": 0.0}
"""No draws: what is trained on are the images themselves."""
FCN = {"model": "fcn", "backbone": BACKBONE, "channels": 8}


def batch_of(data: Path) -> tuple[Tensor, Tensor]:
    """The whole train split: normalised images and labels."""
    source = open_data(data)
    pictures = [np.asarray(Image.open(sample.image)) for sample in source.samples("train")]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    labels = [source.labels.read(sample.mask).astype(np.int64) for sample in source.samples("train")]
    return (x - mean) / std, torch.from_numpy(np.stack(labels))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=255)


def balanced(logits: Tensor, labels: Tensor) -> Tensor:
    counts = torch.bincount(labels[labels != 255], minlength=3).double()
    weights = 1 / torch.log(1.02 + counts / counts.sum())
    return F.cross_entropy(logits, labels, weight=weights.float(), ignore_index=255)


def of_kind(kind: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        sums = SegmentationLoss(kind, ignore_index=255)(logits, labels)
        return sums.total / sums.weight

    return loss


def weighted(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=255)


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)


@dataclass(frozen=True)
class Hand:
    """A step by hand."""

    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = sgd
    aux_weight: float = 0.4
    prepare: Callable[[SegmentationModel], object] = lambda model: model.train()


def frozen_norms(model: SegmentationModel) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


def frozen_backbone(model: SegmentationModel) -> None:
    model.train()
    model.backbone.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, Hand()),
        ({"aux_weight": 0.0}, Hand(aux_weight=0.0)),
        ({"class_weights": "balanced"}, Hand(balanced)),
        ({"loss": "ohem"}, Hand(of_kind("ohem"))),
        ({"loss": "dice"}, Hand(of_kind("dice"))),
        ({"loss": "focal"}, Hand(of_kind("focal"))),
        ({"loss": "lovasz"}, Hand(of_kind("lovasz"))),
        ({"loss": soft_iou}, Hand(soft_iou)),
        ({"class_weights": [1, 2, 0.5]}, Hand(weighted)),
        ({"freeze": "batchnorm"}, Hand(prepare=frozen_norms)),
        ({"freeze": "backbone"}, Hand(prepare=frozen_backbone)),
        ({"freeze": "batchnorm", "accumulate": 4}, Hand(prepare=frozen_norms)),
        (
            {"freeze": "batchnorm", "optimizer": "adamw", "weight_decay": 0.1},
            Hand(cross_entropy, adamw, 0.4, frozen_norms),
        ),
    ],
    ids=lambda value: " ".join(map(_word, value.values())) or "default" if isinstance(value, dict) else "",
)
def test_a_step_is_the_one_by_hand(options: dict[str, Any], hand: Hand, few: Path, quick: Callable[..., Path]) -> None:
    out = quick(few, lr=0.05, **FCN, **STILL, **options)
    model, (x, y) = hand_network(), batch_of(few)
    hand.prepare(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (aux_head,) = model.aux_heads
    features = model.forward_features(x)
    loss = hand.loss(F.interpolate(model.forward_head(features), y.shape[1:], mode="bilinear"), y)
    if hand.aux_weight:
        aux = F.interpolate(aux_head(features), y.shape[1:], mode="bilinear")
        loss = loss + hand.aux_weight * hand.loss(aux, y)
    loss.backward()
    hand.optimizer(parameter for parameter in model.parameters() if parameter.grad is not None).step()
    found = load_file(out / "last" / "model.safetensors")
    assert_same_values(found, model.state_dict(), rtol=1e-3, atol=2e-4)
    assert log_of(out)[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    still = {name for name, value in before.items() if torch.equal(value, found[name])}
    if options.get("freeze") == "backbone":
        assert still == {name for name in before if name.startswith("backbone.")}
    if options.get("freeze") == "batchnorm":
        assert {name for name in before if "running" in name} <= still < set(before)


def test_warmup_rises_to_the_learning_rate(few: Path, quick: Callable[..., Path]) -> None:
    lines = log_of(quick(few, epochs=5, warmup=3, lr=0.04, freeze="batchnorm"))
    plain = [0.0396 * (1 - step / 5) ** 0.9 + 0.0004 for step in range(5)]
    expected = [lr * min(1, (step + 1) / 4) for step, lr in enumerate(plain)]
    assert [line["lr"] for line in lines if "mIoU" not in line] == [pytest.approx(lr) for lr in expected]


def test_ema_keeps_an_average_and_trains_the_same(
    few: Path, quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Any]] = []
    original = Run.save

    def save(self: Run, state: dict[str, Any]) -> None:
        states.append({key: {k: v.clone() for k, v in state[key].items()} for key in ("model", "ema") if state[key]})
        original(self, state)

    monkeypatch.setattr(Run, "save", save)
    plain, averaged = (quick(few, name, epochs=5, ema=ema) for name, ema in (("plain", None), ("averaged", 0.5)))
    assert_same_values(states[9]["model"], states[4]["model"])
    assert_same_values(load_file(plain / "last" / "model.safetensors"), states[4]["model"], rtol=0, atol=0)
    assert_same_values(load_file(averaged / "last" / "model.safetensors"), states[9]["ema"], rtol=0, atol=0)
    for name, value in states[9]["ema"].items():
        if value.is_floating_point():
            expected = states[8]["ema"][name].lerp(states[9]["model"][name], 0.5)
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(value, states[9]["model"][name]) for name, value in states[9]["ema"].items())


def test_bfloat16_is_near_and_kept_in_float32(few: Path, quick: Callable[..., Path]) -> None:
    exact, half = (quick(few, precision, precision=precision) for precision in ("float32", "bfloat16"))
    losses = [log_of(out)[0]["loss"] for out in (exact, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert {value.dtype for value in load_file(half / "model.safetensors").values()} <= {torch.float32, torch.int64}


def test_dropout_and_seed_decide_the_draws(few: Path, quick: Callable[..., Path]) -> None:
    def loss(name: str, **options: Any) -> float:
        return float(log_of(quick(few, name, **options))[0]["loss"])

    losses = [loss("a"), loss("b"), loss("c", dropout=0.9), loss("d", seed=1), loss("e", photometric=False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len({round(each, 4) for each in losses[1:]}) == 4


def test_resize_is_kept_for_prediction(few: Path, quick: Callable[..., Path]) -> None:
    config = config_of(quick(few, resize=32, crop_size=(32, 32)))
    assert config["preprocess"]["resize"] == {"short": 32, "long": 128, "keep_ratio": True}


def test_another_run_in_this_process_may_use_another_device(
    few: Path, quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    PartialState._reset_state()
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    assert PartialState().device.type == "meta"
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    quick(few, device="cpu")
    assert PartialState().device.type == "cpu"


# --- what training starts from --------------------------------------------------------------------

UNMOVED = {"lr": 1e-9, "freeze": "batchnorm"}
"""Nothing is learnt, so that the values at the end are those at the beginning."""


def values(model: SegmentationModel) -> dict[str, Tensor]:
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("data", torch.nn.Conv2d(3, 3, 1)),
            "model is a network; expected a name, such as 'pspnet_resnet50_os8', or a ",
        ),
        (("data", 50), "model is of type int; expected a name"),
        (("data", None, True), "weights is True without a model"),
        (("data", "toy_r50", {"a": 1}), "the weights are of type dict"),
        ((["a.png"], "toy_r50"), "data is of type list; expected the path of a folder"),
    ],
)
def test_an_argument_of_another_type(
    arguments: tuple[Any, ...], words: str, few: Path, zoo: Zoo, tmp_path: Path
) -> None:
    data, *more = arguments
    with pytest.raises(OptionError, match=re.escape(words)):
        finetune(few if data == "data" else data, *more, out=tmp_path / "out", **{**TINY, "epochs": 1})
    assert not (tmp_path / "out").exists()


def test_true_is_the_first_weights_and_false_none(few: Path, zoo: Zoo, quick: Callable[..., Path]) -> None:
    assert config_of(quick(few, "a", model="toy_r50", weights=True))["started_from"] == "toy_r50.toys_me"
    assert config_of(quick(few, "b", model="toy_r50", weights=False))["started_from"] is None


def test_a_model_name_starts_from_random_values(few: Path, zoo: Zoo, quick: Callable[..., Path]) -> None:
    out = quick(few, model="toy_r50", channels=8, **UNMOVED)
    torch.manual_seed(0)
    expected = build_model("fcn", BACKBONE, 3, output_stride=16, channels=8)
    assert_same_values(load_file(out / "model.safetensors"), values(expected))
    assert config_of(out)["started_from"] is None
    assert config_of(out)["architecture"]["output_stride"] == 16


@pytest.mark.parametrize("by", ["tag", "alias of a tag", "id", "record", "path", "link", "folder"])
def test_weights_are_where_training_starts(
    by: str, few: Path, zoo: Zoo, tmp_path: Path, quick: Callable[..., Path]
) -> None:
    expected, file = create_model("toy_r50", "toys"), zoo.mirror / "toys.pth"
    expected.save_pretrained(tmp_path / "earlier")
    record = {"started_from": "toy_r50.toys_me"}
    options, facts = {
        "tag": ({"model": "toy_r50", "weights": "toys"}, record),
        "alias of a tag": ({"model": "toy_r50", "weights": "toys_me"}, record),
        "id": ({"weights": "toy_r50.toys"}, record),
        "record": ({"weights": get_weights("toy_r50.toys")}, record),
        "path": ({"model": "toy_r50", "weights": file}, {"started_from": str(file)}),
        "link": ({"model": "toy_r50", "weights": file.as_uri()}, {"started_from": file.as_uri()}),
        "folder": ({"weights": tmp_path / "earlier"}, {"started_from": str(tmp_path / "earlier")}),
    }[by]
    out = quick(few, **options, **UNMOVED)
    assert_same_values(load_file(out / "model.safetensors"), values(expected))
    assert facts.items() <= config_of(out).items()
    assert config_of(out)["classes"] == ["ground", "thing 1", "thing 2"]  # the data's, not the weights'


@pytest.mark.parametrize("by", ["tag", "folder"])
def test_other_classes_start_anew(by: str, zoo: Zoo, tmp_path: Path, quick: Callable[..., Path]) -> None:
    data = draw_folder(tmp_path / "data", train=4, val=1, classes=5)
    before = create_model("toy_r50", "toys")
    before.save_pretrained(tmp_path / "earlier")
    options = {"model": "toy_r50", "weights": "toys"} if by == "tag" else {"weights": tmp_path / "earlier"}
    found = load_file(quick(data, **options, **UNMOVED) / "model.safetensors")
    anew = {name for name, value in before.state_dict().items() if value.shape != found[name].shape}
    assert anew == {f"{head}.classifier.{part}" for head in ("head", "aux_heads.0") for part in ("weight", "bias")}
    kept = {name: value for name, value in values(before).items() if name not in anew}
    assert_same_values({name: found[name] for name in kept}, kept)


def test_a_run_goes_on_with_another_data_set(
    trained: Trained, few: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**TINY, **UNMOVED, "epochs": 1, "weights": trained.out}
    assert main(arguments(few, tmp_path / "next", **options)) == 0, capsys.readouterr().err
    assert_same_values(load_file(tmp_path / "next" / "model.safetensors"), values(trained.model))


def test_imagenet_values_on_request(few: Path, quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = timm.create_model, []

    def create(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append(pretrained)  # there is no network here
        model: nn.Module = original(name, **options)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    plain, fetched = quick(few, "plain"), quick(few, "fetched", backbone_pretrained=True)
    assert asked.count(True) == 1
    assert asked[0] is False
    assert config_of(plain)["started_from"] is None
    assert config_of(fetched)["started_from"] == f"timm's ImageNet weights of {BACKBONE}"


def test_unused_values_are_not_waited_for() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = (nn.Conv2d(3, 2, 1) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.used(x), self.frozen(self.used(x).repeat(1, 2, 1, 1)[:, :3])]

    heads = Heads()
    freeze_unused(heads, heads.parameters())
    trained = {name for name, parameter in heads.named_parameters() if parameter.requires_grad}
    assert trained == {"used.weight", "used.bias"}
    assert all(parameter.grad is None for parameter in heads.parameters())


def test_a_backbone_stands_in_for_the_models_own(few: Path, zoo: Zoo, quick: Callable[..., Path]) -> None:
    architecture = config_of(quick(few, model="toy_r50", backbone="lcnet_050", channels=8))["architecture"]
    assert (architecture["family"], architecture["backbone"]) == ("fcn", "lcnet_050")


# --- bad input ------------------------------------------------------------------------------------


def change_mask(data: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:3] = 7
    Image.fromarray(mask).save(data / "masks" / "train" / "002.png")


def remove_mask(data: Path) -> None:
    (data / "masks" / "val" / "000.png").unlink()


def empty(data: Path) -> None:
    for kind in ("images", "masks"):
        shutil.rmtree(data / kind / "train")
        (data / kind / "train").mkdir()


def remove_val(data: Path) -> None:
    for kind in ("images", "masks"):
        shutil.rmtree(data / kind / "val")


def leave_one_class(data: Path) -> None:
    description = json.loads((data / "dataset.json").read_text())
    description.update(classes=["ground"], palette=[[0, 0, 0]])
    (data / "dataset.json").write_text(json.dumps(description))


def ignore_val(data: Path) -> None:
    Image.new("L", (64, 48), 255).save(data / "masks" / "val" / "000.png")


def turn_mask(data: Path) -> None:
    with Image.open(data / "masks" / "train" / "001.png") as mask:
        mask.transpose(Image.Transpose.ROTATE_90).save(data / "masks" / "train" / "001.png")


def break_picture(data: Path) -> None:
    path = data / "images" / "train" / "003.jpg"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (change_mask, DataError, ["002.png", "7"]),
        (remove_mask, DataError, ["val", "000.jpg", "mask"]),
        (empty, (DataError, OptionError), ["train"]),
        (remove_val, OptionError, ["no split 'val'"]),
        (leave_one_class, DataError, ["dataset.json:1", "at least 2"]),
        (ignore_val, DataError, ["val", "ignored"]),
        (turn_mask, DataError, ["001"]),
        (break_picture, DataError, ["003.jpg"]),
    ],
    ids=lambda value: value.__name__ if callable(value) and not isinstance(value, type) else "",
)
def test_data_that_cannot_be_used(
    spoil: Callable[[Path], None],
    error: type[Exception],
    words: list[str],
    tmp_path: Path,
    quick: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = draw_folder(tmp_path / "data", train=4, val=1)
    spoil(data)
    with pytest.raises(error) as raised:
        quick(data)
    assert all(word in str(raised.value) for word in words), raised.value
    code = 2 if raised.type is OptionError else 1
    assert main(arguments(data, tmp_path / "out", epochs=1, **NETWORK, **TINY)) == code
    told = capsys.readouterr().err
    assert str(raised.value) in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_size": (0, 64)}, "height and width of at least 16"),
        ({"scale": (2.0, 0.5)}, "two rising factors"),
        ({"scale": (0.0, 1.0)}, "two rising factors"),
        ({"scale": (1.0, 100.0)}, "two rising factors"),
        ({"lr": 0.0}, "lr is 0.0; expected above 0"),
        ({"lr": math.nan}, "lr is nan; expected a number"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 5}, "batch_size 5 is more than the 4 images of train"),
        ({"accumulate": 3}, "batch_size 4 cannot be worked on in 3 equal parts"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"flip": 1.5}, "flip is 1.5; expected from 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"precision": "float16", "device": "cpu"}, "float16', which needs a GPU"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"model": "semanticfpn_resnet51", "backbone": None}, "did you mean 'semanticfpn_resnet50'"),
        ({"backbone": "mobilenetv3_smal_050"}, "did you mean 'mobilenetv3_small_050'"),
        ({"backbone": None}, "'semanticfpn' is a family; add a backbone"),
        ({"model": None, "backbone": None, "channels": None}, "there is no model"),
        ({"weights": "toys"}, "weights bring their own backbone"),
        (
            {"weights": "toys", "backbone": None, "channels": None, "backbone_pretrained": True},
            "weights bring their own",
        ),
        ({"model": None, "weights": "toys", "backbone": None, "channels": None}, "need a model name"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_be_meant(
    options: dict[str, Any], words: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {**NETWORK, **TINY, "epochs": 1, **options}
    with pytest.raises((OptionError, UnknownNameError), match=re.escape(words)):
        finetune(few, out=tmp_path / "out", progress=False, **chosen)
    assert not (tmp_path / "out").exists()
    command = arguments(few, tmp_path / "out", **{name: value for name, value in chosen.items() if value is not None})
    assert main(command) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith("zoo-seg: error: ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": 3}, "finetune has no option 'epoch'; did you mean 'epochs'?"),
        ({"learning_rate": 0.1}, "finetune has no option 'learning_rate'; here it is 'lr'"),
        ({"amp": True}, "finetune has no option 'amp'; here it is 'precision'"),
        ({"num_workers": 2}, "finetune has no option 'num_workers'; here it is 'workers'"),
        ({"logger": "wandb"}, "finetune has no option 'logger'; known are epochs, "),
        ({"crop_size": 512}, "crop_size is 512; expected two of: a whole number"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected a whole number"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; expected 'sgd' or 'adamw'"),
        ({"photometric": "yes"}, "photometric is 'yes'; expected True or False"),
        ({"schedule": "step"}, "schedule is 'step'; expected 'poly' or 'cosine' or 'constant'"),
        ({"scheduler": "cosine"}, "finetune has no option 'scheduler'; here it is 'schedule'"),
        ({"patience": 0}, "patience is 0; expected at least 1"),
        ({"class_weights": "rare"}, "class_weights is 'rare'; expected 'none' or 'balanced' or several of: a number"),
        ({"class_weights": [0, 0, 0]}, "class_weights is (0, 0, 0); expected numbers of at least 0"),
        ({"class_weights": [1, -1, 1]}, "expected numbers of at least 0"),
        ({"class_weights": [1, 2], "batch_size": 4}, "class_weights are 2 for 3 classes; expected as many"),
        ({"class_weights": "balanced", "loss": soft_iou, "batch_size": 4}, "a loss of your own brings its own"),
        ({"transforms": 7}, "transforms is of type int; expected a callable"),
        ({"log_with": "wandbb"}, "log_with is 'wandbb'; did you mean 'wandb'?"),
        ({"train": [1], "val": [1]}, "data is given, which brings its own train, val, classes and palette"),
    ],
)
def test_a_keyword_that_cannot_be_meant(options: dict[str, Any], words: str, few: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        finetune(few, out=tmp_path / "out", **NETWORK, **options)
    assert not (tmp_path / "out").exists()


def test_every_setting_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in told
    assert "(default 512 512)" in told
    assert "(default 0.01)" in told


def test_one_picture_pooled_to_one_value(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**TINY, "model": "pspnet", "backbone": BACKBONE, "channels": 8, "epochs": 1}
    assert main(arguments(few, tmp_path, **{**options, "batch_size": 1})) == 2
    told = capsys.readouterr().err
    assert "BatchNorm cannot train on one image" in told
    assert "freeze='batchnorm'" in told
    with pytest.raises(OptionError, match="batch_size 4, accumulate 4"):  # and the folder is free for another try
        finetune(few, out=tmp_path, accumulate=4, progress=False, **options)


def test_a_run_that_fails_in_its_first_steps_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss is"):
        finetune(data, out=tmp_path / "out", progress=False, **{**NETWORK, **TINY, "epochs": 9, "lr": 1e30})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lr", [1e30, 1e12])
def test_a_loss_that_is_no_number(lr: float, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(data, tmp_path, **{**NETWORK, **TINY, "epochs": 9, "lr": lr})) == 1
    told = capsys.readouterr().err
    named = re.search(r"the loss is (nan|inf) in epoch \d, step \d+ \(images: ([^)]*)\)", told)
    assert named
    assert len(set(named[2].split(", "))) == 4
    assert "lower lr" in told
    assert all((data / "images" / "train" / f"{name}.jpg").is_file() for name in named[2].split(", "))


def test_a_picture_that_vanishes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    original = Loop.train

    def train(self: Loop, journal: Any) -> None:
        (copy / "images" / "train" / "005.jpg").unlink()
        original(self, journal)

    monkeypatch.setattr(Loop, "train", train)
    for workers in (0, 1):
        options = {**NETWORK, **TINY, "epochs": 1, "workers": workers}
        shutil.copy(data / "images" / "train" / "005.jpg", copy / "images" / "train")
        assert main(arguments(copy, tmp_path / "out", **options)) == 1
        told = capsys.readouterr().err
        assert "005.jpg" in told.splitlines()[-1]
        assert "Traceback" not in told


# --- folders that cannot be written, or gone on with ----------------------------------------------


def test_a_folder_with_something_in_it_is_kept(
    trained: Trained, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(out: Path, *more: str) -> str:
        assert main([*arguments(few, out, **{**NETWORK, **TINY, "epochs": 1}), *more]) == 2
        return capsys.readouterr().err

    assert "holds a run; add --resume" in refused(trained.out)
    (tmp_path / "file").write_text("mine")
    assert "is a file; expected a folder" in refused(tmp_path / "file")
    assert "is a file; expected a folder" in refused(tmp_path / "file", "--resume")
    (tmp_path / "README.md").write_text("mine")
    assert "holds README.md, which would be lost" in refused(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "cannot be written to" in refused(Path("/dev/null/out"))


def test_resuming_needs_a_run(trained: Trained, few: Path, tmp_path: Path, quick: Callable[..., Path]) -> None:
    with pytest.raises(OptionError, match=r"holds no run to resume; leave out --resume \(resume=True\)"):
        quick(few, "nothing", resume=True)
    copy = shutil.copytree(trained.out, tmp_path / "copy")
    (copy / "state.pt").unlink()
    with pytest.raises(OptionError, match=r"lost its state\.pt"):
        quick(few, "copy", resume=True)
    (copy / "state.pt").write_bytes((trained.out / "state.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        quick(few, "copy", resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.2}, "lr 0.1 (now 0.2)"),
        ({"epochs": 3}, "epochs 6 (now 3)"),
        ({"epochs": 12, "lr": 0.2}, "lr 0.1 (now 0.2)"),
        ({"loss": soft_iou}, "loss None (now 'test_finetune.soft_iou')"),
        ({"schedule": "cosine"}, "schedule 'poly' (now 'cosine')"),
        ({"scale": (0.5, 1.0), "seed": 3}, "scale [1.0, 1.0] (now [0.5, 1.0]); seed 0 (now 3)"),
        ({"channels": 8}, "channels 16 (now 8)"),
        ({"backbone": "lcnet_050"}, f"backbone {BACKBONE!r} (now 'lcnet_050')"),
    ],
)
def test_resuming_needs_the_same_settings(
    options: dict[str, Any], words: str, trained: Trained, data: Path, undrawn: None
) -> None:
    same = {**NETWORK, **TINY, "epochs": 6, "lr": 0.1, "scale": (1.0, 1.0), "photometric": False}
    with pytest.raises(OptionError, match=re.escape(words)):
        finetune(data, out=trained.out, resume=True, progress=False, **{**same, **options})


def test_resuming_needs_the_same_data(trained: Trained, data: Path, tmp_path: Path, undrawn: None) -> None:
    same = {**NETWORK, **TINY, "epochs": 6, "lr": 0.1, "scale": (1.0, 1.0), "photometric": False}
    other = shutil.copytree(data, tmp_path / "other")

    def refusal() -> str:
        with pytest.raises(OptionError) as raised:
            finetune(other, out=trained.out, resume=True, progress=False, **same)
        return str(raised.value)

    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (other / kind / "train" / f"011.{suffix}").rename(other / kind / "train" / f"012.{suffix}")
    assert "'011' in train (now '012')" in refusal()
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (other / kind / "train" / f"012.{suffix}").unlink()
    assert "12 in train (now 11)" in refusal()
    description = json.loads((other / "dataset.json").read_text())
    description["classes"][1] = "cat"
    (other / "dataset.json").write_text(json.dumps(description))
    assert "'thing 1' in classes (now 'cat')" in refusal()


@pytest.mark.parametrize(("share", "file"), [(0.5, "model.safetensors"), (0.9, "state.pt")])
def test_a_full_disk_leaves_what_was_there(
    share: float, file: str, data: Path, unbroken: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is full from the third epoch on."""
    limit = int(share * (unbroken / file).stat().st_size)
    original, epochs = Loop._validate, iter(range(2))

    with ExitStack() as stack, monkeypatch.context() as patch:

        def validate(self: Loop) -> dict[str, float]:
            if next(epochs, None) is None:
                stack.enter_context(largest_file(limit))
            return original(self)

        patch.setattr(Loop, "_validate", validate)
        with pytest.raises(TrainingError, match=r"cannot be written to .*File too large.*--resume"):
            finetune(data, out=tmp_path, progress=False, **LONG)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    scores = [line["mIoU"] for line in log_of(tmp_path) if "mIoU" in line]
    kept = from_pretrained(tmp_path).metrics[0].value
    assert kept == max(scores)
    assert len(scores) == (2 if file == "model.safetensors" else 3)
    assert not list(tmp_path.rglob("*.part"))
    finetune(data, out=tmp_path, resume=True, progress=False, **LONG)
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("package", ["accelerate", "tensorboard", "matplotlib"])
def test_a_missing_extra_is_named(
    package: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = (package, "zoo_seg.training", "zoo_seg.cli.finetune", "torch.utils.tensorboard")
    for name in [name for name in sys.modules if name.startswith(hidden)]:
        if name != Settings.__module__:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(arguments(few, tmp_path / "out", **NETWORK)) == 1
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines())) == ("", 1)
    assert f"{package} is missing" in told.err
    assert "pip install 'zoo_seg[train]'" in told.err
    monkeypatch.delitem(zoo_seg.__dict__, "finetune", raising=False)
    with pytest.raises(MissingExtraError, match="pip install"):
        _ = zoo_seg.finetune
