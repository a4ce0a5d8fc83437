"""RecA's operator and window attention: the authors' numbers, and the definition written out slowly."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.cost import bytes_kept_for_backward
from nnunetv2_ext.architectures.layers import attention_backends
from nnunetv2_ext.architectures.layers.drop_path import DropPath
from nnunetv2_ext.architectures.layers.patch_merging import PatchMerging
from nnunetv2_ext.architectures.layers.window_attention import (
    WindowAttention,
    WindowLayout,
    WindowPositionBias,
    clip_window,
    position_rows,
)
from nnunetv2_ext.architectures.layers.window_stage import WindowBlock
from nnunetv2_ext.architectures.reca import recurrent_attention, run_blocks
from nnunetv2_ext.weights.authors import fit_tensors
from tests import golden_files


def authors_tensor(name: str) -> str:
    """Return the authors' name for a tensor of an attention or of a stage of window blocks."""
    for ours, theirs in (
        (r"mlp\.norm\.", "norm2."),
        (r"(blocks\.\d+)\.norm\.", r"\1.norm1."),
        (r"attention\.", "attn."),
        (r"position\.table", "relative_position_bias_table"),
        (r"fc(\d)", r"linear\1"),
        (r"^merging\.", "downsample."),
    ):
        name = re.sub(ours, theirs, name)
    return name


def load_authors(module: nn.Module, golden: dict) -> nn.Module:
    given = golden_files.make_state_dict(golden)
    given = {name: tensor for name, tensor in given.items() if not name.endswith("relative_position_index")}
    module.load_state_dict(fit_tensors(module.state_dict(), given, authors_tensor, golden["system"]))
    assert sum(parameter.numel() for parameter in module.parameters()) == golden["trainable_parameters"]
    return module.eval()


@pytest.mark.parametrize("name", golden_files.names("reca_3d_attention"))
def test_attention_gives_the_authors_numbers(name: str) -> None:
    """Tokens and outgoing state, with and without incoming state, mask and clipping, in 2D and 3D."""
    golden = golden_files.load(name)
    config = golden["config"]
    window = config["window"]
    mask = config["mask"] or {"size": [window[0] * config["windows"], *window[1:]], "shift": [0] * len(window)}
    attention = WindowAttention(
        config["dim"],
        config["num_heads"],
        WindowLayout(mask["size"], window, mask["shift"]),
        table_window=config["table_window"],
        position_index=config["position_index"],
    )
    load_authors(attention, golden)
    with torch.no_grad():
        outputs = attention(*golden_files.make_inputs(golden))
    assert golden_files.largest_error(golden, list(outputs)) <= 1e-5


class Stage(nn.Module):
    """A stage of the golden files: window blocks that are shifted in turns, and merging."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        grid = config["resolution"]
        window, shift = clip_window(grid, config["window_size"])
        self.reca = config["reca"]
        self.blocks = nn.ModuleList(
            WindowBlock(
                config["dim"],
                config["num_heads"],
                grid=grid,
                window=window,
                shift=shift if number % 2 else None,
                table_window=config["window_size"],
                position_index=config["position_index"],
            )
            for number in range(config["depth"])
        )
        legacy = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
        self.merging = PatchMerging(config["dim"], (2, 2, 2), legacy) if config["patch_merging"] else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.merging(run_blocks(self.blocks, x.movedim(1, -1), reca=self.reca)).movedim(-1, 1)


@pytest.mark.parametrize("name", golden_files.names("reca_3d_stage"))
def test_stage_gives_the_authors_numbers(name: str) -> None:
    """Blocks in a row: slots of the state, padding after the norm, shift, clipping, merging."""
    golden = golden_files.load(name)
    stage = load_authors(Stage(golden["config"]), golden)
    with torch.no_grad():
        outputs = [stage(*golden_files.make_inputs(golden))]
    assert golden_files.largest_error(golden, outputs) <= 1e-5


def test_state_is_the_sum_of_all_queries() -> None:
    """Before the scale; linear in what comes in; without a state it is self-attention, bit for bit."""
    torch.manual_seed(0)
    queries, key, value = torch.randn(3, 2, 4, 5, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)
    output, state = recurrent_attention(queries[0], key, value)
    assert torch.equal(state, queries[0])
    assert torch.equal(output, F.scaled_dot_product_attention(queries[0], key, value))
    assert torch.equal(output, recurrent_attention(queries[0], key, value, torch.zeros_like(state))[0])
    for query in queries[1:]:
        output, state = recurrent_attention(query, key, value, state)
    assert torch.allclose(state, queries.sum(0))
    assert torch.allclose(output, F.scaled_dot_product_attention(queries.sum(0), key, value))


def make_blocks(depth: int = 3, **changes) -> nn.ModuleList:
    """Build blocks in float64 with biases and norms that are not at rest."""
    torch.manual_seed(0)
    settings = {"grid": (5, 7), "window": (3, 4), **changes}
    blocks = nn.ModuleList(
        WindowBlock(8, 2, shift=tuple(size // 2 for size in settings["window"]) if number % 2 else None, **settings)
        for number in range(depth)
    ).double()
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=0.5)
    return blocks


def plain_and_reca(blocks: nn.ModuleList, x: Tensor) -> list[Tensor]:
    return [run_blocks(blocks, x, reca=reca) for reca in (False, True)]


def zero_projection(block: WindowBlock, part: int) -> None:
    """Set the projection of queries (0), keys (1) or values (2) to zero."""
    with torch.no_grad():
        for parameter in block.attention.qkv.parameters():
            parameter.unflatten(0, (3, -1))[part].zero_()


def test_when_plain_and_recurrent_blocks_agree() -> None:
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    plain, reca = plain_and_reca(make_blocks(1), x)
    assert torch.equal(plain, reca), "a run of one block is self-attention"
    plain, reca = plain_and_reca(make_blocks(), x)
    assert (plain - reca).abs().max() > 0.01 * plain.abs().max()
    blocks = make_blocks()
    for block in blocks:
        zero_projection(block, 1)
    plain, reca = plain_and_reca(blocks, x)
    assert torch.allclose(plain, reca), "without keys, scores do not depend on the query"


def test_later_blocks_attend_with_the_first_query() -> None:
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    blocks = make_blocks()
    states = []
    for block in blocks[1:]:
        zero_projection(block, 0)
    state = None
    for block in blocks:
        x, state = block(x, state)
        states.append(state)
    assert states[0].abs().max() > 0
    assert all(torch.equal(state, states[0]) for state in states[1:])


def test_nothing_is_remembered_between_calls_and_samples() -> None:
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    blocks = make_blocks()
    first = run_blocks(blocks, x, reca=True)
    assert torch.equal(run_blocks(blocks, x, reca=True), first)
    assert torch.allclose(run_blocks(blocks, x[1:], reca=True), first[1:])
    changed = run_blocks(blocks, torch.cat([x[:1] + 1, x[1:]]), reca=True)
    assert torch.allclose(changed[1:], first[1:])


def test_gradient_runs_through_all_earlier_queries() -> None:
    """Nothing is detached: the last attention's query gradient reaches the first block's query projection."""
    blocks = make_blocks(2)
    x = torch.randn(1, 5, 7, 8, dtype=torch.float64)
    _, first = blocks[0](x)
    # The map is cut off, so that the state is the only way back.
    output, _ = blocks[1](x, first)
    output.square().sum().backward()
    assert blocks[0].attention.qkv.weight.grad[:8].abs().max() > 0
    assert blocks[0].attention.proj.weight.grad is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputation_changes_no_number(checkpointing: bool) -> None:
    results = []
    for again in (False, checkpointing):
        blocks = make_blocks(drop_path=0.5).train()
        torch.manual_seed(1)
        x = torch.randn(4, 5, 7, 8, dtype=torch.float64, requires_grad=True)
        output = run_blocks(blocks, x, reca=True, checkpointing=again)
        output.square().sum().backward()
        results.append([output, x.grad, *(parameter.grad for parameter in blocks.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def visible(layout: WindowLayout, positions: list[tuple[int, ...]]) -> Tensor:
    """Find which of the tokens at these positions of the padded map may see each other, by the definition.

    Two tokens of one window may if no axis has a cut of the ring between them: the end of the map came together with
    its start by the roll.
    """
    table = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    for (i, one), (j, other) in itertools.product(enumerate(positions), repeat=2):
        seen = True
        for axis, (p, q) in enumerate(zip(one, other, strict=True)):
            shift, padded = layout.shift[axis], layout.padded[axis]
            if shift:
                # Positions before the shift were rolled behind those at the end.
                seen &= (p < shift) == (q < shift)
            if layout.mask_padding:
                seen &= (p >= layout.grid[axis]) == (q >= layout.grid[axis])
            assert 0 <= p < padded
        table[i, j] = seen
    return table


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [((9, 10), (4, 4), (2, 2)), ((5, 7), (5, 4), (0, 2)), ((6, 5, 7), (3, 5, 3), (1, 0, 1)), ((9, 5), (4, 4), (0, 0))],
)
def test_masks_are_their_definition(grid, window, shift, mask_padding) -> None:
    """Also where padding reaches from the last window into the one before, by the roll."""
    layout = WindowLayout(grid, window, shift, mask_padding=mask_padding)
    groups, labels = layout.groups(), layout.labels()
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(size) for size in layout.padded), indexing="ij"), -1)
    whole = WindowLayout(layout.padded, window, shift)
    tokens = whole.partition(coordinates.flatten(0, -2)[None]).view(*layout.counts, math.prod(window), -1)
    expected = [visible(layout, [tuple(token) for token in tokens[cell].tolist()]) for cell in cells_of(layout.counts)]
    if labels is None:
        assert all(table.all() for table in expected)
        return
    assert int(labels.max()) < groups.number_of_labels
    found = labels[:, :, None] == labels[:, None]
    for got, table in zip(found, expected, strict=True):
        assert torch.equal(got, table)
    # Windows of a group share one mask, and every window is in one group.
    found = found.unflatten(0, layout.counts)
    seen = torch.zeros(layout.counts)
    for ends in zip(*[iter(groups.ends)] * (2 * len(layout.counts)), strict=True):
        own = tuple(slice(*pair) for pair in zip(ends[::2], ends[1::2], strict=True))
        seen[own] += 1
        tables = found[own].flatten(0, -3)
        assert (tables == tables[:1]).all()
    assert (seen == 1).all()


def cells_of(counts: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, counts)))


def test_windows_hold_the_positions_that_the_shift_brings_there() -> None:
    layout = WindowLayout((5, 6), (2, 3), (1, 1))
    x = torch.arange(30.0).view(1, 30, 1) + 1
    windows = layout.partition(x).view(6, 6, 1)
    assert windows[0, :, 0].tolist() == [8, 9, 10, 14, 15, 16]
    # The last row of windows holds the padding (zeros) and the first row of the map.
    assert windows[5, :, 0].tolist() == [0, 0, 0, 5, 6, 1]
    assert torch.equal(layout.merge(windows), x)


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((6, 4), (2, 4), (0, 0)),
        ((6, 4), (6, 2), (0, 0)),
        ((6, 4), (6, 4), (1, 0)),
        ((6, 4), (3, 2), (1, 1)),
        ((5, 4), (2, 2), (1, 0)),
    ],
    ids=["slabs", "columns", "one-shifted", "shifted", "padded"],
)
def test_cutting_and_its_gradient_are_a_roll_and_a_cut(grid, window, shift) -> None:
    """Also where windows lie in memory as they are, and nothing is moved."""
    layout = WindowLayout(grid, window, shift)
    x = torch.randn(2, math.prod(grid), 3, dtype=torch.float64, requires_grad=True)
    tall, wide = (padded - positions for padded, positions in zip(layout.padded, grid, strict=True))
    rolled = F.pad(x.unflatten(1, grid), (0, 0, 0, wide, 0, tall)).roll([-size for size in shift], (1, 2))
    rows, columns = layout.counts
    expected = rolled.view(2, rows, window[0], columns, window[1], 3).transpose(2, 3).reshape(-1, 3)
    got = layout.partition(x)
    assert torch.equal(got, expected)
    change = torch.randn_like(got)
    assert torch.equal(*(torch.autograd.grad(one, x, change)[0] for one in (got, expected)))
    tokens = expected.detach().requires_grad_()
    assert torch.equal(layout.merge(tokens), x)
    change = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(layout.merge(tokens), tokens, change)
    assert torch.equal(gradient, layout.partition(change))


def test_position_rows() -> None:
    """One row for each offset; in the order of offsets; the two rules with a mistake are what they are."""
    rows = position_rows((3, 4), (5, 4), "exact")
    tokens = [(i, j) for i in range(3) for j in range(4)]
    for (a, one), (b, other) in itertools.product(enumerate(tokens), repeat=2):
        assert rows[a, b] == (one[0] - other[0] + 4) * 7 + one[1] - other[1] + 3
    # Clipped along the first axis, the first tokens of the full window are the clipped window's.
    assert torch.equal(position_rows((3, 4), (5, 4), "cropped"), rows)
    full = position_rows((4, 5), (4, 5), "exact")
    assert torch.equal(position_rows((4, 3), (4, 5), "cropped"), full[:12, :12])
    for size, used in ((3, 57), (4, 115), (6, 291)):
        rows = position_rows((size,) * 3, (size,) * 3, "nnformer")
        assert rows.unique().numel() == used
        assert rows[0, 1] == (size - 1) * (3 * size - 1 + 2 * size - 1 + 1) - 1
        assert rows[0, size**2] == (size - 2) * (3 * size - 1) + (size - 1) * (2 * size - 1 + 1)


@pytest.mark.parametrize(
    ("window", "rule", "words"),
    [((4, 4), "nnformer", "needs a 3D window of equal sides"), ((4, 4), "swin", "no position index 'swin'")],
)
def test_unknown_position_rules_are_refused(window: tuple[int, ...], rule: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        position_rows(window, window, rule)


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="10 channels must be divisible by the number of heads, 4"):
        WindowAttention(10, 4, WindowLayout((4, 4), (2, 2), (0, 0)))


@pytest.mark.parametrize("backend", ["operator", "fused", "plain"])
@pytest.mark.parametrize("at_a_time", [1, 2**22])
@pytest.mark.parametrize(
    "layout",
    [
        WindowLayout((5, 7, 6), (3, 4, 4), (1, 2, 2), mask_padding=True),
        WindowLayout((9, 8), (4, 4), (2, 2)),
        WindowLayout((8, 8), (4, 4), (0, 0)),
    ],
    ids=["3d", "2d", "unshifted"],
)
def test_attention_and_its_gradient_are_their_definition(
    layout: WindowLayout, at_a_time: int, backend: str, monkeypatch
) -> None:
    """In float64, window by window with the full table of scores; gradients by autograd."""
    monkeypatch.setitem(attention_backends.SCORES_AT_A_TIME, "cpu", at_a_time)
    monkeypatch.setattr(attention_backends, "FUSED_SCORES_AT_A_TIME", at_a_time)
    torch.manual_seed(0)
    heads, size, batch, tokens = 2, 4, 2, math.prod(layout.window)
    position = WindowPositionBias(heads, layout).double()
    nn.init.normal_(position.table)
    shape = (batch * math.prod(layout.counts), heads, tokens, size)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    masks = torch.zeros(1, tokens, tokens, dtype=torch.float64)
    if position.labels is not None:
        masks = (position.labels[:, :, None] != position.labels[:, None]) * -100.0
    query, key, value = inputs
    scores = query @ key.transpose(2, 3) / math.sqrt(size) + position.table[position.rows].t().unflatten(
        1, (tokens, tokens)
    )
    expected = (scores.unflatten(0, (batch, -1)) + masks[:, None]).flatten(0, 1).softmax(-1) @ value
    position.backend = backend
    got = position(*inputs)
    assert torch.allclose(got, expected, atol=1e-12)
    change = torch.randn_like(got)
    gradients = [torch.autograd.grad(output, [*inputs, position.table], change) for output in (got, expected)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_no_scores_are_kept_for_the_backward_pass() -> None:
    """Nor outputs of norms and activations: per token the input, qkv, the attention's output, and the MLP's two."""
    block = WindowBlock(8, 2, grid=(16, 16), window=(8, 8), shift=(4, 4)).train()
    tokens = 2 * 16 * 16
    kept = bytes_kept_for_backward(block, torch.randn(2, 16, 16, 8))
    values = tokens * 8 * (1 + 3 + 1 + 1 + 4)
    bias = 2 * 64 * 64
    assert kept <= 4 * (values + bias) + 1024
    assert 4 * tokens * 2 * 64 > 2 * 4 * bias, "a copy of the scores would have been seen"


def test_drop_path() -> None:
    """Whole samples, rescaled, in training only."""
    torch.manual_seed(0)
    drop = DropPath(0.2)
    x = torch.ones(10_000, 3, 2)
    dropped = drop(x)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(x))
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert drop.eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_state_of_a_dropped_branch_is_handed_on() -> None:
    block = make_blocks(1, drop_path=0.5)[0].train()
    x = torch.randn(64, 5, 7, 8, dtype=torch.float64)
    _, state = block(x)
    assert torch.equal(state, block.eval()(x)[1])


def test_clipping() -> None:
    assert clip_window((49, 7, 3), (7, 7, 7)) == ((7, 7, 3), (3, 0, 0))


def test_merging_takes_every_position_once() -> None:
    merging = PatchMerging(1, (1, 2, 2))
    assert merging.offsets == ((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))
    assert PatchMerging(3, (2, 2)).offsets == ((0, 0), (1, 0), (0, 1), (1, 1))
    assert merging(torch.randn(2, 3, 5, 4, 1)).shape == (2, 3, 3, 2, 2)
    merging.norm = merging.reduction = nn.Identity()
    x = torch.arange(12.0).view(1, 1, 3, 4, 1)
    # Zeros fill the odd axis.
    assert merging(x)[0, 0].tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]], [[8, 0, 9, 0], [10, 0, 11, 0]]]


def test_initial_position_table() -> None:
    torch.manual_seed(0)
    table = WindowPositionBias(8, WindowLayout((14, 14), (7, 7), (0, 0))).table
    assert table.shape == (169, 8)
    assert table.std().item() == pytest.approx(0.02, rel=0.1)
