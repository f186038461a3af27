// The status page: asks the coordinator every second how the run goes, and draws it. What comes
// from members (host names, states) only ever becomes text.
"use strict";

const STATUS_MS = 1000;
const HISTORY_MS = 3000;
const SVG = "http://www.w3.org/2000/svg";
const points = [];

const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function drawing(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function amount(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (bytes >= 999.5 && power < units.length - 1) { bytes /= 1000; power += 1; }
  return `${Number(bytes.toPrecision(3))} ${units[power]}`;
}

function duration(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

const figure = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : "");

function showFigures(view) {
  const rounds = view.rounds ? `${view.round} / ${view.rounds}` : `${view.round}`;
  const lost = Object.values(view.totals.lost).reduce((a, b) => a + b, 0);
  const shown = [
    [rounds, "round"],
    [figure(view.rounds_per_second, 1), "rounds a second"],
    [view.seconds_left === null || view.state !== "training" ? "–" : duration(view.seconds_left), "left"],
    [`${view.members.length} of ${view.n}`, "members"],
    [view.generation < 0 ? "–" : view.generation, "generation of the roster"],
    [amount(Object.values(view.totals.sent).reduce((a, b) => a + b, 0)), "sent in all"],
    [lost, "lost values"],
    [view.distance === null ? "–" : view.distance.toPrecision(3), "distance to consensus"],
    [figure(view.held_out, 2) || "–", "held out, mean %"],
  ];
  if (typeof view.accuracy.averaged === "number") {
    shown.push([figure(view.accuracy.averaged, 2), "Averaged, test %"]);
    shown.push([figure(view.accuracy.ensemble, 2), "Ensemble, test %"]);
  }
  byId("figures").replaceChildren(...shown.map(([value, name]) => {
    const card = element("div");
    card.append(element("b", value), element("span", name));
    return card;
  }));
  const bar = byId("progress");
  const done = view.rounds ? view.round / view.rounds : 0;
  bar.firstElementChild.style.width = `${100 * done}%`;
  bar.setAttribute("aria-valuemax", view.rounds || 1);
  bar.setAttribute("aria-valuenow", view.round);
}

function showMembers(view) {
  const rows = view.members.map((row) => {
    const waits = row.seconds ? `${Math.round(100 * row.waited / row.seconds)} %` : "";
    const delay = row.max_delay === undefined ? "" : `${row.max_delay} (${figure(row.late, 1)})`;
    const cells = [
      [row.member], [row.host], [row.state], [row.round, "n"], [figure(row.rounds_per_second, 1), "n"],
      [delay, "n"], [waits, "n"], [amount(row.bytes_per_second), "n"], [amount(row.bytes), "n"],
      [row.lost === undefined ? "" : row.lost, "n"], [figure(row.loss, 4), "n"], [figure(row.held_out, 2), "n"],
    ];
    const line = element("tr", undefined, row.state);
    line.append(...cells.map(([text, kind]) => element("td", text, kind)));
    return line;
  });
  for (const gone of view.departed.slice(-20)) {
    const line = element("tr", undefined, "dropped");
    const why = element("td", `dropped: ${gone.reason}`);
    why.colSpan = 10;
    line.append(element("td", gone.member), element("td", gone.host), why);
    rows.push(line);
  }
  byId("members").tBodies[0].replaceChildren(...rows);
}

function showMatrix(view) {
  const sums = new Map();
  const ids = new Set(view.members.map((row) => row.member));
  let most = 1;
  for (const { member, peer, bytes } of view.sent) {
    if (!ids.has(peer)) continue;
    const key = `${member} ${peer}`;
    sums.set(key, (sums.get(key) || 0) + bytes);
    most = Math.max(most, sums.get(key));
  }
  const shown = [...ids].slice(0, 64);
  const head = element("tr");
  head.append(element("th", "from \\ to"), ...shown.map((peer) => element("th", peer, "n")));
  const rows = shown.map((member) => {
    const line = element("tr");
    line.append(element("th", member));
    for (const peer of shown) {
      const bytes = sums.get(`${member} ${peer}`);
      const cell = element("td", bytes === undefined ? "" : amount(bytes));
      if (bytes) cell.style.background = `color-mix(in srgb, var(--one) ${Math.round(45 * bytes / most)}%, transparent)`;
      line.append(cell);
    }
    return line;
  });
  byId("matrix").replaceChildren(head, ...rows);
}

function showEvents(view) {
  byId("events").replaceChildren(...view.events.slice().reverse().map((event) => {
    const line = element("li", undefined, event.event.replaceAll(" ", "-"));
    line.append(element("time", new Date(1000 * event.at).toLocaleTimeString()), document.createTextNode(event.text));
    return line;
  }));
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((each) => each >= rough);
  const found = [];
  const first = Math.ceil(low / step);
  for (let k = 0; k < 20 && (first + k) * step <= high + step * 1e-9; k += 1) found.push(Number(((first + k) * step).toPrecision(12)));
  return found;
}

// A curve over rounds; `low` and `high` name the bounds of a band around it.
function chart(id, name, label, low, high) {
  const place = byId(id);
  const known = points.filter((point) => typeof point[name] === "number");
  if (known.length < 2) {
    place.replaceChildren(element("p", "nothing yet", "none"));
    return;
  }
  const [width, height, left, bottom, top, right] = [Math.max(280, place.clientWidth), 240, 58, 26, 8, 10];
  const from = known[0].round;
  const to = Math.max(known[known.length - 1].round, from + 1);
  let least = Math.min(...known.map((point) => point[low || name]));
  let most = Math.max(...known.map((point) => point[high || name]));
  if (most - least < 1e-9 * Math.abs(most) || most === least) {
    const room = Math.max(1, 1e-9 * Math.abs(most));
    least -= room;
    most += room;
  }
  const x = (round) => left + (width - left - right) * (round - from) / (to - from);
  const y = (value) => top + (height - top - bottom) * (most - value) / (most - least);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} over rounds` });
  for (const value of ticks(least, most)) {
    svg.append(
      drawing("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      drawing("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, label(value)),
    );
  }
  for (const value of ticks(from, to)) if (x(value) < width - 60) svg.append(drawing("text", { x: x(value), y: height - 8, "text-anchor": "middle" }, value));
  svg.append(drawing("text", { x: width - right, y: height - 8, "text-anchor": "end" }, "round"));
  const path = (points, field) => points.map((point) => `${x(point.round).toFixed(1)},${y(point[field]).toFixed(1)}`);
  if (low) svg.append(drawing("polygon", { class: "band", points: [...path(known, low), ...path(known, high).reverse()].join(" ") }));
  svg.append(drawing("polyline", { class: "curve", points: path(known, name).join(" ") }));
  place.replaceChildren(svg);
}

function showCharts() {
  chart("accuracy", "held_out", (value) => value, "held_out_low", "held_out_high");
  chart("distance", "distance", (value) => Number(value.toPrecision(3)));
  chart("bytes", "bytes_per_second", amount);
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

async function showStatus() {
  const state = byId("state");
  try {
    const view = await ask("status.json");
    if (byId("run").textContent !== view.run) points.length = 0;  // another run at the same address
    document.title = `${view.run}: ${view.state}`;
    byId("run").textContent = view.run;
    state.textContent = view.state;
    state.className = `state ${view.state}`;
    byId("setting").textContent = `${view.method}, p = ${view.p}, ${view.data}, N = ${view.n}${view.encrypted ? ", encrypted" : ""}`;
    byId("trouble").hidden = true;
    showFigures(view);
    showMembers(view);
    showMatrix(view);
    showEvents(view);
  } catch (error) {
    state.className = "state gone";
    byId("trouble").hidden = false;
    byId("trouble").textContent = `The coordinator does not answer: the run is over, or it is gone. What you see is the last that was heard. (${error.message})`;
  }
  setTimeout(showStatus, STATUS_MS);
}

async function showHistory() {
  try {
    const last = points.length ? points[points.length - 1].seconds : -1;
    points.push(...await ask(`history.json?after=${last}`));
    // A run that goes on from a checkpoint tells again what came after it.
    const newest = points.length ? points[points.length - 1].round : 0;
    while (points.length > 1 && points[points.length - 2].round > newest) points.splice(points.length - 2, 1);
    showCharts();
  } catch {
    // showStatus says so
  }
  setTimeout(showHistory, HISTORY_MS);
}

showCharts();
showStatus();
showHistory();
