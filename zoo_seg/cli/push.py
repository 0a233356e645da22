"""`zoo-seg push`"""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo_seg.cli.network import load_network
from zoo_seg.config import CARD
from zoo_seg.factory import from_pretrained
from zoo_seg.hub.huggingface import repository
from zoo_seg.model import SegmentationModel
from zoo_seg.saving.card import is_generated


def run(arguments: argparse.Namespace) -> int:
    """Push, and say how the network is loaded elsewhere."""
    folder = Path(arguments.weights)
    if folder.is_dir() and not arguments.model:
        model, card = from_pretrained(folder), _written_by_hand(folder)
    else:
        model, card = load_network(arguments), None
    url = _push(model, card, arguments)
    target = repository(arguments.repository)
    assert target is not None
    print(f'{url}\nload it with zoo_seg.from_pretrained("{target.at(arguments.revision).name}")')
    return 0


def _push(model: SegmentationModel, card: str | None, arguments: argparse.Namespace) -> str:
    return model.push_to_hub(
        arguments.repository,
        private=arguments.private or None,  # else as the organisation has it
        revision=arguments.revision,
        example=arguments.example,
        card=card,
    )


def _written_by_hand(folder: Path) -> str | None:
    """The folder's card, where it is not as this library made it: it goes along as it is."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    return None if text is None or is_generated(text) else text
