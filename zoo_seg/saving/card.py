"""The model card of a network: what it is, how it was measured and how to load it, from its config alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from zoo_seg.checkpoints.convert import described
from zoo_seg.config import LIBRARY
from zoo_seg.families.registry import find_family
from zoo_seg.info import ModelInfo
from zoo_seg.manifest import LARGEST_SIDE, Architecture, Metric, Preprocess, Recipe, TestOptions

OVERLAY = "overlay.jpg"
"""Beside the card, where an image is shown."""
_METRICS = {"mIoU": "mean_iou", "aAcc": "accuracy"}
"""Names of huggingface.co/metrics."""
_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
}
"""Those the Hub knows and weights are given under."""


def model_card(info: ModelInfo, *, name: str | None = None, image: bool = False) -> str:
    """Markdown with the header that the Hugging Face Hub reads.

    Args:
        name: `org/repo`; None for a folder on a disk.
        image: `OVERLAY` lies beside the card.
    """
    sections = [_title(info), *_introduction(info), *_images(info.preprocess)]
    if image:
        sections.append(f"![An image under the colours of the classes]({OVERLAY})")
    sections += [_loading(name), "## Measured", _measured(info), "## Trained", *_training(info)]
    sections += ["## Licences", *_licences(info), "## Classes"]
    sections.append(", ".join(f"{number} {_text(each)}" for number, each in enumerate(info.classes)) + ".")
    text = f"---\n{_header(info, name)}\n---\n\n" + "\n\n".join(sections) + "\n"
    return f"{text}\n{_seal(text)}\n"


def is_generated(card: str) -> bool:
    """Whether a card is as `model_card` of this or another version made it, and not changed by hand."""
    text, _, seal = card.rstrip().rpartition("\n")
    return seal == _seal(text)


def _seal(text: str) -> str:
    """An invisible last line; a card that was changed no longer fits it."""
    return f"<!-- made by zoo_seg, {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def _header(info: ModelInfo, name: str | None) -> str:
    """YAML: tags, licence, what it was made from, and the metrics with their protocol as model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = info.dataset or "the author's own data"
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-"),
            dataset_name=dataset,
            dataset_split=metric.split,
            metric_type=_METRICS.get(metric.name, metric.name.lower()),
            metric_name=f"{metric.name} in percent ({_how(metric.test)}; {metric.status})",
            metric_value=round(metric.value, 2),
            metric_args={
                "mode": metric.test.mode,
                "scales": list(metric.test.scales),
                "flip": metric.test.flip,
            },
        )
        for metric in info.metrics
    ]
    licence: dict[str, Any] = {}
    if info.is_published:
        stated = (info.licence.weights or "").lower()
        licence["license"] = stated if stated in _LICENCES else "other"
        if licence["license"] == "other":
            licence["license_name"] = "see-the-card" if stated else "not-stated-by-the-publisher"
    base = re.fullmatch(r"hf://([^/@]+/[^/@]+)(@[^/]+)?", info.started_from or "")
    data = ModelCardData(
        library_name="zoo_seg",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "zoo_seg", _architecture(info).family],
        base_model=base[1] if base else None,
        model_name=name or described(_architecture(info)) if results else None,
        eval_results=results or None,
        **licence,
    )
    return str(data.to_yaml())


def _title(info: ModelInfo) -> str:
    architecture = _architecture(info)
    what = _text(info.dataset) if info.dataset else f"{len(info.classes)} classes"
    return f"# {find_family(architecture.family).title} on {_text(architecture.backbone)}: {what}"


def _introduction(info: ModelInfo) -> Iterator[str]:
    size, resize = "in their own size", info.preprocess.resize
    if resize:
        at_most = "at most " if resize.keep_ratio else ""
        size = f"with a shorter side of {resize.short} pixels"
        if not resize.keep_ratio or resize.long < LARGEST_SIDE:
            size += f", the longer one {at_most}{resize.long}"
    link = find_family(_architecture(info).family).paper
    yield (
        f"Semantic segmentation: a class for every pixel of an image. `{_text(described(_architecture(info)))}`"
        f"{f' ([paper]({link}))' if link else ''}, {len(info.classes)} classes; images are predicted {size}, by the "
        f"rules of {_text(info.protocol)}. Written by {_text(LIBRARY)}."
    )
    if info.is_published:
        where = f", published by {_link(info.provenance.project)}" if info.provenance else ""
        yield f"The values are those of `{_text(info.started_from)}`{where}: renamed, and not trained any further."


def _images(rules: Preprocess) -> Iterator[str]:
    """What an image is to the network, unless it is plain RGB."""
    channels = len(rules.mean)
    if channels == 3 and rules.bands is None and rules.range is None:
        return
    what = "RGB images" if channels == 3 else f"Images of {channels} channel{'' if channels == 1 else 's'}"
    if rules.bands is not None:
        number = "number" if channels == 1 else "numbers"
        what = f"Images of {channels} channels" if channels == 3 else what
        what += f": of a file's bands those with the {number} {_listed(rules.bands)}, in this order"
    elif channels != 3:
        what += ", which are all bands of a file in their order"
    if rules.range is not None:
        spans = [f"{low:g} to {high:g}" for low, high in rules.range]
        what += f"; where it has more than 8 bits, its values from {_listed(spans)} become 0 to 255"
    yield (
        f"{what}. Normalised by the mean {_listed([f'{each:.4g}' for each in rules.mean])} and the standard deviation "
        f"{_listed([f'{each:.4g}' for each in rules.std])}."
    )


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


def _loading(name: str | None) -> str:
    of_command = f"hf://{name}" if name else "this/folder"
    return f"""\
```python
import zoo_seg  # pip install zoo_seg

model = zoo_seg.from_pretrained("{name or "this/folder"}")
model.predict("image.jpg").overlay().save("overlay.png")
```

```sh
zoo-seg predict image.jpg --weights {of_command} --out out/
```"""


def _measured(info: ModelInfo) -> str:
    if not info.metrics:
        return "Nothing has been measured of these values."
    rows = [
        f"| {_text(metric.name)} | {metric.value:.2f} % | {_on(info, metric)} | {_how(metric.test)} | {_who(metric)} |"
        for metric in info.metrics
    ]
    notes = "".join(f"\n\n{_text(metric.name)}: {_text(metric.note)}." for metric in info.metrics if metric.note)
    return "\n".join(["| metric | value | data | protocol | measured by |", "|---|---|---|---|---|", *rows]) + notes


def _on(info: ModelInfo, metric: Metric) -> str:
    return f"{_text(info.dataset)}, {_text(metric.split)}" if info.dataset else _text(metric.split)


def _who(metric: Metric) -> str:
    return "the publisher (not verified here)" if metric.status == "reported" else "zoo_seg"


def _how(test: TestOptions) -> str:
    scales = " ".join(f"{scale:g}" for scale in test.scales)
    mode = "whole images" if test.mode == "whole" else "sliding windows"
    return f"{mode}, scale{'s' if len(test.scales) > 1 else ''} {scales}, {'flip' if test.flip else 'no flip'}"


def _training(info: ModelInfo) -> Iterator[str]:
    if not info.is_published:
        yield f"Started from {f'`{_text(info.started_from)}`' if info.started_from else 'random values'}."
    if info.recipe is not None:
        yield _recipe(info.recipe)
    if info.provenance:
        links = {"configuration": info.provenance.config_url, "log": info.provenance.log_url}
        if known := [f"[{what}]({_text(url)})" for what, url in links.items() if url]:
            yield f"By the publisher: {', '.join(known)}."


def _recipe(recipe: Recipe) -> str:
    length = [f"{recipe.epochs} epochs"] if recipe.epochs else []
    length += [f"{recipe.iterations} steps"] if recipe.iterations else []
    further = {
        "learning rate": recipe.lr,
        "momentum": recipe.momentum,
        "weight decay": recipe.weight_decay,
        "auxiliary loss": recipe.aux_loss_weight,
    }
    known = "".join(f", {what} {value:g}" for what, value in further.items() if value is not None)
    return (
        f"Split {_text(recipe.train_split)}, {' or '.join(length) or 'an unknown number of epochs'} of "
        f"{recipe.batch_size or 'an unknown number of'} images, "
        f"crop {recipe.crop[0]}x{recipe.crop[1]} (height x width), "
        f"{_text(recipe.optimizer or 'an unknown optimizer')}{known}, schedule: {_text(recipe.schedule or 'unknown')}."
    )


def _licences(info: ModelInfo) -> Iterator[str]:
    stated = (info.licence.code, info.licence.weights, info.licence.data)
    if not info.is_published:
        yield "The licence of these values and of the data they were trained on is for their author to state."
        if not any(stated):
            return
        yield f"Training started from `{_text(info.started_from)}`, for which hold:"
    kinds = ("code", "weights", "terms of the data")
    yield "\n".join(
        f"* {kind}: {_text(licence) if licence else 'not stated by the publisher'}"
        for kind, licence in zip(kinds, stated, strict=True)
    )


def _link(url: str) -> str:
    return f"[{_text(url)}]({_text(url)})"


def _text(value: str | None) -> str:
    """On one line, and without what is markup: a card may be made of a stranger's info."""
    text = " ".join((value or "").split())
    return re.sub(r"([|<>\[\]`])", r"\\\1", text)


def _architecture(info: ModelInfo) -> Architecture:
    assert info.architecture is not None  # what is saved has one
    return info.architecture
