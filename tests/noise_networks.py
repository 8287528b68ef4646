"""Networks that the weight noise tests share, and dense references by automatic differentiation of single rows."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Residual(nn.Module):
    """A convolution with batch norm around which the input is added, and one with a stride."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.inner = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.activation = activation
        self.last = nn.Conv2d(3, 2, 2, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(self.first(x))
        z = z + self.activation(self.norm(self.inner(z)))
        return self.head(torch.flatten(self.last(z), 1))


class Tied(nn.Module):
    """One matrix used twice, once by a layer and once by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.shared(x))
        return self.head(torch.tanh(nn.functional.linear(z, self.shared.weight)))


class Attention(nn.Module):
    """Self-attention over three tokens: a matrix that no Linear layer applies, and a layer at several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.wide = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x + self.inner(x, x, x, need_weights=False)[0])
        return self.head(torch.relu(self.wide(z)).mean(1))


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights N(0, 1 / fan-in) in float64, batch norm with statistics of its own, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for value in model.parameters():
            fan = value[0].numel() if value.dim() > 1 else 4
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / fan**0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator, dtype=torch.float64))
                module.running_var.copy_(
                    0.5 + torch.rand(module.num_features, generator=generator, dtype=torch.float64)
                )
    return model


def mlp(widths: list[int], activation: nn.Module | None = None, seed: int = 0, bias: bool = True) -> nn.Sequential:
    activation = nn.Tanh() if activation is None else activation
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, bias=bias, dtype=torch.float64), copy.deepcopy(activation)]
    net = nn.Sequential(*layers[:-1]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / value.shape[-1] ** 0.5)
    return net


def convolutional(activation: nn.Module | None = None) -> nn.Sequential:
    """Strides, dilation, groups, pooling and batch norm on 2 x 7 x 7."""
    activation = nn.ReLU() if activation is None else activation
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), activation, nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 2, dilation=2, padding=1, groups=2, bias=False), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def rows(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zoo() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name -> model in eval mode and inputs it takes, float64."""
    return {
        "mlp": (mlp([5, 6, 4, 3], nn.ReLU()), rows(4, 5)),
        "mlp in place": (mlp([5, 6, 3], nn.ReLU(inplace=True)), rows(4, 5)),
        "linear": (drawn(nn.Linear(5, 3)), rows(4, 5)),
        "steep": (mlp([4, 5, 5, 2], nn.LeakyReLU(-1.3), seed=4), rows(3, 4)),
        "conv": (drawn(convolutional(), 1), rows(3, 2, 7, 7)),
        "conv in place": (drawn(convolutional(nn.ReLU(inplace=True)), 1), rows(3, 2, 7, 7)),
        "conv 1d": (
            drawn(nn.Sequential(nn.Conv1d(2, 3, 3, padding=2, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(12, 2)), 2),
            rows(3, 2, 6),
        ),
        "residual": (drawn(Residual(nn.ReLU()), 3), rows(3, 2, 4, 4)),
        "residual tanh": (drawn(Residual(nn.Tanh()), 5), rows(3, 2, 4, 4)),
        "max pool": (
            drawn(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(27, 3)), 6),
            rows(2, 2, 7, 7),
        ),
        "tokens": (drawn(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)), 7), rows(3, 3, 4)),
        "tied": (drawn(Tied(), 8), rows(3, 4)),
        "attention": (drawn(Attention(), 9), rows(3, 3, 4)),
    }


def dense_jacobian(model: nn.Module, name: str, row: Tensor) -> Tensor:
    """(c, numel) of one row: dv/dW without any of the shortcuts under test."""
    weight = dict(model.named_parameters())[name].detach()
    found: Tensor = torch.autograd.functional.jacobian(
        lambda value: functional_call(model, {name: value}, (row.clone(),))[0], weight
    )
    return found.reshape(found.shape[0], -1)
