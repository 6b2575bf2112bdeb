"""Files and folders that are whole, whoever else writes and whatever happens."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lens_gba.atomic_write import (
    files_written_whole,
    folder_written_whole,
    remove_partial,
    storage_errors,
    write_atomically,
)
from sae_lens_gba.errors import StorageError

WRITES = 100


def test_two_writers_of_one_file_never_lose(tmp_path: Path) -> None:
    path, failures = tmp_path / "file.safetensors", []

    def write(value: float) -> None:
        tensors = {"a": torch.full((1000,), value)}
        for _ in range(WRITES):
            try:
                write_atomically(path, partial(save_file, tensors))
                assert load_file(path)["a"].unique().numel() == 1
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_put_in_place_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        done.append(f"sync {os.fstat(descriptor).st_ino}")
        sync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        done.append(f"place {Path(source).stat().st_ino}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_atomically(tmp_path / "alone", lambda file: file.write_text("whole"))
    with folder_written_whole(tmp_path / "whole") as folder:
        (folder / "in_it").write_text("whole")
    with files_written_whole(tmp_path) as folder:
        (folder / "beside").write_text("whole")
    parent, alone, whole, beside = (
        (tmp_path / name).stat().st_ino for name in (".", "alone", "whole", "beside")
    )
    in_it = (tmp_path / "whole" / "in_it").stat().st_ino
    assert done == [
        f"sync {alone}", f"place {alone}", f"sync {parent}",
        f"sync {in_it}", f"sync {whole}", f"place {whole}", f"sync {parent}",
        f"sync {beside}", f"place {beside}", f"sync {parent}",
    ]  # fmt: skip


def test_a_file_elsewhere_that_may_not_be_read_is_not_said_to_be_here(tmp_path: Path) -> None:
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/data/set.parquet")
    with pytest.raises(PermissionError), storage_errors(tmp_path / "run"):
        raise elsewhere
    here = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "run" / "file"))
    with pytest.raises(StorageError, match="not yours"), storage_errors(tmp_path / "run"):
        raise here


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_who_may_read_new_files_may_read_weights(
    umask: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = os.umask(umask)
    request.addfinalizer(lambda: os.umask(before))
    tensors = {"a": torch.zeros(2)}
    write_atomically(tmp_path / "alone.safetensors", partial(save_file, tensors))
    with folder_written_whole(tmp_path / "whole") as folder:
        (folder / "below").mkdir()
        save_file(tensors, folder / "below" / "in_a_folder.safetensors")
    with files_written_whole(tmp_path / "whole") as folder:
        save_file(tensors, folder / "beside.safetensors")
    (tmp_path / "any").touch()
    asked = (tmp_path / "any").stat().st_mode
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stem for path in files} == {"alone", "any", "beside", "in_a_folder"}
    assert {path.stat().st_mode for path in files} == {asked}
    assert (tmp_path / "whole" / "below").stat().st_mode & stat.S_IXUSR


def test_where_rights_cannot_be_changed_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    elsewhere = tmp_path / "elsewhere"
    write_atomically(elsewhere, lambda file: file.write_text("whole"))
    with files_written_whole(tmp_path / "folder") as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "folder" / "file").read_text() == elsewhere.read_text() == "whole"


def test_what_a_link_leads_to_keeps_its_rights(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    with folder_written_whole(tmp_path / "whole") as folder:
        (folder / "link").symlink_to(secret)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_files_are_synced_as_windows_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def sync_of_windows(descriptor: int) -> None:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not is_folder and flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_of_windows)
    write_atomically(tmp_path / "file", lambda path: path.write_text("whole"))
    assert (tmp_path / "file").read_text() == "whole"


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with folder_written_whole(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(ValueError, match="no"), folder_written_whole(tmp_path / "a" / "c"):
        raise ValueError("no")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_files_of_a_folder_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("old")
    (tmp_path / "other").write_text("mine")

    def write_half() -> None:
        with files_written_whole(tmp_path) as new:
            (new / "cfg.json").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_half()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "cfg.json": "old",
        "other": "mine",
    }
    with files_written_whole(tmp_path) as new:
        (new / "cfg.json").write_text("new")
        (new / "weights").write_text("new")
        assert (tmp_path / "cfg.json").read_text() == "old"
    expected = {"cfg.json": "new", "other": "mine", "weights": "new"}
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == expected


def test_a_cfg_stands_in_no_folder_without_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[str] = []
    replace = os.replace

    def noting(source: Path, target: Path) -> None:
        replace(source, target)
        arrived.append(target.name)

    monkeypatch.setattr("sae_lens_gba.atomic_write.os.replace", noting)
    with files_written_whole(tmp_path / "sae") as new:
        for name in ("gba_checksums.json", "cfg.json", "sae_weights.safetensors"):
            (new / name).touch()
    assert arrived == ["sae_weights.safetensors", "cfg.json", "gba_checksums.json"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    writing = folder_written_whole(tmp_path / "a")
    writing.__enter__()  # and never left
    (tmp_path / ".b.1-ab.partial").touch()  # of write_atomically
    assert len(list(tmp_path.iterdir())) == 2
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "that you may write")]
)
def test_the_system_says_no_in_one_sentence_with_advice(
    tmp_path: Path, number: int, advice: str
) -> None:
    def fail(file: Path) -> None:
        raise OSError(number, "no", str(file))

    with pytest.raises(StorageError, match=advice):
        write_atomically(tmp_path / "file", fail)


# a limit on the size of files is the nearest thing to a full disk that needs no privileges
_WRITE = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tensors = {"a": torch.zeros(100_000)}
for write in (lambda p: save_file(tensors, p), lambda p: torch.save(tensors, p),
              lambda p: p.write_bytes(bytes(10**6))):
    try:
        write_atomically(Path(sys.argv[1]) / "file", write)
    except StorageError as error:
        assert "free some space" in str(error), error
    else:
        sys.exit("written")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
def test_no_room_is_noticed_in_what_safetensors_torch_and_python_raise(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_way_in_which_torch_says_that_there_is_no_room(tmp_path: Path) -> None:
    said = "basic_ios::clear: iostream error"
    with pytest.raises(StorageError, match="there is no room"), storage_errors(tmp_path):
        raise RuntimeError(said)


def test_a_full_disk_is_known_by_the_words_of_the_hubs_downloads(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no room"), storage_errors(tmp_path):
        raise RuntimeError("CAS service error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "error", [RuntimeError("decoder died, exit code: 1"), ValueError("code: 28")]
)
def test_an_error_that_is_not_of_writing_stays_as_it_is(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, storage_errors(tmp_path):
        raise error
    assert raised.value is error
