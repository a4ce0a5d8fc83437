"""Files and folders are there whole or not at all, whenever a run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import prepare_file, prepare_output, whole_file, whole_folder

OWN_PACKAGE = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def prepare(path: Path, overwrite: bool = False) -> None:
    prepare_output(path, kind="an earlier result", holds=("mark",), overwrite=overwrite)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("old")
    with pytest.raises(TypeError), whole_file(path) as partial:
        partial.write_text(b"half")
    assert path.read_text() == "old"
    with whole_file(path) as partial:
        assert partial.name.endswith(".nii.gz")
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.nii.gz"]


def test_folder_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "result"
    for text in ("first", "second"):
        with whole_folder(path) as folder:
            (folder / "mark").write_text(text)
            assert not path.exists() or text == "second"
        assert (path / "mark").read_text() == text
    with pytest.raises(TypeError), whole_folder(path) as folder:
        (folder / "mark").write_text(b"third")
    assert (path / "mark").read_text() == "second"
    assert names(path.parent) == ["result"]


def test_earlier_folder_survives_a_failed_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "result", Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    path.mkdir()
    (path / "mark").write_text("first")
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), whole_folder(path) as folder:
        (folder / "mark").write_text("second")
    assert (path / "mark").read_text() == "first"
    assert names(tmp_path) == ["result"]


def test_what_killed_runs_leave(tmp_path: Path) -> None:
    """One was killed while it wrote, another between its renames, after which the earlier folder is the one to keep."""
    path = tmp_path / "result"
    (tmp_path / ".result.abc.partial" / "new").mkdir(parents=True)
    prepare(path)
    assert names(tmp_path) == []
    for part, text in (("old", "first"), ("new", "second")):
        (tmp_path / ".result.abc.partial" / part).mkdir(parents=True)
        (tmp_path / ".result.abc.partial" / part / "mark").write_text(text)
    with pytest.raises(UserError, match="exists: use it"):
        prepare(path)
    assert names(tmp_path) == ["result"]
    assert (path / "mark").read_text() == "first"
    prepare(path, overwrite=True)


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    with pytest.raises(UserError, match="thesis is not an earlier result, and is left alone"):
        prepare(tmp_path / "thesis", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file cannot be written to .Not a directory"):
        prepare(tmp_path / "file" / "result")
    with pytest.raises(UserError, match="thesis is a folder: name a file"):
        prepare_file(tmp_path / "thesis", overwrite=True)
    with pytest.raises(UserError, match="file exists: choose another file with -o, or write it anew"):
        prepare_file(tmp_path / "file", overwrite=False)
    with pytest.raises(UserError, match="file cannot be written to"):
        prepare_file(tmp_path / "file" / "result", overwrite=False)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with whole_folder(path) as folder:
        for refused in (prepare, lambda path: whole_folder(path).__enter__()):
            with pytest.raises(UserError, match=r"Another process writes .*result at this moment"):
                refused(path)
        assert folder.is_dir()
    assert names(tmp_path) == ["result"]


WRITER = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
from nnunetv2_ext.io.files import whole_file, whole_folder
context = {"file": whole_file, "folder": whole_folder}[sys.argv[1]]
with context(Path("result")) as partial:
    if sys.argv[2] == "child":
        if (child := os.fork()):
            print(child, flush=True)
    else:
        (partial / "half" if sys.argv[1] == "folder" else partial).write_text("half")
        print(os.listdir(), flush=True)
    time.sleep(60)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, env=OWN_PACKAGE
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_termination_leaves_nothing(tmp_path: Path, kind: str) -> None:
    with start(tmp_path, kind, "self") as process:
        assert "partial" in process.stdout.readline()
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such system call")
def test_forked_process_can_be_terminated_and_cleans_nothing_up(tmp_path: Path) -> None:
    """As a pool ends its workers; what they would remove is the parent's."""
    with start(tmp_path, "folder", "child") as process:
        child = int(process.stdout.readline())
        os.kill(child, signal.SIGTERM)
        until = time.monotonic() + 20
        while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < until, "the forked process goes on"
            time.sleep(0.01)
        assert process.poll() is None
        assert len(names(tmp_path)) == 2  # the folder and its lock
        process.terminate()
    assert names(tmp_path) == []


POOLS = """
import multiprocessing
from contextlib import suppress
from pathlib import Path
from nnunetv2_ext.io.files import whole_folder
if __name__ == "__main__":
    with whole_folder(Path("result")):
        for _ in range(20):
            # More workers than work: some are ended in the instant of their start.
            with multiprocessing.get_context("fork").Pool(8) as pool:
                assert pool.map(abs, range(-3, 0)) == [3, 2, 1]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such system call")
def test_forked_pools_end_while_a_folder_is_written(tmp_path: Path) -> None:
    """They waited for ever for a worker that had forgotten the signal to end."""
    process = subprocess.Popen([sys.executable, "-c", POOLS], cwd=tmp_path, env=OWN_PACKAGE, start_new_session=True)
    try:
        assert process.wait(120) == 0
    finally:
        if process.poll() is None:  # it has its number still
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
