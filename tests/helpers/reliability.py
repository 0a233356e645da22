"""The tables of `docs/reliability.md`: tests fill them, and hold what is written there to what they see."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


class Reliability:
    """Rows in Markdown tables, each behind `<!-- table: NAME -->` and known by its first cell.

    The cells of a row that every machine sees alike are compared with the document; the figures after them are written
    only.
    """

    def __init__(self, write: bool) -> None:
        self._write = write
        self._new: dict[str, list[str]] = defaultdict(list)

    def row(self, table: str, *cells: object, figures: tuple[object, ...] = ()) -> None:
        """Write a row, or compare it with the one that is there."""
        line = _line(*cells, *figures)
        if self._write:
            self._new[table].append(line)
            return
        expected = _line(*cells)
        found = [row for row in self.rows(table) if row.startswith(_line(cells[0]))]
        assert any(row.startswith(expected) for row in found[:1]), (
            f"{DOCUMENT.name} has\n{found or 'no such row'}, expected\n{line}\n"
            "If it should: python -m pytest tests/hub/test_faults.py tests/hub/test_crashes.py "
            "tests/checkpoints/test_hostile.py --write-reliability"
        )

    def rows(self, table: str) -> list[str]:
        rows: str = _table(table).findall(DOCUMENT.read_text(encoding="utf-8"))[0][1]
        return rows.splitlines()

    def names(self, table: str) -> list[str]:
        return [row.split(" | ")[0].removeprefix("| ") for row in (self._new[table] or self.rows(table))]

    def finish(self) -> None:
        """Put what was written into the document."""
        for table, rows in self._new.items():
            text = DOCUMENT.read_text(encoding="utf-8")
            found = _table(table).search(text)
            assert found is not None, table
            new = "".join(f"{row}\n" for row in rows)
            DOCUMENT.write_text(text[: found.start()] + found[1] + new + text[found.end() :], encoding="utf-8")


def _line(*cells: object) -> str:
    return "| " + " | ".join(re.sub(r"\s+", " ", str(cell)).replace("|", "\\|") for cell in cells) + " |"


def _table(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- table: {name} -->\n\n\|.*\n\|[- |:]+\n)((?:\|.*\n)*)")
