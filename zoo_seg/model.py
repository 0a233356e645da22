"""A network with its record: what a factory returns and a user holds."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from zoo_seg.data.labels import voc_palette
from zoo_seg.errors import CheckpointError, DownloadError, OptionError, UnknownNameError
from zoo_seg.inference.picture import Picture, drawn_street, read_picture
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import Predictor
from zoo_seg.manifest import Architecture, Licence, Metric, Preprocess, Recipe, Weights, get_weights
from zoo_seg.networks.network import SegmentationNetwork
from zoo_seg.weights import huggingface
from zoo_seg.weights.card import PICTURE, model_card
from zoo_seg.weights.folder import LIBRARY, SCHEMA_VERSION, Config, config_of, write_folder
from zoo_seg.weights.load import Checkpoint, open_folder, open_repository
from zoo_seg.weights.restore import restore

_log = logging.getLogger("zoo_seg")

IMAGENET = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), resize=None)
_STREET = {"road", "car", "building"}
"""A network that knows one of these is shown on the drawn street."""


class SegmentationModel(SegmentationNetwork, Predicting):
    """A segmentation network that knows its classes, its record and how its pictures are prepared.

    `model(x)` takes a normalised float tensor (N, 3, H, W) and returns logits (N, num_classes, H, W).

    Attributes:
        classes, palette: the name and the RGB colour (0..255) of each class id.
        weights: the published record the values came from, or None.
        preprocess: how a picture becomes the network's input.
        protocol: whose order of operations `predict` follows, `"ssseg"` or `"mmseg"`.
        architecture: how the network is built again; None for one that was put together by hand.
        recipe: how the values were trained, where it is known.
        metrics: what was measured of these values, and by whom.
        config: all that was known of the values when they were loaded; None for a new network.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        *,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        preprocess: Preprocess,
        protocol: Literal["ssseg", "mmseg"] = "ssseg",
        weights: Weights | None = None,
        architecture: Architecture | None = None,
        recipe: Recipe | None = None,
        metrics: Sequence[Metric] = (),
        config: Config | None = None,
    ) -> None:
        super().__init__(network.backbone, network.head, network.aux_head)
        logits = getattr(getattr(network.head, "classifier", None), "out_channels", len(classes))
        if len(classes) != logits:
            raise OptionError(f"{len(classes)} classes for a network with {logits}; expected a name for each")
        if len(classes) != len(palette):
            raise OptionError(f"{len(classes)} classes but {len(palette)} palette colours; expected as many")
        for colour in palette:
            if np.shape(colour) != (3,) or not all(isinstance(each, Integral) and 0 <= each <= 255 for each in colour):
                raise OptionError(f"palette has {colour!r}; expected (red, green, blue) as whole numbers from 0 to 255")
        self.classes = tuple(classes)
        self.palette = tuple(palette)
        self.preprocess = preprocess
        self.protocol: Literal["ssseg", "mmseg"] = protocol
        self.weights = weights
        self.architecture = architecture
        self.recipe = recipe
        self.metrics = tuple(metrics)
        self.config = config
        self._edits = _edits(self)
        self._predictor: tuple[object, Predictor] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes the logits have."""
        return len(self.classes)

    @property
    def training_crop(self) -> tuple[int, int] | None:
        """(height, width) of the crops that the values were trained on; None where nobody said."""
        return self.recipe.crop if self.recipe else None

    def predictor(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002
    ) -> Predictor:
        """The network made ready for many pictures; kept until the options or the network's values change."""
        state = (str(device), str(dtype), compile, _version(self))
        if self._predictor is None or self._predictor[0] != state:
            self._predictor = None  # first free the old one
            predictor = Predictor(
                self,
                classes=self.classes,
                palette=self.palette,
                preprocess=self.preprocess,
                protocol=self.protocol,
                device=device,
                dtype=dtype,
                compile=compile,
            )
            self._predictor = state, predictor
        return self._predictor[1]

    # --- folders and the Hugging Face Hub ---------------------------------------------------------
    #
    # The three names are those of huggingface_hub's ModelHubMixin, but not its code: it reads a stranger's config.json
    # into the arguments of __init__, deletes the one that is to be replaced, never writes a card anew, and knows
    # neither this library's cache nor its messages. Every method of it would have to be overridden.

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, architecture: Architecture, *, num_classes: int | None = None, in_chans: int = 3
    ) -> SegmentationModel:
        """A checkpoint's network with its names, colours and rules: those of its record or config, where it has one.

        Raises as `create_model` does.
        """
        network = restore(checkpoint, architecture, num_classes=num_classes, in_chans=in_chans)
        classes = num_classes or checkpoint.num_classes
        config = config_of(checkpoint.weights, architecture) if checkpoint.weights else checkpoint.config
        if config is None:
            names, palette, preprocess = class_names(classes), voc_palette(classes), IMAGENET
        elif len(config.classes) != classes:
            names, palette, preprocess = class_names(classes), voc_palette(classes), config.preprocess
        else:
            names, palette, preprocess = config.classes, tuple(config.palette), config.preprocess
        return cls(
            network,
            classes=names,
            palette=palette,
            preprocess=preprocess,
            protocol=config.protocol if config else "mmseg" if checkpoint.layout == "mmseg" else "ssseg",
            weights=checkpoint.weights,
            architecture=architecture,
            recipe=config.recipe if config else None,
            metrics=config.metrics if config and len(config.classes) == classes else (),
            config=config,
        ).eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        num_classes: int | None = None,
        progress: bool = True,
    ) -> SegmentationModel:
        """The network that `save_pretrained`, `push_to_hub` or `finetune` wrote, in `eval()`.

        Args:
            name: a folder, or a repository on the Hugging Face Hub: `"org/repo"`, `"org/repo@revision"`, `"hf://..."`.
            revision: a branch, tag or commit of the repository; None is its main branch.
            num_classes: other than the network's: both classifiers start anew, everything else is kept.
            progress: show a bar while downloading (on a terminal only).

        Raises:
            CheckpointError: there is no such network.
            ManifestError: the folder's `config.json` is broken.
            DownloadError: the repository cannot be had; the message says what to do.
        """
        check_positive(num_classes=num_classes)
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
        assert checkpoint.config is not None
        config = checkpoint.config
        return cls.from_checkpoint(checkpoint, config.architecture, num_classes=num_classes, in_chans=config.in_chans)

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
        config = self._config(ignore_index, tuple(metrics), started_from, dataset)
        write_folder(Path(folder), config, self.state_dict(), model_card(config))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        example: Picture | None = None,
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
            example: a picture to show on the card under the network's colours; None is a drawn street, for networks
                that know streets.
            card: the text of README.md; None is made from what is known of the network.

        Returns:
            The address of the commit.

        Raises:
            PushError: the Hub did not take it; the message says what to do.
            OptionError: the network was put together by hand, or `repo_id` is no name of a repository.
        """
        config = self._config(None, (), None, None)
        if example is not None:
            picture: Picture | None = read_picture(example)
        else:
            picture = self._example() if card is None or PICTURE in card else None
        target = huggingface.open_target(repo_id, private=private, revision=revision, token=token)
        overlay = None if picture is None else self.predict(picture).overlay(legend=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_folder(
                folder,
                config,
                self.state_dict(),
                card or model_card(config, name=target.repository.name, picture=overlay is not None),
            )
            if overlay is not None:
                overlay.thumbnail((1024, 1024))
                overlay.save(folder / PICTURE, quality=90)
            return target.upload(
                folder, commit_message or f"{LIBRARY}: {self.num_classes} classes", create_pr=create_pr
            )

    def _config(
        self, ignore_index: int | None, metrics: tuple[Metric, ...], started_from: str | None, dataset: str | None
    ) -> Config:
        """What `save_pretrained` writes: what was known, as long as it is true of the present values."""
        if self.architecture is None:
            raise OptionError("this network has no architecture to save; make it with build_model or create_model")
        known = self.config
        changed = (
            known is None
            or known.classes != self.classes
            or any(count > self._edits.get(name, 0) for name, count in _edits(self).items())
        )
        if known and changed and self.metrics and self.metrics == known.metrics and not metrics:
            _log.warning("the values have changed since they were loaded; what was measured then is left out")
        present = Config(
            schema_version=SCHEMA_VERSION,
            library=LIBRARY,
            architecture=self.architecture,
            in_chans=self.in_chans,
            classes=self.classes,
            palette=self.palette,
            ignore_index=ignore_index if ignore_index is not None else known.ignore_index if known else 255,
            preprocess=self.preprocess,
            protocol=self.protocol,
            metrics=metrics or (() if known and changed and self.metrics == known.metrics else self.metrics),
            recipe=self.recipe,
            started_from=started_from or (known.started_from if known else None),
            dataset=dataset,
        )
        if known is None or started_from:
            licence = _licence(started_from)
            return replace(
                present,
                code_licence=licence.code,
                weights_licence=licence.weights,
                data_licence=licence.data,
            )
        unchanged = not changed and not metrics
        return replace(
            present,
            is_published=known.is_published and unchanged,
            dataset=dataset or (known.dataset if unchanged else None),
            provenance=known.provenance if unchanged else None,
            code_licence=known.code_licence,
            weights_licence=known.weights_licence,
            data_licence=known.data_licence,
        )

    def _example(self) -> Path | None:
        """The drawn street, for a network that knows streets."""
        return drawn_street() if self.in_chans == 3 and _STREET & {name.lower() for name in self.classes} else None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle carries the network, not what was prepared from it."""
        return {**self.__dict__, "_predictor": None}


def _version(module: nn.Module) -> tuple[object, ...]:
    """Changes whenever a value of the module may have changed."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple((id(tensor), tensor.device, tensor.dtype, tensor._version) for tensor in tensors)


def _edits(module: nn.Module) -> dict[str, int]:
    """How often each tensor was written to since it was made."""
    tensors = module.state_dict(keep_vars=True)
    return {name: 0 if tensor.is_inference() else tensor._version for name, tensor in tensors.items()}


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
