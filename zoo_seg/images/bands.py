"""Which bands of an image become the channels that a network reads, and which of their values are black and white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from zoo_seg.errors import ImageError, OptionError

Range = tuple[float, float]
"""The values that become black (0) and white (255); what lies outside becomes the nearer of them."""


@dataclass(frozen=True)
class Wanted:
    """What an image is read as."""

    channels: int = 3
    bands: tuple[int, ...] | None = None
    """Numbers of the file's bands, from 1 on; None takes all, and there must be as many as channels."""
    ranges: tuple[Range, ...] | None = None
    """One for all channels, or one for each."""

    @property
    def is_rgb(self) -> bool:
        """Colours, for which grey is repeated and other colour spaces are converted."""
        return self.channels == 3 and self.bands is None

    def choose(self, found: int, name: str, *, has_alpha: bool = False) -> slice | list[int]:
        """Which of an image's `found` bands to read, as an index. Where only the alpha is too many, it is left out.

        Raises:
            ImageError: there are not so many, or more than are wanted.
        """
        if self.bands is not None:
            if max(self.bands) > found:
                raise ImageError(
                    f"{name}: {many(found, 'band')}, expected at least {max(self.bands)} for the bands "
                    f'{list(self.bands)}; choose others ("bands" in dataset.json, --bands, bands= in Python)'
                )
            return [band - 1 for band in self.bands]
        if found == self.channels or found - has_alpha == self.channels:
            return slice(self.channels)
        if self.is_rgb and found - has_alpha == 1:
            return slice(1)
        raise ImageError(f"{name}: {many(found, 'band')}, expected {self.channels}; {self._advice(found)}")

    def _advice(self, found: int) -> str:
        if found < self.channels:
            return (
                f"take images of {many(self.channels, 'band')}, or a network of {many(found, 'channel')} "
                f'(trained with "channels": {found} in dataset.json)'
            )
        some = list(range(1, self.channels + 1))
        convert = "convert it to grey first, or " if self.channels == 1 and found - 1 in (2, 3) else ""
        return (
            f'{convert}choose bands, such as "bands": {some} in dataset.json (--bands {" ".join(map(str, some))}, '
            f'bands={some} in Python); "channels": {found} trains a network on all of them'
        )


def many(count: int, what: str) -> str:
    """`1 band`, `4 bands`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def check_range(range: Any, channels: int | None = None) -> tuple[Range, ...] | None:  # noqa: A002  (the field's word)
    """The pairs of a range: one, or one for each of the channels; refuses what is no range.

    Raises:
        OptionError: a pair is not two finite numbers, the smaller one first, or there are not so many.
    """
    if range is None:
        return None
    try:
        pairs: list[Range] = [(low, high) for low, high in ([range] if isinstance(range[0], Real) else range)]
        good = all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in pairs)
    except (TypeError, ValueError, LookupError):
        good = False
    if not good or not pairs:
        raise OptionError(f"range is {range!r}; expected the values that are black and white, such as (0, 4095)")
    if channels is not None and len(pairs) not in (1, channels):
        raise OptionError(f"range is {range!r}; expected one pair of values, or {channels}: one for each channel")
    return tuple(pairs)


def check_bands(bands: Sequence[int] | None, channels: int) -> tuple[int, ...] | None:
    """The numbers of bands as a tuple; refuses what is none.

    Raises:
        OptionError: they are not whole numbers from 1 on, or not as many as the channels.
    """
    if bands is None:
        return None
    try:
        numbers = tuple(bands)
    except TypeError:
        numbers = ()
    if not numbers or not all(isinstance(each, int) and each >= 1 for each in numbers):
        raise OptionError(f"bands is {bands!r}; expected numbers of bands, from 1 on, such as [1, 2, 3]")
    if len(numbers) != channels:
        raise OptionError(f"bands is {bands!r}; expected {channels}, as many as the network has channels")
    return numbers
