"""Outcomes of rules for other tools: SARIF 2.1.0 for code scanning, JUnit XML for build servers."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

from poisonaudit.report.costs import cost_of
from poisonaudit.report.formats import number
from poisonaudit.report.page import Page, Result, make_page
from poisonaudit.report.rivals import Rival, rivals
from poisonaudit.results import GateOutcome

_KINDS = {"PASS": ("pass", "none"), "FAIL": ("fail", "error"), "INCONCLUSIVE": ("open", "none")}


def render_sarif(result: Result, *, command: str = "", title: str | None = None) -> str:
    """Rule outcomes as a SARIF 2.1.0 log; standings, verified costs and other attacks in the run's property bag.

    Args:
        result: whose rules to list.
        command: the command line, stored as the invocation.
        title: accepted for the common signature; SARIF has none.

    Returns:
        The log as JSON text.
    """
    import poisonaudit

    page = make_page(result, command, title)
    rules = list(dict.fromkeys(gate.rule for gate in page.gates))
    results = [sarif_result(gate, rules.index(gate.rule)) for gate in page.gates]
    driver = {
        "name": "poisonaudit",
        "version": poisonaudit.__version__,
        "rules": [{"id": rule, "shortDescription": {"text": f"--fail-on {rule}"}} for rule in rules],
    }
    run: dict[str, Any] = {"tool": {"driver": driver}, "results": results}
    facts = attack_facts(page)
    if facts:
        run["properties"] = {"poisonaudit/attacks": facts}
    if page.command:
        run["invocations"] = [{"commandLine": page.command, "executionSuccessful": True}]
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def sarif_result(gate: GateOutcome, index: int) -> dict[str, Any]:
    """One rule outcome; SARIF's kind tells pass, fail and open apart."""
    kind, level = _KINDS.get(gate.outcome, ("open", "none"))
    subject = gate.subject or "all models"
    return {
        "ruleId": gate.rule,
        "ruleIndex": index,
        "kind": kind,
        "level": level,
        "message": {"text": f"{gate.outcome}: {gate.fact}"},
        "locations": [{"logicalLocations": [{"fullyQualifiedName": subject, "kind": "object"}]}],
    }


def attack_facts(page: Page) -> list[dict[str, str]]:
    """What there is to say of every attack besides rules, as plain texts: none of it is an outcome of a rule."""
    facts = []
    for found in page.findings:
        fact = {"attack": found.label, "model": found.model, "standing": found.standing, "sentence": found.sentence}
        cost = cost_of(found.attack.verified_cost)
        if cost is not None:
            fact["verified_cost"] = cost.sentence
        told = [told_rival(line) for line in rivals(found)]
        if told:
            fact["beside_other_attacks"] = "; ".join(told)
        facts.append(fact)
    return facts


def told_rival(line: Rival) -> str:
    """One attack beside others in a few words."""
    if not line.applicable:
        return f"{line.name}: not applicable{f' ({line.reason})' if line.reason else ''}"
    if line.tally.empty:
        return f"{line.name}: not retrained"
    return f"{line.name}: mean over fresh seeds {number(line.tally.mean)}, success {line.tally.rate or 'not stored'}"


def render_junit(result: Result, *, command: str = "", title: str | None = None) -> str:
    """Rule outcomes as JUnit XML: FAIL is a failure, INCONCLUSIVE an error, so neither can look like a pass.

    Args:
        result: whose rules to list.
        command: stored as a property of the suite, as are verified costs and other attacks.
        title: name of the suite.

    Returns:
        The document as XML text.
    """
    page = make_page(result, command, title)
    failures = sum(gate.outcome == "FAIL" for gate in page.gates)
    errors = sum(gate.outcome not in ("FAIL", "PASS") for gate in page.gates)
    counts = {"tests": str(len(page.gates)), "failures": str(failures), "errors": str(errors)}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": page.title, **counts, "skipped": "0"})
    told = {"command": page.command} if page.command else {}
    for fact in attack_facts(page):
        for key in ("verified_cost", "beside_other_attacks"):
            if key in fact:
                told[f"{key}: {fact['attack']}"] = fact[key]
    if told:
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in told.items():
            ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    for gate in page.gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": gate.subject or "all", "name": gate.rule})
        if gate.outcome != "PASS":
            tag = "failure" if gate.outcome == "FAIL" else "error"
            ElementTree.SubElement(case, tag, {"message": gate.fact, "type": gate.outcome})
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
