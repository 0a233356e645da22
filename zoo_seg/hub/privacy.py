"""What the Hugging Face Hub is told of this machine: nothing but what is needed to get a file."""

from __future__ import annotations


def no_telemetry() -> None:
    """Call it before huggingface_hub is used.

    Without it the client tells with every request which torch is installed, and which coding agent started this process
    (and asks the Hub for a list of those). It then is as if the user had set `HF_HUB_DISABLE_TELEMETRY`.
    """
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
