"""Networks with weights that were trained with the authors' own code."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nnunetv2_ext.catalog import AUTHORS_SYSTEMS
from nnunetv2_ext.weights.files import WeightsError

__all__ = ["fit_tensors", "from_authors", "source_naming", "system_module", "without_ignored"]

_MOST_NAMED = 8


def system_module(system: str) -> Any:
    """Import the module that knows a system: its `build(config)` and `authors_name(name)`.

    A system of several networks has `naming(network)` in the place of `authors_name`, which it returns. Tensors whose
    names match its pattern `IGNORED`, if it has one, are not needed: they follow from the settings, are never used, or
    are in the state dict under another name too.

    Raises:
        WeightsError: for an unknown system.
    """
    if system not in AUTHORS_SYSTEMS:
        raise WeightsError(f"There is no system {system!r}; known are {', '.join(sorted(AUTHORS_SYSTEMS))}.")
    return importlib.import_module(AUTHORS_SYSTEMS[system])


def source_naming(module: Any, network: nn.Module) -> Callable[[str], str]:
    """Give the function from a network's names of tensors to the names of a system."""
    return module.naming(network) if hasattr(module, "naming") else module.authors_name


def without_ignored(module: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the tensors of a system that its networks do not need."""
    ignored = getattr(module, "IGNORED", None)
    return {name: tensor for name, tensor in tensors.items() if ignored is None or not ignored.search(name)}


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
        given_name: from a network's name to the source's.
        what: subject of the error's sentence.
        may_differ: says of a network's name whether it may be missing or of another shape; it is left out then.

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
    module = system_module(system)
    try:
        network = module.build(config)
    except KeyError as error:
        raise WeightsError(f"The configuration of {system!r} lacks the setting {error.args[0]!r}.") from error
    tensors = fit_tensors(
        network.state_dict(),
        without_ignored(module, state_dict),
        source_naming(module, network),
        f"The checkpoint of {system!r}",
    )
    network.load_state_dict(tensors)
    return network
