"""`zoo-seg predict clip.mp4 --out overlay.mp4`; imported when a clip is named, for it needs an extra."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from zoo_seg.cli.inputs import is_clip
from zoo_seg.cli.network import device_of, load_predicting
from zoo_seg.cli.outcome import Failure, Outcome
from zoo_seg.cli.plan import kinds_of
from zoo_seg.errors import ImageError, OptionError
from zoo_seg.inference.video import KINDS, open_clip, write_clips

_BATCH = 8
"""Frames together where an accelerator works; a CPU gains nothing from it."""


def run(arguments: argparse.Namespace) -> int:
    """Write what is asked for of the clip; 1 when it is broken, with what could be decoded written."""
    source, targets = _check_options(arguments)
    names = ", ".join(map(str, targets.values()))
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
                confidence="confidence" in targets,
            )
            written = write_clips(clip, targets, predict, alpha=arguments.alpha)
    except ImageError as error:
        outcome.failed.append(Failure.of(source, str(error)))
    else:
        where = f"{written.frames} frames{' without the sound' if clip.has_sound else ''} in {names}"
        if written.trouble:
            outcome.failed.append(Failure(source, f"{written.trouble}; what could be decoded is in {names}"))
        else:
            files = {kind: str(target) for kind, target in targets.items()}
            outcome.done.append({"picture": str(source), **files, "frames": written.frames})
    outcome.tell(arguments.json, where)
    return 1 if outcome.failed else 0


def _check_options(arguments: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """The clip and the files to write; refuses what cannot be done before anything is fetched or loaded."""
    if len(arguments.paths) > 1:
        raise OptionError(f"found {len(arguments.paths)} paths; a clip is predicted by itself: zoo-seg predict CLIP")
    if arguments.legend:
        raise OptionError("--legend is for images; leave it out")
    if arguments.no_overlay:
        raise OptionError("--no-overlay is for images; name what to write of a clip: --save mask")
    kinds = kinds_of(arguments, list(KINDS), ["overlay"])
    source, out = Path(arguments.paths[0]), Path(arguments.out)
    if is_clip(out) and len(kinds) > 1:
        raise OptionError(f"--out {out} is one file, but {len(kinds)} are written ({', '.join(kinds)}); name a folder")
    targets = {kind: out if is_clip(out) else out / f"{source.stem}_{kind}{KINDS[kind][0]}" for kind in kinds}
    for kind, target in targets.items():
        if target.suffix.lower() not in KINDS[kind]:
            what = "a clip" if kind == "overlay" else f"a clip of {kind}"
            endings = ", ".join(KINDS[kind])
            raise OptionError(f"--out {target}: {what} is written as {endings}; choose one of these endings")
        if target.exists():
            if source.exists() and target.samefile(source):
                raise OptionError(f"--out {target} is the clip itself; choose another file")
            if not arguments.overwrite:
                raise OptionError(f"{target} is there already; choose another --out, or add --overwrite")
    return source, targets
