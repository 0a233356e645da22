"""A result as HTML: the image, the colours over it, the ids beneath the pointer, the legend and the mask's file."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from zoo_seg.inference.segmentation import Segmentation

_SHOWN = 1280
"""The longer side of what a page shows, in pixels; the mask to download keeps the image's size."""


@dataclass(frozen=True)
class View:
    """What weights make of an image, or why they could not."""

    name: str
    """Of the weights."""
    facts: str
    result: Segmentation | str
    """A message where there is no result."""


def results_html(views: Sequence[View], stem: str) -> str:
    """One view, or two beside each other with the share of pixels on which they agree.

    Args:
        stem: of the image's file name; the mask's begins with it.
    """
    files = [
        f"{stem}_mask.png",
        *(f"{stem}_{re.sub('[^A-Za-z0-9.-]+', '_', view.name)}_mask.png" for view in views[1:]),
    ]
    parts = "".join(_view(view, file) for view, file in zip(views, files, strict=True))
    compared = f'<p class="zoo-agreement">{_agreement(*views)}</p>' if len(views) == 2 else ""
    return f'{compared}<div class="zoo-results">{parts}</div>'


def message_html(text: str, *, alarm: bool = False) -> str:
    """A message in place of a result; `alarm` is for what went wrong, which screen readers say at once."""
    role, kind = ("alert", "zoo-alarm") if alarm else ("status", "zoo-hint")
    return f'<div class="zoo-message {kind}" role="{role}">{html.escape(text)}</div>'


def agreement(first: Segmentation, second: Segmentation) -> float | None:
    """The share of pixels, 0 to 1, that two class maps of one image give the same class; None for other classes."""
    return float(np.mean(first.mask == second.mask)) if first.classes == second.classes else None


def _agreement(first: View, second: View) -> str:
    if isinstance(first.result, str) or isinstance(second.result, str):
        return "Only one of the two has a result."
    share = agreement(first.result, second.result)
    if share is None:
        return "The two know different classes, so their agreement is not counted."
    return f"They agree on <strong>{_percent(share)}</strong> of the pixels."


def _view(view: View, file: str) -> str:
    facts = f"<p>{html.escape(view.facts)}</p>" if view.facts else ""
    head = f'<header><h2 class="zoo-name">{html.escape(view.name)}</h2>{facts}</header>'
    result = view.result
    body = message_html(result, alarm=True) if isinstance(result, str) else _image(result) + _below(result, file)
    return f'<section class="zoo-view">{head}{body}</section>'


def _image(result: Segmentation) -> str:
    """The image under the colours. `data-ids` are the class ids, row by row, compressed by zlib."""
    shown = _smaller(result)
    height, width = shown.mask.shape
    assert shown.image is not None
    ids = base64.b64encode(zlib.compress(shown.mask.tobytes())).decode("ascii")
    names = html.escape(json.dumps(result.classes))
    said = ", ".join(f"{name} {_percent(share)}" for name, share in list(result.areas().items())[:5])
    return (
        f'<div class="zoo-image" data-ids="{ids}" data-bytes="{shown.mask.itemsize}" data-names="{names}" '
        f'data-width="{width}" data-height="{height}" style="--ratio:{width / height:.4f}">'
        f'<img class="zoo-below" alt="the image" src="{_data(Image.fromarray(shown.image), "JPEG", quality=88)}">'
        f'<img class="zoo-colours" alt="its classes: {html.escape(said)}" src="{_data(shown.colorize(), "PNG")}">'
        '<span class="zoo-label" aria-hidden="true"></span></div>'
    )


def _below(result: Segmentation, file: str) -> str:
    """The legend, largest first, and the link to the mask's file."""
    colours = dict(reversed(list(zip(result.classes, result.palette, strict=True))))
    rows = "".join(
        f'<li data-name="{html.escape(name)}"><i style="background:rgb{colours[name]}"></i>'
        f"<span>{html.escape(name)}</span><b>{_percent(share)}</b></li>"
        for name, share in result.areas().items()
    )
    height, width = result.mask.shape
    return (
        f'<ul class="zoo-legend" aria-label="classes and their share of the image">{rows}</ul>'
        f'<a class="zoo-download" download="{html.escape(file)}" href="{_data(result.indexed(), "PNG")}">'
        f"Download the mask <small>PNG of class ids, {width}×{height}</small></a>"
    )


def _smaller(result: Segmentation) -> Segmentation:
    """At the size that is shown: the ids of the nearest pixels."""
    assert result.image is not None
    height, width = result.mask.shape
    factor = min(_SHOWN / max(height, width), 1.0)
    if factor == 1:
        return result
    rows, columns = (
        ((np.arange(max(round(side * factor), 1)) + 0.5) / factor).astype(int).clip(max=side - 1)
        for side in (height, width)
    )
    image = Image.fromarray(result.image).resize((len(columns), len(rows)), Image.Resampling.BOX)
    return Segmentation(result.mask[np.ix_(rows, columns)], result.classes, result.palette, np.asarray(image))


def _data(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "<0.1 %" if share else "0 %"
