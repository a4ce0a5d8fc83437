"""Golden files: make their weights and inputs again, compare outputs (tests/golden/README.md has the format)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, Any]:
    """Read one golden file."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def names(prefix: str) -> list[str]:
    """Name the golden files that start with `prefix`."""
    return sorted(path.stem for path in FOLDER.glob(f"{prefix}*.json"))


def make_state_dict(golden: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Make the authors' tensors from the file's seed."""
    random = np.random.RandomState(golden["seed"])
    tensors: dict[str, torch.Tensor] = {}
    for entry in golden["state_dict"]:
        fill, shape = entry["fill"], tuple(entry["shape"])
        if fill.startswith("alias:"):
            tensors[entry["name"]] = tensors[fill.removeprefix("alias:")]
        elif fill == "kept":
            tensors[entry["name"]] = torch.zeros(shape, dtype=getattr(torch, entry["dtype"]))
        else:
            z = random.standard_normal(shape or (1,)).reshape(shape)
            fan_in = max(1, math.prod(shape[1:]))
            values = {
                "z/sqrt(fan_in)": lambda z=z, fan_in=fan_in: z / math.sqrt(fan_in),
                "1+0.1z": lambda z=z: 1 + 0.1 * z,
                "0.1z": lambda z=z: 0.1 * z,
                "1+0.1|z|": lambda z=z: 1 + 0.1 * np.abs(z),
            }[fill]()
            tensors[entry["name"]] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return tensors


def make_inputs(golden: dict[str, Any]) -> list[torch.Tensor]:
    """Make the inputs from their seeds."""
    return [
        torch.from_numpy(np.random.RandomState(entry["seed"]).standard_normal(tuple(entry["shape"])).astype(np.float32))
        for entry in golden["inputs"]
    ]


def largest_error(golden: dict[str, Any], outputs: list[torch.Tensor]) -> float:
    """Return the largest error at the stored positions, relative to each output's largest absolute value."""
    assert [list(output.shape) for output in outputs] == [entry["shape"] for entry in golden["outputs"]]
    errors = []
    for output, entry in zip(outputs, golden["outputs"], strict=True):
        got = output.detach().double().flatten()[torch.tensor(entry["index"])]
        errors.append(float((got - torch.tensor(entry["value"], dtype=torch.float64)).abs().max()) / entry["absmax"])
    return max(errors)
