"use strict";
// The tables, the totals and the stages. A row keeps its element from one report to the next.
const tables = (() => {
  const { el } = dom;
  // A cell is a text, or {text, class, node}: a node stands for the text and is made anew when the text changes.
  const put = (cell, shown) => {
    const { text = "", class: name = "", node = null, title = "" } = typeof shown === "object" ? shown : { text: shown };
    if (cell.className !== name) cell.className = name;
    if (cell.title !== title) cell.title = title;
    const sign = node ? `\u0000${text}` : text;
    if (cell.sign === sign) return;
    cell.sign = sign;
    cell.replaceChildren(node ? node() : text);
  };

  class Table {
    // Columns: {name, class, sort}: sort gives a value of a row to order by, if people may.
    constructor(table, caption, columns) {
      this.columns = columns;
      this.rows = new Map();
      this.body = el("tbody");
      this.by = null;
      this.heads = columns.map((column, index) => {
        const inner = column.sort ? el("button", { type: "button" }, column.name) : column.name;
        if (column.sort) inner.addEventListener("click", () => this.order(index));
        return el("th", { scope: "col", class: column.class ?? "" }, inner);
      });
      table.replaceChildren(el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    }

    order(index) {
      const down = this.by?.index === index ? !this.by.down : this.columns[index].class !== undefined;
      this.by = { index, down };
      this.heads.forEach((head, number) => (number === index ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
      this.set(this.items);
    }

    // Items: {key, cells, class, row}, in their own order.
    set(items) {
      this.items = items;
      const sorted = [...items];
      if (this.by) {
        const value = (item) => this.columns[this.by.index].sort(item.row) ?? -Infinity;
        const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
        sorted.sort((a, b) => (this.by.down ? compare(b, a) : compare(a, b)));
      }
      const kept = new Set(items.map((item) => item.key));
      for (const [key, row] of this.rows) if (!kept.has(key)) { row.remove(); this.rows.delete(key); }
      sorted.forEach((item, place) => {
        let row = this.rows.get(item.key);
        if (!row) {
          row = el("tr", {}, ...this.columns.map((column, index) => el(index ? "td" : "th", index ? {} : { scope: "row" })));
          this.rows.set(item.key, row);
        }
        if (row.className !== (item.class ?? "")) row.className = item.class ?? "";
        item.cells.forEach((cell, index) => put(row.children[index], typeof cell === "object" ? { class: this.columns[index].class, ...cell } : { text: cell, class: this.columns[index].class }));
        if (this.body.children[place] !== row) this.body.insertBefore(row, this.body.children[place] ?? null);
      });
    }
  }

  // Parts of a worker's time, in the order in which they are drawn.
  const PARTS = [["computing", "compute"], ["waiting for data", "data"], ["waiting for others", "wait"], ["moving values", "move"], ["other", "rest"]];
  const parts = (row) => {
    const data = Math.min(row.data_share ?? 0, row.compute_share ?? 0);
    const spent = [(row.compute_share ?? 0) - data, data, row.waiting_share ?? 0, row.transfer_share ?? 0];
    return [...spent, row.wall_s !== 0 ? Math.max(0, 1 - spent.reduce((a, b) => a + b)) : 0];
  };
  const timeCell = (row) => {
    const shares = parts(row);
    const told = PARTS.map(([name], index) => [name, shares[index]]).filter(([, share]) => share >= 0.005).map(([name, share]) => `${name} ${words.percent(share)}`).join(", ");
    const bar = () => {
      const svg = graphic("svg", { class: "parts", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": told || "nothing yet" });
      let x = 0;
      shares.forEach((share, index) => { svg.append(graphic("rect", { class: PARTS[index][1], x, y: 0, width: 100 * share, height: 10 })); x += 100 * share; });
      return el("span", { class: "time" }, svg, el("span", {}, words.percent(row.compute_share - Math.min(row.data_share ?? 0, row.compute_share))));
    };
    return { text: told, node: bar, title: told };
  };
  const graphic = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  // A rate over its peak, on the scale of the fastest line.
  const linkCell = (mean, peak, fastest) => ({
    text: `${words.mbit(mean)}/${words.mbit(peak)}`,
    title: `mean ${words.mbit(mean)} Mbit/s, peak ${words.mbit(peak)} Mbit/s`,
    node: () => {
      const svg = graphic("svg", { class: "rate", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
      const width = (value) => (fastest > 0 ? Math.min(100, (100 * value) / fastest) : 0);
      svg.append(graphic("rect", { class: "peak", x: 0, y: 0, width: width(peak), height: 10 }), graphic("rect", { class: "mean", x: 0, y: 0, width: width(mean), height: 10 }));
      return el("span", { class: "time" }, svg, el("span", {}, words.mbit(mean), el("span", { class: "muted" }, `/${words.mbit(peak)}`)));
    },
  });

  const spans = (stages) => {
    const found = [];
    for (const stage of stages) {
      const last = found.at(-1);
      if (last && last[1] === stage - 1) last[1] = stage;
      else found.push([stage, stage]);
    }
    return found.map(([first, last]) => (first === last ? (first ? String(first) : "head") : `${first || "head"}–${last}`)).join(", ");
  };

  const totals = (place, entries) => {
    if (place.children.length !== entries.length) place.replaceChildren(...entries.map(() => el("div", {}, el("dt"), el("dd", { class: "figure" }), el("dd", { class: "muted" }))));
    entries.forEach(([name, figure, more], index) => {
      const [dt, dd, small] = place.children[index].children;
      dom.text(dt, name);
      dom.text(dd, figure);
      dom.text(small, more);
    });
  };

  const stageCards = (place, rows) => {
    const cards = rows.map((row) => {
      const holders = row.holders.map((id) => el("li", { class: "chip" }, id));
      const facts = [["load", words.percent(row.load)], ["queue", words.whole(row.queue)], ["a micro-batch", words.seconds(row.microbatch_s)], ["lost", words.whole(row.failures)], ["brought back", words.whole(row.recoveries)]];
      return el(
        "li",
        { class: row.reason ? "bad" : "" },
        el("h3", {}, row.stage ? `Stage ${row.stage}` : "Head"),
        holders.length ? el("ul", { class: "holders", "aria-label": "held by" }, ...holders) : el("p", { class: "none" }, "nobody holds it"),
        el("dl", {}, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
        row.reason || row.recovery ? el("p", { class: "why" }, row.reason || row.recovery) : null,
      );
    });
    const sign = JSON.stringify(rows);
    if (place.sign !== sign) place.replaceChildren(...cards);
    place.sign = sign;
  };
  return { Table, graphic, PARTS, parts, timeCell, linkCell, spans, totals, stageCards };
})();
