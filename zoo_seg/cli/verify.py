"""`zoo-seg verify`"""

from __future__ import annotations

import argparse

from zoo_seg import settings
from zoo_seg.hub import cache
from zoo_seg.text import table


def run(arguments: argparse.Namespace) -> int:
    """Hash every cached file; exit code 1 when one was damaged."""
    results = list(cache.verify())
    if not results:
        print(f"nothing is cached in {settings.home()}")
        return 0
    rows = [[result.status, result.id, result.path.name, (result.got or "-")[:16]] for result in results]
    print(table(["status", "weights", "file", "sha256"], rows))
    bad = [result for result in results if result.status in ("damaged", "unreadable")]
    for result in bad:
        expected, got = result.expected or "a readable file", result.got or "nothing readable"
        print(f"\n{result.path}: expected {expected}, found {got}; set aside, the next use fetches it again")
    return 1 if bad else 0
