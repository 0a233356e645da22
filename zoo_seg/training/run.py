"""The folder of a training run: whether it may be written to, and the state from which it goes on."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zoo_seg.config import CARD, CONFIG, WEIGHTS
from zoo_seg.errors import CheckpointError, OptionError, TrainingError
from zoo_seg.evaluation.details import FILES
from zoo_seg.hub.files import replacing
from zoo_seg.training.settings import Settings

STATE, LOG, CURVE, SAMPLES = "state.pt", "log.jsonl", "curve.png", "samples.png"


class Run:
    """`state.pt` holds what the next epoch starts from, `log.jsonl` a line every few steps and for every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = False

    def check(self, resume: bool) -> None:
        """Refuse a folder that cannot be meant or made, before anything is done for it; it is not made yet.

        Raises:
            OptionError: it holds something that would be overwritten, or nothing to resume; or it is no folder.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"{self.folder} is a file; expected a folder to write to")
        if resume:
            self._check_resumable()
            return
        files = STATE, LOG, WEIGHTS, CONFIG, CARD, CURVE, SAMPLES, *FILES
        taken = [name for name in files if (self.folder / name).exists() and (self.folder / name).stat().st_size]
        if STATE in taken or LOG in taken:  # an empty log is what a run leaves that failed in its first step
            raise OptionError(f"{self.folder} holds a run; add --resume (resume=True) to go on, or choose another out")
        if taken:
            raise OptionError(f"{self.folder} holds {', '.join(taken)}, which would be lost; choose another out")
        try:
            present = next(each for each in (self.folder, *self.folder.absolute().parents) if each.exists())
            with tempfile.TemporaryFile(dir=present):
                pass
        except OSError as error:
            raise OptionError(f"{self.folder} cannot be written to ({error.strerror}); choose another out") from None

    def _check_resumable(self) -> None:
        if (self.folder / STATE).is_file():
            return
        if not (self.folder / LOG).is_file():
            raise OptionError(f"{self.folder} holds no run to resume; leave out --resume (resume=True) to begin one")
        if any(line["epoch"] > 1 for line in self._lines()):
            raise OptionError(f"{self.folder} has lost its {STATE}, without which nothing goes on; choose another out")

    def state(self, settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a run left: an interrupted one, or a finished one, which may now have more epochs.

        Returns:
            None where it was stopped within its first epoch.

        Raises:
            OptionError: the run had other settings, another network, other data, or other callables.
            CheckpointError: the state cannot be read.
        """
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            state = {"waited": 0, "finished": state["epoch"] == state["settings"]["epochs"], **state}
            before = state["settings"]
            if state["finished"] and settings.epochs > before["epochs"]:
                state |= {"waited": 0, "finished": False}
                before = {**before, "epochs": settings.epochs}
            different = settings.differences(before) + _differences({**dict.fromkeys(facts), **state["facts"]}, facts)
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({' '.join(str(error).split())[:200]}); choose another out, and "
                f"{self.folder} as weights where it holds a network"
            ) from None
        if different:
            raise OptionError(
                f"{self.folder} holds a run with {'; '.join(different)}; give it the same ones, or choose another out"
            )
        return state

    def begin(self, epochs: int) -> None:
        """Make the folder; cut the log after so many epochs, since those after them are done again."""
        self._made = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.rglob("*.part"):  # of a run that was killed while it wrote
            part.unlink()
        text = "".join(json.dumps(line) + "\n" for line in self._lines() if line["epoch"] <= epochs)
        with replacing(self.folder / LOG) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _lines(self) -> Iterator[dict[str, Any]]:
        path = self.folder / LOG
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                yield json.loads(text)
            except ValueError:  # the run was stopped while it wrote
                return

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state in one step: the one before survives whatever happens."""
        try:
            with replacing(self.folder / STATE) as temporary, temporary.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error.__context__ or error)) from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around whatever writes to the folder; one that was made for a run that failed at once is removed.

        Raises:
            TrainingError: it cannot be written to.
        """
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.folder} cannot be written to ({error}); what was kept before is unharmed. Make room, then go "
                "on with the same command and --resume (resume=True)"
            ) from None
        except Exception:
            if self._made and not (self.folder / LOG).stat().st_size:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words; of lists the first place."""
    found = []
    for key, value in before.items():
        other = now.get(key)
        if value == other:
            continue
        if isinstance(value, dict) and isinstance(other, dict):
            found += _differences(value, other)
        elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
            place = next(place for place in range(len(value)) if value[place] != other[place])
            found.append(f"{value[place]!r} in {key} (now {other[place]!r})")
        elif isinstance(value, list) and isinstance(other, list):
            found.append(f"{len(value)} in {key} (now {len(other)})")
        else:
            found.append(f"{key} {value!r} (now {other!r})")
    return found
