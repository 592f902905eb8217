"""Reads single files of the Hugging Face Hub or of its local cache."""

import re
from pathlib import Path

from factory.errors import UserError, one_line

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, whose files never change, and not a branch or a tag."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def check_not_gated(repository: str, error: BaseException | None) -> None:
    """If a request failed with `error` because the repository is gated, raise UserError that says how to get access."""
    from huggingface_hub.errors import GatedRepoError

    while error is not None:
        if isinstance(error, GatedRepoError):
            raise UserError(
                f"{repository} is gated on the hub: accept its conditions at https://huggingface.co/{repository}, and "
                f"set HF_TOKEN to a token of the same account."
            ) from error
        error = error.__cause__ or error.__context__  # diffusers raises another error while it handles this one


def hub_file(repository: str, file: str, revision: str | None) -> Path:
    """The local copy of one file of a hub repository, downloaded if necessary.

    Raises UserError if neither the hub nor the local cache has the file.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        check_not_gated(repository, error)
        raise UserError(
            f"{file} of {repository} can be read neither from the hub nor from the local cache ({one_line(error)}); "
            f"check the name and the network."
        ) from error
