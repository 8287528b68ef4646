"""Training from the user's own file: consent, forms of the result, one-line refusals, seeding."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from poisonaudit.errors import InputRefused, PoisonAuditError, StorageError, UsageError
from poisonaudit.owner_training import trained_weights, weights_of
from poisonaudit.problem import Problem
from poisonaudit.training import initialise, with_statistics
from poisonaudit.verify import load_trainer, loose_trainer, trained
from tests.conftest import digits_rows, mlp

CODE = """
from pathlib import Path
import random
import numpy, torch
Path({marker!r}).write_text("ran")

def descend(problem, seed):
    model = problem.module()
    for layer in model:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    parameters = list(model.requires_grad_(True).parameters())
    for _ in range(30):
        loss = problem.loss_per_row(model(problem.x), problem.y).mean()
        loss = loss + problem.decay / 2 * sum((p * p).sum() for p in parameters)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
            p.data -= 0.5 * g
    return model

def module(problem, seed): return descend(problem, seed)
def state(problem, seed): return descend(problem, seed).state_dict()
def parallel(problem, seed): return {{"module." + k: v for k, v in state(problem, seed).items()}}
def flat(problem, seed): return torch.cat([p.reshape(-1) for p in descend(problem, seed).parameters()])

def drawn(problem, seed, scale=1.0):
    numbers = torch.full((problem.size,), random.random() + numpy.random.rand() + scale, dtype=problem.x.dtype)
    return numbers + torch.rand(problem.size, dtype=problem.x.dtype)

def short(problem, seed): return torch.zeros(3, dtype=problem.x.dtype)
def single(problem, seed): return flat(problem, seed).float()
def nan(problem, seed): return flat(problem, seed) * float("nan")
def nothing(problem, seed): pass
def numbers(problem, seed): return [1.0, 2.0]
def lacking(problem, seed): return dict(list(state(problem, seed).items())[1:])
def foreign(problem, seed): return state(problem, seed) | {{"extra": torch.zeros(1)}}
def reshaped(problem, seed): return {{k: v.reshape(1, -1) for k, v in state(problem, seed).items()}}
def text(problem, seed): return {{k: "weights" for k in state(problem, seed)}}
def halves(problem, seed): return {{k: v.float() for k, v in state(problem, seed).items()}}
def other(problem, seed): return torch.nn.Linear(2, 2)

def fails(problem, seed):
    return helper(problem)

def helper(problem):
    raise KeyError("no such\\ncolumn")  # here

def leaves(problem, seed): raise SystemExit(3)
def stops(problem, seed): raise KeyboardInterrupt
def vandal(problem, seed):
    weights = flat(problem, seed)
    problem.x.zero_(); problem.weights.zero_(); problem.y.zero_()
    return weights
constant = 5
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "own.py"
    path.write_text(CODE.format(marker=str(path.parent / "ran")))
    return path


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(mlp([64, 6, 10]), "cross_entropy", *digits_rows(100), decay=1e-2)


def test_the_file_runs_only_with_consent(code):
    with pytest.raises(InputRefused, match="PA130 own.py is code.*--trust-code"):
        load_trainer(f"{code}:flat")
    assert not (code.parent / "ran").exists()
    loaded = load_trainer(f"{code}:flat", trust_code=True)
    assert (code.parent / "ran").exists()
    assert loaded.sources == {"own.py": hashlib.sha256(code.read_bytes()).hexdigest()}
    assert str(loaded).startswith("own.py:flat (sha256 ")


def test_module_state_dict_and_flat_weights_are_the_same_training(code, problem):
    flat = load_trainer(f"{code}:flat", True)
    one = trained(flat, problem, 4, 1e-10)
    assert one.weights.shape == problem.weights.shape and not one.weights.requires_grad
    assert one.seed == 4 and not one.converged and one.reason == str(flat) and one.outcome == {}
    for name in ("module", "state", "parallel"):
        assert torch.equal(trained(load_trainer(f"{code}:{name}", True), problem, 4, 1e-10).weights, one.weights)
    # It is training: gradient descent from the seed's weights, the decay included.
    with torch.random.fork_rng():
        torch.manual_seed(4)
        weights = initialise(problem, 4)
    for _ in range(30):
        weights = weights - 0.5 * problem.gradient(weights)
    torch.testing.assert_close(one.weights, weights, rtol=0, atol=1e-9)


def test_global_generators_follow_the_seed_and_are_put_back(code, problem):
    drawn = load_trainer(f"{code}:drawn", True)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    one = trained_weights(drawn, problem, 1)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(trained_weights(drawn, problem, 1), one)
    assert not torch.equal(trained_weights(drawn, problem, 2), one)
    scaled = trained_weights(load_trainer(f"{code}:drawn?scale=3", True), problem, 1)
    torch.testing.assert_close(scaled, one + 2.0)


def test_a_trainer_cannot_change_the_problem(code, problem):
    before = problem.x.clone(), problem.weights.clone(), problem.y.clone()
    trained_weights(load_trainer(f"{code}:vandal", True), problem, 0)
    assert torch.equal(problem.x, before[0]) and torch.equal(problem.weights, before[1])
    assert torch.equal(problem.y, before[2]) and bool(before[2].any())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", r"PA125 .*weights \(3,\) float64, this problem has \(460,\) float64"),
        ("single", r"PA125 .*\(460,\) float32.*\(460,\) float64"),
        ("nan", "PA124 .*460 of 460"),
        ("nothing", "PA125 .*returned NoneType"),
        ("numbers", "PA125 .*returned list"),
        ("lacking", "PA125 .*lacks 0.weight"),
        ("foreign", "PA125 .*holds extra"),
        ("reshaped", "PA125 0.weight is"),
        ("text", "PA125 0.weight is str"),
        ("halves", "PA125 0.weight is .*float32"),
        ("other", "PA125 .*lacks 0.weight, 0.bias, 2.weight and 1 more and holds weight, bias"),
        ("fails", "PA131 own.py:fails failed at line [0-9]+: KeyError: .*no such"),
        ("leaves", "PA131 .*SystemExit"),
        ("absent", "PA131 .*AttributeError"),
        ("constant", "PA131 .*int, not a function"),
        ("", "PA131 .*names no trainer"),
        ("flat?speed=3", "PA131 .*TypeError.*speed"),
    ],
)
def test_what_does_not_fit_is_one_line(code, problem, name, words):
    with pytest.raises(PoisonAuditError, match=words) as caught:
        trained_weights(load_trainer(f"{code}:{name}", True), problem, 0)
    assert "\n" not in str(caught.value)


def test_the_line_told_is_the_innermost_one_of_the_file(code, problem):
    line = next(number for number, text in enumerate(code.read_text().splitlines(), 1) if text.endswith("# here"))
    with pytest.raises(InputRefused, match=f"at line {line}: KeyError") as caught:
        trained_weights(load_trainer(f"{code}:fails", True), problem, 0)
    assert isinstance(caught.value.__cause__, KeyError)  # what --debug shows


@pytest.mark.parametrize("fails", ["raise {}", "def train(problem, seed): raise {}"])
def test_what_the_machine_lacks_is_no_fault_of_the_file(problem, tmp_path, fails):
    def call(error: str) -> None:
        own = tmp_path / "own.py"
        own.write_text(f"import errno, torch\n{fails.format(error)}\n")
        trained_weights(load_trainer(f"{own}:train", True), problem, 0)

    for error, kind in (("MemoryError()", MemoryError), ("torch.OutOfMemoryError('x')", torch.OutOfMemoryError)):
        with pytest.raises(kind):
            call(error)
    with pytest.raises(StorageError, match="PA503 own.py:train failed at line 2: OSError: .*full. Free some space"):
        call("OSError(errno.ENOSPC, 'full')")
    with pytest.raises(InputRefused, match="PA131 .*FileNotFoundError.*Mend the file"):
        call("FileNotFoundError(errno.ENOENT, 'none')")


def test_an_interrupt_is_not_taken_for_a_failure(code, problem):
    with pytest.raises(KeyboardInterrupt):
        trained_weights(load_trainer(f"{code}:stops", True), problem, 0)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="PA373 .*names no Python file"):
        load_trainer("train:main", True)
    with pytest.raises(InputRefused, match="PA101 .*--trainer"):
        load_trainer(f"{tmp_path}/none.py:train", True)
    (tmp_path / "bad.py").write_text("x = 1\ndef train(:\n")
    with pytest.raises(InputRefused, match="PA131 .*at line 2: SyntaxError"):
        load_trainer(f"{tmp_path}/bad.py:train", True)


def test_batch_statistics_of_a_module_are_carried_by_its_weights():
    x, y = digits_rows(80)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 10)).double().eval()
    problem = with_statistics(Problem(model, "cross_entropy", x, y, 1e-3))
    own = problem.module().train()
    own(x[:30] * 2 + 1)
    own.eval()
    assert not torch.equal(own[1].running_mean, problem.module()[1].running_mean)
    weights = weights_of(own, problem)
    assert torch.equal(weights_of(problem.module(), problem), problem.weights)
    with torch.no_grad():
        torch.testing.assert_close(problem.outputs(weights), own(x), rtol=1e-10, atol=1e-10)
    # A state dict without buffers means weights for the problem's own statistics.
    parameters = {name: value.detach() for name, value in own.named_parameters()}
    assert torch.equal(weights_of(parameters, problem), problem.weights)


def test_other_buffers_must_be_the_models():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x * self.scale)

    problem = Problem(Scaled().double(), "cross_entropy", *digits_rows(20))
    module = problem.module()
    module.scale.fill_(3.0)
    with pytest.raises(InputRefused, match="PA125 the buffer scale"):
        weights_of(module, problem)


def test_a_tied_weight_may_be_named_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(x)))

    problem = Problem(Tied().double(), "cross_entropy", *digits_rows(20))
    wanted = loose_trainer(epochs=1)(problem, 0)
    assert torch.equal(weights_of({"first.weight": wanted.reshape(64, 64)}, problem), wanted)
