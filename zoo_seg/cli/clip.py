"""`zoo-seg predict clip.mp4 --out overlay.mp4`; imported when a clip is named, for it needs an extra."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from zoo_seg.cli.inputs import is_clip
from zoo_seg.cli.network import device_of, load_predicting
from zoo_seg.cli.outcome import Failure, Outcome
from zoo_seg.errors import ImageError, OptionError
from zoo_seg.inference.video import FORMATS, open_clip, overlay_clip

_BATCH = 8
"""Frames together where an accelerator works; a CPU gains nothing from it."""


def run(arguments: argparse.Namespace) -> int:
    """Write the clip with the classes laid over it; 1 when it is broken, with what could be decoded written."""
    source, target = _check_options(arguments)
    outcome = Outcome()
    where = "nothing was written"
    try:
        with open_clip(source) as clip:  # before the weights are fetched
            model = load_predicting(arguments)
            device = device_of(arguments)
            predict = partial(
                model.stream,
                mode=arguments.mode,
                crop=arguments.crop,
                stride=arguments.stride,
                scales=arguments.scales,
                flip=arguments.flip,
                resize=arguments.resize,
                batch_size=arguments.batch_size or (1 if device == "cpu" else _BATCH),
                device=device,
                dtype=arguments.dtype,
                compile=arguments.compile,
                backend=arguments.backend,
            )
            written = overlay_clip(clip, target, predict, alpha=arguments.alpha)
    except ImageError as error:
        outcome.failed.append(Failure.of(source, str(error)))
    else:
        where = f"{written.frames} frames{' without the sound' if clip.has_sound else ''} in {target}"
        if written.trouble:
            outcome.failed.append(Failure(source, f"{written.trouble}; what could be decoded is in {target}"))
        else:
            outcome.done.append({"picture": str(source), "overlay": str(target), "frames": written.frames})
    outcome.tell(arguments.json, where)
    return 1 if outcome.failed else 0


def _check_options(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The clip and the file to write; refuses what cannot be done before anything is fetched or loaded."""
    if len(arguments.paths) > 1:
        raise OptionError(f"found {len(arguments.paths)} paths; a clip is predicted by itself: zoo-seg predict CLIP")
    for option in ("legend", "no_overlay", "bands"):
        if getattr(arguments, option):
            raise OptionError(f"--{option.replace('_', '-')} is for images; of a clip only the overlay is written")
    source, out = Path(arguments.paths[0]), Path(arguments.out)
    target = out if is_clip(out) else out / f"{source.stem}_overlay.mp4"
    if target.suffix.lower() not in FORMATS:
        raise OptionError(f"--out {target}: a clip is written as {', '.join(FORMATS)}; choose one of these endings")
    if target.exists():
        if source.exists() and target.samefile(source):
            raise OptionError(f"--out {target} is the clip itself; choose another file")
        if not arguments.overwrite:
            raise OptionError(f"{target} is there already; choose another --out, or add --overwrite")
    return source, target
