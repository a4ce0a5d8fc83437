"""What the six networks share: their constructor, the way from a plan to its arguments, and the frame of the forward
pass.

Paper: Ates, Mohan, Celik, "Dual Cross-Attention for Medical Image Segmentation" (arXiv 2303.17696), whose experiments
put DCA into these networks. They follow the authors' public implementation; docs/networks/dca.md has the sources and
every deviation.

Frame: encoder stages go down; each gives its output, its plain skip, and what DCA reads, which is the stage's last
convolution output before norm and activation. DCA takes those of the first stages and gives one map for each, of the
same shape; deeper skips stay plain. Decoder levels go up. The constructor's defaults make the authors' networks: batch
norm, ReLU, one output. `settings_from_plan` makes them in nnU-Net's terms.

Shape legend: B batch, F_i channels of stage i, *grid_i its positions per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunetv2_ext.architectures.dca import DCA, choose_token_stage
from nnunetv2_ext.architectures.geometry import Geometry, stage_grids
from nnunetv2_ext.architectures.layers import nd
from nnunetv2_ext.architectures.layers.recompute import checkpoint
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.unets.blocks import Layers

__all__ = ["Decoder", "UShapedNetwork", "scale_dilations"]

AUTHORS_PATCH = (224, 224)
AUTHORS_FEATURES = (32, 64, 128, 256, 512)
WIDTH_MULTIPLE = 8


def scale_dilations(dilations: Sequence[int], size: Sequence[int], authors_size: int) -> tuple[tuple[int, ...], ...]:
    """Scale dilations, per axis, from the map on which the authors use them to a map of another size.

    Unscaled, a dilation above the map's size would see nothing but padding.
    """
    return tuple(tuple(max(1, round(dilation * axis / authors_size)) for axis in size) for dilation in dilations)


class Decoder(nn.Module):
    """Decoder levels, deepest first, and the segmentation layers, highest resolution first.

    Args:
        levels: modules called with the feature from below and the skip of their resolution.
        output: what comes between the last level and its segmentation layer.
        widths: channels that the segmentation layers read, highest resolution first; as many as there are outputs.
        num_classes: channels of the logits.
        spatial_dims: 2 or 3.
        checkpointing: recompute the levels in the backward pass.
        deep_supervision: initial state of the switch.
    """

    def __init__(
        self,
        levels: Sequence[nn.Module],
        *,
        output: nn.Module | None = None,
        widths: Sequence[int],
        num_classes: int,
        spatial_dims: int,
        checkpointing: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.output = output if output is not None else nn.Identity()
        self.seg_layers = nn.ModuleList(nd.conv(spatial_dims)(width, num_classes, 1) for width in widths)
        self.checkpointing = checkpointing
        self.deep_supervision = deep_supervision
        if not deep_supervision:
            # Distributed training stops on a trainable parameter that takes no part in a step.
            self.seg_layers[1:].requires_grad_(False)

    def forward(self, x: Tensor, skips: Sequence[Tensor | tuple[Tensor, ...]]) -> Tensor | list[Tensor]:
        run = checkpoint if self.checkpointing else _run
        features = []
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = run(level, x, skip)
            features.append(x)
        features[-1] = run(self.output, x)
        if not self.deep_supervision or len(self.seg_layers) == 1:
            return self.seg_layers[0](features[-1])
        return [head(feature) for head, feature in zip(self.seg_layers, reversed(features), strict=True)]


def _run(function: Callable[..., Any], *inputs: Any) -> Any:
    return function(*inputs)


class UShapedNetwork(SegmentationNetwork):
    """Base of the six networks.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        patch_size: voxels per axis; from it follow the stages that DCA reads. Inputs of other sizes are accepted where
            the strides divide them.
        strides: per stage, the stride per axis that leads to it; the first is all ones. None: halve at each stage.
        kernel_sizes: per stage and axis, 1 or 3. None: 3.
        features: channels per stage; their number makes the number of stages.
        norm: `batch` or `instance`.
        activation: `relu`, `leaky_relu` or `prelu`. None: what the authors have.
        dca: put DCA on the skip connections.
        dca_stages: how many stages, from the highest resolution on, DCA reads. None: those down to the one whose number
            of positions is nearest to the paper's 784.
        token_grid: DCA's tokens per axis. None: the size of the deepest map that it reads.
        dca_settings: further arguments of `DCA`.
        unused_layers: build the layers too that the authors' code has and that cannot influence the output.
        auxiliary_heads: predict from every decoder level, for deep supervision.
        checkpointing: recompute stages in the backward pass: same numbers, less memory. Not with batch norm, whose
            running statistics would be updated twice.
        deep_supervision: initial state of `decoder.deep_supervision`. Heads that it leaves unused are frozen.

    Raises:
        ValueError: for sizes that do not fit together, in the constructor, and for an input that does not fit.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2, 3)
    dca: DCA
    AUTHORS_FEATURES: ClassVar[tuple[int, ...]] = AUTHORS_FEATURES
    AUTHORS_ACTIVATION: ClassVar[str] = "relu"
    # Of the plan's widths, in 3D: the plan fills a GPU with nnU-Net's network, and these keep more activations.
    WIDTH_SCALE_3D: ClassVar[float] = 0.5

    encoder: nn.ModuleList
    decoder: Decoder

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int] = AUTHORS_PATCH,
        strides: Sequence[Sequence[int]] | None = None,
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        features: Sequence[int] | None = None,
        norm: str = "batch",
        activation: str | None = None,
        dca: bool = True,
        dca_stages: int | None = None,
        token_grid: Sequence[int] | None = None,
        dca_settings: Mapping[str, Any] | None = None,
        unused_layers: bool = True,
        auxiliary_heads: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.input_channels = input_channels
        self.patch_size = tuple(patch_size)
        spatial_dims = len(self.patch_size)
        self.features = tuple(features or self.AUTHORS_FEATURES)
        n_stages = len(self.features)
        if strides is None:
            strides = [(2 ** bool(stage),) * spatial_dims for stage in range(n_stages)]
        self.strides = tuple(tuple(stride) for stride in strides)
        self.kernel_sizes = tuple(tuple(kernel) for kernel in kernel_sizes or ((3,) * spatial_dims,) * n_stages)
        if n_stages < 2 or not n_stages == len(self.strides) == len(self.kernel_sizes):
            raise ValueError(
                f"features {self.features}, strides {self.strides} and kernel sizes {self.kernel_sizes} need one entry "
                "for each stage, and two stages at least: plan a larger patch, or take a network that works with one."
            )
        if checkpointing and norm == "batch":
            raise ValueError(
                "With batch norm, checkpointing would update the running statistics twice a step: build the network "
                "with norm='instance', or without checkpointing."
            )
        self.grids = stage_grids(self.patch_size, self.strides)
        self.layers = Layers(spatial_dims, norm, activation or self.AUTHORS_ACTIVATION)
        self.checkpointing = checkpointing
        self.unused_layers = unused_layers
        skip_grids = self.grids[:-1]
        if dca_stages is None:
            dca_stages = choose_token_stage(skip_grids) + 1
        if not 1 <= dca_stages <= len(skip_grids):
            raise ValueError(f"dca_stages is {dca_stages}; this network has {len(skip_grids)} skip connections.")
        self.dca_stages = dca_stages if dca else 0
        # In V-Net too, the authors' DCA ends with ReLU.
        dca_activation = "relu" if self.layers.activation == "prelu" else self.layers.activation
        activation_class, activation_kwargs = Layers.ACTIVATIONS[dca_activation]
        self._dca_arguments = {
            "spatial_dims": spatial_dims,
            "token_grid": token_grid,
            "map_sizes": skip_grids[: self.dca_stages],
            "norm": self.layers.norm_class,
            "norm_kwargs": {"affine": True},
            "activation": activation_class,
            "activation_kwargs": activation_kwargs,
            "checkpointing": checkpointing,
            **(dca_settings or {}),
        }
        self._decoder_arguments: dict[str, Any] = {
            "num_classes": num_classes,
            "spatial_dims": spatial_dims,
            "checkpointing": checkpointing,
            "deep_supervision": deep_supervision,
        }
        n_outputs = n_stages - 1 if auxiliary_heads else 1
        self.bottom: nn.Module = nn.Identity()
        self.output_strides = tuple(
            tuple(size // positions for size, positions in zip(self.patch_size, grid, strict=True))
            for grid in skip_grids[:n_outputs]
        )

    def make_dca(self, channels: Sequence[int]) -> DCA:
        """Make the DCA module for the first of these maps, given by their channels, highest resolution first."""
        return DCA(channels=channels[: self.dca_stages], **self._dca_arguments)

    def make_decoder(
        self, levels: Sequence[nn.Module], widths: Sequence[int], *, output: nn.Module | None = None
    ) -> Decoder:
        """Make the decoder from its levels, deepest first, and the channels that its segmentation layers may read."""
        return Decoder(levels, output=output, widths=widths[: len(self.output_strides)], **self._decoder_arguments)

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        Patch size, strides and kernels are the plan's; so are norm and activation, which nnU-Net plans as instance norm
        and leaky ReLU. The widths are the plan's in 2D, and in 3D the plan's times the network's scale, rounded to a
        multiple of 8. Layers without influence on the output are left out: distributed training stops on them.
        """
        scale = cls.WIDTH_SCALE_3D if geometry.spatial_dims == 3 else 1
        features = geometry.features
        if scale != 1:
            features = tuple(max(1, round(scale * width / WIDTH_MULTIPLE)) * WIDTH_MULTIPLE for width in features)
        return {
            "patch_size": geometry.patch_size,
            "strides": geometry.strides,
            "kernel_sizes": geometry.kernel_sizes,
            "features": features,
            "norm": "instance",
            "activation": "leaky_relu",
            "unused_layers": False,
        }

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each stage."""
        return [
            {
                "stage": number,
                "stride": stride,
                "kernel": kernel,
                "grid": grid,
                "channels": channels,
                "DCA": "yes" if number <= self.dca_stages else "no",
            }
            for number, (stride, kernel, grid, channels) in enumerate(
                zip(self.strides, self.kernel_sizes, self.grids, self.features, strict=True), start=1
            )
        ]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, *size) to logits (B, num_classes, *size), or to a list of them."""
        self.check_input(x)
        x, skips = self.encode(x)
        return self.decoder(self.bottom(x), skips)

    def check_input(self, x: Tensor) -> None:
        """Raise unless the strides divide an input, and it has the right channels."""
        multiple = [size // positions for size, positions in zip(self.patch_size, self.grids[-1], strict=True)]
        size = tuple(x.shape[2:])
        if (
            x.shape[1] != self.input_channels
            or len(size) != len(multiple)
            or any(positions % stride for positions, stride in zip(size, multiple, strict=True))
        ):
            raise ValueError(
                f"This {type(self).__name__} takes {self.input_channels} channels and sizes that are multiples of "
                f"{tuple(multiple)}, and got {x.shape[1]} channels and size {size}: pad the image, or tile it."
            )

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder and DCA; give the deepest feature and the skips, highest resolution first."""
        x, plain, sources = self.run_stages(self.encoder, x)
        return x, self.attend(self.dca, sources, plain) if self.dca_stages else plain

    def run_stages(self, stages: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run stages that give output, plain skip and DCA's source; give the last output and lists of the other two."""
        plain, sources = [], []
        for stage in stages:
            x, skip, source = checkpoint(stage, x) if self.checkpointing else stage(x)
            plain.append(skip)
            sources.append(source)
        n_skips = len(self.features) - 1
        return x, plain[:n_skips], sources[:n_skips]

    def attend(self, dca: nn.Module, sources: Sequence[Tensor], plain: Sequence[Tensor]) -> list[Tensor]:
        """Put DCA's maps in the place of the first skips."""
        return [*dca(list(sources[: self.dca_stages])), *plain[self.dca_stages :]]
