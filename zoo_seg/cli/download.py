"""`zoo-seg download`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoo_seg.errors import DownloadError, OptionError
from zoo_seg.hub import cache
from zoo_seg.manifest import get_weights, list_weights

_CLAIM = {
    None: "",
    True: ", which begins with the digits in the publisher's file name",
    False: ", which does not begin with the digits in the publisher's file name (reported, not enforced)",
}


def run(arguments: argparse.Namespace) -> int:
    """Fetch each record; go on past a failure and report it."""
    if bool(arguments.ids) == arguments.all:
        raise OptionError("name the weights to fetch (see 'zoo-seg list'), or pass --all, but not both")
    records = list_weights() if arguments.all else [get_weights(name) for name in arguments.ids]
    failed = 0
    for record in records:
        try:
            if arguments.to:
                print(f"{record.id}  {cache.export(record, Path(arguments.to))}")
            else:
                file = cache.fetch(record)
                print(f"{record.id}  {file.path}  sha256 {file.sha256}{_CLAIM[file.prefix_claim_holds]}")
        except DownloadError as error:
            failed += 1
            print(f"zoo-seg: {record.id}: {error}", file=sys.stderr)
    if arguments.to and failed < len(records):
        print(f"use it with ZOO_SEG_MIRROR={Path(arguments.to).resolve()}")
    if failed and len(records) > 1:
        print(f"zoo-seg: {failed} of {len(records)} could not be fetched", file=sys.stderr)
    return 1 if failed else 0
