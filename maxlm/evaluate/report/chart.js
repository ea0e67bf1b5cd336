"use strict";
// One chart: an SVG that draws series of {xs, ys, low, high} on axes shared by all charts of the
// page (`view`: which x, log or not, zoom, smoothing, what is hidden, where the cursor is).

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (parent) parent.appendChild(element);
  return element;
}

function html(name, attributes, parent, text) {
  const element = document.createElement(name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

// ---- numbers as text --------------------------------------------------------------------------

function significant(value, digits) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e").replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

function scaled(value, digits, base, units) {
  let index = 0;
  let size = Math.abs(value);
  while (size >= base && index < units.length - 1) { size /= base; value /= base; index += 1; }
  const text = value.toLocaleString("en", { maximumSignificantDigits: digits });
  return text + units[index];
}

function time(seconds) {
  if (Math.abs(seconds) < 1 && seconds !== 0) return significant(seconds * 1000, 3) + " ms";
  if (seconds < 100) return significant(seconds, 3) + " s";
  const whole = Math.round(seconds);
  const pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  return hours ? `${hours} h ${pad(minutes)} min` : `${minutes} min ${pad(whole % 60)} s`;
}

function timeTick(seconds) {
  const pad = (n) => String(n).padStart(2, "0");
  if (seconds !== 0 && seconds % 86400 === 0) return `${seconds / 86400} d`;
  if (seconds !== 0 && seconds % 3600 === 0) return `${seconds / 3600} h`;
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)}:${pad(Math.floor(seconds / 60) % 60)} h`;
  if (seconds !== 0 && seconds % 60 === 0) return `${seconds / 60} min`;
  return seconds < 60 ? significant(seconds, 3) + " s" : `${Math.floor(seconds / 60)}:${pad(Math.round(seconds % 60))}`;
}

const FORMATS = {
  number: (v) => significant(v, 4),
  count: (v) => scaled(v, 3, 1000, ["", "k", "M", "B", "T"]),
  bytes: (v) => scaled(v, 3, 1000, [" B", " kB", " MB", " GB", " TB"]),
  percent: (v) => (100 * v).toLocaleString("en", { maximumSignificantDigits: 3 }) + "%",
  seconds: time,
};
const AXES = {
  step: { name: "step", text: (v) => Math.round(v).toLocaleString("en"), tick: FORMATS.count },
  tokens: { name: "tokens", text: (v) => FORMATS.count(v) + " tokens", tick: FORMATS.count },
  seconds: { name: "training time", text: time, tick: timeTick },
};

// ---- curves -----------------------------------------------------------------------------------

// Two-sided exponential average: unlike a one-sided one it does not lag behind the curve.
function smoothed(values, halfLife) {
  if (!(halfLife > 0)) return values;
  const keep = Math.pow(0.5, 1 / halfLife);
  const total = new Float64Array(values.length);
  const weight = new Float64Array(values.length);
  const pass = (from, to, step) => {
    let sum = 0;
    let mass = 0;
    for (let i = from; i !== to; i += step) {
      total[i] += keep * sum;
      weight[i] += keep * mass;
      sum *= keep;
      mass *= keep;
      if (known(values[i])) { sum += values[i]; mass += 1; }
    }
  };
  pass(0, values.length, 1);
  pass(values.length - 1, -1, -1);
  return values.map((v, i) => (known(v) ? (total[i] + v) / (weight[i] + 1) : null));
}

function nearest(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return high >= 0 && Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

// From dense to sparse: the first that fits is taken.
const LOG_MANTISSAS = [[1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9], [1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]];

function ticks(low, high, wanted, log) {
  if (log) {
    const first = Math.floor(Math.log10(low));
    const last = Math.ceil(Math.log10(high));
    for (const mantissas of LOG_MANTISSAS) {
      const found = [];
      for (let e = first; e <= last; e += 1) {
        for (const m of mantissas) found.push(Number((m * Math.pow(10, e)).toPrecision(6)));
      }
      const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
      if (inside.length >= 2 && inside.length <= wanted + 3) return inside;
      if (mantissas.length === 1 && inside.length > wanted + 3) {
        const stride = Math.ceil(inside.length / wanted);
        return inside.filter((_, i) => i % stride === 0);
      }
    }
  }
  const rough = (high - low) / Math.max(1, wanted);
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

function scale(low, high, from, to, log) {
  const map = log ? Math.log : (v) => v;
  const a = map(low);
  const factor = (to - from) / (map(high) - a || 1);
  const forward = (v) => from + (map(v) - a) * factor;
  forward.back = (p) => (log ? Math.exp(a + (p - from) / factor) : a + (p - from) / factor);
  return forward;
}

function path(xs, ys, x, y, logX, logY) {
  let text = "";
  let pen = "M";
  for (let i = 0; i < xs.length; i += 1) {
    if (!known(ys[i]) || (logY && ys[i] <= 0) || (logX && xs[i] <= 0)) { pen = "M"; continue; }
    text += pen + x(xs[i]).toFixed(1) + " " + y(ys[i]).toFixed(1);
    pen = "L";
  }
  return text;
}

function band(xs, low, high, x, y, logX, logY) {
  const rows = xs.map((_, i) => i).filter((i) => known(low[i]) && known(high[i])
    && (!logY || low[i] > 0) && (!logX || xs[i] > 0));
  if (rows.length < 2) return "";
  const there = rows.map((i) => x(xs[i]).toFixed(1) + " " + y(high[i]).toFixed(1));
  const back = rows.reverse().map((i) => x(xs[i]).toFixed(1) + " " + y(low[i]).toFixed(1));
  return "M" + there.join("L") + "L" + back.join("L") + "Z";
}

function marker(kind, cx, cy, r) {
  const [a, b] = [r * 1.15, r * 1.35];
  if (kind === 1) return `M${cx - a} ${cy - a}h${2 * a}v${2 * a}h${-2 * a}Z`;
  if (kind === 2) return `M${cx} ${cy - b}L${cx + b} ${cy + a}L${cx - b} ${cy + a}Z`;
  if (kind === 3) return `M${cx} ${cy - b}L${cx + b} ${cy}L${cx} ${cy + b}L${cx - b} ${cy}Z`;
  return `M${cx - r} ${cy}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
}

// ---- the chart --------------------------------------------------------------------------------

let chartNumber = 0;

class Chart {
  // spec: {title, format, wide, canLog, canSmooth, fromZero, stacked}
  // series(): [{key, label, run, color, dash, marker, xs, ys, low, high, points}]
  // marks(): {resumes: [{x, text}], skips: [{x, text}]}
  constructor(parent, spec, view, series, marks) {
    Object.assign(this, { spec, view, series, marks, number: chartNumber += 1 });
    this.hidden = new Set();
    this.card = html("div", { class: spec.wide ? "card wide" : "card" }, parent);
    const head = html("div", { class: "chart-head" }, this.card);
    html("h3", {}, head, spec.title);
    this.at = html("span", { class: "at" }, head);
    this.legend = html("div", { class: "legend" }, this.card);
    this.plot = svg("svg", { class: "plot", tabindex: 0, role: "img", "aria-label": spec.title }, null);
    this.card.appendChild(this.plot);
    this.listen();
  }

  visible() {
    return this.series().filter((s) => !this.hidden.has(s.key) && !this.view.hidden.has(s.run));
  }

  draw() {
    const { spec, view } = this;
    const width = Math.max(220, this.card.clientWidth - 28);
    const height = spec.wide ? Math.min(380, Math.max(240, width * 0.42)) : 200;
    const logY = view.logY && spec.canLog;
    this.lines = this.visible().map((s) => this.prepare(s));
    const [x0, x1] = view.range();
    const logX = view.logX && x0 > 0;
    const [y0, y1] = this.span(x0, x1, logY);
    this.plot.replaceChildren();
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.plot.setAttribute("height", height);
    const yTicks = ticks(y0, y1, spec.wide ? 6 : 4, logY);
    const format = FORMATS[spec.format];
    const left = 12 + 6.3 * Math.max(2, ...yTicks.map((t) => format(t).length));
    const box = { left, right: width - 12, top: 8, bottom: height - 24 };
    this.box = box;
    this.x = scale(x0, x1, box.left, box.right, logX);
    this.y = scale(y0, y1, box.bottom, box.top, logY);
    this.axes(yTicks, format, x0, x1, logX);
    const clip = `clip-${this.number}`;
    const shape = svg("clipPath", { id: clip }, svg("defs", {}, this.plot));
    svg("rect", { x: box.left, y: box.top - 2, width: box.right - box.left, height: box.bottom - box.top + 4 }, shape);
    const area = svg("g", { "clip-path": `url(#${clip})` }, this.plot);
    this.drawMarks(area);
    this.lines.forEach((line) => this.drawLine(area, line, logX, logY));
    this.overlay = svg("g", {}, this.plot);
    this.drawLegend();
    this.drawCursor();
  }

  prepare(s) {
    const rows = this.view.smooth * s.ys.length;
    const smooth = this.spec.canSmooth && !s.points && rows > 0.3;
    return { ...s, raw: s.ys, ys: smooth ? smoothed(s.ys, rows) : s.ys, smooth };
  }

  span(x0, x1, logY) {
    let low = Infinity;
    let high = -Infinity;
    const take = (v) => {
      if (known(v) && (!logY || v > 0)) { low = Math.min(low, v); high = Math.max(high, v); }
    };
    if (this.spec.stacked) return [0, 1];
    for (const line of this.lines) {
      const inside = [];
      line.xs.forEach((x, i) => {
        if (x < x0 || x > x1) return;
        take(line.ys[i]);
        if (known(line.raw[i])) inside.push(line.raw[i]);
      });
      if (line.smooth && inside.length) { // the raw curve may stick out only where it is rare
        inside.sort((a, b) => a - b);
        take(inside[Math.floor(0.01 * (inside.length - 1))]);
        take(inside[Math.ceil(0.99 * (inside.length - 1))]);
      }
    }
    if (low > high) return logY ? [0.1, 1] : [0, 1];
    if (high - low < 1e-6 * Math.abs(high)) low = high; // constant, but for rounding
    if (logY) return low === high ? [low / 2, high * 2] : [low / Math.pow(high / low, 0.04), high * Math.pow(high / low, 0.04)];
    const pad = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    if (this.spec.fromZero && low >= 0) return [0, high + pad];
    return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
  }

  axes(yTicks, format, x0, x1, logX) {
    const { box } = this;
    for (const tick of yTicks) {
      const at = this.y(tick);
      svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }, this.plot);
      svg("text", { x: box.left - 7, y: at + 3.5, "text-anchor": "end" }, this.plot).textContent = format(tick);
    }
    const axis = AXES[this.view.axis];
    const wanted = Math.max(2, Math.floor((box.right - box.left) / 95));
    let edge = -Infinity;
    for (const tick of this.view.axis === "seconds" && !logX ? timeTicks(x0, x1, wanted) : ticks(x0, x1, wanted, logX)) {
      const at = this.x(tick);
      const text = axis.tick(tick);
      const half = text.length * 3.1;
      svg("line", { class: "frame", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4 }, this.plot);
      if (at - half < edge + 8 || at + half > box.right + 12) continue;
      edge = at + half;
      svg("text", { x: at, y: box.bottom + 17, "text-anchor": "middle" }, this.plot).textContent = text;
    }
    svg("line", { class: "frame", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }, this.plot);
  }

  drawMarks(area) {
    const { box } = this;
    const { resumes, skips } = this.marks();
    for (const { x, text } of resumes) {
      const at = this.x(x);
      const line = svg("line", { class: "resume", x1: at, x2: at, y1: box.top, y2: box.bottom }, area);
      svg("title", {}, line).textContent = text;
    }
    for (const { x, text } of skips) {
      const at = this.x(x);
      const shape = svg("path", { class: "skip", d: `M${at - 4} ${box.bottom}h8l-4 -8Z` }, area);
      svg("title", {}, shape).textContent = text;
    }
  }

  drawLine(area, line, logX, logY) {
    const { x, y } = this;
    const paint = `var(--c${line.color})`;
    if (this.spec.stacked) {
      const d = band(line.xs, line.low, line.high, x, y, logX, false);
      svg("path", { class: "stack", d, style: `fill:${paint};opacity:.8` }, area);
      return;
    }
    if (line.low) {
      svg("path", { class: "band", d: band(line.xs, line.low, line.high, x, y, logX, logY), style: `fill:${paint};stroke:${paint}` }, area);
    }
    if (line.smooth) {
      svg("path", { class: "raw", d: path(line.xs, line.raw, x, y, logX, logY), style: `stroke:${paint}` }, area);
    }
    const attributes = { class: "line", d: path(line.xs, line.ys, x, y, logX, logY), style: `stroke:${paint}` };
    if (line.dash) attributes["stroke-dasharray"] = line.dash;
    svg("path", attributes, area);
    const crowded = line.xs.length > (this.box.right - this.box.left) / 9;
    if (line.points && !crowded) {
      const dots = line.xs.map((v, i) => (known(line.ys[i]) && (!logY || line.ys[i] > 0) && (!logX || v > 0)
        ? marker(line.marker, x(v), y(line.ys[i]), 3) : ""));
      svg("path", { class: "point", d: dots.join(""), style: `fill:${paint}` }, area);
    }
  }

  drawLegend() {
    this.legend.replaceChildren();
    this.values = new Map();
    const all = this.series().filter((s) => !this.view.hidden.has(s.run));
    for (const s of all) {
      const shown = !this.hidden.has(s.key);
      const item = html("button", { type: "button", "aria-pressed": shown, title: "show or hide" }, this.legend);
      const icon = svg("svg", { viewBox: "0 0 20 10", "aria-hidden": "true" }, item);
      const paint = `var(--c${s.color})`;
      if (this.spec.stacked) svg("rect", { width: 12, height: 10, x: 4, rx: 2, style: `fill:${paint}` }, icon);
      else svg("line", { x1: 0, x2: 20, y1: 5, y2: 5, "stroke-width": 2, style: `stroke:${paint}`, "stroke-dasharray": s.dash || "none" }, icon);
      if (s.points) svg("path", { d: marker(s.marker, 10, 5, 3), style: `fill:${paint}` }, icon);
      html("span", {}, item, s.label);
      this.values.set(s.key, html("b", {}, item));
      item.addEventListener("click", () => {
        if (shown) this.hidden.add(s.key); else this.hidden.delete(s.key);
        this.draw();
      });
    }
  }

  // The vertical line at the cursor and the values there; without a cursor, the last values.
  drawCursor() {
    const { box, view } = this;
    if (!this.overlay) return;
    this.overlay.replaceChildren();
    const here = view.cursor;
    const inside = here !== null && this.x(here) >= box.left - 1 && this.x(here) <= box.right + 1;
    if (inside) {
      const at = this.x(here);
      svg("line", { class: "cross", x1: at, x2: at, y1: box.top, y2: box.bottom }, this.overlay);
    }
    const format = FORMATS[this.spec.format];
    for (const line of this.lines) {
      if (!line.xs.length) continue;
      let row = inside ? nearest(line.xs, here) : line.xs.length - 1;
      if (!inside) while (row > 0 && !known(line.ys[row])) row -= 1;
      const beyond = inside && (here > line.xs[line.xs.length - 1] * 1.02 && !line.points);
      const value = beyond ? null : (this.spec.stacked ? line.share : line.ys)[row];
      this.values.get(line.key).textContent = known(value) ? format(value) : "–";
      if (inside && known(value) && !this.spec.stacked && (!(view.logY && this.spec.canLog) || value > 0)) {
        svg("circle", { class: "point", cx: this.x(line.xs[row]), cy: this.y(value), r: 3.5, style: `fill:var(--c${line.color})` }, this.overlay);
      }
    }
    this.at.textContent = inside ? `${AXES[view.axis].name} ${AXES[view.axis].text(here)}`.replace("tokens ", "") : "";
    if (this.dragFrom !== undefined && inside) {
      const [a, b] = [this.x(this.dragFrom), this.x(here)];
      svg("rect", { class: "select", x: Math.min(a, b), width: Math.abs(a - b), y: box.top, height: box.bottom - box.top }, this.overlay);
    }
  }

  listen() {
    const { plot, view } = this;
    const where = (event) => {
      const frame = plot.getBoundingClientRect();
      const pixel = ((event.clientX - frame.left) / frame.width) * plot.viewBox.baseVal.width;
      return this.x.back(Math.min(this.box.right, Math.max(this.box.left, pixel)));
    };
    plot.addEventListener("pointermove", (event) => view.point(where(event)));
    plot.addEventListener("pointerleave", () => { if (this.dragFrom === undefined) view.point(null); });
    plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      this.dragFrom = where(event);
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointerup", (event) => {
      if (this.dragFrom === undefined) return;
      const ends = [this.dragFrom, where(event)].sort((a, b) => a - b);
      this.dragFrom = undefined;
      if (this.x(ends[1]) - this.x(ends[0]) > 6) view.zoom(ends);
      else view.point(where(event));
    });
    plot.addEventListener("pointercancel", () => { this.dragFrom = undefined; });
    plot.addEventListener("dblclick", () => view.zoom(null));
    plot.addEventListener("blur", () => view.point(null));
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const { view } = this;
    const longest = this.lines.reduce((a, b) => (b.xs.length > a.length ? b.xs : a), []);
    const [x0, x1] = view.range();
    const inside = longest.filter((x) => x >= x0 && x <= x1);
    if (!inside.length) return;
    const now = view.cursor === null ? inside.length - 1 : nearest(inside, view.cursor);
    const jump = event.shiftKey ? Math.max(2, Math.round(inside.length / 20)) : 1;
    const to = { ArrowLeft: now - jump, ArrowRight: now + jump, Home: 0, End: inside.length - 1 }[event.key];
    if (to !== undefined) view.point(inside[Math.min(inside.length - 1, Math.max(0, to))]);
    else if (event.key === "Escape") view.zoom(null);
    else if (event.key === "+" || event.key === "-") {
      const middle = view.cursor === null ? (x0 + x1) / 2 : view.cursor;
      const factor = event.key === "+" ? 0.5 : 2;
      view.zoom([middle - (middle - x0) * factor, middle + (x1 - middle) * factor]);
    } else return;
    event.preventDefault();
    this.plot.setAttribute("aria-label", `${this.spec.title}. ${this.at.textContent}: ${this.legend.textContent}`);
  }
}

// Whole seconds, minutes or hours.
function timeTicks(low, high, wanted) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const rough = (high - low) / Math.max(1, wanted);
  if (rough < 1) return ticks(low, high, wanted, false);
  const step = steps.find((s) => s >= rough) || 86400 * Math.ceil(rough / 86400);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) found.push(t);
  return found;
}
