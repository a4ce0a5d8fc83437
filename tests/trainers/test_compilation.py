"""Compilation in parts: equal blocks once, with the numbers, names and statistics of the network as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.peca_net import PECANet
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.trainers.compilation import compile_parts


class Block(nn.Module):
    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(4), Block(4), Block(4), nn.Conv2d(4, 8, 1), Block(8), Block(8), Block(8, kernel=1))


def test_equal_blocks_are_compiled_once_and_give_the_same_numbers() -> None:
    torch._dynamo.reset()
    plain, compiled, graphs = make(), make(), []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compile_parts([block.forward for block in compiled if isinstance(block, Block)], backend=backend, fullgraph=True)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    for network in (plain, compiled):
        network(x).square().mean().backward()
    assert len(graphs) == 3
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(compiled.state_dict()[name], tensor), name
    for got, expected in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got.grad, expected.grad)
    assert torch.equal(compiled.eval()(x), plain.eval()(x))
    assert len(graphs) == 6


def small_peca_net() -> PECANet:
    return PECANet(
        1,
        3,
        patch_size=(16, 32, 32),
        stem_stride=(1, 2, 2),
        stage_strides=((2, 2, 2),),
        feature_size=8,
        depths=(2, 2),
        decoder_depth=2,
    )


def test_peca_net_compiles_the_blocks_of_a_resolution_once() -> None:
    torch._dynamo.reset()
    network, graphs = small_peca_net().train(), []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    parts = network.parts_to_compile()
    compile_parts(parts, backend=backend, fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.randn(2, 1, 16, 32, 32)).float().mean().backward()
    # Two resolutions, encoder and decoder alike, and two parts at full one.
    assert (len(graphs), len(parts)) == (4, 8)


def test_trainer_compiles_parts_in_the_place_of_the_whole() -> None:
    trainer = object.__new__(find_trainer("nnUNetTrainerPECANet"))
    network = small_peca_net()
    trainer.is_ddp, trainer.network, trainer.print_to_log_file = False, network, lambda *_: None
    trainer._compile_in_parts()
    assert "forward" not in vars(network.encoder.stages[0].blocks[0]), "compiled where nnU-Net does not compile"
    trainer.network = torch.compile(network)
    trainer._compile_in_parts()
    assert trainer.network is network
    assert "forward" in vars(network.encoder.stages[0].blocks[0])
