"""A clip becomes clips: the class colours laid over every frame, or the class ids. Needs the extra `video`."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from zoo_seg.errors import ImageError, MissingExtraError, OptionError
from zoo_seg.images.reading import RGB, most_pixels
from zoo_seg.inference.predictor import in_order
from zoo_seg.inference.segmentation import Segmentation

try:
    import av
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream
except ImportError as error:
    raise MissingExtraError(f"clips need PyAV ({error}); pip install 'zoo_seg[video]'") from None

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""The endings of clips that can be written, and FFmpeg's names for them."""
KINDS = {"overlay": tuple(FORMATS), "mask": (".mkv",), "confidence": (".mkv",)}
"""What can be written of a clip, and its endings, the usual one first; all but the overlay without any loss."""

_AHEAD = 4
"""Frames that may be drawn before the encoder takes them."""
_QUALITY = {"preset": "veryfast", "crf": "20"}
"""H.264 that is hard to tell from the frames, at little time."""
_BT709 = _STUDIO_RANGE = 1
"""FFmpeg's numbers for the colours of HD video."""
_FULL_RANGE = 2
"""Grey levels from 0 on: a reader that asks for colours gets the numbers themselves."""
_TOLERANCE = 1.0
"""Seconds that a clip may be shorter than it announces: containers round, and some count the sound."""
_USUAL_RATE = Fraction(25)
_RATES = Fraction(1, 60), 1000
"""Frames a second that are believed."""
_BACK, _LEAP = 1, 3600
"""Seconds between two frames; what goes further back or ahead is a break, after which the clip goes on at its rate."""


class Clip:
    """The frames of an open video file: in order, upright, RGB (H, W, 3). The sound is left alone.

    Damaged pieces are passed over; `trouble()` names them after the last frame.

    Attributes:
        times: when each frame is shown, in `time_base` seconds from the first one; to be taken out as they come.
        rate: frames a second, on average.
        length: the number of frames as far as the file says; None where it does not.
        has_sound: the file holds sound as well.

    Raises:
        ImageError: it is no video, or its frames are larger than images may be.
    """

    def __init__(self, container: InputContainer, name: str) -> None:
        video = [stream for stream in container.streams.video if stream.codec_context is not None]
        if not video:
            raise ImageError(f"{name}: holds no video that can be decoded")
        self.name, self._container, self.stream = name, container, video[0]
        self.stream.thread_type = "AUTO"
        self.has_sound = bool(container.streams.audio)
        width, height, limit = self.stream.codec_context.width, self.stream.codec_context.height, most_pixels()
        if limit is not None and width * height > limit:
            raise ImageError(
                f"{name}: frames of {width}x{height} pixels, more than the limit of {limit}; if you trust the file, "
                "set the environment variable ZOO_SEG_MAX_PIXELS to so many or more"
            )
        rate = self.stream.average_rate
        self.rate = rate if rate and _RATES[0] <= rate <= _RATES[1] else _USUAL_RATE
        self.time_base = self.stream.time_base or 1 / self.rate
        self.times: deque[int] = deque()
        self.length = self.stream.frames or (round(self._announced() * self.rate) or None)
        self._step = max(round(1 / (self.rate * self.time_base)), 1)
        self._start = 0
        self._last: int | None = None
        self._damaged = 0
        self._reason = ""

    def frames(self) -> Iterator[RGB]:
        """Every frame that can be decoded; once."""
        for packet in self._packets():
            for frame in self._decoded(packet):
                pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
                self.times.append(self._time(frame.pts))
                yield np.rot90(pixels, frame.rotation // 90)

    def _time(self, stamp: int | None) -> int:
        """When a frame is shown, from what the file says: always later than the frame before."""
        if self._last is None:
            self._start, self._last = stamp or 0, 0
            return 0
        usual = self._last + self._step
        time = usual if stamp is None else stamp - self._start
        if not self._last - _BACK / self.time_base <= time <= self._last + _LEAP / self.time_base:
            self._start, time = self._start + time - usual, usual
        self._last = max(time, self._last + 1)
        return self._last

    def trouble(self) -> str | None:
        """What was wrong with the file, after its last frame; None where nothing was."""
        shown = 0.0 if self._last is None else float((self._last + self._step) * self.time_base)
        announced = self._announced()
        found = []
        if self._damaged:
            found.append(f"{self._damaged} damaged pieces were passed over ({self._reason})")
        if shown < announced - _TOLERANCE:
            found.append(f"it ends after {shown:.1f} of {announced:.1f} seconds")
        return "; ".join(found) or None

    def _packets(self) -> Iterator[av.Packet[VideoStream]]:
        try:
            yield from self._container.demux(self.stream)
        except (av.FFmpegError, OSError) as error:
            self._note(error)

    def _decoded(self, packet: av.Packet[VideoStream]) -> list[av.VideoFrame]:
        try:
            return packet.decode()
        except av.FFmpegError as error:
            self._note(error)
            return []

    def _note(self, error: av.FFmpegError | OSError) -> None:
        self._damaged += 1
        self._reason = self._reason or str(error.strerror)

    def _announced(self) -> float:
        """Seconds; 0 where the file does not say."""
        if self.stream.duration:
            return float(self.stream.duration * self.time_base)
        parts = self.stream.metadata.get("DURATION", "").split(":")  # Matroska's: 00:01:02.500000000
        try:
            hours, minutes, seconds = map(float, parts)
        except ValueError:
            return 0.0
        return 3600 * hours + 60 * minutes + seconds


@contextmanager
def open_clip(path: str | os.PathLike[str]) -> Iterator[Clip]:
    """A video file, to be read once from beginning to end.

    Raises:
        ImageError: there is no such file, or it is no video.
    """
    name = str(path)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror}); check the path") from None
        try:  # the open file alone: a playlist in disguise reaches no other file and no network
            container = opened.enter_context(
                av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")
            )
        except (av.FFmpegError, OSError) as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror}); expected a whole video file") from None
        yield Clip(container, name)


@dataclass(frozen=True)
class Written:
    """What became of a clip."""

    frames: int
    trouble: str | None
    """What was wrong with the clip that was read; what could be decoded of it is written nevertheless."""


def overlay_clip(
    clip: Clip,
    target: str | os.PathLike[str],
    predict: Callable[[Iterable[RGB]], Iterator[Segmentation]],
    *,
    alpha: float = 0.5,
    progress: bool = True,
) -> Written:
    """Write a clip with the class colours over every frame: its size, frame rate and times, without sound.

    Frames are decoded, predicted, drawn and encoded side by side, few at a time however long the clip is.

        with open_clip("street.mp4") as clip:
            overlay_clip(clip, "overlay.mp4", model.stream)

    Args:
        clip: a clip that was just opened.
        target: .mp4, .mov or .mkv, as H.264; it appears whole or not at all.
        predict: a model's `stream`, or `functools.partial` of it with options.
        alpha: how much of the colours: from 0 (the frame) to 1.
        progress: a bar with the time left, on a terminal.

    Raises:
        ImageError: no frame can be decoded.
        OptionError: the target's ending is none of these.
        OSError: the target cannot be written.
    """
    return write_clips(clip, {"overlay": target}, predict, alpha=alpha, progress=progress)


def write_clips(
    clip: Clip,
    targets: Mapping[str, str | os.PathLike[str]],
    predict: Callable[[Iterable[RGB]], Iterator[Segmentation]],
    *,
    alpha: float = 0.5,
    progress: bool = True,
) -> Written:
    """As `overlay_clip`, for several kinds of clips in one pass.

    Args:
        clip: a clip that was just opened.
        targets: the file of each of `KINDS`. `"mask"` is a grey clip of the class ids, of 16 bits beyond 256 classes,
            and `"confidence"` one of 0 to 255: FFV1, which loses nothing. Confidence needs `confidence=True` in
            `predict`. They appear all or not at all.
        predict, alpha, progress: see `overlay_clip`.

    Raises:
        ImageError: no frame can be decoded, or frames without loss change their size.
        OptionError: a target's ending is not of its kind.
        OSError: a target cannot be written.
    """
    paths = {kind: Path(target) for kind, target in targets.items()}
    for kind, path in paths.items():
        if path.suffix.lower() not in KINDS[kind]:
            what = "a clip" if kind == "overlay" else f"a clip of {kind}"
            raise OptionError(f"{path}: {what} is written as {', '.join(KINDS[kind])}; choose one of these endings")
    draw: dict[str, Callable[[Segmentation], npt.NDArray[Any]]] = {
        "overlay": lambda result: np.asarray(result.overlay(alpha)),
        "mask": lambda result: result.mask,
        "confidence": lambda result: np.asarray(result.confidence_image()),
    }

    def drawn(result: Segmentation) -> Frames:
        return {kind: draw[kind](result) for kind in paths}

    parts = {kind: path.with_name(f".{uuid.uuid4().hex}.part") for kind, path in paths.items()}
    try:
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        # disable=None: a bar on a terminal only
        shown = tqdm(
            in_order(predict(clip.frames()), drawn, ahead=_AHEAD),
            total=clip.length,
            unit="frame",
            disable=None if progress else True,
        )
        with ExitStack() as opened:
            frames = _encode(
                shown,
                clip,
                {  # whatever the name, it is no link
                    kind: opened.enter_context(av.open(f"file:{parts[kind]}", "w", format=FORMATS[path.suffix.lower()]))
                    for kind, path in paths.items()
                },
            )
        if frames == 0:
            raise ImageError(f"{clip.name}: no frame can be decoded ({clip.trouble() or 'it is empty'})")
        for kind, path in paths.items():
            parts[kind].replace(path)
    except (av.FFmpegError, OSError) as error:
        names = ", ".join(map(str, paths.values()))
        raise OSError(f"{names}: cannot be written ({error.strerror})") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return Written(frames, clip.trouble())


Frames = dict[str, npt.NDArray[Any]]
"""What is drawn for one frame, by its kind."""


def _encode(drawn: Iterable[Frames], clip: Clip, containers: Mapping[str, OutputContainer]) -> int:
    """Write the frames with the clip's times; how many there were."""
    count = 0
    streams: dict[str, VideoStream] = {}
    for images in drawn:
        time = clip.times.popleft()
        for kind, image in images.items():
            if kind not in streams:
                make = _overlay_stream if kind == "overlay" else _exact_stream
                streams[kind] = make(containers[kind], clip, image)
            stream = streams[kind]
            frame = _overlay_frame(image, stream) if kind == "overlay" else _exact_frame(image, stream, clip)
            frame.pts, frame.time_base = time, clip.time_base
            containers[kind].mux(stream.encode(frame))
        count += 1
    for kind, stream in streams.items():
        containers[kind].mux(stream.encode(None))
    return count


def _overlay_stream(container: OutputContainer, clip: Clip, image: RGB) -> VideoStream:
    """H.264 of a size, in the colours of HD video; odd sizes need colours at full resolution."""
    stream = _stream(container, clip, image, "h264", _QUALITY)
    stream.pix_fmt = "yuv420p" if stream.width % 2 == stream.height % 2 == 0 else "yuv444p"
    stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = _BT709
    stream.codec_context.color_range = _STUDIO_RANGE
    return stream


def _overlay_frame(image: RGB, stream: VideoStream) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return frame.reformat(stream.width, stream.height, stream.pix_fmt, dst_colorspace=_BT709)


def _exact_stream(container: OutputContainer, clip: Clip, image: npt.NDArray[Any]) -> VideoStream:
    """FFV1, grey, whose numbers are those of the image."""
    stream = _stream(container, clip, image, "ffv1", {"level": "3", "slicecrc": "1"})
    stream.pix_fmt = _grey(image)
    stream.codec_context.color_range = _FULL_RANGE
    return stream


def _exact_frame(image: npt.NDArray[Any], stream: VideoStream, clip: Clip) -> av.VideoFrame:
    if image.shape != (stream.height, stream.width):
        raise ImageError(
            f"{clip.name}: its frames change from {stream.width}x{stream.height} pixels to "
            f"{image.shape[1]}x{image.shape[0]}, which no clip of class ids can; write --save overlay, or cut it there"
        )
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=_grey(image))
    frame.color_range = _FULL_RANGE
    return frame


def _grey(image: npt.NDArray[Any]) -> str:
    return "gray" if image.dtype == np.uint8 else "gray16le"


def _stream(
    container: OutputContainer, clip: Clip, image: npt.NDArray[Any], codec: str, options: dict[str, str]
) -> VideoStream:
    stream: VideoStream = container.add_stream(codec, rate=clip.rate, options=options)  # type: ignore[assignment]
    stream.height, stream.width = image.shape[:2]
    stream.codec_context.time_base = clip.time_base
    return stream
