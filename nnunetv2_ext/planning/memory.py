"""Memory of a training step on a GPU, found without one.

The step (forward pass, loss, backward pass) runs once on tensors that hold no numbers, with the precisions and kernels
of CUDA (`cuda.py`), while a ledger adds up what is alive. The optimiser's part follows from the weights. What a GPU
takes beyond that is a constant or a share, each named below.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunetv2_ext.architectures.cost import move_off_meta
from nnunetv2_ext.planning.compiled import compile_on_paper, while_compiling
from nnunetv2_ext.planning.cuda import CudaSemantics, find_workspace
from nnunetv2_ext.trainers.recipes import Recipe

__all__ = ["COMPILED_ERROR", "ERROR", "GIBIBYTE", "StepMemory", "predict_step"]

GIBIBYTE = 2**30
MEBIBYTE = 2**20
# Bytes to which torch's allocator rounds up.
BLOCK = 512
# Workspace of cuBLAS, and the share of the peak by which predictions are raised, because too little is worse than too
# much; with both, the peaks that were measured lie within ERROR. docs/planning.md has the tables. Which operators the
# compiler fuses, and in which order it runs them, is not known, so a compiled step is raised by more.
CUBLAS_BYTES = 64 * MEBIBYTE
CAUTION = 0.02
COMPILED_CAUTION = 0.11
ERROR, COMPILED_ERROR = 0.1, 0.15
# What a process on a GPU takes beside torch's tensors: the CUDA context with its libraries, and the share of the peak
# that the allocator holds in pieces of unfit sizes. Both are assumed; neither was measured.
CONTEXT_BYTES = 512 * MEBIBYTE
FRAGMENTS = 0.05
# Copies of the weights that each optimiser keeps, and that it makes for the time of its step.
OPTIMIZER_STATES = {"SGD": 1, "Adam": 2, "AdamW": 2}
OPTIMIZER_COPIES = {"SGD": 1, "Adam": 1, "AdamW": 1}


@dataclass(frozen=True)
class StepMemory:
    """Predicted memory of a training step.

    Attributes:
        weights: bytes of the weights, buffers and the optimiser's states.
        peak: bytes that torch's tensors take at most, as `torch.cuda.max_memory_allocated` counts them.
    """

    weights: int
    peak: int

    @property
    def total(self) -> int:
        """Bytes of the GPU: the peak, what the allocator loses, and the CUDA context."""
        return _on_gpu(self.peak)

    @property
    def least(self) -> int:
        """Bytes of the GPU that the weights and the optimiser's states take, however small the patch is."""
        return _on_gpu(self.weights)


def _on_gpu(tensors: int) -> int:
    """Add what the allocator loses, and the CUDA context."""
    return round(tensors * (1 + FRAGMENTS)) + CONTEXT_BYTES


class Ledger(TorchDispatchMode):
    """Count the bytes of the distinct storages that are alive, each rounded up as torch's allocator does.

    Attributes:
        live: bytes at the moment.
        peak: most bytes so far, workspaces of the operators included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor, unless its storage is counted already, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = -(-storage.nbytes() // BLOCK) * BLOCK
        self.live += self._sizes[key]
        weakref.finalize(storage, self._free, key).atexit = False

    def forget(self, tensor: Tensor) -> None:
        """Leave a tensor out."""
        self._sizes.setdefault(tensor.untyped_storage()._cdata, 0)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        self.peak = max(self.peak, self.live + find_workspace(function, args, result))
        return result


def _build_loss(num_outputs: int, recipe: Recipe, regions: bool) -> nn.Module:
    """Build nnU-Net's loss; an ignore label, which costs a mask, is left out."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    loss: nn.Module
    if regions:
        loss = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return loss if num_outputs == 1 else DeepSupervisionWrapper(loss, recipe.output_weights(num_outputs))


def predict_step(
    build: Callable[[], nn.Module],
    *,
    input_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    batch_size: int,
    recipe: Recipe,
    regions: bool = False,
    mixed_precision: bool = True,
    compiled: bool = False,
) -> StepMemory:
    """Predict the memory of a training step of nnU-Net on a GPU.

    Args:
        build: makes the network; it is called under torch's meta device.
        input_channels: channels of the input.
        num_classes: channels of the logits.
        patch_size: voxels per axis.
        batch_size: samples per step.
        recipe: its optimiser and the weights of the outputs count.
        regions: whether the classes are regions that may overlap.
        mixed_precision: whether the step runs under autocast to float16, as nnU-Net's do.
        compiled: whether `torch.compile` compiles the network, which takes longer to find out; else its operators run
            one by one (`nnUNet_compile=f`).

    Raises:
        ValueError: if the network refuses the sizes.
    """
    with torch.device("meta"):
        network = build().train()
    for module in network.modules():
        # Window attention chooses by the device, and these tensors are not on the one that is meant.
        if getattr(module, "backend", "") is None:
            setattr(module, "backend", "fused")  # noqa: B010
    ledger, semantics = Ledger(), CudaSemantics(mixed_precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = move_off_meta(network)
        for tensor in (*network.parameters(), *network.buffers()):
            ledger.add(tensor)
        trainable = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
        ledger.live += trainable * OPTIMIZER_STATES[recipe.optimizer]
        weights = ledger.live
        x = torch.empty(batch_size, input_channels, *patch_size)
        ledger.add(x)

        def find_loss(outputs: Any) -> Tensor:
            logits = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            channels = num_classes if regions else 1
            targets = [torch.empty(batch_size, channels, *one.shape[2:]) for one in logits]
            loss = _build_loss(len(logits), recipe, regions)
            return loss(logits, targets) if len(logits) > 1 else loss(logits[0], targets[0])

        run = _run_compiled if compiled else _run_eagerly
        run(network, x, find_loss, ledger, semantics)
        del network, x
    in_optimizer = weights + trainable * (1 + OPTIMIZER_COPIES[recipe.optimizer])
    in_passes = ledger.peak * (1 + (COMPILED_CAUTION if compiled else CAUTION))
    return StepMemory(weights=weights, peak=round(max(in_passes, in_optimizer * (1 + CAUTION))) + CUBLAS_BYTES)


def _run_eagerly(
    network: nn.Module, x: Tensor, find_loss: Callable[[Any], Tensor], ledger: Ledger, semantics: CudaSemantics
) -> None:
    """Run a step with operators one by one. The logits stay until it ends, as in nnU-Net's."""
    with ledger, semantics:
        with semantics.forward_pass():
            outputs = network(x)
            loss = find_loss(outputs)
        _run_backward([loss])
        del outputs


def _run_compiled(
    network: nn.Module, x: Tensor, find_loss: Callable[[Any], Tensor], ledger: Ledger, semantics: CudaSemantics
) -> None:
    """Run a step with compiled passes of the network; the loss runs as it is.

    Each pass is charged at once: at most what it has alive, and from then on what is alive at its end.
    """

    def charge(course: Sequence[int]) -> None:
        ledger.peak = max(ledger.peak, ledger.live + max(course))
        ledger.live += course[-1]

    compiled = compile_on_paper(network, charge)
    with semantics:
        with semantics.forward_pass(), while_compiling():
            outputs = compiled(x)
        logits = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        inputs = [one.detach().requires_grad_() for one in logits]
        for one in logits:
            # They are charged with the forward pass.
            ledger.forget(one)
        with ledger:
            with semantics.forward_pass():
                loss = find_loss(inputs)
            _run_backward([loss])
        del loss
        pairs = [(one, copy.grad) for one, copy in zip(logits, inputs, strict=True) if copy.grad is not None]
        _run_backward([one for one, _ in pairs], [gradient for _, gradient in pairs])


def _run_backward(values: Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> None:
    """Run autograd's engine itself: `Tensor.backward` would switch off the modes that recomputed regions need."""
    engine: Any = torch.autograd.Variable._execution_engine
    given = tuple(torch.ones_like(value) for value in values) if gradients is None else tuple(gradients)
    engine.run_backward(tuple(values), given, False, False, (), allow_unreachable=True, accumulate_grad=True)
