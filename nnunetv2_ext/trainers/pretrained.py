"""Trainers that start from published weights, instead of from random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from nnunetv2_ext.weights.imagenet import ImageNetWeights, load_imagenet_weights
from nnunetv2_ext.weights.swinvit import load_swinvit

if TYPE_CHECKING:
    from nnunetv2_ext.trainers.base import nnUNetTrainerExt as Trainer
else:
    # A mixin: the trainer stands after it in the bases.
    Trainer = object

__all__ = ["ImageNetStartMixin", "PublishedStartMixin", "SelfSupervisedStartMixin"]


class PublishedStartMixin(Trainer):
    """Load published weights into the network when a training starts afresh; stands before the trainer in the bases.

    Afresh means that nnU-Net's `on_train_start` is what initialises the trainer. Where a training goes on (`--c`), is
    validated (`--val`) or starts from a file (`-pretrained_weights`), nnU-Net has initialised the trainer before, to
    put that checkpoint into its network, and no published weights are loaded or needed. Prediction builds the network
    without a trainer.

    Attributes:
        published: what kind of weights they are, in a word.
        narrow_settings: over the network's `narrow_settings`, the arguments that a published model cannot have so
            small.
    """

    published: ClassVar[str]
    narrow_settings: ClassVar[Mapping[str, Any]] = {}
    _starts_afresh: bool = False

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and note for `initialize` whether nothing was loaded before."""
        self._starts_afresh = not self.was_initialized
        if not self._starts_afresh:
            self.print_to_log_file(f"No {self.published} weights are loaded: the network has been given others before.")
        super().on_train_start()

    def initialize(self) -> None:
        """Initialise as the trainer does; then, at a fresh start, load the weights and log what was set.

        This is before any data are read. Every process of a distributed training loads the same weights.

        Raises:
            WeightsError: if there are no weights to be had; says what to do.
        """
        super().initialize()
        if not self._starts_afresh:
            return
        for sentence in self._load_published(self._plain_network()):
            self.print_to_log_file(sentence)

    def _load_published(self, network: Any) -> list[str]:
        """Set what the published weights have of a network, and return sentences for the log."""
        raise NotImplementedError


class ImageNetStartMixin(PublishedStartMixin):
    """Start from the ImageNet weights of a timm model.

    Attributes:
        imagenet_weights: function from a network to the published weights that it can start from.
    """

    published: ClassVar[str] = "ImageNet"
    imagenet_weights: ClassVar[Callable[[Any], ImageNetWeights]]

    def _load_published(self, network: Any) -> list[str]:
        return load_imagenet_weights(network, type(self).imagenet_weights(network)).sentences()


class SelfSupervisedStartMixin(PublishedStartMixin):
    """Start SwinUNETR's encoder from self-supervised weights, which the user downloads."""

    published: ClassVar[str] = "self-supervised"
    only_dims: ClassVar[tuple[int, ...]] = (3,)

    def _load_published(self, network: Any) -> list[str]:
        return load_swinvit(network)
