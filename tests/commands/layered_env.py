"""Virtual environments that see everything the tests' environment holds, except what is installed into them.

A fresh environment with torch and nnU-Net takes minutes and gigabytes. A layered one takes a moment: a folder of links
to every entry of the tests' site-packages, except those of the distributions that are left out, is put on the new
environment's path. What is then installed into it lies in its own, empty site-packages, which come first.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from uv import find_uv_bin

__all__ = [
    "PROJECT",
    "LayeredEnv",
    "clean_variables",
    "console_script",
    "copy_nnunet_source",
    "copy_project_source",
    "run",
]

PROJECT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300

# What a program needs to run at all. Everything else a user may have set, above all nnU-Net's and the installers'
# variables, stays out of the tests.
_KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "MPLCONFIGDIR", "PATH", "TMPDIR")
_SET_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INDEX": "1",
    "UV_NO_CONFIG": "1",
    "UV_OFFLINE": "1",
}


def clean_variables(**variables: str) -> dict[str, str]:
    """Return the environment variables of a user who has set nothing but `variables`."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, **_SET_VARIABLES, **variables}


def run(command: Iterable[str | Path], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with clean variables; its `stdout` holds stdout and stderr together."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_variables(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def console_script(name: str) -> Path:
    """Find a console script of nnU-Net that its installer wrote for the tests' environment."""
    nnunet = distribution("nnunetv2")
    scripts = [nnunet.locate_file(file) for file in nnunet.files or () if Path(file).name == name]
    assert scripts, f"nnU-Net is installed without its command {name}"
    return Path(scripts[0]).resolve()


def copy_project_source(folder: Path) -> Path:
    """Copy what an installer needs of this project, so that building leaves nothing in the checkout."""
    folder.mkdir(parents=True)
    for path in PROJECT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    shutil.copytree(PROJECT / "nnunetv2_ext", folder / "nnunetv2_ext", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def copy_nnunet_source(folder: Path) -> Path:
    """Make a source tree of the installed nnU-Net, as a developer of nnU-Net has it."""
    spec = find_spec("nnunetv2")
    assert spec is not None, "nnU-Net is not installed"
    assert spec.origin is not None, "nnU-Net is shadowed by a folder that is no package"
    shutil.copytree(Path(spec.origin).parent, folder / "nnunetv2", ignore=shutil.ignore_patterns("__pycache__"))
    nnunet = distribution("nnunetv2")
    (script,) = nnunet.entry_points.select(group="console_scripts", name="nnUNetv2_train")
    pyproject = f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "nnunetv2"
version = "{nnunet.version}"

[project.scripts]
{script.name} = "{script.value}"

[tool.setuptools.packages.find]
include = ["nnunetv2*"]
"""
    (folder / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    return folder


@dataclass(frozen=True)
class LayeredEnv:
    """A virtual environment over the tests' environment.

    Attributes:
        folder: holds the environment itself, its layer of links, and an empty folder to run commands in.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, without: Iterable[str] = ("nnunetv2_ext",)) -> LayeredEnv:
        """Make an environment that sees the tests' environment except the distributions `without`."""
        environment = cls(folder)
        environment.elsewhere.mkdir(parents=True)
        # Where the tests' environment has no pip to see (uv makes such), Python's own comes in.
        venv.create(environment.prefix, with_pip=find_spec("pip") is None, symlinks=True)
        links = folder / "links"
        links.mkdir()
        for entry in _installed_entries(set(without)):
            if (links / entry.name).is_symlink():
                continue
            (links / entry.name).symlink_to(entry)
            if entry.suffix == ".pth":
                # Python reads these in site-packages only; editable installs and setuptools have them.
                shutil.copy(entry, environment.site_packages)
        # The name sorts before those of other .pth files, which may need what is linked.
        (environment.site_packages / "00_links.pth").write_text(f"{links}\n", encoding="utf-8")
        return environment

    @property
    def prefix(self) -> Path:
        return self.folder / "env"

    @property
    def scripts(self) -> Path:
        return self.prefix / "bin"

    @property
    def python(self) -> Path:
        return self.scripts / "python"

    @property
    def site_packages(self) -> Path:
        (folder,) = (self.prefix / "lib").glob("python*/site-packages")
        return folder

    @property
    def elsewhere(self) -> Path:
        return self.folder / "elsewhere"

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command with clean variables, in a folder that holds nothing."""
        return run(command, self.elsewhere, **variables)

    def run_python(self, code: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in this environment."""
        return self.run(self.python, "-c", code, *arguments, **variables)

    def run_train(self, trainer: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run nnU-Net's training command, real script and all, on a dataset that does not exist.

        It looks for the trainer before it looks for the dataset.
        """
        script = self.scripts / "nnUNetv2_train"
        if not script.exists():
            script = console_script("nnUNetv2_train")
        return self.run(self.python, script, "999", "3d_fullres", "0", "-tr", trainer, "-device", "cpu", **variables)

    def install(self, source: Path, installer: str, editable: bool) -> None:
        """Install a source tree with pip or uv, without downloading anything."""
        offline = ["--no-deps", "--no-build-isolation", "--no-index"]
        self._installer(installer, "install", *offline, *(["--editable"] if editable else []), source)

    def uninstall(self, name: str, installer: str) -> None:
        """Remove a distribution with pip or uv."""
        self._installer(installer, "uninstall", *(["--yes"] if installer == "pip" else []), name)

    def installed_paths(self) -> set[Path]:
        """List everything in this environment, except two things that are not of an installed package.

        uv keeps a lock file of its own. And it leaves what Python has cached of setuptools' helper module when it
        uninstalls an editable package; without the module, Python never reads that cache.
        """
        cache = self.site_packages / "__pycache__"
        ignored = {cache, *cache.glob("*"), self.prefix / ".lock"}
        return set(self.prefix.rglob("*")) - ignored

    def copy(self, folder: Path) -> LayeredEnv:
        """Copy this environment with what is installed in it (scripts still start the original's Python)."""
        copied = LayeredEnv(folder)
        copied.elsewhere.mkdir(parents=True)
        shutil.copytree(self.prefix, copied.prefix, symlinks=True)
        return copied

    def _installer(self, installer: str, action: str, *arguments: str | Path) -> None:
        if installer == "uv":
            command = [find_uv_bin(), "pip", action, "--no-cache", "--python", self.python]
        else:
            command = [self.python, "-m", "pip", action]
        finished = self.run(*command, *arguments)
        assert finished.returncode == 0, f"{installer} {action} failed:\n{finished.stdout}"


def _installed_entries(without: Iterable[str]) -> Iterator[Path]:
    """Walk over the entries of the tests' site-packages, in the order of Python's path."""
    left_out_names = {_normalised(name) for name in without}
    folders = site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        left_out = {"__pycache__"}
        for found in distributions(path=[str(folder)]):
            if _normalised(found.name or "") in left_out_names:
                left_out |= {file.parts[0] for file in found.files or ()}
        if folder.is_dir():
            yield from (entry for entry in sorted(folder.iterdir()) if entry.name not in left_out)


def _normalised(name: str) -> str:
    """Spell a distribution's name as the package index does."""
    return re.sub(r"[-_.]+", "-", name).lower()
