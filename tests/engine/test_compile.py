"""`train.compile`: what it compiles, and where there is no compiler."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from tiny import differing, snapshot, tiny_recipe, tiny_run

from unlabeled.augment import photometric
from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.maps import maps
from unlabeled.config.recipe import Backbone
from unlabeled.engine import launch
from unlabeled.ops.machine import compiler


@pytest.fixture(autouse=True)
def as_before():
    yield
    photometric.compile_operations(False)
    torch.compiler.set_stance("default")


def test_a_run_goes_on_without_it_and_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(launch, "compiler_problem", lambda device: "No working C++ compiler found")
    states = []
    for overrides in ([], ["train.compile=true"]):
        tiny = tiny_run(tiny_recipe("simclrv2", "colour", overrides))
        tiny.train(0, 2)
        states.append(snapshot(tiny))
    assert differing(*states) == []
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "train.compile: going on without it, torch.compile does not work here: No working C++ compiler found"
    ]


@pytest.fixture
def compiled(monkeypatch):
    """Compile into the traced operations alone, without a C++ compiler; the graphs so far."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=keep))
    monkeypatch.setattr(launch, "compiler_problem", lambda device: None)
    compiler._compiled.cache_clear()
    yield graphs
    compiler._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("method, variant", [("simclrv2", "memory"), ("pixpro", "plain")])
def test_backbones_and_their_momentum_copies_are_compiled(method, variant, compiled):
    states = []
    for overrides in ([], ["train.compile=true"]):
        assert not compiled
        tiny = tiny_run(tiny_recipe(method, variant, overrides))
        tiny.train(0, 2)
        states.append(snapshot(tiny))
    networks = [module for module in tiny.updater.method.modules() if module._compiled_call_impl is not None]
    assert len(networks) == 2
    assert len({id(parameter) for network in networks for parameter in network.parameters()}) == sum(
        len(list(network.parameters())) for network in networks
    )
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in networks[0].modules())
    traced = [sum(node.target is torch.conv2d for node in graph.graph.nodes) for graph in compiled]
    assert traced
    assert set(traced) == {convolutions}, "a network is one graph"
    assert differing(*states) == []


def test_a_copy_of_a_compiled_network_has_weights_of_its_own(compiled):
    network = build_backbone(Backbone(name="resnet18", width=0.125, stem="cifar")).eval()
    network.compile()
    x = torch.rand(2, 3, 32, 32)
    before = maps(network, x)[0]
    assert compiled
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.conv1.weight.zero_()
    assert not torch.equal(maps(other, x)[0], before)
    assert torch.equal(maps(network, x)[0], before)
