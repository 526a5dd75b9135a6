"use strict";
// Who exchanged with whom, as the workers at both ends tell it: a map with all workers on a circle, and a table.
const links = (() => {
  const { el } = dom;
  const { graphic } = tables;
  // Lines that are drawn and rows that are listed, those with most bytes first.
  const MAX_LINES = 600;
  const RADIUS = 215;
  const DISTANCES = [["near", 0.03, "within 30 ms"], ["far", 0.12, "within 120 ms"], ["farther", Infinity, "longer"], ["unknown", NaN, "not known"]];
  const distance = (seconds) => (words.known(seconds) ? DISTANCES.find(([, limit]) => seconds <= limit)[0] : "unknown");

  // One entry for every two workers, of what either says: bytes as the one who has counted more has them, the shorter way.
  const pairs = (rows) => {
    const ids = new Set(rows.map((row) => row.id));
    const found = new Map();
    for (const row of rows) {
      for (const link of row.links) {
        if (!ids.has(link.id) || link.id === row.id) continue;
        const [one, other] = [row.id, link.id].sort();
        const pair = found.get(`${one} ${other}`) ?? { one, other, there: 0, back: 0, round_trip_s: null };
        const [there, back] = row.id === one ? [link.sent_bytes, link.received_bytes] : [link.received_bytes, link.sent_bytes];
        pair.there = Math.max(pair.there, there);
        pair.back = Math.max(pair.back, back);
        if (words.known(link.round_trip_s)) pair.round_trip_s = Math.min(pair.round_trip_s ?? Infinity, link.round_trip_s);
        found.set(`${one} ${other}`, pair);
      }
    }
    return [...found.values()].sort((a, b) => b.there + b.back - a.there - a.back).slice(0, MAX_LINES);
  };

  const way = (pair) => (words.known(pair.round_trip_s) ? words.seconds(pair.round_trip_s) : "not known");

  const draw = (map, rows, known) => {
    const place = new Map();
    rows.forEach((row, index) => {
      const angle = (2 * Math.PI * index) / rows.length + Math.PI;
      place.set(row.id, [RADIUS * Math.cos(angle), RADIUS * Math.sin(angle), angle]);
    });
    const most = Math.max(...known.map((pair) => pair.there + pair.back), 1);
    const lines = known.map((pair) => {
      const [[x1, y1], [x2, y2]] = [place.get(pair.one), place.get(pair.other)];
      const width = 0.6 + (rows.length > 24 ? 2 : 5) * Math.sqrt((pair.there + pair.back) / most);
      // Bent towards the middle, so that a line does not run along its neighbours.
      const line = graphic("path", { class: distance(pair.round_trip_s), d: `M${x1} ${y1}Q${(x1 + x2) / 5} ${(y1 + y2) / 5} ${x2} ${y2}`, "stroke-width": width.toFixed(2) });
      const title = graphic("title", {});
      title.textContent = `${pair.one} and ${pair.other}: ${way(pair)}, ${words.size(pair.there)} there, ${words.size(pair.back)} back`;
      line.append(title);
      return line;
    });
    const size = rows.length > 40 ? 11 : 14;
    const nodes = rows.flatMap((row) => {
      const [x, y, angle] = place.get(row.id);
      const turned = Math.cos(angle) < -0.01;
      const degrees = (180 * angle) / Math.PI + (turned ? 180 : 0);
      const name = graphic("text", { transform: `translate(${1.05 * x} ${1.05 * y}) rotate(${degrees})`, "text-anchor": turned ? "end" : "start", dy: "0.35em", "font-size": size });
      name.textContent = row.id;
      return [graphic("circle", { class: row.healthy ? "" : "bad", cx: x, cy: y, r: rows.length > 40 ? 3 : 5 }), name];
    });
    map.replaceChildren(...lines, ...nodes);
  };

  // Parts: the elements {map, table, note, legend}.
  const make = ({ map, table, note, legend }) => {
    legend.append(...DISTANCES.map(([name, , text]) => el("li", {}, el("i", { class: `key line ${name}` }), text)));
    const listed = new tables.Table(table, "Links, those with most bytes first", [
      { name: "between" },
      { name: "and" },
      { name: "there and back", class: "n", sort: (pair) => pair.round_trip_s },
      { name: "bytes there", class: "n", sort: (pair) => pair.there },
      { name: "bytes back", class: "n", sort: (pair) => pair.back },
    ]);
    return (rows) => {
      const known = pairs(rows);
      const ends = new Set(known.flatMap((pair) => [pair.one, pair.other]));
      const silent = rows.filter((row) => !ends.has(row.id)).length;
      const all = (rows.length * (rows.length - 1)) / 2;
      dom.text(note, !known.length ? "not known: nobody tells of any" : `${known.length} of ${all} pairs known${silent ? `, of ${silent} workers none` : ""}; a worker tells of the eight with most bytes`);
      map.setAttribute("aria-label", `Map of ${known.length} links between ${rows.length} workers, thicker with more bytes. The table has them.`);
      draw(map, rows, known);
      listed.set(known.map((pair) => ({ key: `${pair.one} ${pair.other}`, row: pair, cells: [pair.one, pair.other, way(pair), words.size(pair.there), words.size(pair.back)] })));
    };
  };
  return { make };
})();
