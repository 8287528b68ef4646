"""The poisoned data set as files, and a few of its rows for the report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poisonaudit.attack import Poison
from poisonaudit.attack.poison import embed
from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.victim import Victim
from poisonaudit.data import npz_bytes, write_folder
from poisonaudit.store import RunFolder

MOST_PICTURES = 12
EXPORTS = "exports.json"
NPZ = "poisoned.npz"
FOLDER = "poisoned"


def storable(victim: Victim, poison: Poison) -> Poison:
    """The poison with poisoned rows that float32 files hold exactly, so that what is retrained is what is exported.

    Values are rounded to the nearest float32, or to its neighbour on the clean value's side where that would lengthen
    the perturbation; no entry grows, so the poison stays in its budget.

    Args:
        victim: whose rows they are.
        poison: as crafted.

    Returns:
        The poison to retrain on and to store.
    """
    clean = victim.problem.x[poison.rows]
    single = clean.float()
    # Rows of other types than the loaders' keep what they have.
    if poison.delta.dtype == torch.float32 or not torch.equal(single.to(clean), clean):
        return poison
    nearest = (clean + poison.delta).float()
    longer = (nearest.to(clean) - clean).abs() > poison.delta.abs()
    kept = torch.where(longer, torch.nextafter(nearest, single), nearest)
    return replace(poison, delta=kept.to(clean) - clean)


def write_exports(kinds: Sequence[str], folder: RunFolder, victim: Victim, poison: Poison, report: Reporter) -> None:
    """Write the poisoned data as `poisoned.npz` (`--data npz:FILE`) and as pictures under `poisoned/` (`folder:DIR`).

    Args:
        kinds: some of "npz" and "folder".
        folder: of the run.
        victim: gives the clean data.
        poison: what is added to them.
        report: told what rounding to 8 bits did.
    """
    if folder.exists(EXPORTS):
        return
    poisoned = victim.problem.x + poison.perturbation(victim.problem)
    facts: dict[str, Any] = {"schema": "poisonaudit/exports/1"}
    if "npz" in kinds:
        folder.write_bytes(NPZ, npz_bytes(victim.data, poisoned))
        facts["npz"] = {"file": NPZ, "exact": torch.equal(poisoned.float().to(poisoned), poisoned)}
    if "folder" in kinds:
        facts["folder"] = _pictures_of_all(folder, victim, poison, poisoned)
        told = facts["folder"]
        report.note(
            f"{FOLDER}/: 8-bit pictures; clean values moved by up to {told['clean_rounding']:.2g}, the poison uses "
            f"{told['budget_used']:.1%} of its budget after rounding, {told['budget_used_before']:.1%} before. "
            "Retrained was the unrounded poison."
        )
    folder.write_json(EXPORTS, facts)


def _pictures_of_all(folder: RunFolder, victim: Victim, poison: Poison, poisoned: Tensor) -> dict[str, Any]:
    """Write the picture folder; what rounding did to the poison, measured against both clean versions."""
    problem, place = victim.problem, folder.path / FOLDER
    clean = problem.x[poison.rows]
    allowed = poison.budget.around(clean)
    limits = None
    if poison.budget.norm in ("linf", "l0"):
        # Only these bound every entry by itself, so that a value may also be rounded away from the clean one.
        low, high = allowed.limits()
        limits = (embed(problem, poison.rows, low), embed(problem, poison.rows, high))
    # What an interrupted run left is not known to belong to this poison.
    shutil.rmtree(place, ignore_errors=True)
    written = write_folder(place, victim.data, poisoned, limits)
    rounded = written.perturbation[poison.rows].to(clean)
    exact = torch.where(poison.delta != 0, written.x_train[poison.rows].to(clean) - clean, 0.0)
    return {
        "folder": FOLDER,
        "classes": list(written.folders),
        "clean_rounding": written.clean_rounding,
        "budget_used_before": allowed.used(poison.delta),
        "budget_used": allowed.used(rounded),
        "values_moved_before": int((poison.delta != 0).sum()),
        "values_moved": int((rounded != 0).sum()),
        "largest_against_the_unrounded_rows": float(exact.abs().max()),
    }


def pictures(victim: Victim, poison: Poison) -> list[dict[str, Any]]:
    """The rows moved farthest, clean beside poisoned, as pixels or as named features."""
    data = victim.data
    norms = poison.delta.flatten(1).norm(dim=1)
    found = []
    for index in norms.argsort(descending=True)[:MOST_PICTURES].tolist():
        position = int(poison.rows[index])
        clean = victim.problem.x[position]
        label = data.y_train[position].reshape(-1)[0].item()
        found.append(
            {
                "row": int(data.train_ids[position]),
                "label": label,
                "norm": float(norms[index]),
                "clean": _shown(victim, clean),
                "poisoned": _shown(victim, clean + poison.delta[index]),
            }
        )
    return found


def _shown(victim: Victim, row: Tensor) -> dict[str, Any]:
    """One row as grey or colour values 0..255 over the data's box, or as its features by name."""
    data = victim.data
    if data.image_shape is None:
        values = row.flatten().tolist()
        return {"features": dict(zip(data.feature_names, values, strict=False))}
    lower, upper = data.box
    share = (row - lower) / (upper - lower).clamp(min=1e-12)
    pixels = (255 * share.clamp(0, 1)).round().int().flatten().tolist()
    return {"shape": list(data.image_shape), "pixels": pixels}
