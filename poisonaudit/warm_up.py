"""Training in train mode before the fit: batch normalisation gets its statistics, dropout its share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poisonaudit.layers import changes_when_training

Progress = Callable[[str, float | None], None]

EPOCHS = 40
_BATCH, _RATE = 25, 1e-2
_STATISTICS_BATCH = 250


def needs_warm_up(module: nn.Module, *, fresh: bool) -> bool:
    """Whether the fit has to begin in train mode.

    Args:
        module: the model.
        fresh: whether its weights are drawn anew. Weights that are given were trained already, unless batch
            normalisation stands where it was made: no batch seen, means 0 and variances 1.

    Returns:
        True for models that compute something else while training.
    """
    layers = [layer for layer in module.modules() if changes_when_training(layer)]
    if fresh:
        return bool(layers)
    norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
    return any(_untouched(layer) for layer in norms)


def warm_up(
    module: nn.Module,
    loss_per_row: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    decay: float,
    *,
    seed: int,
    epochs: int = EPOCHS,
    progress: Progress | None = None,
) -> nn.Module:
    """Adam with a rising and falling rate in train mode, then batch normalisation frozen at the rows' statistics.

    The objective is the decayed mean loss that the fit in eval mode takes over.

    Args:
        module: the model; not changed.
        loss_per_row: `(outputs, y) -> (n,)`.
        x: all training inputs.
        y: their labels or targets.
        decay: weight of `|w|^2 / 2`.
        seed: of batches and dropout.
        epochs: passes over the rows.
        progress: called with a message and a fraction.

    Returns:
        A trained copy, in eval mode.
    """
    module = copy.deepcopy(module).requires_grad_(True).train()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.reset_running_stats()
    # Two rows at least: batch normalisation has no variance of one.
    batches = max(1, min(len(x) // 2, -(-len(x) // _BATCH)))
    optimiser = torch.optim.Adam(module.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for picked in order.tensor_split(batches):
                optimiser.zero_grad()
                weights = torch.cat([value.reshape(-1) for value in module.parameters()])
                loss = loss_per_row(module(x[picked]), y[picked]).mean() + 0.5 * decay * weights.dot(weights)
                loss.backward()
                optimiser.step()
                schedule.step()
            if progress is not None:
                progress(f"training: epoch {epoch + 1}", (epoch + 1) / epochs)
    _settle_statistics(module, x)
    return module.requires_grad_(False).eval()


def in_statistics_of(reference: nn.Module, module: nn.Module) -> nn.Module:
    """The same function with another model's batch statistics, gains and shifts taking up the difference.

    `g' (x - m') / s' + b' = g (x - m) / s + b` with `g = g' s / s'` and `b = b' + g' (m - m') / s'`, s the root of
    variance plus eps. So weights fitted from another start live in the same family of functions, and can be compared.

    Args:
        reference: gives the statistics.
        module: same architecture, in eval mode; not changed.

    Returns:
        The rewritten copy. Layers without gain and shift keep the reference's statistics as they are.
    """
    rewritten = copy.deepcopy(module)
    others = dict(reference.named_modules())
    with torch.no_grad():
        for name, layer in rewritten.named_modules():
            if not isinstance(layer, _BatchNorm) or layer.running_mean is None or layer.running_var is None:
                continue
            other = others[name]
            assert isinstance(other.running_mean, Tensor) and isinstance(other.running_var, Tensor)
            own, wanted = (layer.running_var + layer.eps).sqrt(), (other.running_var + layer.eps).sqrt()
            if layer.affine:
                layer.bias.add_(layer.weight * (other.running_mean - layer.running_mean) / own)
                layer.weight.mul_(wanted / own)
            layer.load_state_dict({**layer.state_dict(), **dict(other.named_buffers(recurse=False))})
    return rewritten


def _untouched(layer: _BatchNorm) -> bool:
    """Statistics as they were made."""
    mean, variance, seen = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if mean is None or variance is None or seen is None:
        return False
    return int(seen) == 0 and not bool(mean.any()) and bool((variance == 1).all())


@torch.no_grad()
def _settle_statistics(module: nn.Module, x: Tensor) -> None:
    """Plain averages of mean and variance over the rows, at the final weights."""
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    if not norms:
        return
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
    for picked in torch.arange(len(x), device=x.device).tensor_split(max(1, len(x) // _STATISTICS_BATCH)):
        module(x[picked])
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
