"""Images in, class maps out: what `predict` uses."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoo_seg.errors import ImageError, NumericalError, OptionError, OutOfMemoryError
from zoo_seg.images.bands import Range, Wanted, check_bands, check_range
from zoo_seg.images.preprocess import normalise, resize_uint8, resized_size
from zoo_seg.images.reading import RGB, ImageLike, Pixels, as_rgb, most_pixels, read_image
from zoo_seg.inference.augmented import Geometry, Infer, Input, LinearLogits, Logits, Size, windowed_logits
from zoo_seg.inference.backends import Backend, InferenceBackend, find_backend
from zoo_seg.inference.labels import id_type, winners
from zoo_seg.inference.memory import give_back, keep_large_blocks
from zoo_seg.inference.protocol import augmented_logits, find_protocol, probabilities, scaled_inputs, strips
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.inference.snapshot import LOCK, Snapshot
from zoo_seg.inference.taps import Blend
from zoo_seg.layers.readout import HeadOutput, Queries
from zoo_seg.manifest import LARGEST_SIDE, Preprocess, Resize, TestOptions
from zoo_seg.network import SegmentationNetwork

A = TypeVar("A")
B = TypeVar("B")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types a network computes in."""


def choose_device(device: str | torch.device) -> torch.device:
    """The device by its name.

    Raises:
        OptionError: torch knows no such device, or it is not there.
    """
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).tolist()  # fails where values cannot be had, as on "meta"
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        present = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        reason = str(error).splitlines()[0][:200]
        raise OptionError(
            f"device {str(device)!r} cannot be used ({reason}); here there is {', '.join(present)}"
        ) from None
    return chosen


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type by its name, `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        OptionError: another one.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


ProbabilityType = Literal["float16", "float32"]


@dataclass(frozen=True)
class Extras:
    """What is wanted of a prediction beside the class map."""

    confidence: bool = False
    probabilities: ProbabilityType | None = None

    @classmethod
    def of(cls, confidence: bool, probabilities: bool | ProbabilityType) -> Extras:
        """From the options of `predict`.

        Raises:
            OptionError: it is no type of probabilities.
        """
        if probabilities not in (False, True, "float16", "float32"):
            raise OptionError(f"probabilities is {probabilities!r}; expected True, 'float32', 'float16' or False")
        if isinstance(probabilities, str):
            return cls(bool(confidence), probabilities)
        return cls(bool(confidence), "float32" if probabilities else None)


_SIZES_BETWEEN_CLEARINGS = 8
"""Images of so many sizes are worked on before free memory is returned to the system."""


class Predictor:
    """A network prepared once for many images; the network it is made from stays as it was.

    Args:
        network: a `SegmentationNetwork`, which is prepared, or another backend: on the CPU, float32 in
            and out.
        owner: the module around the network that users call, which may have hooks.
        classes, palette: the name and RGB colour of each class id.
        preprocess: mean, std and the published test size; the bands and the range where images are not plain RGB.
        protocol: whose order of operations, a name in the manifest's `protocols` such as `"mmseg"`.
        device: where to compute; None stays where the network is.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        compile: let `torch.compile` fuse the network; the first image of every new size then waits for
            the compiler.
        backend: what computes a network, see `Predicting.predict`.
        scores: its logits were read out of `Queries`, see `probabilities`; a network's own are recognised.

    Raises:
        OptionError: the device, dtype or backend cannot be used, or `preprocess` is for other channels.
        ExportError: OpenVINO cannot have the network.
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(
        self,
        network: InferenceBackend,
        *,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        preprocess: Preprocess,
        protocol: str = "ssseg",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002  (torch's word for it)
        backend: Backend | None = None,
        owner: nn.Module | None = None,
        scores: bool = False,
    ) -> None:
        if network.in_chans != len(preprocess.mean):
            raise OptionError(
                f"the network takes {network.in_chans} channels, and preprocess.mean has {len(preprocess.mean)}; "
                "expected a number for each: set model.preprocess"
            )
        self.dtype = choose_dtype(dtype)
        self.network: InferenceBackend
        make = find_backend(backend)
        if isinstance(network, SegmentationNetwork):
            self.device = choose_device(next(network.parameters()).device if device is None else device)
            with _undisturbed(self.device), torch.inference_mode(False), torch.no_grad(), self.device:
                self.network = make(network, self.device, self.dtype, owner=owner, compiled=compile)
        else:
            self.device, self.network = torch.device("cpu"), network
        if self.device.type == "cpu":
            keep_large_blocks()  # from now on: what the preparation left over is gone
        self._sizes: set[Size] = set()
        self._scores = scores
        self._infer: Infer = self.network.forward_logits
        if compile and isinstance(self.network, SegmentationNetwork):
            # Frozen weights are laid out and folded into the kernels; the prepared copy never changes.
            self._infer = torch.compile(self.network.forward_logits, options={"freezing": True})
        self.classes, self.palette = tuple(classes), tuple(palette)
        self.preprocess, self.rules = preprocess, find_protocol(protocol)

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        test: TestOptions = TestOptions(),  # noqa: B008  (frozen)
        resize: Literal["published"] | int | None = "published",
        range: Range | Sequence[Range] | None = None,  # noqa: A002
        bands: Sequence[int] | None = None,
        batch_size: int = 1,
        confidence: bool = False,
        probabilities: bool | ProbabilityType = False,
        on_error: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Any]:
        """The class map of each image, in order, as soon as it is there.

        The next images are read and resized while the network works; memory stays bounded however
        many there are.

        Args:
            images: paths, PIL images, uint8 arrays (H, W, in_chans) or tensors (in_chans, H, W); RGB where
                there are three channels.
            test: whole images or windows, scales and flip.
            resize: `"published"` is the test size of the weights' record (the image's own without
                a record); a number of pixels for the shorter side; None for the image's own.
            range: the values that are black and white in images of more than 8 bits, see `read_image`; None is what
                the network was trained with.
            bands: which of an image's bands are the channels, from 1 on; None is what the network was trained with.
            batch_size: how many neighbouring images of one size go through the network together.
            confidence, probabilities: what to give beside the class map, see `Predicting.predict`.
            on_error: what to do with an image that cannot be read: raise its ImageError, or yield
                it in the place of a Segmentation and go on.

        Raises:
            OptionError: an option is not allowed; at once, before an image is read.
            ImageError: an image cannot be read.
        """
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; expected at least 1")
        target = self._resize(resize)
        resized_size(1, 1, target)  # refuses a size of zero before work begins
        read = self._reader(range, bands)
        extras = Extras.of(confidence, probabilities)
        return self._stream(images, test, target, read, batch_size, extras, on_error)

    def _reader(
        self,
        range: Range | Sequence[Range] | None,  # noqa: A002
        bands: Sequence[int] | None,
    ) -> Callable[[ImageLike], Pixels]:
        """How images are read."""
        wanted = self.wanted(range, bands)
        return lambda image: read_image(image, wanted.ranges, channels=wanted.channels, bands=wanted.bands)

    def wanted(
        self,
        range: Range | Sequence[Range] | None = None,  # noqa: A002
        bands: Sequence[int] | None = None,
    ) -> Wanted:
        """What images are read as; None is what the network was trained with.

        Raises:
            OptionError: it is no range, or they are no bands for the network.
        """
        channels, rules = self.network.in_chans, self.preprocess
        ranges = check_range(rules.range if range is None else range, channels)
        return Wanted(channels, check_bands(rules.bands if bands is None else bands, channels), ranges)

    def _stream(
        self,
        images: Iterable[ImageLike],
        test: TestOptions,
        target: Resize | int | None,
        read: Callable[[ImageLike], Pixels],
        batch_size: int,
        extras: Extras,
        on_error: Literal["raise", "yield"],
    ) -> Iterator[Segmentation | ImageError]:
        def prepare_one(image: ImageLike) -> _Prepared | ImageError:
            try:
                pixels = read(image)
                return _Prepared(as_rgb(pixels), self._inputs(pixels, target, test.scales))
            except ImageError as error:
                return error
            except MemoryError as error:
                return ImageError(f"there is too little memory to prepare it ({error}); lower resize or scales")

        batch: list[_Prepared] = []
        for item in in_order(images, prepare_one, ahead=2 * batch_size):
            if isinstance(item, ImageError):
                yield from self._predict(batch, test, extras)
                batch = []
                if on_error == "raise":
                    raise item
                yield item
                continue
            if batch and item.image.shape != batch[0].image.shape:
                yield from self._predict(batch, test, extras)
                batch = []
            batch.append(item)
            if len(batch) == batch_size:
                yield from self._predict(batch, test, extras)
                batch = []
        yield from self._predict(batch, test, extras)

    def write_rows(
        self,
        cut: Callable[[bool], Input],
        size: Size,
        test: TestOptions,
        write: Callable[[int, npt.NDArray[Any], npt.NDArray[Any] | None], None],
        *,
        blend: Blend,
        confidence: bool = False,
    ) -> None:
        """The class map of an input that is too large to be held, by its windows; see `Predicting.predict_raster`.

        Args:
            cut: what the windows (1, in_chans, h, w) are cut from, of this device and dtype; True: mirrored.
            size: (height, width) of the input.
            test: its window, stride and flip.
            blend: see `Predicting.predict_raster`.
            write: called from top to bottom with the first row, class ids (rows, W) and, where asked for, the winners'
                probabilities.

        Raises:
            OutOfMemoryError: a row of windows is too much for the device.
        """
        assert test.crop is not None
        geometry = Geometry(self.network.align_corners, self.network.size_divisor)
        try:
            with torch.inference_mode(), _undisturbed(self.device):
                found = [
                    windowed_logits(
                        *(self._logits, cut(flip), test.crop, test.stride, size, geometry), flip=flip, blend=blend
                    )
                    for flip in ((False, True) if test.flip else (False,))
                ]
                for top, ids, strip in self._rows(found, Extras(confidence)):
                    sure = None
                    if confidence:
                        assert strip is not None  # `_rows` gives one
                        sure = self._confidence(ids, self._shares(strip, found))[0].cpu().numpy()
                    write(top, ids[0].cpu().numpy(), sure)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"{self.device} has too little memory for a row of windows of {test.crop} (height, width) across "
                f"{size[1]} pixels; lower it with a smaller crop, or with dtype='bfloat16'"
            ) from None

    def _shares(self, strip: Tensor, found: Sequence[Logits]) -> Tensor:
        return probabilities(strip, self.rules, several=len(found) > 1, scores=self._scores)

    @staticmethod
    def _confidence(ids: Tensor, shares: Tensor) -> Tensor:
        return shares.gather(1, ids.long().unsqueeze(1))[:, 0]

    def _resize(self, resize: Literal["published"] | int | None) -> Resize | int | None:
        if resize == "published":
            return self.preprocess.resize
        if isinstance(resize, (str, bool, float)):
            raise OptionError(f"resize is {resize!r}; expected 'published', a number of pixels, or None")
        return resize

    def inputs(
        self,
        image: ImageLike,
        *,
        scales: Sequence[float] = (1.0,),
        resize: Literal["published"] | int | None = "published",
    ) -> list[Tensor]:
        """What the network is given for an image: normalised float32 tensors (1, C, h, w) for `predict_logits`.

        One at the test size; under mmseg's rules one for every scale, resized from the image.
        """
        return self._inputs(self._reader(None, None)(image), self._resize(resize), tuple(scales))

    def _inputs(self, image: Pixels, target: Resize | int | None, scales: tuple[float, ...]) -> list[Tensor]:
        size = (image.shape[0], image.shape[1])
        if self.rules.rescale == "image" and scales != (1.0,):
            sizes = [resized_size(*size, _scaled(target, size, scale)) for scale in scales]
        else:
            sizes = [resized_size(*size, target)]
        limit = most_pixels()
        for height, width in sizes:  # what is made larger; an image of any size may stay as it is
            if limit is not None and height * width > max(limit, size[0] * size[1]):
                raise ImageError(
                    f"an image of {size[0]}x{size[1]} pixels would become one of {height}x{width} (height x width), "
                    f"more than {limit} pixels; lower resize or scales, or raise ZOO_SEG_MAX_PIXELS"
                )
        mean, std = self.preprocess.mean, self.preprocess.std
        how = self.preprocess.interpolation
        return [normalise(resize_uint8(image, *each, how), mean, std) for each in sizes]

    def _predict(self, batch: list[_Prepared], test: TestOptions, extras: Extras) -> list[Segmentation]:
        """Images of one size, in one pass of the network or, where memory does not suffice, in several."""
        if not batch:
            return []
        try:
            return self._predict_together(batch, test, extras)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        if len(batch) > 1:  # outside of the handler, whose traceback keeps the tensors alive
            half = len(batch) // 2
            return self._predict(batch[:half], test, extras) + self._predict(batch[half:], test, extras)
        height, width = batch[0].inputs[0].shape[-2:]
        raise OutOfMemoryError(
            f"{self.device} has too little memory for an input of {height}x{width} (height x width) in {test.mode} "
            "mode; lower it with resize=, with mode='slide' and a smaller crop, or with dtype='bfloat16'"
        )

    def _logits(self, x: Tensor) -> HeadOutput:
        """What the network finds.

        Raises:
            NumericalError: no number, or an infinite one.
        """
        output = self._infer(x)
        self._scores |= isinstance(output, Queries)
        for values in output[:2] if isinstance(output, Queries) else (output,):
            least, most = map(float, values.aminmax())  # NaN if there is a single one
            if not math.isfinite(most - least):
                name = str(self.dtype).removeprefix("torch.")
                todo = (
                    "the network holds or computes NaN: check its weights, and preprocess.std for zeros"
                    if self.dtype == torch.float32
                    else f"{name} may be too small for this network's numbers: use dtype='float32'"
                )
                raise NumericalError(f"the logits computed in {name} are NaN or infinite, expected numbers; {todo}")
        return output

    def _predict_together(self, batch: list[_Prepared], test: TestOptions, extras: Extras) -> list[Segmentation]:
        with torch.inference_mode(), _undisturbed(self.device):
            return self._class_maps(batch, test, extras)

    def _class_maps(self, batch: list[_Prepared], test: TestOptions, extras: Extras) -> list[Segmentation]:
        size = (batch[0].image.shape[0], batch[0].image.shape[1])
        self._sizes.add(size)
        if len(self._sizes) > _SIZES_BETWEEN_CLEARINGS:
            self._sizes = {size}
            if self.device.type == "cpu":
                give_back()
        inputs = [
            (torch.cat(each) if len(each) > 1 else each[0]).to(self.device, self.dtype)
            for each in zip(*(item.inputs for item in batch), strict=True)
        ]
        if self.rules.rescale == "tensor":
            inputs = scaled_inputs(inputs[0], test.scales, self.rules)
        geometry = Geometry(self.network.align_corners, self.network.size_divisor)
        found = list(augmented_logits(self._logits, inputs, size, test, self.rules, geometry))
        masks, sure, arrays = self._read(found, extras)
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        nothing = [None] * len(batch)
        confidence = nothing if sure is None else list(sure.cpu().numpy())
        parts = zip(masks.cpu().numpy(), batch, confidence, arrays or nothing, strict=True)
        return [
            Segmentation(mask.astype(dtype, copy=False), self.classes, self.palette, item.image, winner, every)
            for mask, item, winner, every in parts
        ]

    def _read(
        self, found: Sequence[Logits], extras: Extras
    ) -> tuple[Tensor, Tensor | None, list[npt.NDArray[Any]] | None]:
        """The class maps, the winners' probabilities (N, H, W), and all (C, H, W) of each.

        Raises:
            OutOfMemoryError: all probabilities have no room.
        """
        size = found[0].size
        masks = sure = arrays = None
        for top, ids, strip in self._rows(found, extras):
            rows = slice(top, top + ids.shape[1])
            masks = ids.new_empty(len(ids), *size) if masks is None else masks
            masks[:, rows] = ids
            if extras == Extras():
                continue
            assert strip is not None  # `_rows` gives one
            shares = self._shares(strip, found)
            if extras.confidence:
                sure = shares.new_empty(len(ids), *size) if sure is None else sure
                sure[:, rows] = self._confidence(ids, shares)
            if extras.probabilities is not None:
                arrays = arrays or _room(len(ids), (shares.shape[1], *size), extras.probabilities)
                for array, values in zip(arrays, shares.to(DTYPES[extras.probabilities]).cpu(), strict=True):
                    array[:, rows] = values.numpy()
        assert masks is not None  # every size has a first row
        return masks, sure, arrays

    def _rows(self, found: Sequence[Logits], extras: Extras) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(first row, class ids (N, rows, W), averaged logits (N, C, rows, W)); None where the ids need none."""
        only = found[0]
        if len(found) > 1 or not isinstance(only, LinearLogits):
            for top, strip in strips(found, self.rules):
                yield top, strip.argmax(1).to(id_type(strip.shape[1])), strip
            return
        for top, ids in winners(only):
            if extras == Extras():
                yield top, ids, None
                continue
            for first, strip in strips(found, self.rules, (top, top + ids.shape[1])):
                yield first, ids[:, first - top : first - top + strip.shape[2]], strip


def _room(count: int, shape: tuple[int, ...], dtype: ProbabilityType) -> list[npt.NDArray[Any]]:
    try:
        return [np.empty(shape, dtype) for _ in range(count)]
    except MemoryError:
        size = count * math.prod(shape) * np.dtype(dtype).itemsize / 1e9
        raise OutOfMemoryError(
            f"the probabilities of {count} images, {dtype} of shape {shape} each, take {size:.1f} GB; "
            "use confidence=True, probabilities='float16' or smaller images"
        ) from None


def _undisturbed(device: torch.device) -> torch.autocast:
    """`dtype` says what is computed in, not autocast around a call of `predict`."""
    return torch.autocast(device.type, enabled=False)


class Predictors:
    """A network's predictors, one for each device, dtype, `compile` and backend, until the network changes."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Predictor] = {}
        self._snapshot: Snapshot | None = None

    def __reduce__(self) -> tuple[type[Predictors], tuple[()]]:
        """A copy or a pickle of a network carries nothing that was prepared from it."""
        return Predictors, ()

    def get(self, owner: nn.Module, make: Callable[[], Predictor], *options: object) -> Predictor:
        """The predictor of these options, made where there is none for the network as it is now."""
        with LOCK:
            if self._snapshot is None or not self._snapshot.is_current(owner):
                self._made = {}  # first free the old ones
                self._snapshot = Snapshot(owner)
            if options not in self._made:
                self._made[options] = make()
            return self._made[options]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class _Prepared:
    """An image and what the network is given for it."""

    image: RGB
    inputs: list[Tensor]


def _scaled(target: Resize | int | None, size: Size, scale: float) -> Resize:
    """The test size times a scale, as mmseg 0.x does: the frame is scaled and cut to whole pixels."""
    if isinstance(target, int):
        target = Resize(target, LARGEST_SIDE)
    elif target is None:
        target = Resize(min(size), max(size))
    short, long = (min(max(int(side * scale), 1), LARGEST_SIDE) for side in (target.short, target.long))
    return replace(target, short=short, long=long)


def in_order(items: Iterable[A], work: Callable[[A], B], *, ahead: int) -> Iterator[B]:
    """`map(work, items)` in a few threads that are never more than `ahead` items in front."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="zoo_seg-read") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
