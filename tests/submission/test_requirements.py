"""Pinned requirements: complete, as installed, and honest about what they cannot be."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.submission.requirements import pinned_requirements


def test_everything_that_is_needed_is_pinned_as_installed() -> None:
    lines, _ = pinned_requirements()
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert {"torch", "nnunetv2", "timm", "packaging", "simpleitk", "numpy"} <= pins.keys()
    assert not {"nnunetv2-ext", "pytest", "monai", "medpy"} & pins.keys()
    for name, version in pins.items():
        assert version == Version(importlib.metadata.version(name)).public
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in pins, f"{name} needs {needed}"
                assert needed.specifier.contains(pins[canonicalize_name(needed.name)], prereleases=True)


def install(site: Path, name: str, version: str = "1.0", needs: tuple[str, ...] = (), origin: dict | None = None):
    """Write what an installer leaves of a distribution."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_origins(site: Path) -> None:
    needs = ("Made.Up_special", "madeup-git", "madeup-local", "madeup-web", "madeup-windows; sys_platform == 'none'")
    install(site, "madeup_root", needs=needs)
    install(site, "made_up_special", "2.1+cu126")
    install(site, "madeup_git", origin={"url": "https://a.org/b", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    install(site, "madeup_local", "3.0", origin={"url": "file:///home/me/code", "dir_info": {"editable": True}})
    install(site, "madeup_web", origin={"url": "https://a.org/c.whl", "archive_info": {}})
    lines, remarks = pinned_requirements("madeup_root")
    assert lines == [
        "made-up-special==2.1",
        "madeup-git @ git+https://a.org/b@abc",
        "madeup-local==3.0",
        "madeup-web @ https://a.org/c.whl",
    ]
    assert remarks == [
        "made-up-special 2.1+cu126 is a special build; the image takes 2.1 of the index.",
        "madeup-local is installed from file:///home/me/code; the image takes release 3.0 of the index.",
    ]


def test_extras_and_circles(site: Path) -> None:
    install(site, "madeup_root", needs=("madeup-a[fast]", "madeup-b; extra == 'test'"))
    install(site, "madeup_a", needs=("madeup-c; extra == 'fast'", "madeup-d; extra == 'slow'", "madeup-root"))
    install(site, "madeup_c", needs=("madeup-a",))
    assert pinned_requirements("madeup_root") == (["madeup-a==1.0", "madeup-c==1.0"], [])


def test_what_is_missing_is_named(site: Path) -> None:
    install(site, "madeup_root", needs=("madeup-absent",))
    with pytest.raises(UserError, match="madeup-absent is not installed"):
        pinned_requirements("madeup_root")
