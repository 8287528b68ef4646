"""What the ReLU-like units of any eval-mode net receive, recorded while the net runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from poisonaudit.errors import InputRefused

# One kink, at 0: the sign of the input says on which side a unit is. Keyed by the operator the layer runs.
ONE_KINK = {
    "relu": "ReLU",
    "relu_": "ReLU",
    "leaky_relu": "LeakyReLU",
    "leaky_relu_": "LeakyReLU",
    "prelu": "PReLU",
    "_prelu_kernel": "PReLU",
    # RReLU in eval mode and torch.threshold at 0 come down to these.
    "rrelu": "RReLU",
}
# These bend as well, and keep f(s x) = s f(x) for s > 0.
HOMOGENEOUS_BENDS = frozenset(
    "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d abs max amax min amin "
    "maximum minimum".split()
)
# Linear or affine in what depends on the input, or moving entries about; products of two such values are not.
LINEAR = frozenset(
    "convolution addmm mm addmv mv linear add sub rsub mul div neg mean sum view _unsafe_view t transpose permute "
    "slice select cat stack expand squeeze unsqueeze clone detach alias _to_copy copy_ as_strided split "
    "split_with_sizes unbind index index_select gather roll flip repeat unfold im2col constant_pad_nd "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle "
    "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest2d upsample_bilinear2d empty empty_like zeros "
    "zeros_like ones ones_like full arange lift_fresh".split()
)
_PRODUCTS = {"mul", "div", "mm"}


@dataclass(frozen=True)
class Seen:
    """What one run of a net showed.

    Attributes:
        names: of the layers that hold ReLU-like units, in the order they ran; the operator's where a function ran.
        values: their inputs (batch, units), one tensor a layer.
        others: names of further operators met that bend or are not known to be linear, in alphabetical order.
        homogeneous: whether all of them are known to keep f(s x) = s f(x) for s > 0, as ReLU-like units do.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    others: tuple[str, ...]
    homogeneous: bool


class _Recorder(TorchDispatchMode):
    """Keeps what ReLU-like operators receive, and the names of others that bend."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.found: list[tuple[str, Tensor]] = []
        self.others: set[str] = set()
        self.inside: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the operator, then run it."""
        name = func.overloadpacket.__name__
        if name in ONE_KINK:
            where = self.inside[-1] if self.inside and self.inside[-1] else name.strip("_")
            self.found.append((where, args[0].detach().clone()))
        elif not self._linear(name.rstrip("_") if name != "copy_" else name, args):
            self.others.add(name.strip("_"))
        return func(*args, **(kwargs or {}))

    def _linear(self, name: str, args: Any) -> bool:
        """Whether the operator is linear in values that come row by row."""
        rowwise = [value for value in args if isinstance(value, Tensor) and value.shape[:1] == (self.rows,)]
        return name in LINEAR and not (name in _PRODUCTS and self.rows > 1 and len(rowwise) > 1)


def preactivations(model: nn.Module, x: Tensor) -> Seen:
    """Run the net and keep the inputs of its ReLU, LeakyReLU and PReLU units, layers and functions alike.

    Args:
        model: any net in eval mode that runs operators of torch.
        x: inputs (batch, ...).

    Returns:
        What was seen; without ReLU-like units, no values.

    Raises:
        InputRefused: PA211, the model cannot take such rows; PA153, units whose inputs do not come row by row.
    """
    recorder = _Recorder(x.shape[0])
    try:
        with torch.no_grad(), _names(model, recorder.inside), recorder:
            model(x)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputRefused(
            "PA211", f"the model cannot take rows of shape {tuple(x.shape[1:])}: {reason}. Pass other rows."
        ) from error
    for name, value in recorder.found:
        if value.dim() < 2 or value.shape[0] != x.shape[0]:
            raise InputRefused(
                "PA153",
                f"{name} sees a tensor of shape {tuple(value.shape)} for {x.shape[0]} rows, so its units cannot be "
                "told apart by row. Use a net that keeps the rows along the first axis.",
            )
    return Seen(
        tuple(name for name, _ in recorder.found),
        tuple(value.reshape(x.shape[0], -1) for _, value in recorder.found),
        tuple(sorted(recorder.others)),
        recorder.others <= HOMOGENEOUS_BENDS,
    )


@contextmanager
def _names(model: nn.Module, inside: list[str]) -> Iterator[None]:
    """Keep the name of the module that is running on top of `inside`."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _module, _args, name=name: inside.append(name)))
        handles.append(module.register_forward_hook(lambda _module, _args, _result: (inside.pop(), None)[1]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
