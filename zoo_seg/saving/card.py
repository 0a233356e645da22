"""The model card of a network: what it is, how it was measured and how to load it, from its config alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from zoo_seg.checkpoints.restore import described
from zoo_seg.manifest import Metric, Recipe, TestOptions, load_manifest
from zoo_seg.saving.folder import Config

PICTURE = "overlay.jpg"
"""Beside the card, where a picture is shown."""
_FAMILIES = {"fcn": "FCN", "pspnet": "PSPNet", "semanticfpn": "Semantic FPN"}
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


def model_card(config: Config, *, name: str | None = None, picture: bool = False) -> str:
    """Markdown with the header that the Hugging Face Hub reads.

    Args:
        name: `org/repo`; None for a folder on a disk.
        picture: `PICTURE` lies beside the card.
    """
    sections = [_title(config), *_introduction(config)]
    if picture:
        sections.append(f"![A picture under the colours of the classes]({PICTURE})")
    sections += [_loading(name), "## Measured", _measured(config), "## Trained", *_training(config)]
    sections += ["## Licences", *_licences(config), "## Classes"]
    sections.append(", ".join(f"{number} {_text(each)}" for number, each in enumerate(config.classes)) + ".")
    text = f"---\n{_header(config, name)}\n---\n\n" + "\n\n".join(sections) + "\n"
    return f"{text}\n{_seal(text)}\n"


def is_generated(card: str) -> bool:
    """Whether a card is as `model_card` of this or another version made it, and not changed by hand."""
    text, _, seal = card.rstrip().rpartition("\n")
    return seal == _seal(text)


def _seal(text: str) -> str:
    """An invisible last line; a card that was changed no longer fits it."""
    return f"<!-- made by zoo_seg, {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def _header(config: Config, name: str | None) -> str:
    """YAML: tags, licence, what it was made from, and the metrics with their protocol as model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = config.dataset or "the author's own data"
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
        for metric in config.metrics
    ]
    licence: dict[str, Any] = {}
    if config.is_published:
        stated = (config.weights_licence or "").lower()
        licence["license"] = stated if stated in _LICENCES else "other"
        if licence["license"] == "other":
            licence["license_name"] = "see-the-card" if stated else "not-stated-by-the-publisher"
    base = re.fullmatch(r"hf://([^/@]+/[^/@]+)(@[^/]+)?", config.started_from or "")
    data = ModelCardData(
        library_name="zoo_seg",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "zoo_seg", config.architecture.family],
        base_model=base[1] if base else None,
        model_name=name or described(config.architecture) if results else None,
        eval_results=results or None,
        **licence,
    )
    return str(data.to_yaml())


def _title(config: Config) -> str:
    architecture = config.architecture
    family = _FAMILIES.get(architecture.family, _text(architecture.family))
    what = _text(config.dataset) if config.dataset else f"{len(config.classes)} classes"
    return f"# {family} on {_text(architecture.backbone)}: {what}"


def _introduction(config: Config) -> Iterator[str]:
    size, resize = "in their own size", config.preprocess.resize
    if resize:
        size = f"with a shorter side of {resize.short} pixels, the longer one at most {resize.long}"
    papers = {model.architecture.family: model.paper for model in load_manifest().models.values()}
    link = papers.get(config.architecture.family)
    paper = f" ([paper]({_text(link)}))" if link else ""
    yield (
        f"Semantic segmentation: a class for every pixel of a picture. `{_text(described(config.architecture))}`, a "
        f"backbone of timm{paper}, {len(config.classes)} classes; pictures are looked at {size}, by the rules of "
        f"{config.protocol}. Written by {_text(config.library)}."
    )
    if config.is_published:
        where = f", published by {_link(config.provenance.project)}" if config.provenance else ""
        yield f"The values are those of `{_text(config.started_from)}`{where}: renamed, and not trained any further."


def _loading(name: str | None) -> str:
    of_command = f"hf://{name}" if name else "this/folder"
    return f"""\
```python
import zoo_seg  # pip install zoo_seg

model = zoo_seg.from_pretrained("{name or "this/folder"}")
model.predict("picture.jpg").overlay().save("overlay.png")
```

```sh
zoo-seg predict picture.jpg --weights {of_command} --out out/
```"""


def _measured(config: Config) -> str:
    if not config.metrics:
        return "Nothing has been measured of these values."
    rows = [
        f"| {_text(metric.name)} | {metric.value:.2f} % | {_on(config, metric)} | {_how(metric.test)} "
        f"| {_who(metric)} |"
        for metric in config.metrics
    ]
    notes = "".join(f"\n\n{_text(metric.name)}: {_text(metric.note)}." for metric in config.metrics if metric.note)
    return "\n".join(["| metric | value | data | protocol | measured by |", "|---|---|---|---|---|", *rows]) + notes


def _on(config: Config, metric: Metric) -> str:
    return f"{_text(config.dataset)}, {_text(metric.split)}" if config.dataset else _text(metric.split)


def _who(metric: Metric) -> str:
    return "the publisher (not verified here)" if metric.status == "reported" else "zoo_seg"


def _how(test: TestOptions) -> str:
    scales = " ".join(f"{scale:g}" for scale in test.scales)
    mode = "whole pictures" if test.mode == "whole" else "sliding windows"
    return f"{mode}, scale{'s' if len(test.scales) > 1 else ''} {scales}, {'flip' if test.flip else 'no flip'}"


def _training(config: Config) -> Iterator[str]:
    if not config.is_published:
        yield f"Started from {f'`{_text(config.started_from)}`' if config.started_from else 'random values'}."
    if config.recipe is not None:
        yield _recipe(config.recipe)
    if config.provenance:
        links = {"configuration": config.provenance.config_url, "log": config.provenance.log_url}
        if known := [f"[{what}]({_text(url)})" for what, url in links.items() if url]:
            yield f"By the publisher: {', '.join(known)}."


def _recipe(recipe: Recipe) -> str:
    length = [f"{recipe.epochs} epochs"] if recipe.epochs else []
    length += [f"{recipe.iterations} steps"] if recipe.iterations else []
    further = {
        "momentum": recipe.momentum,
        "weight decay": recipe.weight_decay,
        "auxiliary loss": recipe.aux_loss_weight,
    }
    known = "".join(f", {what} {value:g}" for what, value in further.items() if value is not None)
    return (
        f"Split {_text(recipe.train_split)}, {' or '.join(length) or 'an unknown number of epochs'} of "
        f"{recipe.batch_size} pictures, crop {recipe.crop[0]}x{recipe.crop[1]} (height x width), "
        f"{_text(recipe.optimizer)}, learning rate {recipe.lr:g} ({_text(recipe.schedule)}){known}."
    )


def _licences(config: Config) -> Iterator[str]:
    stated = (config.code_licence, config.weights_licence, config.data_licence)
    if not config.is_published:
        yield "The licence of these values and of the data they were trained on is for their author to state."
        if not any(stated):
            return
        yield f"Training started from `{_text(config.started_from)}`, for which hold:"
    kinds = ("code", "weights", "terms of the data")
    yield "\n".join(
        f"* {kind}: {_text(licence) if licence else 'not stated by the publisher'}"
        for kind, licence in zip(kinds, stated, strict=True)
    )


def _link(url: str) -> str:
    return f"[{_text(url)}]({_text(url)})"


def _text(value: str | None) -> str:
    """On one line, and without what is markup: a card may be made of a stranger's config."""
    text = " ".join((value or "").split())
    return re.sub(r"([|<>\[\]`])", r"\\\1", text)
