"""The report's page shows the numbers of its JSON, escapes what others wrote, and copes with what is not there."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from noria.artifacts import Executor, Store, StoreError
from noria.studio.report import data, write
from noria.studio.report.data_sections import general
from noria.studio.report.marks import At, filters, percent, shown, size
from noria.studio.report.page import sibling_bars
from noria.studio.report.svg import nice_ticks
from noria.studio.training_metrics import PROBE
from tests.browser import open_page
from tests.report_chain import HOSTILE, chain, finished_store


@pytest.fixture(autouse=True)
def no_disk_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and flushing to disk takes most of the time here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished turns, made once; a test takes its own copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        return finished_store(tmp_path_factory.mktemp("report") / "store", turns=2).root


@pytest.fixture
def both(made: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(made, tmp_path / "both"))


@pytest.fixture
def store(tmp_path: Path, made: Path) -> Store:
    """Turn 1 alone: another run database forgets that there was a second."""
    copy = Store(shutil.copytree(made, tmp_path / "store"))
    with closing(sqlite3.connect(copy.root / "runs.sqlite")) as database, database:
        for table in ("steps", "metrics", "events", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run = 3")
    return copy


class Numbers(HTMLParser):
    """Every (place in the JSON, value) that the page claims, and every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[tuple[str, str]] = []
        self.places: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if place := found.get("data-path"):
            self.places.append(place)
            value = found.get("value", found.get("data-value"))
            if value is not None:
                self.claims.append((place, value))


def parsed(page: str) -> Numbers:
    numbers = Numbers()
    numbers.feed(page)
    return numbers


def at(report: Any, pointer: str) -> Any:
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        report = report[int(step)] if isinstance(report, list) else report[step]
    return report


@pytest.mark.slow
def test_every_number_on_the_page_is_that_of_the_json(store: Store, tmp_path: Path) -> None:
    report = json.loads(json.dumps(data(store), allow_nan=False))
    numbers = parsed(write(store, None, tmp_path / "report.html").read_text())
    assert len(numbers.claims) > 300
    wrong = [(place, value, at(report, place)) for place, value in numbers.claims if float(value) != at(report, place)]
    assert wrong == []
    assert all(at(report, place) is not None for place in numbers.places)  # curves and bands name their place too


def test_a_finished_run_leaves_nothing_out_but_a_second_turn(store: Store) -> None:
    report = data(store, "tiny")
    assert [gap["section"] for gap in report["missing"]] == ["turns"]
    assert len(report["chain"]) == 11 and report["run"]["finished_steps"] == report["run"]["steps"]
    assert report["release"]["decision"] == "release" and report["traffic"]["logged"]["source"] == "scripted"


def test_arms_are_shown_with_the_base_model_that_they_started_from(both: Store) -> None:
    arms = data(both, "tiny")["ablations"]
    assert arms["run"] == "arms" and [row["arm"] for row in arms["differences"]] == ["sft_alone"] * 2
    assert data(both, "tiny.turn2")["ablations"] is None  # another base
    assert data(both, "arms")["ablations"] == arms


def test_the_probe_of_training_is_not_called_what_the_verdict_compares(store: Store, tmp_path: Path) -> None:
    page = write(store, "tiny", tmp_path / "r.html").read_text()
    monitors = page[page.index('id="rewards"') : page.index('id="graders"')]
    assert f'<th scope="row">{PROBE}</th>' in monitors and "heldout</th>" not in monitors


def test_what_models_documents_and_users_wrote_is_escaped(store: Store, tmp_path: Path) -> None:
    page = write(store, None, tmp_path / "report.html").read_text()
    tags = parsed(page).tags
    assert page.count("&lt;img src=x") > 20 and "49" not in page.split("&lt;script&gt;")[1][:60]
    assert not [tag for tag, _ in tags if tag in ("img", "script", "iframe", "object")]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_the_page_asks_for_nothing(store: Store, tmp_path: Path) -> None:
    page = write(store, None, tmp_path / "report.html").read_text()
    addresses = [value for _, attrs in parsed(page).tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(address and address.startswith(("#", "data:")) for address in addresses)
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page


def test_a_partial_run_leaves_sections_out_and_says_so(tmp_path: Path) -> None:
    store = finished_store(tmp_path / "store", until="evaluate_reasoning_rl")
    report = data(store)
    gaps = {gap["section"]: gap["needs"] for gap in report["missing"]}
    assert gaps["agent"] == "agent_evaluation" and gaps["release"] == "verdict" and "funnel" not in gaps
    assert [stage["model"] for stage in report["posttraining"]["stages"]] == ["cold_start", "reasoning_rl"]
    page = write(store, None, tmp_path / "report.html").read_text()
    assert "<code>agent_evaluation</code>" in page and "Left out" in page


@pytest.mark.slow
def test_every_beginning_of_a_run_has_a_report(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    steps = chain()
    for count in (1, 3, 4, 6, 7, 8, 9, 17, 22, 30, len(steps)):
        Executor(store, "tiny").run(steps[:count])
        write(store, None, tmp_path / "report.html")


def test_a_run_of_one_stage_keeps_what_earlier_runs_made_of_the_same_inputs(store: Store) -> None:
    Executor(store, "tiny").run(chain(until="corpus"))
    report = data(store)
    assert report["run"]["starts"] == 2 and report["release"]["decision"] == "release"


def test_a_changed_start_hides_what_followed_from_the_old_one(store: Store) -> None:
    Executor(store, "tiny").run(chain(turn=2, until="shards"))  # other shards: the old models no longer follow
    report = data(store, "tiny")
    assert report["funnel"] is not None and report["pretraining"] is None and report["release"] is None


def test_two_turns_stand_side_by_side_with_paired_differences(both: Store, tmp_path: Path) -> None:
    report = data(both)
    assert report["run"]["name"] == "tiny.turn2" and [gap["section"] for gap in report["missing"]] == ["ablations"]
    turns = report["turns"]
    assert [turn["turn"] for turn in turns["turns"]] == [1, 2]
    row = next(row for row in turns["differences"] if (row["model"], row["domain"]) == ("cold_start", "maths"))
    assert (row["from"], row["to"], row["n"], row["gained"]) == ("turn 1", "turn 2", 20, 1)
    assert row["difference"] == pytest.approx(1 / 20)
    assert data(both, "tiny")["turns"] == turns  # the same from either turn
    assert "Turn 2 minus turn 1" in write(both, "tiny", tmp_path / "report.html").read_text()


def test_an_empty_store_and_an_unknown_run_are_explained(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run in"):
        data(Store(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"'nano'.*there are: tiny"):
        data(store, "nano")


def test_mistakes_of_a_grader_are_counted_not_only_the_kept_examples(store: Store) -> None:
    assert [row["mistakes_total"] for row in data(store)["graders"]] == [4, 4]  # one example is kept of each


def test_reject_reasons_are_grouped_by_what_they_share(store: Store) -> None:
    assert general("exact duplicate of " + "ab" * 16) == "exact duplicate"
    assert general("boolean task " + "0f" * 16 + ", score 0.5") == "boolean task"
    rejects = data(store)["funnel"]["rejects"]
    assert (rejects[0]["reason"], rejects[0]["docs"]) == ("too few words", 3)
    assert sum(row["docs"] for row in rejects) == 4


def test_a_number_keeps_its_exact_value_and_its_place() -> None:
    share = At({"a/b": [0.125]}, "")["a/b"][0]
    assert shown(share, percent) == '<data value="0.125" data-path="/a~1b/0">12.5%</data>'
    assert "–" in filters()["percent"](At(None))
    assert [size(999), size(61_500_000), size(2e9)] == ["999 B", "61.5 MB", "2.0 GB"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.3), (3.1, 6.4), (-0.2, 0.7), (5.0, 5.0), (0.0, 0.0)])
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8


def test_charts_side_by_side_share_one_axis() -> None:
    rows = [{"name": name, "estimate": x, "low": x / 2, "high": x, "n": 9} for name, x in (("a", 0.02), ("b", 0.9))]
    groups = At([{"split": row["name"], "models": [row]} for row in rows])
    charts = sibling_bars(list(groups), "split", "models", "name")
    ticks = [re.findall(r'<text class="tick"[^>]*>([^<]*)', chart) for chart in charts]
    assert ticks[0] == ticks[1] and ticks[0][-1] == "100.0%"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_wide_tables_show_that_there_is_more_and_keys_stay_whole(both: Store, tmp_path: Path, width: int) -> None:
    path = write(both, None, tmp_path / "report.html")
    with open_page(width) as (page, _):
        page.goto(path.as_uri())
        shadows = page.evaluate("getComputedStyle(document.querySelector('#release .scroll')).backgroundAttachment")
        assert shadows == "local, local, scroll, scroll"
        lines = page.locator(".chain .key").evaluate_all(
            "all => all.map(one => { const text = new Range(); text.selectNodeContents(one); "
            "return text.getClientRects().length })"
        )
        assert set(lines) == {1}
        arrows = "all => all.map(one => getComputedStyle(one, '::after').content)"
        assert set(page.locator(".chain > li.loop").evaluate_all(arrows)) == {"none"}
        assert page.locator(".chain > li").evaluate_all(arrows)[0] != "none"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_errors_or_requests(both: Store, tmp_path: Path, width: int) -> None:
    path = write(both, None, tmp_path / "report.html")
    with open_page(width) as (page, errors):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.title() == "noria report: tiny.turn2"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("svg[role=img]").count() > 15
        assert page.locator("svg[role=img]:not([aria-label])").count() == 0
        assert page.locator("img, script").count() == 0
        assert HOSTILE in page.inner_text("#samples")
        page.click("label[for=unit-docs]")
        assert page.locator("svg.sankey:visible").count() == 1
        assert asked == [path.as_uri()] and errors == []
