"""Reading how a fold was trained: nnU-Net's debug.json, logs and checkpoint, and epochs.jsonl of this package.

All of it may be missing, may be from elsewhere, and is never executed: a checkpoint is read as plain data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from nnunetv2_ext.errors import UserError

__all__ = ["TrainingRecord", "count_parameters", "read_checkpoint", "read_record"]

_PREDICTING = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?): predicting \S+", re.MULTILINE)
# What a network keeps besides its parameters.
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of the training of one fold; None is not known.

    Attributes:
        epochs: that it was to have.
        iterations: per epoch.
        batch_size: samples per step; None under distributed training, where nnU-Net logs one GPU's.
        mirroring: axes, as "0, 1, 2", or "none".
        torch: version.
        host: name of the machine.
        card: GPU, or "cpu".
        seconds: time of each epoch, its last training if it was trained again.
        seconds_in_all: time of all epochs, those that were trained again included.
        allocated_mib: largest GPU memory of an epoch that tensors took.
        reserved_mib: largest GPU memory of an epoch that torch held.
        inference_seconds: per case of the validation, median.
        validated_early: whether the validation is older than the training's end.
        complete: whether the checkpoint of the training's end is there.
        problems: files that cannot be read, one sentence each, without the names of folders: reports travel.
    """

    epochs: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    mirroring: str | None = None
    torch: str | None = None
    host: str | None = None
    card: str | None = None
    seconds: tuple[float, ...] = ()
    seconds_in_all: float | None = None
    allocated_mib: float | None = None
    reserved_mib: float | None = None
    inference_seconds: float | None = None
    validated_early: bool = False
    complete: bool = False
    problems: tuple[str, ...] = field(default=())


def read_record(folder: Path) -> TrainingRecord:
    """Read what the folder of a fold says about its training."""
    problems: list[str] = []
    debug = _read_debug(folder / "debug.json", problems)
    epochs = _read_epochs(folder / "epochs.jsonl", problems)
    final, summary = folder / "checkpoint_final.pth", folder / "validation" / "summary.json"
    seconds = [record["seconds"] for record in {record["epoch"]: record for record in epochs}.values()]
    in_all = sum(record["seconds"] for record in epochs) if epochs else None
    if not epochs and final.is_file():
        try:
            seconds = _logged_seconds(read_checkpoint(final))
            in_all = sum(seconds) if seconds else None
        except UserError as error:
            problems.append(str(error))
    ddp = debug.get("is_ddp") == "True"
    cards = sorted({record["device"] for record in epochs}) or [
        debug.get("gpu_name") or str(debug.get("device", "")).partition(":")[0]
    ]
    return TrainingRecord(
        epochs=_whole(debug.get("num_epochs")),
        iterations=_whole(debug.get("num_iterations_per_epoch")),
        batch_size=None if ddp else _whole(debug.get("batch_size")),
        mirroring=_axes(debug.get("inference_allowed_mirroring_axes")),
        torch=debug.get("torch_version"),
        host=debug.get("hostname"),
        card=" and ".join(cards) or None,
        seconds=tuple(seconds),
        seconds_in_all=in_all,
        allocated_mib=_largest(epochs, "max_allocated_mib"),
        reserved_mib=_largest(epochs, "max_reserved_mib"),
        inference_seconds=_inference_seconds(folder),
        validated_early=_older(summary, final),
        complete=final.is_file(),
        problems=tuple(problems),
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net as plain data: tensors, numbers and text.

    Raises:
        UserError: if it is damaged, or holds objects that would have to be executed.
    """
    from nnunetv2_ext.io.checkpoints import load_plain

    try:
        # Memory-mapped, so that the tensors of a large network are not read for a few numbers.
        found = load_plain(path, mmap=True)
    except Exception as error:
        # torch raises a different type for each way in which a file can be damaged.
        raise UserError(
            f"{path.name} is not read: it is damaged, or holds more than numbers and text, and nothing of it is run."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path.name} is not a checkpoint of nnU-Net: what it would tell is left out.")
    return found


def count_parameters(checkpoint: Mapping[str, Any]) -> int | None:
    """Count the numbers in a checkpoint's weights, each once where modules share them; None without weights."""
    import torch

    weights = checkpoint.get("network_weights")
    if not isinstance(weights, dict):
        return None
    # nnU-Net's decoder holds the encoder, whose weights are therefore listed twice.
    distinct = {
        (tensor.data_ptr(), tensor.numel())
        for name, tensor in weights.items()
        if isinstance(tensor, torch.Tensor) and not name.endswith(_NO_PARAMETERS)
    }
    return sum(size for _, size in distinct) or None


def _logged_seconds(checkpoint: Mapping[str, Any]) -> list[float]:
    """Return the seconds of each epoch; the gaps between epochs of a resumed training are in none."""
    logging = checkpoint.get("logging")
    if not isinstance(logging, dict):
        return []
    starts, ends = (logging.get(f"epoch_{side}_timestamps") for side in ("start", "end"))
    if not isinstance(starts, list) or not isinstance(ends, list):
        return []
    return [float(end) - float(start) for start, end in zip(starts, ends, strict=False)]


def _read_debug(path: Path, problems: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in found.items() if isinstance(value, str)}
    except (OSError, ValueError, AttributeError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__}), so its settings are not known.")
        return {}


def _read_epochs(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    records, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            records.append({**record, "epoch": int(record["epoch"]), "seconds": float(record["seconds"]),
                            "device": str(record["device"])})  # fmt: skip
        except (ValueError, KeyError, TypeError):
            broken += 1
    if broken:
        problems.append(f"{path.name} has {broken} lines that cannot be read; they are left out of the times.")
    return records


def _largest(records: list[dict[str, Any]], key: str) -> float | None:
    found = [float(record[key]) for record in records if isinstance(record.get(key), (int, float))]
    return max(found, default=None)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _axes(text: str | None) -> str | None:
    if text is None:
        return None
    return ", ".join(re.findall(r"\d+", text)) or "none"


def _inference_seconds(folder: Path) -> float | None:
    """Return the median time from the start of one validation case to that of the next, of the newest log."""
    for log in sorted(folder.glob("training_log_*.txt"), key=lambda path: (path.stat().st_mtime, path.name))[::-1]:
        found = _PREDICTING.findall(log.read_text(encoding="utf-8", errors="replace"))
        starts = [datetime.fromisoformat(time) for time in found]
        steps = [(after - before).total_seconds() for before, after in pairwise(starts)]
        if steps:
            return median(steps)
    return None


def _older(summary: Path, final: Path) -> bool:
    return summary.is_file() and final.is_file() and summary.stat().st_mtime < final.stat().st_mtime
