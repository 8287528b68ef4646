"""What an attack run will do, in words."""

from __future__ import annotations

from poisonaudit.config.objectives import (
    FlipConfig,
    FlipsConfig,
    ObjectiveConfig,
    ValidationLossConfig,
    WeightSource,
    WithSource,
)
from poisonaudit.config.schema import AttackConfig


def planned_stages(config: AttackConfig) -> list[str]:
    """What a run will do, in order, in words."""
    if config.victim is not None:
        first = f"take the victim stored in {config.victim}"
    elif config.weights is not None:
        first = f"load {config.weights} and polish it to relative gradient {config.training.tolerance:g}"
    else:
        first = f"train {config.model} on {config.data} from seed {config.seed} to {config.training.tolerance:g}"
    budget, fresh = config.budget, config.retrain.fresh
    steps = [first]
    steps.append(_objective(config.objective))
    amount = f"{budget.share:.1%} of the" if budget.share is not None else str(budget.rows or len(budget.choice))
    which = {"adjoint": "largest gain", "kappa": "largest modulus", "class": "drawn from one class", "random": "drawn"}
    chosen = which[budget.choice] if isinstance(budget.choice, str) else "as named"
    steps.append(
        f"craft on {amount} rows ({chosen}), {budget.norm} radius {budget.radius:.4g}, up to {config.craft.steps} steps"
        f"{_solutions(config)}; each step is kept"
    )
    steps.append("retrain warm on the poisoned rows, and polish the clean weights as its control")
    rows = "on poisoned and on clean rows"
    if config.retrain.trainer is not None:
        steps.append(f"retrain by {config.retrain.trainer} from {_seeds(config, fresh)} {rows} ({2 * fresh} trainings)")
    if fresh:
        steps.append(f"retrain from {_seeds(config, fresh)} {rows} ({2 * fresh} trainings)")
    loose = fresh if config.retrain.loose is None else config.retrain.loose
    if loose:
        how = f"loosely, {config.retrain.loose_epochs} epochs of Adam,"
        steps.append(f"retrain {how} from {_seeds(config, loose)} {rows} ({2 * loose} trainings)")
    steps += [*_planned_baselines(config), *_planned_defences(config), *_planned_search(config)]
    files = {"npz": "poisoned.npz", "folder": "poisoned/ (8-bit pictures)"}
    names = ["attack.json", "poison.safetensors", *(files[kind] for kind in dict.fromkeys(config.export))]
    return [*steps, f"write {', '.join(names)}, weights and report.html"]


def _objective(goal: ObjectiveConfig) -> str:
    """How the objective is found."""
    if isinstance(goal, WithSource):
        layers = getattr(goal, "layers", None)
        what = {
            "target_weights": f" in {', '.join(layers)}" if layers else "",
            "target_region": f", for a {getattr(goal, 'shape', '').replace('_', '-')}",
            "match_predictions": f", for predictions to match on {getattr(goal, 'rows', '')} rows",
            "membership": ", to be made stationary",
        }
        return f"{_source(goal.source)}{what[goal.kind]}"
    if isinstance(goal, FlipConfig):
        return f"choose the test row to flip: {goal.test_row}, to {goal.label}"
    if isinstance(goal, FlipsConfig):
        rows = f"{goal.count}, {goal.choose}" if goal.test_rows is None else ", ".join(map(str, goal.test_rows))
        label = goal.label if not isinstance(goal.label, tuple) else ", ".join(map(str, goal.label))
        return f"choose the test rows to flip: {rows}, to {label}"
    if isinstance(goal, ValidationLossConfig):
        return f"take {'all' if goal.count is None else f'the first {goal.count}'} test rows to raise the loss on"
    group = f"class {goal.group_class}" if goal.test_rows is None else f"{len(goal.test_rows)} named ones"
    return f"take the test rows of the group to lower the accuracy on: {group}"


def _source(source: WeightSource) -> str:
    """How the target weights are found."""
    if source.label_flips is not None:
        return "train on flipped labels for the target weights"
    if source.direction is not None:
        return f"target weights along the {source.direction.along} direction, {source.direction.length:g} |w| away"
    tuned = source.fine_tune
    if tuned is None:
        return f"read {source.file} for the target weights"
    without = f"the rows without class {tuned.without_class}"
    other = tuned.data or (without if tuned.rows is None else f"{len(tuned.rows)} of the rows")
    return f"train on from the clean weights on {other} for the target weights"


def _solutions(config: AttackConfig) -> str:
    craft, told = config.craft, ""
    if craft.outer == "training":
        procedure = config.retrain.trainer or f"{config.retrain.loose_epochs} epochs of Adam"
        return f", each trained by {procedure} from {craft.solutions} seed{'s' * (craft.solutions > 1)}"
    if craft.solutions > 1:
        told += f", {craft.solutions} solutions together ({craft.solutions - 1} trained for it)"
    if craft.members:
        told += f", {craft.members} members of each solution set"
    return told + (f", {craft.aggregate}" if told else "") + (", following the path" if craft.outer == "path" else "")


def _planned_baselines(config: AttackConfig) -> list[str]:
    """Other attacks on the same rows."""
    if not config.baselines:
        return []
    names = "every applicable baseline" if "all" in config.baselines else ", ".join(config.baselines)
    return [f"run {names} on the same rows and budget, and retrain on each likewise; the controls are shared"]


def _planned_defences(config: AttackConfig) -> list[str]:
    """What a defender would see."""
    steps = []
    if config.detectors is not None:
        names = "every detector" if config.detectors.names is None else ", ".join(config.detectors.names)
        again = (
            "; retrain without what each flags, beside clean and random filtering" if config.detectors.filter else ""
        )
        steps.append(f"look for the poison by {names}{again}")
    if config.inspection:
        steps.append("rank the training rows for inspection")
    return steps


def _planned_search(config: AttackConfig) -> list[str]:
    """The search for the verified cost, and the same for variants of the victim."""
    search, hardening = config.search, config.hardening
    if search is None:
        return []
    high = "the largest that is needed, by doubling" if search.high is None else f"{search.high:.4g}"
    low = "0" if search.low is None else f"{search.low:.4g}"
    need = search.need or config.retrain.fresh // 2 + 1
    steps = [
        f"search the smallest {search.over} between {low} and {high} at which {need} of {config.retrain.fresh} seeds "
        "succeed; each trial crafts and retrains, the controls are shared"
    ]
    if hardening is not None:
        variants = [f"decay {decay:g}" for decay in hardening.decays]
        variants += [f"{share:.1%} of the rows" for share in hardening.row_shares]
        steps.append(f"train, control and search again at {', '.join(variants)}; write hardening.csv")
    return steps


def _seeds(config: AttackConfig, count: int) -> str:
    return f"seeds {config.seed + 1} to {config.seed + count}"
