"""Read single files of the Hugging Face hub, or of its local cache."""

import re
from pathlib import Path

from factory.errors import UserError, one_line

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, whose files never change, and not a branch or a tag."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def hub_file(repository: str, file: str, revision: str | None) -> Path:
    """The local copy of one file of a hub repository, downloaded if necessary.

    Raises UserError if neither the hub nor the local cache has the file.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        raise UserError(
            f"{file} of {repository} can be read neither from the hub nor from the local cache ({one_line(error)}); "
            f"check the name and the network."
        ) from error
