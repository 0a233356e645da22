"""`zoo-seg list`"""

from __future__ import annotations

import argparse

from zoo_seg.cli.text import print_json
from zoo_seg.errors import OptionError
from zoo_seg.manifest import list_weights
from zoo_seg.text import table


def run(arguments: argparse.Namespace) -> int:
    """Print the matching weights as a table or as JSON."""
    most = arguments.max_parameters
    if most is not None and not 0 <= most < 1e9:
        raise OptionError(f"--max-parameters is {most}; expected millions, such as 50")
    records = list_weights(
        arguments.model,
        arguments.dataset,
        arguments.source,
        min_miou=arguments.min_miou,
        max_parameters=None if most is None else int(most * 1e6),
        sort=arguments.sort,
    )
    if arguments.json:
        print_json(records)
        return 0
    rows = [
        [
            record.id,
            record.dataset,
            record.source,
            str(record.num_classes),
            f"{record.parameters / 1e6:.1f} M",
            "-" if record.miou is None else f"{record.miou:.2f}",
        ]
        for record in records
    ]
    print(table(["id", "data set", "source", "classes", "parameters", "mIoU %"], rows, right=(3, 4, 5)))
    count = f"{len(rows)} weight{'' if len(rows) == 1 else 's'}"
    print(f"\n{count}; mIoU as reported by the publisher, single scale. 'zoo-seg info ID' tells more.")
    return 0
