"""The folder of a training run: its log, and the state from which it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo_seg.errors import CheckpointError, OptionError, TrainingError
from zoo_seg.training.settings import Settings
from zoo_seg.weights.files import replacing

STATE, LOG = "state.pt", "log.jsonl"


class Run:
    """`state.pt` holds what the next epoch starts from, `log.jsonl` a line every few steps and for every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Refuse a folder that holds a run, before it is overwritten.

        Raises:
            OptionError: there is one, or the path is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"{self.folder} is a file; expected a folder to write to")
        for name in (STATE, LOG):
            if (self.folder / name).exists():
                raise OptionError(
                    f"{self.folder} holds a run; add --resume (resume=True) to go on, or choose another out"
                )
        self.folder.mkdir(parents=True, exist_ok=True)

    def resume(self, settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state that an interrupted run left; None where it was stopped within its first epoch.

        Raises:
            OptionError: the run had other settings, another network or other classes.
            CheckpointError: the state cannot be read.
        """
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            before, different = state["facts"], settings.differences(state["settings"])
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); without it the run begins anew: delete the file"
            ) from None
        different += [
            f"{key} {before.get(key)!r} (now {facts[key]!r})" for key in facts if before.get(key) != facts[key]
        ]
        if different:
            raise OptionError(
                f"{self.folder} holds a run with {'; '.join(different)}; give it the same ones, or choose another out"
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state in one step: the one before survives a full disk.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            with replacing(self.folder / STATE) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise TrainingError(
                f"{self.folder / STATE} cannot be written ({error}); the state of epoch {state['epoch'] - 1} is still "
                "there: make room and run the same command with --resume"
            ) from None

    def keep_log(self, epochs: int) -> list[dict[str, Any]]:
        """Cut the log after so many epochs, since the ones after them are done again; return its lines."""
        path = self.folder / LOG
        lines = []
        if path.is_file():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # the run was stopped while it wrote
                    break
                if line["epoch"] > epochs:
                    break
                lines.append(line)
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return lines

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
