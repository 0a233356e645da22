"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from zoo_seg.cli.main import main


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


def runner(capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("list", "--json")`; no command may end in a traceback."""

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's way to end
            code = stop.code if isinstance(stop.code, int) else -1
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert "unexpected" not in err
        return Result(code, out, err)

    return run
