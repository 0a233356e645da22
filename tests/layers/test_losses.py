from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_seg.errors import OptionError, TrainingError
from zoo_seg.layers.losses import LossSum, SegmentationLoss, balanced_class_weights, lovasz_loss

IGNORE = 255
CLASSES = 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0, 4.0])
KINDS = ("cross_entropy", "ohem", "focal", "dice", "lovasz")


def batch(pictures: int = 4, size: tuple[int, int] = (24, 32), classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Logits at a quarter of the size, and labels of which a fifth is ignored, more in the later images."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(pictures, classes, size[0] // 4, size[1] // 4, generator=generator) * 3
    labels = torch.randint(0, classes, (pictures, *size), generator=generator)
    for index in range(pictures):
        labels[index, :, : index * size[1] // (2 * pictures)] = IGNORE
    return logits.requires_grad_(), labels


def full(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


def mean(sums: LossSum) -> Tensor:
    return sums.total / sums.weight


# --- cross entropy ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("ignore_index", [IGNORE, -100, 0])
def test_cross_entropy_is_torchs_weighted_mean(weights: Tensor | None, ignore_index: int) -> None:
    logits, labels = batch()
    labels[labels == IGNORE] = ignore_index
    found = mean(SegmentationLoss(ignore_index=ignore_index, class_weights=weights)(logits, labels))
    expected = F.cross_entropy(full(logits, labels), labels, weight=weights, ignore_index=ignore_index)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_two_processes_equal_one(weights: Tensor | None) -> None:
    """Each divides by everyone's weights, and the mean of their gradients is taken, as DDP does."""
    logits, labels = batch()
    loss = SegmentationLoss(ignore_index=IGNORE, class_weights=weights)
    whole = torch.autograd.grad(mean(loss(logits, labels)), logits)[0]
    parts = [loss(logits[half], labels[half]) for half in (slice(0, 1), slice(1, 4))]
    shared = sum(part.weight for part in parts) / len(parts)
    halves = [torch.autograd.grad(part.total / shared, logits)[0] for part in parts]
    torch.testing.assert_close(sum(halves) / len(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_in_float32(kind: str, dtype: torch.dtype) -> None:
    logits, labels = batch()
    loss = SegmentationLoss(kind, ignore_index=IGNORE)
    half = (logits.detach() * 100).to(dtype)
    found, expected = loss(half, labels), loss(half.float(), labels)
    assert found.total.dtype == found.weight.dtype == torch.float32
    torch.testing.assert_close(found, expected)


# --- OHEM ---------------------------------------------------------------------------------------


def test_ohem_keeps_the_pixels_below_the_threshold() -> None:
    logits, labels = batch()
    losses = F.cross_entropy(full(logits, labels), labels, ignore_index=IGNORE, reduction="none")
    own = full(logits, labels).softmax(1).gather(1, labels.where(labels != IGNORE, 0)[:, None])[:, 0]
    hard = (own < 0.7) & (labels != IGNORE)
    assert 0.2 < hard.float().mean() < 0.9
    found = SegmentationLoss("ohem", ignore_index=IGNORE)(logits, labels)
    torch.testing.assert_close(mean(found), losses[hard].mean())
    assert int(found.weight) == int(hard.sum())
    weighted = SegmentationLoss("ohem", ignore_index=IGNORE, class_weights=WEIGHTS)(logits, labels)
    weights = WEIGHTS[labels[hard]]
    torch.testing.assert_close(mean(weighted), (losses[hard] * weights).sum() / weights.sum())


def test_ohem_keeps_the_hardest_sixteenth_of_an_easy_batch() -> None:
    _, labels = batch(size=(16, 16))
    right = F.one_hot(labels.where(labels != IGNORE, 0), CLASSES).movedim(-1, 1).float()
    surer = torch.linspace(5, 10, labels.numel()).view(labels.shape)
    logits = right * surer[:, None]
    labelled = int((labels != IGNORE).sum())
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    hardest = losses[labels != IGNORE].sort(descending=True).values[: math.ceil(labelled / 16)]
    assert losses.max() < -math.log(0.7)
    found = SegmentationLoss("ohem", ignore_index=IGNORE)(logits, labels)
    assert int(found.weight) == len(hardest)
    torch.testing.assert_close(mean(found), hardest.mean())


# --- Dice ---------------------------------------------------------------------------------------


def dice_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    shares = full(logits, labels).softmax(1).movedim(1, -1)[labels != IGNORE]
    truth = labels[labels != IGNORE]
    scores = []
    for each in truth.unique().tolist():
        p, g = shares[:, each], (truth == each).float()
        scores.append(1 - 2 * (p * g).sum() / (p.square().sum() + g.square().sum()))
    return torch.stack(scores).mean()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_dice_is_added_once_and_leaves_absent_classes_out(weights: Tensor | None) -> None:
    logits, labels = batch()
    labels[labels == 2] = 1
    options = {"ignore_index": IGNORE, "class_weights": weights}
    added = mean(SegmentationLoss("dice", **options)(logits, labels)) - mean(
        SegmentationLoss(**options)(logits, labels)
    )
    torch.testing.assert_close(added, dice_by_hand(logits, labels))
    ours, theirs = (
        torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (added, dice_by_hand(logits, labels))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-4)


def test_dice_is_0_for_a_perfect_answer_and_near_1_for_a_wrong_one() -> None:
    _, labels = batch(size=(16, 16))
    right = F.one_hot(labels.where(labels != IGNORE, 0), CLASSES).movedim(-1, 1).float() * 100
    for logits, expected in ((right, 0.0), (right.roll(1, dims=1), 1.0)):
        options = {"ignore_index": IGNORE}
        added = [float(mean(SegmentationLoss(kind, **options)(logits, labels))) for kind in ("dice", "cross_entropy")]
        assert added[0] - added[1] == pytest.approx(expected, abs=1e-4)


# --- focal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_focal_is_the_papers_formula(weights: Tensor | None) -> None:
    """- alpha (1 - p)^2 log p, equation 5; the mean by the weights, as that of cross entropy."""
    logits, labels = batch()
    scores = full(logits, labels).detach().double().movedim(1, -1)[labels != IGNORE].numpy()
    truth = labels[labels != IGNORE].numpy()
    own = (np.exp(scores) / np.exp(scores).sum(1, keepdims=True))[np.arange(len(truth)), truth]
    alpha = np.ones(CLASSES) if weights is None else weights.double().numpy()
    expected = -(alpha[truth] * (1 - own) ** 2 * np.log(own)).sum() / alpha[truth].sum()
    found = mean(SegmentationLoss("focal", ignore_index=IGNORE, class_weights=weights)(logits, labels))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


# --- Lovász -------------------------------------------------------------------------------------


def lovasz_by_hand(shares: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """The Lovász extension as an integral: over all levels, the Jaccard loss if what errs by more were wrong."""
    found = []
    for each in np.unique(truth):
        wanted = truth == each
        errors = np.abs(wanted - shares[:, each])
        levels = np.unique([0, *errors])
        total = 0.0
        for low, high in pairwise(levels):
            wrong = errors > low
            total += (high - low) * (1 - (wanted & ~wrong).sum() / (wanted | wrong).sum())
        found.append(total)
    return float(np.mean(found))


def test_lovasz_is_the_integral_over_all_levels_of_the_jaccard_loss() -> None:
    logits, labels = batch(pictures=2, size=(12, 16))
    labels[labels == 2] = 1  # a class without pixels counts nowhere
    shares = full(logits, labels).detach().double().softmax(1).movedim(1, -1)[labels != IGNORE].numpy()
    expected = lovasz_by_hand(shares, labels[labels != IGNORE].numpy())
    options = {"ignore_index": IGNORE}
    kinds = "lovasz", "cross_entropy"
    found = [float(mean(SegmentationLoss(kind, **options)(logits.detach(), labels))) for kind in kinds]
    assert 0.1 < expected < 0.9
    assert found[0] - found[1] == pytest.approx(expected, abs=1e-5)


def test_lovasz_s_gradient_is_the_numerical_one() -> None:
    logits, _ = batch(pictures=1, size=(32, 32))  # 8x8: resized ones have equal errors, where it has a kink
    labels = batch(pictures=1, size=(8, 8))[1]
    exact = logits.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lovasz_loss(x, labels, labels != IGNORE), exact, eps=1e-7, atol=1e-5)


def test_lovasz_of_sure_answers_is_one_minus_the_mean_iou() -> None:
    _, labels = batch(size=(16, 16))
    chosen = labels.roll(3, dims=2).where(labels.roll(3, dims=2) != IGNORE, 0)
    logits = F.one_hot(chosen, CLASSES).movedim(-1, 1).double() * 1000
    labelled = labels != IGNORE
    found, truth = chosen[labelled], labels[labelled]
    ious = [
        float(((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum())
        for c in truth.unique().tolist()
    ]
    assert float(lovasz_loss(logits, labels, labelled)) == pytest.approx(1 - np.mean(ious), abs=1e-6)


# --- one's own ----------------------------------------------------------------------------------


def test_a_loss_of_ones_own_is_given_float32_logits_at_the_labels_size() -> None:
    logits, labels = batch()
    given: list[Tensor] = []

    def own(logits: Tensor, labels: Tensor) -> Tensor:
        given.extend((logits, labels))
        return F.cross_entropy(logits, labels, ignore_index=IGNORE)

    found = SegmentationLoss(own, ignore_index=IGNORE)(logits.half(), labels.int())
    assert (given[0].dtype, given[0].shape) == (torch.float32, (4, CLASSES, 24, 32))
    assert (given[1].dtype, given[1].shape) == (torch.int64, (4, 24, 32))
    expected = SegmentationLoss(ignore_index=IGNORE)(logits.half(), labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.mean, mean(expected))


def test_a_module_of_ones_own_moves_with_the_loss() -> None:
    own = torch.nn.CrossEntropyLoss(WEIGHTS, ignore_index=IGNORE)
    loss = SegmentationLoss(own, ignore_index=IGNORE).to("meta")
    assert own.weight.device.type == "meta"
    assert loss.kind is own


def raising(logits: Tensor, labels: Tensor) -> Tensor:
    raise KeyError("road")


@pytest.mark.parametrize(
    ("own", "error", "words"),
    [
        (raising, TrainingError, "the loss raising raised KeyError when given logits (4, 5, 24, 32) and labels"),
        (lambda x, y: x.mean((1, 2, 3)), OptionError, "returned a tensor (4,); expected a tensor of one number"),
        (lambda x, y: 1.0, OptionError, "returned float; expected a tensor of one number"),
    ],
)
def test_a_loss_of_ones_own_that_fails_is_named(own: Callable[..., Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        SegmentationLoss(own, ignore_index=IGNORE)(*batch())
    assert words in str(raised.value)


# --- all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_labels_gives_0_and_gradients(kind: str, weights: Tensor | None) -> None:
    logits, labels = batch()
    found = SegmentationLoss(kind, ignore_index=IGNORE, class_weights=weights)(logits, torch.full_like(labels, IGNORE))
    assert (found.total.item(), found.weight.item()) == (0, 0)
    (gradient,) = torch.autograd.grad(found.total, logits)
    assert (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_along_the_gradient_lowers_the_loss(kind: str) -> None:
    logits, labels = batch()
    loss = SegmentationLoss(kind, ignore_index=IGNORE)
    before = mean(loss(logits, labels))
    (gradient,) = torch.autograd.grad(before, logits)
    assert mean(loss(logits - gradient, labels)) < before


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_and_one_pixel(kind: str) -> None:
    found = SegmentationLoss(kind, ignore_index=IGNORE)(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))
    assert (float(found.total), float(found.weight)) == (0, 1)


def test_the_weights_move_with_the_loss_and_stay_out_of_its_state() -> None:
    loss = SegmentationLoss(ignore_index=IGNORE, class_weights=WEIGHTS)
    assert loss.to("meta").class_weights.device.type == "meta"
    assert not loss.state_dict()


# --- class weights ------------------------------------------------------------------------------


def test_balanced_weights_follow_enets_rule() -> None:
    pixels = [900, 90, 10]
    weights = balanced_class_weights(pixels)
    rule = torch.tensor([1 / math.log(1.02 + each / 1000) for each in pixels])
    torch.testing.assert_close(weights / weights[0], rule / rule[0])
    assert weights.dtype == torch.float32
    assert float((weights * torch.tensor(pixels)).sum() / 1000) == pytest.approx(1)


@pytest.mark.parametrize("pixels", [[5, 0, 3], [0, 0, 0], [7], [10**13, 1, 0]])
def test_balanced_weights_are_finite_and_rise_with_rarity(pixels: list[int]) -> None:
    weights = balanced_class_weights(pixels)
    assert weights.shape == (len(pixels),)
    assert weights.isfinite().all()
    assert (weights > 0).all()
    ranked = [weight for _, weight in sorted(zip(pixels, weights.tolist(), strict=True))]
    assert ranked == sorted(ranked, reverse=True)
    if not any(pixels):
        assert weights.tolist() == [1, 1, 1]
