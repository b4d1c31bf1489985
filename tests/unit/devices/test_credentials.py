from pathlib import Path

import pytest

from tensorkeep.devices.credentials import S3Keys, find_azure_key, find_s3_keys
from tensorkeep.errors import PermissionDenied

SECRET = "UNMISTAKABLESECRET"

CREDENTIALS = f"""
[default]
aws_access_key_id = ID0
aws_secret_access_key = {SECRET}0

[team a]
aws_access_key_id=ID1
aws_secret_access_key={SECRET}%1
aws_session_token=T1
"""
CONFIG = """
[default]
region = eu-north-1

[profile team a]
region = eu-west-1
endpoint_url = https://s3.example.org

[profile sso]
sso_session = x
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(CREDENTIALS)
    (folder / "config").write_text(CONFIG)
    return tmp_path


def test_variables_give_keys_and_a_region() -> None:
    environment = {"MINE_ACCESS_KEY_ID": "ID", "MINE_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "another's"}
    assert find_s3_keys("env:MINE", environment) == S3Keys("ID", SECRET)
    environment.update({"MINE_SESSION_TOKEN": "T", "MINE_DEFAULT_REGION": "r"})
    assert find_s3_keys("env:MINE", environment) == S3Keys("ID", SECRET, "T", "r")


def test_a_profile_gives_keys_region_and_endpoint(home: Path) -> None:
    environment = {"HOME": str(home)}
    assert find_s3_keys("profile:default", environment) == S3Keys("ID0", f"{SECRET}0", None, "eu-north-1")
    found = find_s3_keys("profile:team a", environment)
    assert found == S3Keys("ID1", f"{SECRET}%1", "T1", "eu-west-1", "https://s3.example.org")


def test_variables_say_where_profiles_are(home: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    (home / ".aws" / "credentials").rename(aside)
    environment = {"HOME": str(home), "AWS_SHARED_CREDENTIALS_FILE": str(aside), "AWS_CONFIG_FILE": "/nowhere"}
    assert find_s3_keys("profile:default", environment) == S3Keys("ID0", f"{SECRET}0")


def test_a_file_gives_its_default_section_or_its_first(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(CREDENTIALS)
    path.chmod(0o600)
    assert find_s3_keys(f"file:{path}", {}).access_key_id == "ID0"
    path.write_text(CREDENTIALS.replace("[default]", "[first]"))
    assert find_s3_keys(f"file:{path}", {}).access_key_id == "ID0"


def test_a_file_that_anybody_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(CREDENTIALS)
    path.chmod(0o644)
    for find in (find_s3_keys, find_azure_key):
        with pytest.raises(PermissionDenied, match=f"chmod 600 {path}") as caught:
            find(f"file:{path}", {})
        assert caught.value.facts["reason"] == "readable"
    path.chmod(0o640)
    assert find_s3_keys(f"file:{path}", {}).access_key_id == "ID0"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:NOTHING", "the variable NOTHING_ACCESS_KEY_ID is not set"),
        ("env:HALF", "the variable HALF_SECRET_ACCESS_KEY is not set"),
        ("profile:nobody", "no profile 'nobody' in"),
        ("profile:sso", "has no aws_access_key_id"),
        ("file:/nowhere/keys", "/nowhere/keys can't be read: No such file"),
    ],
)
def test_missing_credentials_are_named_and_no_value_is_repeated(home: Path, reference: str, says: str) -> None:
    with pytest.raises(PermissionDenied, match=says) as caught:
        find_s3_keys(reference, {"HOME": str(home), "HALF_ACCESS_KEY_ID": SECRET})
    assert caught.value.facts["reason"] == "no_credentials"
    assert SECRET not in f"{caught.value!r} {caught.value.facts}"


@pytest.mark.parametrize("text", [f"{SECRET} without a section", f"[default]\n{SECRET}\n", "\udcff", "", "[default]\n"])
def test_a_file_that_is_no_file_of_keys_is_refused_without_repeating_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(PermissionDenied) as caught:
        find_s3_keys(f"file:{path}", {})
    assert str(path) in caught.value.message
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.facts}"


def test_a_key_that_ends_in_the_letters_of_a_signature_is_a_key() -> None:
    key = "c2VjcmV0" * 10 + "c2VjMsig=="
    assert find_azure_key("env:K", {"K": key}).account_key == key
    for signature in ("sv=2024&sig=abc%3D", "?sig=abc&sv=2024"):
        found = find_azure_key("env:K", {"K": signature}).shared_access_signature
        assert found == signature.removeprefix("?")


def test_keys_have_no_repr() -> None:
    assert SECRET not in repr(S3Keys("ID", SECRET, SECRET))
    assert SECRET not in repr(find_azure_key("env:K", {"K": SECRET}))
    assert SECRET not in repr(find_azure_key("env:K", {"K": f"sig={SECRET}"}))
