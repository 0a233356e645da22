"""`zoo-seg finetune`"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from zoo_seg.errors import TrainingError
from zoo_seg.training.finetune import finetune
from zoo_seg.training.settings import Settings


def run(arguments: argparse.Namespace) -> int:
    """Train, and say where the result is."""
    options = {each.name: getattr(arguments, each.name) for each in fields(Settings)}
    try:
        model = finetune(
            arguments.data,
            arguments.model,
            arguments.weights,
            out=arguments.out,
            layout=arguments.layout,
            backbone=arguments.backbone,
            backbone_pretrained=arguments.backbone_pretrained,
            channels=arguments.channels,
            resume=arguments.resume,
            device=arguments.device,
            workers=arguments.workers,
            **options,
        )
    except KeyboardInterrupt:
        raise TrainingError(f"interrupted; the same command with --resume goes on in {arguments.out}") from None
    print(f"{Path(arguments.out)}: {len(model.classes)} classes; use it with --weights {arguments.out}")
    return 0
