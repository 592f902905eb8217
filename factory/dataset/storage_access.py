"""Access to buckets: endpoint, region and credentials, which the driver resolves once and passes to its workers."""

import configparser
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from factory.config.sections import StoreRecipe
from factory.errors import UserError
from factory.files.paths import expanded

_S3_KEYS = (
    "AWS_CHECKSUM_ALGORITHM", "AWS_CONDITIONAL_PUT", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_DISABLE_BULK_DELETE",
    "AWS_DISABLE_TAGGING", "AWS_IMDSV1_FALLBACK", "AWS_METADATA_ENDPOINT", "AWS_REQUEST_PAYER", "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME", "AWS_S3_EXPRESS", "AWS_SERVER_SIDE_ENCRYPTION", "AWS_SKIP_SIGNATURE",
    "AWS_SSE_BUCKET_KEY_ENABLED", "AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_SSE_KMS_KEY_ID", "AWS_STS_ENDPOINT",
    "AWS_UNSIGNED_PAYLOAD", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_WEB_IDENTITY_TOKEN_FILE",
)  # fmt: skip
_GOOGLE_KEYS = ("GOOGLE_BASE_URL", "GOOGLE_BEARER_TOKEN", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SKIP_SIGNATURE")
_ENDPOINTS = ("aws_endpoint", "google_base_url", "azure_storage_endpoint")
_AZURE_KEYS = (
    "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CLIENT_SECRET", "AZURE_STORAGE_TENANT_ID", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_ENDPOINT", "AZURE_FEDERATED_TOKEN_FILE",
)  # fmt: skip
_CLIENT_KEYS = (
    "allow_invalid_certificates", "http1_only", "http2_only", "pool_idle_timeout", "pool_max_idle_per_host",
    "proxy_ca_certificate", "proxy_excludes", "proxy_url", "randomize_addresses", "user_agent",
)  # fmt: skip
"""Client options read from the environment: obstore ignores them once any option is given in code."""

REMOTE_SCHEMES = ("s3", "gs", "az", "http", "https")
_PROVIDER_VARIABLES = ("AWS_CONTAINER", "AWS_WEB_IDENTITY")
_VARIABLES = {
    "timeout": ("FACTORY_STORE_TIMEOUT", "a number of seconds above 0 and up to 3600"),
    "slowest": ("FACTORY_STORE_SLOWEST", "a number of bytes per second above 0"),
    "patience": ("FACTORY_STORE_PATIENCE", "a number of seconds of at least 0"),
}
_MIN_SECRET_LENGTH = 6
_CONNECT_TIMEOUT = timedelta(seconds=10)
_READ_TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class Access:
    """The settings of a client. `config` may contain secrets: it is pickled for workers but never printed.

    `keys` are S3's (access key, secret key, session token or ""), if known.
    """

    config: Mapping[str, str] = field(repr=False)
    keys: tuple[str, str, str] | None = field(repr=False, default=None)
    client: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def lists_in_order(self) -> bool:
        """Whether the service lists files in the order of their names: all but the directory buckets of S3 Express."""
        return not _is_set(self.config, "aws_s3_express")

    def hide(self, text: str) -> str:
        """Hide all credentials in a text."""
        secrets = [value for name, value in self.config.items() if _is_secret(name)]
        for value in sorted([*secrets, *(self.keys or ())], key=len, reverse=True):
            if len(value) >= _MIN_SECRET_LENGTH:
                text = text.replace(value, "***")
        return text

    def build(self, address: str, timeout: float | None) -> Any:
        """Build a client with a request timeout in seconds; None for reads, which time out when no data arrives.

        The client does not retry; the store does, in one place and for all kinds of failures.
        """
        from obstore.store import from_url

        options: dict[str, Any] = {**self.client, "connect_timeout": _CONNECT_TIMEOUT}
        if timeout is None:
            options |= {"read_timeout": _READ_TIMEOUT, "timeout": timedelta(days=1)}
        else:
            options["timeout"] = timedelta(seconds=timeout)
        extra: dict[str, Any] = {"config": dict(self.config)} if self.config else {}
        if self.keys is not None:
            keys = dict(zip(("access_key_id", "secret_access_key", "token"), self.keys, strict=True))
            credential = {name: value or None for name, value in keys.items()} | {"expires_at": None}
            extra["credential_provider"] = lambda: credential
        create: Any = from_url  # its overloads require a statically known scheme
        return create(address, client_options=options, retry_config={"max_retries": 0}, **extra)


def with_environment(settings: StoreRecipe) -> StoreRecipe:
    """Fill settings that were not given from FACTORY_STORE_...; raises UserError for invalid values."""
    overrides = {}
    for name, (variable, allowed) in _VARIABLES.items():
        if name not in settings.model_fields_set and (text := os.environ.get(variable)):
            try:
                overrides[name] = getattr(StoreRecipe.model_validate({name: float(text)}), name)
            except ValueError:
                raise UserError(f"{variable} must be {allowed}, got {text!r}.") from None
    return StoreRecipe.model_validate(settings.model_dump(exclude_unset=True) | overrides) if overrides else settings


def is_remote(address: str) -> bool:
    """Whether an address is a bucket URL rather than a folder; raises UserError for an unsupported or malformed URL."""
    try:
        scheme = urlsplit(address).scheme
    except ValueError as error:
        raise UserError(
            f"the address {address} is not a valid URL ({error}); write it as in s3://bucket/prefix."
        ) from None
    if scheme in REMOTE_SCHEMES:
        return True
    if scheme in ("", "file") or (sys.platform == "win32" and len(scheme) == 1) or os.path.exists(address):
        return False
    raise UserError(
        f"{scheme}:// is not supported, got {address}; give a folder, or a URL such as s3://bucket/prefix, gs:// or az://."
    )


def check_address(address: str) -> None:
    """Raise UserError for a URL with credentials, which would appear in process lists, cards and logs.

    A URL without a bucket is rejected, such as s3:/bucket/prefix, into which `pathlib.Path` turns s3://bucket/prefix.
    So is one with a fragment, which the client ignores: set#1 and set#2 would be the same dataset.
    """
    url = urlsplit(address)
    if not url.netloc:
        raise UserError(f"the address {address} names no bucket; write a URL such as {url.scheme}://bucket/prefix.")
    if url.fragment:
        raise UserError(
            f"the address {address} contains a #, and what follows it is not part of a name in a URL; give an address "
            f"without it."
        )
    if url.username or url.password or url.query:
        where = f"{url.scheme}://{url.hostname or ''}{url.path}"
        raise UserError(
            f"the address {where} contains a user, a password or a query; give the plain URL, and pass credentials by "
            f"environment variables or a profile (docs/storage.md)."
        )


def find_access(address: str, settings: StoreRecipe) -> Access:
    """Resolve access from settings, environment and configuration files, in this order of precedence."""
    scheme, environment = urlsplit(address).scheme, os.environ
    client = _client_options(environment)
    config: dict[str, str] = {}
    keys = None
    if scheme == "s3":
        config, keys = _s3(settings, environment)
    elif scheme == "gs":
        config = _google(settings, environment)
    elif scheme == "az":
        config = {name.lower(): environment[name] for name in _AZURE_KEYS if environment.get(name)}
        if settings.endpoint:
            config["azure_storage_endpoint"] = settings.endpoint
    endpoint = next((config[name] for name in _ENDPOINTS if name in config), address)
    if settings.allow_http or _http_allowed(environment):
        client["allow_http"] = True
    elif endpoint.startswith("http://"):
        raise UserError(
            f"the endpoint {endpoint} is not encrypted; use https://, or allow it with AWS_ALLOW_HTTP=true "
            f"(GOOGLE_ALLOW_HTTP=true, AZURE_ALLOW_HTTP=true) or `allow_http: true` in the recipe's `store`."
        )
    return Access(config, keys, client)


def _s3(settings: StoreRecipe, environment: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, str, str] | None]:
    config = {name.lower(): environment[name] for name in _S3_KEYS if environment.get(name)}
    profile_name = settings.profile or environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    profile = _profile(profile_name, environment)
    endpoint = (
        settings.endpoint
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or environment.get("AWS_ENDPOINT")
        or profile.get("endpoint_url")
    )
    region = (
        settings.region
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or profile.get("region")
    )
    config |= {"aws_endpoint": endpoint} if endpoint else {}
    config |= {"aws_region": region} if region else {}
    if settings.virtual_hosted:
        config["aws_virtual_hosted_style_request"] = "true"
    if settings.anonymous:
        return config | {"aws_skip_signature": "true"}, None
    if settings.profile is None and environment.get("AWS_ACCESS_KEY_ID"):
        token = environment.get("AWS_SESSION_TOKEN") or environment.get("AWS_TOKEN") or ""
        return config, (environment["AWS_ACCESS_KEY_ID"], environment.get("AWS_SECRET_ACCESS_KEY", ""), token)
    if profile.get("aws_access_key_id"):
        token = profile.get("aws_session_token", "")
        return config, (profile["aws_access_key_id"], profile.get("aws_secret_access_key", ""), token)
    if profile_name and not any(name.startswith(_PROVIDER_VARIABLES) for name in environment):
        raise UserError(
            f"the AWS profile {profile_name} has no access key; log in and export its keys "
            f'(eval "$(aws configure export-credentials --profile {profile_name} --format env)"), or choose another '
            f"profile."
        )
    return config, None


def _profile(profile_name: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The fields of a profile from both AWS files; without a name, those of `default` if it exists."""
    name, fields = profile_name or "default", dict[str, str]()
    for variable, usual, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", "default" if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        path, parser = expanded(environment.get(variable) or usual), configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            # The parser's own message quotes the line, which may contain a key.
            raise UserError(f"{path} is not a valid AWS configuration file ({type(error).__name__}).") from None
        if parser.has_section(section):
            fields |= dict(parser.items(section))
    if profile_name and not fields:
        raise UserError(
            f"there is no AWS profile {profile_name} in ~/.aws/config or ~/.aws/credentials; choose an existing one."
        )
    return fields


def _google(settings: StoreRecipe, environment: Mapping[str, str]) -> dict[str, str]:
    config = {name.lower(): environment[name] for name in _GOOGLE_KEYS if environment.get(name)}
    if settings.endpoint:
        config["google_base_url"] = settings.endpoint
    key_file = settings.credentials_file or next(
        (
            environment[name]
            for name in ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS")
            if environment.get(name)
        ),
        None,
    )
    if key_file is None or (settings.credentials_file is None and "google_service_account_key" in config):
        return config
    try:
        text = expanded(key_file).read_text(encoding="utf-8")
        kind = json.loads(text).get("type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{key_file} is not a readable JSON key file of Google Cloud ({type(error).__name__}); check "
            f"GOOGLE_APPLICATION_CREDENTIALS, or `credentials_file` in the recipe's `store`."
        ) from None
    if kind in (None, "service_account"):
        # Pass the content: a worker on another machine does not have the file.
        return config | {"google_service_account_key": text}
    return config | {"google_application_credentials": key_file}


def _client_options(environment: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key in _CLIENT_KEYS:
        for prefix in ("AWS_", "GOOGLE_", "AZURE_"):
            name = prefix + key.upper()
            if value := environment.get(name):
                is_flag = key.startswith(("allow", "http", "randomize"))
                options[key] = _is_set(environment, name) if is_flag else value
    if bundle := environment.get("AWS_CA_BUNDLE"):
        try:
            options["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise UserError(f"AWS_CA_BUNDLE is {bundle}, which cannot be read: {error.strerror}.") from None
    return options


def _http_allowed(environment: Mapping[str, str]) -> bool:
    names = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "ALLOW_HTTP")
    return any(_is_set(environment, name) for name in names)


def _is_set(settings: Mapping[str, str], flag: str) -> bool:
    """Whether a flag has one of the client's spellings of true."""
    return settings.get(flag, "").lower() in ("1", "true", "on", "yes", "y")


def _is_secret(name: str) -> bool:
    return name.endswith(("key", "token", "secret", "base64")) and not name.endswith("kms_key")
