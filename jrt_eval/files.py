"""Writing files and folders atomically, locking them against other processes, and reading small files safely.

A file or folder written here is complete or absent, whenever the process is killed and even if the machine loses
power. A lock is released by the operating system when its process ends, so a killed process leaves none behind.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from jrt_eval.errors import UserError

MEBIBYTE = 1 << 20
_UNFINISHED = ".unfinished-"  # prefix of what is being written; hidden, so that readers of the folder skip it


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which replaces `path` when the block ends without an exception.

    The temporary file has the suffix of `path` and is removed if the block fails. A symbolic link is followed. An
    `OSError` from the block or from the replacement becomes a `UserError`.

        with replacing(path) as temporary:
            frame.to_parquet(temporary)
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(_unfinished_name(path))
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it exists and is not a regular file; give another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        _remove(temporary)


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically. Raises `UserError` if that fails."""
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace `path` by `data`, atomically. Raises `UserError` if that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """An empty temporary folder, which becomes the folder `path` when the block ends without an exception.

    All files in it reach the disk first. `path` must not exist yet. The temporary folder is removed if the block fails;
    the caller handles `OSError`.
    """
    path = Path(path)
    temporary = path.with_name(_unfinished_name(path))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            flush_folder(inside) if inside.is_dir() else _flush(inside)
        temporary.rename(path)
        flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder. It loses its name first, so that a kill never leaves a part of it under that name."""
    with suppress(OSError):
        doomed = path.with_name(_unfinished_name(path))
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files and folders that killed processes left in `folder`; the caller holds its lock."""
    for rest in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else _remove(rest)


@contextmanager
def lock(path: Path | str, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which is created if needed and stays afterwards.

    busy: the message of the `UserError` if another process holds it; `{holder}` in it becomes that process. If None,
    wait until the lock is free.
    """
    with try_lock(path, wait=busy is None) as mine:
        if not mine:
            assert busy is not None
            raise UserError(busy.replace("{holder}", _first_line(_holder(path)) or "another process"))
        yield


@contextmanager
def try_lock(path: Path | str, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process could take the lock file `path`; it then holds the lock until the block ends."""
    import filelock

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # `is_locked` holds a free lock for an instant; a quarter of a second is enough to outwait it.
        held = filelock.FileLock(path, timeout=-1 if wait else 0.25)
        held.acquire()
    except filelock.Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        raise UserError(f"cannot lock {path}: {reason(error)}") from error
    try:
        with suppress(UserError):  # only a hint for messages
            write_text(_holder(path), f"process {os.getpid()} on {socket.gethostname()}\n")
        yield True
    finally:
        _remove(_holder(path))
        held.release()


def is_locked(path: Path | str) -> bool:
    """Whether a process holds the lock file `path`. False if there is no such file or it cannot be opened."""
    import filelock

    if not Path(path).is_file():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _holder(path: Path | str) -> Path:
    """A file that names the holder; the lock file itself is truncated by whoever tries to take it."""
    return Path(f"{path}.holder")


def read_text(path: Path | str, limit: int = 64 * MEBIBYTE) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes. Raises `UserError` for anything else."""
    try:
        data = read_bytes(path, limit)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: byte {error.start} is not UTF-8 text") from None


def read_bytes(path: Path | str, limit: int = 64 * MEBIBYTE) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. A pipe or a device is refused, since reading it may hang."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"cannot read {path}: it is not a regular file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    if len(data) > limit:
        raise UserError(f"cannot read {path}: it is larger than {limit >> 20} MiB")
    return data


def flush_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, on the systems and file systems that offer this."""
    with suppress(OSError):
        _flush(folder)


def reason(error: BaseException) -> str:
    """The cause of an `OSError`, as one short line."""
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _unfinished_name(path: Path) -> str:
    return f"{_UNFINISHED}{path.stem[:40]}-{os.getpid()}-{token_hex(4)}{path.suffix[:20]}"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(path: Path) -> str:
    try:
        return read_text(path, 1000).strip()
    except UserError:
        return ""


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
