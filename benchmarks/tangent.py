"""Closed form of tangent sensitivity against second derivatives, wide inputs against narrow ones, a whole data set."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from benchmarks.timing import interleave, ratios, write
from poisonaudit import tangent_sensitivity
from poisonaudit.tangent import tangent_mean, tangent_sensitivity_probes


def second_derivatives(model: nn.Module, x: Tensor) -> Tensor:
    """`|d^2 f / d theta d x|_F^2` of each row by nested reverse mode."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def output(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, weights, (row[None],))[0]

    def one(row: Tensor) -> Tensor:
        parts = jacrev(jacrev(output, argnums=1), argnums=0)(parameters, row)
        return sum((part.square().sum() for part in parts.values()), start=torch.zeros((), dtype=row.dtype))

    return vmap(one, chunk_size=4)(x)


def network(inputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Four hidden layers of 100 units and ten outputs, float64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(inputs, 100), activation()]
    for _ in range(3):
        layers += [nn.Linear(100, 100), activation()]
    return nn.Sequential(*layers, nn.Linear(100, 10)).double().eval()


def residual() -> nn.Module:
    """A small residual net on 8 x 8 images, without a closed form."""
    from poisonaudit.models import build_model

    return build_model("resnet20", input_shape=(1, 8, 8), outputs=10).eval()


def run() -> None:
    """Measure and store."""
    from sklearn.datasets import load_digits

    digits = torch.tensor(load_digits().data / 16.0)
    model, x = network(64), digits[:8]
    against = interleave(
        {
            "closed form": lambda: tangent_sensitivity(model, x),
            "second derivatives": lambda: second_derivatives(model, x),
        },
        repeats=3,
    )
    worst = float((tangent_sensitivity(model, x) / second_derivatives(model, x) - 1).abs().max())
    wide, pixels = network(3072), torch.rand(256, 3072, dtype=torch.float64)
    narrow = digits[:256]
    widths = interleave(
        {
            "inputs 64": lambda: tangent_sensitivity(model, narrow),
            "inputs 3072": lambda: tangent_sensitivity(wide, pixels),
        },
        repeats=7,
    )
    smooth, conv, images = network(64, nn.Tanh), residual(), digits[:32].reshape(-1, 1, 8, 8)
    whole = interleave(
        {
            "ReLU, closed form": lambda: tangent_mean(model, digits),
            "tanh, closed form": lambda: tangent_mean(smooth, digits[:100]),
            "resnet20, probes": lambda: tangent_sensitivity_probes(conv, images),
        },
        repeats=3,
    )
    write(
        "tangent",
        {
            "network": "64-100x4-10 ReLU, 8 rows, float64",
            "ratios": ratios(against, "closed form"),
            "largest_relative_difference": worst,
            "seconds": against,
            "input_width": {"rows": 256, "ratios": ratios(widths, "inputs 64"), "seconds": widths},
            "means": {
                "rows": {"ReLU, closed form": 1797, "tanh, closed form": 100, "resnet20, probes": 32},
                "median_seconds": {name: statistics.median(times) for name, times in whole.items()},
                "seconds": whole,
            },
        },
    )
