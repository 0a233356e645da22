"""What users bring along: how it is called in a record, and who is named when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from zoo_seg.errors import TrainingError, ZooSegError


def name_of(part: Callable[..., Any] | object) -> str:
    """The qualified name of a function, or of the class of an object: `mine.losses.Tversky`."""
    if isinstance(part, partial):
        return name_of(part.func)
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"


@contextmanager
def blaming(what: str, hint: str = "") -> Iterator[None]:
    """Around a call of what a user brought along.

    Raises:
        TrainingError: it failed; the message names it and the error, whose traceback stays beneath.
    """
    try:
        yield
    except (ZooSegError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TrainingError(f"{what} raised {type(error).__name__}: {error}{hint}") from error
