"""SGD, AdamP, AdamW: their update rules against slow ones, decay on every parameter, what cannot be combined."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from utils.optimizers import create_optimizer, without_decay_of_norms_and_biases


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(36, 4))


def gradients(network: nn.Module, steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(p.shape, generator=generator) for p in network.parameters()] for _ in range(steps)]


def trained(network: nn.Module, optimizer: torch.optim.Optimizer, grads: list[list[Tensor]]) -> list[Tensor]:
    for step_grads in grads:
        for parameter, grad in zip(network.parameters(), step_grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_sgd_equals_the_textbook(nesterov: bool, fused: bool) -> None:
    network = small_network()
    grads = gradients(network, 4)
    expected = [parameter.detach().clone() for parameter in network.parameters()]
    velocity = [torch.zeros_like(weight) for weight in expected]
    for step_grads in grads:
        for weight, v, raw in zip(expected, velocity, step_grads, strict=True):
            grad = raw + 0.01 * weight
            v.mul_(0.9).add_(grad)
            weight -= 0.1 * (grad + 0.9 * v if nesterov else v)
    optimizer = create_optimizer(network.parameters(), "sgd", 0.1, 0.9, nesterov, 0.01, fused)
    for found, weight in zip(trained(network, optimizer, grads), expected, strict=True):
        torch.testing.assert_close(found, weight)


@pytest.mark.parametrize("name", ["adamp", "adamw"])
def test_adam_with_decoupled_decay(name: str) -> None:
    """A slow AdamW says what must come out; AdamP never projects one-dimensional parameters (biases, norms)."""
    bias = nn.Parameter(torch.tensor([0.5, -2.0, 3.0]))
    weight, first, second = bias.detach().clone(), torch.zeros(3), torch.zeros(3)
    optimizer = create_optimizer([bias], name, 0.01, 0.8, True, 0.1, False)
    for step, grad in enumerate(torch.randn(5, 3, generator=torch.Generator().manual_seed(2)), start=1):
        first = 0.8 * first + 0.2 * grad
        second = 0.999 * second + 0.001 * grad**2
        denominator = second.sqrt() / math.sqrt(1 - 0.999**step) + 1e-8
        weight = weight * (1 - 0.01 * 0.1) - 0.01 / (1 - 0.8**step) * first / denominator
        bias.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(bias.detach(), weight)


def test_adamp_of_a_gpu_projects_as_that_of_a_cpu() -> None:
    """Gradients at right angles to each row of a weight, to the whole weight only, and to neither."""
    weight, other = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    norms, along = (values.sum((1, 2, 3)).view(4, 1, 1, 1) for values in (weight.square(), other * weight))
    to_rows, to_whole = other - weight * along / norms, weight / norms * torch.tensor([1, -1, 1, -1]).view(4, 1, 1, 1)
    for grad, decay in ((to_rows, 0.1), (to_whole, 0.1), (weight, 1.0)):
        found = []
        for on_gpu in (False, True):
            optimizer: Any = create_optimizer([nn.Parameter(weight.clone())], "adamp", 0.01, 0.9, False, 0.1, False)
            project = optimizer._selected_projection if on_gpu else optimizer._projection
            assert float(project(weight, grad, other.clone(), 0.1, 0.1, 1e-8)[1]) == pytest.approx(decay)
            optimizer._projection = project
            parameter = optimizer.param_groups[0]["params"][0]
            for _ in range(2):
                parameter.grad = grad.clone()
                optimizer.step()
            found.append(parameter.detach())
        assert torch.equal(*found)


@pytest.mark.parametrize("name", ["sgd", "adamp", "adamw"])
def test_the_order_in_memory_changes_nothing(name: str) -> None:
    """Networks are trained with channels last, as GPUs like it."""
    first, second = small_network(), small_network()
    second.to(memory_format=torch.channels_last)
    grads = gradients(first, 4)
    expected, found = (
        trained(network, create_optimizer(network.parameters(), name, 0.1, 0.9, False, 0.01, False), grads)
        for network in (first, second)
    )
    assert not found[0].is_contiguous()
    for weight, other in zip(expected, found, strict=True):
        torch.testing.assert_close(weight, other)


@pytest.mark.parametrize("name", ["sgd", "adamp", "adamw"])
def test_decay_shrinks_every_parameter(name: str) -> None:
    network = small_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    optimizer = create_optimizer(network.parameters(), name, 0.1, 0.9, False, 0.5, False)
    still = [[torch.zeros_like(parameter) for parameter in network.parameters()]]
    assert all(bool((weight < 1).all()) for weight in trained(network, optimizer, still))
    assert len(optimizer.param_groups) == 1


def test_norms_biases_and_what_the_network_exempts_do_not_decay() -> None:
    network = timm.create_model("test_vit")
    groups = without_decay_of_norms_and_biases(network, 0.5)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in network.named_parameters()}
    assert found["pos_embed"] == found["blocks.0.norm1.weight"] == found["head.bias"] == 0
    assert found["blocks.0.attn.qkv.weight"] == found["head.weight"] == found["patch_embed.proj.weight"] == 0.5
    optimizer = create_optimizer(groups, "sgd", 0.1, 0.9, True, 0.5, fused=True)
    assert all(optimizer.state[p]["momentum_buffer"].eq(0).all() for p in network.parameters())


def test_nesterov_without_momentum_and_unknown_names_are_refused() -> None:
    for name, momentum, match in (("sgd", 0.0, "[Nn]esterov"), ("adam", 0.9, "sgd, adamp or adamw, not 'adam'")):
        with pytest.raises(ValueError, match=match):
            create_optimizer([nn.Parameter(torch.ones(1))], name, 0.1, momentum, True, 0.0, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fused_sgd_on_cuda_equals_the_plain_one() -> None:
    network, plain = small_network(), small_network()
    grads = gradients(network, 3)
    network.cuda()
    fused = create_optimizer(network.parameters(), "sgd", 0.1, 0.9, True, 0.01, True)
    slow = create_optimizer(plain.parameters(), "sgd", 0.1, 0.9, True, 0.01, False)
    found = trained(network, fused, [[g.cuda() for g in step] for step in grads])
    for weight, expected in zip(found, trained(plain, slow, grads), strict=True):
        torch.testing.assert_close(weight.cpu(), expected)


def test_fused_sgd_starts_clean_after_a_skipped_first_update() -> None:
    results = []
    for fused in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 1000))
        optimizer = create_optimizer([weight], "sgd", 0.1, 0.9, True, 1e-4, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for gradient in (float("inf"), 1.0, float("nan"), -2.0, 0.5):
            scaler.scale(torch.zeros(()))
            weight.grad = torch.full_like(weight, gradient * scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        results.append(weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
