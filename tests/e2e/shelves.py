"""What lies behind a device, seen without tensorkeep: a folder, or a prefix in a bucket.

The suite takes devices away, swaps them and damages what they hold; a `Shelf` is how. Names are those that a device gives its
objects. A shelf that nothing was put on looks like an unmounted disk: empty.
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.engines.servers import S3Account
from tests.mounts import read_only_mount

OBJECT_FOLDERS = ("parts", "manifests", "checks", "versions")


class Shelf(ABC):
    """The place of one device."""

    url: str
    has_a_clock: bool = False
    """Whether it refuses who has another time."""

    @abstractmethod
    def objects(self, folders: Sequence[str] = OBJECT_FOLDERS) -> dict[str, int]:
        """Return what lies in some of its folders: names and sizes in bytes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return an object."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write over an object, as no device would."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete an object."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Return whether nothing at all lies here."""

    @abstractmethod
    def destroy(self) -> None:
        """Delete it with all that lies on it."""

    @abstractmethod
    def take_away(self) -> None:
        """Leave an empty place, as an unmounted disk does."""

    @abstractmethod
    def bring_back(self) -> None:
        """Undo `take_away`."""

    @abstractmethod
    def remove_place(self) -> None:
        """Remove the empty place too, where there is such a thing."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the place is there, be it empty."""

    @abstractmethod
    def contents(self) -> dict[str, bytes]:
        """Return everything that lies here."""

    @abstractmethod
    def fill(self, contents: Mapping[str, bytes]) -> None:
        """Have this lie here and nothing else."""

    @abstractmethod
    def read_only(self) -> AbstractContextManager[None]:
        """Let nobody write here for a while. A folder: needs root."""

    @abstractmethod
    def forbid_writing(self) -> AbstractContextManager[None]:
        """Let nobody, of a folder nobody but root, write here for a while."""

    @abstractmethod
    def clear_away(self) -> None:
        """Remove what would outlast the test."""

    def put_copy_of(self, other: "Shelf") -> None:
        """Put what lies elsewhere in the place of what lies here."""
        self.fill(other.contents())

    def swap(self, other: "Shelf") -> None:
        """Exchange what lies here for what lies elsewhere."""
        mine, theirs = self.contents(), other.contents()
        self.fill(theirs)
        other.fill(mine)


class FolderShelf(Shelf):
    """A folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.url = f"file://{place}"

    def objects(self, folders: Sequence[str] = OBJECT_FOLDERS) -> dict[str, int]:
        found = {}
        for folder in folders:
            for where, _, files in os.walk(self.place / folder):
                for path in (Path(where) / file for file in sorted(files)):
                    with suppress(FileNotFoundError):  # given its name, or removed, while a push goes on
                        found[str(path.relative_to(self.place))] = path.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        return (self.place / name).read_bytes()

    def replace(self, name: str, data: bytes) -> None:
        path = self.place / name
        path.chmod(0o600)
        path.write_bytes(data)
        path.chmod(0o444)

    def delete(self, name: str) -> None:
        (self.place / name).unlink()

    def is_empty(self) -> bool:
        return not self.place.exists() or not any(self.place.iterdir())

    def destroy(self) -> None:
        shutil.rmtree(self.place)

    def take_away(self) -> None:
        self.place.rename(self._aside)
        self.place.mkdir()

    def bring_back(self) -> None:
        self.place.rmdir()
        self._aside.rename(self.place)

    def remove_place(self) -> None:
        self.place.rmdir()

    def exists(self) -> bool:
        return self.place.exists()

    def contents(self) -> dict[str, bytes]:
        return {name: self.read(name) for name in self.objects([""])}

    def fill(self, contents: Mapping[str, bytes]) -> None:
        for name in self.objects([""]):  # the folders stay, as a device made them
            self.delete(name)
        for name, data in contents.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o444)

    def read_only(self) -> AbstractContextManager[None]:
        return read_only_mount(self.place)

    def forbid_writing(self) -> AbstractContextManager[None]:
        return unwritable(self.place)

    def clear_away(self) -> None:
        """Nothing: it goes with the test's folder."""

    @property
    def _aside(self) -> Path:
        return self.place.with_name(f"{self.place.name}.aside")


class PrefixShelf(Shelf):
    """The objects under a prefix of a bucket. What is taken away is kept under another prefix."""

    has_a_clock = True

    def __init__(self, account: S3Account, bucket: str, prefix: str, *, credentials: str) -> None:
        self.url = account.device_url(bucket, prefix, credentials=credentials)
        self._client = account.client()
        self._bucket = bucket
        self._prefix = f"{prefix}/"

    def objects(self, folders: Sequence[str] = OBJECT_FOLDERS) -> dict[str, int]:
        return {
            name: size
            for folder in folders
            for name, size in self._sizes(
                f"{self._prefix}{folder}/" if folder else self._prefix, less=len(self._prefix)
            )
        }

    def read(self, name: str) -> bytes:
        data: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
        return data

    def replace(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def delete(self, name: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def is_empty(self) -> bool:
        return not any(self._sizes(self._prefix))

    def destroy(self) -> None:
        self._clear(self._prefix)

    def take_away(self) -> None:
        self._copy(self._prefix, self._aside)
        self.destroy()

    def bring_back(self) -> None:
        self._copy(self._aside, self._prefix)
        self._clear(self._aside)

    def remove_place(self) -> None:
        assert self.is_empty()  # a prefix is nothing apart from its objects

    def exists(self) -> bool:
        return not self.is_empty()

    def contents(self) -> dict[str, bytes]:
        return {name: self.read(name) for name in self.objects([""])}

    def fill(self, contents: Mapping[str, bytes]) -> None:
        self.destroy()
        for name, data in contents.items():
            self.replace(name, data)

    def clear_away(self) -> None:
        self._clear(self._prefix)
        self._clear(self._aside)

    def read_only(self) -> AbstractContextManager[None]:
        return self.forbid_writing()

    @contextmanager
    def forbid_writing(self) -> Iterator[None]:
        statement = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["s3:PutObject", "s3:DeleteObject"],
            "Resource": f"arn:aws:s3:::{self._bucket}/{self._prefix}*",
        }
        statements = [*self._statements(), statement]
        self._put_policy(statements)
        try:
            yield
        finally:
            self._put_policy([one for one in self._statements() if one != statement])

    def _statements(self) -> list[dict[str, Any]]:
        try:
            text = self._client.get_bucket_policy(Bucket=self._bucket)["Policy"]
        except self._client.exceptions.from_code("NoSuchBucketPolicy"):
            return []
        statements: list[dict[str, Any]] = json.loads(text)["Statement"]
        return statements

    def _put_policy(self, statements: list[dict[str, Any]]) -> None:
        if statements:
            policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
            self._client.put_bucket_policy(Bucket=self._bucket, Policy=policy)
        else:
            self._client.delete_bucket_policy(Bucket=self._bucket)

    @property
    def _aside(self) -> str:
        return f"{self._prefix.removesuffix('/')}.aside/"

    def _sizes(self, prefix: str, *, less: int = 0) -> Iterator[tuple[str, int]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        for page in pages:
            for found in page.get("Contents", []):
                yield found["Key"][less:], found["Size"]

    def _copy(self, prefix: str, target: str) -> None:
        for key, _ in self._sizes(prefix):
            source = {"Bucket": self._bucket, "Key": key}
            self._client.copy_object(Bucket=self._bucket, Key=target + key.removeprefix(prefix), CopySource=source)

    def _clear(self, prefix: str) -> None:
        keys = [{"Key": key} for key, _ in self._sizes(prefix)]
        for start in range(0, len(keys), 1000):
            answer = self._client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": keys[start : start + 1000], "Quiet": True}
            )
            assert not answer.get("Errors")


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Take away, for a while, the permission to write in a folder; root writes on."""
    changed = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in changed}
    for path in reversed(changed):
        path.chmod(modes[path] & 0o555)
    try:
        yield
    finally:
        for path in changed:
            path.chmod(modes[path])
