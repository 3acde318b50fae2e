"""The page of the graph tool: everything in the data is in it, nothing is loaded, nothing of the data is run."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import page_samples as samples
from ostinato.graphs.inspect.page import render, write_page
from ostinato.graphs.inspect.page.changes import changes_of, groups_of
from ostinato.graphs.inspect.page.colours import scale, step_of
from ostinato.graphs.inspect.page.documents import Timeline, TimelineStep
from ostinato.graphs.inspect.page.places import same_file, shortest_names
from ostinato.graphs.inspect.page.quantities import bytes_text, percent_text, seconds_text
from ostinato.graphs.inspect.page.steps import component_names, family_of, step_of_graph
from ostinato.graphs.inspect.page.timeline import columns_of
from ostinato.layers.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "</script><script>alert(1)</script>\"' onload=alert(2) <img src=x onerror=alert(3)> ]]> &lt; \x00\x1b"
VOID = {"meta", "input", "br", "link", "img", "hr"}


class Element(dict[str, str]):
    """Attributes of an element, with its tag and the text in it."""

    def __init__(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        super().__init__((name, value or "") for name, value in attributes)
        self.tag = tag
        self.parts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.parts)


class Page(HTMLParser):
    """Elements in order; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, attrs))
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.parts.append(data)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of a tag; ``class_`` is one of the words of an element's class."""
        found = [each for each in self.elements if each.tag == tag]
        for name, value in attributes.items():
            key = name.rstrip("_").replace("_", "-")
            found = [each for each in found if value in each.get(key, "").split() or each.get(key) == value]
        return found


def pictures(text: str) -> list[ElementTree.Element]:
    """The outermost svg elements, each parsed as XML."""
    found, depth, start = [], 0, 0
    body = re.sub(r"<script.*?</script>", lambda match: " " * len(match.group()), text, flags=re.S)
    for match in re.finditer(r"<svg\b|</svg>", body):
        if match.group() == "<svg":
            start = match.start() if depth == 0 else start
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                found.append(ElementTree.fromstring(body[start : match.end()]))
    return found


def lanes_of(text: str) -> ElementTree.Element:
    return next(svg for svg in pictures(text) if svg.get("class") == "lanes")


def data_of(page: Page, identity: str = "g0") -> dict[str, Any]:
    return json.loads(page.all("script", id=f"{identity}-data")[0].text)


@pytest.fixture(scope="module")
def page(real_size: str) -> Page:
    return Page(real_size)


@pytest.fixture(scope="module")
def real_size() -> str:
    """The page of a 28-layer step at 8 sizes with everything else that the tool can add."""
    capture = samples.capture((1, 2, 4, 8, 16, 24, 32, 64))
    return render([capture, samples.report(), samples.sizes(), samples.timeline(), samples.startup()], "decode")


def small(**changes: Any) -> dict[str, Any]:
    return samples.capture((1, 2), layers=2) | changes


# What is in it


def test_every_finding_has_a_row_with_all_it_says(page: Page) -> None:
    rows = page.all("tr", class_="finding")
    assert len(rows) == len(samples.findings())
    for finding in samples.findings():
        row = next(row for row in rows if finding["message"] in row.text)
        place = f"{Path(finding['file']).name}:{finding['line']}" if finding["file"] else "no line"
        for part in (finding["code"], finding["severity"], place, finding["evidence"], finding["fix"], finding["doc"]):
            assert part in row.text


def test_errors_come_first_and_the_same_finding_of_two_files_once(page: Page) -> None:
    classes = [row["class"].split()[1] for row in page.all("tr", class_="finding")]
    assert classes == ["error", "error", "warning", "info"]


def test_each_severity_shown_can_be_hidden(page: Page) -> None:
    boxes = {box["id"] for box in page.all("input", type="checkbox")}
    assert boxes == {"show-error", "show-warning", "show-info"}
    style = page.all("style")[0].text
    assert all(f"body:has(#{box}:not(:checked)) tr.finding.{box[5:]}" in style for box in boxes)


def test_what_was_not_checked_is_listed_and_never_folded(page: Page) -> None:
    (not_checked,) = page.all("ul", class_="not-checked")
    assert "streams" in not_checked.text and "an opaque operator" in not_checked.text
    assert not any("opaque operator" in folded.text for folded in page.all("details"))


def test_every_operator_and_every_node_has_a_tick(real_size: str) -> None:
    graph = samples.capture((64,))["graphs"]["64"]
    drawn = lanes_of(real_size)
    ops = [int(tick.get("data-o", -1)) for tick in drawn.iter(f"{SVG}rect") if tick.get("data-o")]
    nodes = [tick for tick in drawn.iter(f"{SVG}rect") if tick.get("data-n")]
    assert ops == list(range(len(graph["ops"])))
    assert len(nodes) == len(graph["nodes"])
    assert len(graph["ops"]) > 1000


def test_the_data_for_the_script_has_every_operator_of_every_size(page: Page) -> None:
    data = data_of(page)
    site, op = data["op"].index("site"), data["site"].index("op")
    assert [step["size"] for step in data["steps"]] == [1, 2, 4, 8, 16, 24, 32, 64]
    for step in data["steps"]:
        graph = samples.capture((step["size"],))["graphs"][str(step["size"])]
        assert [data["strings"][data["sites"][row[site]][op]] for row in step["ops"]] == [
            each["op"] for each in graph["ops"]
        ]


def test_ticks_fill_the_width_without_overlap_and_widths_are_times(real_size: str) -> None:
    drawn = lanes_of(real_size)
    ticks = [tick for tick in drawn.iter(f"{SVG}rect") if tick.get("data-n")]
    places = [(float(tick.get("x", "")[:-1]), float(tick.get("width", "")[:-1])) for tick in ticks]
    assert all(x + width <= after + 0.002 for (x, width), (after, _) in pairwise(places))
    seconds = [node["seconds"] for node in samples.capture((64,))["graphs"]["64"]["nodes"]]
    widest = max(range(len(seconds)), key=seconds.__getitem__)
    assert places[widest][1] == max(width for _, width in places)
    assert places[widest][1] == pytest.approx(100 * seconds[widest] / sum(seconds), rel=0.05)


def test_a_hazard_is_outlined_and_a_frozen_value_dashed_at_their_lines(real_size: str) -> None:
    ops = samples.capture((64,))["graphs"]["64"]["ops"]
    marked = {
        int(tick.get("data-o", "")): set(tick.get("class", "").split()) & {"hazard", "frozen"}
        for tick in lanes_of(real_size).iter(f"{SVG}rect")
        if tick.get("data-o")
    }
    for op in ops:
        at = (op["file"], op["line"])
        expected = {(samples.MODEL, 141): {"hazard", "frozen"}, (samples.STEP, 47): {"hazard"}}.get(at, set())
        assert marked[op["index"]] == expected


def test_modules_are_nested_and_a_number_stays_with_its_list(page: Page) -> None:
    data = data_of(page)
    depth, path = data["block"].index("depth"), data["block"].index("path")
    found = {(block[depth], data["strings"][block[path]]) for block in data["steps"][0]["blocks"]}
    assert {(0, "model"), (0, "lm_head"), (1, "model.layers.27"), (2, "model.layers.0.mlp")} <= found
    assert component_names("model.layers.0.mlp.up_proj") == ["model", "layers.0", "mlp", "up_proj"]
    assert component_names("blocks.0.1.norm") == ["blocks.0", "1", "norm"]
    assert component_names("") == []


def test_the_tables_by_line_add_up_to_the_step() -> None:
    page = Page(render([small()], "step"))
    step = step_of_graph(2, small()["graphs"]["2"], samples.ON_GPU, [])
    rows = [at for at, element in enumerate(page.elements) if element.get("id", "").startswith("g0-2-p")]
    counts = [next(e.text for e in page.elements[at:] if e.tag == "td" and e.get("class") == "number") for at in rows]
    assert len(rows) == len({(op["file"], op["line"]) for op in step.ops})
    assert sum(int(count) for count in counts) == len(step.ops)


def test_a_click_finds_the_rows_of_its_line_and_kernel() -> None:
    page = Page(render([small()], "step"))
    data, ids = data_of(page), {element.get("id") for element in page.elements}
    place, name = data["site"].index("place"), data["leaf"].index("name")
    for step in data["steps"]:
        assert {f"g0-{step['size']}-p{data['sites'][row[0]][place]}" for row in step["ops"]} <= ids
        names = {row[name] for row in step["leaves"] if isinstance(row, list)}
        assert len(names) > 5
        assert {f"g0-{step['size']}-k{name}" for name in names} <= ids


def test_the_matrix_has_a_row_for_each_size(page: Page) -> None:
    (matrix,) = page.all("table", class_="heat")
    for title in ("replay", "operators", "nodes", "bytes moved", "padding"):
        assert title in matrix.text
    graph = samples.capture((64,))["graphs"]["64"]
    assert seconds_text(graph["replay_seconds"]) in matrix.text
    assert percent_text(graph["rows_wasted"]) in matrix.text


def test_without_times_the_width_is_bytes_and_the_colour_the_kind_of_operator() -> None:
    text = render([samples.capture((4,), layers=1, on_gpu=False)], "step")
    page = Page(text)
    assert [button["data-metric"] for button in page.all("button") if "data-metric" in button] == ["bytes"]
    assert "no times in this file" in text
    classes = {tick.get("class") for tick in lanes_of(text).iter(f"{SVG}rect") if tick.get("data-o")}
    assert {"f-matrix", "f-attention", "f-arithmetic", "f-shape"} <= classes
    assert "roofline" not in page.all("table", class_="heat")[0].text


def test_the_kind_of_an_operator_is_told_by_its_name() -> None:
    names = (
        "aten.mm.default",
        "aten._scaled_dot_product_attention.default",
        "aten.index_put_.default",
        "aten.t.default",
    )
    assert [family_of(name) for name in names] == ["matrix", "attention", "memory", "shape"]
    assert family_of("aten.rsqrt.default") == "arithmetic"


def test_sizes_show_what_is_captured_now_and_what_is_proposed() -> None:
    text = render([samples.sizes()], "sizes")
    drawn = next(svg for svg in pictures(text) if svg.get("class") == "histogram")
    marks = Counter(mark.get("class") for mark in drawn.iter(f"{SVG}use"))
    assert marks == {"size-now": len(samples.sizes()["current"]), "size-best": len(samples.sizes()["best"])}
    assert len([bar for bar in drawn.iter(f"{SVG}rect") if bar.get("class") == "count"]) == 256
    assert "28.6 % of the computed rows are padding now (9 graphs); 19.4 % with 9 graphs" in text


def test_memory_has_a_bar_for_each_part_that_is_there() -> None:
    page = Page(render([small()], "step"))
    for size in (1, 2):
        memory = small()["graphs"][str(size)]["memory"]
        titles = [title.text for title in page.all("title")]
        for part in ("own", "shared", "exec", "external"):
            assert f"batch size {size}, {part}: {bytes_text(memory[f'{part}_bytes'])}" in titles


def test_many_steps_of_a_run_become_means_that_keep_the_sums() -> None:
    data = samples.timeline(1000)
    record = Timeline("t", {}, tuple(TimelineStep(**step) for step in data["steps"]))
    columns = columns_of(record.steps)
    assert len(columns) <= 240 and (columns[0].first, columns[-1].last) == (0, 999)
    total = sum(column.parts["gap"] * (column.last - column.first + 1) for column in columns)
    assert total == pytest.approx(sum(step["gap"] for step in data["steps"]))


def test_startup_says_hit_or_miss_in_words() -> None:
    page = Page(render([samples.startup()], "start"))
    cells = Counter(cell.text for cell in page.all("td") if cell.get("class") in ("cache-hit", "cache-miss"))
    phases = Counter(phase["cache"] for phase in samples.startup()["phases"])
    assert cells == {"✓ hit": phases["hit"], "✕ miss": phases["miss"]}


def test_empty_parts_say_so() -> None:
    empty = [samples.report([]), samples.timeline(0), samples.startup() | {"phases": []}]
    text = render([*empty, samples.sizes() | {"histogram": {}, "curve": []}], "empty")
    for sentence in ("No findings.", "No steps were recorded.", "No phases were recorded.", "The histogram is empty"):
        assert sentence in text
    assert 'class="verdict clean"' in text


def test_a_capture_of_nothing_is_still_a_page() -> None:
    data = small()
    for graph in data["graphs"].values():
        graph.update(ops=[], nodes=[], edges=[], buffers={}, replay_seconds=None, eager_seconds=None, rows_wasted=None)
        graph["memory"] = {"own_bytes": 0, "shared_bytes": 0, "exec_bytes": None, "external_bytes": 0, "by_line": []}
    assert "0 operators" in render([data], "nothing")


# Comparing


def test_what_came_went_and_changed_is_counted_by_operator() -> None:
    old, new = samples.capture((4,))["graphs"]["4"], samples.changed_capture((4,))["graphs"]["4"]
    kinds = Counter(change.kind for change in changes_of(old, new))
    assert (kinds["came"], kinds["went"], kinds["changed"]) == (3, 56, 1)
    groups = {(group.members[0].kind, group.module): len(group.members) for group in groups_of(changes_of(old, new))}
    assert groups == {
        ("changed", "lm_head"): 1,
        ("went", "model.layers.*.self_attn"): 56,
        ("came", "model.layers.*.self_attn"): 3,
    }


def test_a_graph_is_the_same_as_itself_and_moving_a_line_changes_nothing() -> None:
    old, new = (samples.capture((4,), layers=2)["graphs"]["4"] for _ in range(2))
    for op in new["ops"]:
        op["line"] += 7
    assert {change.kind for change in changes_of(old, new)} == {"same"}


def test_a_comparison_paints_and_lists_each_change_with_a_sign() -> None:
    text = render([samples.capture((4, 8)), samples.changed_capture((4, 16))], "before and after", diff=True)
    page = Page(text)
    ticks = Counter(
        tick.get("class", "").split()[0] for tick in lanes_of(text).iter(f"{SVG}rect") if tick.get("data-o")
    )
    assert (ticks["came"], ticks["went"], ticks["changed"]) == (3, 56, 1)
    words = {chip.text for chip in page.all("span", class_="chip")}
    assert {"+ batch size 16", "− batch size 8", "+ came", "− went", "~ changed", "− error device-sync"} <= words
    (gone,) = [item for item in page.all("li") if "− error" in item.text]
    assert "lengths.max().item()" in gone.text and page.all("del")
    assert "lengths.max().item()" not in page.all("section", id="findings")[0].text


def test_a_comparison_needs_two_captures() -> None:
    with pytest.raises(ConfigError, match="needs two captures, the old one first; got 1"):
        render([small(), samples.report()], "one", diff=True)


# Safe and self-contained


def test_nothing_of_the_data_becomes_markup() -> None:
    data = small(target=EVIL, not_checked=[EVIL])
    data["findings"] = [
        samples.finding("rng", "error", EVIL, 3, EVIL, EVIL, EVIL, EVIL) | {"doc": "javascript:alert(1)"}
    ]
    for graph in data["graphs"].values():
        for op in graph["ops"][:5]:
            op.update(op=EVIL, module=f"a.{EVIL}", file=EVIL, function=EVIL, shapes=EVIL, api=EVIL, inputs=[EVIL])
        for node in graph["nodes"][:5]:
            node["name"] = EVIL
        graph["memory"]["by_line"][0]["file"] = EVIL
    startup = samples.startup()
    startup["phases"][0].update(name=EVIL, why=EVIL, cache=EVIL)
    clean = Page(render([small(), samples.startup()], "title"))
    for diff in (False, True):
        text = render([data, data, startup] if diff else [data, startup], EVIL, diff=diff)
        page = Page(text)
        assert len(page.all("script")) == len(clean.all("script"))
        assert not page.all("img")
        assert not any(name.startswith("on") for element in page.elements for name in element if name not in ("open",))
        assert all(link["href"].startswith(("#", "docs/findings.md#")) for link in page.all("a"))
        assert "\x00" not in text and "\x1b" not in text
        assert pictures(text)


def test_the_page_loads_nothing(real_size: str, page: Page) -> None:
    assert not [e for e in page.elements if e.tag in ("link", "img", "iframe", "object") or e.get("src")]
    text = real_size.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert set(re.findall(r"url\((.)", real_size)) == {"#"}
    assert all(link["href"].startswith(("#", "docs/")) for link in page.all("a"))
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_every_picture_is_xml_with_a_title_and_every_identity_is_there_once(real_size: str, page: Page) -> None:
    for svg in pictures(real_size):
        assert svg.get("aria-hidden") == "true" or svg.find(f"{SVG}title") is not None
    counts = Counter(element["id"] for element in page.elements if element.get("id"))
    assert [name for name, count in counts.items() if count > 1] == []
    targets = {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")}
    assert targets <= counts.keys()


def test_the_same_input_gives_the_same_bytes() -> None:
    documents = [small(), samples.report(), samples.sizes()]
    assert render(documents, "twice") == render(json.loads(json.dumps(documents)), "twice")


def test_eight_sizes_of_a_large_step_stay_light(real_size: str, page: Page) -> None:
    assert len(real_size.encode()) < 2_000_000
    assert len(files("ostinato.graphs.inspect.page").joinpath("page.js").read_text(encoding="utf-8").splitlines()) < 300


def test_only_the_lines_needed_of_python_files_are_shown(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text("secret = 1\nlengths.max().item()  # <b>\n", encoding="utf-8")
    other = tmp_path / "key.txt"
    other.write_text("password\n", encoding="utf-8")
    found = [samples.finding("device-sync", "error", str(code), 2, None, "m")]
    found += [
        samples.finding("rng", "error", str(other), 1, None, "m"),
        samples.finding("rng", "info", str(code), 9, None, "m"),
    ]
    text = render([samples.report(found)], "lines")
    assert "lengths.max().item()  # &lt;b&gt;" in text
    assert "secret" not in text and "password" not in text
    assert ">mine.py:2<" in text and f">{code}" not in text


def test_files_have_the_shortest_name_that_tells_them_apart() -> None:
    names = shortest_names({"/a/b/step.py", "/a/c/step.py", "/a/model.py", "step.py", "/step.py"})
    assert names["/a/b/step.py"] == "b/step.py" and names["/a/c/step.py"] == "c/step.py"
    assert names["/a/model.py"] == "model.py" and names["step.py"] == "step.py"
    assert same_file("step.py", "/a/b/step.py") and not same_file("b/step.py", "/a/c/step.py")
    assert not same_file("step.py", "/a/otherstep.py")


# Errors


def written(tmp_path: Path, name: str, data: Any) -> Path:
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", r"bad.json: not JSON: line 1, column 2"),
        ("[]", "bad.json: expected an object, got list"),
        ({"schema": 1, "kind": "flamegraph"}, "bad.json.kind is 'flamegraph'; expected a report"),
        (samples.report() | {"schema": 2}, "bad.json.schema is 2; this version reads 1; a newer ostinato wrote it"),
        (samples.report() | {"verdict": "clean"}, "bad.json: report.verdict is 'clean'"),
        (samples.capture((1,), 1) | {"graphs": {}}, "bad.json.graphs is empty"),
        (samples.timeline(1) | {"steps": [{"start": 0.0}]}, r"bad.json.steps\[0\].batch_size is missing"),
        (samples.sizes() | {"histogram": {"x": 1}}, "bad.json.histogram: 'x' is no batch size"),
        (samples.startup() | {"seconds": "4"}, "bad.json.seconds: expected float, got str"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_field(tmp_path: Path, data: Any, message: str) -> None:
    path = written(tmp_path, "bad.json", data)
    with pytest.raises(ConfigError, match=message):
        write_page([path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_finding_of_a_capture_is_checked_as_one_of_a_report(tmp_path: Path) -> None:
    data = small(findings=[samples.finding("rng", "error", None, None, None, "m") | {"severity": "fatal"}])
    with pytest.raises(ConfigError, match=r"run.ograph: report.findings\[0\].severity: 'fatal'"):
        write_page([written(tmp_path, "run.ograph", data)], tmp_path / "page.html")


def test_no_files_and_no_place_to_write_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs at least one document"):
        render([], "none")
    report = written(tmp_path, "lint.json", samples.report())
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page([report], tmp_path / "no" / "page.html")


def test_a_page_is_written_with_the_names_of_its_files(tmp_path: Path) -> None:
    paths = [written(tmp_path, "lint.json", samples.report()), written(tmp_path, "run.ograph", small())]
    output = write_page(paths, tmp_path / "page.html")
    page = Page(output.read_text(encoding="utf-8"))
    assert page.all("h1")[0].text == "step.py:decode"
    assert [row.text for row in page.all("th", scope="row") if row.text.endswith(("lint.json", "run.ograph"))]
    assert str(tmp_path) not in output.read_text(encoding="utf-8")


# Readable


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_on_both_grounds(theme: int) -> None:
    style = files("ostinato.graphs.inspect.page").joinpath("page.css").read_text(encoding="utf-8")
    colours = {m[0]: m[1 + theme] for m in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", style)}
    for ground in ("ground", "raised"):
        for text in ("text", "quiet", "link", "error", "warning", "info", "came", "went", "changed"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for ground in ("block", "bar"):
        assert contrast(colours["text"], colours[ground]) >= 4.5, ground


def test_the_scale_of_the_roofline_grows_evenly_lighter() -> None:
    lightness = [luminance(colour) ** (1 / 3) for colour in scale()]
    steps = [after - before for before, after in pairwise(lightness)]
    assert min(steps) > 0 and max(steps) < 2.5 * min(steps)
    assert (step_of(0), step_of(0.999), step_of(1.3)) == (0, 9, 9)


def test_quantities_are_as_people_read_them() -> None:
    assert [bytes_text(n) for n in (None, 0, 1023, 1536, 1023 * 1024, 5 << 40)] == [
        "–", "0 B", "1023 B", "1.50 KiB", "1.00 MiB", "5.00 TiB",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (0, 3e-9, 1.25e-3, 12.34)] == ["0 s", "3.00 ns", "1.25 ms", "12.3 s"]
    assert [percent_text(share) for share in (None, 0.286, 1.0)] == ["–", "28.6 %", "100 %"]


# In a browser, where there is one


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no chromium on the PATH: the page was checked as text only")
    return found


def run_browser(browser: str, folder: Path, page: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=2000", "--window-size=1400,1200", *arguments]
    done = subprocess.run([*command, f"file://{folder / 'page.html'}"], capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


def test_the_script_draws_what_the_page_already_had(browser: str, tmp_path: Path) -> None:
    page = render([small()], "step")
    done = run_browser(browser, tmp_path, page, "--dump-dom")
    drawn = {"before": lanes_of(page), "after": lanes_of(done.stdout)}
    places = {
        when: [
            (tick.get("data-o"), tick.get("data-n"), set(tick.get("class", "").split()) - {"at"},
             pytest.approx(float(tick.get("x", "")[:-1]), abs=0.02),
             pytest.approx(float(tick.get("width", "")[:-1]), abs=0.02))
            for tick in svg.iter(f"{SVG}rect") if tick.get("data-o") or tick.get("data-n")
        ]
        for when, svg in drawn.items()
    }  # fmt: skip
    assert len(places["before"]) > 100
    assert [place[:3] for place in places["before"]] == [place[:3] for place in places["after"]]
    for before, after in zip(places["before"], places["after"], strict=True):
        assert after[3].expected == before[3] and after[4].expected == before[4]


CLICKS = """<script>
const find = (what) => document.querySelector("svg.lanes " + what);
const press = (target) => target.dispatchEvent(new MouseEvent("click", {bubbles: true}));
const ticks = () => document.querySelectorAll("svg.lanes rect[data-o]").length;
const said = [ticks()];
const blocks = [...document.querySelectorAll("svg.lanes [data-b]")];
press(blocks.find((block) => block.textContent === "layers.1").firstChild);
said.push(ticks(), document.querySelector(".crumbs").textContent);
press(find("rect.hazard.frozen[data-o]"));
said.push(document.querySelector(".detail").innerText);
said.push([...document.querySelectorAll("tr.lit")].map((row) => row.id).join());
find("").dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
said.push(ticks());
document.documentElement.dataset.said = JSON.stringify(said);
</script>"""


def test_a_click_zooms_and_lights_the_line(browser: str, tmp_path: Path) -> None:
    page = render([small()], "step").replace("</body>", f"{CLICKS}</body>")
    done = run_browser(browser, tmp_path, page, "--dump-dom")
    said = re.search(r'data-said="([^"]*)"', done.stdout)
    assert said is not None
    everything, layer, crumbs, detail, lit, again = json.loads(html.unescape(said[1]))
    assert 20 < layer < everything == again == len(small()["graphs"]["2"]["ops"])
    assert crumbs == "whole step › model › layers.1"
    assert "qwen3.py:141" in detail and "frozen-value: argument end is kept" in detail
    assert re.fullmatch(r"g0-2-p\d+(,g0-2-k\d+)?", lit)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_screenshot_is_not_blank(browser: str, tmp_path: Path, theme: str) -> None:
    page = render([small()], "step").replace("<html ", f'<html data-theme="{theme}" ')
    run_browser(browser, tmp_path, page, f"--screenshot={tmp_path / 'shot.png'}")
    content = (tmp_path / "shot.png").read_bytes()
    chunks, at = b"", 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks += content[at + 8 : at + 8 + length] if content[at + 4 : at + 8] == b"IDAT" else b""
        at += length + 12
    assert len(set(zlib.decompress(chunks))) > 100
