"use strict";
// The charts, by uPlot. Each is a figure with a caption, a line of what the pointer is at, and a table of the same.
const charts = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const all = [];
  const TABLE_ROWS = 24;

  const axisTime = (u, splits) => {
    const long = splits.at(-1) - splits[0] > 86400;
    const short = splits.at(-1) - splits[0] < 600;
    return splits.map((time) => {
      const date = new Date(1000 * time);
      if (long) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
      return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...(short ? { second: "2-digit" } : {}) });
    });
  };
  const AGAINST = {
    time: { time: true, show: words.clock, axis: axisTime },
    step: { time: false, show: (x) => `step ${words.whole(x)}`, axis: (u, splits) => splits.map(words.amount) },
    tokens: { time: false, show: (x) => `${words.amount(x)} tokens`, axis: (u, splits) => splits.map(words.amount) },
  };

  // Of columns over x, what rises in x: a run that lost workers may seem to go back.
  const rising = (x, columns) => {
    const kept = [];
    let last = -Infinity;
    x.forEach((value, index) => {
      if (value !== null && value > last) { kept.push(index); last = value; }
    });
    return [x, ...columns].map((column) => kept.map((index) => column[index]));
  };

  // Shares on top of each other. The highest is drawn first, and what is below it over it.
  const stacked = ([x, ...columns]) => {
    const sums = columns.map((_, number) => x.map((_, index) => columns.slice(0, number + 1).reduce((sum, column) => sum + (column[index] ?? 0), 0)));
    return [x, ...sums.reverse()];
  };

  class Chart {
    constructor(place, { id, title, unit, series, show, log = false, stack = false, floor = false, height = 200 }) {
      Object.assign(this, { title, series, show, log, stack, floor, height, plot: null, raw: [[]], more: [], against: "time", shape: "" });
      this.at = dom.el("span", { class: "muted at" });
      this.legend = dom.el("ul", { class: "legend" });
      this.box = dom.el("div", { class: "plot", role: "img" });
      this.table = dom.el("table");
      const scroll = dom.el("div", { class: "scroll tall", tabindex: "0", role: "group", "aria-label": `${title}, table` }, this.table);
      this.details = dom.el("details", {}, dom.el("summary", {}, `${title} as a table`), scroll);
      this.details.addEventListener("toggle", () => this.fill());
      const caption = dom.el("figcaption", {}, dom.el("h3", {}, title), dom.el("span", { class: "muted" }, unit), this.legend, this.at);
      place.append(dom.el("figure", { id: `chart-${id}` }, caption, this.box, this.details));
      new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
      all.push(this);
    }

    size() {
      return { width: Math.max(200, this.box.clientWidth), height: this.height };
    }

    // Columns: one of each series, over x. More: further lines behind them, each {label, values}, all alike.
    set(against, x, columns, more = []) {
      this.raw = rising(x, [...more.map((one) => one.values), ...columns]);
      this.more = more;
      const shape = `${against} ${more.map((one) => one.label).join()}`;
      if (this.plot && shape === this.shape) this.plot.setData(this.data());
      else this.draw(against, shape);
      const latest = this.series.map((one, number) => `${one.label} ${this.show(this.own()[number].findLast(words.known))}`);
      this.box.setAttribute("aria-label", `${this.title}, latest: ${latest.join(", ")}. As a table below.`);
      this.fill();
    }

    own() {
      return this.raw.slice(1 + this.more.length);
    }

    data() {
      return this.stack ? stacked(this.raw) : this.raw;
    }

    draw(against = this.against, shape = this.shape) {
      this.plot?.destroy();
      this.plot = null;
      Object.assign(this, { against, shape });
      const keys = this.series.map((one) => dom.el("li", {}, dom.el("i", { class: `key ${one.colour}` }), one.label));
      if (this.more.length) keys.push(dom.el("li", {}, dom.el("i", { class: "key each" }), "each worker"));
      this.legend.replaceChildren(...keys);
      if (!this.raw[0].length) return;
      const grid = { stroke: colour("line"), width: 1 };
      const axis = { stroke: colour("muted"), font: "11px system-ui, sans-serif", grid, ticks: { ...grid, size: 4 } };
      const own = this.series.map((one) => ({
        stroke: colour(one.colour),
        width: this.stack ? 0 : 2,
        fill: this.stack ? colour(one.colour) : one.fill ? `${colour(one.colour)}22` : undefined,
        points: { show: Boolean(one.dots), size: 5, fill: colour(one.colour) },
        spanGaps: true,
      }));
      const each = { stroke: colour(this.more.length > 16 ? "many" : "each"), width: 1, points: { show: false } };
      // Of a logarithmic axis the powers of ten alone.
      const decades = this.log ? { filter: (u, splits) => splits.map((value) => (Number.isInteger(Math.log10(value)) ? value : null)) } : {};
      const y = this.log ? { distr: 3 } : { range: (u, low, high) => this.range(low, high) };
      const labels = (u, splits) => splits.map((value) => (value === null ? "" : this.show(value)));
      this.plot = new uPlot({
        ...this.size(),
        legend: { show: false },
        padding: [8, 22, 0, 0],
        cursor: { y: false, points: { show: !this.stack, size: 6 }, focus: { prox: this.more.length ? 12 : -1 }, drag: { x: true, y: false } },
        focus: { alpha: 0.35 },
        scales: { x: { time: against === "time" }, y },
        axes: [{ ...axis, values: AGAINST[against].axis, space: 70, size: 28 }, { ...axis, ...decades, grid: { ...grid, ...decades }, ticks: { ...axis.ticks, ...decades }, size: 52, values: labels }],
        series: [{}, ...this.more.map(() => ({ ...each })), ...(this.stack ? own.reverse() : own)],
        hooks: { setCursor: [(u) => this.point(u.cursor.idx)], setSeries: [(u, index) => { this.focus = index; this.point(u.cursor.idx); }] },
      }, this.data(), this.box);
    }

    range(low, high) {
      if (this.stack) return [0, 1];
      if (low === null || high === null) return [0, 1];
      const room = (high - low || Math.abs(high) || 1) * 0.08;
      return [this.floor ? 0 : low - room, high + room];
    }

    // What the pointer is at, in words.
    point(index) {
      const known = index !== null && index !== undefined;
      const parts = known ? [AGAINST[this.against].show(this.raw[0][index])] : [];
      if (known) this.series.forEach((one, number) => parts.push(`${one.label} ${this.show(this.own()[number][index])}`));
      const near = this.more[this.focus - 1];
      if (known && near) parts.push(`${near.label} ${this.show(this.raw[this.focus][index])}`);
      this.at.textContent = parts.join(" · ");
    }

    fill() {
      if (!this.details.open) return;
      const [x, columns] = [this.raw[0], this.own()];
      const every = Math.max(1, Math.ceil(x.length / TABLE_ROWS));
      const rows = x.map((_, index) => index).filter((index) => (x.length - 1 - index) % every === 0).reverse();
      const head = [this.against, ...this.series.map((one) => one.label)].map((label) => dom.el("th", { scope: "col", class: "n" }, label));
      const body = rows.map((index) => {
        const cells = this.series.map((_, number) => dom.el("td", { class: "n" }, this.show(columns[number][index])));
        return dom.el("tr", {}, dom.el("th", { scope: "row", class: "n" }, AGAINST[this.against].show(x[index])), ...cells);
      });
      this.table.replaceChildren(dom.el("thead", {}, dom.el("tr", {}, ...head)), dom.el("tbody", {}, ...body));
    }
  }
  return { Chart, all };
})();
