"use strict";
// An element with attributes and children; a text becomes a text node, so that nothing in it is markup.
const dom = {
  el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  },
  // Writes only what is new: whoever reads or selects the page is not disturbed.
  text(node, text) {
    if (node.textContent !== text) node.textContent = text;
  },
};

// Figures and events in words. Whatever text comes from a worker stays text: it goes into text nodes alone.
const words = (() => {
  const NONE = "–";
  const known = (value) => typeof value === "number" && Number.isFinite(value);
  const scaled = (value, units, digits = 3) => {
    for (const [factor, unit] of units) if (value >= factor) return `${trim(value / factor, digits)}${unit}`;
    return `${trim(value, digits)}${units.at(-1)[2] ?? ""}`;
  };
  const trim = (value, digits) => (value >= 1000 ? Math.round(value).toString() : Number(value.toPrecision(digits)).toString());

  const loss = (value) => (known(value) ? (value < 1000 ? value.toFixed(3) : value.toExponential(0)) : NONE);
  const amount = (value) => (known(value) ? scaled(value, [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) : NONE);
  const size = (value) => (known(value) ? scaled(value, [[1e12, " TB"], [1e9, " GB"], [1e6, " MB"], [1e3, " kB", " B"]]) : NONE);
  const mbit = (value) => (known(value) ? trim(value * 8e-6, value * 8e-6 < 1 ? 2 : 3) : NONE);
  const percent = (value) => (known(value) ? `${(100 * value).toFixed(value < 0.0995 && value > 0 ? 1 : 0)} %` : NONE);
  const times = (value) => (known(value) ? `${trim(value, value < 10 ? 2 : 3)}×` : NONE);
  const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en-GB") : NONE);
  const seconds = (value) => (!known(value) ? NONE : value < 0.0005 ? "0 s" : value < 1 ? `${Math.round(1000 * value)} ms` : value < 100 ? `${value.toFixed(1)} s` : age(value));
  const age = (value) => {
    if (!known(value)) return NONE;
    for (const [factor, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (value >= factor) return `${Math.round(value / factor)} ${unit}`;
    return `${Math.round(Math.max(value, 0))} s`;
  };
  const clock = (time) => (known(time) ? new Date(1000 * time).toLocaleTimeString("en-GB") : NONE);
  const moment = (time) => (known(time) ? new Date(1000 * time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }) : NONE);
  const stage = (number) => (number === 0 ? "head" : `stage ${number}`);

  // What an event is called, under which heading it is filed, and which of its fields are told.
  const EVENTS = {
    started: ["started", "workers", ["device", "version"]],
    joined: ["joined", "workers", ["round", "donor", "downloaded_bytes", "seconds"]],
    resumed: ["came back", "recoveries", ["step", "round", "work_steps", "dropped_steps"]],
    repaired: ["repaired", "recoveries", ["round", "donor", "reason", "seconds"]],
    rolled_back: ["rolled back", "recoveries", ["round", "to_round", "val_loss", "reason"]],
    took_up: ["was given a lost one's state", "recoveries", ["owner", "guard", "step", "problem"]],
    stage_lost: ["stage lost", "recoveries", ["stage", "step"]],
    stage_recovered: ["stage brought back", "recoveries", ["stage", "source", "seconds", "loss_before", "loss_after", "reason"]],
    stage_placed: ["holds a stage", "stages", ["stage", "source", "seconds"]],
    recut: ["blocks moved", "stages", ["num_moved", "seconds", "problem"]],
    restrained: ["bounded", "bounded", ["peer", "kind", "ratio", "round"]],
    avoided: ["avoids", "bounded", ["peer", "reason", "seconds"]],
    one_sided: ["swap not confirmed", "bounded", ["peer", "round"]],
    sat_out: ["sat out", "bounded", ["round", "reason"]],
    saved: ["checkpoint", "checkpoints", ["round", "step", "nbytes", "held_s", "others"]],
    protected: ["kept in memory by others", "checkpoints", ["step", "nbytes", "guards"]],
    paced: ["pace", "pace", ["delay_steps", "num_groups"]],
    peer_lost: ["lost sight of", "workers", ["peer", "reason"]],
    changed: ["", "workers", ["state", "reason"]],
    stopped: ["stopped", "workers", ["reason", "round"]],
  };
  const LABELS = { others: "as well by", downloaded_bytes: "downloaded", nbytes: "size", held_s: "held", num_moved: "moved", num_groups: "launches", delay_steps: "overlap", loss_before: "loss before", loss_after: "after", work_steps: "goes on with steps", dropped_steps: "dropped steps", seconds: "in" };
  const BARE = new Set(["reason", "state", "kind", "device", "problem", "source", "peer"]);
  const field = (name, value) => {
    let text = String(value);
    if (Array.isArray(value)) text = value.join(", ");
    else if (known(value) && /(_s|^seconds)$/.test(name)) text = seconds(value);
    else if (known(value) && /bytes$/.test(name)) text = size(value);
    else if (known(value) && /^(val_)?loss/.test(name)) text = loss(value);
    else if (known(value) && name === "ratio") text = times(value);
    else if (name === "stage" && known(value)) return stage(value);
    return BARE.has(name) ? text : `${LABELS[name] ?? name.replaceAll("_", " ")} ${text}`;
  };
  const empty = (value) => value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length);
  const event = (line) => {
    const [title, kind, fields] = EVENTS[line.event] ?? [line.event, "workers", []];
    const told = fields.filter((name) => !empty(line[name])).map((name) => field(name, line[name]));
    if (line.event === "changed" && !line.reason) told.push("contributes");
    return { title: title || "changed", kind, text: told.join(", ") };
  };
  return { NONE, known, loss, amount, size, mbit, percent, times, whole, seconds, age, clock, moment, stage, event };
})();
