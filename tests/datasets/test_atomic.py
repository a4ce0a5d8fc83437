"""A dataset appears complete or not at all: existing ones, interruptions, kills, and workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from nnunetv2_ext.datasets import convert as module
from nnunetv2_ext.datasets import pictures
from nnunetv2_ext.datasets.convert import convert
from nnunetv2_ext.errors import UserError
from tests.datasets import trees
from tests.planned_data import clean_environment, script

NAME = "Dataset632_MoNuSeg"


@pytest.fixture
def source(make_source: Callable[[str], Path]) -> Path:
    return make_source("MoNuSeg")


def run(source: Path, **settings) -> Path:
    return convert("MoNuSeg", source, **{"processes": 1, "progress": False, **settings}).folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("_threads")
class TestInOneProcess:
    def test_existing_dataset_is_replaced_only_on_request(self, source, folders) -> None:
        target = run(source)
        before = content(target)
        with pytest.raises(UserError, match=r"exists: choose another number with -d, or replace it with --overwrite"):
            run(source)
        (target / "imagesTr" / "stray.png").touch()
        assert run(source, overwrite=True) == target
        assert content(target) == before
        assert os.listdir(folders.raw) == [NAME]

    @pytest.mark.parametrize("link", [False, True])
    def test_download_in_the_place_of_the_dataset_is_kept(self, make_source, folders, link) -> None:
        """FLARE's files have nnU-Net's names, so that they may lie in its folder already."""
        target = folders.raw / "Dataset622_FLARE22"
        make_source("FLARE22").rename(target)
        before = content(target)
        with pytest.raises(UserError, match=r"FLARE22_Tr_0001_0000\.nii\.gz lies in .*, which would be replaced"):
            convert("FLARE22", target, processes=1, progress=False, overwrite=True, link=link)
        assert content(target) == before

    def test_number_of_another_dataset_is_refused(self, source, folders) -> None:
        for root in vars(folders).values():
            other = root / "Dataset632_Other"
            other.mkdir()
            with pytest.raises(UserError, match=r"Dataset632_Other has the same number"):
                run(source, overwrite=True)
            other.rmdir()

    def test_other_split_of_preprocessed_data_is_kept_unless_replaced(self, source, folders) -> None:
        preprocessed = folders.preprocessed / NAME
        preprocessed.mkdir()
        splits = preprocessed / "splits_final.json"
        splits.write_text("[]")
        (preprocessed / "dataset_fingerprint.json").write_text("{}")
        with pytest.raises(UserError, match=r"splits_final\.json has another split"):
            run(source)
        assert not os.listdir(folders.raw)
        report = convert("MoNuSeg", source, processes=1, progress=False, overwrite=True)
        assert len(json.loads(splits.read_text())) == 1
        assert "plan again with --clean" in " ".join(report.remarks)

    def test_split_lies_with_the_raw_data_if_there_is_no_other_folder(self, source, folders, monkeypatch) -> None:
        monkeypatch.delenv("nnUNet_preprocessed")
        splits = json.loads((run(source) / "splits_final.json").read_text())
        assert [(len(fold["train"]), len(fold["val"])) for fold in splits] == [(2, 1)]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_interruption_leaves_nothing(self, source, folders, monkeypatch, error, overwrite) -> None:
        before = content(run(source)) if overwrite else None
        read, calls = pictures.read_picture, []

        def fail(path: Path):
            calls.append(path)
            if len(calls) == 5:
                (partial,) = folders.raw.glob(".*.partial/new")
                assert len(list((partial / "imagesTr").iterdir())) == 2
                raise error
            return read(path)

        with monkeypatch.context() as patch:
            patch.setattr(pictures, "read_picture", fail)
            with pytest.raises(type(error) if isinstance(error, Exception) else error):
                run(source, overwrite=overwrite)
        assert os.listdir(folders.raw) == ([NAME] if overwrite else [])
        assert not overwrite or content(folders.raw / NAME) == before
        assert run(source, overwrite=overwrite).is_dir()

    def test_refused_dataset_leaves_nothing(self, source, folders, monkeypatch) -> None:
        monkeypatch.setattr(pictures, "write_case", lambda case, images, label, **_: {})
        with pytest.raises(UserError, match="nnU-Net's check refuses the converted dataset"):
            run(source)
        assert not os.listdir(folders.raw)
        assert not os.listdir(folders.preprocessed)

    def test_replaced_dataset_comes_back_if_the_new_one_cannot_take_its_place(
        self, source, folders, monkeypatch
    ) -> None:
        before = content(run(source))
        rename = Path.rename

        def fail(self: Path, target: Path) -> Path:
            if self.name == "new":
                raise OSError("cannot rename")
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            with pytest.raises(OSError, match="cannot rename"):
                run(source, overwrite=True)
        assert os.listdir(folders.raw) == [NAME]
        assert content(folders.raw / NAME) == before
        # Killed between both renames, the dataset comes back with the next run, and is replaced only on request.
        monkeypatch.setattr(pictures, "write_case", lambda case, images, label, **_: {})
        for overwrite, words in ((False, "exists: choose another number"), (True, "nnU-Net's check")):
            killed = folders.raw / f".{NAME}.abc.partial"
            killed.mkdir()
            (folders.raw / NAME).rename(killed / "old")
            with pytest.raises(UserError, match=words):
                run(source, overwrite=overwrite)
            assert os.listdir(folders.raw) == [NAME]
            assert content(folders.raw / NAME) == before

    def test_two_at_the_same_time(self, source, folders) -> None:
        with FileLock(folders.raw / f".{NAME}.lock"), pytest.raises(UserError, match="Another process writes"):
            run(source)
        assert run(source).is_dir()


# In processes of their own


def start(source: Path, folders: SimpleNamespace, *options: str) -> subprocess.Popen:
    environment = clean_environment(**{f"nnUNet_{kind}": str(path) for kind, path in vars(folders).items()})
    command = [script("nnUNetv2_ext"), "convert", "Synapse", "--organs", "8", "-i", str(source), *options]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell lets what it starts in the background, and all that this starts, ignore Ctrl+C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.commands
@pytest.mark.slow
@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGTERM, "1"), (signal.SIGKILL, "2"), (signal.SIGINT, "2")],
    ids=["SIGTERM", "SIGKILL", "SIGINT"],
)
def test_killed_in_the_middle(tmp_path, folders, number: signal.Signals, processes: str, capfd) -> None:
    """Nothing is left where nnU-Net looks, nothing at all where a process can still clean up."""
    source = trees.synapse(tmp_path / "source", (24, 96, 96))
    process = start(source, folders, "-np", processes)
    deadline = time.monotonic() + 120
    while len(list(folders.raw.glob(".*.partial/new/labelsTr/*"))) < 3:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode != 0
    process.stdout.close()
    assert not list(folders.raw.glob("Dataset*"))
    assert not os.listdir(folders.preprocessed)
    if number != signal.SIGKILL:
        assert not os.listdir(folders.raw)
    convert("Synapse", source, processes=1, organs="8")
    assert "31/31" in capfd.readouterr().err  # the progress bar
    assert os.listdir(folders.raw) == ["Dataset617_Synapse8TransUNet"]


@pytest.mark.slow
def leave_unchecked(*_arguments: object) -> None:
    """Stand in for nnU-Net's check, also in a process of its own, which finds this function by its name."""


def test_workers_give_the_same_and_their_errors_arrive(tmp_path, folders, monkeypatch) -> None:
    source = trees.synapse(tmp_path / "source")
    monkeypatch.setattr(module, "_check_integrity", leave_unchecked)
    one = convert("Synapse", source, processes=1, progress=False, organs="8")
    two = convert("Synapse", source, processes=2, progress=False, organs="8", dataset_id=700)
    assert content(one.folder) == content(two.folder)
    label = source / "RawData" / "Training" / "label" / "label0033.nii.gz"
    label.write_bytes(b"")
    with pytest.raises(UserError, match=r"label0033\.nii\.gz cannot be read as an image"):
        convert("Synapse", source, processes=2, progress=False, dataset_id=701)
    assert len(os.listdir(folders.raw)) == 2


def test_command_line_imports_nothing_heavy() -> None:
    code = "import sys, nnunetv2_ext.cli; print(*({'torch', 'SimpleITK', 'PIL', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == ""
