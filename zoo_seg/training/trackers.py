"""Accelerate's trackers: where else a run is logged, beside its log.jsonl and TensorBoard files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from zoo_seg.decode import suggest
from zoo_seg.errors import MissingExtraError, OptionError
from zoo_seg.training.callables import blaming
from zoo_seg.training.settings import Settings, as_plain

TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")
"""Their names, which are their packages' too."""


def chosen_trackers(log_with: str | GeneralTracker | Sequence[str | GeneralTracker] | None) -> list[Any]:
    """What `Accelerator` takes; TensorBoard, which is always there, is left out.

    Raises:
        OptionError: no tracker has this name.
        MissingExtraError: its package is not installed.
    """
    asked = [] if log_with is None else log_with if isinstance(log_with, (list, tuple)) else [log_with]
    present = {str(getattr(each, "value", each)) for each in get_available_trackers()}
    for each in asked:
        if isinstance(each, GeneralTracker):
            continue
        if each not in TRACKERS:
            raise OptionError(f"log_with is {each!r}; {suggest(str(each), list(TRACKERS))}")
        if each not in present:
            raise MissingExtraError(f"log_with {each!r} needs its package: pip install {each}")
    return [each for each in asked if each != "tensorboard"]


@contextmanager
def tracking(
    accelerator: Accelerator, settings: Settings, folder: Path
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Start the accelerator's trackers, as the run of this folder; give the function that logs values at a step."""
    names = ", ".join(str(getattr(each, "value", getattr(each, "name", each))) for each in accelerator.log_with)
    config = {"out": str(folder)} | {
        name: value if value is None or isinstance(value, (int, float, str)) else str(value)
        for name, value in as_plain(settings).items()
    }
    with blaming(f"log_with {names}"):
        accelerator.init_trackers("zoo_seg", config)

    def log(values: dict[str, float], step: int) -> None:
        with blaming(f"log_with {names}"):
            accelerator.log(values, step=step)

    try:
        yield log
    finally:
        for tracker in accelerator.trackers:  # accelerator.end_training would end the group of processes as well
            tracker.finish()
