const { runs } = DATA;
const DRAWN = { "mean loss of an epoch": "loss", "validation loss": "loss" }; // metrics that share another one's chart
const NAMES = { step: "step", epoch: "epoch", pairs: "pairs seen" };
const KEY = "report:" + DATA.title;
const MARGIN = { left: 58, right: 14, top: 8, bottom: 24 };

const state = { axis: "step", smooth: 0.6, view: null, hidden: [], logs: [], scroll: 0, epoch: null };
try { Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) || "{}")); } catch { /* nothing was kept */ }
function keep() {
  try { sessionStorage.setItem(KEY, JSON.stringify({ ...state, scroll: scrollY })); } catch { /* nothing can be kept */ }
}
addEventListener("pagehide", keep);

const colour = (k) => `var(--c${k % 8})`;
const visible = (k) => !state.hidden.includes(runs[k].name);

// ---------------------------------------------------------------- curves: values, axes
runs.forEach((run) => {
  const own = run.curves.some((curve) => curve.metric === "loss");
  run.curves = run.curves.filter((curve) => !(own && curve.metric === "mean loss of an epoch"));
});

function places(run, curve) {
  if (state.axis === "pairs") return curve.step && run.batch ? curve.step.map((step) => step * run.batch) : null;
  return curve[state.axis] || null;
}

/** The running mean of a curve, every point with the weight of those before it that the slider asks for. */
function smoothed(values, weight) {
  let sum = 0, count = 0;
  return values.map((value) => {
    if (value == null) return null;
    sum = weight * sum + value;
    count = weight * count + 1;
    return sum / count;
  });
}

function nearest(sorted, x) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - sorted[low - 1] < sorted[low] - x ? low - 1 : low;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough) || power;
  const first = Math.ceil(low / size - 1e-9), last = Math.min(first + 100, Math.floor(high / size + 1e-9));
  const found = [];
  for (let k = 0; k <= last - first; k++) found.push(+((first + k) * size).toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const k of high - low < 1.2 ? [1, 1.5, 2, 3, 5, 7] : high - low < 3 ? [1, 2, 5] : [1]) {
      const value = Math.log10(k) + power;
      if (value >= low && value <= high) found.push(value);
    }
  return found;
}

const label = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(4) + "k";
  return size && size < 1e-3 ? value.toExponential(1).replace("e-", "e−") : String(+value.toPrecision(4));
};

// ---------------------------------------------------------------- a chart
const charts = [];
let cursor = null;

class Chart {
  constructor(metric, main) {
    this.metric = metric;
    this.yView = null;
    this.height = main ? 330 : 200;
    this.clip = "clip" + charts.length;
    this.svg = make("svg", { tabindex: 0, role: "img", "aria-label": `${metric} of the runs; arrow keys read values` });
    this.tip = make("div", { class: "tip", hidden: true });
    this.log = make("button", { type: "button", onclick: () => this.toggleLog() }, "log");
    this.box = make("div", { class: main ? "chart main" : "chart" }, make("h3", {}, metric, this.log), this.svg, this.tip);
    this.pointers = new Map();
    for (const [name, f] of Object.entries({
      pointerdown: (e) => this.down(e), pointermove: (e) => this.move(e), pointerup: (e) => this.up(e),
      pointercancel: (e) => this.up(e, true), pointerleave: () => { if (!this.pointers.size) point(null); },
      dblclick: reset, keydown: (e) => this.key(e), blur: () => point(null),
    })) this.svg.addEventListener(name, f);
    this.svg.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
  }

  toggleLog() {
    state.logs = state.logs.includes(this.metric) ? state.logs.filter((m) => m !== this.metric) : [...state.logs, this.metric];
    this.yView = null;
    this.draw();
  }

  /** The curves of this chart on the chosen axis: places x, values y (of a logarithmic axis their logarithms). */
  prepare() {
    const log = state.logs.includes(this.metric);
    const up = (value) => (value == null || (log && value <= 0) ? null : log ? Math.log10(value) : value);
    this.curves = [];
    runs.forEach((run, k) => {
      if (!visible(k)) return;
      for (const curve of run.curves) {
        if ((DRAWN[curve.metric] || curve.metric) !== this.metric) continue;
        const x = places(run, curve), held = curve.metric.startsWith("validation");
        if (!x) continue;
        const few = held || curve.y.length < 40;
        const y = (few ? curve.y : smoothed(curve.y, state.smooth)).map(up);
        this.curves.push({ k, run, curve, held, few, x, y, low: curve.low && curve.low.map(up), high: curve.high && curve.high.map(up) });
      }
    });
    return log;
  }

  yRange([x0, x1]) {
    if (this.yView) return this.yView;
    const seen = [];
    for (const { x, y } of this.curves) x.forEach((at, j) => { if (at >= x0 && at <= x1 && y[j] != null) seen.push(y[j]); });
    if (!seen.length) return [0, 1];
    seen.sort((a, b) => a - b);
    const cut = seen.length > 200 && !state.view ? Math.floor(seen.length * 0.004) : 0; // a few outliers would flatten the rest
    let low = seen[cut], high = seen[seen.length - 1 - cut];
    if (high - low <= 1e-6 * Math.abs(high)) { // equal but for rounding
      const pad = Math.abs(low) * 0.1 || 1;
      low -= pad;
      high += pad;
    }
    const pad = (high - low) * 0.06;
    return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
  }

  draw() {
    const log = this.prepare();
    this.log.setAttribute("aria-pressed", log);
    const width = this.svg.clientWidth || 400, { height } = this;
    this.x = state.view || whole();
    this.y = this.yRange(this.x);
    const inner = { w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
    const X = (value) => MARGIN.left + ((value - this.x[0]) / (this.x[1] - this.x[0])) * inner.w;
    const Y = (value) => MARGIN.top + (1 - (value - this.y[0]) / (this.y[1] - this.y[0])) * inner.h;
    Object.assign(this, { X, Y, inner, width });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.style.height = height + "px";
    const axes = make("g");
    for (const value of ticks(...this.x, Math.max(2, inner.w / 90)))
      axes.append(
        make("line", { class: "grid", x1: X(value), x2: X(value), y1: MARGIN.top, y2: MARGIN.top + inner.h }),
        make("text", { x: X(value), y: height - 7, "text-anchor": "middle" }, label(value)),
      );
    for (const value of log ? logTicks(...this.y) : ticks(...this.y, inner.h / 32))
      axes.append(
        make("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: Y(value), y2: Y(value) }),
        make("text", { x: MARGIN.left - 7, y: Y(value) + 4, "text-anchor": "end" }, label(log ? 10 ** value : value)),
      );
    const drawn = make("g", { "clip-path": `url(#${this.clip})` });
    for (const { k, x, y, low, high, held, few } of this.curves) {
      const faint = focused != null && focused !== k ? " faint" : "";
      if (low && !held) {
        const there = x.map((_, j) => j).filter((j) => low[j] != null && high[j] != null);
        const edge = (values, order) => order.map((j) => `${X(x[j]).toFixed(1)} ${Y(values[j]).toFixed(1)}`).join("L");
        if (there.length > 1)
          drawn.append(make("path", { class: "band" + faint, fill: colour(k), d: `M${edge(high, there)}L${edge(low, there.reverse())}Z` }));
      }
      let d = "", pen = false;
      x.forEach((at, j) => {
        if (y[j] == null) { pen = false; return; }
        d += `${pen ? "L" : "M"}${X(at).toFixed(1)} ${Y(y[j]).toFixed(1)}`;
        pen = true;
        if (few) drawn.append(make("circle", { class: faint.trim(), cx: X(at).toFixed(1), cy: Y(y[j]).toFixed(1), r: 2.6, fill: colour(k) }));
      });
      const dashes = held || k < 8 ? null : ["9 3", "2 3", "9 3 2 3"][(k / 8 | 0) % 3];
      drawn.append(make("path", { class: (held ? "curve held" : "curve") + faint, stroke: colour(k), d, "stroke-dasharray": dashes }));
    }
    const clip = make("clipPath", { id: this.clip }, make("rect", { x: MARGIN.left, y: 0, width: Math.max(0, inner.w), height: MARGIN.top + inner.h }));
    this.over = make("g");
    this.svg.replaceChildren(clip, axes, drawn, this.over);
    this.box.hidden = !this.curves.length;
    this.hover();
  }

  /** The line of the cursor, a dot on each curve, and on the chart that is pointed at the values. */
  hover() {
    if (!this.over) return;
    this.over.replaceChildren();
    this.tip.hidden = true;
    if (!cursor || cursor.x < this.x[0] || cursor.x > this.x[1]) return;
    const log = state.logs.includes(this.metric), at = this.X(cursor.x);
    this.over.append(make("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: MARGIN.top + this.inner.h }));
    const rows = [];
    for (const { k, run, x, y, curve, held } of this.curves) {
      const j = nearest(x, cursor.x), reach = Math.max((this.x[1] - this.x[0]) * 0.02, (x[x.length - 1] - x[0]) / x.length);
      if (y[j] == null || Math.abs(x[j] - cursor.x) > reach) continue;
      if (this.Y(y[j]) >= 0 && this.Y(y[j]) <= this.height)
        this.over.append(make("circle", { cx: this.X(x[j]), cy: this.Y(y[j]), r: 3.6, fill: colour(k), stroke: "var(--card)", "stroke-width": 1.5 }));
      rows.push({ k, name: run.name + (held ? ", validation" : ""), value: log ? 10 ** y[j] : y[j], raw: curve.y[j], x: x[j] });
    }
    if (cursor.chart !== this || !rows.length) return;
    rows.sort((a, b) => b.value - a.value);
    this.tip.replaceChildren(
      make("b", {}, `${NAMES[state.axis]} ${shown(state.axis === "epoch" ? Math.round(cursor.x * 100) / 100 : Math.round(cursor.x))}`),
      ...rows.slice(0, 16).map((row) => make("div", {},
        make("span", {}, make("i", { class: "swatch", style: `background:${colour(row.k)}` }), row.name), make("span", {}, shown(row.value)))),
    );
    this.tip.hidden = false;
    const left = at + 14 + this.tip.offsetWidth > this.width ? at - this.tip.offsetWidth - 4 : at + 18;
    this.tip.style.left = Math.max(2, left) + "px";
    this.tip.style.top = "2.2rem";
  }

  at(event) {
    const { left, top } = this.svg.getBoundingClientRect();
    const inside = (v, low, high) => Math.min(high, Math.max(low, v));
    const px = inside(event.clientX - left, MARGIN.left, MARGIN.left + this.inner.w);
    const py = inside(event.clientY - top, MARGIN.top, MARGIN.top + this.inner.h);
    return {
      px, py, x: this.x[0] + ((px - MARGIN.left) / this.inner.w) * (this.x[1] - this.x[0]),
      y: this.y[0] + (1 - (py - MARGIN.top) / this.inner.h) * (this.y[1] - this.y[0]),
    };
  }

  down(event) {
    if (event.button) return;
    this.svg.focus({ preventScroll: true });
    this.svg.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.at(event));
    this.start = event.pointerType === "touch" ? null : this.at(event);
    this.pinch = this.pointers.size === 2 ? [...this.pointers.values()].map((p) => p.x).sort((a, b) => a - b) : null;
  }

  move(event) {
    const here = this.at(event);
    if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, here);
    if (this.pinch && this.pointers.size === 2) { // the two places stay under the two fingers
      const [a, b] = [...this.pointers.values()].map((p) => p.px - MARGIN.left).sort((m, n) => m - n);
      if (b - a < 8) return;
      const scale = (this.pinch[1] - this.pinch[0]) / (b - a), low = this.pinch[0] - a * scale;
      look([low, low + this.inner.w * scale]);
      return;
    }
    point({ x: here.x, chart: this });
    if (!this.start) return;
    const tall = Math.abs(here.py - this.start.py) > 24;
    this.over.append(make("rect", {
      class: "box", x: Math.min(here.px, this.start.px), width: Math.abs(here.px - this.start.px),
      y: tall ? Math.min(here.py, this.start.py) : MARGIN.top, height: tall ? Math.abs(here.py - this.start.py) : this.inner.h,
    }));
  }

  up(event, cancelled = false) {
    const start = this.start, here = this.at(event);
    this.pointers.delete(event.pointerId);
    this.start = this.pinch = null;
    if (!start || cancelled || Math.abs(here.px - start.px) < 6) return;
    if (Math.abs(here.py - start.py) > 24) this.yView = [Math.min(here.y, start.y), Math.max(here.y, start.y)];
    look([Math.min(here.x, start.x), Math.max(here.x, start.x)]);
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, this.at(event).x);
  }

  key(event) {
    const [low, high] = this.x, step = (high - low) / (event.shiftKey ? 10 : 100);
    const now = cursor ? cursor.x : (low + high) / 2;
    const acts = {
      ArrowLeft: () => point({ x: Math.max(low, now - step), chart: this }), ArrowRight: () => point({ x: Math.min(high, now + step), chart: this }),
      "+": () => zoom(0.7, now), "=": () => zoom(0.7, now), "-": () => zoom(1 / 0.7, now), 0: reset, Escape: reset,
    };
    if (!(event.key in acts) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    acts[event.key]();
  }
}

function point(place) {
  cursor = place;
  charts.forEach((chart) => chart.hover());
}

/** From 0 (or where the curves begin) to the end of the longest curve that is drawn. */
function whole() {
  let high = 0;
  runs.forEach((run, k) => {
    if (visible(k)) for (const curve of run.curves) { const x = places(run, curve); if (x && x.length) high = Math.max(high, x[x.length - 1]); }
  });
  return [0, high || 1];
}

function look(view) {
  const all = whole(), width = view ? Math.min(view[1] - view[0], all[1] - all[0]) : 0;
  if (view && width < (all[1] - all[0]) * 0.999 && width > (all[1] - all[0]) * 1e-5) {
    const low = Math.min(Math.max(view[0], all[0]), all[1] - width);
    state.view = [low, low + width];
  } else if (!view || width >= (all[1] - all[0]) * 0.999) state.view = null;
  drawAll();
}
function zoom(factor, about) {
  const [low, high] = state.view || whole(), x = about ?? (low + high) / 2;
  look([x - (x - low) * factor, x + (high - x) * factor]);
}
function reset() {
  charts.forEach((chart) => { chart.yView = null; });
  look(null);
}
function shift(share) {
  if (state.view) look(state.view.map((x) => x + share * (state.view[1] - state.view[0])));
}
function drawAll() {
  charts.forEach((chart) => chart.draw());
}

// ---------------------------------------------------------------- the table
let focused = null;
function setFocus(k) {
  if (focused === k) return;
  focused = k;
  drawAll();
}

function table() {
  const facts = [...new Set(runs.flatMap((run) => Object.keys(run.facts)))];
  const outcome = facts.filter((name) => ["epochs", "last loss", "best validation", "at epoch"].includes(name));
  const fact = (name, j) => ({ name, value: (run) => run.facts[name], split: j === 0 });
  const columns = [
    { name: "run", value: (run) => run.name },
    ...outcome.map((name) => fact(name)),
    ...DATA.differing.map((name, j) => ({ name, value: (run) => plain(run.config[name]), split: !j, exact: true })),
    ...facts.filter((name) => !outcome.includes(name)).map(fact),
  ];
  for (const column of columns) column.right = runs.some((run) => /^[\d−-]/.test(shown(column.value(run)))) && column.name !== "run";
  const looks = (column) => [column.right ? "number" : "", column.split ? "split" : ""].join(" ").trim();
  let sorted = { column: -1, down: false };
  const head = make("tr"), body = make("tbody");
  const several = new Set(runs.map((run) => run.name)).size < runs.length;
  function fill() {
    const order = runs.map((_, k) => k);
    if (sorted.column >= 0) {
      const key = (k) => columns[sorted.column].value(runs[k]);
      order.sort((a, b) => compare(key(a), key(b)) * (sorted.down ? -1 : 1));
    }
    body.replaceChildren(...order.map((k) => make("tr", { onmouseenter: () => setFocus(k), onmouseleave: () => setFocus(null) },
      ...columns.map((column, j) => {
        const value = column.value(runs[k]), cell = make("td", { class: looks(column) });
        if (j) cell.append(column.exact && value !== null ? String(value) : shown(value));
        else {
          const tick = make("input", { type: "checkbox", checked: visible(k), "aria-label": `draw ${value}`, onchange: () => {
            state.hidden = tick.checked ? state.hidden.filter((n) => n !== value) : [...state.hidden, value];
            drawAll();
          } });
          cell.append(make("label", {}, tick, make("i", { class: "swatch", style: `background:${colour(k)}` }), value,
            several || runs[k].foreign ? make("span", { class: "soft" }, `  ${runs[k].place}`) : null));
        }
        return cell;
      }))));
    [...head.children].forEach((th, j) => th.setAttribute("aria-sort", j !== sorted.column ? "none" : sorted.down ? "descending" : "ascending"));
  }
  columns.forEach((column, j) => {
    const sort = () => { sorted = { column: j, down: sorted.column === j && !sorted.down }; fill(); };
    head.append(make("th", { class: looks(column), tabindex: 0, scope: "col", onclick: sort, onkeydown: (e) => { if (e.key === "Enter") sort(); } }, column.name));
  });
  fill();
  $("#table").replaceChildren(make("thead", {}, head), body);
}

function compare(a, b) {
  if (a == null || b == null) return (a == null) - (b == null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}
const plain = (value) => (value === undefined ? null : value !== null && typeof value === "object" ? JSON.stringify(value) : typeof value === "boolean" ? String(value) : value);

// ---------------------------------------------------------------- reconstructions
function pictures() {
  const drawn = DATA.pictures, figures = DATA.figures;
  const epochs = [...new Set([
    ...(drawn ? Object.values(drawn.runs).flatMap((run) => run.epochs.map((e) => e.epoch)) : []),
    ...Object.entries(figures).filter(([name]) => !(drawn && drawn.runs[name])).flatMap(([, list]) => list.map((e) => e.epoch)),
  ])].sort((a, b) => a - b);
  $("#pictures").hidden = !epochs.length;
  if (!epochs.length) return;
  const slider = $("#epoch"), grid = $("#grid");
  let kind = "pasted", timer = null;
  slider.max = epochs.length - 1;
  slider.value = state.epoch != null && epochs.includes(state.epoch) ? epochs.indexOf(state.epoch) : epochs.length - 1;
  const latest = (list) => list.reduce((best, e) => (e.epoch <= epochs[slider.value] ? e : best), null);
  const kinds = { pasted: "prediction", masked: "what the model saw" };
  const updates = [];
  if (drawn) {
    const names = Object.keys(drawn.runs);
    grid.style.gridTemplateColumns = `repeat(${3 + names.length}, max-content)`;
    const heads = names.map((name) => make("div", { class: "head" }));
    grid.append(make("div", { class: "name" }), make("div", { class: "head" }, "f1, the past"), make("div", { class: "head" }, "f2, the future"), ...heads);
    names.forEach((name, j) => updates.push(() => {
      const entry = latest(drawn.runs[name].epochs), k = runs.findIndex((run) => run.name === name);
      heads[j].replaceChildren(make("i", { class: "swatch", style: `background:${colour(k)}` }), make("b", {}, name), make("br"),
        `${Math.round(100 * drawn.runs[name].ratio)} % hidden, ${entry ? "epoch " + entry.epoch : "not yet"}`);
    }));
    drawn.pairs.forEach((pair, p) => {
      grid.append(make("div", { class: "name" }, pair.name), make("figure", {}, make("img", { src: pair.past, alt: "f1" })),
        make("figure", {}, make("img", { src: pair.future, alt: "f2" }), make("figcaption", {}, pair.gap == null ? "" : `${pair.gap.toFixed(2)} s later`)));
      for (const name of names) {
        const image = make("img", { alt: "" }), caption = make("figcaption");
        grid.append(make("figure", {}, image, caption));
        updates.push(() => {
          const entry = latest(drawn.runs[name].epochs), shownNow = kind === "masked" ? drawn.runs[name].masked[p] : entry && entry.pasted[p];
          image.style.visibility = shownNow ? "" : "hidden";
          if (shownNow) image.src = shownNow;
          image.alt = `${kinds[kind]} of ${name}, ${pair.name}`;
          caption.textContent = entry ? `loss ${entry.loss[p].toFixed(3)}` : "";
        });
      }
    });
    $("#caption").textContent = drawn.caption;
    for (const [key, words] of Object.entries(kinds)) {
      const button = make("button", { type: "button", "aria-pressed": key === kind, onclick: () => {
        kind = key;
        [...$("#kinds").children].forEach((b) => b.setAttribute("aria-pressed", b === button));
        update();
      } }, words);
      $("#kinds").append(button);
    }
  } else grid.parentElement.hidden = true;
  for (const [name, list] of Object.entries(figures)) {
    if (drawn && drawn.runs[name]) continue;
    const image = make("img", { alt: `the first pair of ${name}` }), words = make("figcaption");
    $("#figures").append(make("figure", {}, words, image));
    updates.push(() => {
      const entry = latest(list);
      image.style.visibility = entry ? "" : "hidden";
      if (entry) image.src = entry.image;
      words.textContent = `${name}, its first pair after epoch ${entry ? entry.epoch : "–"}`;
    });
  }
  function update() {
    state.epoch = epochs[slider.value];
    $("#epoch + output").textContent = epochs[slider.value];
    updates.forEach((f) => f());
  }
  function play(on) {
    clearInterval(timer);
    $("#play").setAttribute("aria-pressed", on);
    if (on) timer = setInterval(() => { slider.value = (+slider.value + 1) % epochs.length; update(); }, 700);
    else timer = null;
  }
  slider.addEventListener("input", () => { play(false); update(); });
  $("#play").addEventListener("click", () => play(timer === null));
  update();
}

// ---------------------------------------------------------------- evaluations, origins
function evaluations() {
  $("#evaluations").hidden = !DATA.evaluations.length;
  const kinds = Map.groupBy ? Map.groupBy(DATA.evaluations, (e) => Object.keys(e.row).join()) : new Map([["", DATA.evaluations]]);
  for (const rows of kinds.values()) {
    const columns = [...new Set(rows.flatMap((e) => Object.keys(e.row)))];
    const head = ["features of", ...columns, "videos", "seconds", "protocol", "commit"];
    $("#evaluations > div").append(make("div", { class: "scroll", style: "margin-bottom:1rem" }, make("table", {},
      make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map((e) => {
        const k = runs.findIndex((run) => run.name === e.run);
        return make("tr", {},
          make("td", {}, k >= 0 ? make("i", { class: "swatch", style: `background:${colour(k)}` }) : null, make("a", { href: e.link, title: e.folder }, e.source || e.folder)),
          ...columns.map((name) => make("td", { class: "number" }, e.row[name] == null ? "–" : (100 * e.row[name]).toFixed(1))),
          make("td", { class: "number" }, shown(e.videos)), make("td", { class: "number" }, shown(e.seconds, 3)),
          make("td", { class: "long" }, e.how || "–"), make("td", { class: "code" }, e.commit ? e.commit.slice(0, 10) + e.commit.slice(40) : "–"));
      })))));
  }
}

function origins() {
  const box = $("#origins > div");
  for (const run of runs) {
    if (run.foreign) continue;
    const lines = (run.starts || []).map((start) => make("p", {},
      make("span", { class: "soft" }, `${start.time || ""} `), make("code", {}, start.command || ""), make("br"),
      make("span", { class: "soft" }, [
        start.commit ? `commit ${start.commit.slice(0, 10)}${start.commit.slice(40)}` : "not from a checkout",
        Object.entries(start.versions || {}).map(([name, version]) => `${name} ${version}`).join(", "), start.machine,
      ].filter(Boolean).join(" · "))));
    const configuration = Object.entries(run.config).map(([key, value]) => `${key} ${plain(value)}`).join(" · ");
    box.append(make("details", {}, make("summary", {}, run.name, make("span", { class: "soft" }, `  ${run.place}`)),
      ...(lines.length ? lines : [make("p", { class: "soft" }, "The run kept no record of its command and versions.")]),
      make("p", { class: "code" }, configuration || "no config.json")));
  }
  $("#origins").hidden = !box.children.length;
}

// ---------------------------------------------------------------- the page
$("#title").textContent = DATA.title;
$("#about").textContent = `${runs.length} ${runs.length === 1 ? "run" : "runs"}, as of ${DATA.written}` + (DATA.refresh ? `, loads itself again every ${DATA.refresh} s` : "");
$("header").append(themeButton());
$("#runs").hidden = $("#curves").hidden = !runs.length;
table();
$("#common").hidden = !Object.keys(DATA.common).length;
$("#common p").textContent = Object.entries(DATA.common).map(([key, value]) => `${key} ${plain(value)}`).join(" · ");

const able = Object.keys(NAMES).filter((axis) => runs.some((run) => run.curves.some((c) => (axis === "pairs" ? c.step && run.batch : c[axis]))));
if (!able.includes(state.axis)) state.axis = able[0] || "step";
for (const axis of able) $("#axis").append(make("option", { value: axis, selected: axis === state.axis }, NAMES[axis]));
$("#axis").addEventListener("change", () => { state.axis = $("#axis").value; state.view = null; drawAll(); });
$("#smooth").value = state.smooth;
const tellSmooth = () => { $("#smooth + output").textContent = `${Math.round(100 * state.smooth)} %`; };
$("#smooth").addEventListener("input", () => { state.smooth = +$("#smooth").value; tellSmooth(); drawAll(); });
tellSmooth();
for (const [id, f] of Object.entries({ in: () => zoom(0.6), out: () => zoom(1 / 0.6), left: () => shift(-0.3), right: () => shift(0.3), reset }))
  $("#" + id).addEventListener("click", f);

const metrics = [...new Set(runs.flatMap((run) => run.curves.map((curve) => DRAWN[curve.metric] || curve.metric)))];
metrics.sort((a, b) => (b === "loss") - (a === "loss"));
metrics.forEach((metric) => {
  const chart = new Chart(metric, metric === "loss");
  charts.push(chart);
  $("#charts").append(chart.box);
});
new ResizeObserver(drawAll).observe($("#charts"));
document.addEventListener("theme", drawAll);
pictures();
evaluations();
origins();
$("#notes").hidden = !DATA.notes.length;
$("#notes ul").append(...DATA.notes.map((note) => make("li", {}, note)));
drawAll();
if (DATA.refresh) {
  scrollTo(0, state.scroll);
  setTimeout(() => location.reload(), 1000 * DATA.refresh);
}
