"""Walking Sequentials: order, names, repeats, what counts as altered; slope intervals against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poisonaudit.layers import SLOPES, dense_layers, leaves, steepest


class Kept(nn.Linear):
    pass


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def kinds(model, **settings):
    return [leaf.kind for leaf in leaves(model, **settings)]


def test_leaves_come_in_order_with_repeats_and_their_names():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(2, 2), relu), relu, nn.Dropout(0.5)).eval()
    named = dict(model.named_modules(remove_duplicate=False))
    found = list(leaves(model))
    assert [leaf.name for leaf in found] == ["0", "1.0", "1.1", "2", "3"]
    assert all(leaf.module is named[leaf.name] for leaf in found)
    assert kinds(model) == [nn.Flatten, nn.Linear, nn.ReLU, nn.ReLU, nn.Dropout]
    assert [leaf.name for leaf in leaves(relu)] == [""]


def test_what_cannot_be_seen_through_is_marked():
    assert kinds(nn.Dropout(0.5).train()) == kinds(nn.Softmax(1)) == kinds(Doubled(2, 2), subclasses=True) == [None]
    assert kinds(Kept(2, 2)) == [None] and kinds(Kept(2, 2), subclasses=True) == [nn.Linear]
    patched = nn.ReLU()
    patched.forward = torch.tanh
    assert kinds(nn.Sequential(patched)) == [None]
    flatten = (nn.Flatten(), nn.Flatten(1, 2), nn.Flatten(0))
    assert [leaf.flattens for leaf in leaves(nn.Sequential(*flatten))] == [True, False, False]
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        getattr(inner, register)(lambda *_: None)
        (leaf,) = leaves(nn.Sequential(inner))
        assert leaf.hooked and leaf.name == "0" and leaf.module is inner


LAYERS = [kind().eval() for kind in SLOPES] + [
    nn.LeakyReLU(2.0),
    nn.LeakyReLU(-0.5),
    nn.PReLU(init=-0.5),
    nn.ELU(1.5),
    nn.ELU(-2.0),
    nn.CELU(0.2),
    nn.GELU("tanh"),
    nn.Hardtanh(-3.0, 0.5),
    nn.Softplus(3.0, 5.0),
    nn.Softshrink(2.0),
]
# Least and largest slope to the digits of an independent computation (mpmath, 30 digits), rounded to nine.
SMOOTH = {
    nn.GELU(): (-0.128904145, 1.128904145),
    nn.GELU("tanh"): (-0.128993069, 1.128993069),
    nn.SiLU(): (-0.099839320, 1.099839320),
    nn.Mish(): (-0.112526122, 1.088498161),
    nn.SELU(): (0.0, 1.758099341),
    nn.Hardsigmoid(): (0.0, 1 / 6),
}


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_slope_intervals_hold_and_are_tight(layer):
    # Fine near zero, where slopes turn, and far out, where some only approach an end.
    fine, far = torch.linspace(-4, 4, 80001, dtype=torch.float64), torch.logspace(0, 4, 4001, dtype=torch.float64)
    grid = torch.cat([fine, far, -far, torch.tensor([-1e-9, 1e-9])]).double().requires_grad_(True)
    (slopes,) = torch.autograd.grad(layer.double()(grid[:, None]).sum(), grid)
    lower, upper = SLOPES[type(layer)](layer)
    # torch 2.15 differentiates Hardsigmoid with 1/6 in float32.
    room = 1e-8 if isinstance(layer, nn.Hardsigmoid) else 0.0
    # Hardswish only approaches its ends at its kinks.
    near = 1e-4 if isinstance(layer, nn.Hardswish) else 1e-6
    assert lower <= float(slopes.min()) <= lower + near
    assert upper - near <= float(slopes.max()) <= upper + room
    assert steepest(layer) == max(abs(lower), abs(upper))


@pytest.mark.parametrize("layer", SMOOTH, ids=str)
def test_ends_of_smooth_slopes_are_rounded_outwards(layer):
    (lower, upper), (least, largest) = SLOPES[type(layer)](layer), SMOOTH[layer]
    assert least - 1e-7 - 1e-9 <= lower <= least + 5e-10
    assert largest - 5e-10 <= upper <= largest + 1e-7 + 1e-9


def test_slopes_of_channels_come_as_tensors():
    layer = nn.PReLU(3)
    layer.weight.data.copy_(torch.tensor([0.25, -2.0, 4.0]))
    lower, upper = SLOPES[nn.PReLU](layer)
    assert lower.tolist() == [0.25, -2.0, 1.0] and upper.tolist() == [1.0, 1.0, 4.0]
    assert steepest(layer) == 4.0
    assert lower.dtype == torch.float64 and not lower.requires_grad


def test_dense_layers_group_activations_and_leave_inputs_alone():
    first, second, writing, tanh = nn.Linear(2, 2), nn.Linear(2, 2), nn.LeakyReLU(0.1, inplace=True), nn.Tanh()
    model = nn.Sequential(nn.Flatten(), first, nn.Identity(), writing, tanh, nn.Sequential(second)).eval()
    layers, unfit = dense_layers(model, flat=False)
    assert unfit is None
    assert [(leaf.name, leaf.module) for leaf, _ in layers] == [("1", first), ("5.0", second)]
    (copied, same), nothing = (activations for _, activations in layers)
    assert same is tanh and nothing == () and writing.inplace
    x = torch.tensor([-1.0, 1.0])
    assert torch.equal(copied(x), torch.tensor([-0.1, 1.0])) and x.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("model", "flat", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2)), False, "0"),
        (nn.Sequential(nn.Tanh(), nn.Linear(2, 2)), True, "0"),
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Softmax(1))), True, "1.0"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train(), True, "1"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(2, 2)), False, "0"),
    ],
)
def test_dense_layers_name_the_first_that_does_not_fit(model, flat, name):
    unfit = dense_layers(model, flat)[1]
    assert unfit is not None and unfit.name == name
