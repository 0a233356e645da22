"""A network with all that is known of it: what a factory returns and a user holds."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo_seg.checkpoints.digest import tensors_sha256
from zoo_seg.config import LIBRARY
from zoo_seg.errors import CheckpointError, DownloadError, OptionError, UnknownNameError
from zoo_seg.families.registry import find_family
from zoo_seg.hub import huggingface
from zoo_seg.images.reading import ImageLike, drawn_street, read_image
from zoo_seg.inference.backends import Backend
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import Predictor, Predictors, choose_dtype
from zoo_seg.info import IMAGENET, ModelInfo, as_palette, for_channels, voc_palette
from zoo_seg.layers.readout import HeadOutput
from zoo_seg.manifest import (
    PROTOCOLS,
    Architecture,
    Licence,
    Metric,
    Preprocess,
    Recipe,
    TestOptions,
    Weights,
    get_weights,
    list_weights,
)
from zoo_seg.network import SegmentationNetwork, with_all_options
from zoo_seg.pretrained import Checkpoint, open_folder, open_repository
from zoo_seg.saving.card import OVERLAY, model_card
from zoo_seg.saving.folder import write_folder
from zoo_seg.saving.rebuild import check_rebuilds

_log = logging.getLogger("zoo_seg")

_STREET = {"road", "car", "building"}
"""A network that knows one of these is shown on the drawn street."""
_NOTHING_MEASURED: dict[str, Any] = {"metrics": (), "weights": None, "provenance": None}
"""What is true of a network that is used otherwise than its publisher did."""
_PARTS = ("backbone", "head", "aux_heads")
_TORCH_S = replace(IMAGENET, interpolation="bilinear")
"""How the projects that resize with torch prepare an image for a file that says nothing of it."""


class SegmentationModel(nn.Module, Predicting):
    """A segmentation network and all that is known of it.

    `model(x)` takes a normalised float tensor (N, in_chans, H, W) and returns logits (N, num_classes, H, W).

    Attributes:
        network: the pure network; `backbone`, `head` and `aux_heads` are its parts.
        info: what it is, how its images are prepared, and where its weights come from. `classes`, `palette`,
            `preprocess`, `protocol`, `test`, `recipe` and `metrics` are read from it, and may be set.
    """

    network: SegmentationNetwork
    info: ModelInfo

    def __init__(self, network: SegmentationNetwork, info: ModelInfo) -> None:
        super().__init__()
        self.network, self.info = network, info
        self._check_classes(info)
        self._predictors = Predictors()

    # --- the network ------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W), normalised float -> logits (N, num_classes, H, W), resized bilinearly."""
        logits: Tensor = self.network(x)
        return logits

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) -> the backbone's feature maps, finest first."""
        return self.network.forward_features(x)

    def forward_head(self, features: list[Tensor]) -> HeadOutput:
        """The backbone's feature maps -> logits (N, num_classes, h, w) at the head's own stride, or `Queries`."""
        return self.network.forward_head(features)

    def forward_logits(self, x: Tensor) -> HeadOutput:
        """(N, in_chans, H, W) -> logits (N, num_classes, h, w) at the head's own stride, or `Queries`."""
        return self.network.forward_logits(x)

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.network.in_chans

    @property
    def align_corners(self) -> bool:
        """Of the network's bilinear resizes."""
        return self.network.align_corners

    @property
    def size_divisor(self) -> int:
        """What the network pads its input to a multiple of."""
        return self.network.size_divisor

    # The parts of the network are reached, replaced and saved as if they were the model's own.

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name) if name in _PARTS else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PARTS:
            setattr(self.network, name, value)
        else:
            super().__setattr__(name, value)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's parameters and buffers by their names in it: `backbone.*`, `head.*`, `aux_heads.*`."""
        return self.network.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(prefix)]:
            state_dict[f"{prefix}network.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    # --- what is known of it ----------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """How many classes the logits have."""
        return len(self.info.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class id."""
        return self.info.classes

    @classes.setter
    def classes(self, classes: Sequence[str]) -> None:
        self._know(classes=tuple(classes), **_NOTHING_MEASURED)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The RGB colour (0..255) of each class id."""
        return self.info.palette

    @palette.setter
    def palette(self, palette: Sequence[tuple[int, int, int]]) -> None:
        try:
            colours = as_palette(palette)
        except ValueError as error:
            raise OptionError(str(error)) from None
        self._know(palette=colours)

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the network's input."""
        return self.info.preprocess

    @preprocess.setter
    def preprocess(self, preprocess: Preprocess) -> None:
        self._know(preprocess=preprocess, **_NOTHING_MEASURED)

    @property
    def protocol(self) -> str:
        """Whose order of operations `predict` follows: a name in the manifest's `protocols`, such as `"mmseg"`."""
        return self.info.protocol

    @protocol.setter
    def protocol(self, protocol: str) -> None:
        self._know(protocol=protocol, **_NOTHING_MEASURED)

    @property
    def test(self) -> TestOptions:
        """How the weights were tested, which `predict` does unless told otherwise."""
        return self.info.test

    @test.setter
    def test(self, test: TestOptions) -> None:
        self._know(test=test)

    @property
    def recipe(self) -> Recipe | None:
        """How the weights were trained, where it is known."""
        return self.info.recipe

    @recipe.setter
    def recipe(self, recipe: Recipe | None) -> None:
        self._know(recipe=recipe)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured of these weights, and by whom."""
        return self.info.metrics

    @property
    def architecture(self) -> Architecture | None:
        """How the network is built again; None for one that was put together by hand."""
        return self.info.architecture

    @property
    def weights(self) -> Weights | None:
        """The published record that the weights came from, or None."""
        return get_weights(self.info.weights) if self.info.weights else None

    @property
    def training_crop(self) -> tuple[int, int] | None:
        """(height, width) of the crops that the weights were trained on; None where nobody said."""
        return self.info.training_crop

    def _know(self, **facts: Any) -> None:
        try:
            info = replace(self.info, **facts)
        except ValueError as error:
            raise OptionError(str(error)) from None
        self._check_classes(info)
        self.info = info

    def _check_classes(self, info: ModelInfo) -> None:
        if info.architecture is None:
            return
        count = find_family(info.architecture.family).count_classes(dict(self.network.named_parameters()))
        if count not in (None, len(info.classes)):
            raise OptionError(f"{len(info.classes)} classes for a network with {count}; expected a name for each")

    def predictor(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002
        backend: Backend | None = None,
    ) -> Predictor:
        """The network made ready for many images; one for all these options is kept until the network changes."""

        def make() -> Predictor:
            return Predictor(
                self.network,
                classes=self.classes,
                palette=self.palette,
                preprocess=self.preprocess,
                protocol=self.protocol,
                device=device,
                dtype=dtype,
                compile=compile,
                backend=backend,
                owner=self,
            )

        where = next(self.network.parameters()).device if device is None else device
        return self._predictors.get(self, make, str(where), choose_dtype(dtype), compile, backend)

    # --- folders and the Hugging Face Hub ---------------------------------------------------------
    #
    # The three names are those of huggingface_hub's ModelHubMixin, but not its code: it reads a stranger's config.json
    # into the arguments of __init__, deletes the one that is to be replaced, never writes a card anew, and knows
    # neither this library's cache nor its messages. Every method of it would have to be overridden.

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, num_classes: int | None = None, in_chans: int = 3
    ) -> SegmentationModel:
        """A checkpoint's network with its names, colours and rules: those of its record or config, where it has one.

        Raises as `create_model` does.
        """
        known = checkpoint.info.in_chans if checkpoint.info else 3
        if in_chans != known != 3:
            raise OptionError(
                f"{checkpoint.path} is for images of {known} channels, not {in_chans}; only a network for RGB is "
                f"adapted: pass in_chans={known}, or load its folder with zoo_seg.from_pretrained (without --model)"
            )
        network = checkpoint.build(num_classes=num_classes, in_chans=in_chans)
        classes = num_classes or checkpoint.num_classes
        preprocess, protocol = _rules_of_file(checkpoint)
        info = checkpoint.info or ModelInfo(
            classes=class_names(classes), palette=voc_palette(classes), preprocess=preprocess, protocol=protocol
        )
        if len(info.classes) != classes:
            info = replace(info, classes=class_names(classes), palette=voc_palette(classes), metrics=())
        whole = with_all_options(checkpoint.architecture)
        if info.in_chans != in_chans:
            info = replace(info, metrics=())
        rules = for_channels(info.preprocess, in_chans)
        return cls(network, replace(info, preprocess=rules, in_chans=in_chans, architecture=whole)).eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        progress: bool = True,
    ) -> SegmentationModel:
        """The network that `save_pretrained`, `push_to_hub` or `finetune` wrote, or transformers, in `eval()`.

        Of transformers' networks those are the ones that `zoo_seg.transformers.repository` reads, with the classes of
        its `config.json` and images prepared as its `preprocessor_config.json` says; the package is not needed.

        Args:
            name: a folder, or a repository on the Hugging Face Hub: `"org/repo"`, `"org/repo@revision"`, `"hf://..."`.
            revision: a branch, tag or commit of the repository; None is its main branch.
            num_classes: other than the network's: both classifiers start anew, everything else is kept.
            in_chans: other than the 3 of a network for RGB images: the first convolution is adapted.
            progress: show a bar while downloading (on a terminal only).

        Raises:
            CheckpointError: there is no such network.
            ManifestError: the folder's `config.json` is broken.
            DownloadError: the repository cannot be had; the message says what to do.
        """
        check_positive(num_classes=num_classes, in_chans=in_chans)
        repository = None if isinstance(name, os.PathLike) or Path(name).is_dir() else huggingface.repository(name)
        if repository is not None:
            checkpoint = _open_repository(name, repository.at(revision), progress)
        elif revision is not None:
            raise OptionError(
                f"revision {revision!r} goes with a repository of the Hugging Face Hub, not with {name!r}"
            )
        elif Path(name).is_dir():
            checkpoint = open_folder(Path(name))
        else:
            raise CheckpointError(
                f"there is no folder {os.fspath(name)!r}; expected one that finetune or save_pretrained wrote, or a "
                "repository on the Hugging Face Hub as 'org/repo'"
            )
        assert checkpoint.info is not None  # folders have one
        in_chans = in_chans or checkpoint.info.in_chans
        return cls.from_checkpoint(checkpoint, num_classes=num_classes, in_chans=in_chans)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        ignore_index: int | None = None,
        metrics: Sequence[Metric] = (),
        started_from: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """Write `model.safetensors`, `config.json` and a model card, for `from_pretrained` and `--weights`.

        Args:
            folder: made where it does not exist; the files in it are replaced, each in one step.
            ignore_index: the label that training and measuring left out; None is what is known of the values, or 255.
            metrics: what was measured; empty stands for what is known, where the values have not changed since.
            started_from: the weights that training started from.
            dataset: the title of the data set that `metrics` were measured on.

        Raises:
            OptionError: the network was put together by hand, so nothing could build it again.
            OSError: the folder cannot be written.
        """
        info = self._saved_info(ignore_index, tuple(metrics), started_from, dataset)
        write_folder(Path(folder), info, self.state_dict(), model_card(info))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        example: ImageLike | None = None,
        card: str | None = None,
    ) -> str:
        """Write the network into a repository of the Hugging Face Hub, made where it does not exist.

        Args:
            repo_id: `"org/repo"`, for `from_pretrained`.
            private: make the repository private. One that exists and is public is refused.
            revision: the branch to write to, made where it does not exist; None is the main branch.
            token: None is huggingface_hub's own: `HF_TOKEN`, or what `hf auth login` left.
            commit_message: None names the library.
            create_pr: open a pull request instead.
            example: an image to show on the card under the network's colours; None is a drawn street, for networks
                of RGB images that know streets.
            card: the text of README.md; None is made from what is known of the network.

        Returns:
            The address of the commit.

        Raises:
            PushError: the Hub did not take it; the message says what to do.
            OptionError: the network was put together by hand, or `repo_id` is no name of a repository.
        """
        info = self._saved_info(None, (), None, None)
        rules = self.preprocess
        if example is not None:
            image: ImageLike | None = read_image(example, rules.range, channels=self.in_chans, bands=rules.bands)
        else:
            image = self._example() if card is None or OVERLAY in card else None
        chosen = None if example is None else range(1, self.in_chans + 1)  # they are, already
        target = huggingface.open_target(repo_id, private=private, revision=revision, token=token)
        overlay = None if image is None else self.predict(image, bands=chosen).overlay(legend=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_folder(
                folder,
                info,
                self.state_dict(),
                card or model_card(info, name=target.repository.name, image=overlay is not None),
            )
            if overlay is not None:
                overlay.thumbnail((1024, 1024))
                overlay.save(folder / OVERLAY, quality=90)
            return target.upload(
                folder, commit_message or f"{LIBRARY}: {self.num_classes} classes", create_pr=create_pr
            )

    def _saved_info(
        self, ignore_index: int | None, metrics: tuple[Metric, ...], started_from: str | None, dataset: str | None
    ) -> ModelInfo:
        """What is saved: what was known, as long as it is true of the present weights."""
        check_rebuilds(self.network, self.architecture, self.num_classes)
        known, digest = self.info, tensors_sha256(self.state_dict())
        changed = known.tensors_sha256 != digest
        if changed and known.tensors_sha256 and known.metrics and not metrics:
            _log.warning("the weights have changed since they were loaded; what was measured then is left out")
        kept = () if changed and known.tensors_sha256 else known.metrics
        return replace(
            known,
            in_chans=self.in_chans,
            ignore_index=known.ignore_index if ignore_index is None else ignore_index,
            metrics=metrics or kept,
            weights=None if changed or metrics else known.weights,
            started_from=started_from or known.started_from,
            dataset=dataset or (None if changed else known.dataset),
            provenance=None if changed or metrics else known.provenance,
            licence=_licence(started_from) if started_from else known.licence,
            tensors_sha256=digest,
        )

    def _example(self) -> Path | None:
        """The drawn street, for a network that knows streets."""
        is_rgb = self.in_chans == 3 and self.preprocess.bands is None
        return drawn_street() if is_rgb and _STREET & {name.lower() for name in self.classes} else None


def _rules_of_file(checkpoint: Checkpoint) -> tuple[Preprocess, str]:
    """Preprocessing and protocol of a file alone: those of the project that named its tensors.

    transformers' differ by network: they are those of its first record of such a one.
    """
    naming, network = checkpoint.naming, checkpoint.architecture
    if naming not in ("torchvision", "transformers"):
        return IMAGENET, naming if naming in PROTOCOLS else "ssseg"
    for record in list_weights(source=naming):
        if (record.architecture.family, record.architecture.backbone) == (network.family, network.backbone):
            return replace(record.preprocess, resize=None), record.protocol
    return _TORCH_S, naming


def _open_repository(name: str | os.PathLike[str], repository: huggingface.Repository, progress: bool) -> Checkpoint:
    try:
        return open_repository(repository, progress=progress)
    except DownloadError as error:
        if os.fspath(name).startswith("hf://"):
            raise
        raise type(error)(f"there is no folder {name!r}, and {error}") from None  # a mistyped path, perhaps


def _licence(started_from: str | None) -> Licence:
    try:
        return get_weights(started_from or "").licence
    except UnknownNameError:  # a file, a link, or nothing
        return Licence(None, None, None)


def class_names(num_classes: int) -> tuple[str, ...]:
    """Those of a network for which nobody gave any."""
    return tuple(f"class_{i}" for i in range(num_classes))


def check_positive(**numbers: int | None) -> None:
    """Refuse what is not a whole number of at least 1 (or None)."""
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"{name} is {value!r}; expected a whole number of at least 1")
