"""Callbacks by themselves: which hooks are called, what they return, and who is named when one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zoo_seg import build_model
from zoo_seg.errors import OptionError, TrainingError
from zoo_seg.training.callbacks import Callback, Callbacks, TrainingState


def state(**facts: Any) -> TrainingState:
    known = {"epoch": 2, "epochs": 5, "step": 20, "steps": 50, "loss": 0.5, "lr": 0.01, "metrics": {"mIoU": 40.0}}
    model = build_model("fcn", "mobilenetv3_small_050", 3, channels=8)
    return TrainingState(**{**known, "best": 41.0, "model": model, "folder": Path("runs/mine"), **facts})


class Notes(Callback):
    def __init__(self, stop: Any = None) -> None:
        self.stop, self.seen = stop, []  # type: ignore[var-annotated]

    def on_epoch_end(self, state: TrainingState) -> Any:
        self.seen.append(state.epoch)
        return self.stop


class StepsAlone:
    def on_step_end(self, state: TrainingState) -> None:
        raise ValueError("no steps, please")


def test_one_that_returns_true_stops_and_all_are_called() -> None:
    notes = [Notes(), Notes(True), Notes(False)]
    assert Callbacks(notes).call("on_epoch_end", state()) is True
    assert [each.seen for each in notes] == [[2], [2], [2]]
    assert Callbacks([Notes(), Notes(False)]).call("on_epoch_end", state()) is False


def test_an_object_needs_one_of_the_hooks_only() -> None:
    assert Callbacks([StepsAlone()]).call("on_train_end", state()) is False


def test_one_that_fails_is_named_with_its_hook() -> None:
    with pytest.raises(TrainingError) as raised:
        Callbacks([Notes(), StepsAlone()]).call("on_step_end", state())
    message = str(raised.value)
    assert "StepsAlone.on_step_end (epoch 2, step 20) raised ValueError: no steps, please" in message
    assert "what runs/mine holds is unharmed, and resume=True goes on" in message
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(TrainingError, match=r"no steps, please$"):  # there is nothing yet
        Callbacks([StepsAlone()]).call("on_step_end", state(best=None))


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (Notes(), "callbacks is of type Notes; expected a list"),
        ([Notes(), print], "callbacks[1] is of type builtin_function_or_method; expected an object with on_step_end"),
        ([Notes], "callbacks[0] is the class Notes; expected an object"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks: Any, words: str) -> None:
    with pytest.raises(OptionError) as raised:
        Callbacks(callbacks)
    assert words in str(raised.value)
