"""The exact versions of everything that this package needs, as they are installed here."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from nnunetv2_ext.errors import UserError

__all__ = ["pinned_requirements"]

DISTRIBUTION = "nnunetv2_ext"
# How the names of distributions begin that torch's CUDA build brings along.
_OF_CUDA = ("nvidia-", "cuda-", "triton")


def _needed(requirement: Requirement) -> Iterator[Requirement]:
    """Return what a distribution needs in this environment, with the extras that are asked of it."""
    extras = ("", *requirement.extras)
    for text in importlib.metadata.requires(requirement.name) or ():
        found = Requirement(text)
        if found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in extras):
            yield found


def _origin(distribution: importlib.metadata.Distribution) -> dict[str, Any] | None:
    """Read where a distribution came from, if that was not a package index."""
    text = distribution.read_text("direct_url.json")
    return json.loads(text) if text else None


def _pin(name: str, distribution: importlib.metadata.Distribution) -> tuple[str, str | None]:
    """Return the line for pip, and what its user should know."""
    origin, version = _origin(distribution), Version(distribution.version)
    if origin is not None and "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return f"{name} @ {vcs['vcs']}+{origin['url']}@{vcs['commit_id']}", None
    if origin is not None and not origin["url"].startswith("file:"):
        return f"{name} @ {origin['url']}", None
    if origin is not None:
        remark = f"{name} is installed from {origin['url']}; the image takes release {version.public} of the index."
    elif version.local:
        remark = f"{name} {version} is a special build; the image takes {version.public} of the index."
    else:
        remark = None
    return f"{name}=={version.public}", remark


def pinned_requirements(
    root: str = DISTRIBUTION, *, also: Sequence[str] = (), without_gpu: bool = False
) -> tuple[list[str], list[str]]:
    """Return the lines of a requirements file for everything that a distribution needs, itself excluded.

    Args:
        root: name of an installed distribution.
        also: further installed distributions, which are pinned too, with what they need.
        without_gpu: pin torch's build for the CPU, and leave out what only its CUDA build needs.

    Returns:
        The lines, sorted, and remarks on those that are not what is installed here.

    Raises:
        UserError: if something is not installed.
    """
    pins, remarks, seen, open_ = {}, [], set(), [Requirement(name) for name in (root, *also)]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        key = name, frozenset(requirement.extras)
        if key in seen or (without_gpu and name.startswith(_OF_CUDA)):
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(f"{requirement.name} is not installed: install {DISTRIBUTION} again with pip.") from error
        if name not in pins and name != canonicalize_name(root):
            pins[name], remark = _pin(name, distribution)
            if without_gpu and name == "torch":
                pins[name], remark = f"torch=={Version(distribution.version).public}+cpu", None
            remarks += [remark] if remark is not None else []
        open_ += _needed(requirement)
    return sorted(pins.values()), sorted(remarks)
