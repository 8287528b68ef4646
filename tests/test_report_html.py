"""The HTML report: complete, self-contained, escaped, small, repeatable, and calm about missing pieces."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from test_report_samples import COMMAND, HOSTILE, HOSTILE_QUOTE, TANH, attacks, audits, picture, sample

from poisonaudit.report import compare, render_html
from poisonaudit.report.html import stylesheet, templates
from poisonaudit.report.sections import SECTIONS
from poisonaudit.results import AttackResult, AuditResult, Comparison, Measure

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks balance and collects what the tests ask for."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(sample(), command=COMMAND)


@pytest.fixture(scope="module")
def parsed(page: str) -> Reader:
    return read(page)


def test_page_is_balanced_and_holds_every_section_in_order(parsed: Reader) -> None:
    ids = [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert ids == list(SECTIONS)
    headings = sum(tag == "h2" for tag, _ in parsed.tags)
    assert headings == len(SECTIONS) == 17


def test_ids_are_unique_and_every_reference_has_its_target(parsed: Reader) -> None:
    ids = [attributes["id"] for _, attributes in parsed.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    names = ("aria-labelledby", "aria-describedby")
    wanted = {part for _, a in parsed.tags for name in names for part in (a.get(name) or "").split()}
    wanted |= {a["href"].removeprefix("#") for _, a in parsed.tags if a.get("href")}
    wanted |= {match for _, a in parsed.tags for v in a.values() for match in re.findall(r"url\(#([^)]+)\)", v or "")}
    assert wanted and wanted <= set(ids)


def test_nothing_hostile_is_left_unescaped(page: str, parsed: Reader) -> None:
    assert HOSTILE not in page and HOSTILE_QUOTE not in page
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    assert not any(name.startswith("on") or name == "style" for _, a in parsed.tags for name in a)
    shown = "".join(parsed.text)
    assert HOSTILE in shown and HOSTILE_QUOTE in shown  # still readable, as text


def test_hostile_text_stays_text_in_title_command_and_attributes() -> None:
    evil = f"'{HOSTILE_QUOTE}{HOSTILE}</title></style>{{{{ 7 * 7 }}}}"
    result = dataclasses.replace(
        audits()[0], model=evil, data=evil, inputs={evil: evil}, environment={evil: [evil, {evil: evil}]}
    )
    parsed = read(render_html(result, command=evil, title=evil))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in parsed.tags if tag == "img")
    assert "{{ 7 * 7 }}" in "".join(parsed.text)


def test_every_template_name_is_escaped() -> None:
    environment = templates()
    assert environment.autoescape is True
    assert environment.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
    sources = (Path(templates().loader.searchpath[0])).glob("*.html")  # type: ignore[union-attr]
    assert all("safe" not in re.findall(r"\|\s*(\w+)", source.read_text(encoding="utf-8")) for source in sources)


def test_content_policy_allows_one_style_sheet_and_inline_pictures_only(page: str, parsed: Reader) -> None:
    policies = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style and style[1] == stylesheet()
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": f"'sha256-{digest}'", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip


def test_nothing_is_loaded_from_anywhere(page: str, parsed: Reader) -> None:
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "data", "srcset", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    assert "@import" not in page and "http://" not in page and "https://" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_size_and_determinism(page: str) -> None:
    assert len(page.encode("utf-8")) < 1_000_000
    assert render_html(sample(), command=COMMAND) == page


def noise(side: int, seed: int) -> dict[str, Any]:
    return {"shape": [3, side, side], "pixels": list(Random(seed).randbytes(3 * side * side))}


def test_large_pictures_stay_under_two_megabytes() -> None:
    pictures = [{"row": i, "label": 0, "clean": noise(72, i), "poisoned": noise(72, i + 1)} for i in range(6)]
    many = [dataclasses.replace(attack, pictures=pictures) for attack in attacks()] * 2
    html = render_html(compare([*audits(), *many]), command="")
    assert len(html.encode("utf-8")) < 2_000_000
    assert "left out to keep" in html


def test_every_chart_is_named_described_and_has_a_table(parsed: Reader) -> None:
    charts = [a for tag, a in parsed.tags if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 26 and all(a["role"] == "img" and a["aria-labelledby"] for a in charts)
    pictures = [a for tag, a in parsed.tags if tag == "img"]
    assert pictures and all(a["alt"] and a["width"] and a["height"] for a in pictures)
    boxes = [a for _, a in parsed.tags if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in boxes)  # reachable by keyboard


def test_values_states_and_full_digits_are_shown(page: str, parsed: Reader) -> None:
    shown = "".join(parsed.text)
    for words in (
        "not applicable",
        "skipped: cost",
        "failed",
        "∞",
        "not valid",
        "3.20×10⁻¹¹",
        "worst valid",
        "95 % interval",
    ):
        assert words in shown, words
    assert 'title="3.2e-11">3.20×10⁻¹¹<' in page and 'title="0.6666666666666666">0.6667<' in page
    for text in ("AML.T0020", "ML02:2023", "ML10:2023", "MEASURE 2.7", "data release 5.6.0"):
        assert text in shown


def test_verdict_names_every_outcome_in_words(parsed: Reader) -> None:
    shown = " ".join("".join(parsed.text).split())
    assert "3 rules applied: 1 FAIL, 1 INCONCLUSIVE, 1 PASS." in shown
    assert "6 attacks: 2 confirmed by retraining, 1 partly confirmed, 1 not confirmed" in shown
    assert "reached in 8 and missed in 10 of 18 retrainings; in 2 of the 8 the clean control" in shown
    assert "Not predicted because phi is 0.83, above 0.3; the path corrector stopped early" in shown


def test_without_rules_nothing_is_called_a_pass() -> None:
    shown = "".join(read(render_html(sample(with_gates=False), command="")).text)
    assert "No rule set" in shown and "nothing here passed or failed" in shown and "PASS" not in shown


EMPTY_ATTACK = AttackResult("", "m", "d", {}, {}, (), {}, {}, {})
NULL_ATTACK = AttackResult(
    "n", "m", "d", {"objective": None}, {"rows": None, "box": None}, [1, 2],
    {"margin": None, "valid": None, "reasons": None, "phi": None},
    {"warm": None, "fresh": [None, {"seed": None, "margin": None, "success": None}]},
    {"warm": {}, "fresh": None},
    pictures=[{}, {"row": None, "clean": None, "poisoned": {"shape": [8], "pixels": []}},
              {"clean": {"shape": [2, 2], "pixels": [1]}}],
    detectors={"activation": {"auc": None}},
)  # fmt: skip
NO_NUMBER = Measure("solution.row_modulus_max", None, "", "exact", "lower_is_safer", False, "", {"fragile": [{}, None]})
NEGATIVE = Measure("other.gain", -3.0, "", "estimate", "neutral")
MISSING = {
    "nothing": Comparison((), ()),
    "no attacks": compare(audits()),
    "no audits": compare(attacks()),
    "an audit": audits()[1],
    "an audit without measures": AuditResult("m", "d", {}),
    "an attack": attacks()[4],
    "an empty attack": EMPTY_ATTACK,
    "nulls": compare([NULL_ATTACK, EMPTY_ATTACK, AuditResult("m", "d", {m.id: m for m in (NO_NUMBER, NEGATIVE)})]),
    "not a number": AuditResult("m", "d", {"a.b": Measure("a.b", float("nan"), "", "exact", "neutral")}),
    "infinite": AuditResult("m", "d", {"a.b": Measure("a.b", float("inf"), "", "exact", "lower_is_safer")}),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_pieces_never_crash(name: str) -> None:
    parsed = read(render_html(MISSING[name], command=""))
    assert [a["id"] for tag, a in parsed.tags if tag == "section"] == list(SECTIONS)


def test_unprintable_and_endless_texts_are_tamed() -> None:
    odd = "a\x00b\u202ec\ud800d 漢字 $x^2$ \\frac " + "y" * 5000
    html = render_html(dataclasses.replace(audits()[0], model=odd), command=odd)
    html.encode("utf-8")
    assert not re.search("[\x00\u202e\ud800]", html) and "y" * 4500 not in html


def test_pictures_are_real_and_unchanged(parsed: Reader) -> None:
    uris = {a["alt"]: a["src"] for tag, a in parsed.tags if tag == "img"}
    data = base64.b64decode(uris["training row 17, label 1"].split(",", 1)[1])  # type: ignore[union-attr]
    image = Image.open(io.BytesIO(data))
    assert image.size == (8, 8) and list(image.tobytes()) == picture(17)["pixels"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_chromium_shows_the_page_with_its_style(page: str, tmp_path: Path, width: int) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    shot = tmp_path / "shot.png"
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1200", f"--screenshot={shot}",
        "--enable-logging=stderr", (tmp_path / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Content Security Policy" not in done.stderr  # the policy refuses nothing that the page needs
    image = Image.open(shot).convert("RGB")
    colours = image.getcolors(1 << 24)
    assert colours is not None
    found = {colour for _, colour in colours}
    assert (0xA9, 0x2A, 0x1F) in found or (0xF2, 0x95, 0x8B) in found  # the banner's red: the style was applied
    assert image.width == width and TANH in page


def test_the_environment_says_what_its_switch_of_torch_means() -> None:
    found = dataclasses.replace(audits()[0], environment={"torch": "2.15.0", "deterministic": False})
    text = "".join(read(render_html(found)).text)
    assert "torch.use_deterministic_algorithms" in text and "not what makes the numbers repeat" in text
    assert "not what makes the numbers repeat" not in "".join(read(render_html(audits()[0])).text)
