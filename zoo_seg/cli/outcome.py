"""What became of every image of a run: told to people, and as JSON to programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo_seg.cli.inputs import SETTINGS
from zoo_seg.errors import OptionError
from zoo_seg.hub.files import replacing

Result = Mapping[str, str | int | None]
"""An image and the files that were written for it, by name."""

_BEGINNING = b'{\n  "done": ['
"""Of every report."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be done."""

    image: Path | str
    reason: str

    @classmethod
    def of(cls, image: Path | str, message: str) -> Failure:
        """From a message that may begin with the image's name."""
        return cls(image, message.removeprefix(f"{image}: "))


@dataclass
class Outcome:
    """The images that are done, that were there before, and that failed."""

    done: list[Result] = field(default_factory=list)
    kept: list[Result] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def tell(self, json_to: str | None, where: str) -> None:
        """Print each failure and the counts, and write everything as JSON to a file or, for `-`, to stdout.

        Args:
            where: what the counts end with.
        """
        for failure in self.failed:
            print(f"zoo-seg: {printable(f'{failure.image}: {failure.reason}')}", file=sys.stderr)
        counts = [(len(self.done), "done"), (len(self.kept), "already there"), (len(self.failed), "failed")]
        summary = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing done"
        print(f"{summary}; {printable(where)}", file=sys.stderr if json_to == "-" else sys.stdout)
        if json_to is not None:
            text = json.dumps(self._as_json(), indent=2)  # ASCII: any name survives, whatever its bytes
            if json_to == "-":
                print(text)
            else:
                with replacing(Path(json_to)) as part:
                    part.write_text(text + "\n", encoding="ascii")

    @staticmethod
    def check(json_to: str) -> None:
        """Refuse a file that `tell` may not write, before the work; its folder is made.

        Raises:
            OptionError: it is no .json file, or there is one that is not an earlier report.
        """
        path = Path(json_to)
        if path.suffix.lower() != ".json":  # an image that was meant as a PATH
            raise OptionError(f"--json {path}; expected a file that ends in .json, or - for stdout")
        if path.name == SETTINGS:
            raise OptionError(f"--json {path} is where predict keeps its settings; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OptionError(f"--json {path} is a folder; expected a file, such as {path / 'report.json'}")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(len(_BEGINNING)) != _BEGINNING:
                    raise OptionError(f"--json {path} is there and no report of zoo-seg predict; choose another name")

    def _as_json(self) -> dict[str, list[Result]]:
        failed: list[Result] = [{"picture": str(each.image), "reason": each.reason} for each in self.failed]
        return {"done": self.done, "kept": self.kept, "failed": failed}


def printable(text: str) -> str:
    """One line that any terminal can show and that does nothing to it: a file may be called anything."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
