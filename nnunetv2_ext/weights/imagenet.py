"""Weights that timm publishes for its ImageNet models, put into networks that hold such a model or follow one.

A network's module in `nnunetv2_ext/weights` says, as an `ImageNetWeights`, which timm model it is and which of its
tensors goes where. The weights come from a file in the folder that `nnUNet_ext_weights` names, or through timm's own
download. What has no place or no source is an error that names it, as for the authors' checkpoints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_ext.weights.files import WeightsError, read_checkpoint
from nnunetv2_ext.weights.words import group_names, list_some

__all__ = ["FOLDER_VARIABLE", "ImageNetReport", "ImageNetWeights", "Source", "load_imagenet_weights"]

FOLDER_VARIABLE = "nnUNet_ext_weights"
FILE_SUFFIXES = (".safetensors", ".pth", ".bin")


@dataclass(frozen=True)
class Source:
    """Where one tensor of a network comes from.

    Attributes:
        name: name of timm's tensor.
        rows: part of timm's tensor, along its first axis; for example the queries of a map to queries, keys and values.
        resize: function that gives a tensor of another shape, which it is asked for where the two differ.
    """

    name: str
    rows: slice = field(default_factory=lambda: slice(None))
    resize: Callable[[Tensor, torch.Size], Tensor] | None = None


@dataclass(frozen=True)
class ImageNetWeights:
    """Which published weights a network can start from, and where they go.

    Attributes:
        model: timm's name of the model with the tag of its weights, for example `swin_tiny_patch4_window7_224.ms_in1k`.
        source: function from the name of one of the network's tensors to its source; None for a tensor that has none.
        unused: pattern of timm's names that have no place in the network.
        arguments: arguments of `timm.create_model`, with which the tensors are asked for: timm fits its first
            convolution to `in_chans` and tables of positions to `img_size`.
    """

    model: str
    source: Callable[[str], Source | None]
    unused: re.Pattern[str] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageNetReport:
    """What was done to a network.

    Attributes:
        model: timm's name of the model.
        origin: where the weights came from.
        loaded: names of the network's tensors that were set.
        resized: those of them whose published shape is another one, with that shape.
        fresh: names of the network's tensors that stay as initialised.
        unused: names of timm's tensors that have no place in the network.
    """

    model: str
    origin: str
    loaded: tuple[str, ...]
    resized: Mapping[str, tuple[int, ...]]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Describe in sentences what was done, for a log."""
        lines = [
            f"ImageNet weights of the timm model {self.model}, from {self.origin}: {len(self.loaded)} tensors set, "
            f"{len(self.fresh)} as initialised, {len(self.unused)} of timm's without a place here."
        ]
        for what, names in (
            ("Resized", [f"{name} (from {shape})" for name, shape in self.resized.items()]),
            ("As initialised", group_names(self.fresh)),
            ("Without a place", self.unused),
        ):
            if names:
                lines.append(f"{what}: {list_some(names)}.")
        return lines


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        # safetensors has no error class of its own for each way in which a file can be damaged.
        raise WeightsError(
            f"{path} cannot be read as safetensors ({type(error).__name__}): it may be cut short; copy it again."
        ) from error


def published_tensors(model: str) -> tuple[dict[str, Tensor], str]:
    """Read the published weights of a timm model, by timm's names, without executing anything that a file holds.

    The folder that the variable `nnUNet_ext_weights` names is looked into first, for `<model>.safetensors`, `.pth` or
    `.bin`; then timm downloads them (or finds them among its earlier downloads).

    Returns:
        The tensors, and where they came from.

    Raises:
        WeightsError: if there is neither a file nor a download; says what to do.
    """
    names = [model + suffix for suffix in FILE_SUFFIXES]
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        for name in names:
            path = Path(folder) / name
            if path.is_file():
                return _read_file(path), str(path)
    import timm
    from timm import models

    if model not in timm.list_models(pretrained=True):
        raise WeightsError(f"timm publishes no weights {model!r}: choose a model that it has weights for.")
    try:
        published: Any = models.get_pretrained_cfg(model)
        return models.load_state_dict_from_hf(published.hf_hub_id, weights_only=True), "timm's download"
    except Exception as error:
        # The hub's client, and what it uses to reach the hub, raise many types; all mean that there are no weights.
        local = f"there is none of {', '.join(names)} in {folder}" if folder else f"{FOLDER_VARIABLE} is not set"
        raise WeightsError(
            f"The ImageNet weights of the timm model {model} could not be downloaded ({type(error).__name__}), and "
            f"{local}: give this machine access to the hub, or download the file elsewhere, name it {names[0]} and "
            f"export {FOLDER_VARIABLE}=/the/folder/it/is/in; the trainer without _pretrained starts without them."
        ) from error


def fitted_tensors(weights: ImageNetWeights, published: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Let timm put published weights into its model as `weights.arguments` build it, and give that model's tensors.

    Raises:
        WeightsError: if the weights are not that model's.
    """
    import timm

    try:
        model = timm.create_model(
            weights.model,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": dict(published)},
            **weights.arguments,
        )
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{origin} does not hold the weights of the timm model {weights.model} ({reason}): give the published file."
        ) from error
    return model.state_dict()


def load_imagenet_weights(network: nn.Module, weights: ImageNetWeights) -> ImageNetReport:
    """Set the tensors of a network that published weights have, on whatever device it is.

    Raises:
        WeightsError: if there are no weights to be had, or a tensor is missing, left over, or of a shape that cannot be
            brought to the network's; nothing has been set then.
    """
    published, origin = published_tensors(weights.model)
    given = fitted_tensors(weights, published, origin)
    values: dict[str, Tensor] = {}
    resized: dict[str, tuple[int, ...]] = {}
    problems, used, fresh = [], set(), []
    for name, tensor in network.state_dict().items():
        source = weights.source(name)
        if source is None:
            fresh.append(name)
            continue
        used.add(source.name)
        value = given.get(source.name)
        if value is None:
            problems.append(f"{source.name}, for {name}, is missing")
            continue
        value = value[source.rows] if value.ndim else value
        if value.shape != tensor.shape and source.resize is not None:
            resized[name] = tuple(value.shape)
            value = source.resize(value, tensor.shape)
        elif source.name in published and published[source.name].shape != given[source.name].shape:
            resized[name] = tuple(published[source.name].shape)
        if value.shape != tensor.shape:
            problems.append(f"{source.name} has shape {tuple(value.shape)}, and {name} {tuple(tensor.shape)}")
        values[name] = value
    left_over = [name for name in given if name not in used]
    problems += [
        f"{name} has no place in the network"
        for name in left_over
        if weights.unused is None or not weights.unused.search(name)
    ]
    if problems:
        raise WeightsError(f"The weights of the timm model {weights.model} do not fit: {list_some(problems)}.")
    network.load_state_dict(values, strict=False)
    return ImageNetReport(weights.model, origin, tuple(values), resized, tuple(fresh), tuple(left_over))
