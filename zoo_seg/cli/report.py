"""What became of every picture of a run: told to people, and as JSON to programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Result = Mapping[str, str | int | None]
"""A picture and the files that were written for it, by name."""


@dataclass(frozen=True)
class Failure:
    """A picture that could not be done."""

    picture: Path | str
    reason: str

    @classmethod
    def of(cls, picture: Path | str, message: str) -> Failure:
        """From a message that may begin with the picture's name."""
        return cls(picture, message.removeprefix(f"{picture}: "))


@dataclass
class Report:
    """The pictures that are done, that were there before, and that failed."""

    done: list[Result] = field(default_factory=list)
    kept: list[Result] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def tell(self, json_to: str | None, where: str) -> None:
        """Print each failure and the counts, and write everything as JSON to a file or, for `-`, to stdout.

        Args:
            where: what the counts end with.
        """
        for failure in self.failed:
            print(f"zoo-seg: {printable(f'{failure.picture}: {failure.reason}')}", file=sys.stderr)
        counts = [(len(self.done), "done"), (len(self.kept), "already there"), (len(self.failed), "failed")]
        summary = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing done"
        print(f"{summary}; {printable(where)}", file=sys.stderr if json_to == "-" else sys.stdout)
        if json_to is not None:
            text = json.dumps(self._as_json(), indent=2)  # ASCII: any name survives, whatever its bytes
            if json_to == "-":
                print(text)
            else:
                Path(json_to).write_text(text + "\n", encoding="ascii")

    def _as_json(self) -> dict[str, list[Result]]:
        failed: list[Result] = [{"picture": str(each.picture), "reason": each.reason} for each in self.failed]
        return {"done": self.done, "kept": self.kept, "failed": failed}


def printable(text: str) -> str:
    """One line that any terminal can show and that does nothing to it: a file may be called anything."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
