import torch
from torch import nn

from unlabeled.ops.machine.layout import channels_last, network_channels_last


def test_images_and_clips_have_their_channels_innermost_and_other_tensors_stay() -> None:
    images, clips, rows = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 4, 4), torch.rand(2, 3)
    assert channels_last(images).stride() == (48, 1, 12, 3)
    assert channels_last(clips).stride() == (240, 1, 48, 12, 3)
    assert torch.equal(channels_last(clips), clips) and channels_last(rows) is rows


def test_a_network_may_have_kernels_of_both_kinds() -> None:
    network = nn.ModuleDict({"flat": nn.Conv2d(3, 4, 3), "deep": nn.Conv3d(3, 4, 3), "linear": nn.Linear(4, 2)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = list(network.parameters())
    assert network_channels_last(network) is network
    assert network["flat"].weight.stride(1) == network["deep"].weight.stride(1) == 1
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
