"""The `zoo-seg` command."""

from zoo_seg.cli.main import main

__all__ = ["main"]
