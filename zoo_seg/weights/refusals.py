"""What the Hugging Face Hub refuses, in one line that says what to do."""

from __future__ import annotations

from urllib.parse import quote

_LOG_IN = "log in (hf auth login, or HF_TOKEN)"


def explain(error: Exception, repository: str, revision: str | None, *, writing: bool = False) -> str | None:
    """What an exception of huggingface_hub means for `org/repo`; None where the Hub did not say anything itself."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are, in every version
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = HfApi().endpoint
    page = f"{hub}/{repository}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    who = "the token in use" if get_token() else "nobody without a login"
    if isinstance(error, GatedRepoError):
        return f"{page} is open to those who accept its terms: read and accept them there, and {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; {page}/tree/main lists its branches and tags"
    if writing and (status == 401 or isinstance(error, RepositoryNotFoundError)):
        return f"{hub} does not know who you are, or does not let you write to {repository}; {_LOG_IN}"
    if writing and status == 403:
        return (
            f"the token in use may not write to {repository}; make one with write access to "
            f"{repository.partition('/')[0]} at {hub}/settings/tokens and {_LOG_IN}"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return f"{hub} shows {who} a repository {repository}; check the name, and if it is private, {_LOG_IN}"
    if isinstance(error, HfHubHTTPError) and status is not None and 400 <= status < 500 and status not in (408, 429):
        said = getattr(error, "server_message", None) or error
        return f"{page}{'' if revision is None else '@' + quote(revision)}: HTTP {status}, {plain(said)}"
    return None


def plain(said: object) -> str:
    """On one line, and not without end: a server may have written it."""
    text = " ".join(str(said).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:300]
