"""From a reference to keys: ``env:NAME``, ``profile:NAME``, ``file:/path``. Only references are stored; keys live in memory.

=====  ==========================================================  ====================  ==================================
       ``env:NAME``                                                ``profile:NAME``      ``file:/path``
=====  ==========================================================  ====================  ==================================
s3     NAME_ACCESS_KEY_ID, NAME_SECRET_ACCESS_KEY, and where they  of ~/.aws/credentials a file in the format of
       exist NAME_SESSION_TOKEN, NAME_REGION, NAME_DEFAULT_REGION  and ~/.aws/config     ~/.aws/credentials
gs     NAME: a service account's JSON, or the path of one          -                     a service account's JSON
az     NAME: the account's key, or a shared access signature       -                     the same in a file
=====  ==========================================================  ====================  ==================================

No message here repeats what was read: not a value, not a line of a file.
"""

import configparser
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from tensorkeep.errors import PermissionDenied

_MAX_FILE_BYTES = 1 << 20
_SIGNED = re.compile(r"(^|[?&])sig=")


@dataclass(frozen=True, slots=True)
class S3Keys:
    """An access key, and what its profile says of region and endpoint. The repr shows no key."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class AzureKey:
    """The key of a storage account, or a shared access signature. The repr shows neither."""

    account_key: str | None = field(default=None, repr=False)
    shared_access_signature: str | None = field(default=None, repr=False)


def find_s3_keys(reference: str, environment: Mapping[str, str]) -> S3Keys:
    """Return the keys that a reference names.

    Raises:
        PermissionDenied: there are none (``reason="no_credentials"``), or anybody can read the file.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        return _keys_of_environment(name, environment)
    if kind == "profile":
        return _keys_of_profile(name, environment)
    return _keys_of_file(name)


def find_gcs_key(reference: str, environment: Mapping[str, str]) -> str:
    """Return the JSON of the service account that a reference names; raises as `find_s3_keys`."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = _variable(name, environment, "a service account's JSON, or the path of one")
        text = value if value.lstrip().startswith("{") else _read_private(os.path.expanduser(value))
    else:
        text = _read_private(name)
    try:
        account = json.loads(text)
    except (ValueError, RecursionError):
        account = None
    if not (isinstance(account, dict) and account.get("private_key") and account.get("client_email")):
        raise _no_credentials(
            f"{reference} holds no service account's JSON with a private key, which signing needs: make a key of a service "
            "account and name its file"
        )
    return text


def find_azure_key(reference: str, environment: Mapping[str, str]) -> AzureKey:
    """Return the key of the storage account that a reference names; raises as `find_s3_keys`."""
    kind, _, name = reference.partition(":")
    value = _variable(name, environment, "the account's key, or a shared access signature") if kind == "env" else ""
    value = (value or _read_private(name)).strip()
    if _SIGNED.search(value):  # a key may end in these letters, too
        return AzureKey(shared_access_signature=value.removeprefix("?"))
    if not value:
        raise _no_credentials(f"{reference} is empty: it must hold the key of the storage account")
    return AzureKey(account_key=value)


def _keys_of_environment(name: str, environment: Mapping[str, str]) -> S3Keys:
    def find(suffix: str) -> str | None:
        return environment.get(f"{name}_{suffix}") or None

    return S3Keys(
        access_key_id=_variable(f"{name}_ACCESS_KEY_ID", environment, "the access key"),
        secret_access_key=_variable(f"{name}_SECRET_ACCESS_KEY", environment, "the secret key"),
        session_token=find("SESSION_TOKEN"),
        region=find("REGION") or find("DEFAULT_REGION"),
    )


def _variable(name: str, environment: Mapping[str, str], meaning: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise _no_credentials(
            f"the variable {name} is not set: it must hold {meaning}. Set it, or name other credentials in the device's URL"
        )
    return value


def _keys_of_profile(name: str, environment: Mapping[str, str]) -> S3Keys:
    home = environment.get("HOME", "")
    secrets_path = environment.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.join(home, ".aws", "credentials")
    config_path = environment.get("AWS_CONFIG_FILE") or os.path.join(home, ".aws", "config")
    secrets = _section(secrets_path, name)
    config = _section(config_path, name if name == "default" else f"profile {name}")
    if not secrets and not config:
        raise _no_credentials(
            f"there is no profile {name!r} in {secrets_path} or {config_path}: `aws configure` makes one"
        )
    both = {**config, **secrets}
    return _keys_of_section(both, f"profile {name!r} of {secrets_path}")


def _keys_of_file(path: str) -> S3Keys:
    parser = _parse(_read_private(path), path)
    section = "default" if parser.has_section("default") else next(iter(parser.sections()), None)
    if section is None:
        raise _no_credentials(f"{path} has no section: write it as ~/.aws/credentials, beginning with [default]")
    return _keys_of_section(dict(parser[section]), f"section {section!r} of {path}")


def _keys_of_section(section: Mapping[str, str], where: str) -> S3Keys:
    for name in ("aws_access_key_id", "aws_secret_access_key"):
        if not section.get(name):
            raise _no_credentials(
                f"{where} has no {name}: keys from single sign-on or another program are not supported"
            )
    return S3Keys(
        access_key_id=section["aws_access_key_id"],
        secret_access_key=section["aws_secret_access_key"],
        session_token=section.get("aws_session_token") or None,
        region=section.get("region") or None,
        endpoint=section.get("endpoint_url") or None,
    )


def _section(path: str, name: str) -> dict[str, str]:
    """Return a section of a file of AWS's; an empty one where the file or the section is missing."""
    if not os.path.exists(path):
        return {}
    parser = _parse(_read(path)[0], path)
    return dict(parser[name]) if parser.has_section(name) else {}


def _parse(text: str, path: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error:
        # Not chained: the parser's own messages repeat the line.
        raise _no_credentials(
            f"{path} is not written as ~/.aws/credentials is: sections and lines NAME = VALUE"
        ) from None
    return parser


def _read_private(path: str) -> str:
    text, mode = _read(path)
    if mode & stat.S_IROTH:
        raise PermissionDenied(
            f"anybody on this machine can read the keys in {path}: run `chmod 600 {path}`", path=path, reason="readable"
        )
    return text


def _read(path: str) -> tuple[str, int]:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE_BYTES).decode("utf-8"), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise _no_credentials(f"the credentials in {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise _no_credentials(f"{path} is no text: it holds no credentials") from None


def _no_credentials(message: str) -> PermissionDenied:
    return PermissionDenied(message, reason="no_credentials")
