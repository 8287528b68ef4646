"""Which score of a model predicts what poison does to it? Sixty models, every score, three kinds of attack, retraining.

The models are drawn by `predictive_plan.SEED` before anything is measured and none is dropped. Finished cases are kept
in results/local, so that a killed run goes on; several processes may share the work:

    python -m benchmarks.predictive_validity PART PARTS
    python -m benchmarks predictive_validity             # what is left, the analysis and the result file
    python -m benchmarks.predictive_validity --docs      # the tables of docs/predictive_validity.md from that file
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

from benchmarks import predictive_damage, predictive_page, predictive_plan
from benchmarks.journal import measured
from benchmarks.predictive_analysis import analysed
from benchmarks.predictive_plan import Model, models
from benchmarks.predictive_scores import available, scores
from benchmarks.timing import RESULTS, write
from poisonaudit.results import finite

NAME = "predictive_validity"


def settings() -> dict[str, Any]:
    """What both halves of a case depend on beside the model itself."""
    plan, attack = predictive_plan, predictive_damage
    told = {
        "seed": plan.SEED,
        "rows": plan.ROWS,
        "share_of_rows": plan.SHARE,
        "radius": {"pixels": plan.PIXELS, "columns": plan.COLUMNS},
        "tolerance": plan.TIGHT,
        "tolerance_of_retraining": plan.RETRAINED,
        "most_gradients": plan.MOST_GRADIENTS,
        "fresh_seeds": attack.SEEDS,
        "crafting_steps": attack.STEPS,
        "crafting_tolerance": attack.CRAFTING,
        "polish": [attack.POLISH, attack.POLISH_GRADIENTS],
        "displacement_starts": attack.STARTS,
    }
    return json.loads(json.dumps(told))


def work(part: int = 0, parts: int = 1, chosen: list[Model] | None = None) -> list[dict[str, Any]]:
    """The cases of one part: scores and damage of every model.

    Args:
        part: number of this process, from 0.
        parts: how many share the work.
        chosen: models in place of the plan's.

    Returns:
        One record a model, `model`, `scores` and `damage`.
    """
    own = (models() if chosen is None else chosen)[part::parts]
    place = f"{part}of{parts}" if parts > 1 else ""
    # Damage takes longest and does not depend on which measures there are: a new measure is scored without it.
    to_harm = {each.key: functools.partial(predictive_damage.damage, each) for each in own}
    harmed = measured(f"{NAME}-damage", to_harm, settings(), place)
    to_score = {each.key: functools.partial(scores, each) for each in own}
    scored = measured(f"{NAME}-scores", to_score, {**settings(), "measures": available()}, place)
    return [
        {"model": each.facts(), "damage": damage, "scores": found["scores"], "seconds_of_scores": found["seconds"]}
        for each, damage, found in zip(own, harmed, scored, strict=True)
    ]


def run() -> None:
    """Finish the cases and store them with their analysis."""
    cases = work()
    # A retraining that ended beside a saddle has an infinite relative gradient, which JSON does not know.
    write(NAME, finite({"settings": settings(), "summary": analysed(cases), "cases": cases}))


def main(arguments: list[str]) -> None:
    """`PART PARTS` works on a part; `--docs` writes the tables of the page."""
    if arguments == ["--docs"]:
        predictive_page.rewrite(json.loads((RESULTS / f"{NAME}.json").read_text()))
    else:
        work(*map(int, arguments[:2]))


if __name__ == "__main__":
    main(sys.argv[1:])
