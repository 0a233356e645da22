"""`zoo-seg check-data`"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from zoo_seg.data import SegmentationData, open_data
from zoo_seg.data.check import check_data
from zoo_seg.data.findings import DataReport, Size, SplitReport, ValueCount
from zoo_seg.data.wording import many
from zoo_seg.text import table

_MOST_ROWS = 20
"""Of unknown labels; the message above sums up the others."""
_LONGEST = 28
"""Characters of a class name."""


def run(arguments: argparse.Namespace) -> int:
    """Read the whole data set and print what was found; 1 when training would fail."""
    data = open_data(
        arguments.data, arguments.layout, val_fraction=arguments.val_fraction, mask_suffix=arguments.mask_suffix
    )
    report = check_data(data, arguments.split, workers=arguments.workers)
    if arguments.json:
        print(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        _print(data, report)
    return 1 if report.errors else 0


def _print(data: SegmentationData, report: DataReport) -> None:
    print(f"{report.root}: layout {report.layout}, {data.num_classes} classes, {data.ignore_index} is ignored\n")
    rows = [[split.name, str(split.pictures), _wide(split.smallest), _wide(split.largest)] for split in report.splits]
    print(table(["split", "images with mask", "smallest", "largest"], rows, right=(1, 2, 3)))
    if any(split.values for split in report.splits):
        print(f"\n{_histogram(report.splits)}")
    for title, messages in (("note", report.notes), ("error", report.errors), ("warning", report.warnings)):
        for message in messages:
            text = f"{title}: {message}"
            print(
                "\n" + textwrap.fill(text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            )
    print(f"\n{_verdict(report)}")


def _histogram(splits: Sequence[SplitReport]) -> str:
    """A row for each stored value, with its share of the pixels and its masks in every split."""
    found: dict[tuple[str, str, int | None], dict[str, ValueCount]] = {}
    for split in splits:
        for each in split.values:
            found.setdefault((each.value, each.meaning, each.class_id), {})[split.name] = each
    rank = {"ignored": 1, "unknown label": 2}  # of what is no class; the sort keeps the commonest unknown label first
    rows = sorted(found, key=lambda row: (0, row[2]) if row[2] is not None else (rank[row[1]], 0))
    unknown = [row for row in rows if row[2] is None and row[1] == "unknown label"]
    shown = rows[: len(rows) - max(len(unknown) - _MOST_ROWS, 0)]
    head = ["value", "class", *(text for split in splits for text in (f"{split.name} %", "masks"))]
    lines = [
        [
            value,
            _short(meaning),
            *(text for split in splits for text in _cells(found[value, meaning, index].get(split.name))),
        ]
        for value, meaning, index in shown
    ]
    more = f"\n(and {len(rows) - len(shown)} further unknown labels)" if len(rows) > len(shown) else ""
    return table(head, lines, right=(0, *range(2, len(head)))) + more


def _cells(counted: ValueCount | None) -> tuple[str, str]:
    if counted is None:
        return "-", "-"
    percent = 100 * counted.share
    return f"{percent:.2f}" if percent >= 0.005 else "<0.01", str(counted.files)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."


def _wide(size: Size | None) -> str:
    return f"{size[1]}x{size[0]}" if size else "-"


def _verdict(report: DataReport) -> str:
    if report.errors:
        return f"{many(len(report.errors), 'error')}: training would fail"
    return f"training can begin ({many(len(report.warnings), 'warning')})" if report.warnings else "all is well"
