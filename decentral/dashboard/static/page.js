"use strict";
// What is known of the run, asked for again and again, and where it is shown. A report has it all in itself.
(() => {
  const { el, text } = dom;
  const EVERY_MS = 2000;
  const STALE_S = 15;
  // What the page keeps of a run that it watches for long: then every second sample goes.
  const MAX_SAMPLES = 1000;
  const MAX_ROUNDS = 200;
  const MAX_FLIGHTS = 12;
  const MAX_BANNED = 12;
  const MAX_EVENTS = 500;
  const at = (id) => document.getElementById(id);

  let known = null;
  let silentSince = 0;

  // -- what is known ------------------------------------------------------------------------------------------------

  const fresh = (state) => ({ id: state.id, seq: 0, samples: {}, losses: {}, rounds: new Map(), events: [] });

  const take = (state) => {
    if (!known || known.id !== state.id) known = fresh(state);
    const had = known.samples.time?.length ?? 0;
    const news = state.samples.time.length;
    for (const [name, values] of Object.entries(state.samples)) known.samples[name] = [...(known.samples[name] ?? []), ...values];
    for (const [peer, { id, loss }] of Object.entries(state.losses)) known.losses[peer] ??= { id, loss: new Array(had).fill(null) };
    for (const [peer, one] of Object.entries(known.losses)) one.loss.push(...(state.losses[peer]?.loss ?? new Array(news).fill(null)));
    if (had + news > MAX_SAMPLES) {
      const half = (values) => values.filter((_, index) => (values.length - 1 - index) % 2 === 0);
      for (const name of Object.keys(known.samples)) known.samples[name] = half(known.samples[name]);
      for (const one of Object.values(known.losses)) one.loss = half(one.loss);
    }
    for (const round of state.rounds) {
      const key = `${round.round} ${round.fragment} ${round.stage}`;
      known.rounds.delete(key);
      known.rounds.set(key, round);
    }
    while (known.rounds.size > MAX_ROUNDS) known.rounds.delete(known.rounds.keys().next().value);
    known.events = [...known.events, ...state.events].slice(-MAX_EVENTS);
    Object.assign(known, { seq: state.seq, time: state.time, now: state.now, status: state.status, hasJournal: state.has_journal });
  };

  // -- where it is shown --------------------------------------------------------------------------------------------

  const place = at("charts");
  const SHARES = tables.PARTS.map(([label, colour]) => ({ label, colour }));
  const lossChart = new charts.Chart(place, { id: "loss", title: "Loss", unit: "nats per token", show: words.loss, height: 260, series: [{ label: "training", colour: "accent" }, { label: "validation", colour: "ink", dots: true }] });
  const speedChart = new charts.Chart(place, { id: "speed", title: "Throughput", unit: "tokens a second", show: words.amount, floor: true, height: 260, series: [{ label: "all workers", colour: "accent", fill: true }] });
  const shareChart = new charts.Chart(place, { id: "shares", title: "Where time goes", unit: "mean of workers, since each began", show: words.percent, stack: true, series: SHARES });
  const bytesChart = new charts.Chart(place, { id: "bytes", title: "Bytes", unit: "against data-parallel training", show: words.size, log: true, series: [{ label: "sent", colour: "accent" }, { label: "data-parallel", colour: "wait" }] });
  at("parts").append(...SHARES.map(({ label, colour }) => el("li", {}, el("i", { class: `key ${colour}` }), label)));

  const workers = new tables.Table(at("workers"), "Workers, one a row", [
    { name: "worker", sort: (row) => row.id },
    { name: "state", sort: (row) => row.state },
    { name: "stage", class: "stage", sort: (row) => row.holds[0] },
    { name: "round", class: "n", sort: (row) => row.round },
    { name: "loss", class: "n", sort: (row) => row.loss },
    { name: "tokens/s", class: "n", sort: (row) => row.tokens_per_s },
    { name: "computing", class: "n", sort: (row) => row.compute_share },
    { name: "sends Mbit/s, mean/peak", class: "n", sort: (row) => row.sent_bytes_per_s },
    { name: "receives Mbit/s", class: "n", sort: (row) => row.received_bytes_per_s },
    { name: "sent", class: "n", sort: (row) => row.sent_bytes },
    { name: "rounds in/out", class: "n", sort: (row) => row.rounds_out },
    { name: "partners", class: "partners", sort: (row) => row.partners.join() },
    { name: "seen", class: "n", sort: (row) => row.age_s },
    { name: "why it does not contribute", class: "why", sort: (row) => row.reason || row.note },
  ]);
  const rounds = new tables.Table(at("rounds"), "Rounds, the newest first", [
    { name: "round" },
    { name: "result" },
    { name: "who was missing, and why", class: "why" },
    { name: "stood still", class: "n" },
    { name: "overlap", class: "n" },
    { name: "at", class: "n" },
  ]);
  const events = new tables.Table(at("events"), "Events, the newest first", [
    { name: "at", class: "n" },
    { name: "worker" },
    { name: "what" },
    { name: "more of it", class: "why" },
  ]);
  const showLinks = links.make({ map: at("map"), table: at("links"), note: at("links-note"), legend: at("distances") });
  const KINDS = ["everything", "workers", "recoveries", "checkpoints", "bounded", "stages", "pace"];
  at("kinds").append(...KINDS.map((kind) => el("option", { value: kind }, kind === "bounded" ? "bounded or avoided" : kind)));

  const showHead = ({ run, totals, health, workers: rows }) => {
    text(at("run"), run.run_id);
    document.title = `${totals.round}/${run.rounds} ${run.run_id}`;
    at("health").className = `chip ${health}`;
    text(at("health"), health);
    const stages = run.num_stages ? [`${run.num_stages} stages and a head`] : [];
    text(at("facts"), [run.method, run.codec, ...stages, `decentral ${run.version}`, `configuration ${run.config_digest.slice(0, 8)}`].join(" · "));
    at("progress").max = run.rounds;
    at("progress").value = Math.min(totals.round, run.rounds);
    text(at("progress-text"), `round ${words.whole(totals.round)} of ${words.whole(run.rounds)}`);
    const contributing = rows.filter((row) => row.contributes);
    const busy = contributing.length ? contributing : rows;
    const mean = (name) => (busy.length ? busy.reduce((sum, row) => sum + row[name], 0) / busy.length : null);
    const troubled = rows.filter((row) => !row.healthy).length;
    tables.totals(at("figures"), [
      ["Training loss", words.loss(totals.loss), "nats per token"],
      ["Validation loss", words.loss(totals.val_loss), run.gossip && words.known(totals.spread) ? `spread of replicas ${words.percent(totals.spread)}` : "of the newest anchor"],
      ["Throughput", words.amount(totals.tokens_per_s), "tokens a second"],
      ["Trained on", words.amount(totals.tokens), "tokens"],
      ["Contributing", `${totals.contributing} of ${rows.length}`, troubled ? `${troubled} to look into` : "workers"],
      ["Computing", words.percent(mean("compute_share")), `waiting ${words.percent(mean("waiting_share"))}, moving ${words.percent(mean("transfer_share"))}`],
      ["Sent", words.size(totals.sent_bytes), words.known(totals.dp_ratio) && totals.dp_ratio > 0 ? `data-parallel: ${words.times(totals.dp_ratio)} as much` : "between workers"],
    ]);
  };

  const showCharts = () => {
    const against = document.querySelector("input[name=against]:checked").value;
    const { samples } = known;
    const x = samples[against] ?? [];
    const each = Object.values(known.losses).map(({ id, loss }) => ({ label: id, values: loss }));
    // A validation counts once, not as long as it is the last one.
    const validated = (samples.val_loss ?? []).map((value, index, all) => (index && value === all[index - 1] ? null : value));
    const none = (values) => values.map((value) => value || null);
    const spent = x.map((_, index) => samples.compute_share[index] !== null && tables.parts({ compute_share: samples.compute_share[index], data_share: samples.data_share[index], waiting_share: samples.waiting_share[index], transfer_share: samples.transfer_share[index] }));
    lossChart.set(against, x, [samples.loss ?? [], validated], each.length > 1 ? each : []);
    speedChart.set(against, x, [samples.tokens_per_s ?? []]);
    shareChart.set(against, x.map((value, index) => (spent[index] ? value : null)), SHARES.map((_, part) => spent.map((shares) => shares && shares[part])));
    bytesChart.set(against, x, [none(samples.sent_bytes ?? []), none(samples.dp_bytes ?? [])]);
  };

  const showWorkers = ({ run, workers: rows, banned: out }) => {
    const bounded = new Set(rows.flatMap((row) => row.restrained));
    const banned = new Set(out);
    const avoided = new Set(rows.flatMap((row) => row.avoids));
    const fastest = Math.max(...rows.flatMap((row) => [row.peak_sent_bytes_per_s, row.peak_received_bytes_per_s]), 0);
    at("workers").className = `${run.num_stages ? "" : "no-stage"} ${run.gossip ? "" : "no-partners"}`;
    const troubledFirst = [...rows].sort((a, b) => a.healthy - b.healthy);
    text(at("banned"), out.length ? `banned: ${out.slice(0, MAX_BANNED).map((peer) => peer.slice(-6)).join(", ")}` : "");
    workers.set(troubledFirst.map((row) => {
      const marks = [["banned", banned.has(row.peer)], ["bounded", bounded.has(row.id)], ["avoided", avoided.has(row.id)]].filter(([, is]) => is).map(([mark]) => mark);
      const name = { text: [row.id, ...marks].join(" "), title: `${row.peer}, ${row.device}, decentral ${row.version}`, node: () => el("span", {}, row.id, ...marks.map((mark) => el("span", { class: "chip degraded" }, mark))) };
      const good = row.healthy ? (row.contributes ? "healthy" : "") : "degraded";
      const reason = row.reason || row.note;
      const stage = row.holds.length ? tables.spans(row.holds) : row.takes.length ? `takes ${tables.spans(row.takes)}` : "spare";
      return {
        key: row.peer,
        row,
        class: row.healthy ? "" : "bad",
        cells: [
          name,
          { text: `${row.state} ${good} ${reason}`, node: () => el("span", {}, el("span", { class: `state ${good}` }, row.state), reason && el("span", { class: "narrow" }, reason)) },
          stage,
          words.whole(row.round),
          words.loss(row.loss),
          words.amount(row.tokens_per_s),
          tables.timeCell(row),
          tables.linkCell(row.sent_bytes_per_s, row.peak_sent_bytes_per_s, fastest),
          tables.linkCell(row.received_bytes_per_s, row.peak_received_bytes_per_s, fastest),
          words.size(row.sent_bytes),
          `${words.whole(row.rounds_in)}/${words.whole(row.rounds_out)}`,
          row.partners.join(", ") || words.NONE,
          words.age(row.age_s),
          reason,
        ],
      };
    }));
  };

  const why = (named) => {
    const reasons = new Map();
    for (const [who, reason] of Object.entries(named)) reasons.set(reason, [...(reasons.get(reason) ?? []), who]);
    return [...reasons].map(([reason, who]) => `${who.slice(0, 6).join(", ")}${who.length > 6 ? ` and ${who.length - 6} more` : ""}: ${reason || "not known"}`);
  };

  const showRounds = ({ run }) => {
    const rows = [...known.rounds.values()].sort((a, b) => b.time - a.time || b.round - a.round);
    const cut = rows.some((row) => row.fragment > 0);
    text(at("rounds-note"), known.hasJournal ? "" : "as their workers' figures tell, from outside");
    const aloft = rows.filter((row) => row.flying.length).slice(0, MAX_FLIGHTS);
    at("flights").replaceChildren(...aloft.map((row) => {
      const what = `${row.stage >= 0 ? `${words.stage(row.stage)}, ` : ""}fragment ${row.fragment}, round ${row.round}`;
      return el("li", { class: "chip" }, `${what}: on its way at ${row.flying.length}`);
    }));
    rounds.set(rows.map((row) => {
      const where = [row.stage >= 0 ? words.stage(row.stage) : "", cut && row.fragment >= 0 ? `fragment ${row.fragment}` : ""].filter(Boolean);
      const failed = Object.keys(row.failed).length;
      const flying = row.flying.length ? "on its way" : "";
      const ended = row.mixed ? `mixed${row.members ? `, ${row.members} in it` : ""}${failed ? `, ${failed} without` : ""}` : failed ? "no result" : "";
      const result = [ended, flying].filter(Boolean).join(", ");
      return {
        key: `${row.round} ${row.fragment} ${row.stage}`,
        class: row.mixed || !failed ? "" : "bad",
        cells: [
          [row.round, ...where].join(" · "),
          result + (words.known(row.spread) ? `, spread ${words.percent(row.spread)}` : ""),
          [...why(row.absent), ...why(row.failed)].join("; "),
          known.hasJournal ? words.seconds(row.held_s) : words.NONE,
          row.delay_steps ? `${row.delay_steps} steps` : words.NONE,
          words.clock(row.time),
        ],
      };
    }));
  };

  const showEvents = () => {
    const chosen = at("kinds").value;
    const told = known.events.map((line) => ({ line, ...words.event(line) })).filter(({ kind }) => chosen === "everything" || kind === chosen);
    told.sort((a, b) => b.line.time - a.line.time || b.line.seq - a.line.seq);
    events.set(told.map(({ line, title, text: more }) => ({ key: `${known.id} ${line.seq}`, cells: [words.clock(line.time), line.by ?? "", title, more] })));
  };

  const show = () => {
    const { status } = known;
    if (!status) return;
    at("main").classList.remove("waiting");
    showHead(status);
    at("stages-part").hidden = !status.stages.length;
    tables.stageCards(at("stages"), status.stages);
    showCharts();
    showWorkers(status);
    at("links-part").hidden = status.workers.length < 2;
    showLinks(status.workers);
    showRounds(status);
    showEvents();
  };

  const notice = (message) => {
    at("notice").hidden = !message;
    text(at("notice"), message);
  };

  const showLost = (message) => {
    at("health").className = "chip empty";
    text(at("health"), message);
  };

  // -- asking -------------------------------------------------------------------------------------------------------

  const ask = async () => {
    try {
      const query = new URLSearchParams({ since: known?.seq ?? 0 });
      const token = new URLSearchParams(location.search).get("token");
      if (token) query.set("token", token);
      let answer = await fetch(`api/state?${query}`, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(await answer.text());
      let state = await answer.json();
      if (known && state.id !== known.id) {
        known = null; // another server: what is known of the old one is over
        return ask();
      }
      silentSince = 0;
      take(state);
      const old = state.now - state.time;
      const empty = !state.status ? "Nothing is known of the swarm yet." : "";
      notice(state.status && old > STALE_S ? `No worker has answered for ${words.age(old)}. Shown is what was known then.` : empty);
      text(at("fresh"), state.status ? `as of ${words.clock(state.time)}` : "");
      show();
      if (state.status && old > STALE_S) showLost("no answer");
    } catch (problem) {
      silentSince ||= Date.now() / 1000;
      showLost("no connection");
      const what = problem instanceof TypeError || problem.name === "TimeoutError" ? `The worker or command that serves this page does not answer since ${words.clock(silentSince)}.` : problem.message;
      notice(`${what} This page asks again.`);
    }
  };

  const loop = async () => {
    if (!document.hidden || !known) await ask();
    setTimeout(loop, EVERY_MS);
  };

  document.querySelectorAll("input[name=against]").forEach((input) => input.addEventListener("change", () => known && showCharts()));
  at("kinds").addEventListener("change", () => known && showEvents());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.all.forEach((chart) => chart.draw()));
  const report = at("state");
  if (report) {
    take(JSON.parse(report.textContent));
    text(at("fresh"), `report of ${words.moment(known.time)}`);
    show();
    document.title = `report of ${known.status?.run.run_id ?? "a run"}`;
  } else {
    loop();
  }
})();
