"""Synchronised norms in place of a network's own: all that they do is kept, and what cannot be kept is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from processes import run_processes
from timm.layers import BatchNormAct2d, DropBlock2d, EvoNorm2dB0, FrozenBatchNormAct2d, SplitBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from unlabeled.errors import UserError
from unlabeled.ops import batchnorm
from unlabeled.ops.batchnorm import convert, unsynchronised_buffers
from unlabeled.ops.distributed import sum_over_ranks
from unlabeled.ops.norms import statistics

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# fused norms, norms before activations, GroupNorm, none at all, LayerNorm, an activation that has parameters
NETWORKS = ("efficientnet_b0", "mobilenetv3_small_050", "regnety_002", "densenet121", "resnetv2_50", "ghostnet_050",
            "resnetv2_18d", "ese_vovnet19b_slim", "dpn48b", "nf_regnet_b0", "convnext_atto",
            "mobileone_s0")  # fmt: skip


def worn(network: nn.Module) -> nn.Module:
    """Give every norm a scale, shift and statistics of its own, as training does."""
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                if value is not None:
                    value.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_conversion_leaves_the_outputs_of_timms_networks_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    network = worn(timm.create_model(name, num_classes=0))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before, state = network(x), {key: value.clone() for key, value in network.state_dict().items()}
    for device in (CUDA, CPU):  # the second turns torch's synchronised norms into ours
        with torch.inference_mode():
            after = convert(network, device)(x)
        assert float((after - before).abs().max()) <= 1e-6 * float(before.abs().max())
        assert not unsynchronised_buffers(network)
        assert [m for m in network.modules() if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)] == []
        assert network.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def odd_norms() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return norms by what is odd in them, each with the shape of an image for it."""
    shared = nn.BatchNorm2d(4)
    without_shift = nn.BatchNorm1d(4)
    without_shift.register_parameter("bias", None)
    return {
        "rows": (nn.BatchNorm1d(4), (4,)),
        "sequences": (nn.BatchNorm1d(4), (4, 3)),
        "maps": (nn.BatchNorm2d(4), (4, 3, 3)),
        "volumes": (nn.BatchNorm3d(4), (4, 2, 2, 2)),
        "untracked": (nn.BatchNorm2d(4, track_running_stats=False), (4, 3, 3)),
        "cumulative": (nn.BatchNorm2d(4, momentum=None), (4, 3, 3)),
        "unscaled": (nn.BatchNorm2d(4, affine=False), (4, 3, 3)),
        "without shift": (without_shift, (4,)),
        "torch's own": (nn.SyncBatchNorm(4), (4, 3, 3)),
        "activation": (BatchNormAct2d(4, act_layer="silu"), (4, 3, 3)),
        "learned activation": (BatchNormAct2d(4, act_layer="prelu"), (4, 3, 3)),
        "no activation": (BatchNormAct2d(4, apply_act=False), (4, 3, 3)),
        "activation, untracked": (BatchNormAct2d(4, track_running_stats=False, affine=False), (4, 3, 3)),
        "dropout": (BatchNormAct2d(4, drop_layer=lambda: DropBlock2d(0.0)), (4, 3, 3)),
        "shared": (nn.Sequential(shared, nn.Conv2d(4, 4, 1), shared), (4, 3, 3)),
        "frozen": (nn.Sequential(FrozenBatchNorm2d(4), FrozenBatchNormAct2d(4)), (4, 3, 3)),
        "instances": (nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
    }


def images(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(10, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (x * 2 + 1).to(dtype)


def outcome(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Train two steps and return outputs, gradients and buffers; gradients are sums over all processes."""
    module(x)
    x = x.clone().requires_grad_()
    y = module(x)
    (y.double().sin() * torch.arange(y.shape[1], device=y.device).view(-1, *[1] * (y.dim() - 2))).sum().backward()
    grads = {f"grad {name}": sum_over_ranks(p.grad.clone()) for name, p in module.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **grads, **dict(module.named_buffers())}


def odd_on_rank(number: int, dtype: torch.dtype) -> dict[str, dict[str, object]]:
    torch.manual_seed(0)
    found = {}
    for name, (module, shape) in odd_norms().items():
        synchronised = convert(module.to(dtype), CPU)
        assert not unsynchronised_buffers(synchronised)
        part = outcome(synchronised, images(shape, dtype)[(0, 7)[number] : (7, 10)[number]])
        found[name] = {key: value.double().numpy() for key, value in part.items()}
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4),
                                                  (torch.bfloat16, 0.1)], ids=str)  # fmt: skip
def test_every_kind_over_two_processes_equals_one_process(dtype: torch.dtype, tolerance: float) -> None:
    parts = run_processes(2, odd_on_rank, dtype)
    torch.manual_seed(0)
    for name, (module, shape) in odd_norms().items():
        whole = outcome(module.to(dtype), images(shape, dtype))
        for key, value in whole.items():
            got = [torch.as_tensor(part[name][key]) for part in parts]
            both = torch.cat(got) if key in ("y", "dx") else got[0]
            scale = max(1.0, float(value.double().abs().max()))
            torch.testing.assert_close(both, value.double(), rtol=0, atol=tolerance * scale, msg=f"{name}: {key}")


def test_the_norm_stays_the_same_object() -> None:
    for device, kind in ((CPU, batchnorm.SyncBatchNorm), (CUDA, nn.SyncBatchNorm)):
        norm, calls = nn.BatchNorm2d(4), []
        norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert convert(norm, device) is norm and type(norm) is kind, "a norm that is the root is converted too"
        norm.eval()(torch.randn(2, 4, 3, 3))
        assert calls, "hooks are kept"


class Shifted(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def patched() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    norm.forward = lambda x: x
    return norm


@pytest.mark.parametrize(("norm", "kind"), [
    (Shifted(4), "Shifted"),
    (nn.LazyBatchNorm2d(), "LazyBatchNorm2d"),
    (SplitBatchNorm2d(4), "SplitBatchNorm2d"),
    (EvoNorm2dB0(4), "EvoNorm2dB0"),
    (nn.utils.parametrize.register_parametrization(nn.BatchNorm2d(4), "weight", nn.Softplus()),
     "ParametrizedBatchNorm2d"),
    (torch.jit.script(nn.BatchNorm2d(4)), "BatchNorm2d"),
    (torch.jit.script(EvoNorm2dB0(4)), "EvoNorm2dB0"),
    (patched(), "BatchNorm2d"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_what_has_no_synchronised_form_is_refused_by_name(norm: nn.Module, kind: str, device: torch.device) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), norm))
    with pytest.raises(UserError, match=f"norm '1.1', a {kind}, cannot be .*train.sync_bn=false") as caught:
        convert(network, device)
    assert "\n" not in str(caught.value)
    assert type(network[0]) is nn.BatchNorm2d, "nothing is changed"


def test_statistics_that_stay_apart_are_made_equal_and_restored() -> None:
    """InstanceNorm and EvoNorm keep running statistics too; frozen ones are constants."""
    tracked, evo = nn.InstanceNorm2d(4, track_running_stats=True), EvoNorm2dB0(4)
    network = nn.Sequential(tracked, evo, FrozenBatchNorm2d(4), nn.BatchNorm2d(4))
    batchnorm.convert(network[3], CPU)
    apart = [*tracked.buffers(), *evo.buffers()]
    assert [id(b) for b in unsynchronised_buffers(network)] == [id(b) for b in apart]
    assert [id(b) for b in statistics(network)] == [id(b) for b in [*apart, *network[3].buffers()]]
