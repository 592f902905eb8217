"""Names the folder of what is made from a dataset, such as an export or a report."""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from factory.dataset.storage import is_remote
from factory.errors import UserError
from factory.files.paths import expanded, without_file_scheme

_LONGEST_NAME, _DIGITS = 100, 6
"""Characters of an address, and digits of its digest, in the name of a folder."""


def default_target(address: str, name: str) -> Path:
    """The default folder of an export or report, different for each dataset.

    It is next to a local dataset (out/ -> out-coco), and in the working directory for a URL: the bucket and the path,
    and a digest of the URL, because a-b/c and a/b-c, or s3://a and gs://a, would have the same name without it.
    UserError for the root of the file system, which has nothing next to it.
    """
    if is_remote(address):
        url = urlparse(address)
        parts = [url.netloc, *PurePosixPath(url.path).parts[1:]]
        readable = re.sub(r"[^\w.-]+", "-", "-".join(parts))[-_LONGEST_NAME:].lstrip("-.")
        digest = hashlib.sha256("/".join([url.scheme, *parts]).encode()).hexdigest()[:_DIGITS]
        return Path(f"{readable}-{digest}-{name}")
    folder = expanded(without_file_scheme(address))
    folder = folder if folder.name not in ("", "..") else Path(os.path.realpath(folder))
    if not folder.name:
        raise UserError(f"{folder} has no folder next to it for the {name}; give one with --out.")
    return folder.with_name(f"{folder.name}-{name}")
