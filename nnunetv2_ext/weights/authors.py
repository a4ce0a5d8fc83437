"""Networks with weights that were trained with the authors' own code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nnunetv2_ext.catalog import AUTHORS_SYSTEMS
from nnunetv2_ext.weights.files import WeightsError

__all__ = ["AuthorsSystem", "find_system", "fit_tensors", "from_authors", "is_segmentation_layer"]

_MOST_NAMED = 8
# nnU-Net's loader skips the tensors with this in their name, so that a network can be tuned to other classes.
_SEGMENTATION_LAYERS = ".seg_layers."


def is_segmentation_layer(name: str) -> bool:
    """Return whether a tensor of one of this package's networks depends on the classes of a dataset."""
    return _SEGMENTATION_LAYERS in name


def _nothing_wrong(_network: nn.Module, _tensors: Mapping[str, Tensor]) -> str | None:
    return None


@dataclass(frozen=True)
class AuthorsSystem:
    """A reference implementation: how its settings and its tensors' names translate to a network of this package.

    A network that is built from a plan can differ from the authors' own, for example in its norms. The last four
    attributes say in what; they hold for `fit_planned` alone.

    Attributes:
        build: function from the system's settings, under the keys of the golden files, to the network.
        naming: function from a network to the function from its tensors' names to the authors'.
        segmentation_layers: pattern of the authors' names of layers that depend on the classes; None: there are none.
        ignored: pattern of the authors' names of tensors that no network needs: they follow from the settings, are
            never used, or are in the state dict under another name too.
        module: prefix that the authors' networks give a method that is a module; a checkpoint of the module
            alone has names without it.
        replaced: pattern of the authors' names of tensors that a network built from a plan may have no place for.
        added: pattern of this package's names of tensors that only a network built from a plan has.
        misfit: function from a network built from a plan and the authors' tensors to the reason why they cannot fit, if
            there is one that says more than the tensors' names.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    naming: Callable[[nn.Module], Callable[[str], str]]
    segmentation_layers: re.Pattern[str] | None = None
    ignored: re.Pattern[str] | None = None
    module: str = ""
    replaced: re.Pattern[str] | None = None
    added: re.Pattern[str] | None = None
    misfit: Callable[[nn.Module, Mapping[str, Tensor]], str | None] = _nothing_wrong

    def without_ignored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the tensors that no network needs."""
        return {name: tensor for name, tensor in tensors.items() if not _matches(self.ignored, name)}

    def holds_any(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether a checkpoint has any of the authors' names of a network's tensors."""
        authors_name = self.naming(network)
        return not self._under_module(tensors).keys().isdisjoint(map(authors_name, network.state_dict()))

    def _under_module(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        alone = not any(name.startswith(self.module) for name in tensors)
        return {self.module + name if alone else name: tensor for name, tensor in tensors.items()}

    def fit_planned(
        self, network: nn.Module, tensors: Mapping[str, Tensor], what: str
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Pick the tensors of a checkpoint that a network built from a plan takes.

        Args:
            network: built by a trainer.
            tensors: the authors' tensors by the authors' names.
            what: subject of the error's sentence.

        Returns:
            The tensors under the network's names, without those that start anew; and the authors' names, segmentation
            layers aside, of those that the network has no place for.

        Raises:
            WeightsError: if they do not fit; says why, or names the tensors.
        """
        given = self._under_module(self.without_ignored(tensors))
        reason = self.misfit(network, given)
        if reason is not None:
            raise WeightsError(f"{what} does not fit: {reason}.")
        authors_name, expected = self.naming(network), network.state_dict()
        known = {authors_name(name) for name in expected}
        left_out = [name for name in given if name not in known and _matches(self.replaced, name)]
        # A head that only one of the two networks has is no reason to refuse: nnU-Net does not load heads.
        heads = [name for name in given if name not in known and _matches(self.segmentation_layers, name)]
        fitting = fit_tensors(
            expected,
            {name: tensor for name, tensor in given.items() if name not in {*left_out, *heads}},
            authors_name,
            what,
            may_differ=lambda name: is_segmentation_layer(name) or _matches(self.added, name),
        )
        return fitting, [name for name in left_out if name not in heads]


def _matches(pattern: re.Pattern[str] | None, name: str) -> bool:
    return pattern is not None and pattern.search(name) is not None


def find_system(name: str) -> AuthorsSystem:
    """Find a reference system by its name, a key of `AUTHORS_SYSTEMS`.

    Raises:
        WeightsError: for an unknown system.
    """
    if name not in AUTHORS_SYSTEMS:
        raise WeightsError(f"There is no system {name!r}; known are {', '.join(sorted(AUTHORS_SYSTEMS))}.")
    return importlib.import_module(AUTHORS_SYSTEMS[name]).SYSTEM


def fit_tensors(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    given_name: Callable[[str], str],
    what: str,
    *,
    may_differ: Callable[[str], bool] = lambda name: False,
) -> dict[str, Tensor]:
    """Pick from `given` the tensors that a network expects, under the network's names.

    A 1-wide convolution that the network holds as a linear map (its shape is the given one without trailing ones) is
    reshaped. Counters of batch norm may be missing: they have no influence on the numbers.

    Args:
        expected: the network's state dict.
        given: tensors by the names of their source.
        given_name: function from a network's name to the source's.
        what: subject of the error's sentence.
        may_differ: function that says of a network's name whether it may be missing or of another shape; it is left out
            then.

    Raises:
        WeightsError: naming, as the source does, each tensor that is missing, left over or of another shape.
    """
    fitting: dict[str, Tensor] = {}
    problems = []
    left_over = dict(given)
    for name, tensor in expected.items():
        source = left_over.pop(given_name(name), None)
        if source is not None and not any(size != 1 for size in source.shape[tensor.ndim :]):
            source = source.reshape(source.shape[: tensor.ndim])
        if source is not None and source.shape == tensor.shape:
            fitting[name] = source
        elif may_differ(name):
            continue
        elif source is not None:
            problems.append(f"{given_name(name)} has shape {tuple(source.shape)} instead of {tuple(tensor.shape)}")
        elif name.endswith("num_batches_tracked"):
            fitting[name] = tensor
        else:
            problems.append(f"{given_name(name)} is missing")
    problems += [f"{name} has no place in the network" for name in left_over]
    if problems:
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise WeightsError(f"{what} does not fit: {'; '.join(problems[:_MOST_NAMED])}{more}.")
    return fitting


def from_authors(system: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build a network with the authors' settings and load the tensors of the authors' implementation into it.

    Args:
        system: name of the method's reference system, for example `peca_net`.
        config: the system's settings, with the keys of the golden files in `tests/golden`.
        state_dict: the authors' tensors by the authors' names.

    Returns:
        The network, in training mode as torch builds it; call `.eval()` to predict.

    Raises:
        WeightsError: for an unknown system, a missing setting, or a tensor that is missing, left over or of another
            shape; the message names it.
    """
    authors = find_system(system)
    try:
        network = authors.build(config)
    except KeyError as error:
        raise WeightsError(f"The configuration of {system!r} lacks the setting {error.args[0]!r}: add it.") from error
    tensors = fit_tensors(
        network.state_dict(),
        authors.without_ignored(state_dict),
        authors.naming(network),
        f"The checkpoint of {system!r}",
    )
    network.load_state_dict(tensors)
    return network
