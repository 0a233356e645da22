"""Objects of one's own that watch a run and may end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo_seg.errors import OptionError
from zoo_seg.model import SegmentationModel
from zoo_seg.training.callables import blaming, name_of

HOOKS = ("on_step_end", "on_epoch_end", "on_train_end")


@dataclass(frozen=True)
class TrainingState:
    """How far a run is: what a callback is given."""

    epoch: int
    """From 1; after so many the run was, at the end of one."""
    epochs: int
    step: int
    """Steps of the optimiser since the beginning of the run."""
    steps: int
    loss: float
    """Of this step over all processes; at the end of an epoch its mean."""
    lr: float
    """Of this step, or of the epoch's last one."""
    metrics: Mapping[str, float]
    """`mIoU` and `aAcc` on val in percent, of the last validation; empty before the first."""
    best: float | None
    """The highest mIoU so far; None before the first validation."""
    model: SegmentationModel
    """In `on_step_end` the network in training; in the others the one that was measured (see `ema`), in `eval()`."""
    folder: Path
    """What the run writes to."""


class Callback:
    """Watches a run; any object with one or more of these methods will do. Only the main process calls them."""

    def on_step_end(self, state: TrainingState) -> None:
        """After a step of the optimiser."""

    def on_epoch_end(self, state: TrainingState) -> bool | None:
        """After a validation, when the network was kept; True ends the run as if this were its last epoch."""

    def on_train_end(self, state: TrainingState) -> None:
        """After the last epoch."""


class Callbacks:
    """Calls all of them in order.

    Raises:
        OptionError: one has none of the hooks.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        if not isinstance(callbacks, (list, tuple)):
            raise OptionError(f"callbacks is of type {type(callbacks).__name__}; expected a list of objects")
        for number, each in enumerate(callbacks):
            if isinstance(each, type) or not any(callable(getattr(each, hook, None)) for hook in HOOKS):
                found = f"the class {each.__name__}" if isinstance(each, type) else f"of type {type(each).__name__}"
                raise OptionError(
                    f"callbacks[{number}] is {found}; expected an object with {', '.join(HOOKS[:-1])} or {HOOKS[-1]}"
                )
        self.callbacks = callbacks

    def call(self, hook: str, state: TrainingState) -> bool:
        """Whether one of them returned True.

        Raises:
            TrainingError: one failed; the message names it and the hook.
        """
        stop = False
        for each in self.callbacks:
            method = getattr(each, hook, None)
            if method is None:
                continue
            where = f" (epoch {state.epoch}, step {state.step})"
            kept = "" if state.best is None else f"; what {state.folder} holds is unharmed, and resume=True goes on"
            with blaming(f"the callback {name_of(each)}.{hook}{where}", kept):
                stop = bool(method(state)) or stop
        return stop
