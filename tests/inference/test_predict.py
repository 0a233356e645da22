"""Images in, class maps out."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import zoo_seg
from zoo_seg.errors import ImageError, NumericalError, OptionError, OutOfMemoryError
from zoo_seg.images.preprocess import normalise
from zoo_seg.inference import labels
from zoo_seg.layers.resample import resize
from zoo_seg.model import SegmentationModel


def build(family: str = "pspnet", num_classes: int = 5, backbone: str = "resnet18") -> SegmentationModel:
    """A network with random values and running statistics, so that folding has something to fold."""
    torch.manual_seed(0)
    model = zoo_seg.build_model(family, backbone, num_classes, channels=16)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return build()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


@pytest.mark.parametrize("family", ["fcn", "pspnet", "semanticfpn"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_predict_is_the_argmax_of_the_logits(family: str, backbone: str) -> None:
    model = build(family, backbone=backbone)
    picture = noise(75, 110)
    with torch.inference_mode():
        logits = model(normalise(picture, model.preprocess.mean, model.preprocess.std))[0]
    result = model.predict(picture)
    top = logits.topk(2, dim=0).values
    clear = (top[0] - top[1]) > 1e-4 * logits.std()
    assert (result.mask == logits.argmax(0).numpy())[clear].all()
    assert clear.float().mean() > 0.99
    assert result.mask.shape == (75, 110)
    assert result.mask.dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (65, 129)])
def test_any_size(model: SegmentationModel, size: tuple[int, int]) -> None:
    assert model.predict(noise(*size)).mask.shape == size


def test_every_kind_of_picture(model: SegmentationModel, tmp_path: Path) -> None:
    array = noise(40, 56)
    path = tmp_path / "image.png"
    Image.fromarray(array).save(path)
    expected = model.predict(array).mask
    for picture in (path, str(path), Image.open(path), torch.from_numpy(array).permute(2, 0, 1)):
        assert np.array_equal(model.predict(picture).mask, expected)
    grey = np.asarray(Image.fromarray(array).convert("L"))
    expected = model.predict(grey).mask
    for picture in (Image.fromarray(grey), Image.fromarray(grey).convert("P"), Image.fromarray(grey * np.uint16(257))):
        assert np.array_equal(model.predict(picture).mask, expected)


def test_a_list_of_mixed_sizes_keeps_its_order(model: SegmentationModel) -> None:
    pictures = [noise(40, 56, 0), noise(40, 56, 1), noise(24, 24, 2), noise(40, 56, 3)]
    one_by_one = [model.predict(picture).mask for picture in pictures]
    for batch_size in (1, 2, 3):
        results = model.predict(pictures, batch_size=batch_size)
        assert [result.mask.shape for result in results] == [mask.shape for mask in one_by_one]
        agreement = [(result.mask == mask).mean() for result, mask in zip(results, one_by_one, strict=True)]
        assert min(agreement) > 0.999
    assert model.predict([]) == []


def test_a_stream_is_lazy_and_survives_a_broken_picture(model: SegmentationModel) -> None:
    read = []

    def pictures() -> Any:
        for index in range(1000):
            read.append(index)
            yield noise(16, 16, index) if index != 1 else "missing.png"

    stream = model.stream(pictures(), on_error="yield")
    first, second, third = next(stream), next(stream), next(stream)
    assert first.mask.shape == third.mask.shape == (16, 16)
    assert isinstance(second, ImageError)
    assert "missing.png" in str(second)
    assert len(read) < 20
    stream.close()
    with pytest.raises(ImageError, match=r"missing\.png"):
        model.predict([noise(8, 8), "missing.png"])


def test_published_resize_and_own_size() -> None:
    model = build()
    model.preprocess = zoo_seg.get_weights("fcn_resnet50_os8.voc").preprocess
    sizes = []
    network = model.predictor().network
    network.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    for option in ("published", 100, None):
        assert model.predict(noise(45, 60), resize=option).mask.shape == (45, 60)
    assert sizes == [(512, 683), (100, 133), (45, 60)]


def test_a_number_for_the_shorter_side_goes_with_scales_under_both_rules() -> None:
    model = build()
    picture = noise(60, 90)
    shapes = {}
    for rules in ("ssseg", "mmseg"):
        model.protocol = rules  # type: ignore[assignment]
        inputs = model.predictor().inputs(picture, scales=(0.5, 1.5), resize=40)
        shapes[rules] = [tuple(each.shape[-2:]) for each in inputs]
        assert model.predict(picture, scales=(0.5, 1.5), resize=40).mask.shape == (60, 90)
        model = build()
    assert shapes == {"ssseg": [(40, 60)], "mmseg": [(20, 30), (60, 90)]}


def test_the_network_stays_as_it_was_and_changes_are_seen(model: SegmentationModel) -> None:
    picture = noise(40, 40)
    before = copy.deepcopy(model.state_dict())
    model.train()
    first = model.predict(picture)
    assert model.training
    assert len(model.aux_heads) == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.predictor() is model.predictor()
    predictor = model.predictor()
    with torch.no_grad():
        model.head.classifier.bias[3] += 1e6
    assert (model.predict(picture).mask == 3).all()
    model.load_state_dict(before)
    assert np.array_equal(model.predict(picture).mask, first.mask)
    assert model.predictor() is not predictor
    model.eval()


def test_copies_and_pickles_leave_the_predictor_behind(model: SegmentationModel) -> None:
    unused = len(pickle.dumps(build()))
    model.predict(noise(16, 16))
    assert abs(len(pickle.dumps(model)) - unused) < 1000
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.predictor() is not model.predictor()
        assert np.array_equal(twin.predict(noise(16, 16)).mask, model.predict(noise(16, 16)).mask)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_half_precision(model: SegmentationModel, dtype: Any) -> None:
    picture = noise(64, 64)
    result = model.predict(picture, dtype=dtype)
    assert (result.mask == model.predict(picture).mask).mean() > 0.9
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize("sizes", [[(50, 70)], [(24, 36), (50, 70)], [(7, 200), (9, 11)], [(3, 2)], [(60, 9), (7, 90)]])
@pytest.mark.parametrize("way", ["_where_cells_differ", "_in_strips"])
def test_class_map_equals_the_full_resize(
    classes: int, sizes: list[tuple[int, int]], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "_where_cells_differ", getattr(labels, way))
    monkeypatch.setattr(labels, "_BLOCK", 16 * classes)  # many small steps
    monkeypatch.setattr(labels, "_STRIP", 8 * classes * sizes[-1][1])  # 4 rows of both
    coarse = torch.randn(2, classes, 2, 3, generator=torch.Generator().manual_seed(1))
    for logits in (resize(coarse, (6, 9)), torch.randn(2, classes, 6, 9, generator=torch.Generator().manual_seed(2))):
        full = logits
        for size in sizes:
            full = resize(full, size)
        got = labels.class_map(logits, sizes)
        assert got.shape == (2, *sizes[-1])
        chosen = full.gather(1, got.long()[:, None])[:, 0]
        assert (full.amax(1) - chosen).abs().max() < 1e-5  # the winner, or one that ties with it


def test_more_than_256_classes(tmp_path: Path) -> None:
    model = build("fcn", num_classes=300)
    with torch.no_grad():
        model.head.classifier.bias[299] = 1e6
    result = model.predict(noise(20, 20))
    assert result.mask.dtype == np.uint16
    assert (result.mask == 299).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float64"}, "dtype is 'float64'; expected one of float32, bfloat16, float16"),
        ({"device": "tpu"}, "device 'tpu' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used.*here there is .*cpu"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"resize": 0}, "resize is 0"),
        ({"resize": "512"}, "resize is '512'"),
        ({"mode": "slide"}, "needs crop"),
        ({"mode": "slide", "crop": (16, 16), "stride": (17, 1)}, "larger than crop"),
        ({"scales": ()}, "scales"),
    ],
)
def test_wrong_options(model: SegmentationModel, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        model.predict(noise(16, 16), **options)


def test_slide_takes_the_training_crop_of_the_weights(model: SegmentationModel) -> None:
    whole = model.predict(noise(90, 120))
    one_window = model.predict(noise(90, 120), mode="slide", crop=(90, 120), stride=(60, 80))
    assert (whole.mask == one_window.mask).mean() > 0.999
    model.recipe = zoo_seg.get_weights("pspnet_resnet50_os8.voc").recipe
    assert (model.predict(noise(90, 120), mode="slide", resize=None).mask == whole.mask).mean() > 0.999
    model.recipe = None


def test_other_channels_are_refused() -> None:
    model = zoo_seg.build_model("fcn", "resnet18", 2, in_chans=4, channels=8)
    with pytest.raises(OptionError, match="takes 4 channels"):
        model.predict(noise(8, 8))


@pytest.mark.slow
def test_torch_compile_gives_the_same_class_map(model: SegmentationModel) -> None:
    picture = noise(48, 64)
    compiled = model.predict(picture, compile=True)
    assert (compiled.mask == model.predict(picture).mask).mean() > 0.999


def test_logits_have_the_input_s_size_whatever_it_is(model: SegmentationModel) -> None:
    x = torch.randn(1, 3, 50, 61)
    with torch.inference_mode():
        features = model.forward_features(x)
        logits = model.forward_head(features)
        assert torch.equal(model(x), F.interpolate(logits, size=(50, 61), mode="bilinear"))


def test_too_little_memory_makes_smaller_batches(model: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = model.predictor()
    sizes: list[int] = []
    most = 2

    def infer(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predictor.network.forward_logits(x)

    monkeypatch.setattr(predictor, "_infer", infer)
    assert len(list(predictor.stream([noise(16, 16, i) for i in range(5)], batch_size=5))) == 5
    assert sizes == [5, 2, 3, 1, 2]
    most = 0
    with pytest.raises(OutOfMemoryError, match=r"input of 16x16 .*resize=.*slide.*bfloat16"):
        next(predictor.stream([noise(16, 16)]))


@pytest.mark.slow
def test_a_slide_holds_no_full_size_logits() -> None:
    """A tall image of many classes: float32 logits at its size would be 920 MB."""
    model = build("fcn", num_classes=150)
    picture = noise(6000, 256)
    peak = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                peak = max(peak, result.untyped_storage().nbytes())
            return result

    with Watch():
        result = model.predict(picture, mode="slide", crop=(256, 256), stride=(171, 171))
    assert result.mask.shape == (6000, 256)
    assert peak < 64 << 20


def test_a_network_with_nan_is_refused() -> None:
    model = zoo_seg.build_model("fcn", "mobilenetv3_small_050", 3, channels=8).eval()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NumericalError, match="logits computed in float32 are NaN"):
        model.predict(np.zeros((40, 50, 3), np.uint8), resize=None)
