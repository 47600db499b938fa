"""A storage root in a folder: staging file, fsync, then link or rename; flock for swaps.

Atomic on one machine (and on network filesystems with working locks); not for several hosts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from sundog.errors import AlreadyExists, Conflict, StorageUnavailable
from sundog.storage.root import HIDDEN, REREAD, Entry, Root, arriving, checked, folder, missing

if TYPE_CHECKING:
    import pyarrow.fs

_STAGING = ".staging"
_LOCKS = ".locks"
_PIECE = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class LocalRoot(Root):
    """`file:///absolute/folder`. The folder is made by the first write."""

    url: str
    is_local: ClassVar[bool] = True  # type: ignore[misc]

    @property
    def base(self) -> Path:
        return Path(self.url.removeprefix("file://"))

    def local_path(self, key: str) -> Path:
        return self.base / checked(key)

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        with self._explained("read", key):
            try:
                data = self.local_path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise missing(self, key) from None
        return data, _etag(data)

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        with self._explained("read", key):
            try:
                source = self.local_path(key).open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise missing(self, key) from None
            with source:
                source.seek(start)
                while piece := source.read(_PIECE):
                    yield piece

    def write(self, key: str, data: bytes) -> None:
        with self._explained("write", key), self._staged(data) as staged, self._locked(key):
            self._place(staged, key, os.replace)

    def create(self, key: str, data: bytes) -> str:
        with self._explained("write", key), self._staged(data) as staged:
            try:
                # link(2) fails if the name exists: the kernel picks the one winner.
                self._place(staged, key, os.link)
            except FileExistsError:
                raise AlreadyExists(f"{key} is already in {self.url}") from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._create_under_lock(staged, key)
        return _etag(data)

    def _create_under_lock(self, staged: Path, key: str) -> None:
        """For file systems without hard links, where every creation comes this way."""
        with self._locked(key):
            if self.local_path(key).exists():
                raise AlreadyExists(f"{key} is already in {self.url}")
            self._place(staged, key, os.replace)

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        if etag is None:
            try:
                return self.create(key, data)
            except AlreadyExists:
                raise Conflict(
                    f"{key} was created by somebody else in between", fix=REREAD
                ) from None
        with self._explained("write", key), self._staged(data) as staged, self._locked(key):
            path = self.local_path(key)
            now = _etag(path.read_bytes()) if path.is_file() else None
            if now != etag:
                raise Conflict(f"{key} was changed by somebody else in between", fix=REREAD)
            self._place(staged, key, os.replace)
        return _etag(data)

    def exists(self, key: str) -> bool:
        with self._explained("read", key):
            return self.local_path(key).is_file()

    def delete(self, key: str) -> None:
        path = self.local_path(key)
        with self._explained("delete", key):
            if not path.exists():
                return
            with self._locked(key):
                path.unlink(missing_ok=True)
            self._prune(path.parent)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        with self._explained("list", prefix):
            yield from self._walk(self.base / folder(prefix))

    def children(self, prefix: str = "") -> list[str]:
        name = folder(prefix)
        with self._explained("list", prefix):
            try:
                names = [entry.name for entry in os.scandir(self.base / name)]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(n for n in names if name or not n.startswith(HIDDEN))

    def upload(self, path: Path, key: str) -> None:
        with (
            self._explained("write", key),
            path.open("rb") as source,
            self._staging() as (staged, sink),
        ):
            shutil.copyfileobj(source, sink, _PIECE)
            _settle(sink)
            with self._locked(key):
                self._place(staged, key, os.replace)

    def download(self, key: str, path: Path) -> None:
        with arriving(key, path) as part, part.open("wb") as sink:
            for piece in self.stream(key):
                sink.write(piece)

    def append(self, key: str, data: bytes) -> None:
        """Add to the end, in one write: lines of several processes do not mix."""
        with self._explained("write", key):
            path = self.local_path(key)
            how = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            try:
                file = os.open(path, how, 0o644)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(path, how, 0o644)
            try:
                end = os.lseek(file, 0, os.SEEK_END)
                if os.write(file, data) != len(data):
                    os.ftruncate(file, end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(file)

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), str(self.base)

    def leftovers(self) -> Iterator[Entry]:
        with self._explained("list", _STAGING):
            yield from self._walk(self.base / _STAGING)

    def delete_leftover(self, entry: Entry) -> None:
        with self._explained("delete", entry.key):
            (self.base / entry.key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> int:
        count = super().delete_prefix(prefix)
        place = self.base / folder(prefix)
        for path in sorted(place.rglob("*"), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        self._prune(place)
        return count

    def _walk(self, place: Path) -> Iterator[Entry]:
        try:
            found = sorted(os.scandir(place), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in found:
            path = Path(entry.path)
            if place == self.base and entry.name.startswith(HIDDEN):
                continue
            if entry.is_dir():
                yield from self._walk(path)
                continue
            with contextlib.suppress(FileNotFoundError):  # deleted while we looked
                stat = entry.stat()
                yield Entry(path.relative_to(self.base).as_posix(), stat.st_size, stat.st_mtime)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file beside the data, gone at the end unless it was renamed."""
        place = self.base / _STAGING
        place.mkdir(parents=True, exist_ok=True)
        staged = place / uuid.uuid4().hex
        try:
            with staged.open("xb") as sink:
                yield staged, sink
        finally:
            staged.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        with self._staging() as (staged, sink):
            sink.write(data)
            _settle(sink)
            yield staged

    def _place(self, staged: Path, key: str, how: Callable[[Path, Path], None]) -> None:
        path = self.local_path(key)
        for attempt in range(100):
            try:
                self._make_folder(path.parent)
                how(staged, path)
                break
            except FileNotFoundError:
                # A delete pruned the folder between mkdir and here.
                if attempt == 99 or not staged.exists():
                    raise
        with contextlib.suppress(FileNotFoundError):  # the object was deleted again, and pruned
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _make_folder(self, folder: Path) -> None:
        """Raises FileNotFoundError when a delete prunes it, or one above it, meanwhile."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            # mkdir found the folder there, and then it was gone; a file in its place is an error.
            if folder.exists():
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from None

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # 256 lock files, ever, instead of one for each key.
        stripe = hashlib.sha256(key.encode()).hexdigest()[:2]
        place = self.base / _LOCKS
        place.mkdir(parents=True, exist_ok=True)
        with (place / stripe).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, or the process dies
            yield

    def _prune(self, place: Path) -> None:
        """Remove folders that a delete left empty, as on S3, where there are none."""
        while place != self.base and self.base in place.parents:
            try:
                place.rmdir()
            except OSError:
                return
            place = place.parent

    @contextlib.contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unavailable(verb, key, error) from error

    def _unavailable(self, verb: str, key: str, error: OSError) -> StorageUnavailable:
        what = f"cannot {verb} {key} in {self.url}"
        if error.errno in _FULL:
            return StorageUnavailable(
                f"{what}: the disk is full ({error.strerror})",
                fix="free space there (`sundog gc --dry-run` shows what nothing needs), "
                "or use another root",
            )
        if error.errno in _DENIED:
            return StorageUnavailable(
                f"{what}: {error.strerror}",
                fix=f"give this user the right to write below {self.base}, or use another root",
            )
        return StorageUnavailable(
            f"{what}: {error.strerror or error}", fix=f"check {self.base}, or use another root"
        )


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _settle(sink: BinaryIO) -> None:
    sink.flush()
    os.fsync(sink.fileno())
