"""Networks on the Hugging Face Hub: fetched at one commit, and pushed.

    <ZOO_SEG_HOME>/links/<org>--<repo>@<commit>/{config.json, model.safetensors}, and what else transformers writes
    <ZOO_SEG_HOME>/links/<org>--<repo>@<branch>.commit      what a branch stood for when it was last asked

Credentials are huggingface_hub's own affair (`HF_TOKEN`, or what `hf auth login` left), and so is the Hub's address
(`HF_ENDPOINT`).
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from zoo_seg import settings
from zoo_seg.config import CONFIG, WEIGHTS, read_config
from zoo_seg.errors import CheckpointError, DownloadError, ManifestError, OfflineError, OptionError, PushError
from zoo_seg.hub import cache
from zoo_seg.hub.files import check_weight_file, replacing
from zoo_seg.hub.privacy import no_telemetry
from zoo_seg.hub.refusals import explain, symptom
from zoo_seg.manifest import File
from zoo_seg.transformers.repository import PREPROCESSOR, WEIGHT_FILES, files_of, weight_paths
from zoo_seg.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_log = logging.getLogger("zoo_seg")

MAX_CONFIG = 1 << 20
"""Bytes; that of 150 classes has 15 000."""
_MAIN = "main"


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub, at a branch, tag or commit."""

    id: str
    """`org/repo`."""
    revision: str = _MAIN

    @property
    def name(self) -> str:
        """As `from_pretrained` takes it."""
        return self.id if self.revision == _MAIN else f"{self.id}@{quote(self.revision, safe='')}"

    def at(self, revision: str | None) -> Repository:
        """The same at another revision; None leaves it.

        Raises:
            OptionError: it has a revision already.
        """
        if revision is not None and self.revision not in (_MAIN, revision):
            raise OptionError(f"{self.name} names a revision already; leave revision={revision!r} out")
        return self if revision is None else replace(self, revision=revision)


def repository(name: str) -> Repository | None:
    """What `org/repo[@revision]` or `hf://org/repo[@revision]` names; None for all else, a link to a file among it."""
    part = r"[A-Za-z0-9](?:[\w.-]*\w)?"
    match = re.fullmatch(rf"(?:hf://)?({part}/{part})(?:@([^/]+))?", name, re.ASCII)
    if not match or ".." in match[1] or "--" in match[1]:
        return None
    return Repository(match[1], unquote(match[2]) if match[2] else _MAIN)


# --- fetching -----------------------------------------------------------------------------------


def fetch_network(repository: Repository, *, progress: bool = True) -> Path | None:
    """A folder in the cache with a repository's `config.json` and weights, all of one commit.

    A branch is asked each time for its commit; while nobody answers, the one of the last time is taken. None where the
    repository has no `config.json`. The weights are `model.safetensors`; of one that transformers wrote, any of
    `WEIGHT_FILES`, and its `preprocessor_config.json` comes with them.

    Raises:
        DownloadError: the repository or the revision does not exist, may not be read, or cannot be reached.
        CheckpointError: this library does not read its `config.json`.
    """
    commit = _commit(repository)
    if commit is None:
        return None
    pinned = replace(repository, revision=commit)
    folder = _place(pinned)
    weights = weight_paths(folder)  # come last
    if weights and all(map(cache.check, (folder / CONFIG, *weights))):
        return folder
    if not _fetch(pinned, CONFIG, progress):
        return None
    try:
        if read_config(folder).protocol.startswith("transformers"):  # before what is large
            _fetch(pinned, PREPROCESSOR, progress)
            read_config(folder)
    except ManifestError as error:
        raise CheckpointError(
            f"{repository.name} is not a network that zoo_seg {__version__} reads: "
            f"{str(error).replace(f'{folder}{os.sep}', '')}. A weight file in it is loaded into a model of a "
            f"known name, as 'hf://{repository.name}/FILE'"
        ) from None
    if not any(_fetch_weights(pinned, name, progress) for name in WEIGHT_FILES):
        raise CheckpointError(f"{repository.name} has a {CONFIG}, but no {WEIGHTS} beside it")
    return folder


def _fetch_weights(repository: Repository, name: str, progress: bool) -> bool:
    """Fetch a weight file, or all that an index lists; False where there is none of this name."""
    if not _fetch(repository, name, progress):
        return False
    if name.endswith(".json"):
        for each in files_of(_place(repository) / name):
            if not _fetch(repository, each, progress):
                raise CheckpointError(f"{repository.name} has no {each}, which its {name} lists")
    return True


def _place(repository: Repository) -> Path:
    return settings.home() / "links" / f"{repository.id.replace('/', '--')}@{quote(repository.revision, safe='')}"


def _commit(repository: Repository) -> str | None:
    """The commit that a revision stands for; None where it has no `config.json`."""
    if re.fullmatch("[0-9a-f]{40}", repository.revision):
        return repository.revision
    note = _place(repository).with_name(f"{_place(repository).name}.commit")
    known = note.read_text(encoding="ascii") if note.is_file() else None
    if settings.offline():
        if known is None:
            raise _offline(repository)
        return known
    try:
        found = _ask(repository, CONFIG)
    except DownloadError as error:
        if known is None or not isinstance(error.__cause__, _Unreachable):
            raise
        _log.warning("%s; what %s was the last time is used, commit %s", error, repository.name, known)
        return known
    if found is None:
        return None
    if not re.fullmatch(r"\w{1,64}", found.commit or "", re.ASCII):
        raise DownloadError(f"what answers for {repository.name} names no commit as the Hub does; check HF_ENDPOINT")
    with suppress(OSError):  # a read-only cache that has the files is good enough
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as temporary:
            temporary.write_text(str(found.commit), encoding="ascii")
    return found.commit


class _Unreachable(Exception):
    """Nobody answered, which may be otherwise later."""


@dataclass(frozen=True)
class _Found:
    commit: str | None
    size: int | None
    sha256: str | None
    """Known of large files only."""


def _ask(repository: Repository, name: str) -> _Found | None:
    """What the Hub says of a file; None where the repository has none of this name."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError  # type: ignore[attr-defined]  # it is, in every version

    no_telemetry()
    api = HfApi(library_name="zoo_seg", library_version=__version__)
    try:
        url = hf_hub_url(repository.id, name, revision=repository.revision)
        found = api.get_hf_file_metadata(url=url)
    except EntryNotFoundError:
        return None
    except Exception as error:  # of many kinds, differing by version
        refusal = explain(error, repository.id, repository.revision)
        if refusal:
            raise DownloadError(refusal) from None
        raise DownloadError(
            f"{api.endpoint} does not answer for {repository.name} ({symptom(error)}); "
            "try again later, or set HF_ENDPOINT to a mirror of the Hub"
        ) from _Unreachable()
    sha256 = found.etag if re.fullmatch("[0-9a-f]{64}", found.etag or "") else None
    return _Found(found.commit_hash, found.size, sha256)


def _fetch(repository: Repository, name: str, progress: bool) -> bool:
    """Fetch a file of a commit into the cache; False where there is none of this name."""
    path = _place(repository) / name
    if cache.check(path):
        return True
    if settings.offline():
        raise _offline(repository)
    found = _ask(repository, name)
    if found is None:
        return False
    url = f"hf://{repository.id}@{quote(repository.revision, safe='')}/{name}"
    is_text = name.endswith(".json")
    if is_text and (found.size or 0) > MAX_CONFIG:
        raise CheckpointError(f"{url} has {found.size} bytes; expected at most {MAX_CONFIG} of a description")
    published = File(url, size=found.size or None, sha256=found.sha256)
    cache.fetch_file(url, path, published, check=_anything if is_text else check_weight_file, progress=progress)
    return True


def _anything(path: Path) -> None:
    """A config is checked when it is read."""


def _offline(repository: Repository) -> OfflineError:
    return OfflineError(
        f"{repository.name} is not in the cache ({settings.home()}), and ZOO_SEG_OFFLINE or HF_HUB_OFFLINE switches "
        "the network off; load it once on a machine with network and bring that cache here"
    )


# --- pushing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A repository that may be written to."""

    repository: Repository
    api: HfApi

    def upload(self, folder: Path, message: str, *, create_pr: bool = False) -> str:
        """Make the files of a folder one commit; return its address (that of the pull request with `create_pr`).

        Raises:
            PushError: the Hub did not take them.
        """
        try:
            commit = self.api.upload_folder(
                repo_id=self.repository.id,
                folder_path=folder,
                revision=self.repository.revision,
                commit_message=message,
                create_pr=create_pr,
            )
        except Exception as error:  # of many kinds, differing by version
            raise _refused(error, self.repository, self.api) from None
        return str(commit.pr_url or commit.commit_url)


def open_target(
    name: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> Target:
    """A repository to write to, made where it does not exist, and so is the branch.

    Raises:
        OptionError: `name` is not the name of a repository.
        PushError: it may not be written to, or is public though `private` was asked for.
    """
    from huggingface_hub import HfApi

    target = repository(name)
    if target is None:
        raise OptionError(f"{name!r} is not the name of a repository on the Hugging Face Hub; expected 'org/repo'")
    target = target.at(revision)
    if settings.offline():
        raise PushError("ZOO_SEG_OFFLINE or HF_HUB_OFFLINE switches the network off; unset it to push")
    no_telemetry()
    api = HfApi(token=token, library_name="zoo_seg", library_version=__version__)
    options: dict[str, Any] = {} if private is None else {"private": private}
    try:
        api.create_repo(target.id, exist_ok=True, **options)
        is_public = private is True and api.model_info(target.id).private is False
        if target.revision != _MAIN and not is_public:
            api.create_branch(target.id, branch=target.revision, exist_ok=True)
    except Exception as error:  # of many kinds, differing by version
        raise _refused(error, target, api) from None
    if is_public:
        raise PushError(
            f"{api.endpoint}/{target.id} exists and is public; make it private in its settings, or leave private out"
        )
    return Target(target, api)


def _refused(error: Exception, repository: Repository, api: HfApi) -> PushError:
    return PushError(
        explain(error, repository.id, repository.revision, writing=True)
        or f"{api.endpoint} did not take {repository.name} ({symptom(error)}); try again later"
    )
