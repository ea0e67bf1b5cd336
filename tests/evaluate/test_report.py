"""The run's page: everything is on it, nothing outside is needed, no text breaks out of it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from maxlm.errors import ConfigError, DataError, StorageError
from maxlm.evaluate.report.curves import run_data
from maxlm.evaluate.report.downsample import add_up, shorten, thin
from maxlm.evaluate.report.facts import final_numbers, findings, tail_mean, time_split, verdict
from maxlm.evaluate.report.history import read_history
from maxlm.evaluate.report.write import render, safe_json, unique_names, write_report
from maxlm.train.sinks import JsonlSink, encode_record

CONFIG = {"model": {"num_layers": 2}, "optimizer": {"kind": "adamw", "learning_rate": 1e-3}}


def start(step=0, resumed_from=None, time=1000.0, **fields):
    return {
        "kind": "start",
        "step": step,
        "time": time,
        "resumed_from": resumed_from,
        "total_steps": 100,
        "tokens_per_step": 10,
        "parameters": 1234,
        "devices": 1,
        "device_kind": "cpu",
        "versions": {"jax": "0.10.2"},
        "command": "maxlm train x.yaml",
        "config": CONFIG,
        "data": {"sources": {"books": {"tokens": 5000}}},
        **fields,
    }


def train(step, time=None, **fields):
    return {
        "kind": "train",
        "step": step,
        "time": 1000.0 + step if time is None else time,
        "tokens": step * 10,
        "loss": 5.0 / step**0.2,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 10.0,
        "mfu": None,
        "compute_seconds": 0.9,
        "data_wait_seconds": 0.1,
        "save_wait_seconds": 0.0,
        "eval_seconds": 0.0,
        "skipped_steps": 0,
        **fields,
    }


def evaluation(step, loss, name="books"):
    return {
        "kind": "eval",
        "step": step,
        "time": 1000.0 + step,
        "set": name,
        "loss": loss,
        "bits_per_byte": loss / 2,
    }


def sample(step, text, prompt="Once"):
    return {"kind": "sample", "step": step, "time": 1000.0 + step, "prompt": prompt, "text": text}


def end(step, reason="finished", time=None):
    when = 1000.0 + step if time is None else time
    return {"kind": "end", "step": step, "time": when, "reason": reason, "seconds": 1.0}


def make_run(folder, *records):
    sink = JsonlSink(str(folder))
    for record in records:
        sink.write(record)
    sink.close()
    return str(folder)


@pytest.fixture
def run(tmp_path):
    return make_run(
        tmp_path / "mine",
        start(),
        *[train(s) for s in range(1, 101)],
        evaluation(50, 2.0),
        evaluation(100, 1.5),
        sample(100, " upon a time"),
        {"kind": "checkpoint", "step": 100, "time": 1100.0, "path": "x", "bytes": 9_600_000},
        end(100),
    )


class Page(HTMLParser):
    """The page as a parser sees it: texts outside scripts, scripts, elements, addresses."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.scripts, self.tags, self.addresses = [], [], [], []
        self.title = ""
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                self.addresses.append(value)
        if tag == "script":
            self.scripts.append((dict(attributes).get("id"), ""))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._open and self._open[-1] == "title":
            self.title += data
        elif not self._open or self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self):
        (content,) = [text for name, text in self.scripts if name == "run-data"]
        return json.loads(content, parse_constant=pytest.fail)


def page_of(*runs, now=None):
    return Page(render([read_history(r) for r in runs], now))


def test_the_page_is_written_into_the_run_folder(run):
    path = write_report([run])
    assert path == f"{run}/report.html"
    with open(path, encoding="utf-8") as file:
        assert Page(file.read()).title == "mine · maxlm"


def test_the_page_tells_how_the_run_went(run):
    text = page_of(run).text
    for part in ("mine", "finished", "100 of 100 steps", "1.00k tokens", "1 min 40 s"):
        assert part in text
    assert "best loss on books 1.500 at step 100" in text
    for part in ("learning_ rate", "0.001", "adamw", "5000", "maxlm train x.yaml", "0.10.2"):
        assert part in text


def test_the_page_needs_nothing_from_outside(run):
    text = render([read_history(run)])
    page = Page(text)
    assert page.addresses == []
    policy = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy[0].startswith("default-src 'none'")
    reached = re.findall(r"https?://[^\s\"'`]+", text)
    assert set(reached) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", text)


def test_the_curves_hold_the_records(run):
    (data,) = page_of(run).data["runs"]
    assert data["x"]["step"] == list(range(1, 101))
    assert data["x"]["seconds"][-1] == 100
    assert data["curves"]["loss"]["mean"][0] == 5
    assert "mfu" not in data["curves"]
    assert data["evals"]["books"]["loss"] == [2, 1.5]
    assert data["evals"]["books"]["tokens"] == [500, 1000]
    assert data["samples"] == [{"step": 100, "prompt": "Once", "text": " upon a time"}]


@pytest.mark.parametrize(
    "evil",
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>&lt;b&gt;<img src=x onerror=alert(1)>",
        "{{data}}{{script}} \\1 \\g<0>",
        "quotes \" and ' and \u2028 and \ud800",
    ],
)
def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path, evil):
    plain = make_run(tmp_path / "plain", start(), train(1), sample(1, "t"), evaluation(1, 1.0))
    expected = [tag for tag, _ in page_of(plain).tags]
    dirty = make_run(
        tmp_path / "plain2",
        start(
            config={"model": {"num_layers": evil}, "optimizer": CONFIG["optimizer"]}, command=evil
        ),
        train(1),
        sample(1, evil, prompt=evil),
        evaluation(1, 1.0, name=evil),
    )
    page = page_of(dirty)
    assert [tag for tag, _ in page.tags] == expected
    assert len(page.scripts) == 2
    shown = evil.encode("utf-8", "replace").decode()
    assert page.data["runs"][0]["samples"][0] == {"step": 1, "prompt": shown, "text": shown}
    assert list(page.data["runs"][0]["evals"]) == [shown]
    if "\u2028" not in evil:
        assert " ".join(evil.split()) in page.text


def test_a_run_folder_with_a_strange_name_is_escaped(tmp_path):
    run = make_run(tmp_path / "<b>&x", start(), train(1))
    page = page_of(run)
    assert page.title == "<b>&x · maxlm"
    assert "b" not in {tag for tag, _ in page.tags}


def test_numbers_that_are_not_finite_leave_gaps_and_are_told(tmp_path):
    run = make_run(
        tmp_path / "r",
        start(),
        train(1),
        train(2, loss=math.nan, grad_norm=math.inf, skipped_steps=1),
        train(3, skipped_steps=1),
    )
    page = page_of(run)
    assert page.data["runs"][0]["curves"]["loss"]["mean"][1] is None
    assert page.data["runs"][0]["curves"]["grad_norm"]["mean"][1] is None
    (skip,) = page.data["runs"][0]["skips"]
    assert (skip["step"], skip["count"]) == (2, 1)
    assert "The loss was not finite in 1 record, first at step 2." in page.text
    assert "1 step skipped" in page.text


def test_a_resume_counts_lost_work_once_and_is_marked(tmp_path):
    run = make_run(
        tmp_path / "r",
        start(),
        *[train(s) for s in range(1, 41)],
        evaluation(40, 9.0),
        start(30, 30, time=5000.0),
        *[train(s, time=4970.0 + s) for s in range(31, 51)],
        end(50, "interrupted", time=5020.0),
    )
    history = read_history(run)
    (data,) = page_of(run).data["runs"]
    assert data["x"]["step"] == list(range(1, 51))
    assert data["x"]["seconds"][-1] == 50  # the hour's pause is not training time
    assert data["evals"] == {}
    assert data["resumes"] == [{"step": 30, "tokens": 300, "seconds": 30}]
    assert (history.lost_steps, history.lost_seconds) == (10, 10.0)
    assert history.wall_seconds == 60.0
    assert history.status() == "interrupted"
    assert any("lost 10 steps" in text for text in findings(history))


def test_a_kill_before_the_first_checkpoint_begins_again(tmp_path):
    first = [train(s) for s in range(1, 8)]
    again = [train(s, time=2000.0 + s) for s in range(1, 4)]
    run = make_run(tmp_path / "r", start(), *first, start(time=2000.0), *again)
    (data,) = page_of(run).data["runs"]
    assert data["x"]["step"] == [1, 2, 3] and data["x"]["seconds"] == [1, 2, 3]
    assert data["resumes"] == []


def test_the_rule_of_a_derived_value_stands_beside_it(tmp_path):
    derived = [{"key": "optimizer.learning_rate", "value": "0.001", "rule": "by parameters"}]
    run = make_run(tmp_path / "r", start(derived=derived), train(1))
    assert "0.001 derived: by parameters" in page_of(run).text


@pytest.mark.parametrize(
    ("last", "now", "status"),
    [
        (None, 1060.0, "running"),
        (None, 99_999.0, "stopped"),
        (end(10, "failed"), 1060.0, "failed"),
        (end(10, "finished"), 99_999.0, "finished"),
    ],
)
def test_the_status_follows_from_the_last_record(tmp_path, last, now, status):
    run = make_run(tmp_path / "r", start(), train(10), *([last] if last else []))
    assert read_history(run).status(now) == status


def test_a_run_that_has_only_started_has_a_page(tmp_path):
    run = make_run(tmp_path / "r", start())
    page = page_of(run, now=1001.0)
    assert "running" in page.text
    assert page.data["runs"][0]["curves"] == {}


def test_a_branched_run_begins_at_its_step(tmp_path):
    run = make_run(tmp_path / "r", start(500, 500), train(501), train(502))
    assert page_of(run).data["runs"][0]["x"]["step"] == [501, 502]


def test_runs_are_compared(tmp_path, run):
    other = make_run(
        tmp_path / "other",
        start(config={**CONFIG, "optimizer": {"kind": "muon", "learning_rate": 1e-3}}),
        *[train(s, loss=1.0) for s in range(1, 51)],
        evaluation(50, 1.2),
        end(50),
    )
    page = page_of(run, other)
    assert [r["name"] for r in page.data["runs"]] == ["mine", "other"]
    assert "1 of 3 options differ" in page.text
    rows = page.text.split("books: best loss")[1]
    assert rows.startswith(" 1.500 1.200")
    best = [i for i, (_, attributes) in enumerate(page.tags) if attributes.get("class") == "best"]
    assert best
    assert len([1 for _, a in page.tags if a.get("class") == "differs"]) == 1


def test_runs_of_one_name_are_told_apart():
    assert unique_names(["a/x", "b/x", "b/y"]) == ["a/x", "b/x", "b/y"]
    assert unique_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert unique_names(["gs://k/a/r", "r"]) == ["a/r", "r"]


def test_a_users_own_numbers_are_charted(tmp_path):
    run = make_run(tmp_path / "r", start(), train(1), train(2, my_metric=3.5))
    data = page_of(run).data
    assert data["more"] == ["my_metric"]
    assert data["runs"][0]["curves"]["my_metric"]["mean"] == [None, 3.5]


def test_rising_validation_and_waiting_are_found(tmp_path):
    run = make_run(
        tmp_path / "r",
        start(),
        *[train(s, data_wait_seconds=0.5) for s in range(1, 11)],
        evaluation(5, 1.0),
        evaluation(10, 1.3),
    )
    text = " ".join(findings(read_history(run)))
    assert "was lowest at step 5 (1.000) and has risen to 1.300" in text
    assert "35.7% of the time was spent waiting for data" in text


def test_a_good_run_has_no_findings(tmp_path):
    records = [train(s, data_wait_seconds=0.0, compute_seconds=1.0) for s in range(1, 101)]
    assert findings(read_history(make_run(tmp_path / "r", start(), *records))) == []


def test_compiling_is_told_from_computing(tmp_path):
    records = [train(s, time=1020.0 + s, compute_seconds=1.0) for s in range(2, 50)]
    first = train(1, time=1020.0, compute_seconds=15.0)  # 4 s of loading, 14 s of compiling
    split = time_split(read_history(make_run(tmp_path / "r", start(), first, *records)))
    assert split["start_up"] == pytest.approx(4.9 + 14.0)
    assert split["compute"] == pytest.approx(49.0)


def test_the_final_loss_is_the_mean_of_the_last_fiftieth():
    column = np.concatenate([np.full(98, 9.0), [1.0, 3.0]])
    assert tail_mean(column) == 2.0
    assert tail_mean(np.array([np.nan, 4.0, np.nan])) == 4.0
    assert tail_mean(np.array([np.nan])) is None


def test_the_verdict_names_what_is_known(tmp_path):
    history = read_history(make_run(tmp_path / "r", start(), train(10), end(10, "interrupted")))
    text = verdict(history)
    assert text.startswith("Interrupted, can be continued: 10 of 100 steps")
    assert final_numbers(history)["evals"] == {}


def test_shortening_keeps_every_spike_and_the_mean():
    column = np.sin(np.arange(100_003) / 500)
    column[77_777], column[5] = 50.0, -50.0
    curve = shorten(column, 1000)
    assert len(curve.mean) == len(curve.low) == len(curve.high) == 1000
    assert (curve.high.max(), curve.low.min()) == (50.0, -50.0)
    assert curve.mean.mean() == pytest.approx(column.mean(), abs=1e-3)
    assert np.all(curve.low <= curve.mean) and np.all(curve.mean <= curve.high)


def test_shortening_passes_over_what_is_unknown():
    column = np.array([1.0, np.nan, np.nan, np.nan, 3.0, 5.0])
    curve = shorten(column, 3)
    np.testing.assert_array_equal(curve.mean, [1.0, np.nan, 4.0])
    np.testing.assert_array_equal(curve.high, [1.0, np.nan, 5.0])
    np.testing.assert_array_equal(add_up(column, 3), [1.0, 0.0, 8.0])
    assert shorten(column, 6).low is None


def test_thinning_keeps_first_and_last():
    kept = thin(list(range(1001)), 10)
    assert len(kept) == 10 and (kept[0], kept[-1]) == (0, 1000)


def test_a_long_run_gives_a_small_page(tmp_path):
    lines = b"".join(
        encode_record(train(s, loss=2.0 + math.sin(s), grad_norm=math.cos(s) + 2, my=s * 0.1))
        for s in range(1, 30_001)
    )
    samples = b"".join(encode_record(sample(s, "x" * 1000)) for s in range(1, 2001))
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(encode_record(start()) + lines + samples)
    history = read_history(str(folder))
    assert len(render([history])) < 1_000_000
    samples_kept = run_data(history)["samples"]
    assert (samples_kept[0]["step"], samples_kept[-1]["step"]) == (1, 2000)


def test_json_in_a_script_has_no_angle_brackets():
    value = {"</script>": "<!-- & \u2028"}
    text = safe_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_a_missing_run_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"metrics\.jsonl: no such file"):
        write_report([str(tmp_path / "nowhere")])


def test_an_empty_file_is_a_data_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no record yet"):
        write_report([str(tmp_path)])


def test_no_run_and_the_same_run_twice_are_config_errors(run):
    with pytest.raises(ConfigError, match="no run named"):
        write_report([])
    with pytest.raises(ConfigError, match="named twice"):
        write_report([run, run + "/"])


def test_a_run_on_an_object_store_has_a_page(tmp_path):
    run = f"memory://report-{tmp_path.name}"
    make_run(run, start(), train(1))
    assert write_report([run]) == f"{run}/report.html"


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page in")
def test_a_browser_draws_every_chart_without_an_error(tmp_path, run):
    path = write_report([run], str(tmp_path / "page.html"))
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --disable-quic --enable-logging=stderr"
    options += f" --user-data-dir={tmp_path}/profile --dump-dom --virtual-time-budget=2000"
    done = subprocess.run(
        [BROWSER, *options.split(), f"file://{path}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    titles = re.findall(r"<h3>([^<]+)</h3>", done.stdout)
    for title in ("Loss", "Bits per byte", "Learning rate", "Gradient norm", "Where the time went"):
        assert title in titles
    assert done.stdout.count('class="line"') >= 5
    assert "upon a time" in done.stdout.split('id="samples"')[1]
