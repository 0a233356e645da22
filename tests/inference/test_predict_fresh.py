"""`predict` is what the network computes at that moment, whatever was changed and however."""

from __future__ import annotations

import copy
import gc
import logging
import os
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, vector_to_parameters

import zoo_seg
from zoo_seg.errors import NumericalError, OptionError
from zoo_seg.images.preprocess import normalise
from zoo_seg.inference.snapshot import Snapshot
from zoo_seg.model import SegmentationModel
from zoo_seg.network import SegmentationNetwork

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


class Body(nn.Module):
    """A small backbone of every kind of layer that is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 24, 5, 4, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        self.wide = nn.Conv2d(24, 24, 3, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.wide(self.act(self.norm(self.stem(x))))]


class Head(nn.Module):
    level = -1

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(24, 5, 1)
        self.gain = 1.0

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.gain * self.classifier(features[self.level])


def small(body: nn.Module | None = None) -> SegmentationModel:
    """With statistics and weights that leave BatchNorm something to do."""
    torch.manual_seed(0)
    template = zoo_seg.build_model("fcn", "resnet18", 5, channels=8)
    model = SegmentationModel(SegmentationNetwork(body or Body(), Head()), replace(template.info, architecture=None))
    return settled(model)


def settled(model: SegmentationModel) -> SegmentationModel:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def resnet() -> SegmentationModel:
    torch.manual_seed(0)
    return settled(zoo_seg.build_model("fcn", "resnet26d", 5, channels=8))


def expected(model: SegmentationModel) -> torch.Tensor:
    """The logits of `model(x)` in eval()."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        x = normalise(IMAGE, model.preprocess.mean, model.preprocess.std)
        logits = model(x.to(next(model.parameters()).dtype))[0].float()
    for module, mode in modes:
        module.training = mode
    return logits


def check(model: SegmentationModel, tolerance: float = 1e-4, **options: Any) -> np.ndarray:
    """`predict` chooses what `model(x)` chooses, wherever two classes do not all but tie."""
    logits = expected(model)
    mask = model.predict(IMAGE, resize=None, **options).mask
    top = logits.topk(2, dim=0).values
    clear = top[0] - top[1] > tolerance * logits.std()
    assert clear.float().mean() > 0.6
    assert (mask == logits.argmax(0).numpy())[clear].all()
    return mask


def step(make: Callable[..., torch.optim.Optimizer]) -> Callable[[SegmentationModel], None]:
    def run(model: SegmentationModel) -> None:
        optimizer = make(model.network.parameters(), lr=0.1, fused=True)
        for parameter in model.network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        optimizer.step()

    return run


def all_weights(change: Callable[[nn.Parameter], object]) -> Callable[[SegmentationModel], None]:
    def run(model: SegmentationModel) -> None:
        for parameter in model.network.parameters():
            change(parameter)

    return run


def swap(model: SegmentationModel) -> None:
    """Two classes change places; no sum over all weights changes."""
    for tensor in (model.network.head.classifier.weight.data, model.network.head.classifier.bias.data):
        tensor[:2] = tensor[:2].flip(0).clone()


def twist(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.flip(1)


def patched(self: Any, features: list[torch.Tensor]) -> torch.Tensor:
    return Head.forward(self, features).flip(1)


def vector(model: SegmentationModel) -> None:
    parameters = list(model.network.parameters())
    vector_to_parameters(torch.cat([each.detach().flatten() for each in parameters]).flip(0), parameters)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flip(0)


CHANGES: dict[str, Callable[[SegmentationModel], object]] = {
    "fused AdamW": step(torch.optim.AdamW),
    "fused SGD": step(torch.optim.SGD),
    "fused Adagrad": step(torch.optim.Adagrad),
    "data.mul_": all_weights(lambda p: p.data.mul_(-1.5)),
    "data =": all_weights(lambda p: setattr(p, "data", p.data.flip(0))),
    "numpy": lambda model: model.network.head.classifier.weight.detach().numpy().__imul__(-1),
    "one weight": lambda model: model.network.head.classifier.bias.data[2].add_(50),
    "swapped": swap,
    "transposed": lambda model: setattr(
        model.network.backbone.wide.weight, "data", model.network.backbone.wide.weight.data.transpose(0, 1)
    ),
    "vector_to_parameters": vector,
    "a buffer": lambda model: model.network.backbone.norm.running_mean.data.add_(1),
    "hook": lambda model: model.network.head.classifier.register_forward_hook(twist),
    "hook before": lambda model: model.network.head.register_forward_pre_hook(lambda m, x: ([-x[0][0]],)),
    "hook on the network": lambda model: model.network.register_forward_hook(twist),
    "hook on the model": lambda model: model.register_forward_hook(twist),
    "forward": lambda model: setattr(model.network.head, "forward", types.MethodType(patched, model.network.head)),
    "forward of the model": lambda model: setattr(model, "forward", lambda x: -model.network(x)),
    "class": lambda model: setattr(model.network.head, "__class__", type("Other", (Head,), {"forward": patched})),
    "activation": lambda model: setattr(model.network.backbone, "act", nn.Tanh()),
    "attribute": lambda model: setattr(model.network.head, "gain", -1.0),
    "eps": lambda model: setattr(model.network.backbone.norm, "eps", 5.0),
    "stride": lambda model: setattr(model.network.backbone.stem, "stride", (2, 2)),
    "head": lambda model: setattr(model, "head", Head()),
    "preprocess": lambda model: setattr(
        model, "preprocess", zoo_seg.manifest.Preprocess((0.0, 100.0, 250.0), (20.0, 30.0, 60.0), None)
    ),
    "parametrised": lambda model: parametrize.register_parametrization(
        model.network.head.classifier, "weight", Doubled()
    ),
    "weight_norm": lambda model: parametrizations.weight_norm(
        model.network.head.classifier
    ).parametrizations.weight.original0.data.mul_(-1),
    "spectral_norm": lambda model: parametrizations.spectral_norm(model.network.backbone.wide),
    "pruned": lambda model: prune.l1_unstructured(model.network.backbone.wide, "weight", 0.7),
    "trained": lambda model: model.train(),
    "assigned": lambda model: model.load_state_dict(
        {name: value.flip(0) for name, value in model.state_dict().items()}, assign=True
    ),
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change(change: str) -> None:
    model = small()
    before = check(model)
    CHANGES[change](model)
    modes = [module.training for module in model.modules()]
    after = check(model, 0.05 if change == "bfloat16" else 1e-4)
    if change not in ("trained", "double", "bfloat16"):
        assert (before != after).mean() > 0.01
    assert [module.training for module in model.modules()] == modes
    check(model, 0.05)


def test_a_hook_for_all_modules_runs_and_is_forgotten() -> None:
    model = small()
    before = check(model)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output.flip(1) if isinstance(module, SegmentationNetwork) else None
    )
    try:
        assert (check(model) != before).any()
    finally:
        handle.remove()
    assert (check(model) == before).all()


def test_a_class_s_forward_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    before = check(model)
    monkeypatch.setattr(Head, "forward", lambda self, features: -self.classifier(features[-1]))
    assert (check(model) != before).mean() > 0.5


def test_what_a_user_s_function_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = [1.0]

    class Scaled(Body):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x * gain[0] for x in super().forward(x)]

    model = small(Scaled())
    before = check(model)
    gain[0] = -1.0
    assert (check(model) != before).mean() > 0.5


def test_classes_and_palette_are_the_present_ones() -> None:
    model = small()
    model.predict(IMAGE)
    model.classes = list("vwxyz")
    model.palette = [(i, i, i) for i in range(5)]
    result = model.predict(IMAGE)
    assert result.classes == tuple("vwxyz")
    assert result.palette[4] == (4, 4, 4)


def test_any_word_of_any_tensor_and_any_two_that_change_places_are_noticed() -> None:
    weights = [torch.randn(300, 401), torch.randn(3), torch.randn(8, 5, 3, 3).to(memory_format=torch.channels_last)]
    weights += [torch.randn(60, 70).t(), torch.randn(9000)[1::2], torch.randn(7, 1).expand(7, 5).clone().half()]
    module = nn.ParameterList(weights)
    snapshot = Snapshot(module)
    random = np.random.default_rng(0)
    for parameter in module:
        for _ in range(20):
            place, other = (tuple(random.integers(0, side) for side in parameter.shape) for _ in range(2))
            before = parameter.data.clone()
            parameter.data[place] = -parameter.data[place]
            assert not snapshot.is_current(module)
            parameter.data.copy_(before)
            assert snapshot.is_current(module)
            parameter.data[place], parameter.data[other] = before[other], before[place]
            assert snapshot.is_current(module) == torch.equal(parameter.data, before)
            parameter.data.copy_(before)


def test_unchanged_is_prepared_once_and_freed_with_its_model() -> None:
    model = small()
    predictor = model.predictor()
    model.train()
    assert model.predictor(device="cpu") is predictor
    assert model.eval().predictor(dtype=torch.float32) is predictor
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


# --- the first prediction -----------------------------------------------------------------------


class LoRA(nn.Conv2d):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.down = nn.Conv2d(self.in_channels, 2, self.kernel_size, self.stride, self.padding, bias=False)
        self.up = nn.Conv2d(2, self.out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.up(self.down(x))


class StdConv(nn.Conv2d):
    """Weight standardisation, https://arxiv.org/abs/1903.10520."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / std, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("kind", [LoRA, StdConv])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_subclasses_of_convolutions(kind: type[nn.Conv2d], dtype: str) -> None:
    body = Body()
    body.stem = kind(3, 24, 5, stride=4, padding=2, bias=False)
    body.wide = nn.Sequential(nn.Conv2d(24, 1024, 1), kind(1024, 24, 3, padding=1))
    check(small(body), 1e-4 if dtype == "float32" else 0.1, dtype=dtype)


def test_timms_weight_standardised_convolutions() -> None:
    torch.manual_seed(0)
    check(zoo_seg.build_model("fcn", "resnetv2_18d", 5, channels=8).eval())
    check(small(timm_body("resnetv2_50x1_bit")))


def timm_body(name: str) -> nn.Module:
    """The first maps of a timm backbone, as wide as `Head` reads."""
    import timm

    stages = timm.create_model(name, features_only=True, out_indices=(1,))
    return nn.Sequential(*stages.children(), nn.Conv2d(stages.feature_info.channels()[-1], 24, 1), Listed())


class Listed(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


@pytest.mark.parametrize("where", ["a wide convolution", "a block", "the backbone", "a BatchNorm", "bound"])
@pytest.mark.parametrize("when", ["first", "later"])
def test_hooks_are_called(where: str, when: str) -> None:
    model = resnet()
    if when == "later":
        check(model)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    blocks = [module for module in model.modules() if type(module).__name__ == "Bottleneck"]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: list[Any] = []

    class Recorder:
        def __init__(self) -> None:
            self.seen: list[Any] = seen

        def record(self, module: nn.Module, inputs: Any, output: Any) -> Any:
            self.seen.append(module)
            return [2 * each for each in output] if isinstance(output, (list, tuple)) else 2 * output

    targets = {"a wide convolution": convs[-3], "a block": blocks[2], "the backbone": model.backbone}
    target = {**targets, "a BatchNorm": norms[3], "bound": convs[2]}[where]
    recorder = Recorder()
    target.register_forward_hook(recorder.record if where == "bound" else lambda *args: recorder.record(*args))
    check(model)
    assert len(seen) == 2
    assert all(module is target for module in seen)


def test_a_network_as_it_is_says_so_once_and_takes_other_types(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    model.head.classifier.register_forward_hook(twist)
    with caplog.at_level(logging.INFO, "zoo_seg"):
        check(model)
        check(model)
        check(model, 0.1, dtype="bfloat16")
    lines = [record.getMessage() for record in caplog.records if "as it is" in record.getMessage()]
    assert len(lines) == 2
    assert "network.head.classifier has a hook" in lines[0]
    if torch.cuda.is_available():
        with pytest.raises(OptionError, match="runs where it is, on cpu"):
            model.predict(IMAGE, device="cuda")


def test_what_a_rewrite_changes_is_not_rewritten(caplog: pytest.LogCaptureFixture) -> None:
    """A convolution whose output two layers read."""

    class Twice(Body):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.stem(x)
            return [self.wide(self.norm(y)) + y]

    with caplog.at_level(logging.INFO, "zoo_seg"):
        check(small(Twice()))
    assert [record.getMessage() for record in caplog.records if "not rewritten" in record.getMessage()]


def test_rewrites_are_compared_at_an_odd_size(caplog: pytest.LogCaptureFixture) -> None:
    """The convolution's output is normalised at even sizes only."""

    class Even(Body):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.stem(x)
            return [self.wide(self.norm(y) if x.shape[-1] % 2 == 0 else y.clone())]

    model = small(Even())
    check(model)
    mask = model.predict(IMAGE[:, :-1], resize=None).mask
    with torch.no_grad():
        logits = model(normalise(IMAGE[:, :-1].copy(), model.preprocess.mean, model.preprocess.std))[0]
    assert (mask == logits.argmax(0).numpy()).mean() > 0.99


# --- surroundings -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_no_numbers_no_class_map(dtype: str, value: float) -> None:
    model = small()
    if value == 1e38 and dtype != "float16":
        value = float("-inf")
    with torch.no_grad():
        model.network.head.classifier.weight[1].fill_(value)
    for options in ({}, {"mode": "slide", "crop": (64, 64)}, {"flip": True}):
        with pytest.raises(NumericalError, match=rf"logits computed in {dtype} are NaN or infinite.*") as caught:
            model.predict(IMAGE, dtype=dtype, resize=None, **options)
        assert isinstance(caught.value, ArithmeticError)
        assert ("use dtype='float32'" in str(caught.value)) == (dtype != "float32")


@pytest.fixture(params=["inference_mode", "autocast", "float64", "bfloat16", "meta"])
def surroundings(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What a program may have set around a call of `predict`."""
    if request.param == "inference_mode":
        yield torch.inference_mode()
    elif request.param == "autocast":
        yield torch.autocast("cpu", torch.bfloat16)
    elif request.param == "meta":
        yield torch.device("meta")
    else:

        class Default:
            def __enter__(self) -> None:
                torch.set_default_dtype(getattr(torch, request.param))

            def __exit__(self, *error: object) -> None:
                torch.set_default_dtype(torch.float32)

        yield Default()
    torch.set_default_dtype(torch.float32)


PLAIN: dict[str, Callable[[SegmentationModel], object]] = {
    "plain": lambda model: None,
    "weight_norm": lambda model: parametrizations.weight_norm(model.network.backbone.wide),
    "old weight_norm": lambda model: torch.nn.utils.weight_norm(model.network.backbone.wide),
    "spectral_norm": lambda model: torch.nn.utils.spectral_norm(model.network.backbone.wide),
    "pruned": lambda model: prune.l1_unstructured(model.network.backbone.wide, "weight", 0.5),
    "no statistics": lambda model: setattr(
        model.network.backbone, "norm", nn.BatchNorm2d(24, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("layers", PLAIN)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_first_predicted_in(surroundings: Any, layers: str) -> None:
    model = small()
    PLAIN[layers](model)
    model.eval()
    logits = expected(model)
    options: Any = {"resize": None, "mode": "slide", "crop": (64, 96), "scales": (0.5, 1.0), "flip": True}
    with surroundings:
        mask = model.predict(IMAGE, resize=None).mask
        slid = model.predict(IMAGE, **options).mask
    assert (mask == logits.argmax(0).numpy()).mean() > 0.999
    assert (slid == model.predict(IMAGE, **options).mask).all()
    x = torch.randn(1, 3, 32, 32)
    model(x).sum().backward()  # what predict left behind can still be trained


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_published_kinds_first_predicted_in(surroundings: Any, backbone: str) -> None:
    torch.manual_seed(0)
    model = settled(zoo_seg.build_model("pspnet", backbone, 5, channels=8))
    logits = expected(model)
    with surroundings:
        mask = model.predict(IMAGE, resize=None).mask
    assert (mask == logits.argmax(0).numpy()).mean() > 0.999


def test_a_network_without_weights() -> None:
    with torch.device("meta"):
        model = zoo_seg.build_model("fcn", "resnet18", 5, channels=8)
    with pytest.raises(OptionError, match="device 'meta' cannot be used"):
        model.predict(IMAGE)


@pytest.mark.parametrize("hooked", [False, True])
def test_eight_threads_of_mixed_types_get_what_they_asked_for(hooked: bool) -> None:
    model = small()
    if hooked:
        model.head.classifier.register_forward_hook(twist)
        model.train()
    masks = {dtype: check(model, 0.1, dtype=dtype) for dtype in ("float32", "bfloat16")}
    model = copy.deepcopy(model)
    start = threading.Barrier(8)

    def work(index: int) -> bool:
        start.wait()
        for turn in range(5):
            dtype = ("float32", "bfloat16")[(index + turn) % 2]
            predictor = model.predictor(dtype=dtype)
            if str(predictor.dtype) != f"torch.{dtype}":
                return False
            if (model.predict(IMAGE, resize=None, dtype=dtype).mask != masks[dtype]).mean() > 0.001:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert model.training == hooked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_predicts() -> None:
    model = resnet()
    mask = check(model)
    child = os.fork()
    if not child:
        try:
            same = (model.predict(IMAGE, resize=None).mask == mask).all()
            with torch.no_grad():
                model.head.classifier.bias[3] += 1e6
            os._exit(0 if same and (model.predict(IMAGE, resize=None).mask == 3).all() else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
