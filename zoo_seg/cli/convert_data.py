"""`zoo-seg convert-data`"""

from __future__ import annotations

import argparse

from zoo_seg.data import open_data
from zoo_seg.data.convert import convert_data
from zoo_seg.data.wording import many


def run(arguments: argparse.Namespace) -> int:
    """Write the data set as a folder of images, masks and dataset.json."""
    data = open_data(
        arguments.data, arguments.layout, val_fraction=arguments.val_fraction, mask_suffix=arguments.mask_suffix
    )
    out = convert_data(data, arguments.out)
    counts = ", ".join(f"{many(len(data.samples(split)), 'image')} of {split}" for split in data.splits)
    print(f"{out}: {counts}, {data.num_classes} classes; zoo-seg check-data {out}")
    return 0
