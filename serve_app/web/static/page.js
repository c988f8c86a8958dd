"use strict";
// Reads energy/data every two seconds and shows it. Values that nobody knows are "unavailable".

const EVERY_MS = 2000;
const HOUR_S = 3600;
const UNKNOWN = "unavailable";
const at = (id) => document.getElementById(id);
let chosen = null;
let answeredMs = null;
let hours = {};  // deployment -> its samples

function figure(value, digits = 3) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value))) + 1;
  return value.toLocaleString("en", { maximumFractionDigits: Math.max(0, digits - size) });
}
const seconds = (value) =>
  value === null || value === undefined ? "–" : value >= 1 ? `${figure(value)} s` : `${figure(1000 * value)} ms`;
const clock = (utc) => new Date(1000 * utc).toLocaleTimeString("en-GB");
const share = (value) => (value === null || value === undefined ? UNKNOWN : `${figure(100 * value, 4)} %`);

function put(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function tile(label, value, more) {
  const made = put("div", undefined, "tile");
  made.append(put("span", label), put("b", value), put("span", more || ""));
  return made;
}

function fleetOf(data) {
  return data.fleet.find((row) => row.deployment === chosen) || null;
}

function showTiles(data, rows, replicas) {
  const last = rows[rows.length - 1];
  const fleet = fleetOf(data);
  const kinds = last ? Object.entries(last.draw_watts) : [];
  const watts = kinds.length ? kinds.reduce((sum, [, value]) => sum + value, 0) : null;
  const asked = fleet ? `${fleet.requested_replicas} asked for, at most ${fleet.max_replicas}` : "fixed, or not known yet";
  const tiles = [
    tile("drawn now", watts === null ? UNKNOWN : `${figure(watts)} W`, kinds.map(([kind, value]) => `${kind} ${figure(value)} W`).join(", ")),
    tile("per request", last && last.joules_per_request !== null ? `${figure(last.joules_per_request)} J` : UNKNOWN, "mean of the last minute"),
    tile("within the targets", last ? share(last.attainment_ratio) : UNKNOWN, "of the last minute"),
    tile("requests", last && last.requests_per_s !== null ? `${figure(last.requests_per_s)} /s` : UNKNOWN, last ? `${last.running} running, ${last.waiting} waiting` : ""),
    tile("replicas", String(replicas.length), asked),
    tile("at a time", last ? figure(last.batch_cap) : UNKNOWN, "requests per replica, at most"),
    tile("limit per GPU", last && last.limit_watts !== null ? `${figure(last.limit_watts)} W` : "none of ours"),
    tile("metered in all", data.energy.meter_joules === null ? UNKNOWN : `${figure(data.energy.meter_joules, 5)} J`, `${figure(data.energy.attributed_joules, 5)} J given to requests`),
  ];
  at("tiles").replaceChildren(...tiles);
}

function chart(id, rows, lines, range) {
  if (typeof Plotly === "undefined") return;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const times = rows.map((row) => new Date(1000 * row.time_utc_s));
  const traces = lines.map(([name, values, shade, dash]) => ({
    x: times, y: rows.map(values), name, mode: "lines", connectgaps: false,
    line: { color: colour(shade), width: 1.6, dash: dash || "solid", shape: id === "draw" || id === "cost" ? "linear" : "hv" },
  }));
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true, fixedrange: true };
  Plotly.react(id, traces, {
    margin: { l: 40, r: 8, t: 6, b: 24 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--soft"), size: 11 }, showlegend: lines.length > 1,
    legend: { orientation: "h", y: 1.15, x: 0 }, xaxis: { ...axis, type: "date" },
    yaxis: { ...axis, rangemode: "tozero", ...(range ? { range } : {}) }, hovermode: "x unified",
  }, { displayModeBar: false, responsive: true });
}

function showCharts(rows) {
  const shades = { gpu: "--a", cpu: "--b", dram: "--c" };
  const kinds = [...new Set(rows.flatMap((row) => Object.keys(row.draw_watts)))];
  chart("draw", rows, kinds.map((kind) => [kind, (row) => row.draw_watts[kind] ?? null, shades[kind] || "--soft"]));
  chart("cost", rows, [["J/request", (row) => row.joules_per_request, "--a"]]);
  chart("attainment", rows, [["%", (row) => (row.attainment_ratio === null ? null : 100 * row.attainment_ratio), "--a"]], [0, 101]);
  chart("load", rows, [["arrived", (row) => row.requests_per_s, "--a"]]);
  chart("replicas", rows, [["running", (row) => row.replicas, "--a"], ["asked for", (row) => row.requested_replicas, "--b", "dot"]]);
  chart("batch", rows, [["at most", (row) => row.batch_cap, "--a"]]);
  chart("limit", rows, [["W", (row) => row.limit_watts, "--a"]]);
}

function pointOf(row) {
  const parts = [];
  if (row.knob === "num_replicas") parts.push(`${row.num_replicas} replicas`);
  if (row.knob === "power_limit") parts.push(row.power_limit_watts === null ? "the device's default limit" : `${figure(row.power_limit_watts)} W`);
  if (row.knob === "max_num_active_seqs") parts.push(`at most ${row.max_num_active_seqs}`);
  return parts.join(", ");
}

function alternativesOf(row) {
  const more = put("details");
  more.dataset.id = row.id;
  more.append(put("summary", "what else could have been chosen"));
  const table = put("table");
  const head = put("tr");
  for (const [name, side] of [["instead", ""], ["J/request", "n"], ["TTFT", "n"], ["TPOT", "n"], ["holds", ""]]) head.append(put("th", name, side));
  table.append(head);
  for (const one of row.alternatives) {
    const line = put("tr");
    line.append(put("td", pointOf(one)), put("td", figure(one.joules_per_request), "n"), put("td", seconds(one.ttft_s), "n"),
      put("td", seconds(one.tpot_s), "n"), put("td", one.binding === "none" ? "yes" : `no: ${one.binding}`));
    table.append(line);
  }
  const wide = put("div", undefined, "wide");
  wide.append(table);
  more.append(wide);
  return more;
}

function showDecisions(rows) {
  const open = new Set([...document.querySelectorAll("#decisions details[open]")].map((one) => one.dataset.id));
  const items = rows.map((row) => {
    const item = put("li");
    const who = row.replica === null ? "the fleet" : `replica ${row.replica}`;
    item.append(put("div", `${clock(row.time_utc_s)} · ${who} · ${row.approved ? `approved${row.approved_by ? ` by ${row.approved_by}` : ""}` : row.mode === "approve" && row.words.waits ? "waits for approval" : row.mode}${row.in_force ? " · in force" : ""} · ${row.id}`, "when"));
    item.append(put("div", row.words.move, "move"), put("div", row.words.why));
    if (row.words.expected) item.append(put("div", `the model expects ${row.words.expected}`));
    if (row.words.came) item.append(put("div", `measured since: ${row.words.came}`, "came"));
    if (row.alternatives.length) {
      const more = alternativesOf(row);
      more.open = open.has(row.id);
      item.append(more);
    }
    return item;
  });
  at("decisions").replaceChildren(...(items.length ? items : [put("li", "nothing has been decided yet")]));
}

function showRequests(rows) {
  at("requests").replaceChildren(...rows.map((row) => {
    const line = put("tr");
    const each = row.joules === null || !row.output_tokens ? null : row.joules / row.output_tokens;
    line.append(put("td", clock(row.time_utc_s)), put("td", row.request.slice(-12)), put("td", String(row.prompt_tokens), "n"),
      put("td", String(row.output_tokens), "n"), put("td", seconds(row.ttft_s), "n"), put("td", seconds(row.tpot_s), "n"),
      put("td", figure(row.joules), "n"), put("td", figure(each), "n"),
      put("td", row.verdict === "met" ? "met" : row.verdict.replace("_", " "), row.verdict === "met" ? "good" : "bad"));
    return line;
  }));
}

function limitOf(limit) {
  if (!limit || limit.actuator === "none") return "not ours to set";
  if (!limit.available) return `cannot be set: ${limit.reason}`;
  const watts = limit.enforced_watts === null ? "the default" : `${figure(limit.enforced_watts)} W`;
  if (limit.drift_watts !== null) return `${watts}: another program has set it`;
  return limit.inert ? `${watts}, does nothing` : watts;
}

function showReplicas(rows) {
  at("fleet").replaceChildren(...rows.map((row) => {
    const line = put("tr");
    const silent = row.devices.filter((one) => one.reason);
    const meter = silent.length ? silent.map((one) => `${one.kind}: ${one.reason}`).join("; ")
      : [...new Set(row.devices.map((one) => `${one.kind} ${one.source}`))].join(", ") || UNKNOWN;
    line.append(put("td", row.replica), put("td", String(row.num_running), "n"), put("td", String(row.num_waiting), "n"),
      put("td", figure(row.max_num_active_seqs), "n"), put("td", limitOf(row.power_limit)), put("td", meter, silent.length ? "bad" : ""),
      put("td", row.model_verdict || "–"));
    return line;
  }));
}

// The new samples behind those that are known, for an hour. A ledger that began anew knows others.
function remember(data) {
  const kept = {};
  for (const [name, rows] of Object.entries(data.history)) {
    const known = hours[name] || [];
    const after = known.length ? known[known.length - 1].time_utc_s : 0;
    const all = [...known, ...rows.filter((row) => row.time_utc_s > after)];
    kept[name] = all.filter((row) => row.time_utc_s > data.time_utc_s - HOUR_S);
  }
  hours = kept;
}

function newest() {
  return Math.min(...Object.values(hours).map((rows) => (rows.length ? rows[rows.length - 1].time_utc_s : 0)), Infinity);
}

function choose() {
  const names = Object.keys(hours);
  if (!names.includes(chosen)) chosen = names[0] ?? null;
  at("choice").hidden = names.length < 2;
  const select = at("deployment");
  if ([...select.options].map((one) => one.value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  if (chosen !== null) select.value = chosen;
}

function show(data) {
  remember(data);
  choose();
  const rows = hours[chosen] || [];
  const replicas = data.energy.replicas.filter((row) => row.deployment === chosen);
  showTiles(data, rows, replicas);
  showCharts(rows);
  showDecisions(data.decisions.filter((row) => row.deployment === chosen));
  showRequests(data.requests);
  showReplicas(replicas);
}

function fail(words) {
  at("fault").textContent = words;
  at("fault").hidden = !words;
}

async function ask() {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const since = Number.isFinite(newest()) ? newest() : 0;
  const answer = await fetch(`energy/data?since_utc_s=${since}`, { headers, cache: "no-store" });
  if (answer.status === 401 || answer.status === 403) {
    at("locked").hidden = false;
    throw new Error(key ? "this key may not read energy" : "a key is needed");
  }
  if (!answer.ok) throw new Error(`the service answers ${answer.status}`);
  at("locked").hidden = true;
  return answer.json();
}

async function tick() {
  try {
    show(await ask());
    answeredMs = Date.now();
    fail("");
  } catch (error) {
    fail(`Not up to date: ${error.message}.`);
  }
  at("age").textContent = answeredMs === null ? "no answer yet" : `as of ${new Date(answeredMs).toLocaleTimeString("en-GB")}`;
  setTimeout(tick, document.hidden ? 5 * EVERY_MS : EVERY_MS);
}

at("deployment").addEventListener("change", (event) => { chosen = event.target.value; });
at("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value);
  at("key").value = "";
});
tick();
