"""What every network keeps, tested for each trainer of the catalog over the plans that nnU-Net makes."""

from __future__ import annotations

import importlib
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_ext.architectures.cost import move_off_meta
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.catalog import TRAINERS, TrainerEntry
from tests.plan_matrix import PLANS, Plan, distinct_strides

pytestmark = pytest.mark.usefixtures("narrow")

SMALLEST = {2: "E8", 3: "D4"}
# Voxels; larger patches take minutes on two cores, and differ from smaller ones in nothing but the number of poolings.
ODD_LIMIT = 2**17
FAST_LIMIT = 2**16


# Trainers that differ from another one in the weights that they start from build the same network.
ENTRIES = [entry for entry in TRAINERS if not entry.pretrained]


def trainer_class(entry: TrainerEntry) -> type:
    return getattr(importlib.import_module(entry.module), entry.name)


def family_of(entry: TrainerEntry) -> list[TrainerEntry]:
    """Return the trainers of one network, in the order of the catalog: the last one has what the others have."""
    network = trainer_class(entry).network_class
    return [other for other in ENTRIES if trainer_class(other).network_class is network]


def is_large(plan: Plan) -> bool:
    return math.prod(plan.small().patch_size) > FAST_LIMIT


def cases(plans: list[Plan], *, in_turns: bool = False) -> list:
    """Pair each trainer with each plan of a dimension that it serves; large plans make slow tests.

    Trainers of one network share the large plans among them, one after the other, or, `in_turns`, all plans.
    """
    families = [family_of(entry) for entry in ENTRIES]
    return [
        pytest.param(
            entry,
            plan,
            id=f"{entry.name.removeprefix('nnUNetTrainer')}-{plan.name}",
            marks=pytest.mark.slow if is_large(plan) else (),
        )
        for entry, family in zip(ENTRIES, families, strict=True)
        for number, plan in enumerate(plan for plan in plans if len(plan.patch_size) in entry.dims)
        if not (in_turns or is_large(plan)) or family[number % len(family)] is entry
    ]


def smallest_cases() -> list:
    return cases([plan for plan in PLANS if plan.name in SMALLEST.values()])


def compiles_for_training(entry: TrainerEntry, plan: Plan) -> bool:
    """Whether a trainer is the last of its family, and the plan of the largest dimension that it serves."""
    return family_of(entry)[-1] is entry and len(plan.patch_size) == max(entry.dims)


def compilation_cases() -> list:
    """Pair trainers with the smallest plans: of each network the last trainer for training, the first in 2D."""
    return [
        case
        for case in smallest_cases()
        if compiles_for_training(*case.values)
        or (family_of(case.values[0])[0] is case.values[0] and len(case.values[1].patch_size) == 2)
    ]


def as_list(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def expected_shapes(network: SegmentationNetwork, batch: int, classes: int) -> list[tuple[int, ...]]:
    return [
        (batch, classes, *(round(size / stride) for size, stride in zip(network.patch_size, strides, strict=True)))
        for strides in network.output_strides
    ]


@pytest.mark.slow
@pytest.mark.full_width
@pytest.mark.parametrize(("entry", "plan"), cases(list(PLANS), in_turns=True))
def test_every_plan_at_full_size(entry: TrainerEntry, plan: Plan) -> None:
    """Shapes at the real patch size, on tensors without memory."""
    with torch.device("meta"):
        network = trainer_class(entry).build_network(plan.geometry(), 2, 5)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = move_off_meta(network)
        outputs = as_list(network(torch.empty(1, 2, *plan.patch_size)))
    assert [tuple(output.shape) for output in outputs] == expected_shapes(network, 1, 5)
    assert network.output_strides[0] == (1,) * len(plan.patch_size)


@pytest.mark.parametrize(("entry", "plan"), cases(distinct_strides()))
def test_a_training_step_under_every_pattern_of_strides(entry: TrainerEntry, plan: Plan) -> None:
    """Finite loss, a finite gradient for every parameter, and the two dimensions that plans vary: channels, classes."""
    torch.manual_seed(0)
    channels, classes = ((1, 2), (2, 3), (4, 14))[sum(map(sum, plan.poolings)) % 3]
    network = trainer_class(entry).build_network(plan.small(), channels, classes).train()
    outputs = as_list(network(torch.randn(1, channels, *network.patch_size)))
    assert [tuple(output.shape) for output in outputs] == expected_shapes(network, 1, classes)
    loss = sum(nn.functional.cross_entropy(output, output.detach().argmin(1)) for output in outputs)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} takes no part in the training step"
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("entry", "plan"), cases([plan for plan in distinct_strides() if plan.odd_voxels() <= ODD_LIMIT], in_turns=True)
)
def test_odd_sizes_predict_each_sample_alone(entry: TrainerEntry, plan: Plan) -> None:
    """A bottom of 3 x 2 x 5 positions; a sample's logits do not depend on its neighbour in the batch."""
    torch.manual_seed(0)
    network = trainer_class(entry).build_network(plan.odd(), 1, 3, deep_supervision=False).eval().double()
    # Convolutions may add in another order for another batch size, and in float32 that is 2e-4 after 70 norms.
    x = torch.randn(2, 1, *network.patch_size, dtype=torch.float64)
    with torch.no_grad():
        together, alone = network(x), network(x[1:])
        assert torch.allclose(together[1:], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))
        assert not torch.allclose(together[:1], together[1:]), "the output does not depend on the input"
        assert together.is_contiguous()
        expected = together.clone()
        together += 1
        assert torch.equal(network(x), expected), "a second call differs, or the output is not a tensor of its own"


@pytest.mark.parametrize(("entry", "plan"), smallest_cases())
class TestAnyNetwork:
    """Properties that do not depend on the plan, at the smallest one of each dimension."""

    @staticmethod
    def build(entry: TrainerEntry, plan: Plan, **arguments) -> SegmentationNetwork:
        torch.manual_seed(0)
        return trainer_class(entry).build_network(plan.narrow(), 2, 3, **arguments)

    def test_deep_supervision_flag_leaves_the_parameters(self, entry: TrainerEntry, plan: Plan) -> None:
        on, off = self.build(entry, plan, deep_supervision=True), self.build(entry, plan, deep_supervision=False)
        assert on.state_dict().keys() == off.state_dict().keys()
        assert isinstance(off.eval()(torch.randn(1, 2, *off.patch_size)), Tensor)
        off.load_state_dict(on.state_dict())

    def test_switch_is_read_at_each_forward_pass(self, entry: TrainerEntry, plan: Plan) -> None:
        network = self.build(entry, plan, deep_supervision=True).eval()
        x = torch.randn(1, 2, *network.patch_size)
        outputs = network(x)
        network.decoder.deep_supervision = False
        assert torch.equal(network(x), as_list(outputs)[0])
        network.decoder.deep_supervision = True
        assert isinstance(network(x), Tensor if len(network.output_strides) == 1 else list)

    def test_frozen_where_the_flag_leaves_it_unused(self, entry: TrainerEntry, plan: Plan) -> None:
        network = self.build(entry, plan, deep_supervision=False).train()
        network(torch.randn(2, 2, *network.patch_size)).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)

    def test_heads_and_only_heads_depend_on_the_classes(self, entry: TrainerEntry, plan: Plan) -> None:
        few, many = (
            {
                name: tensor.shape
                for name, tensor in trainer_class(entry).build_network(plan.narrow(), 2, k).state_dict().items()
            }
            for k in (3, 7)
        )
        changed = {name for name in few if few[name] != many[name]}
        assert changed == {name for name in few if ".seg_layers." in name}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_finite(self, entry: TrainerEntry, plan: Plan, dtype: torch.dtype) -> None:
        network = self.build(entry, plan).train()
        # In bfloat16 oneDNN gives uninitialised memory as the gradient of a 3D kernel larger than its map (torch 2.13).
        with torch.backends.mkldnn.flags(enabled=dtype is not torch.bfloat16):
            with torch.autocast("cpu", dtype=dtype):
                outputs = as_list(network(10 * torch.randn(2, 2, *network.patch_size)))
            loss = sum(output.float().square().mean() for output in outputs)
            loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())

    def test_saves_and_loads(self, entry: TrainerEntry, plan: Plan, tmp_path) -> None:
        network = self.build(entry, plan).eval()
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        torch.manual_seed(1)
        other = trainer_class(entry).build_network(plan.narrow(), 2, 3).eval()
        other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
        x = torch.randn(1, 2, *network.patch_size)
        assert all(torch.equal(a, b) for a, b in zip(as_list(network(x)), as_list(other(x)), strict=True))
        assert type(pickle.loads(pickle.dumps(network))) is type(network)

    def test_weight_decay_exemptions_are_parameters(self, entry: TrainerEntry, plan: Plan) -> None:
        network = self.build(entry, plan)
        assert network.parameters_without_weight_decay() <= {name for name, _ in network.named_parameters()}

    def test_stages_are_described(self, entry: TrainerEntry, plan: Plan) -> None:
        rows = self.build(entry, plan).describe_stages()
        assert rows
        assert all({"stage", "grid", "channels"} <= row.keys() for row in rows)
        assert len({tuple(row) for row in rows}) == 1

    def test_recomputation_keeps_less(self, entry: TrainerEntry, plan: Plan, monkeypatch) -> None:
        """`nnUNet_ext_checkpointing=1` reaches the network, keeps less memory and gives the same numbers."""
        from nnunetv2_ext.architectures.cost import bytes_kept_for_backward

        kept, outputs = [], []
        for value in ("0", "1"):
            monkeypatch.setenv("nnUNet_ext_checkpointing", value)
            network = self.build(entry, plan).train()
            x = torch.randn(2, 2, *network.patch_size, generator=torch.Generator().manual_seed(0))
            kept.append(bytes_kept_for_backward(network, x))
            outputs.append(as_list(network.eval()(x)))
        assert kept[1] < kept[0]
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "plan"), compilation_cases())
def test_compiles_into_one_graph(entry: TrainerEntry, plan: Plan) -> None:
    """For training, gradients included, and for evaluation with the switch turned in between."""
    training = compiles_for_training(entry, plan)
    torch.manual_seed(0)
    network = trainer_class(entry).build_network(plan.narrow(), 2, 3).train(training)
    torch._dynamo.reset()
    x = torch.randn(2, 2, *network.patch_size)
    # A second graph, or a break between two, is an error of `fullgraph`.
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    outputs = as_list(compiled(x))
    if training:
        sum(output.sum() for output in outputs).backward()
    else:
        for got, expected in zip(outputs, as_list(network(x)), strict=True):
            assert torch.allclose(got, expected, atol=1e-4 * expected.abs().max().item())
        network.decoder.deep_supervision = False
        assert isinstance(compiled(x), Tensor)
