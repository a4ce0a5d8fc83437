"""`nnUNetv2_ext doctor`: whether everything is there that training needs, each problem with its remedy."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext._register import DISCOVERY_FOLDER, OPT_OUT_VARIABLE, SEARCH_PATH_VARIABLE
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.io.workers import available_cores

__all__ = ["HELP", "Check", "add_arguments", "examine", "format_report", "run"]

HELP = "Check versions, discovery, nnU-Net's folders, devices and workers."

FOLDER_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
SHARED_MEMORY_FOLDER = Path("/dev/shm")
MIN_SHARED_MEMORY = 2**30
MIN_FREE_DISK = 10 * 2**30


@dataclass(frozen=True)
class Check:
    """One fact.

    Attributes:
        name: what was looked at.
        finding: what was seen.
        remedy: what to do; None if nothing is wrong.
        essential: whether training fails without the remedy; otherwise it is advice.
    """

    name: str
    finding: str
    remedy: str | None = None
    essential: bool = True

    @property
    def failed(self) -> bool:
        """Whether training cannot work as things are."""
        return self.remedy is not None and self.essential


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_versions() -> Iterator[Check]:
    yield Check("Python", f"{platform.python_version()}, {sys.executable}")
    requirements = {
        requirement.split(";")[0].strip()
        for requirement in importlib.metadata.requires("nnunetv2_ext") or []
        if "extra" not in requirement
    }
    from packaging.requirements import Requirement

    for requirement in sorted(requirements):
        parsed = Requirement(requirement)
        found = _version(parsed.name)
        fits = found is not None and parsed.specifier.contains(found, prereleases=True)
        yield Check(parsed.name, found or "not installed", None if fits else f"pip install {shlex.quote(requirement)}")
    yield Check("nnunetv2_ext", _version("nnunetv2_ext") or "not installed")


def _check_imports() -> Iterator[Check]:
    # nnU-Net imports all of its own trainers before it looks further, and some of them need these.
    for name in ("torchvision", "timm"):
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Check(
                name,
                f"cannot be imported ({type(error).__name__}: {error})",
                f"nnU-Net's search for trainers stops on this: install a {name} that matches your torch",
            )
        else:
            yield Check(name, _version(name) or "importable")


def _check_discovery(folders_before_torch: list[str]) -> Iterator[Check]:
    import torch  # noqa: F401  (importing it is what registers this package's folder)

    registered = [folder for folder in os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep) if folder]
    if DISCOVERY_FOLDER in folders_before_torch:
        way = f"by the variable {SEARCH_PATH_VARIABLE}, which was set before"
    elif DISCOVERY_FOLDER in registered:
        way = "by torch's autoload (entry point in the group torch.backends)"
    else:
        cause = (
            f"{OPT_OUT_VARIABLE} is set" if os.environ.get(OPT_OUT_VARIABLE) else "torch did not call our entry point"
        )
        yield Check(
            "search path",
            f"nnU-Net does not look into this package ({cause})",
            f'export {SEARCH_PATH_VARIABLE}="$(nnUNetv2_ext path)"',
        )
        return
    yield Check("search path", way)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    lost = []
    for entry in TRAINERS:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                recursive_find_trainer_class_by_name(entry.name)
            except Exception as error:
                lost.append(f"{entry.name} ({type(error).__name__}: {error})")
    yield Check(
        "trainers",
        f"not found by nnU-Net: {'; '.join(lost)}" if lost else f"nnU-Net finds all {len(TRAINERS)}",
        "reinstall nnunetv2_ext, and see the errors in brackets" if lost else None,
    )


def _check_folders() -> Iterator[Check]:
    for variable in FOLDER_VARIABLES:
        value = os.environ.get(variable)
        if not value:
            yield Check(variable, "not set", f"mkdir a folder for it and export {variable}=/path/to/that/folder")
            continue
        folder = Path(value)
        if not folder.is_dir():
            yield Check(
                variable,
                f"{folder} is not a folder",
                f"mkdir -p {shlex.quote(str(folder))}, or export another {variable}",
            )
            continue
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield Check(variable, f"{folder}: {error.strerror}", "make it writable, or export another folder")
            continue
        free = shutil.disk_usage(folder).free
        finding = f"{folder}, writable, {free / 2**30:.0f} GiB free"
        advice = None if free >= MIN_FREE_DISK else "preprocessed data and checkpoints often need more: make room"
        yield Check(variable, finding, advice, essential=False)


def _check_devices() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Check(f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Check("GPU", "Apple silicon; use -device mps")
    else:
        yield Check(
            "GPU",
            "none that torch can use",
            "train with -device cpu (slow), or install torch for CUDA",
            essential=False,
        )
    cores = available_cores()
    yield Check("CPU cores", str(cores))
    for variable, default in (("nnUNet_n_proc_DA", "chosen by nnU-Net"), ("nnUNet_def_n_proc", "8")):
        value = os.environ.get(variable)
        if value is not None and not value.isdigit():
            yield Check(variable, f"{value!r} is not a whole number", f"unset {variable}, or export {variable}={cores}")
        else:
            many = value is not None and int(value) > 4 * cores
            advice = f"more workers than {cores} cores can feed: export {variable}={cores}" if many else None
            if variable == "nnUNet_n_proc_DA" and value is not None and int(value) == 0:
                advice = (
                    f"nnUNetv2_plan_and_preprocess fails with it: unset {variable}, and set it for the training alone, "
                    f"{variable}=0 nnUNetv2_train ..."
                )
            yield Check(variable, value or f"not set ({default})", advice, essential=False)
    for variable, value in (("OMP_THREAD_LIMIT", "1"), ("OMP_DYNAMIC", "TRUE")):
        if os.environ.get(variable, "").upper() == value:
            yield Check(
                variable, f"is {value}", f"unset {variable}: with it, CPU training hangs at the first convolution"
            )


def _check_shared_memory() -> Iterator[Check]:
    if not SHARED_MEMORY_FOLDER.is_dir():
        return
    size = shutil.disk_usage(SHARED_MEMORY_FOLDER).total
    enough = size >= MIN_SHARED_MEMORY
    yield Check(
        "shared memory",
        f"{size / 2**20:,.0f} MiB",
        None
        if enough
        else "workers die without it: start the container with --shm-size=8g, or train without: "
        "nnUNet_n_proc_DA=0 nnUNetv2_train ...",
        essential=False,
    )


def examine() -> list[Check]:
    """Look at versions, discovery, nnU-Net's folders, devices, workers and shared memory.

    Call it before anything has imported torch: only then can it tell how nnU-Net comes to find the trainers.
    """
    folders_before_torch = os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep)
    parts: list[Callable[[], Iterator[Check]]] = [
        _check_versions,
        _check_imports,
        lambda: _check_discovery(folders_before_torch),
        _check_folders,
        _check_devices,
        _check_shared_memory,
    ]
    return [check for part in parts for check in part()]


def format_report(checks: list[Check]) -> str:
    """Lay out the checks for a terminal, each problem followed by its remedy, and a closing sentence."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "ok  " if check.remedy is None else "FAIL" if check.essential else "note"
        lines.append(f"{mark}  {check.name.ljust(width)}  {check.finding}")
        if check.remedy is not None:
            lines.append(f"{' ' * (width + 6)}  -> {check.remedy}")
    failed = sum(check.failed for check in checks)
    lines.append("Ready to train." if not failed else f"{failed} problem{'s' if failed > 1 else ''} to solve first.")
    return "\n".join(lines)


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def run(_arguments: argparse.Namespace) -> None:
    """Print the checks; exit code 1 if training cannot work as things are."""
    checks = examine()
    print(format_report(checks))
    if any(check.failed for check in checks):
        raise SystemExit(1)
