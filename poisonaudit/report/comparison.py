"""Several audits and attacks side by side: join attacks to models and put the worst model first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from poisonaudit.errors import UsageError, counted
from poisonaudit.quantities import ROWS_UNIT, unconverged_controls, verified_budget
from poisonaudit.report.costs import cost_of
from poisonaudit.report.findings import Finding, finding
from poisonaudit.report.formats import figure, mapping_of, usable
from poisonaudit.report.measures_guide import family_of
from poisonaudit.results import AttackResult, AuditResult, Comparison, GateOutcome, Measure

ORDER_RULE = (
    "Models with a failed rule come first, then those with an inconclusive one. Within these, models are ordered by "
    "their mean rank over the poisoning measures (attack.* proved by retraining and solution.*, the two families "
    "weighing the same), ties by the mean rank over the other families. A rank is the share of the other models that "
    "are worse in that measure; infinite is worst where lower is safer. Numbers in different units (a cost in rows, "
    "another as a radius) are not ranked together. Values that are missing or not valid are left "
    "out, so a missing number never makes a model look safe; a model without any usable rank is placed in the middle."
)
POISONING = ("attack", "solution")
_SEVERITY = {"FAIL": 0, "INCONCLUSIVE": 1}
# What must not differ for an attack to belong to an audited model, where both results state it.
_TRAINING_KEYS = ("weights_sha256", "loss", "decay", "limit", "split", "dtype")
_TRAINING_SECTIONS = ("training", "victim", "train")


def compare(
    results: Iterable[AuditResult | AttackResult | Comparison],
    *,
    gates: Sequence[GateOutcome] = (),
    environment: Mapping[str, Any] | None = None,
) -> Comparison:
    """Put audits and attacks side by side, worst model first (see `ORDER_RULE`).

    Args:
        results: audits, attacks or earlier comparisons, in any order.
        gates: outcomes of `--fail-on` rules over all of them; those of the single results are kept as well.
        environment: of the process that compares.

    Returns:
        The comparison; each audit carries the `attack.*` measures of the attacks on its model.

    Raises:
        UsageError: PA340, something else than a result was passed.
    """
    audits: list[AuditResult] = []
    attacks: list[AttackResult] = []
    outcomes: list[GateOutcome] = []
    for result in results:
        if isinstance(result, Comparison):
            audits.extend(result.audits)
            attacks.extend(result.attacks)
            outcomes.extend(result.gates)
        elif isinstance(result, AuditResult):
            audits.append(result)
        elif isinstance(result, AttackResult):
            attacks.append(result)
        else:
            raise UsageError(
                "PA340",
                f"compare got a {type(result).__name__}. It puts AuditResult, AttackResult and Comparison objects side "
                "by side. Pass the results, not models or paths.",
            )
    outcomes.extend(gate for audit in audits for gate in audit.gates)
    outcomes.extend(gate for attack in attacks for gate in attack.gates)
    outcomes.extend(gates)
    distinct_outcomes = tuple(dict.fromkeys(outcomes))
    owners = [owner(attack, audits) for attack in attacks]
    joined = [with_attacks(audit, owned(attacks, owners, i)) for i, audit in enumerate(audits)]
    order = worst_first(joined, distinct_outcomes)
    place = {position: rank for rank, position in enumerate(order)}
    by_model = sorted(range(len(attacks)), key=lambda j: min((place[i] for i in owners[j]), default=len(audits)))
    return Comparison(
        audits=tuple(joined[i] for i in order),
        attacks=tuple(attacks[j] for j in by_model),
        gates=distinct_outcomes,
        environment=dict(environment or {}),
    )


def owned(attacks: Sequence[AttackResult], owners: Sequence[tuple[int, ...]], audit: int) -> list[AttackResult]:
    """The attacks on one audited model."""
    return [attack for attack, positions in zip(attacks, owners, strict=True) if audit in positions]


def owner(attack: AttackResult, audits: Sequence[AuditResult]) -> tuple[int, ...]:
    """Positions of the audits of the model that was attacked: same model, data and training as far as both say.

    Args:
        attack: the attack.
        audits: the audits it may belong to.

    Returns:
        Positions. Several audits of one and the same training all own the attack; where different trainings match
        equally well none does, because a number must not be credited to the wrong model.
    """
    facts = training_facts(attack.recipe, attack.inputs)
    matches: dict[int, int] = {}
    for i, audit in enumerate(audits):
        if (audit.model, audit.data) != (attack.model, attack.data):
            continue
        known = training_facts(audit.recipe, audit.inputs, own_seed=True)
        shared = facts.keys() & known.keys()
        if all(facts[key] == known[key] for key in shared):
            matches[i] = len(shared)
    if not matches:
        return ()
    best = max(matches.values())
    chosen = tuple(i for i, score in matches.items() if score == best)
    kinds = {repr(sorted(training_facts(audits[i].recipe, audits[i].inputs, own_seed=True).items())) for i in chosen}
    return chosen if len(kinds) == 1 else ()


def training_facts(recipe: Any, inputs: Any, *, own_seed: bool = False) -> dict[str, str]:
    """What a stored result says about how its model was trained, as comparable texts.

    Args:
        recipe: of an audit (the training itself) or of an attack (which may nest the training).
        inputs: input name -> sha256.
        own_seed: True for an audit, whose recipe's seed is the training's; an attack's own seed is another matter.

    Returns:
        Key -> text, for the keys that are stated.
    """
    recipe = mapping_of(recipe)
    nested = [mapping_of(recipe.get(name)) for name in _TRAINING_SECTIONS]
    facts: dict[str, str] = {}
    for source in (recipe, *nested):
        keys = _TRAINING_KEYS if source is recipe and not own_seed else (*_TRAINING_KEYS, "seed")
        for key in keys:
            value = source.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                facts.setdefault(key, repr(float(value)))
            elif isinstance(value, str):
                facts.setdefault(key, value)
    weights = mapping_of(inputs).get("weights")
    if isinstance(weights, str):
        facts.setdefault("weights_sha256", weights)
    return facts


def with_attacks(audit: AuditResult, attacks: Sequence[AttackResult]) -> AuditResult:
    """The audit with `attack.*` measures joined from attacks on its model; unchanged without attacks."""
    if not attacks:
        return audit
    findings = [finding(attack) for attack in attacks]
    joined = [movement_measure(findings), flip_measure(findings), cost_measure(findings)]
    measures = {**audit.measures, **{measure.id: measure for measure in joined}}
    return dataclasses.replace(audit, measures=measures)


def movement_measure(findings: Sequence[Finding]) -> Measure:
    """`attack.movement`: the largest mean movement over fresh seeds (the warm start where there are none)."""
    unit = "share of the way to the target weights"
    scores = [(mean_movement(found), found) for found in findings if found.quantity.measure == "attack.movement"]
    return worst_attack("attack.movement", unit, scores, "no target-weights attack was retrained")


def mean_movement(found: Finding) -> float | None:
    """Mean over the fresh seeds that have the number, else the warm start's, else None."""
    fresh = [trial.value for trial in found.decisive if trial.fresh and trial.value is not None]
    warm = [trial.value for trial in found.trials if not trial.fresh and trial.value is not None]
    return fmean(fresh or warm) if fresh or warm else None


def flip_measure(findings: Sequence[Finding]) -> Measure:
    """`attack.flip_success`: the largest share of fresh retrainings that gave the attacker's label or labels."""
    scores = [(success_share(found), found) for found in findings if found.quantity.measure == "attack.flip_success"]
    reason = "no flip attack was retrained from fresh seeds"
    return worst_attack("attack.flip_success", "share of fresh retrainings", scores, reason)


def success_share(found: Finding) -> float | None:
    """Share of fresh seeds that reached the goal, None without fresh seeds."""
    votes = [bool(trial.reached) for trial in found.decisive if trial.fresh and trial.reached is not None]
    return fmean(votes) if votes else None


def worst_attack(name: str, unit: str, scores: Sequence[tuple[float | None, Finding]], otherwise: str) -> Measure:
    """The largest score as a measure; it is valid only if that very attack was retrained soundly."""
    known = [(score, not doubts(found), found) for score, found in scores if score is not None]
    if not known:
        return absent(name, unit, otherwise)
    value, sound, worst = max(known, key=lambda item: item[:2])
    remark = "one attack of this kind" if len(known) == 1 else f"worst of {len(known)} attacks of this kind"
    return Measure(
        name,
        value,
        unit,
        "statistic",
        "lower_is_safer",
        valid=sound,
        reason=remark if sound else doubts(worst),
        details={
            "attack": worst.attack.name,
            "by_attack": [{"attack": f.attack.name, "value": v} for v, _, f in known],
        },
    )


def doubts(found: Finding) -> str:
    """Why the retrainings of an attack do not carry a number, empty if they do."""
    relevant = [trial for trial in found.decisive if trial.fresh] or list(found.trials)
    # The owner's own training is judged as it is: it aims at no tolerance.
    loose = sum(trial.converged is False and trial.training == "tight" for trial in relevant)
    told = [f"{counted(loose, 'retraining')} did not converge"] * bool(loose)
    if found.quantity.measure == "attack.movement":
        # Counted from the control of the same seed.
        controls = unconverged_controls(found.attack.control, of_fresh=any(trial.fresh for trial in relevant))
        told += [f"{counted(controls, 'control')} did not converge"] * bool(controls)
    return "; ".join([*told, *([found.caution] if found.caution else [])])


def cost_measure(findings: Sequence[Finding]) -> Measure:
    """`attack.verified_cost`: the smallest budget with which retraining confirmed that an attack reaches its goal.

    In training rows or as a radius, whichever was searched; attacks that reached their goal without a search count by
    their rows. Costs in different units cannot be ranked, and the measure is then not valid.

    Args:
        findings: the attacks on one model.

    Returns:
        The measure, in the unit of what was searched.
    """
    name, costs = "attack.verified_cost", [entry for found in findings if (entry := confirmed(found)) is not None]
    if any(cost["searched"] for cost in costs):
        # Rows that nobody searched say less than any searched budget.
        costs = [cost for cost in costs if cost["searched"] or all(c["unit"] == ROWS_UNIT for c in costs)]
    if not costs:
        none = absent(
            name,
            "",
            "no attack tried was soundly shown to reach its goal in most retrainings; another one may",
            safer="higher_is_safer",
        )
        told = [cost.sentence for found in findings if (cost := cost_of(found.attack.verified_cost)) is not None]
        # A search that found nothing did measure something, which is no number.
        return dataclasses.replace(none, reason=told[0], details={"status": "measured"}) if told else none
    listed = [{key: cost[key] for key in ("attack", "value", "unit", "beside")} for cost in costs]
    if len({cost["unit"] for cost in costs}) > 1:
        told = [f"{cost['attack']}: {cost['value']:.4g} {cost['unit']}, with {cost['beside']}" for cost in costs]
        reason = f"costs in different units cannot be ranked together ({'; '.join(told)})"
        details = {"status": "measured", "by_attack": listed}
        return Measure(name, None, "", "upper", "higher_is_safer", False, reason, details)
    least = min(costs, key=lambda cost: (bool(cost["doubt"]), cost["value"]))
    bracket = f"; {least['bracket']}" if least["bracket"] else ""
    return Measure(
        name,
        least["value"],
        least["unit"],
        "upper",
        "higher_is_safer",
        valid=not least["doubt"],
        reason=least["doubt"] or f"cheapest attack verified, with {least['beside']}{bracket}; a cheaper one may exist",
        details={
            "attack": least["attack"],
            "predicted": least["predicted"],
            # Below this no attack that was searched succeeded, and none was left unsearched.
            "lower": None if any(cost["lower"] is None for cost in costs) else min(cost["lower"] for cost in costs),
            "beside": least["beside"],
            "by_attack": listed,
        },
    )


def confirmed(found: Finding) -> dict[str, Any] | None:
    """The budget with which retraining confirmed this attack, by a search or by the attack itself; None if not."""
    attack = found.attack
    cost, budget = cost_of(attack.verified_cost), verified_budget(attack.verified_cost, attack.budget, attack.rows)
    entry: dict[str, Any] = {
        "attack": attack.name, "unit": budget.unit, "beside": budget.beside, "bracket": "", "predicted": None,
        "lower": None, "doubt": found.caution, "searched": True,
    }  # fmt: skip
    if cost is not None and budget.value is not None:
        return {
            **entry, "value": budget.value, "lower": cost.lower, "bracket": cost.bracket, "predicted": cost.predicted,
        }  # fmt: skip
    share = success_share(found)
    used = len(attack.rows) or figure(attack.budget, "rows")
    if share is None or share <= 0.5 or not used or doubts(found):
        return None
    own = verified_budget({}, attack.budget, attack.rows)
    return {**entry, "unit": own.unit, "beside": own.beside, "value": float(used), "searched": False}


def absent(measure: str, unit: str, reason: str, safer: Any = "lower_is_safer") -> Measure:
    """An attack measure without a number."""
    return Measure(measure, None, unit, "statistic", safer, False, reason, {"status": "not applicable"})


def worst_first(audits: Sequence[AuditResult], gates: Sequence[GateOutcome] = ()) -> list[int]:
    """Positions of the audits in the order of `ORDER_RULE`."""
    ranks = [mean_ranks(audits, i) for i in range(len(audits))]

    def key(i: int) -> tuple[float, float, float, str, str, int]:
        poisoning = [rank for family, rank in ranks[i].items() if family in POISONING]
        others = [rank for family, rank in ranks[i].items() if family not in POISONING]
        audit = audits[i]
        return (
            severity(audit, gates),
            round(fmean(poisoning), 9) if poisoning else 0.5,
            round(fmean(others), 9) if others else 0.5,
            audit.model,
            audit.data,
            i,
        )

    return sorted(range(len(audits)), key=key)


def severity(audit: AuditResult, gates: Sequence[GateOutcome]) -> int:
    """0 with a failed rule, 1 with an inconclusive one, 2 otherwise."""
    about = [gate for gate in gates if gate.subject in (audit.model, f"{audit.model} on {audit.data}")]
    return min((_SEVERITY.get(gate.outcome, 2) for gate in (*about, *audit.gates)), default=2)


def mean_ranks(audits: Sequence[AuditResult], position: int) -> dict[str, float]:
    """Family -> mean share of the other models that are worse (0 is the worst model, 1 the safest)."""
    ranks: dict[str, list[float]] = {}
    for name in audits[position].measures:
        harm = dict(enumerate(harms([audit.measures.get(name) for audit in audits], position)))
        mine = harm[position]
        others = [value for i, value in harm.items() if i != position and value is not None]
        if mine is None or not others:
            continue
        worse = sum((value > mine) + 0.5 * (value == mine) for value in others)
        ranks.setdefault(family_of(name), []).append(worse / len(others))
    return {family: fmean(values) for family, values in ranks.items()}


def harms(measures: Sequence[Measure | None], position: int) -> list[float | None]:
    """`badness` of one measure by model, None where its unit is not that of the model at `position`."""
    own = measures[position]
    alike = [measure is not None and own is not None and measure.unit == own.unit for measure in measures]
    return [badness(measure) if same else None for measure, same in zip(measures, alike, strict=True)]


def units(measures: Iterable[Measure | None]) -> list[str]:
    """The units of the numbers, each once; more than one means that they cannot be ranked together."""
    return list(dict.fromkeys(each.unit for each in measures if each is not None and each.number is not None))


def badness(measure: Measure | None) -> float | None:
    """A number that grows with danger, None where the measure must not decide."""
    if measure is None or not usable(measure) or measure.direction == "neutral" or measure.number is None:
        return None
    return measure.number if measure.direction == "lower_is_safer" else -measure.number
