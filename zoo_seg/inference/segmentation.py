"""What a prediction is: a class map that knows its class names, colours and image."""

from __future__ import annotations

import base64
import html
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from zoo_seg.errors import ImageError, OptionError
from zoo_seg.inference.polygons import Polygon, polygons

_LONGEST_NAME = 40
"""Characters of a class name that a legend shows."""
_SHOWN = (960, 720)
"""The most pixels of an image in a notebook, which keeps it."""
_MOST_SHOWN = 24
"""Classes that a notebook names."""
_FEWEST_ROWS = 20
"""A legend starts a second column only after so many rows, however small the image."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The class map of one image.

    Raises:
        OptionError: the parts do not fit each other.
    """

    mask: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """Class ids (H, W) at the image's own size: uint8, or uint16 beyond 256 classes."""
    classes: tuple[str, ...]
    """The name of each class id."""
    palette: tuple[tuple[int, int, int], ...]
    """The RGB colour of each class id, 0..255."""
    image: npt.NDArray[np.uint8] | None = None
    """The RGB image (H, W, 3) that the mask belongs to; None where it was not kept."""
    confidence: npt.NDArray[np.float32] | None = None
    """The winner's probability (H, W), 0..1; None unless `predict(..., confidence=True)`. It is what the network says
    of itself: how often a class of 0.9 is right depends on the network and the images."""
    probabilities: npt.NDArray[Any] | None = None
    """The probability of every class (C, H, W), float32 or float16, which add up to 1 over the classes; None unless
    `predict(..., probabilities=True)`."""

    def __post_init__(self) -> None:
        shape, dtype = self.mask.shape, self.mask.dtype
        if len(shape) != 2 or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise OptionError(f"the mask is {dtype} of shape {shape}, expected uint8 or uint16 of shape (H, W)")
        if len(self.classes) != len(self.palette):
            raise OptionError(f"{len(self.classes)} classes but {len(self.palette)} palette colours, expected as many")
        if self.mask.max() >= len(self.classes):
            raise OptionError(f"the mask holds class id {self.mask.max()}, but there are {len(self.classes)} classes")
        if self.image is not None and self.image.shape != (*shape, 3):
            raise OptionError(f"the image's shape is {self.image.shape}, expected the mask's: {(*shape, 3)}")
        for name, values, expected in (
            ("confidence", self.confidence, shape),
            ("probabilities", self.probabilities, (len(self.classes), *shape)),
        ):
            if values is not None and (values.shape != expected or values.dtype.kind != "f"):
                raise OptionError(f"{name} is {values.dtype} of shape {values.shape}; expected floats of {expected}")

    @property
    def picture(self) -> npt.NDArray[np.uint8] | None:
        """`image`, by its former name."""
        return self.image

    def __repr__(self) -> str:
        height, width = self.mask.shape
        areas = self.areas()
        parts = [f"{name} {_percent(share)}" for name, share in list(areas.items())[:3]]
        if len(areas) > 3:
            parts.append(f"and {len(areas) - 3} more")
        return f"<Segmentation {width}x{height} pixels: {', '.join(parts)}>"

    def areas(self) -> dict[str, float]:
        """The share of the image that each present class covers, largest first; they add up to 1.

        Classes of the same name are added together.
        """
        areas: dict[str, float] = {}
        for index, share in self._shares():
            areas[self.classes[index]] = areas.get(self.classes[index], 0.0) + share
        return dict(sorted(areas.items(), key=lambda item: -item[1]))

    def _shares(self) -> list[tuple[int, float]]:
        """(class id, share) of the present classes, largest first."""
        counts = np.bincount(self.mask.ravel())
        present = sorted(np.flatnonzero(counts).tolist(), key=lambda index: -counts[index])
        return [(index, float(counts[index] / self.mask.size)) for index in present]

    def colorize(self) -> Image.Image:
        """The class map in the palette's colours: an RGB image."""
        return Image.fromarray(np.array(self.palette, dtype=np.uint8).take(self.mask, axis=0))

    def overlay(self, alpha: float = 0.5, *, legend: bool = False) -> Image.Image:
        """The image with the class colours laid over it: an RGB image.

        Args:
            alpha: how much of the colours: from 0 (the image) to 1 (`colorize()`).
            legend: add the present classes' names on the right.

        Raises:
            OptionError: `alpha` is out of range.
            ImageError: the image was not kept.
        """
        if not 0 <= alpha <= 1:
            raise OptionError(f"alpha is {alpha}, expected a number from 0 (only the image) to 1 (only the colours)")
        if self.image is None:
            raise ImageError("this Segmentation has no image to draw over; use colorize(), or build it with image=")
        blended = Image.blend(Image.fromarray(self.image), self.colorize(), alpha)
        return self._with_legend(blended) if legend else blended

    def _with_legend(self, image: Image.Image) -> Image.Image:
        """The legend on the right of an image of any size."""
        font_size = min(max(image.height // 36, 14), 48)
        panel = self.legend(font_size=font_size, height=image.height)
        both = Image.new("RGB", (image.width + panel.width, max(image.height, panel.height)), "white")
        both.paste(image, (0, 0))
        both.paste(panel, (image.width, 0))
        return both

    def legend(self, *, font_size: int = 16, height: int = 600) -> Image.Image:
        """The present classes, largest first: colour, name and share of the image, on white.

        Args:
            font_size: the height of the text in pixels.
            height: go on in a further column where a column would be higher than this (a column has
                room for 20 classes in any case).

        Raises:
            OptionError: `font_size` is below 1.
        """
        if font_size < 1:
            raise OptionError(f"font_size is {font_size}, expected at least 1 pixel (such as 16)")
        font = ImageFont.load_default(font_size)
        rows = [(self.palette[index], _short(self.classes[index]), _percent(share)) for index, share in self._shares()]
        gap, row_height = font_size // 2 + 1, font_size * 3 // 2 + 1
        name_width = round(max(font.getlength(name) for _, name, _ in rows))
        column_width = font_size + name_width + round(font.getlength("100.0 %")) + 4 * gap
        column_rows = max((height - 2 * gap) // row_height, _FEWEST_ROWS)
        columns = -(-len(rows) // column_rows)
        column_rows = -(-len(rows) // columns)  # columns of like length

        image = Image.new("RGB", (columns * column_width, column_rows * row_height + 2 * gap), "white")
        draw = ImageDraw.Draw(image)
        for position, (colour, name, share) in enumerate(rows):
            column, row = divmod(position, column_rows)
            x, y = column * column_width + gap, row * row_height + gap
            top, middle = y + (row_height - font_size) // 2, y + row_height // 2
            draw.rectangle((x, top, x + font_size, top + font_size), fill=colour, outline="gray")
            draw.text((x + font_size + gap, middle), name, "black", font, anchor="lm")
            draw.text(((column + 1) * column_width - gap, middle), share, "dimgray", font, anchor="rm")
        return image

    def confidence_image(self) -> Image.Image:
        """`confidence` as a grey image: 0 is 0, 1 is 255.

        Raises:
            OptionError: it was not asked for.
        """
        if self.confidence is None:
            raise OptionError("this Segmentation has no confidence; ask for it: predict(..., confidence=True)")
        return Image.fromarray(np.rint(self.confidence * 255).astype(np.uint8))

    def polygons(self, min_area: float = 0, tolerance: float = 0.0) -> list[Polygon]:
        """The regions of each class, parted by other classes, as polygons with holes; in the order of the classes.

        The corners are pixels' corners: (0, 0) is the image's top left one, (width, height) the bottom right one. With
        the default options the polygons cover the image without gap or overlap, and rasterised (`rasterio.features.
        rasterize`) they are the mask again. Needs the extra `results`.

        Args:
            min_area: leave out regions of fewer pixels.
            tolerance: simplify the borders: a corner goes if its triangle with its neighbours is smaller than the
                square of so many pixels (`shapely.coverage_simplify`: Visvalingam and Whyatt, 1993). Regions keep
                sharing their borders, and points where three meet stay.

        Raises:
            OptionError: an option is negative.
            MissingExtraError: rasterio or shapely is not installed; the message names the pip command.
        """
        return polygons(self.mask, self.classes, min_area, tolerance)

    def _shown(self) -> Image.Image:
        """What a notebook shows: the overlay, or the colours where the image was not kept, at a handy size."""
        image = self.colorize() if self.image is None else self.overlay()
        image.thumbnail(_SHOWN)
        return image

    def _repr_png_(self) -> bytes:
        """In a notebook: the overlay with its legend."""
        buffer = io.BytesIO()
        self._with_legend(self._shown()).save(buffer, format="PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """In a notebook: the overlay, and its legend as text."""
        buffer = io.BytesIO()
        self._shown().save(buffer, format="JPEG", quality=90)  # the PNG is kept beside it
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        height, width = self.mask.shape
        shares = self._shares()
        rows = "".join(
            f'<tr style="background:none"><td style="text-align:left;padding:1px 8px">'
            f'<span style="display:inline-block;width:1em;height:1em;border:1px solid gray;vertical-align:-.15em;'
            f'background:{_hex(self.palette[index])}"></span> {html.escape(_short(self.classes[index]))}</td>'
            f'<td style="text-align:right;padding:1px 8px">{html.escape(_percent(share))}</td></tr>'
            for index, share in shares[:_MOST_SHOWN]
        )
        if len(shares) > _MOST_SHOWN:
            rows += f'<tr><td colspan="2" style="text-align:left">and {len(shares) - _MOST_SHOWN} more</td></tr>'
        return (
            '<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start">'
            f'<img alt="class map, {width}x{height} pixels" src="data:image/jpeg;base64,{data}" style="max-width:100%">'
            f'<table style="font-size:90%;margin:0">{rows}</table></div>'
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the class map as a PNG whose pixel values are the class ids.

        Up to 256 classes it is a palette PNG (other tools read the ids and show the colours); beyond,
        a 16-bit grey one. The folder is made; the file appears whole or not at all.

        Returns:
            The path written.

        Raises:
            OptionError: the file name does not end in .png (other formats would change the ids).
            OSError: the folder cannot be written to.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise OptionError(f"{path}: a class map is saved as PNG only; write '{path.stem or 'mask'}.png'")
        write_png(self.indexed(), path)
        return path

    def indexed(self) -> Image.Image:
        """What `save` writes: class ids with their colours as the palette; beyond 256 classes grey of 16 bits."""
        if len(self.classes) > 256:
            return Image.fromarray(self.mask.astype(np.uint16, copy=False))
        image = Image.fromarray(self.mask.astype(np.uint8, copy=False))
        colours = [channel for colour in self.palette for channel in colour]
        image.putpalette(colours + [0] * (768 - len(colours)))  # all 256: some readers expect them
        return image


def write_png(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a PNG with Pillow's options: the folder is made, and the file appears whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    with whole(path) as part:
        image.save(part, format="PNG", **options)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` when the block ends well; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # short: the name itself may be as long as a name can be
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 else "<0.1 %"


def _short(name: str) -> str:
    name = " ".join(name.split())  # one line
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3].rstrip() + "..."
