"""What a network must be before it is read as a graph, and after: refusals in one line."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from poisonaudit.errors import InputRefused
from poisonaudit.layers import has_forward_hooks
from poisonaudit.lipschitz.graph import Graph
from poisonaudit.lipschitz.pieces import layout_of

REFUSED = "PA130"
# Room for rounding, relative to how much the outputs of rows differ: a large bias hides nothing. What is looked for are
# other functions. Accelerators may multiply single precision numbers with ten bits.
_ROOM = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# And in units of rounding of the largest output, to which what differs was added.
_ROUNDINGS = 32
_ROOM_ELSEWHERE = 1e-2
# Of the same rows, asked twice.
_AGAIN = 1e-6


def refuse_hooks(model: nn.Module) -> None:
    """Hooks, which can change what a layer computes."""
    for name, part in model.named_modules():
        if has_forward_hooks(part):
            fact = f"layer {name or type(part).__name__} has hooks, which can change what it computes"
            raise refused(fact, "Remove the hooks.")


def refuse_another_function(model: nn.Module, graph: Graph) -> None:
    """Refuse a network that does not compute what its operations say, row by row and every time.

    The network itself is run, as its user runs it: a copy can miss what it was patched with. A float64 copy, where one
    can be made, is run too: rounding hides less there.

    Args:
        model: the network.
        graph: as it was read.

    Raises:
        InputRefused: PA130, it computes something else, or cannot be run.
    """
    generator = torch.Generator().manual_seed(0)
    draw = (torch.rand, torch.randn, torch.randn)
    shape = graph.nodes[0].shape
    rows = torch.stack([function(*shape, generator=generator, dtype=torch.float64) for function in draw])
    rows[2] *= 3.0
    places = {value.device for value in (*model.parameters(), *model.buffers())}
    indices = [place.index or 0 for place in places if place.type == "cuda"]
    with torch.no_grad(), torch.random.fork_rng(indices):
        ran = _compared(model, graph, rows)
        try:
            own = copy.deepcopy(model).to("cpu", torch.float64)
        except Exception:  # a module of one's own may refuse to be copied or converted
            own = None
        if not (own is not None and _compared(own, graph, rows)) and not ran:
            raise refused(
                f"it cannot be run on rows of shape {tuple(shape)}, so nothing shows that it computes what was read",
                "Make forward take such rows.",
            )


def refuse_what_fails(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a network that fails on a row of this shape.

    Args:
        model: the network.
        shape: of the row.

    Raises:
        InputRefused: PA130, it fails.
    """
    try:
        found = model(_like(model).new_zeros(1, *shape))
    except Exception as trouble:
        told = " ".join(str(trouble).split())[:160] or type(trouble).__name__
        raise refused(
            f"it fails on a row of shape {tuple(shape)} ({told})", "Make forward take such rows."
        ) from trouble
    if isinstance(found, Tensor) and not found.numel():
        raise refused(f"its output for a row of shape {tuple(shape)} is empty", "Make forward take such rows.")


def _like(model: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that its rows should have."""
    floating = (value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point())
    return next(floating, torch.zeros(0))


def _compared(model: nn.Module, graph: Graph, rows: Tensor) -> bool:
    """Whether the model could be run, and did what the graph does; refused where it did something else."""
    like = _like(model)
    given = rows.to(like.device, like.dtype)
    wanted = graph.values(given.to("cpu", torch.float64))[-1].flatten(1)
    room = _ROOM.get(like.dtype, _ROOM_ELSEWHERE)
    spread, scale = _largest(wanted - wanted[:1]), _largest(wanted)
    if like.device.type != "cpu":
        room, spread = max(room, _ROOM_ELSEWHERE), scale
    precision = torch.finfo(like.dtype)
    rounding = _ROUNDINGS * precision.eps * scale + precision.tiny
    runs: dict[int, Tensor] = {}
    # Several numbers of rows, for rows may act on each other, and some of them twice, for a forward may keep a state.
    for count in (3, 1, 2, 3, 1):
        try:
            found = model(given[:count].clone()).to("cpu", torch.float64)
        except Exception:  # tensors it keeps elsewhere than in buffers stay where they are
            continue
        if found.numel() != wanted[:count].numel():
            raise refused(_ANOTHER)
        found = found.reshape(wanted[:count].shape)
        if bool((torch.isfinite(wanted[:count]) & ~torch.isfinite(found)).any()):
            continue  # beyond the range of its precision
        if not _near(found, wanted[:count], room * spread + rounding):
            raise refused(_ANOTHER)
        if count in runs and not _near(found, runs[count], _AGAIN * spread + rounding):
            raise refused("its outputs change from call to call")
        runs[count] = found
    return bool(runs)


_ANOTHER = "it computes something else than its operations, read one by one"


def _largest(values: Tensor) -> float:
    return float(values.abs().nan_to_num(posinf=0.0).max()) if values.numel() else 0.0


def _near(found: Tensor, wanted: Tensor, room: float) -> bool:
    return torch.allclose(found, wanted, rtol=0.0, atol=room, equal_nan=True)


def refuse_weights(model: nn.Module) -> None:
    """Weights without values, or with values a bound would mean nothing for."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(value) or value.is_meta:
            raise refused(f"{name} has no values yet; load or initialise it first")
        if not value.numel():
            raise refused(f"{name} has shape {tuple(value.shape)}, without any number")
        if value.is_complex():
            raise refused(f"{name} is {value.dtype}; real numbers were expected")
        if (layout := layout_of(value)) is not None:
            raise refused(f"{name} is a {layout} tensor; weights are read in full")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise refused(f"{name} holds NaN or infinity")


def refused(fact: str, advice: str = "Replace that part.") -> InputRefused:
    """The one line about a part that no bound is proved for."""
    return InputRefused(REFUSED, f"{fact}. The bounds are proved for the layers listed in docs/lipschitz.md. {advice}")
