"""`zoo-seg list`"""

from __future__ import annotations

import argparse

from zoo_seg.cli.text import print_json
from zoo_seg.errors import OptionError
from zoo_seg.manifest import list_weights
from zoo_seg.text import table


def run(arguments: argparse.Namespace) -> int:
    """Print the matching weights as a table or as JSON."""
    most, work = arguments.max_parameters, arguments.max_gmacs
    if most is not None and not 0 <= most < 1e9:
        raise OptionError(f"--max-parameters is {most}; expected millions, such as 50")
    if work is not None and not 0 <= work < 1e9:
        raise OptionError(f"--max-gmacs is {work}; expected billions, such as 100")
    if arguments.max_seconds is not None and not arguments.max_seconds >= 0:
        raise OptionError(f"--max-seconds is {arguments.max_seconds}; expected seconds, such as 0.5")
    records = list_weights(
        arguments.model,
        arguments.dataset,
        arguments.source,
        min_miou=arguments.min_miou,
        max_parameters=None if most is None else int(most * 1e6),
        max_multiply_adds=None if work is None else int(work * 1e9),
        max_seconds=arguments.max_seconds,
        best=arguments.best,
        sort="multiply_adds" if arguments.sort == "gmacs" else arguments.sort,
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
            "-" if record.multiply_adds is None else f"{record.multiply_adds / 1e9:.1f}",
            "-" if record.seconds is None else f"{record.seconds:.3g}",
            "-" if record.miou is None else f"{record.miou:.2f}",
        ]
        for record in records
    ]
    head = ["id", "data set", "source", "classes", "parameters", "GMac", "seconds", "mIoU %"]
    print(table(head, rows, right=range(3, 8)))
    count = f"{len(rows)} weight{'' if len(rows) == 1 else 's'}"
    which = ": those that no other beats in mIoU at less cost" if arguments.best else ""
    print(
        f"\n{count}{which}; mIoU as reported by the publisher, single scale; GMac at 512x512, seconds at 512x683 on "
        "two CPU cores. 'zoo-seg info ID' tells more."
    )
    return 0
