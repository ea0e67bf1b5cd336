"""The page of plans: self-contained, escaped, bars whose shares add up, tables with every number."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.errors import ConfigError
from maxlm.parallel.chips import CHIPS
from maxlm.plan.report.explain import explain
from maxlm.plan.report.page import render, write_page
from tests.plan.made_plans import ALL, collective, fitting, memory, operation, too_large

VOID = {"meta", "wbr", "br", "input"}


class Dom(HTMLParser):
    """Checks that elements nest, and keeps them with their attributes and the text."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def bars(self) -> list[list[float]]:
        """Widths of each bar's pieces in percent."""
        found: list[list[float]] = []
        for tag, attributes in self.elements:
            if attributes.get("role") == "img":
                found.append([])
            elif tag == "span" and (
                match := re.match(r"width:([\d.]+)%", attributes.get("style") or "")
            ):
                found[-1].append(float(match[1]))
        return found


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_page_nests_needs_no_network_and_runs_no_script(make):
    page = render([make()], [["a sentence"]])
    dom = Dom(page)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in dom.elements}
    assert "http" not in re.sub(r'<meta http-equiv="[^"]*"', "", page) and "url(" not in page
    assert "a sentence" in dom.text and "{{" not in page


def test_the_time_bar_is_full_and_the_memory_bar_leaves_what_is_free():
    memory_bar, time_bar = Dom(render([fitting()])).bars()
    assert sum(memory_bar) == pytest.approx(100 * 56 / 95, abs=0.01)
    assert sum(time_bar) == pytest.approx(100, abs=0.01)


@settings(max_examples=25)
@given(st.tuples(*[st.integers(0, 1 << 38)] * 6))
def test_a_memory_bar_is_never_longer_than_its_frame(sizes):
    names = ("parameters", "optimizer", "gradients", "activations", "temporaries", "other")
    held = dataclasses.replace(memory(), **dict(zip(names, sizes, strict=True)))
    bar = Dom(render([fitting(memory=held)])).bars()[0]
    assert sum(bar) == pytest.approx(100 * min(1, held.total / held.capacity), abs=0.01)


def test_every_number_of_a_bar_also_stands_in_the_table():
    dom = Dom(render([fitting()]))
    titles = [a["title"] for _, a in dom.elements if ": " in (a.get("title") or "")]
    assert len(titles) == 11
    for title in titles:
        name, value, share = re.fullmatch(r"(.*): (.*) \((.*)\)", title).groups()
        assert f"{name}{value}{share}" in dom.text


@settings(max_examples=25)
@given(st.text(max_size=30))
def test_names_are_escaped_wherever_they_come_from(name):
    evil = f"<script>alert(1)</script>\"'&{name}"
    plan = fitting(
        config=evil,
        topology=evil,
        mesh={evil: 4},
        operations=[operation(evil, source=evil, module=evil, shape=evil)],
        collectives=[collective(evil, evil, (evil,), source=evil)],
        notes=[evil],
        versions={evil: evil},
        cost=dataclasses.replace(fitting().cost, price=evil),
    )
    page = render([plan, plan], [[evil], [evil]])
    assert "<script" not in page
    assert "<script>alert(1)</script>\"'&" in Dom(page).text


def test_a_plan_that_does_not_fit_shows_what_is_too_much_and_what_would_help():
    page = render([too_large()])
    assert 'class="status not"' in page and 'class="over"' in page
    text = Dom(page).text
    assert "too much16.0 GiB" in text and "Fewer tokens at once" in text


def test_what_the_head_says_is_not_said_again_by_the_explanation():
    plan = fitting(memory=memory(activations=95))
    page = render([plan], [explain(plan, CHIPS["v5p"])])
    assert page.count("Fewer tokens at once") == 1 and "What bounds the step" in page


def test_several_plans_are_compared_on_one_scale_and_the_best_is_marked():
    slow = dataclasses.replace(fitting().time, matmuls=5.4)
    page = render([fitting(), fitting(time=slow, mfu=0.29), too_large()])
    dom = Dom(page)
    fast_time, _, slow_time = dom.bars()[:3]
    assert sum(fast_time) == pytest.approx(50, abs=0.01)
    assert sum(slow_time) == pytest.approx(100, abs=0.01)
    assert page.count("num best") == 1
    targets = {a["id"] for _, a in dom.elements if a.get("id")}
    assert {a["href"].lstrip("#") for tag, a in dom.elements if tag == "a"} == targets


def test_the_page_is_written_where_it_is_said(tmp_path):
    path = str(tmp_path / "plan.html")
    assert write_page(path, [fitting()]) == path
    assert (tmp_path / "plan.html").read_text("utf-8") == render([fitting()])


def test_no_plan_or_too_few_explanations_are_refused():
    with pytest.raises(ConfigError, match="no plan"):
        render([])
    with pytest.raises(ConfigError, match="1 explanations for 2 plans"):
        render([fitting(), fitting()], [["one"]])
