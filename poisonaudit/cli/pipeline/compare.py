"""`compare`: stored runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poisonaudit.cli.console import Reporter
from poisonaudit.cli.pipeline.folder import open_run, read_result, refuse_taken, run_folder
from poisonaudit.cli.pipeline.gates import apply_gates, parse_gates
from poisonaudit.cli.pipeline.render import write_reports
from poisonaudit.config.load import plain
from poisonaudit.config.schema import AuditConfig, CompareConfig
from poisonaudit.errors import UsageError
from poisonaudit.gates import Gate
from poisonaudit.report import compare
from poisonaudit.report.comparison import owner
from poisonaudit.results import AttackResult, AuditResult, Comparison
from poisonaudit.store import RunFolder, environment, sha256_file

Result = AuditResult | AttackResult | Comparison

_READERS: dict[str, Callable[[dict[str, Any]], Result]] = {
    "comparison.json": Comparison.from_json,
    "audit.json": AuditResult.from_json,
    "attack.json": AttackResult.from_json,
}


@dataclass(frozen=True)
class Compared:
    """What `run_compare` leaves: the folder and the comparison."""

    path: Path
    result: Comparison


def run_compare(
    config: CompareConfig,
    out: Path | None = None,
    *,
    trust_code: bool = False,
    arguments: list[str] | None = None,
    report: Reporter,
) -> Compared:
    """Read runs, join attacks to the models they attacked, and store one report.

    Args:
        config: the runs and the rules.
        out: folder of the comparison.
        trust_code: whether `file.py:factory` may run, where a training run is audited first.
        arguments: the command line, for the manifest.
        report: told what is going on.

    Returns:
        The folder and the comparison, worst model first.
    """
    refuse_taken(out)
    gates = parse_gates(config.fail_on)
    runs = [open_run(Path(path)) for path in config.runs]
    found = {run.path: stored_result(run) for run in runs}
    with run_folder("compare", out) as folder:
        report.begin()
        inputs: dict[str, str] = {}
        for position, (path, result) in enumerate(found.items()):
            if result is None:
                found[path] = _audit_first(path, folder, config, position, trust_code, report)
            else:
                name = result_name(RunFolder.open(path))
                inputs[f"{path.name}/{name}"] = sha256_file(path / name)
        results = told_apart({path: result for path, result in found.items() if result is not None})
        final = joined(results, gates, report)
        write_comparison(folder, final, report, arguments)
        invocation = {"words": arguments or [], "config": plain(config)}
        folder.write_manifest("compare", invocation, inputs, config.seed)
        return Compared(folder.path, final)


def told_apart(found: Mapping[Path, Result]) -> list[Result]:
    """The results; attacks by one recipe on one model are named with their runs."""
    attacks = {path: result for path, result in found.items() if isinstance(result, AttackResult)}
    whose = [(result.name, result.model, result.data) for result in attacks.values()]
    folders = [path.name for path in attacks]
    named = dict(found)
    for path, result in attacks.items():
        if whose.count((result.name, result.model, result.data)) > 1:
            run = path.name if path.name and folders.count(path.name) == 1 else str(path)
            named[path] = replace(result, name=f"{result.name} ({run})")
    return list(named.values())


def joined(results: Sequence[Result], gates: Sequence[Gate], report: Reporter) -> Comparison:
    """Results side by side, with attacks joined to their models before the rules are applied."""
    report.stage(f"comparing {len(results)} results")
    first = compare(results)
    # An attack whose model was not audited here answers the rules about attacks itself.
    alone = [attack for attack in first.attacks if not owner(attack, first.audits)]
    about_attacks = gates if not first.audits else [gate for gate in gates if gate.id.startswith("attack.")]
    outcomes = [*apply_gates(gates, first.audits), *apply_gates(about_attacks, alone)]
    return compare(results, gates=outcomes, environment=environment())


def write_comparison(folder: RunFolder, final: Comparison, report: Reporter, arguments: list[str] | None) -> None:
    """Store a comparison and its report in a run."""
    folder.write_json("comparison.json", final.to_json())
    write_reports(folder, final, report, arguments)


def stored_result(run: RunFolder) -> Result | None:
    """The result of a finished run; None for a training run, which has none yet.

    Args:
        run: a finished run.

    Returns:
        What its result file holds.

    Raises:
        UsageError: PA353, the folder holds nothing that can be compared.
        InputRefused: PA220, its result is of another schema; PA221, it is damaged; PA222, it was changed after the run.
    """
    name = result_name(run)
    if name == "train.json":
        return None
    return read_result(run, name, _READERS[name])


def result_name(run: RunFolder) -> str:
    """Name of the file that holds a run's result.

    Args:
        run: a finished run.

    Returns:
        One of `comparison.json`, `audit.json`, `attack.json`, `train.json`.

    Raises:
        UsageError: PA353, there is none.
    """
    for name in (*_READERS, "train.json"):
        if run.exists(name):
            return name
    raise UsageError(
        "PA353",
        f"{run.path} holds no audit.json, attack.json, comparison.json or train.json. Pass runs of those commands.",
    )


def _audit_first(
    path: Path, folder: RunFolder, config: CompareConfig, position: int, trust_code: bool, report: Reporter
) -> AuditResult:
    from poisonaudit.cli.pipeline.audit import run_audit

    own = AuditConfig(
        run=str(path),
        measures=config.measures,
        rows=config.rows,
        seed=config.seed,
        limit=config.limit,
        device=config.device,
    )
    name = f"audit-{position + 1}-{path.name}"
    return run_audit(own, folder.path / name, trust_code=trust_code, report=report).result
