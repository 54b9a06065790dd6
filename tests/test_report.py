"""The report: what its numbers are, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from builder.dataset.layout import Manifest
from builder.dataset.pictures import merged_bins
from builder.dataset.read import date_text
from builder.dataset.summary import galactic_plane
from builder.model.errors import MissingExtraError, OutputError
from builder.model.records import REASONS
from builder.use.report import SAMPLE, write_report
from tests.runs import command

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)
HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"


def copied(sample: Path, folder: Path, **changes: Any) -> Path:
    """A folder like `sample`, with tables put through functions: ``data=``, ``counts=`` and ``rejections=``."""
    folder.mkdir()
    shutil.copytree(sample / "ebounds", folder / "ebounds")
    for config in ("data", "counts"):
        (folder / config).mkdir()
        table = changes.get(config, lambda table: table)(pq.read_table(sample / config))
        pq.write_table(table, folder / config / "train-00000-of-00001.parquet", row_group_size=1000)
    rejections = pq.read_table(sample / "rejections.parquet")
    pq.write_table(changes.get("rejections", lambda table: table)(rejections), folder / "rejections.parquet")
    manifest = Manifest.read(sample)
    rows = pq.read_metadata(folder / "data" / "train-00000-of-00001.parquet").num_rows
    replace(manifest, counts=replace(manifest.counts, rows=rows)).write(folder)
    return folder


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def tiled(times: int) -> Any:
    """What repeats a table's rows, under names and ids of their own, with net counts that rise."""

    def tile(table: pa.Table) -> pa.Table:
        tiles = pa.concat_tables([table] * times)
        tiles = with_column(tiles, "detection_id", [f"{number}.0.1" for number in range(len(tiles))])
        tiles = with_column(tiles, "name", [f"SIM {number}" for number in range(len(tiles))])
        return with_column(tiles, "src_cnts_aper_b", [float(number) for number in range(len(tiles))])

    return tile


def only(table: pa.Table) -> pa.Table:
    """A table's first row alone; of the config ``spectra``, without a name and without net counts."""
    for name in {"name", "src_cnts_aper_b"} & set(table.column_names):
        table = with_column(table, name, [None] * len(table))
    return table.slice(0, 1)


def data_of(page: Path) -> dict[str, Any]:
    """What is in the page's element `data`."""
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL
    )
    return json.loads(text)  # type: ignore[no-any-return]


def facts_of(page: Path) -> dict[str, list[Any]]:
    return {fact["name"]: fact["values"] for fact in data_of(page)["rows"]["facts"]}


@pytest.fixture(scope="module")
def pages(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample's page, that of many rows, of one without a name, of none, and of hostile names and messages."""
    root = tmp_path_factory.mktemp("pages")
    none = {"data": lambda table: table.slice(0, 0), "counts": lambda table: table.slice(0, 0)}
    hostile = {
        "data": lambda table: with_column(table, "name", [HOSTILE] * len(table)),
        "rejections": lambda table: with_column(table, "message", [HOSTILE] * len(table)),
    }
    folders = {
        "sample": sample,
        "many": copied(sample, root / "many", data=tiled(34), counts=tiled(34)),
        "one": copied(sample, root / "one", data=only, counts=only),
        "none": copied(sample, root / "none", **none),
        "hostile": copied(sample, root / "<b>&amp;", **hostile),
    }
    for name, folder in folders.items():
        write_report(folder, root / f"{name}.html")
    return {name: root / f"{name}.html" for name in folders}


# what it says


def test_everything_drawn_of_all_rows_adds_up_to_them(sample: Path, pages: dict[str, Path]) -> None:
    rows = pq.read_table(sample / "data").to_pylist()
    data = data_of(pages["sample"])
    assert sum(data["sky"]["rows"]) == len(rows)
    assert data["sky"]["cell"] == sorted({row["healpix"] for row in rows})
    names = ("src_cnts_aper_b", "theta", "n_bins")
    for name, histogram in zip(names, data["histograms"], strict=True):
        values = [row[name] for row in rows if row[name] is not None]
        assert sum(histogram["rows"]) == len(values) >= len(rows) - 2
        assert histogram["edges"][0] <= min(values) <= max(values) < histogram["edges"][-1]
        assert histogram["rows"] == np.histogram(values, histogram["edges"])[0].tolist()
    both = [row for row in rows if None not in (row["hard_ms"], row["hard_hm"])]
    assert np.sum(data["hardness"]["rows"]) == data["hardness"]["known"] == len(both)
    high = [row for row in both if row["hard_hm"] > 0]
    assert np.sum(data["hardness"]["rows"][20:]) == len(high)  # a line of the matrix is of one hard_hm


def test_the_sky_has_right_ascension_rising_to_the_left_and_keeps_areas(pages: dict[str, Path]) -> None:
    sky = data_of(pages["sample"])["sky"]
    half = [(x, ra) for x, ra in zip(sky["x"], sky["ra"], strict=True) if 0 < ra < 180]
    assert half and all(x < 0 for x, _ in half)
    x, y, _ = sky["hours"]
    assert y == [0] * 5
    assert x == pytest.approx(np.array([-120, -60, 0, 60, 120]) / 180 * 2 * np.sqrt(2), rel=1e-3)
    x, y, _ = sky["degrees"]
    # Snyder 1987, table 42: at latitudes 30 and 60 the height is 0.4040 and 0.7624 of the pole's
    assert np.array(y) / np.sqrt(2) == pytest.approx([-0.7624, -0.4040, 0.4040, 0.7624], abs=2e-4)


def test_the_galactic_plane_passes_through_the_galactic_centre() -> None:
    centre = np.radians([266.405, -28.936])  # J2000
    assert galactic_plane(centre[:1]) == pytest.approx(centre[1], abs=2e-4)


def test_the_spectra_are_those_of_the_shards(sample: Path, pages: dict[str, Path]) -> None:
    rows = {row["detection_id"]: row for row in pq.read_table(sample / "data").to_pylist()}
    facts, spectra = facts_of(pages["sample"]), data_of(pages["sample"])["rows"]["spectra"]
    assert sorted(facts["detection_id"]) == sorted(rows)
    for number, (detection, spectrum) in enumerate(zip(facts["detection_id"], spectra, strict=True)):
        row = rows[detection]
        assert spectrum["rate"] == pytest.approx(row["spectrum"]["flux"], rel=1e-3)
        assert spectrum["error"] == pytest.approx(row["spectrum"]["flux_error"], rel=1e-3)
        assert spectrum["edges"][:-1] == pytest.approx(row["spectrum"]["ene_low_bin"], rel=1e-4)
        assert spectrum["edges"][1:] == pytest.approx(row["spectrum"]["ene_high_bin"], rel=1e-4)
        assert sum(spectrum["counts"]) == row["source_counts"]
        assert facts["theta"][number] == pytest.approx(row["theta"])
        assert facts["hard_hm"][number] == (None if row["hard_hm"] is None else pytest.approx(row["hard_hm"]))


def test_the_page_tells_selection_recipe_command_and_reasons(sample: Path, pages: dict[str, Path]) -> None:
    words = pages["sample"].read_text(encoding="utf-8")
    for said in (
        "the whole embedded sample",
        "0.5–8 keV kept",
        "at least 5 counts a bin",
        "release 1, and simulated",
        "--archive embedded",
        "Two of its rows are real: 4938.0.43",
        "<code>train</code> ",
    ):
        assert said in words, said
    reasons = Manifest.read(sample).counts.reasons
    assert reasons
    for reason in reasons:
        assert f"<code>{reason}</code></td><td>{REASONS[reason]}</td>" in words
    for message in pq.read_table(sample / "rejections.parquet")["message"].to_pylist():
        assert message.replace("'", "&#x27;") in words


def test_the_command_makes_a_folder_of_the_same_name(pages: dict[str, Path]) -> None:
    assert "<pre>chandra-spectra prepare many " in pages["many"].read_text(encoding="utf-8")
    assert "prepare &#x27;&lt;b&gt;&amp;amp;&#x27; " in pages["hostile"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "said"), [("none", "0.0 ks"), ("one", "50.5 ks"), ("sample", "1.902 Ms"), ("many", "64.658 Ms")]
)
def test_the_exposure_has_a_unit_of_its_size(pages: dict[str, Path], page: str, said: str) -> None:
    assert f"<dt>exposure</dt><dd>{said}</dd>" in pages[page].read_text(encoding="utf-8")


def test_the_same_folder_gives_the_same_bytes_without_paths_of_this_machine(
    sample: Path, pages: dict[str, Path], tmp_path: Path
) -> None:
    write_report(sample, tmp_path / "again.html")
    page = (tmp_path / "again.html").read_bytes()
    assert page == pages["sample"].read_bytes()
    assert str(sample.parent).encode() not in page
    assert Manifest.read(sample).created[:10].encode() not in page
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_many_rows_become_a_sample_from_the_faintest_to_the_brightest_and_the_page_stays_small(
    pages: dict[str, Path],
) -> None:
    facts, data = facts_of(pages["many"]), data_of(pages["many"])
    total, shown = data["total"], len(data["rows"]["spectra"])
    assert total == 34 * 62 > SAMPLE
    assert 500 < shown < SAMPLE  # these spectra have more bins than most: it is the bins that are limited
    assert sum(len(spectrum["rate"]) for spectrum in data["rows"]["spectra"]) <= 200_000
    counts = facts["src_cnts_aper_b"]
    assert (counts[0], counts[-1]) == (total - 1, 0)
    steps = -np.diff(counts)
    assert steps.min() >= 1 and steps.max() - steps.min() <= 1
    assert sum(data["sky"]["rows"]) == total
    assert pages["many"].stat().st_size < 12e6


# what it refuses


def test_a_page_within_the_prepared_folder_is_refused(sample: Path) -> None:
    before = sorted(sample.rglob("*"))
    result = command("report", ".", cwd=sample)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "report.html would lie in the prepared folder" in result.stderr
    assert sorted(sample.rglob("*")) == before


def test_without_plotly_one_line_says_what_to_install(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'chandra-spectra\[report\]'"):
        write_report(sample, tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_written_is_one_clear_line_and_leaves_nothing_behind(
    sample: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="is not a prepared folder"):
        write_report(tmp_path, tmp_path.parent / "a.html")
    with pytest.raises(OutputError, match=r"a\.png: give a name that ends in \.html"):
        write_report(sample, tmp_path / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*a\.html"):
        write_report(sample, tmp_path / "file" / "a.html")
    (tmp_path / "a.html").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a\.html"):
        write_report(sample, tmp_path / "a.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "file"]


def test_the_command_writes_report_html_here_and_says_how_large_it_is(sample: Path, tmp_path: Path) -> None:
    result = command("report", sample, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"report\.html: \d\.\d MB, with 62 of 62 spectra one by one\n", result.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        why = "no Chromium with its chromedriver on the PATH to open the report in"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield opened
    finally:
        opened.quit()


class Page:
    """A report that is open in the browser, and what its reader does and sees."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what was said before is not of this page
        self.address = path.as_uri()
        browser.get(self.address)
        self.run("return document.fonts.ready.then(() => true)")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def one(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    @property
    def rows(self) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")  # type: ignore[no-any-return]

    def column(self, number: int) -> list[str]:
        """The texts of a column over all pages of the table."""
        texts: list[str] = []
        while True:
            texts += self.run(
                "return [...document.querySelectorAll('#table tbody tr')]"
                ".map((row) => row.cells[arguments[0]].textContent)",
                number,
            )
            if not self.one("#forth").is_enabled():
                return texts
            self.one("#forth").click()

    def search(self, text: str) -> None:
        field = self.one("#search")
        field.clear()
        field.send_keys(text)

    def click_cell(self, cell: int) -> None:
        self.run(
            "document.getElementById('sky').emit('plotly_click', { points: [{ customdata: arguments[0] }] })", cell
        )

    def traces(self) -> list[dict[str, Any]]:
        """What plotly has drawn of the spectrum: name, x and y of each trace."""
        return self.run(  # type: ignore[no-any-return]
            "return document.getElementById('spectrum').data.map(({ name, x, y }) => ({ name, x: [...x], y: [...y] }))"
        )

    def assert_quiet(self) -> None:
        """No error was said, and nothing was asked of a network."""
        assert [line["message"] for line in self.browser.get_log("browser")] == []
        assert self.run("return performance.getEntriesByType('resource').length") == 0
        events = [json.loads(line["message"])["message"] for line in self.browser.get_log("performance")]
        asked = {
            event["params"]["request"]["url"].partition(":")[0]
            for event in events
            if event["method"] == "Network.requestWillBeSent" and event["params"]["documentURL"] == self.address
        }
        assert asked <= {"file", "data", "blob"}
        assert "file" in asked  # the page itself: the log does tell


@pytest.fixture
def page(browser: Any, pages: dict[str, Path]) -> Iterator[Page]:
    opened = Page(browser, pages["sample"])
    yield opened
    opened.assert_quiet()


def test_it_opens_with_all_its_pictures_and_the_brightest_spectrum(page: Page, sample: Path) -> None:
    for plot in ("sky", "histogram-0", "histogram-1", "histogram-2", "hardness", "spectrum"):
        assert page.run("return document.querySelectorAll(`#${arguments[0]} .main-svg`).length", plot) > 0, plot
    heads = page.run("return [...document.querySelectorAll('#table th')].map((head) => head.textContent)")
    assert heads == [
        "source",
        "detection",
        "observed",
        "exposure ks",
        "net counts",
        "S/N",
        "off axis arcmin",
        "bins",
        "hardness (h–m)",
        "split",
    ]
    titles = page.run("return [...document.querySelectorAll('#table th button')].map((button) => button.title)")
    assert all(titles) and titles[8].startswith("hardness ratio (hard - medium) / (hard + medium)")
    rows = pq.read_table(sample / "data").to_pylist()
    brightest = max(rows, key=lambda row: row["src_cnts_aper_b"] or 0)
    assert page.one("#title").text.startswith(f"{brightest['name']}, {brightest['detection_id']}, ")
    assert page.one("#sampled").text == "All 62 rows."
    assert "a click on a cell lists its rows below" in page.one("#overview").text


@pytest.mark.parametrize("how", ["click", "Enter"])
def test_a_row_shows_its_spectrum_by_click_and_by_key(page: Page, sample: Path, how: str) -> None:
    row = page.rows[3]
    detection = row.get_attribute("data-detection")
    assert detection not in page.one("#title").text
    if how == "click":
        row.click()
    else:
        page.run("arguments[0].focus()", row)
        page.browser.switch_to.active_element.send_keys("\ue007")
    (expected,) = pq.read_table(sample / "data", filters=[("detection_id", "=", detection)]).to_pylist()
    assert f", {detection}, {expected['exposure'] / 1000:.1f} ks, " in page.one("#title").text
    assert page.run("return document.querySelector('[aria-selected=true]').dataset.detection") == detection
    steps, crosses, middles = page.traces()
    names = ("ene_low_bin", "ene_high_bin", "flux", "flux_error")
    low, high, rate, error = (np.array(expected["spectrum"][name], float) for name in names)
    above = rate > 0
    assert np.array(steps["y"])[::2][above] == pytest.approx(rate[above], rel=1e-3)
    _, (low, high, together, error) = merged_bins(low, high, rate, error)
    assert len(together) < len(rate)
    assert crosses["x"][::6] == pytest.approx(low, rel=1e-4) and crosses["x"][1::6] == pytest.approx(high, rel=1e-4)
    assert np.array(crosses["y"][::6])[together > 0] == pytest.approx(together[together > 0], rel=1e-2)
    assert np.array(crosses["y"][4::6]) == pytest.approx(together + error, rel=1e-2)
    assert middles["x"] == pytest.approx(expected["spectrum"]["ene_center_bin"], rel=1e-3)
    assert (
        min(step for trace in (crosses, steps) for step in trace["y"] if step is not None) > 0
    )  # the axis is logarithmic
    facts = page.one("#facts").text
    assert f"theta {expected['theta']:.3f}"[:9] in facts and "arcmin" in facts and "erg s-1 cm-2" in facts
    assert f"gti_mjd_obs MJD {expected['gti_mjd_obs']:.8g} ({date_text(expected['gti_mjd_obs'])})" in facts


def test_a_drag_zooms_and_a_double_click_goes_back(page: Page) -> None:
    def ranges() -> list[float]:
        return page.run(  # type: ignore[no-any-return]
            "const { xaxis, yaxis } = document.getElementById('spectrum').layout;"
            "return [...xaxis.range, ...yaxis.range]"
        )

    first = ranges()
    page.search("4938.0.43")
    page.rows[0].click()
    seen = [first]
    for shown in ("rate", "counts"):
        page.one(f"input[value={shown}]").click()
        whole = ranges()
        assert whole not in seen  # the ranges are the spectrum's own
        seen.append(whole)
        page.run("document.getElementById('one').scrollIntoView()")
        actions, plot = webdriver.ActionChains(page.browser), page.one("#spectrum .nsewdrag")
        actions.move_to_element_with_offset(plot, -100, -50).click_and_hold().move_by_offset(
            150, 100
        ).release().perform()
        zoomed = ranges()
        assert whole[0] < zoomed[0] < zoomed[1] < whole[1]
        assert whole[2] < zoomed[2] < zoomed[3] < whole[3]
        assert page.browser.find_elements(By.CSS_SELECTOR, ".plotly-notifier") == []  # it would cover the buttons
        webdriver.ActionChains(page.browser).double_click(plot).perform()
        assert ranges() == pytest.approx(whole)


def test_counts_and_background_are_shown_when_asked_for(page: Page, sample: Path) -> None:
    page.search("4938")
    page.rows[0].click()
    page.one("input[value=counts]").click()
    source, background, _ = page.traces()
    assert (source["name"], background["name"]) == ("source region", "background, scaled")
    (row,) = pq.read_table(sample / "data", filters=[("detection_id", "=", "4938.0.43")]).to_pylist()
    assert sum(source["y"][::2]) == row["source_counts"]
    assert sum(background["y"][::2]) == pytest.approx(
        row["background_counts_total"] * row["background_scale"], rel=1e-3
    )
    page.one("input[value=rate]").click()
    assert page.traces()[0]["name"] is None


def test_search_finds_by_name_detection_and_observation(page: Page, sample: Path) -> None:
    rows = pq.read_table(sample / "data").to_pylist()
    obsid = next(row["obsid"] for row in rows if sum(other["obsid"] == row["obsid"] for other in rows) > 1)
    for text, expected in (
        ("j231929", {"4938.0.43"}),
        ("7867.0.2", {row["detection_id"] for row in rows if "7867.0.2" in row["detection_id"]}),
        (str(obsid), {row["detection_id"] for row in rows if str(obsid) in row["detection_id"]}),
    ):
        page.search(text)
        assert set(page.column(1)) == expected
        assert page.one("#found").text == f"{len(expected)} found"
    page.search("no such thing")
    assert page.rows == []
    assert page.one("#nothing").text == "Nothing found."


def test_a_cell_of_the_sky_lists_its_rows(page: Page, sample: Path) -> None:
    rows = pq.read_table(sample / "data").to_pylist()
    cell = rows[5]["healpix"]
    page.click_cell(cell)
    assert set(page.column(1)) == {row["detection_id"] for row in rows if row["healpix"] == cell}


def test_headers_sort_numbers_as_numbers_with_nulls_last_either_way(page: Page) -> None:
    def sort(number: int) -> list[str]:
        page.browser.find_elements(By.CSS_SELECTOR, "#table th button")[number].click()
        return page.column(number)

    for number, down_first in ((5, True), (7, True), (0, False)):
        one, other = sort(number), sort(number)
        assert len(one) == len(other) == 62
        for texts, down in ((one, down_first), (other, not down_first)):
            known = [text for text in texts if text]
            assert texts == known + [""] * (62 - len(known))
            values = known if number == 0 else [float(text.replace(",", "")) for text in known]
            assert values == sorted(values, reverse=down)
        assert (len(known) < 62) == (number == 5)  # the two real rows have no flux significance
    ids = [tuple(map(int, text.split(".")[:3])) for text in sort(1)]
    assert ids == sorted(ids)
    assert page.run("return document.querySelector('#table th[aria-sort]').textContent") == "detection"


def test_a_sample_says_everywhere_that_it_is_one(browser: Any, pages: dict[str, Path]) -> None:
    page = Page(browser, pages["many"])
    facts, sky = facts_of(pages["many"]), data_of(pages["many"])["sky"]
    part = f"{len(facts['name']):,} of 2,108 rows"
    assert page.one("#sampled").text.startswith(f"A sample: {part}, evenly spaced in the order of their net counts.")
    assert "a click on a cell lists below those of its rows that are in the sample" in page.one("#overview").text
    assert page.one("label").text == "Search the sample"
    page.search(facts["name"][0])
    assert page.one("#found").text == "1 found in the sample"
    page.search("SIM 9999")
    assert page.one("#nothing").text == (
        f"Nothing found among the {part} in this page; chandra-spectra plot many --name NAME draws any row."
    )
    rows, cell = max(zip(sky["rows"], sky["cell"], strict=True))
    page.click_cell(cell)
    listed = facts["healpix"].count(cell)
    assert 0 < listed < rows
    assert page.one("#found").text == f"the sample has {listed} of {rows} spectra in this cell"
    page.assert_quiet()


def test_a_single_row_without_a_name_and_without_net_counts_has_a_page_too(
    browser: Any, pages: dict[str, Path]
) -> None:
    page = Page(browser, pages["one"])
    (detection,) = facts_of(pages["one"])["detection_id"]
    assert page.one("#sampled").text == "The only row."
    assert page.one("#title").text.startswith(f"{detection}, ")
    page.search("null")
    assert page.rows == []
    page.search(detection)
    assert page.column(1) == [detection]
    assert page.one("#histogram-0").text == "net counts, 0.5-7 keV:no values"  # in two lines
    ticks = page.browser.find_elements(By.CSS_SELECTOR, "#histogram-1 .ytick text")
    assert [tick.text for tick in ticks] == ["0", "1"]
    page.assert_quiet()


def test_a_folder_without_rows_has_a_page_too(browser: Any, pages: dict[str, Path]) -> None:
    page = Page(browser, pages["none"])
    assert page.one("#nothing").text == "The folder has no rows."
    assert not page.one("#one").is_displayed()
    assert "no values" in page.one("#histogram-0").text
    page.assert_quiet()


def test_names_and_messages_are_text_whatever_they_hold(browser: Any, pages: dict[str, Path]) -> None:
    page = Page(browser, pages["hostile"])
    assert page.rows[0].find_element(By.CSS_SELECTOR, "td").text == HOSTILE
    assert page.one("#title").text.startswith(HOSTILE)
    page.one("details summary").click()
    assert page.one("details tbody tr").text.endswith(HOSTILE)
    assert page.browser.title.startswith("<b>&amp;: X-ray spectra")
    assert page.run("return window.hurt === undefined && document.images.length === 0")
    page.assert_quiet()


@pytest.mark.parametrize("width", [1280, 1024])
def test_nothing_sticks_out_of_the_window(browser: Any, pages: dict[str, Path], width: int) -> None:
    browser.set_window_size(width, 1000)
    page = Page(browser, pages["sample"])
    for within in (
        "document.documentElement",
        "document.querySelector('#rows .scroll')",
        "document.querySelector('#facts')",
    ):
        assert page.run(f"return {within}.scrollWidth <= {within}.clientWidth"), within
    page.assert_quiet()
