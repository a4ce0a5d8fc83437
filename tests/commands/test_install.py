"""Installed by the real installers, found by nnU-Net's real commands, and gone without a trace when uninstalled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from tests.commands.layered_env import PROJECT, LayeredEnv, copy_nnunet_source, copy_project_source

pytestmark = [
    pytest.mark.commands,
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="layered environments need symbolic links"),
]

TRAINER = "nnUNetTrainerPECANet_1epoch_2iters"
VARIABLE = "nnUNet_extTrainer"

# Look for trainers as nnU-Net does, and say as JSON in the last line what was found.
FIND = f"""
import json, os, sys
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
answer = {{"variable": os.environ.get("{VARIABLE}"), "found": {{}}}}
answer["registered"] = "nnunetv2_ext._register" in sys.modules
for name in sys.argv[1:]:
    try:
        trainer = find(name)
    except RuntimeError as error:
        answer["found"][name] = str(error)
    else:
        answer["found"][name] = [trainer.__module__, trainer.__qualname__]
answer["ours"] = sorted(name for name in sys.modules if name.startswith("nnunetv2_ext."))
print()
print(json.dumps(answer))
"""

# Without a search: it takes a second instead of ten.
IMPORT_TORCH = f"""
import os, torch
from importlib.util import find_spec
print("variable:", os.environ.get("{VARIABLE}"))
print("nnU-Net's trainer:", find_spec("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").origin)
"""


@dataclass(frozen=True)
class Mode:
    """One way to install: who installs us, how, and how nnU-Net itself was installed."""

    installer: str
    editable: bool
    nnunet_editable: bool

    def __str__(self) -> str:
        nnunet = "-into-editable-nnunet" if self.nnunet_editable else ""
        return f"{self.installer}-{'editable' if self.editable else 'regular'}{nnunet}"


MODES = [
    Mode("pip", editable=False, nnunet_editable=False),
    Mode("pip", editable=True, nnunet_editable=False),
    Mode("uv", editable=False, nnunet_editable=False),
    Mode("uv", editable=True, nnunet_editable=False),
    Mode("pip", editable=False, nnunet_editable=True),
    Mode("pip", editable=True, nnunet_editable=True),
]


def find_trainers(environment: LayeredEnv, *names: str, **variables: str) -> dict[str, Any]:
    """Run nnU-Net's search in an environment."""
    return read_answer(environment.run_python(FIND, *names, **variables))


def read_answer(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Read what the search has found."""
    assert finished.returncode == 0, finished.stdout
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("mode", [pytest.param(mode, id=str(mode)) for mode in MODES])
def test_install_find_uninstall(mode: Mode, tmp_path: Path) -> None:
    """However it is installed, nnU-Net finds a trainer with no step by the user; uninstalled, nothing of it is left."""
    environment = LayeredEnv.create(
        tmp_path / "installed", without=["nnunetv2_ext", *(["nnunetv2"] if mode.nnunet_editable else [])]
    )
    if mode.nnunet_editable:
        nnunet_source = copy_nnunet_source(tmp_path / "nnunet_source")
        environment.install(nnunet_source, "pip", editable=True)
    source = copy_project_source(tmp_path / "source")
    before = environment.installed_paths()

    environment.install(source, mode.installer, mode.editable)

    # Python itself, without torch, does not load the package.
    idle = environment.run_python("import sys; print([m for m in sys.modules if m.split('.')[0] == 'nnunetv2_ext'])")
    assert idle.stdout.strip() == "[]", idle.stdout

    package = (source if mode.editable else environment.site_packages) / "nnunetv2_ext"
    if mode.installer == "pip":
        trained = environment.run_train(TRAINER)
        assert f"Using trainer '{TRAINER}' from: {package / '_discovery'}\n" in trained.stdout, trained.stdout
        # The trainer was accepted: what ends the command is the dataset, which does not exist.
        assert "RuntimeError: Could not find a dataset with the ID 999." in trained.stdout, trained.stdout
        if mode.nnunet_editable:
            assert f'File "{nnunet_source}{os.sep}nnunetv2' in trained.stdout, trained.stdout
    else:
        answer = find_trainers(environment, TRAINER)
        assert answer["variable"] == str(package / "_discovery"), answer
        assert answer["found"] == {TRAINER: ["nnunetv2_ext.trainers", TRAINER]}, answer

    environment.uninstall("nnunetv2_ext", mode.installer)

    assert environment.installed_paths() == before
    if mode.nnunet_editable and not mode.editable:
        # A module of ours inside nnU-Net's package, the other way to be found, would have broken this very search.
        answer = find_trainers(environment, "nnUNetTrainer_1epoch", TRAINER)
        assert answer["found"]["nnUNetTrainer_1epoch"][1] == "nnUNetTrainer_1epoch", answer
        assert answer["found"][TRAINER].startswith("Could not find requested nnunet trainer"), answer
        assert answer["variable"] is None, answer
        assert answer["ours"] == [], answer
    else:
        finished = environment.run_python(IMPORT_TORCH)
        assert finished.returncode == 0, finished.stdout
        assert "variable: None" in finished.stdout, finished.stdout
        assert "nnU-Net's trainer: /" in finished.stdout, finished.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> LayeredEnv:
    """Return an environment with this package installed; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("installed")
    environment = LayeredEnv.create(folder / "installed")
    environment.install(copy_project_source(folder / "source"), "uv", editable=False)
    return environment


@pytest.fixture
def damaged(installed: LayeredEnv, tmp_path: Path) -> LayeredEnv:
    """Return a copy of the installed environment to damage."""
    return installed.copy(tmp_path / "damaged")


in_installed = pytest.mark.xdist_group("installed")


@in_installed
def test_wheel_holds_the_whole_package_and_nothing_beside_it(installed: LayeredEnv) -> None:
    """Every file of the package is installed, the discovery folder's too, and no file that runs when Python starts."""
    files = {path for path in (PROJECT / "nnunetv2_ext").rglob("*") if path.is_file()}
    wanted = {path.relative_to(PROJECT) for path in files if path.parent.name != "__pycache__"}
    assert {path for path in wanted if not (installed.site_packages / path).is_file()} == set()
    (ours,) = (found for found in distributions(path=[str(installed.site_packages)]) if found.name == "nnunetv2_ext")
    beside = {file.parts[0] for file in ours.files or () if file.parts[0] != ".."} - {"nnunetv2_ext"}
    assert len(beside) == 1, beside
    assert beside.pop().endswith(".dist-info")


@in_installed
def test_user_folder_stays_first(installed: LayeredEnv, tmp_path: Path) -> None:
    """A folder that the user has set keeps working, comes first, and wins where it has a trainer of our name."""
    user_folder = tmp_path / "my_trainers"
    user_folder.mkdir()
    (user_folder / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerMine(nnUNetTrainer): pass\n"
        "class nnUNetTrainerPECANet(nnUNetTrainer): pass\n",
        encoding="utf-8",
    )
    names = ["nnUNetTrainerMine", "nnUNetTrainerPECANet", "nnUNetTrainerPECANetDS"]
    answer = find_trainers(installed, *names, **{VARIABLE: str(user_folder)})
    discovery_folder = installed.site_packages / "nnunetv2_ext" / "_discovery"
    assert answer["variable"] == f"{user_folder}{os.pathsep}{discovery_folder}"
    assert answer["found"] == {
        "nnUNetTrainerMine": ["mine", "nnUNetTrainerMine"],
        "nnUNetTrainerPECANet": ["mine", "nnUNetTrainerPECANet"],
        "nnUNetTrainerPECANetDS": ["nnunetv2_ext.trainers.peca_net", "nnUNetTrainerPECANetDS"],
    }


@in_installed
def test_printed_path_replaces_autoload(installed: LayeredEnv) -> None:
    """Where torch's autoload is switched off, the documented `export` does what autoload would have done."""
    finished = installed.run(
        "sh",
        "-c",
        f'export {VARIABLE}="$(nnUNetv2_ext path)" && exec python -c "$@"',
        "sh",
        FIND,
        TRAINER,
        PATH=os.pathsep.join([str(installed.scripts), os.environ["PATH"]]),
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    answer = read_answer(finished)
    assert not answer["registered"], answer
    assert answer["variable"] == str(installed.site_packages / "nnunetv2_ext" / "_discovery"), answer
    assert answer["found"] == {TRAINER: ["nnunetv2_ext.trainers", TRAINER]}, answer


@in_installed
def test_opt_out(installed: LayeredEnv) -> None:
    """Whoever sets the switch gets a torch that leaves the search path alone."""
    finished = installed.run_python(IMPORT_TORCH, nnUNet_ext_NO_AUTOLOAD="1")
    assert finished.returncode == 0, finished.stdout
    assert "variable: None" in finished.stdout, finished.stdout


@in_installed
def test_broken_trainers_leave_torch_alone(damaged: LayeredEnv) -> None:
    """Whatever is wrong in the package's own code, `import torch` works and the variable is set."""
    package = damaged.site_packages / "nnunetv2_ext"
    for path in package.rglob("*.py"):
        if path.relative_to(package).as_posix() not in ("__init__.py", "_register.py"):
            path.write_text("this is no Python\n", encoding="utf-8")
    finished = damaged.run_python(IMPORT_TORCH)
    assert finished.returncode == 0, finished.stdout
    assert f"variable: {package / '_discovery'}" in finished.stdout, finished.stdout


@in_installed
@pytest.mark.parametrize("damage", ["broken", "gone"])
def test_damaged_installation_is_named_by_torch(damaged: LayeredEnv, damage: str) -> None:
    """If the entry point's own module is broken or gone, torch names this package and the switch, which works.

    Nothing in the package can prevent this error: torch raises it before a line of ours has run.
    """
    package = damaged.site_packages / "nnunetv2_ext"
    if damage == "broken":
        (package / "_register.py").write_text("this is no Python\n", encoding="utf-8")
    else:
        shutil.rmtree(package)
    finished = damaged.run_python(IMPORT_TORCH)
    assert finished.returncode == 1, finished.stdout
    assert "Failed to load the backend extension: nnunetv2_ext." in finished.stdout, finished.stdout
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in finished.stdout, finished.stdout
    switched_off = damaged.run_python(IMPORT_TORCH, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert switched_off.returncode == 0, switched_off.stdout


def test_variable_inherited_by_another_environment(tmp_path: Path) -> None:
    """Where the variable arrives but the package is not installed, a search fails with nnU-Net's own error."""
    environment = LayeredEnv.create(tmp_path / "other")
    inherited = str(PROJECT / "nnunetv2_ext" / "_discovery")
    answer = find_trainers(environment, "nnUNetTrainerNobodyHas", TRAINER, **{VARIABLE: inherited})
    assert answer["variable"] == inherited, answer
    for name in ("nnUNetTrainerNobodyHas", TRAINER):
        assert answer["found"][name].startswith(f"Could not find requested nnunet trainer {name} "), answer
    assert answer["ours"] == [], answer
