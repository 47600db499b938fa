"""A storage root in S3 or a service that speaks its protocol: conditional puts are the commits.

Needs `If-None-Match: *` and `If-Match` on PutObject, which AWS has had since 2024. Refuses to hold
credentials: boto3's and Arrow's own chains find them in each process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import boto3.exceptions
import botocore.exceptions
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from sundog.errors import AlreadyExists, Conflict, StorageUnavailable
from sundog.storage.root import HIDDEN, REREAD, Entry, Root, arriving, checked, folder, missing

if TYPE_CHECKING:
    import pyarrow.fs

_PIECE = 1 << 20
_READERS = 16
_WRITE_ID = "sundog-write"
_PROBE = f"{HIDDEN}sundog/conditional-writes"
_TRANSFER = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20)
_CONNECT_S, _READ_S, _ATTEMPTS = 5, 30, 4
_MISSING = {"404", "NoSuchKey", "NotFound"}
_LOST = {"412", "PreconditionFailed"}
_DENIED = {
    "403", "AccessDenied", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId",
    "InvalidToken", "SignatureDoesNotMatch",
}  # fmt: skip
_TRANSPORT = (
    botocore.exceptions.HTTPClientError,  # refused, reset, timed out
    botocore.exceptions.ConnectionError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
)
_WRAPPED = (boto3.exceptions.S3UploadFailedError, boto3.exceptions.RetriesExceededError)


class S3Root(Root):
    """`s3://bucket/prefix`. The endpoint is taken from the environment when the root is opened,

    and travels with it to other processes; AWS_ENDPOINT_URL_S3 wins over AWS_ENDPOINT_URL.
    """

    is_local: ClassVar[bool] = False  # type: ignore[misc]

    def __init__(self, url: str, endpoint: str | None = None, region: str | None = None) -> None:
        environment = os.environ
        self.url = url
        self.endpoint = (
            endpoint
            or environment.get("AWS_ENDPOINT_URL_S3")
            or environment.get("AWS_ENDPOINT_URL")
            or None
        )
        self.region = (
            region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None
        )
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self.bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._made: Any = None
        self._probed = False

    def __reduce__(self) -> tuple[object, ...]:
        return (S3Root, (self.url, self.endpoint, self.region))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Root) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.url, self.endpoint))

    def __repr__(self) -> str:
        return f"S3Root({self.url!r}, endpoint={self.endpoint!r})"

    # -- reading ---------------------------------------------------------------------------

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        for attempt in range(_ATTEMPTS):
            with self._explained("read", key):
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
                try:
                    return answer["Body"].read(), answer["ETag"]
                except _TRANSPORT:
                    # botocore repeats a request, but not one whose answer broke off.
                    if attempt == _ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) < 2:
            return super().read_many(keys)
        # A request waits far longer than it works.
        with ThreadPoolExecutor(min(_READERS, len(keys)), "sundog-s3") as readers:
            return list(readers.map(self._read_or_none, keys))

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        position, failures, etag = start, 0, ""
        while True:
            with self._explained("read", key):
                request = {"Bucket": self.bucket, "Key": self._key(key)}
                if position:
                    request["Range"] = f"bytes={position}-"
                if etag:
                    request["IfMatch"] = etag
                try:
                    answer = self._client.get_object(**request)
                except botocore.exceptions.ClientError as error:
                    if _code(error) in ("InvalidRange", "416"):
                        return  # nothing (more) there
                    raise
                etag = answer["ETag"]
                try:
                    for piece in answer["Body"].iter_chunks(_PIECE):
                        position += len(piece)
                        yield piece
                    return
                except _TRANSPORT:
                    failures += 1
                    if failures == _ATTEMPTS:
                        raise

    def exists(self, key: str) -> bool:
        return self._head(key) is not None

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        place = folder(prefix)
        for page in self._pages(prefix, Prefix=self._below(place)):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                if not key.startswith(HIDDEN):
                    yield Entry(key, item["Size"], item["LastModified"].timestamp())

    def children(self, prefix: str = "") -> list[str]:
        below = self._below(folder(prefix))
        names = set()
        for page in self._pages(prefix, Prefix=below, Delimiter="/"):
            found = [item["Key"] for item in page.get("Contents", ())]
            found += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
            names |= {key.removeprefix(below).rstrip("/") for key in found}
        return sorted(n for n in names if n and (prefix or not n.startswith(HIDDEN)))

    def download(self, key: str, path: Path) -> None:
        with arriving(key, path) as part, self._explained("copy", key):
            self._client.download_file(self.bucket, self._key(key), str(part), Config=_TRANSFER)

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        import pyarrow.fs

        options: dict[str, Any] = {"connect_timeout": _CONNECT_S, "request_timeout": _READ_S}
        if self.endpoint:
            endpoint = urllib.parse.urlsplit(self.endpoint)
            options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
        region = self.region
        if not region and not self.endpoint:
            with self._explained("read", ""):
                region = pyarrow.fs.resolve_s3_region(self.bucket)
        if region:
            options["region"] = region
        return pyarrow.fs.S3FileSystem(**options), f"{self.bucket}/{self._prefix}".rstrip("/")

    # -- writing ---------------------------------------------------------------------------

    def write(self, key: str, data: bytes) -> None:
        with self._explained("write", key):
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def create(self, key: str, data: bytes) -> str:
        etag = self._put_if(key, data, IfNoneMatch="*")
        if etag is None:
            raise AlreadyExists(f"{key} is already in {self.url}")
        return etag

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        written = self._put_if(key, data, **condition)
        if written is None:
            raise Conflict(f"{key} was changed by somebody else in between", fix=REREAD)
        return written

    def upload(self, path: Path, key: str) -> None:
        with self._explained("write", key):
            self._client.upload_file(str(path), self.bucket, self._key(key), Config=_TRANSFER)

    def delete(self, key: str) -> None:
        with self._explained("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def delete_prefix(self, prefix: str) -> int:
        keys = [self._key(entry.key) for entry in self.entries(prefix)]
        for start in range(0, len(keys), 1000):
            some = [{"Key": key} for key in keys[start : start + 1000]]
            with self._explained("delete", prefix):
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": some, "Quiet": True}
                )
            if answer.get("Errors"):
                first = answer["Errors"][0]
                raise self._denied(f"cannot delete {first['Key']}", str(first.get("Code")))
        return len(keys)

    def leftovers(self) -> Iterator[Entry]:
        """Parts of multipart uploads that were neither finished nor aborted (size unknown: 0)."""
        with self._explained("list", ""):
            paginator = self._client.get_paginator("list_multipart_uploads")
            for page in paginator.paginate(Bucket=self.bucket, Prefix=self._prefix):
                for item in page.get("Uploads", ()):
                    key = item["Key"].removeprefix(self._prefix)
                    yield Entry(f"{key}?{item['UploadId']}", 0, item["Initiated"].timestamp())

    def delete_leftover(self, entry: Entry) -> None:
        key, _, upload_id = entry.key.rpartition("?")
        with self._explained("delete", key):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self.bucket, Key=self._key(key), UploadId=upload_id
                )
            except botocore.exceptions.ClientError as error:
                if _code(error) not in (*_MISSING, "NoSuchUpload"):
                    raise

    # -- inside ----------------------------------------------------------------------------

    def _put_if(self, key: str, data: bytes, **condition: str) -> str | None:
        """Put under a condition; the new etag, or None if the condition did not hold.

        A put whose answer was lost is repeated by botocore and then fails on its own first
        success. The write id in the object's metadata tells that apart from somebody else's win.
        """
        self._require_conditions()
        write_id = uuid.uuid4().hex
        for _ in range(_ATTEMPTS):
            try:
                with self._explained("write", key):
                    answer = self._client.put_object(
                        Bucket=self.bucket,
                        Key=self._key(key),
                        Body=data,
                        Metadata={_WRITE_ID: write_id},
                        **condition,
                    )
                return answer["ETag"]
            except StorageUnavailable as unavailable:
                error = unavailable.__cause__
                code = _code(error) if isinstance(error, botocore.exceptions.ClientError) else ""
                if code in ("409", "ConditionalRequestConflict"):
                    continue  # S3 says: two at once, ask again
                lost = code in _LOST or (code in _MISSING and "IfMatch" in condition)
                if lost and not _repeated(error):
                    return None
                if not lost and isinstance(error, botocore.exceptions.ClientError):
                    raise
                landed = self._landed(key, write_id)
                if landed or lost:
                    return landed
                raise
        return None

    def _require_conditions(self) -> None:
        """Refuse a service that takes conditional puts and ignores the condition. Once a process.

        There are such services, and every promise of ours would be broken on them in silence.
        """
        if self._probed:
            return
        # The first may create the probe; from then on both must be refused.
        self._kept(IfNoneMatch="*")
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0"'}):
            if not self._kept(**condition):
                raise StorageUnavailable(
                    f"{self.url} at {self.endpoint or 'AWS'} ignores {next(iter(condition))} on "
                    "PutObject: two writers would overwrite each other in silence",
                    fix="use S3 itself, or a service with conditional writes",
                )
        self._probed = True

    def _kept(self, **condition: str) -> bool:
        """Whether the service refused to put the probe under this condition."""
        try:
            with self._explained("write", _PROBE):
                self._client.put_object(
                    Bucket=self.bucket, Key=self._prefix + _PROBE, Body=b"", **condition
                )
        except StorageUnavailable as unavailable:
            error = unavailable.__cause__
            if isinstance(error, botocore.exceptions.ClientError) and _code(error) in (
                *_LOST,
                "409",
                "ConditionalRequestConflict",
            ):
                return True
            raise
        return False

    def _landed(self, key: str, write_id: str) -> str | None:
        """The etag of the object if it is the one that this write made."""
        head = self._head(key)
        if head is None or head.get("Metadata", {}).get(_WRITE_ID) != write_id:
            return None
        return str(head["ETag"])

    def _head(self, key: str) -> dict[str, Any] | None:
        with self._explained("read", key):
            try:
                return self._client.head_object(Bucket=self.bucket, Key=self._key(key))
            except botocore.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self.endpoint,
                    region_name=self.region or ("us-east-1" if self.endpoint else None),
                    config=Config(
                        connect_timeout=_CONNECT_S,
                        read_timeout=_READ_S,
                        max_pool_connections=_READERS,
                        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                        # bucket.host does not resolve at most services of one's own.
                        s3={"addressing_style": "path"} if self.endpoint else None,
                    ),
                )
            return self._made

    def _key(self, key: str) -> str:
        return self._prefix + checked(key)

    def _below(self, place: str) -> str:
        return f"{self._prefix}{place}/" if place else self._prefix

    def _pages(self, prefix: str, **request: str) -> Iterator[dict[str, Any]]:
        with self._explained("list", prefix):
            paginator = self._client.get_paginator("list_objects_v2")
            yield from paginator.paginate(Bucket=self.bucket, **request)

    @contextlib.contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        what = f"cannot {verb} {key} in {self.url}".replace("  ", " ")
        try:
            yield
        except botocore.exceptions.ClientError as error:
            code = _code(error)
            if verb in ("read", "copy") and code in _MISSING:
                raise missing(self, key) from None
            raise self._denied(what, code) from error
        except (
            botocore.exceptions.NoCredentialsError,
            botocore.exceptions.PartialCredentialsError,
            botocore.exceptions.ProfileNotFound,
            botocore.exceptions.TokenRetrievalError,
            botocore.exceptions.SSOError,
        ) as error:
            raise StorageUnavailable(
                f"{what}: {error}",
                fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or give this machine a role",
            ) from error
        except (*_TRANSPORT, *_WRAPPED) as error:
            where = self.endpoint or "AWS"
            raise StorageUnavailable(
                f"{what}: no whole answer from {where} ({_short(error)})",
                fix="nothing was half-written; try again, and check the network and "
                "AWS_ENDPOINT_URL if it stays so",
            ) from error
        except botocore.exceptions.BotoCoreError as error:
            raise StorageUnavailable(
                f"{what}: {error}", fix="check AWS_ENDPOINT_URL, AWS_REGION and the AWS profile"
            ) from error

    def _denied(self, what: str, code: str) -> StorageUnavailable:
        if code == "NoSuchBucket":
            fix = f"make the bucket {self.bucket}, or correct SUNDOG_ROOT"
        elif code in _DENIED:
            fix = (
                f"give this identity s3:GetObject, PutObject, DeleteObject, ListBucket on "
                f"{self.bucket}, or set other credentials"
            )
        else:
            fix = "try again; if it stays so, look at the service's own status"
        return StorageUnavailable(f"{what}: the service says {code}", fix=fix)


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _repeated(error: BaseException | None) -> bool:
    response = getattr(error, "response", None) or {}
    return bool(response.get("ResponseMetadata", {}).get("RetryAttempts"))


def _short(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
