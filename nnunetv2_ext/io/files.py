"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = ["prepare_output", "whole_file", "whole_folder"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write, with the same ending, that takes its place at the end or vanishes."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def prepare_output(path: Path, *, kind: str, holds: Sequence[str], overwrite: bool) -> None:
    """Clear away what a killed run left of a folder, and refuse before the work what would be refused after it.

    Args:
        path: folder that `whole_folder` is to write.
        kind: what it is, as in `an earlier evaluation`.
        holds: names by which an existing folder is known as one.
        overwrite: whether an existing one may be replaced.

    Raises:
        UserError: if the folder exists and is to stay, or cannot be written.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if (left / "old").exists() and not path.exists():
            (left / "old").rename(path)  # killed between the two renames of `whole_folder`
        shutil.rmtree(left)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: use it, choose another folder with -o, or write it anew with --overwrite.")
    if path.exists() and not all((path / name).exists() for name in holds):
        raise UserError(f"{path} is not {kind}, and is left alone; choose another folder with -o.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{above} cannot be written to; choose another folder with -o.")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into that takes the place of `path` at the end, or vanishes if anything goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(work, ignore_errors=True)
