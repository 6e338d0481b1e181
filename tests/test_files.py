"""Files are complete or absent, a lock keeps others out and ends with its process, and reading never hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from jrt_eval.errors import UserError
from jrt_eval.files import (
    is_locked,
    lock,
    new_folder,
    read_text,
    remove_folder,
    remove_unfinished,
    replacing,
    try_lock,
    write_text,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "table.csv"
    write_text(path, "old")
    with suppress(RuntimeError), replacing(path) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["table.csv"]


def test_permissions_follow_the_umask_and_links_are_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    previous = os.umask(0o027)
    try:
        write_text(link, "x")
    finally:
        os.umask(previous)
    assert link.is_symlink()
    assert target.read_text() == "x"
    assert target.stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "file" / "below", tmp_path, tmp_path / "pipe", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write") as raised:
            write_text(path, "x")
        assert "\n" not in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]
    write_text(tmp_path / ("y" * 250), "a name near the limit of 255 bytes")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with suppress(RuntimeError), new_folder(tmp_path / "done") as temporary:
        (temporary / "part").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / "done") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "part").write_text("whole")
        assert not (tmp_path / "done").exists()
    assert (tmp_path / "done" / "inner" / "part").read_text() == "whole"
    assert os.listdir(tmp_path) == ["done"]


def test_a_killed_writer_leaves_only_what_cleaning_removes(tmp_path: Path) -> None:
    for block in ("replacing(folder / 'file')", "new_folder(folder / 'inner')"):
        code = (
            "import os, signal, sys\nfrom pathlib import Path\nfrom jrt_eval.files import *\n"
            f"folder = Path(sys.argv[1])\nwith {block}:\n    os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert len(os.listdir(tmp_path)) == 2
    assert all(name.startswith(".") for name in os.listdir(tmp_path))
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_removed_folder_loses_its_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("x")
    remove_folder(tmp_path / "none")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # a kill right after the rename
    remove_folder(tmp_path / "inner")
    (rest,) = tmp_path.iterdir()
    assert rest.name.startswith(".")
    monkeypatch.undo()
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lock_keeps_other_processes_out_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    assert not is_locked(path)
    code = "import sys\nfrom jrt_eval.files import lock\nwith lock(sys.argv[1], 'taken by {holder}'): pass"
    with lock(path, "taken"):
        assert is_locked(path)
        with try_lock(path) as mine:
            assert not mine
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert f"taken by process {os.getpid()} on " in other.stderr
    assert not is_locked(path)
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 0


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    code = "import sys\nfrom jrt_eval.files import lock\nwith lock(sys.argv[1], 'taken'): print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_locked(path)
        process.kill()
    assert not is_locked(path)
    with lock(path, "taken"):
        pass


def test_reading_refuses_pipes_folders_large_files_and_bytes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "large").write_text("x" * 11)
    for name, says in [
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
        ("bytes", "byte 0 is not UTF-8"),
        ("large", "larger than"),
        ("none", "No such file"),
        ("\0", "null"),
    ]:
        with pytest.raises(UserError, match=says):
            read_text(tmp_path / name, 10)
    (tmp_path / "marked").write_text("x", encoding="utf-8-sig")
    assert read_text(tmp_path / "marked", 10) == "x"
