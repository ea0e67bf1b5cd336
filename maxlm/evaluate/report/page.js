// The page: what is charted, the controls, samples and the configuration's filter.

const DATA = JSON.parse(document.getElementById("run-data").textContent);
const RUNS = DATA.runs;
const COMPARE = RUNS.length > 1;
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

const CHARTS = [
  { title: "Loss", fields: { loss: "training" }, evals: "loss", format: "number", wide: true, canLog: true, canSmooth: true },
  { title: "Bits per byte", fields: { bits_per_byte: "training" }, evals: "bits_per_byte", format: "number", canLog: true, canSmooth: true },
  { title: "Learning rate", fields: { learning_rate: "learning rate" }, format: "number", canLog: true, fromZero: true },
  { title: "Gradient norm", fields: { grad_norm: "gradient norm" }, format: "number", canLog: true, canSmooth: true, fromZero: true },
  { title: "Parameter norm", fields: { param_norm: "parameter norm" }, format: "number", canLog: true },
  { title: "Throughput, tokens per second", fields: { tokens_per_second: "tokens/s" }, format: "count", canSmooth: true, fromZero: true },
  { title: "Model FLOPs utilisation", fields: { mfu: "MFU" }, format: "percent", canSmooth: true, fromZero: true },
  { title: "Time per step", fields: { step_seconds: "step" }, format: "seconds", canLog: true, canSmooth: true, fromZero: true },
  { title: "Memory", fields: { device_memory_bytes: "device", host_memory_bytes: "host" }, format: "bytes", fromZero: true },
  ...DATA.more.map((name) => ({ title: name, fields: { [name]: name }, format: "number", canLog: true, canSmooth: true })),
];
const PARTS = [["compute", "compute", 0], ["data_wait", "waiting for data", 1], ["save_wait", "waiting for saves", 3], ["eval", "evaluation", 2], ["start_up", "start-up, compiling", 7]];

// ---- what all charts share --------------------------------------------------------------------

const view = {
  axis: "step", logX: false, logY: false, smooth: 0, window: null, cursor: null, hidden: new Set(),
  extent() {
    let low = Infinity;
    let high = -Infinity;
    for (const run of RUNS) {
      if (this.hidden.has(run.name)) continue;
      for (const xs of [run.x[this.axis], ...Object.values(run.evals).map((e) => e[this.axis])]) {
        for (const x of xs) {
          if (this.logX && x <= 0) continue;
          low = Math.min(low, x);
          high = Math.max(high, x);
        }
      }
    }
    if (low > high) return [0, 1];
    if (!this.logX && low > 0 && low < 0.15 * high) low = 0;
    return low === high ? [low - 0.5, high + 0.5] : [low, high];
  },
  range() { return this.window || this.extent(); },
  point(x) { this.cursor = x; later(moveCursors); },
  zoom(ends) {
    const [low, high] = this.extent();
    this.window = ends && (ends[0] > low || ends[1] < high) ? [Math.max(low, ends[0]), Math.min(high, ends[1])] : null;
    document.getElementById("reset").disabled = !this.window;
    redraw();
  },
};
const charts = [];
const waiting = new Set();
function later(act) {
  if (!waiting.size) requestAnimationFrame(() => { const acts = [...waiting]; waiting.clear(); acts.forEach((a) => a()); });
  waiting.add(act);
}
function moveCursors() { charts.forEach((chart) => chart.drawCursor()); }
function redraw() { charts.forEach((chart) => chart.draw()); }

function seriesOf(spec) {
  const found = [];
  const many = Object.keys(spec.fields).length > 1;
  RUNS.forEach((run, r) => {
    let next = COMPARE ? r % 8 : 0;
    Object.entries(spec.fields).forEach(([field, label], f) => {
      const curve = run.curves[field];
      if (!curve || !curve.mean.some(known)) return;
      found.push({
        key: `${r}.${field}`, run: run.name, label: COMPARE ? `${run.name}${many ? " " + label : ""}` : label,
        color: COMPARE ? r % 8 : next, dash: COMPARE ? DASHES[(many ? f : Math.floor(r / 8)) % 4] : "",
        xs: () => run.x[view.axis], ys: curve.mean, low: curve.low, high: curve.high,
      });
      next += 1;
    });
    Object.entries(spec.evals ? run.evals : {}).forEach(([set, points], s) => {
      if (!points[spec.evals].some(known)) return;
      found.push({
        key: `${r}.eval.${set}`, run: run.name, label: COMPARE ? `${run.name}: ${set}` : set,
        color: COMPARE ? r % 8 : (s + 1) % 8, dash: COMPARE ? DASHES[(s + 1) % 4] : "", marker: s % 4, points: true,
        xs: () => points[view.axis], ys: points[spec.evals],
      });
    });
  });
  return found;
}

function marksOf() {
  const shown = RUNS.filter((run) => !view.hidden.has(run.name));
  const list = (kind, text) => shown.flatMap((run) => run[kind].map((m) => ({ x: m[view.axis], text: (COMPARE ? run.name + ": " : "") + text(m) })));
  return {
    resumes: list("resumes", (m) => `resumed from step ${m.step.toLocaleString("en")}`),
    skips: list("skips", (m) => `${m.count} skipped before step ${m.step.toLocaleString("en")}`),
  };
}

// Shares of the time, one over the other.
function splitSeries(run) {
  // Averaged over neighbours: an evaluation falls into one record and not into the next twenty.
  const parts = PARTS.filter(([part]) => run.split[part] && run.split_totals[part] > 0);
  const values = Object.fromEntries(parts.map(([part]) => [part, smoothed(run.split[part], run.x.step.length * 0.03)]));
  const sums = run.x.step.map((_, i) => parts.reduce((sum, [part]) => sum + values[part][i], 0));
  const below = run.x.step.map(() => 0);
  return parts.map(([part, label, color]) => {
    const share = values[part].map((v, i) => (sums[i] > 0 ? v / sums[i] : 0));
    const low = below.slice();
    share.forEach((v, i) => { below[i] += v; });
    return { key: part, run: run.name, label, color, xs: () => run.x[view.axis], ys: below.slice(), low, high: below.slice(), share };
  });
}

function addChart(parent, spec, make, marks) {
  const fixed = make();
  if (!fixed.length) return;
  const live = () => fixed.map((s) => ({ ...s, xs: s.xs() }));
  charts.push(new Chart(parent, spec, view, live, marks));
}

// ---- building the page ------------------------------------------------------------------------

function build() {
  const grid = document.getElementById("charts");
  CHARTS.forEach((spec) => addChart(grid, spec, () => seriesOf(spec), marksOf));
  buildSplit(grid);
  buildControls();
  buildSamples();
  buildConfigFilter();
  let width = 0;
  new ResizeObserver(() => { if (grid.clientWidth !== width) { width = grid.clientWidth; later(redraw); } }).observe(grid);
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((d) => { d.open = true; });
  });
  redraw();
}

function buildSplit(grid) {
  const runs = RUNS.filter((run) => Object.values(run.split_totals).some((v) => v > 0));
  if (!runs.length) return;
  if (!COMPARE && runs[0].x.step.length > 2) {
    addChart(grid, { title: "Where the time went, along the run", format: "percent", stacked: true }, () => splitSeries(runs[0]), marksOf);
  }
  const cards = grid.querySelectorAll(".card:not(.wide)");
  if (cards.length % 2) cards[cards.length - 1].classList.add("wide");
  const card = html("div", { class: "card wide" }, grid);
  html("h3", {}, card, "Where the time went");
  const bars = html("div", { class: "split" }, card);
  const key = html("ul", { class: "key" }, card);
  runs.forEach((run) => {
    const total = PARTS.reduce((sum, [part]) => sum + (run.split_totals[part] || 0), 0);
    html("span", {}, bars, COMPARE ? `${run.name}, ${time(total)}` : time(total));
    const bar = html("div", { class: "bar", role: "img" }, bars);
    const told = PARTS.filter(([part]) => run.split_totals[part] > 0).map(([part, label, color]) => {
      const share = run.split_totals[part] / total;
      const text = `${label} ${FORMATS.percent(share)} (${time(run.split_totals[part])})`;
      html("span", { style: `width:${100 * share}%;background:var(--c${color})`, title: text }, bar);
      if (!COMPARE) keyItem(key, color, text);
      return text;
    });
    bar.setAttribute("aria-label", told.join(", "));
  });
  if (COMPARE) PARTS.forEach(([part, label, color]) => { if (runs.some((r) => r.split_totals[part] > 0)) keyItem(key, color, label); });
}

function keyItem(list, color, text) {
  const item = html("li", {}, list);
  html("span", { class: "swatch", style: `background:var(--c${color})` }, item);
  html("span", {}, item, text);
}

function buildControls() {
  const on = (selector, event, act) => document.querySelectorAll(selector).forEach((e) => e.addEventListener(event, () => act(e)));
  on("[name=axis]", "change", (e) => { view.axis = e.value; view.cursor = null; view.zoom(null); });
  on("[name=y]", "change", (e) => { view.logY = e.value === "log"; redraw(); });
  on("#logx", "change", (e) => { view.logX = e.checked; view.zoom(null); });
  on("#reset", "click", () => view.zoom(null));
  const smooth = document.getElementById("smooth");
  const setSmooth = () => {
    view.smooth = Math.pow(smooth.value / 20, 2) / 8; // finer where little is wanted
    document.getElementById("smooth-value").textContent = view.smooth ? FORMATS.percent(Number(view.smooth.toPrecision(2))) : "off";
  };
  smooth.addEventListener("input", () => { setSmooth(); later(redraw); });
  setSmooth();
  if (!COMPARE) return;
  const chips = document.getElementById("runs");
  RUNS.forEach((run, r) => {
    const chip = html("button", { type: "button", class: "chip", "aria-pressed": true }, chips);
    html("span", { class: "swatch", style: `background:var(--c${r % 8})` }, chip);
    html("span", {}, chip, run.name);
    chip.addEventListener("click", () => {
      const hide = !view.hidden.has(run.name);
      if (hide) view.hidden.add(run.name); else view.hidden.delete(run.name);
      chip.setAttribute("aria-pressed", !hide);
      view.zoom(null);
    });
  });
}

function buildSamples() {
  const box = document.getElementById("samples");
  if (!box) return;
  const prompts = [...new Set(RUNS.flatMap((run) => run.samples.map((s) => s.prompt)))];
  const choice = document.getElementById("sample-prompt");
  prompts.forEach((p, i) => html("option", { value: i }, choice, p === "" ? "(empty prompt)" : p.slice(0, 80)));
  choice.parentElement.hidden = prompts.length < 2;
  const slider = document.getElementById("sample-step");
  let steps = [];
  const show = () => {
    const step = steps[slider.value];
    document.getElementById("sample-at").textContent = step === undefined ? "" : `step ${step.toLocaleString("en")}`;
    box.replaceChildren();
    RUNS.forEach((run, r) => {
      const own = run.samples.filter((s) => s.prompt === prompts[choice.value]);
      if (!own.length) return;
      const sample = own.reduce((a, b) => (Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a));
      const figure = html("figure", { class: "sample" }, box);
      const caption = html("figcaption", {}, figure);
      if (COMPARE) html("span", { class: "swatch", style: `background:var(--c${r % 8})` }, caption);
      html("span", {}, caption, (COMPARE ? run.name + ", " : "") + `step ${sample.step.toLocaleString("en")}`);
      const text = html("pre", { tabindex: 0 }, figure);
      html("span", { class: "prompt" }, text, sample.prompt);
      html("span", {}, text, sample.text);
    });
  };
  const choose = () => {
    steps = [...new Set(RUNS.flatMap((run) => run.samples.filter((s) => s.prompt === prompts[choice.value]).map((s) => s.step)))].sort((a, b) => a - b);
    slider.max = steps.length - 1;
    slider.value = steps.length - 1;
    slider.parentElement.hidden = steps.length < 2;
    show();
  };
  choice.addEventListener("change", choose);
  slider.addEventListener("input", show);
  choose();
}

function buildConfigFilter() {
  const search = document.getElementById("config-search");
  if (!search) return;
  const only = document.getElementById("config-differs");
  const rows = [...document.querySelectorAll("#config tbody tr")];
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((w) => text.includes(w)) || Boolean(only && only.checked && !row.classList.contains("differs"));
      shown += row.hidden ? 0 : 1;
    });
    document.getElementById("config-count").textContent = `${shown} of ${rows.length}`;
  };
  search.addEventListener("input", filter);
  if (only) only.addEventListener("change", filter);
  filter();
}

build();
