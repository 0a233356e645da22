"""The model card of a network: what it is, how it was measured and how to load it, from its config alone."""

from __future__ import annotations

from zoo_seg.manifest import Metric
from zoo_seg.weights.folder import Config


def model_card(config: Config) -> str:
    """Markdown with the header that the Hugging Face Hub reads."""
    architecture = config.architecture
    stride = f", output stride {architecture.output_stride}" if architecture.output_stride else ""
    lines = [
        "---",
        "library_name: zoo_seg",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, zoo_seg]",
        "---",
        "",
        f"# {architecture.family} on {architecture.backbone}, {len(config.classes)} classes",
        "",
        f"A segmentation network: `{architecture.family}` on timm's `{architecture.backbone}`{stride}; written "
        f"by {config.library}.",
        "",
        "```python",
        "import zoo_seg",
        "",
        'model = zoo_seg.from_pretrained("this folder, or org/repo")',
        'model.predict("picture.jpg").overlay().save("overlay.png")',
        "```",
        "",
        "## Measured",
        "",
        *(_metric(metric) for metric in config.metrics),
        *(["Nothing has been measured."] if not config.metrics else []),
        "",
        "## Trained",
        "",
        f"Started from {config.started_from or 'random values'}.",
    ]
    if config.recipe is not None:
        recipe = config.recipe
        lines.append(
            f"Split {recipe.train_split}, {recipe.epochs} epochs ({recipe.iterations} steps) of {recipe.batch_size} "
            f"pictures, crop {recipe.crop[0]}x{recipe.crop[1]} (height x width), {recipe.optimizer}, learning rate "
            f"{recipe.lr:g} ({recipe.schedule})."
        )
    if config.data_licence:
        lines += ["", f"Licence of the data: {config.data_licence}."]
    lines += ["", "## Classes", "", ", ".join(f"{i} {name}" for i, name in enumerate(config.classes)) + "."]
    return "\n".join(lines) + "\n"


def _metric(metric: Metric) -> str:
    protocol = metric.protocol
    scales = " ".join(f"{scale:g}" for scale in protocol.scales)
    how = f"{protocol.mode}, scales {scales}{', flip' if protocol.flip else ''}"
    return f"* {metric.name} {metric.value:.2f} % on {metric.split} ({how}; {metric.status})"
