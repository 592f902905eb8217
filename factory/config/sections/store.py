"""The section `store`: access to the bucket of a dataset."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from factory.config.sections.base import Section


class StoreRecipe(Section):
    """Access to the bucket; not part of the fingerprint and not written to the dataset. It contains no secrets.

    Each field takes precedence over the corresponding environment variable. Keys and tokens come from the environment,
    a profile or a file (docs/storage.md).
    """

    endpoint: str | None = Field(default=None, description="URL of the service; by default AWS, Google or Azure.")
    region: str | None = Field(default=None, description="Region of an S3 bucket.")
    profile: str | None = Field(default=None, description="Profile in the AWS configuration files.")
    credentials_file: str | None = Field(default=None, description="JSON key file of Google Cloud.")
    allow_http: bool = Field(default=False, description="Allow endpoints without TLS.")
    virtual_hosted: bool = Field(default=False, description="S3: use virtual-hosted-style URLs.")
    anonymous: bool = Field(default=False, description="S3: send unsigned requests.")
    timeout: float = Field(
        default=60.0, gt=0, le=3600, description="Seconds after which a small request times out and is retried."
    )
    slowest: float = Field(
        default=50_000,
        gt=0,
        description="Slowest accepted upload in bytes per second; the size of an upload divided by it is added to the "
        "timeout.",
    )
    patience: float = Field(
        default=3600.0, ge=0, description="Seconds for which a request is retried while the store does not respond."
    )

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        if self.endpoint is not None:
            url = urlsplit(self.endpoint)
            if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
                raise ValueError("endpoint must be a URL such as https://host:port without user, password or query")
        return self
