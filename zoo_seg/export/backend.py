"""OpenVINO in place of torch for `predict`: a network's graph is made once and kept in the cache.

    <ZOO_SEG_HOME>/openvino/<digest of the network>/graph.xml, graph.bin, speed.json

The digest is of all that the graph depends on. Each time that it is opened it is compared with the network all the
same, which takes two images' time: a damaged file, another processor or changed code must not pass unseen.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg import settings
from zoo_seg.errors import ExportError, OptionError
from zoo_seg.export.graph import Logits, brief, trace
from zoo_seg.export.openvino_file import convert, core, openvino  # says what to install
from zoo_seg.hub.files import exclusive, replacing
from zoo_seg.inference.backends import InferenceBackend
from zoo_seg.inference.identity import UnknownCodeError, network_sha256
from zoo_seg.inference.prepare import fold_batchnorm, plain_copy, prepare
from zoo_seg.layers.readout import Queries, mixed_early
from zoo_seg.network import SegmentationNetwork

_log = logging.getLogger("zoo_seg")

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""OpenVINO's names of the types that it computes in on a CPU."""
DIFFERENT = 1e-3
"""The share of a probe's pixels that may have another class than in float32; in bfloat16 twice torch's own besides."""
FASTER = 1.1
"""By how much the quicker one has to be quicker for `"auto"` to leave torch."""
KEPT = 4 << 30
"""Bytes of graphs that stay; of more than that, those go which were not used for longest."""
_CPU = torch.device("cpu")
_PROBE, _TIMED, _RUNS = (269, 307), (384, 512), 5
"""Height and width of what is compared and of what is timed, and how often that is done."""


class InOpenVINO:
    """A network's graph in OpenVINO: what it reads and returns is the network's, in float32."""

    def __init__(self, network: SegmentationNetwork, model: Any, dtype: torch.dtype) -> None:
        self.in_chans, self.align_corners = network.in_chans, network.align_corners
        self.size_divisor = network.size_divisor
        self._lock = threading.Lock()  # a compiled model has one place for its inputs
        self._compiled = core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
            },
        )

    def forward_logits(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes, h, w) at the head's own stride."""
        try:
            with self._lock:
                found = self._compiled([x.float().contiguous().numpy()])
        except RuntimeError as error:
            raise OptionError(
                f"OpenVINO cannot run this network on an input of {'x'.join(map(str, x.shape))} ({brief(error)}); "
                "use backend='torch'"
            ) from None
        return torch.from_numpy(found[0])


def prepare_openvino(
    network: SegmentationNetwork,
    device: torch.device,
    dtype: torch.dtype,
    *,
    owner: nn.Module | None = None,
    compiled: bool = False,
) -> InferenceBackend:
    """The network in OpenVINO; where it has hooks or code of the user's, or would differ there, in torch.

    Raises:
        OptionError: another device, type or `compile` than OpenVINO's.
        ExportError: OpenVINO cannot have the network.
    """
    if reason := _refusal(device, dtype, compiled):
        raise OptionError(f"backend='openvino' {reason}, or use backend='torch'")
    kept = _find(network, owner or network)
    backend = kept and kept.open(dtype)
    return backend or prepare(network, device, dtype, owner=owner)


def prepare_fastest(
    network: SegmentationNetwork,
    device: torch.device,
    dtype: torch.dtype,
    *,
    owner: nn.Module | None = None,
    compiled: bool = False,
) -> InferenceBackend:
    """The network in OpenVINO if it is quicker there by the factor `FASTER`, else in torch.

    That is measured once for a network, type, processor and number of threads, and written down beside the graph.
    """
    if _refusal(device, dtype, compiled) or (kept := _find(network, owner or network)) is None:
        return prepare(network, device, dtype, owner=owner, compiled=compiled)
    times = kept.times_faster(dtype)
    if times is not None and times < FASTER:
        return prepare(network, device, dtype, owner=owner)
    try:
        backend = kept.open(dtype)
    except ExportError as error:
        _log.info("torch is used: %s", error)
        backend = None
    if times is None:
        ready = prepare(network, device, dtype, owner=owner)
        times = 0.0 if backend is None else _times_faster(ready, backend, dtype)
        kept.note(dtype, times)
        if times < FASTER:
            return ready
    return backend or prepare(network, device, dtype, owner=owner)


def _refusal(device: torch.device, dtype: torch.dtype, compiled: bool) -> str | None:
    if device.type != "cpu":
        return f"runs on the CPU, not on {device}; choose device='cpu'"
    if dtype not in PRECISIONS:
        return f"computes in float32 or bfloat16, not in {str(dtype).removeprefix('torch.')}; choose one of them"
    if dtype == torch.bfloat16 and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "has no bfloat16 on this processor; choose dtype='float32'"
    return "compiles the network by itself; leave compile out" if compiled else None


def _find(network: SegmentationNetwork, owner: nn.Module) -> _Kept | None:
    """Where the graph of a network is kept; None where it is not known what the network computes."""
    plain, reason = plain_copy(network, _CPU, owner)
    if plain is not None:
        try:
            return _Kept(plain, network_sha256(plain, openvino.__version__))
        except UnknownCodeError as error:
            reason = str(error)
    _log.info("torch is used and not OpenVINO, whose graph might compute something else: %s", reason)
    return None


class _Kept:
    """A network's graph in the cache.

    Args:
        plain: a copy of the network, which may be changed when it is traced.
        digest: of all that its graph depends on.
    """

    def __init__(self, plain: SegmentationNetwork, digest: str) -> None:
        self._plain = plain
        self._folder = settings.home() / "openvino" / digest
        self._graph, self._speeds = self._folder / "graph.xml", self._folder / "speed.json"

    def open(self, dtype: torch.dtype) -> InOpenVINO | None:
        """The graph in OpenVINO, made where it is missing or damaged; None if its class map is another one.

        Raises:
            ExportError: the network cannot be traced or converted.
        """
        x = _noise(self._plain, _PROBE)
        expected = _logits(self._plain, x)
        if not expected.isfinite().all():
            _log.info("torch is used and not OpenVINO: the logits are not finite")  # which torch's then tell
            return None
        allowed = DIFFERENT
        if dtype != torch.float32:
            ready = prepare(self._plain, _CPU, dtype)
            allowed += 2 * _different(_logits(ready, x.to(dtype)), expected)

        def checked(model: Any) -> InOpenVINO | None:
            backend = InOpenVINO(self._plain, model, dtype)
            share = _different(backend.forward_logits(x), expected)
            if share <= allowed:
                return backend
            _log.warning("OpenVINO gives %.2f %% of a probe's pixels another class than torch", 100 * share)
            return None

        def found() -> InOpenVINO | None:
            if not self._graph.is_file():
                return None
            try:
                backend = checked(core().read_model(self._graph))
            except (RuntimeError, OptionError) as error:
                _log.warning("%s is damaged and made anew (%s)", self._graph, brief(error))
                return None
            with suppress(OSError):
                os.utime(self._folder)  # last used now
            return backend

        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.warning("%s cannot be written (%s); the graph is made for this process alone", self._folder, error)
            return checked(self._convert())
        if backend := found():
            return backend
        with exclusive(self._folder / ".lock"):
            if backend := found():  # another process was faster
                return backend
            _log.info("the network is exported to OpenVINO, once: %s", self._graph)
            model = self._convert()
            backend = checked(model)
            if backend is not None:
                self._save(model)
        return backend

    def times_faster(self, dtype: torch.dtype) -> float | None:
        """How many times as fast as torch OpenVINO was on this machine; None where nobody measured it."""
        found = self._read_speeds().get(_circumstances(dtype))
        return found if isinstance(found, float) else None

    def note(self, dtype: torch.dtype, times: float) -> None:
        """Write it down."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._speeds) as part:
                part.write_text(json.dumps({**self._read_speeds(), _circumstances(dtype): times}, indent=1) + "\n")

    def _read_speeds(self) -> dict[str, object]:
        try:
            found = json.loads(self._speeds.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _convert(self) -> Any:
        network = copy.deepcopy(self._plain)
        program = trace(Logits(network if fold_batchnorm(network) else self._plain), network.in_chans)
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return convert(program, Path(folder))

    def _save(self, model: Any) -> None:
        try:
            with TemporaryDirectory(dir=self._folder, prefix=".") as folder:
                openvino.save_model(model, Path(folder) / self._graph.name, compress_to_fp16=False)
                for part in sorted(Path(folder).iterdir()):  # .bin before .xml
                    part.replace(self._folder / part.name)
            _make_room(self._folder)
        except (OSError, RuntimeError) as error:  # a full disk is OpenVINO's RuntimeError
            _log.warning("OpenVINO's graph cannot be kept in %s (%s)", self._folder, brief(error))


def _make_room(new: Path) -> None:
    """Remove the graphs that were not used for longest, until all have at most `KEPT` bytes or one is left."""
    known = sorted((each for each in new.parent.iterdir() if each.is_dir()), key=lambda each: -each.stat().st_mtime)
    total = 0
    for folder in [new, *(each for each in known if each != new)]:
        total += sum(each.stat().st_size for each in folder.iterdir())
        if total > KEPT and folder != new:
            shutil.rmtree(folder, ignore_errors=True)


def _circumstances(dtype: torch.dtype) -> str:
    processor = core().get_property("CPU", "FULL_DEVICE_NAME")
    return f"{PRECISIONS[dtype]}, {torch.get_num_threads()} threads, {processor}"


def _times_faster(ready: InferenceBackend, backend: InferenceBackend, dtype: torch.dtype) -> float:
    """torch's time over OpenVINO's, by the medians of runs that take turns."""
    x = _noise(ready, _TIMED).to(dtype)
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(_RUNS + 1):
        for each, taken in zip((ready, backend), seconds, strict=True):
            began = time.perf_counter()
            each.forward_logits(x)
            taken.append(time.perf_counter() - began)
    torch_s, openvino_s = (statistics.median(taken[1:]) for taken in seconds)
    return torch_s / openvino_s


def _noise(network: InferenceBackend, size: tuple[int, int]) -> Tensor:
    """Coarse and fine noise, (1, in_chans, *size), drawn alike each time."""
    draw = torch.Generator("cpu").manual_seed(0)
    coarse = torch.randn(1, network.in_chans, *(side // 32 + 2 for side in size), generator=draw, device="cpu")
    fine = torch.randn(1, network.in_chans, *size, generator=draw, device="cpu")
    return F.interpolate(coarse, size, mode="bilinear", align_corners=False) + 0.3 * fine


def _logits(network: InferenceBackend, x: Tensor) -> Tensor:
    output = mixed_early(network.forward_logits(x))
    if isinstance(output, Queries):
        raise ExportError("OpenVINO computes logits, and this network's head returns queries; use backend='torch'")
    return output


def _different(found: Tensor, expected: Tensor) -> float:
    """The share of places whose highest logit is another one."""
    return float((found.float().argmax(1) != expected.argmax(1)).double().mean())
