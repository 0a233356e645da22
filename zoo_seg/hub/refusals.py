"""What the Hugging Face Hub refuses, in one line that says what to do."""

from __future__ import annotations

_LOG_IN = "log in (hf auth login, or HF_TOKEN)"


def explain(error: Exception, repository: str, revision: str | None, *, writing: bool = False) -> str | None:
    """What an exception of huggingface_hub means for `org/repo`; None where the Hub did not say anything itself."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are, in every version
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = HfApi().endpoint
    page = f"{hub}/{repository}"
    answer = getattr(error, "response", None)
    status = None if answer is None else answer.status_code
    if answer is not None and status == 401 and "Invalid credentials" in (answer.headers.get("X-Error-Message") or ""):
        return f"{hub} does not accept the token in use; make a new one at {hub}/settings/tokens and {_LOG_IN}"
    if isinstance(error, GatedRepoError):
        return f"{page} is open to those who accept its terms: read and accept them there, and {_LOG_IN}"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{repository} has no such file; {page}/tree/{revision or 'main'} lists those it has"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; {page}/tree/main lists its branches and tags"
    if writing and (status == 401 or isinstance(error, RepositoryNotFoundError)):
        return f"{hub} does not know who you are, or does not let you write to {repository}; {_LOG_IN}"
    if writing and status == 403:
        owner = repository.partition("/")[0]
        return (
            f"the token in use may not write to {repository}; make one with write access to {owner} at "
            f"{hub}/settings/tokens and {_LOG_IN}"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        who = "with the token in use" if get_token() else "without a login"
        return f"{hub} has no repository {repository} that can be read {who}; check the name, or {_LOG_IN}"
    if isinstance(error, HfHubHTTPError) and status is not None and 400 <= status < 500 and status not in (408, 429):
        return f"{page}: HTTP {status}, {plain(getattr(error, 'server_message', None) or error)}"
    return None


def symptom(error: Exception) -> str:
    """What is seen where the Hub itself said nothing."""
    answer = getattr(error, "response", None)
    return f"{type(error).__name__}: {plain(error)}" if answer is None else f"HTTP {answer.status_code}"


def plain(said: object) -> str:
    """On one line, and not without end: a server may have written it."""
    text = " ".join(str(said).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:300]
