"""What a dataset is made of: cases, labels, splits. And how the files of a download are found by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nnunetv2_ext.errors import UserError

__all__ = [
    "RGB",
    "Case",
    "CaseWriter",
    "Source",
    "Split",
    "count_phrase",
    "find_files",
    "find_folder",
    "incomplete_remark",
    "require_folder",
    "require_numbers",
]

# nnU-Net chooses the normalisation by the channels' names; this one divides by 255, as the 2D papers do.
RGB = ("rgb_to_0_1",) * 3


@dataclass(frozen=True)
class Case:
    """One case of a dataset, and the files of the download that it comes from.

    Attributes:
        name: name of the case in nnU-Net's folders.
        images: the files with its channels; one file may hold several.
        label: the file with its reference, unless that is not public.
        test: whether it belongs to `imagesTs` instead of `imagesTr`.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    test: bool = False


@dataclass(frozen=True)
class Split:
    """One fold.

    Attributes:
        train, val: names of cases.
        used_by: whose split it is.
        source: where that can be seen, as `owner/repository: file`, or the paper.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    used_by: str
    source: str


class CaseWriter(Protocol):
    """Writes one case; it is sent to other processes, so it is a function of a module or a partial of one."""

    def __call__(
        self, case: Case, images: Sequence[Path], label: Path | None, *, link: bool
    ) -> dict[int, float] | None:
        """Write the files of a case.

        Args:
            case: what to write.
            images: the files to write, one for each file of nnU-Net's format.
            label: the file to write, None if the case has no reference.
            link: make a symbolic link where a file of the download can serve as it is.

        Returns:
            For each label of the case its volume in mm^3 (3D) or its area in pixels (2D); None if the case does not
            belong to the dataset and nothing was written.

        Raises:
            UserError: if a file is not what the dataset's description says; names the file.
        """


def _no_remarks(sizes: Mapping[str, Mapping[int, float]]) -> list[str]:
    return []


@dataclass(frozen=True)
class Source:
    """A dataset, as `convert` writes it.

    Attributes:
        name: name of the dataset without its number.
        description: what it is, in one sentence.
        reference: where it comes from.
        licence: what its owners allow, as far as it is known.
        channel_names: one for each channel; nnU-Net chooses the normalisation by them.
        labels: number of each label; the background is 0.
        file_ending: ending of images and labels.
        cases: training and test cases.
        write_case: writes one of them.
        n_image_files: files of an image in nnU-Net's format; pictures have one with all their channels.
        splits: fold k is entry k; without one nnU-Net makes five random folds.
        remarks: what a user should know, one sentence each.
        examine: given the size of each label in each case, checks the dataset as a whole; returns more remarks.
    """

    name: str
    description: str
    reference: str
    licence: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]
    file_ending: str
    cases: tuple[Case, ...]
    write_case: CaseWriter
    n_image_files: int = 1
    splits: tuple[Split, ...] = ()
    remarks: tuple[str, ...] = ()
    examine: Callable[[Mapping[str, Mapping[int, float]]], list[str]] = field(default=_no_remarks)

    @property
    def training_cases(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if not case.test)

    @property
    def test_cases(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.test)


def count_phrase(number: int, word: str) -> str:
    """Write how many there are: `1 case`, `3 cases`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def incomplete_remark(found: int, expected: int, what: str) -> tuple[str, ...]:
    """Remark on cases that a dataset need not have, if some of them are there and others are not."""
    return (f"Only {found} of the {expected} {what} are there.",) if 0 < found < expected else ()


def _walk(folder: Path) -> Iterable[tuple[Path, list[str], list[str]]]:
    """Walk through the folders of a download in sorted order, without what macOS leaves in archives."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name the unpacked download after -i.")
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield Path(root), folders, sorted(name for name in files if not name.startswith("."))


def find_files(folder: Path, pattern: str, *, parent: str | None = None) -> dict[str, Path]:
    """Find files by name, at any depth, because the outer folders' names differ between mirrors.

    Args:
        folder: the download.
        pattern: regular expression of the whole name, matched without case; its first group is the key. With a `/` it
            is the expression of the folder's name and the file's.
        parent: name that the file's folder must have, if files of the same name lie in several.

    Returns:
        The files, sorted by key.

    Raises:
        UserError: if there is no such folder, or two files have the same key.
    """
    expression = re.compile(pattern, re.IGNORECASE)
    found: dict[str, Path] = {}
    for root, _, files in _walk(folder):
        if parent is not None and root.name.lower() != parent.lower():
            continue
        for name in files:
            if match := expression.fullmatch(f"{root.name}/{name}" if "/" in pattern else name):
                if match[1] in found:
                    raise UserError(
                        f"{found[match[1]]} and {root / name} are the same case: name the folder of one of them after "
                        "-i, or remove one."
                    )
                found[match[1]] = root / name
    return dict(sorted(found.items()))


def find_folder(folder: Path, name: str) -> Path | None:
    """Find the folder of this name in a download, at any depth and without case; None if there is none.

    An archive unpacked into a folder of its own name gives two of them, of which the inner one is meant.

    Raises:
        UserError: if there are several.
    """
    named = [root for root, _, _ in _walk(folder) if root.name.lower() == name.lower()]
    found = [path for path in named if not any(path in other.parents for other in named)]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} have the same name: name the folder around one of them after -i.")
    return found[0] if found else None


def require_folder(folder: Path, name: str, dataset: str) -> Path:
    """Find the folder of this name in a download, as `find_folder`.

    Raises:
        UserError: if there is none, or several.
    """
    found = find_folder(folder, name)
    if found is None:
        raise UserError(f"{folder} has no folder {name}: {dataset} has one; name the unpacked download after -i.")
    return found


def require_numbers(
    found: Mapping[str, Path], numbers: Iterable[int], name: Callable[[int], str], folder: Path, dataset: str
) -> dict[int, Path]:
    """Return the files of numbered cases.

    Args:
        found: files by their number in digits.
        numbers: the cases that must be there.
        name: function that gives the file name of a case, for the message.
        folder: the download, for the message.
        dataset: its name, for the message.

    Raises:
        UserError: if a file is missing, or two have the same number; names the first one.
    """
    files: dict[int, Path] = {}
    for number, path in found.items():
        if int(number) in files:
            raise UserError(f"{files[int(number)]} and {path} have the same number: remove one.")
        files[int(number)] = path
    numbers = list(numbers)
    missing = [number for number in numbers if number not in files]
    if missing:
        more = f" (and {count_phrase(len(missing) - 1, 'more file')})" if len(missing) > 1 else ""
        raise UserError(
            f"{folder} has no file {name(missing[0])}{more}, which belongs to {dataset}: complete the download."
        )
    return {number: files[number] for number in numbers}
