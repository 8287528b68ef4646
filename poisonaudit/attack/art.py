"""The crafting loop as an attack of the Adversarial Robustness Toolbox (ART); importing this file imports ART."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from art.attacks.attack import PoisoningAttackWhiteBox
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.classification.pytorch import PyTorchClassifier
from art.estimators.estimator import BaseEstimator, NeuralNetworkMixin
from numpy.typing import ArrayLike, NDArray

from poisonaudit.attack.art_arrays import added, class_numbers, floating, target_rows, tensor
from poisonaudit.attack.art_checks import NORMS, check_parameters, refuse_flipped, refused
from poisonaudit.attack.art_problem import box_of, problem_from_classifier
from poisonaudit.attack.budget import Budget
from poisonaudit.attack.crafting import craft
from poisonaudit.attack.objectives import FlipPrediction, FlipPredictions, Objective, TargetWeights
from poisonaudit.attack.poison import Poison
from poisonaudit.problem import Problem
from poisonaudit.training import Fit, Progress, fit

logger = logging.getLogger(__name__)


class SolutionSetPoisoningAttack(PoisoningAttackWhiteBox):  # type: ignore[misc]
    """Clean-label poisoning through the estimated solution set of training.

    A few training rows move by at most `eps` each so that training on them, to a minimum of
    `J(w; x) = (1/n) sum_i cross_entropy(f(x_i, w), y_i) + (decay/2) |w|^2`, ends in other weights: ones that predict
    `y_target` for `x_target`, or ones near `target_weights`. To first order the weights move by the displacement v with
    `H v = -B mu`; the loop is `poisonaudit.attack.craft`, and the result is the same `Poison`, bit for bit, as
    `craft` gives for the same problem, objective, budget and seed.

    After `poison`: `poison_indices_` (k,) poisoned rows, sorted; `delta_` (k, ...) what was added to them, in input
    units; `history_`, one entry per linearisation; `predicted_`, the outcome to be expected after retraining, with
    `valid` and `reasons`; `poison_`, the `Poison`; `problem_`, the clean `Problem` that was linearised, as
    `poisonaudit.retrain(attack.problem_, attack.poison_)` takes it; `fit_`, how it was reached (None without
    `fit_first`).
    """

    attack_params = [
        *PoisoningAttackWhiteBox.attack_params,
        "x_target",
        "y_target",
        "target_weights",
        "norm",
        "eps",
        "percent_poison",
        "decay",
        "steps",
        "row_choice",
        "fit_first",
        "tolerance",
        "dtype",
        "seed",
        "verbose",
    ]
    _estimator_requirements = (BaseEstimator, NeuralNetworkMixin, ClassifierMixin, PyTorchClassifier)

    poison_indices_: NDArray[np.int64]
    delta_: NDArray[Any]
    history_: list[Mapping[str, Any]]
    predicted_: Mapping[str, Any]
    poison_: Poison
    problem_: Problem
    fit_: Fit | None

    def __init__(
        self,
        classifier: PyTorchClassifier,
        x_target: ArrayLike | None = None,
        y_target: ArrayLike | None = None,
        *,
        target_weights: ArrayLike | None = None,
        norm: float | str = np.inf,
        eps: float = 16 / 255,
        percent_poison: float = 0.05,
        decay: float = 0.0,
        steps: int = 12,
        row_choice: Literal["adjoint", "random"] | Sequence[int] | NDArray[np.int64] = "adjoint",
        fit_first: bool = True,
        tolerance: float = 1e-8,
        dtype: str = "float64",
        seed: int = 0,
        verbose: bool = True,
    ) -> None:
        """Give either `x_target` with `y_target`, or `target_weights`.

        Args:
            classifier: trained on `CrossEntropyLoss()`; its standardisation and `clip_values` are kept to.
            x_target: test row to flip, shaped like one row or with a leading 1, or several rows (m, ...), in the
                classifier's input units.
            y_target: wanted class, or classes (m,), as numbers or one-hot.
            target_weights: (p,) weights to push training to, in the order of the model's `named_parameters()`.
            norm: of each row's perturbation: `np.inf` or "inf", 1 or 2.
            eps: its largest value, in the classifier's input units.
            percent_poison: share of the training rows that move, in (0, 1]; rounded down, at least one row.
            decay: weight decay the classifier is trained with, as in `(decay/2) |w|^2` over all parameters.
            steps: most linearisations.
            row_choice: "adjoint" (largest first-order gain), "random", or positions of rows (`percent_poison` then
                says nothing).
            fit_first: fit a copy of the model on to a tight minimum of J before it is linearised. Without it the
                weights are taken as they are, and the prediction is flagged where they are no minimum.
            tolerance: relative gradient `|grad J| / (lambda_max |w|)` of the fit; retraining on the way has `craft`'s.
            dtype: "float64" or "float32", of all computations.
            seed: of random rows, fits and power iterations.
            verbose: show progress.

        Raises:
            EstimatorError: the classifier is not a `PyTorchClassifier`.
            UsageError: a `ValueError`: PA344 a classifier trained on another objective; PA349 a parameter of the wrong
                kind or not exactly one target; PA301 an unknown norm, dtype or choice of rows; PA360 a bad eps; PA361
                a bad percent_poison; PA363 bad positions; PA123 a bad decay; PA367 bad steps.
            InputRefused: a `ValueError`: PA211 or PA125, a target does not fit; PA212, no such class; PA210 or PA124,
                it is not finite.
        """
        super().__init__(classifier)
        self.x_target = x_target
        self.y_target = y_target
        self.target_weights = target_weights
        self.norm = norm
        self.eps = eps
        self.percent_poison = percent_poison
        self.decay = decay
        self.steps = steps
        self.row_choice = row_choice
        self.fit_first = fit_first
        self.tolerance = tolerance
        self.dtype = dtype
        self.seed = seed
        self.verbose = verbose
        self._check_params()

    def poison(self, x: ArrayLike, y: ArrayLike | None = None, **kwargs: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """The whole training set with the poison in place.

        Args:
            x: clean training rows (n, ...).
            y: their labels: class numbers (n,) or (n, 1), or one-hot rows (n, classes).
            **kwargs: `test=(x_test, y_test)` adds the accuracy on test rows to `predicted_`; nothing else is known.

        Returns:
            `(x_poison, y_poison)`: x with the chosen rows moved, of its own type and shape (float32 rounds towards the
            clean rows, so that they stay inside budget and box); and a copy of y.

        Raises:
            UsageError: PA349, y is missing or an argument is unknown; PA354, a target row is predicted as wanted
                already.
            InputRefused: x, y or the model do not fit (see `poisonaudit.Problem`).
            NumericalFailure: PA402, the loss is not finite at the classifier's weights; PA431, the adjoint solve gave
                no finite answer.
        """
        unknown = sorted(set(kwargs) - {"test"})
        if y is None or unknown:
            raise refused(
                "y is missing" if y is None else f"poison got {', '.join(unknown)}",
                "the training labels are needed, and beside them only test=(x_test, y_test) is known",
                "Pass poison(x, y).",
            )
        self._check_params()
        rows = floating(x, "x")
        problem = problem_from_classifier(self.estimator, rows, y, float(self.decay), self.dtype)
        self._compare_decay()
        test = None
        if kwargs.get("test") is not None:
            x_test, y_test = kwargs["test"]
            labels = class_numbers(y_test, self.estimator.nb_classes, "y_test")
            test = (self._tensor(x_test), torch.as_tensor(labels, device=problem.device))
        reached = None
        with _shown(self.verbose) as progress:
            if self.fit_first:
                reached = fit(problem, float(self.tolerance), int(self.seed), progress=progress)
                problem = reached.problem
            objective = self._objective()
            refuse_flipped(problem, objective)
            poison = craft(
                problem,
                objective,
                self._budget(),
                int(self.seed),
                steps=int(self.steps),
                test=test,
                progress=progress,
            )
        if not poison.predicted["valid"]:
            logger.warning("the prediction is not to be trusted: %s", "; ".join(poison.predicted["reasons"]))
        indices, delta = poison.rows.cpu().numpy().copy(), poison.delta.cpu().numpy().copy()
        x_poison = np.array(rows)
        x_poison[indices] = added(x_poison[indices], delta)
        self.problem_, self.fit_, self.poison_ = problem, reached, poison
        self.poison_indices_, self.delta_ = indices, delta
        self.history_, self.predicted_ = list(poison.history), poison.predicted
        return x_poison, np.array(y)

    def _budget(self) -> Budget:
        chosen = isinstance(self.row_choice, str)
        return Budget(
            radius=float(self.eps),
            share=float(self.percent_poison) if chosen else None,
            norm=NORMS[self.norm],
            box=box_of(self.estimator, self.dtype),
            choice=self.row_choice if chosen else np.asarray(self.row_choice).tolist(),  # type: ignore[arg-type]
        )

    def _objective(self) -> Objective:
        if self.target_weights is not None:
            return TargetWeights(self._tensor(self.target_weights))
        shape, classes = tuple(self.estimator.input_shape), self.estimator.nb_classes
        rows, labels = target_rows(self.x_target, self.y_target, shape, classes)  # type: ignore[arg-type]
        if len(rows) == 1:
            return FlipPrediction(self._tensor(rows[0]), int(labels[0]))
        return FlipPredictions(self._tensor(rows), labels.tolist())

    def _tensor(self, values: ArrayLike) -> torch.Tensor:
        return tensor(values, self.dtype, self.estimator.device)

    def _compare_decay(self) -> None:
        """Say so where the classifier's optimiser decays the weights otherwise than the stated objective does."""
        groups = [] if self.estimator.optimizer is None else self.estimator.optimizer.param_groups
        used = {float(group["weight_decay"]) for group in groups if "weight_decay" in group}
        if any(not math.isclose(each, self.decay, rel_tol=1e-6) for each in used):
            logger.warning(
                "the classifier's optimizer has weight_decay %s, the poison is made for training with decay %g",
                ", ".join(f"{each:g}" for each in sorted(used)),
                self.decay,
            )
        if any(used) and self._decoupled(groups):
            logger.warning(
                "the classifier's optimizer, %s, takes its weight_decay off the weights apart from the gradient, which "
                "minimises another objective than the decay the poison is made for; use SGD, or Adam with "
                "decoupled_weight_decay=False",
                type(self.estimator.optimizer).__name__,
            )

    def _decoupled(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the decay is no term of the loss: AdamW's, or that of a group that says so."""
        named = isinstance(self.estimator.optimizer, torch.optim.AdamW)
        return named or any(group.get("decoupled_weight_decay") for group in groups)

    def _check_params(self) -> None:
        check_parameters(self)
        self._budget()


@contextmanager
def _shown(verbose: bool) -> Iterator[Progress | None]:
    """A progress bar on stderr where somebody can see it."""
    if not verbose:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not (console.is_terminal or console.is_jupyter)) as bar:
        task = bar.add_task("solution-set poisoning", total=None)

        def show(text: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0
            bar.update(task, description=text.replace("[", r"\["), total=total, completed=fraction)

        yield show
