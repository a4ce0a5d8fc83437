"""Files and folders are there whole or not at all, whenever a run ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import prepare_output, whole_file, whole_folder


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
    with pytest.raises(UserError, match="file cannot be written to"):
        prepare(tmp_path / "file" / "result")
