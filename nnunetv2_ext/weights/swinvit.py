"""Self-supervised weights of SwinUNETR's encoder, in the layout of MONAI's `model_swinvit.pt`.

Source: the names that MONAI 1.6.1 reads in `SwinUNETR.load_from`, and the file of release 0.8.1 of
Project-MONAI/MONAI-extra-test-data. The file has the encoder alone, and heads of its training, which are dropped;
docs/self_supervised_weights.md says which images it has seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from nnunetv2_ext.architectures.swin_unetr import MERGING_ORDERS, SwinUNETR
from nnunetv2_ext.weights.authors import fit_tensors
from nnunetv2_ext.weights.files import WeightsError, read_checkpoint
from nnunetv2_ext.weights.imagenet import FOLDER_VARIABLE
from nnunetv2_ext.weights.swin_unetr import authors_name
from nnunetv2_ext.weights.words import group_names, list_some

__all__ = ["FILE", "FittedEncoder", "fit_encoder", "holds_encoder_alone", "load_swinvit"]

FILE = "model_swinvit.pt"
_ENCODER = "swinViT."
_EMBEDDING = f"{_ENCODER}patch_embed.proj.weight"
# What distributed training and the class that holds encoder and heads put before the names.
_PREFIXES = re.compile(r"^(?:module\.)?(?:swinViT\.)?")
_PARTS = re.compile(r"^(?:patch_embed|layers\d+)\.")
_OF_A_WHOLE_NETWORK = re.compile(r"^(?:module\.)?(?:encoder|decoder|out)\d*\.")
_INDEX = ".relative_position_index"


@dataclass(frozen=True)
class FittedEncoder:
    """Weights of an encoder, fitted to a network.

    Attributes:
        tensors: under the network's names.
        resized: names of those of them whose shape in the file is another one, with that shape.
        fresh: names of the network's tensors that the file has nothing for.
        left_out: the file's names of tensors without a place: heads.
    """

    tensors: Mapping[str, Tensor]
    resized: Mapping[str, tuple[int, ...]]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]

    def sentences(self, origin: Path) -> list[str]:
        """Describe in a sentence what was done, for a log."""
        lines = [
            f"Self-supervised weights from {origin}: {len(self.tensors)} tensors set, {len(self.fresh)} as "
            f"initialised, {len(self.left_out)} of the file's without a place here."
        ]
        for what, names in (
            ("Resized", [f"{name} (from {shape})" for name, shape in self.resized.items()]),
            ("As initialised", group_names(self.fresh)),
            ("Without a place", self.left_out),
        ):
            if names:
                lines.append(f"{what}: {list_some(names)}.")
        return lines


def _authors_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Bring the encoder's tensors of a file under the names of a whole network; the rest are heads."""
    encoder, heads = {}, []
    for name, tensor in tensors.items():
        bare = _PREFIXES.sub("", name)
        if not _PARTS.match(bare):
            heads.append(name)
        elif not bare.endswith(_INDEX):  # it follows from the window
            encoder[_ENCODER + bare.replace(".mlp.fc", ".mlp.linear")] = tensor
    return encoder, heads


def holds_encoder_alone(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint has the encoder of MONAI's SwinUNETR and no decoder."""
    return _EMBEDDING in _authors_names(tensors)[0] and not any(map(_OF_A_WHOLE_NETWORK.match, tensors))


def fit_encoder(network: SwinUNETR, tensors: Mapping[str, Tensor], what: str) -> FittedEncoder:
    """Fit the tensors of an encoder-only checkpoint to a network.

    What depends on the plan is brought to the network's shape. Input channels are the file's in turn, scaled by their
    number against the network's; a single one is the file's sum. Where the network does not halve an axis that the
    file's halves, what the file has for both positions along it is added up (maps) or averaged (norms). Tables of
    position biases are interpolated linearly.

    Args:
        network: built from a plan.
        tensors: tensors of the checkpoint, by its names.
        what: subject of the error's sentence.

    Raises:
        WeightsError: if they are for another number of axes or feature size, or a tensor is missing, left over or of a
            shape that cannot be brought to the network's.
    """
    given, heads = _authors_names(tensors)
    embedding, expected = given[_EMBEDDING], network.state_dict()
    ours = expected["encoder.embedding.weight"]
    if embedding.ndim != ours.ndim:
        raise WeightsError(
            f"{what} does not fit: it is an encoder for {embedding.ndim - 2}D, and the network is one for "
            f"{ours.ndim - 2}D; choose a {embedding.ndim - 2}D configuration."
        )
    if embedding.shape[0] != ours.shape[0]:
        raise WeightsError(
            f"{what} does not fit: it is an encoder of feature size {embedding.shape[0]}, and the network has "
            f"{ours.shape[0]}; give weights of that feature size."
        )
    resized: dict[str, tuple[int, ...]] = {}
    stages: list[Any] = list(network.encoder.stages)
    encoder = {name: tensor for name, tensor in expected.items() if name.startswith("encoder.")}
    for name, tensor in encoder.items():
        source = given.get(authors_name(name))
        if source is None or source.shape == tensor.shape:
            continue
        if name == "encoder.embedding.weight":
            fitted = _fit_embedding(source, tensor.shape)
        elif name.endswith(".position.table"):
            fitted = _resize_table(source, tensor.shape, embedding.ndim - 2)
        elif ".merging." in name:
            fitted = _fold_merging(source, stages[int(name.split(".")[2])].merging.offsets)
        else:
            continue
        given[authors_name(name)] = fitted
        resized[name] = tuple(source.shape)
    fitting = fit_tensors(encoder, given, authors_name, what)
    return FittedEncoder(
        fitting, resized, tuple(name for name in expected if name not in fitting), tuple(sorted(heads))
    )


def _fit_embedding(weight: Tensor, shape: Size) -> Tensor:
    """Fit the strided convolution (F, channels, *kernel) to other channels and to axes that are not halved."""
    for axis in range(2, weight.ndim):
        if shape[axis] == 1:
            weight = weight.sum(axis, keepdim=True)
    theirs, ours = weight.shape[1], shape[1]
    if theirs == ours:
        return weight
    if ours == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(ours) % theirs] * (theirs / ours)


def _resize_table(table: Tensor, shape: Size, dims: int) -> Tensor:
    """Interpolate a table of position biases (offsets, heads), made for a window of equal sides, to another one."""
    sides = [round(rows ** (1 / dims)) for rows in (table.shape[0], shape[0])]
    if [side**dims for side in sides] != [table.shape[0], shape[0]]:
        return table
    mode = "bilinear" if dims == 2 else "trilinear"
    grid = table.T.reshape(1, -1, *(sides[0],) * dims)
    return F.interpolate(grid, size=(sides[1],) * dims, mode=mode, align_corners=False).flatten(2)[0].T


def _fold_merging(tensor: Tensor, offsets: Sequence[Sequence[int]]) -> Tensor:
    """Fit what belongs to a merging of 2 x 2 x 2 sub-grids, side by side on the last axis, to one of fewer axes."""
    theirs = MERGING_ORDERS["legacy"]
    if len(offsets[0]) != len(theirs[0]) or tensor.shape[-1] % len(theirs):
        return tensor
    halved = [any(offset[axis] for offset in offsets) for axis in range(len(theirs[0]))]
    seen = [tuple(position * kept for position, kept in zip(offset, halved, strict=True)) for offset in theirs]
    known = [tuple(offset) for offset in offsets]
    if not set(seen) <= set(known):
        return tensor
    target = torch.tensor([known.index(offset) for offset in seen])
    parts = tensor.unflatten(-1, (len(theirs), -1))
    folded = parts.new_zeros(*parts.shape[:-2], len(known), parts.shape[-1]).index_add(-2, target, parts)
    if tensor.ndim == 1:
        folded = folded / torch.bincount(target)[:, None]
    return folded.flatten(-2)


def load_swinvit(network: SwinUNETR) -> list[str]:
    """Set the encoder of a network from the file `model_swinvit.pt` in the folder that `nnUNet_ext_weights` names.

    Returns:
        What was set, in sentences for a log.

    Raises:
        WeightsError: if there is no such file, or it does not fit; nothing has been set then.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    path = Path(folder or "") / FILE
    if not folder or not path.is_file():
        where = f"there is no {FILE} in {folder}" if folder else f"{FOLDER_VARIABLE} is not set"
        raise WeightsError(
            f"The self-supervised weights of SwinUNETR cannot be loaded, because {where}: download {FILE} from release "
            "0.8.1 of github.com/Project-MONAI/MONAI-extra-test-data and export "
            f"{FOLDER_VARIABLE}=/the/folder/it/is/in; the trainer without _pretrained starts without it."
        )
    tensors = read_checkpoint(path)
    if not holds_encoder_alone(tensors):
        raise WeightsError(
            f"{path} does not hold the encoder of SwinUNETR alone: give the published file; a whole network is started "
            "from with nnUNetv2_ext import-weights."
        )
    fitted = fit_encoder(network, tensors, f"{path}")
    network.load_state_dict(dict(fitted.tensors), strict=False)
    return fitted.sentences(path)
