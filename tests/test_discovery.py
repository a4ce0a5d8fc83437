"""How nnU-Net's own search finds the trainers: the hook in torch's import, the search folder, the names."""

from __future__ import annotations

import importlib.util
import inspect
import json
import multiprocessing
import operator
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import nnunetv2_ext.trainers
from nnunetv2_ext import _register
from nnunetv2_ext._register import DISCOVERY_FOLDER, OPT_OUT_VARIABLE, SEARCH_PATH_VARIABLE, register
from nnunetv2_ext.catalog import TRAINERS, TrainerEntry
from nnunetv2_ext.trainers.names import Variant
from tests.commands.layered_env import console_script, run

VARIANT = "nnUNetTrainerPECANet_3epochs_2iters_noAMP"

every_trainer = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in TRAINERS])

near_misses = pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("nnUNetTrainerPecaNet", "nnUNetTrainerPECANet"),
        ("nnunettrainerpecanetds", "nnUNetTrainerPECANetDS"),
        ("nnUNetTrainerPECANet_50epoch", "nnUNetTrainerPECANet_50epochs"),
        ("nnUNetTrainerPECANet_noAMP_5epochs", "nnUNetTrainerPECANet_5epochs_noAMP"),
        ("nnUNetTrainerPECANet_lr3e-4", "nnUNetTrainerPECANet_lr3en4"),
        ("nnUNetTrainerPECANet_with_something", "nnUNetTrainerPECANet"),
    ],
)


@pytest.fixture
def search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's search see the discovery folder, whatever the environment of the tests says."""
    monkeypatch.setenv(SEARCH_PATH_VARIABLE, DISCOVERY_FOLDER)


@pytest.fixture
def shim() -> ModuleType:
    """Return the module that nnU-Net imports from the discovery folder."""
    (path,) = Path(DISCOVERY_FOLDER).glob("*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestRegister:
    """`register`, which torch calls at the end of its import."""

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (None, [DISCOVERY_FOLDER]),
            ([""], [DISCOVERY_FOLDER]),
            (["/first", "/second"], ["/first", "/second", DISCOVERY_FOLDER]),
            ([DISCOVERY_FOLDER, "/second"], [DISCOVERY_FOLDER, "/second"]),
        ],
        ids=["unset", "empty", "user's folders", "already there"],
    )
    def test_appends_once(self, monkeypatch: pytest.MonkeyPatch, before: list[str] | None, after: list[str]) -> None:
        """The discovery folder comes after what the user has set, and only once, however often it is called."""
        monkeypatch.delenv(OPT_OUT_VARIABLE, raising=False)
        # Setting first makes monkeypatch restore the variable also where it was not set.
        monkeypatch.setenv(SEARCH_PATH_VARIABLE, os.pathsep.join(before or []))
        if before is None:
            monkeypatch.delenv(SEARCH_PATH_VARIABLE)
        for _ in range(2):
            register()
            assert os.environ[SEARCH_PATH_VARIABLE] == os.pathsep.join(after)

    def test_opt_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever sets the switch keeps the search path as it is."""
        monkeypatch.setenv(OPT_OUT_VARIABLE, "1")
        monkeypatch.setenv(SEARCH_PATH_VARIABLE, "/first")
        register()
        assert os.environ[SEARCH_PATH_VARIABLE] == "/first"

    def test_opt_out_is_the_documented_variable(self) -> None:
        """The names of the two variables are part of the promise."""
        assert (OPT_OUT_VARIABLE, SEARCH_PATH_VARIABLE) == ("nnUNet_ext_NO_AUTOLOAD", "nnUNet_extTrainer")

    @pytest.mark.parametrize("broken", ["get", "__setitem__"])
    def test_never_raises(self, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
        """An error while reading or writing the environment stays inside: it would make `import torch` fail."""
        calls = []

        class BrokenEnvironment(dict):
            pass

        def fail(*arguments: object) -> None:
            calls.append(arguments)
            raise OSError("no environment")

        setattr(BrokenEnvironment, broken, fail)
        monkeypatch.setattr(_register, "os", SimpleNamespace(environ=BrokenEnvironment(), pathsep=os.pathsep))
        register()
        assert calls

    def test_loads_nothing_but_itself(self, tmp_path: Path) -> None:
        """It runs while torch is being imported: the package and the hook import nothing that is not there already."""
        code = (
            "import sys; before = set(sys.modules); import nnunetv2_ext._register as hook; hook.register();"
            "print(*sorted(set(sys.modules) - before))"
        )
        finished = run([sys.executable, "-c", code], tmp_path)
        assert finished.stdout.split() == ["nnunetv2_ext", "nnunetv2_ext._register"], finished.stdout

    def test_torch_calls_it(self, tmp_path: Path) -> None:
        """In the environment of the tests, `import torch` alone sets the search path, and loads no trainer."""
        code = (
            "import json, os, sys, torch;"
            f"print(json.dumps([os.environ.get('{SEARCH_PATH_VARIABLE}'), 'nnunetv2_ext.trainers' in sys.modules]))"
        )
        finished = run([sys.executable, "-c", code], tmp_path)
        assert finished.returncode == 0, finished.stdout
        folder, trainers_loaded = json.loads(finished.stdout.splitlines()[-1])
        # The installed package's folder: the checkout's only if the installation is editable.
        assert Path(folder, "nnunetv2_ext_trainers.py").is_file(), finished.stdout
        assert not trainers_loaded


class TestDiscoveryFolder:
    """The folder on nnU-Net's search path, and the one module in it."""

    def test_holds_one_module(self) -> None:
        """nnU-Net imports every module of the folder under its bare name: there is one, with a name of its own."""
        names = {path.name for path in Path(DISCOVERY_FOLDER).iterdir() if path.name != "__pycache__"}
        assert names == {"nnunetv2_ext_trainers.py"}

    @pytest.mark.parametrize("name", ["foo", "__path__", "__all__", "sys", "names", "find_trainer", "nnUNetTrainerFoo"])
    def test_has_no_other_name(self, shim: ModuleType, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Every name that is no trainer of ours is missing, without a word, as from any module."""
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(shim, name)
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("name", [TRAINERS[0].name, VARIANT, "nnUNetTrainerPecaNet", "foo"])
    def test_is_empty_without_the_package(
        self, shim: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where the search path arrives but the package cannot be imported, the search goes on in silence."""
        monkeypatch.setitem(sys.modules, "nnunetv2_ext.trainers", None)
        assert not hasattr(shim, name)
        assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("search_path")
class TestSearch:
    """nnU-Net's own search."""

    @every_trainer
    def test_finds_every_trainer(self, entry: TrainerEntry) -> None:
        """Each trainer of the catalog is found: the class of that name, from the module that the catalog names."""
        trainer = recursive_find_trainer_class_by_name(entry.name)
        assert (trainer.__module__, trainer.__qualname__) == (entry.module, entry.name)
        assert issubclass(trainer, nnUNetTrainer)
        assert recursive_find_trainer_class_by_name(entry.name) is trainer

    @every_trainer
    def test_finds_a_variant_of_every_trainer(self, entry: TrainerEntry) -> None:
        """A variant that is written down nowhere is found, is one class, and carries the name that was asked for."""
        name = f"{entry.name}_7epochs_lr3en4"
        trainer = recursive_find_trainer_class_by_name(name)
        assert trainer.__name__ == name
        assert issubclass(trainer, recursive_find_trainer_class_by_name(entry.name))
        assert trainer.variant == Variant(epochs=7, initial_lr=3e-4)
        assert recursive_find_trainer_class_by_name(name) is trainer

    def test_forgets_only_the_shim(self) -> None:
        """nnU-Net forgets the modules of a search folder; the trainers' modules must outlive the search."""
        trainer = recursive_find_trainer_class_by_name(VARIANT)
        assert "nnunetv2_ext_trainers" not in sys.modules
        assert getattr(sys.modules[trainer.__module__], VARIANT) is trainer

    @pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainer_1epoch", "nnUNetTrainerNoMirroring"])
    def test_leaves_nnunets_own_trainers_alone(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """nnU-Net's own trainers are its own, and are found without a module of ours being imported."""
        for module in [module for module in sys.modules if module.startswith("nnunetv2_ext.")]:
            monkeypatch.delitem(sys.modules, module)
        trainer = recursive_find_trainer_class_by_name(name)
        assert trainer.__name__ == name
        assert trainer.__module__.startswith("nnunetv2.training.")
        assert [module for module in sys.modules if module.startswith("nnunetv2_ext.")] == []

    def test_users_trainer_is_found_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A user's trainer whose name resembles one of ours is found in silence, in the user's own folder."""
        (tmp_path / "users_trainer.py").write_text(
            "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
            "class nnUNetTrainerPECANet_mine(nnUNetTrainer): pass\n",
            encoding="utf-8",
        )
        monkeypatch.setenv(SEARCH_PATH_VARIABLE, str(tmp_path))
        monkeypatch.delenv(OPT_OUT_VARIABLE, raising=False)
        register()
        assert recursive_find_trainer_class_by_name("nnUNetTrainerPECANet_mine").__module__ == "users_trainer"
        assert capsys.readouterr().err == ""

    @near_misses
    def test_near_miss(self, typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
        """A near miss is not found, and one line says which name was probably meant; that name is found."""
        with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {typed} "):
            recursive_find_trainer_class_by_name(typed)
        (line,) = capsys.readouterr().err.splitlines()
        assert typed in line
        assert line.endswith(f"did you mean {meant}?")
        assert recursive_find_trainer_class_by_name(meant).__name__ == meant

    @pytest.mark.parametrize("name", ["nnUNetTrainerOfSomeoneElse", "nnUNetTrainer_mine", "MyTrainer"])
    def test_foreign_name(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """About a name that resembles none of ours, nnU-Net's error is all that is said."""
        with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {name} "):
            recursive_find_trainer_class_by_name(name)
        assert capsys.readouterr().err == ""


class TestClasses:
    """The classes behave like classes that are written in a file, wherever they travel."""

    @every_trainer
    def test_pickle(self, entry: TrainerEntry) -> None:
        """A trainer and a variant of it survive a round trip through pickle as the same object."""
        for name in (entry.name, f"{entry.name}_3epochs"):
            trainer = nnunetv2_ext.trainers.find_trainer(name)
            assert pickle.loads(pickle.dumps(trainer)) is trainer

    @pytest.mark.slow
    def test_spawned_child(self) -> None:
        """A spawned process, which nobody has told about the variant, makes it again from its name."""
        trainer = nnunetv2_ext.trainers.find_trainer(VARIANT)
        read = operator.attrgetter("__module__", "__qualname__", "variant")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(read, trainer).result(timeout=120) == read(trainer)

    @every_trainer
    def test_source(self, entry: TrainerEntry) -> None:
        """The source of a trainer can be read after the search, as torch.compile and debuggers do."""
        source = inspect.getsource(nnunetv2_ext.trainers.find_trainer(entry.name))
        assert source.startswith(f"class {entry.name}(")


@pytest.mark.commands
def test_near_miss_at_the_command_line(tmp_path: Path) -> None:
    """nnU-Net's training command with a near miss prints the hint, and fails as nnU-Net does."""
    arguments = ["999", "3d_fullres", "0", "-tr", "nnUNetTrainerPECANet_50epoch", "-device", "cpu"]
    finished = run([sys.executable, console_script("nnUNetv2_train"), *arguments], tmp_path)
    assert finished.returncode == 1, finished.stdout
    assert finished.stdout.count("did you mean nnUNetTrainerPECANet_50epochs?\n") == 1, finished.stdout
    last_error = "RuntimeError: Could not find requested nnunet trainer nnUNetTrainerPECANet_50epoch "
    assert last_error in finished.stdout, finished.stdout
