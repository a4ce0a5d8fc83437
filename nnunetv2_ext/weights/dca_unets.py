"""The authors' six U-Nets with and without DCA: their settings and the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nnunetv2_ext.architectures.unets.common import UShapedNetwork
from nnunetv2_ext.architectures.unets.double_unet import DoubleUNet
from nnunetv2_ext.architectures.unets.multi_res_unet import MultiResUNet
from nnunetv2_ext.architectures.unets.r2unet import R2UNet
from nnunetv2_ext.architectures.unets.resunet_pp import ResUNetPP
from nnunetv2_ext.architectures.unets.unet import UNet
from nnunetv2_ext.architectures.unets.vnet import VNet
from nnunetv2_ext.weights import dca
from nnunetv2_ext.weights.authors import AuthorsSystem

__all__ = ["SYSTEM", "build", "naming"]

NETWORKS: dict[str, type[UShapedNetwork]] = {
    "unet": UNet,
    "vnet": VNet,
    "r2unet": R2UNet,
    "resunetpp": ResUNetPP,
    "doubleunet": DoubleUNet,
    "multiresunet": MultiResUNet,
}
# Of squeeze and excitation in ResUNet++, whatever the width.
SQUEEZED_FEATURES = (4, 4, 8)
# Place of the first convolution of each of VGG19's stages in the list of its layers; every second one is an activation.
VGG_PLACES = (0, 5, 10, 19, 28)

# A rule is the beginning of a name of ours, where "#" stands for an index counted from 0, and the beginning of the
# authors' name as a function of these indices.
_Rule = tuple[str, Callable[..., str]]


def _unet(n_stages: int) -> list[_Rule]:
    return [
        (f"encoder.{n_stages - 1}.norm.", lambda: f"conv{n_stages}.conv2.norm."),
        ("encoder.#.norm.", lambda i: f"norm{i + 1}."),
        ("encoder.#.conv1.", lambda i: f"conv{i + 1}.conv1."),
        ("encoder.#.conv2.", lambda i: f"conv{i + 1}.conv2.conv."),
        ("decoder.levels.#.up.", lambda j: f"up{j + 1}.conv."),
        ("decoder.levels.#.conv", lambda j: f"upconv{j + 1}.conv"),
        ("decoder.seg_layers.0.", lambda: "out.conv."),
    ]


def _vnet(n_stages: int) -> list[_Rule]:
    inside = [
        ("down.", "down."),
        ("up.", "up."),
        ("up_out.0.", "bn_in."),
        ("up_out.1.", "prelu_in."),
        ("out.0.", "bn."),
        ("out.1.", "prelu."),
    ]
    return [
        ("encoder.0.conv.", lambda: "conv1.conv."),
        ("encoder.0.project.", lambda: "conv1.conv_skip."),
        # The last level's chain is a single convolution.
        (f"decoder.levels.{n_stages - 2}.convs.0.", lambda: f"up{n_stages - 1}.conv."),
        *(
            (f"{ours}.#.convs.#.{part}", lambda i, t, theirs=theirs, name=name: f"{theirs}{i + 1}.conv.{t}.{name}")
            for ours, theirs in (("encoder", "conv"), ("decoder.levels", "up"))
            for part, name in (
                ("conv.", "conv."),
                ("norm.", "bn."),
                ("activation.", "prelu."),
                ("weight", "conv.weight"),
                ("bias", "conv.bias"),
            )
        ),
        *(
            (f"{ours}.#.{part}", lambda i, theirs=theirs, name=name: f"{theirs}{i + 1}.{name}")
            for ours, theirs in (("encoder", "conv"), ("decoder.levels", "up"))
            for part, name in inside
        ),
        ("decoder.seg_layers.0.", lambda: "out."),
    ]


def _r2unet(n_stages: int) -> list[_Rule]:
    inside = [
        ("project.", "conv.conv."),
        ("project_out.0.", "norm_c."),
        ("first.conv.", "block.0.conv.conv."),
        ("first.norm.", "block.0.conv.norm."),
        ("second.", "block.1.conv.conv."),
        ("out.0.", "norm."),
    ]
    return [
        *(
            (f"{ours}.#.block.{part}", lambda i, first=first, name=name: f"rconv{first + i}.{name}")
            for ours, first in (("encoder", 1), ("decoder.levels", n_stages + 1))
            for part, name in inside
        ),
        ("decoder.levels.#.up.", lambda j: f"up{j + 1}.conv."),
        ("decoder.seg_layers.0.", lambda: "out."),
    ]


def _resunetpp(n_stages: int) -> list[_Rule]:
    block = [
        ("pre1.0.", "conv.0.bn."),
        ("conv1.", "conv.1."),
        ("pre2.0.", "conv.2.bn."),
        ("conv2.", "conv.3."),
        ("project.", "skip."),
    ]
    gate = [
        ("of_skip.0.", "norm1."),
        ("of_skip.2.", "conv_encoder.2."),
        ("of_decoder.0.", "norm2."),
        ("of_decoder.2.", "conv_decoder.2."),
        ("weigh.0.", "norm3."),
        ("weigh.2.", "conv_attn.2."),
    ]
    return [
        ("encoder.0.conv1.", lambda: "input_layer.0."),
        ("encoder.0.conv2.", lambda: "input_layer.1."),
        ("encoder.0.project.", lambda: "input_skip.0."),
        ("encoder.#.excitation.squeeze.", lambda i: f"squeeze_excite{i}.fc.0."),
        ("encoder.#.excitation.excite.", lambda i: f"squeeze_excite{i}.fc.2."),
        *((f"encoder.#.block.{part}", lambda i, name=name: f"residual_conv{i}.{name}") for part, name in block),
        ("bottom.branches.#.", lambda k: f"aspp_bridge.block{k + 1}."),
        ("bottom.merge.", lambda: "aspp_bridge.out."),
        *((f"decoder.levels.#.gate.{part}", lambda j, name=name: f"attn{j + 1}.{name}") for part, name in gate),
        *(
            (f"decoder.levels.#.block.{part}", lambda j, name=name: f"up_residual_conv{j + 1}.{name}")
            for part, name in block
        ),
        ("decoder.output.branches.#.", lambda k: f"aspp_out.block{k + 1}."),
        ("decoder.output.merge.", lambda: "aspp_out.out."),
        ("decoder.seg_layers.0.", lambda: "output_layer."),
    ]


def _doubleunet(n_stages: int) -> list[_Rule]:
    block = [
        ("conv1.", "conv1."),
        ("conv2.", "conv2.conv."),
        ("out.0.", "bn."),
        ("excitation.squeeze.", "se.fc.0."),
        ("excitation.excite.", "se.fc.2."),
    ]
    return [
        ("encoder.#.convs.#.", lambda i, t: f"vgg{i + 1}.{VGG_PLACES[i] + 2 * t}."),
        *(
            (f"{ours}.#.block.{part}", lambda i, theirs=theirs, name=name: f"{theirs}{i + 1}.{name}")
            for ours, theirs in (
                ("first_decoder", "decode"),
                ("second_encoder", "encode2_"),
                ("decoder.levels", "decode2_"),
            )
            for part, name in block
        ),
        ("mask.", lambda: "out1.0."),
        ("first_bottom.branches.#.", lambda k: f"aspp_1.block{k + 1}."),
        ("first_bottom.merge.", lambda: "aspp_1.out."),
        ("bottom.1.branches.#.", lambda k: f"aspp_2.block{k + 1}."),
        ("bottom.1.merge.", lambda: "aspp_2.out."),
        ("decoder.seg_layers.0.", lambda: "out."),
    ]


def _multiresunet(n_stages: int) -> list[_Rule]:
    return [
        *(
            rule
            for ours, first in (("encoder", 1), ("decoder.levels", n_stages + 1))
            for rule in (
                (f"{ours}.#.block.skip.", lambda i, first=first: f"mr{first + i}.skip."),
                (f"{ours}.#.block.convs.#.", lambda i, t, first=first: f"mr{first + i}.c{t + 1}."),
                (f"{ours}.#.block.norm.", lambda i, first=first: f"mr{first + i}.bn1."),
            )
        ),
        ("encoder.#.path.convs.#.", lambda i, t: f"respath{i + 1}.convs.{t}.conv."),
        ("encoder.#.path.projections.#.", lambda i, t: f"respath{i + 1}.skips.{t}.conv."),
        ("encoder.#.path.norms.#.", lambda i, t: f"respath{i + 1}.bns.{t}."),
        ("decoder.levels.#.up.", lambda j: f"up{j + 1}."),
        ("decoder.seg_layers.0.", lambda: "out."),
    ]


_RULES: dict[type[UShapedNetwork], Callable[[int], list[_Rule]]] = {
    UNet: _unet,
    VNet: _vnet,
    R2UNet: _r2unet,
    ResUNetPP: _resunetpp,
    DoubleUNet: _doubleunet,
    MultiResUNet: _multiresunet,
}


def naming(network: nn.Module) -> Callable[[str], str]:
    """Return the function from a name of a tensor of this network to the authors' name, which depends on the network.

    Raises:
        TypeError: for a network that is none of the six.
    """
    if not isinstance(network, UShapedNetwork):
        raise TypeError(f"{type(network).__name__} is none of the six U-Nets.")
    modules = {"dca.": dca.MODULE}
    if isinstance(network, DoubleUNet):
        modules = {"dca.": "DCA_vgg1.", "second_dca.": "DCA_vgg2.", "second_encoder_dca.": dca.MODULE}
    rules = [
        (re.compile(re.escape(ours).replace(r"\#", r"(\d+)")), theirs)
        for ours, theirs in _RULES[type(network)](len(network.features))
    ]

    def authors_name(name: str) -> str:
        for ours, theirs in modules.items():
            if name.startswith(ours):
                return theirs + dca.authors_name(name.removeprefix(ours))
        for pattern, beginning in rules:
            match = pattern.match(name)
            if match is not None:
                return beginning(*map(int, match.groups())) + name[match.end() :]
        return name

    return authors_name


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that an authors' configuration describes.

    Raises:
        ValueError: if `config["network"]` is none of the six.
        KeyError: if a setting is missing.
    """
    if config["network"] not in NETWORKS:
        raise ValueError(f"There is no network {config['network']!r}; there are {', '.join(NETWORKS)}.")
    network = NETWORKS[config["network"]]
    features = list(config["features_per_stage"])
    settings: dict[str, Any] = {}
    if network is ResUNetPP:
        settings["bridge_features"] = features.pop()
        settings["squeezed_features"] = SQUEEZED_FEATURES
    if config["dca"]:
        settings["token_grid"] = config["token_grid"]
        settings["dca_stages"] = len(config["channel_heads"])
        settings["dca_settings"] = {
            key: config[key]
            for key in ("n_blocks", "channel_attention", "spatial_attention", "channel_heads", "spatial_heads")
        }
    return network(
        config["input_channels"],
        config["num_classes"],
        patch_size=config["image_size"],
        features=features,
        dca=config["dca"],
        **settings,
    )


def _misfit(network: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the reason why no checkpoint of the authors' network fits a configuration, if there is one."""
    assert isinstance(network, UShapedNetwork)
    stages, own_stages = len(type(network).AUTHORS_FEATURES), len(network.features)
    theirs = f"the authors' {type(network).__name__} is 2D and has {stages} stages ({stages - 1} poolings)"
    if len(network.patch_size) != 2:
        return f"{theirs}, and this configuration is {len(network.patch_size)}D"
    if own_stages != stages:
        return f"{theirs}, and this configuration has {own_stages} stages"
    return dca.find_other_stages(network.dca_stages, tensors) if network.dca_stages else None


SYSTEM = AuthorsSystem(
    build=build,
    naming=naming,
    segmentation_layers=re.compile(r"^(out|output_layer)\."),
    # A gate of ResUNet++ holds each of its norms under two names.
    ignored=re.compile(r"^attn\d+\.conv_(encoder|decoder|attn)\.0\."),
    # Norms keep no statistics, activations have no slopes, and V-Net and MultiResUNet lack layers without influence.
    replaced=re.compile(rf"{dca.STATISTICS}|(^|\.)prelu(_in)?\.weight$|^conv1\.conv_skip\.|^respath\d+\.bns\."),
    # The norms of DoubleU-Net's first encoder.
    added=re.compile(r"^encoder\.\d+\.norms\."),
    misfit=_misfit,
)
