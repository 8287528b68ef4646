"""Proved bounds on |dv| for every noise of a given size, one parameter at a time or several at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from poisonaudit.layers import has_forward_hooks
from poisonaudit.tracing import LayerTracer, needed_operations, overwritten
from poisonaudit.weight_noise.network import Network
from poisonaudit.weight_noise.rules import Error, Known, NoBound, Rule, rule_of

# Relative difference of the traced network's outputs beyond which it is another function.
_SAME = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True)
class Step:
    """One operation: which errors it takes, and how they go on."""

    node: fx.Node
    sources: tuple[fx.Node, ...]
    rule: Rule


@dataclass(frozen=True)
class Bounds:
    """How errors of the weights grow on the way to the outputs, at the given inputs.

    A clean value z and the perturbed one z' have `|z' - z| <= e`; e = 0 at the input. With noise of spectral norm at
    most r in a Linear layer,

        W' z' + b - (W z + b) = W' (z' - z) + eta z,  hence  e_out <= (|W|_2 + r) e + r |z|,

    with the *clean* z of this very input, biases and all, so that no bound on perturbed activations is needed. An
    activation of slope at most s makes it s e, a sum of branches adds their errors, and so on for every operation (see
    `rules`). For a chain with r_j = 0 apart from layer i this is `prod_(j>i) s_j |W_j|_2 * s_i r_i |z_(i-1)|`; for all
    layers at once it is

        sum_i prod_(j>i) s_j (|W_j|_2 + r_j) * s_i r_i |z_(i-1)|,

    which without biases is at most `(prod_j (|W_j|_2 + r_j) - prod_j |W_j|_2) |x|` for slopes up to 1, since then
    `|z_(i-1)| <= prod_(j<i) |W_j|_2 |x|` and the sum telescopes. Plain floating point, without rounding slack.

    Attributes:
        programs: per chunk of rows, their number and the operations in order.
        reason: why there is none at all, or "".
    """

    programs: tuple[tuple[int, tuple[Step, ...]], ...] = field(repr=False)
    reason: str = ""

    def at(self, radii: Mapping[str, float]) -> Tensor:
        """|dv| of every row for noise of spectral norm up to `radii` in the named parameters, 0 in others.

        Args:
            radii: by name; a bound on |eta|_2, for which |eta|_F serves.

        Returns:
            (batch,), float64.

        Raises:
            NoBound: with the reason.
        """
        if self.reason:
            raise NoBound(self.reason)
        return torch.cat([_run(rows, steps, radii) for rows, steps in self.programs])


def read_bounds(network: Network) -> Bounds:
    """Trace a network and prepare the bounds at its inputs.

    Args:
        network: to trace.

    Returns:
        The bounds; with a reason where the network cannot be traced, or the trace computes something else.
    """
    model, prefix = network.model, ""
    if LayerTracer().is_leaf_module(model, ""):
        model, prefix = nn.Sequential(model), "0."
    if any(map(has_forward_hooks, model.modules())):
        return Bounds((), "forward hooks may change what a layer computes")
    try:
        graph = LayerTracer().trace(model)
    except Exception as trouble:  # tracing runs the user's forward on proxies; anything can go wrong in it
        return Bounds((), f"the network cannot be traced ({' '.join(str(trouble).split())[:120]})")
    if (reason := overwritten(graph, model)) is not None:
        return Bounds((), reason)
    known = Known({id(value): name.removeprefix(prefix) for name, value in model.named_parameters()})
    alive = needed_operations(graph)
    programs = []
    with torch.no_grad():
        for rows in network.chunks():
            reader = _Reader(model, graph, alive, known)
            try:
                outputs = reader.run(network.x[rows].clone()).reshape(rows.stop - rows.start, -1)
            except NoBound as trouble:
                return Bounds((), str(trouble))
            except (RuntimeError, TypeError, ValueError, AttributeError) as trouble:
                told = " ".join(str(trouble).split())[:120]
                return Bounds((), f"the traced network cannot be run ({told})")
            wanted = network.outputs[rows]
            limit = _SAME.get(wanted.dtype, 1e-2) * float(wanted.abs().max())
            if outputs.shape != wanted.shape or bool(((outputs - wanted).abs() > limit).any()):
                return Bounds((), "the traced network computes something else")
            programs.append((len(outputs), tuple(reader.steps)))
    return Bounds(tuple(programs))


def bound_factors(network: Network, sizes: Mapping[str, float]) -> tuple[Tensor, dict[str, str]]:
    """Worst case of each perturbed parameter alone, per rho.

    Args:
        network: to bound.
        sizes: |W| by name: rho times it bounds |eta|_2.

    Returns:
        `(values, reasons)`: (parameters, batch), NaN where there is none; by name why.
    """
    bounds = read_bounds(network)
    found, reasons = [], {}
    for name in network.names:
        values, reason = alone(bounds, name, sizes[name], 1.0, len(network.x))
        # A parameter that several layers share also multiplies errors of its own making: not proportional to rho.
        if not reason and not torch.allclose(2.0 * values, alone(bounds, name, sizes[name], 2.0, len(network.x))[0]):
            values, reason = torch.full_like(values, torch.nan), "layers share it: the bound is not proportional to rho"
        found.append(values.to(network.outputs.device))
        if reason:
            reasons[name] = reason
    return torch.stack(found), reasons


def alone(bounds: Bounds, name: str, size: float, rho: float, rows: int) -> tuple[Tensor, str]:
    """The bound for one parameter at `rho`, NaN with the reason where there is none."""
    return together(bounds, {name: size}, rho, rows)


def together(bounds: Bounds, sizes: Mapping[str, float], rho: float, rows: int) -> tuple[Tensor, str]:
    """The bound for several parameters at once, NaN with the reason where there is none.

    Args:
        bounds: of the network.
        sizes: |W| by name.
        rho: noise norm per weight norm.
        rows: number of inputs.

    Returns:
        (rows,), float64, and the reason or "".
    """
    try:
        return bounds.at({name: rho * size for name, size in sizes.items()}), ""
    except NoBound as trouble:
        return torch.full((rows,), torch.nan, dtype=torch.float64), f"not available: {trouble}"


class _Reader(fx.Interpreter):
    """Runs the clean network and notes how each operation passes errors on."""

    def __init__(self, model: nn.Module, graph: fx.Graph, alive: set[fx.Node], known: Known) -> None:
        super().__init__(model, graph=graph)
        self.alive, self.known = alive, known
        self.steps: list[Step] = []

    def run_node(self, n: fx.Node) -> object:
        """Compute the value of an operation, and note its rule if the output depends on it."""
        if n.op == "output":
            given = n.args[0]
            if not isinstance(given, fx.Node):
                raise NoBound("its output is not one tensor")
            self.steps.append(Step(n, (given,), lambda errors, radii: errors[0]))
            return super().run_node(n)
        value = super().run_node(n)
        if n in self.alive:
            given_values = tuple(self.env.get(source) for source in n.all_input_nodes)
            self.steps.append(Step(n, tuple(n.all_input_nodes), rule_of(self, n, given_values, value, self.known)))
        return value


def _run(rows: int, steps: tuple[Step, ...], radii: Mapping[str, float]) -> Tensor:
    errors: dict[fx.Node, Error] = {}
    for step in steps:
        errors[step.node] = step.rule([errors.get(source) for source in step.sources], radii)
    last = errors[steps[-1].node]
    # Whatever the outputs depend on has a rule, or its rule refuses: without an error nothing perturbed gets here.
    none = torch.zeros(rows, dtype=torch.float64)
    return none if last is None else none.to(last.device) + last
