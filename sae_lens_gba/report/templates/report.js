"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// --- plots ---

const drawn = new Set();

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const font = Object.assign({}, layout.font, { color: style.getPropertyValue("--ink").trim() });
  const hover = { bgcolor: style.getPropertyValue("--raised").trim(), font: { color: font.color } };
  return Object.assign({}, layout, { font: font, hoverlabel: hover });
}

function draw(place, figure) {
  const copy = structuredClone(figure); // plotly writes into what it is given
  Plotly.newPlot(place, copy.data, themed(copy.layout), { responsive: true, displaylogo: false, displayModeBar: false });
  place.figure = figure;
  drawn.add(place);
}

for (const place of document.querySelectorAll("[data-figure]")) {
  draw(place, data.figures[place.dataset.figure]);
}
dark.addEventListener("change", () => {
  for (const place of drawn) {
    if (place.isConnected) draw(place, place.figure);
    else drawn.delete(place);
  }
});

// --- table of latents ---

const columns = data.table.columns;
const nRows = columns[0].values.length;
const texts = columns.find((column) => column.kind === "text").values;
const groups = columns.find((column) => column.title === "group");
const body = document.querySelector("#latents tbody");
const search = document.getElementById("search");
const onlyOpenable = document.getElementById("only-openable");
const groupSelect = document.getElementById("group");
const PAGE_ROWS = 25;
const state = { column: 0, descending: false, page: 0 };

function shown(kind, value) {
  if (kind === "share") return value === 0 ? "0 %" : Number((100 * value).toPrecision(2)) + " %";
  if (kind === "number") return Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : Math.round(value).toLocaleString("en");
  return String(value);
}

const openable = columns[0].values.map((latent) => document.getElementById("latent-0-" + latent) !== null);

function matching() {
  const words = search.value.trim().toLowerCase();
  const rows = [];
  for (let row = 0; row < nRows; row++) {
    if (onlyOpenable.checked && !openable[row]) continue;
    if (groupSelect && groupSelect.value !== "" && groups.values[row] !== Number(groupSelect.value)) continue;
    if (words && String(columns[0].values[row]) !== words && !texts[row].toLowerCase().includes(words)) continue;
    rows.push(row);
  }
  const values = columns[state.column].values;
  const sign = state.descending ? -1 : 1;
  return rows.sort((a, b) => sign * (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : a - b));
}

function cell(row, column) {
  const td = document.createElement("td");
  const value = column.values[row];
  if (column.kind === "text") td.className = "text";
  if (column.kind === "latent" && openable[row]) {
    const button = document.createElement("button");
    button.className = "open";
    button.dataset.open = "0-" + value;
    button.textContent = value;
    td.append(button);
  } else td.textContent = shown(column.kind, value);
  return td;
}

function showTable() {
  const rows = matching();
  const nPages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  state.page = Math.min(state.page, nPages - 1);
  const start = state.page * PAGE_ROWS;
  body.replaceChildren(...rows.slice(start, start + PAGE_ROWS).map((row) => {
    const tr = document.createElement("tr");
    tr.append(...columns.map((column) => cell(row, column)));
    return tr;
  }));
  document.querySelectorAll("#latents th").forEach((th, i) => {
    if (i === state.column) th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  });
  document.getElementById("count").textContent =
    rows.length.toLocaleString("en") + (rows.length === 1 ? " latent" : " latents") + ", page " + (state.page + 1) + " of " + nPages;
  document.getElementById("previous").disabled = state.page === 0;
  document.getElementById("next").disabled = state.page >= nPages - 1;
}

const head = document.querySelector("#latents thead tr");
columns.forEach((column, i) => {
  const th = document.createElement("th");
  const button = document.createElement("button");
  th.scope = "col";
  if (column.kind === "text") th.className = "text";
  button.textContent = column.title;
  button.title = column.hint || "";
  button.addEventListener("click", () => {
    const numeric = column.kind !== "text" && column.kind !== "latent";
    state.descending = state.column === i ? !state.descending : numeric;
    state.column = i;
    state.page = 0;
    showTable();
  });
  th.append(button);
  head.append(th);
});
for (const control of [search, onlyOpenable, groupSelect]) {
  if (control) control.addEventListener(control === search ? "input" : "change", () => { state.page = 0; showTable(); });
}
document.getElementById("previous").addEventListener("click", () => { state.page--; showTable(); });
document.getElementById("next").addEventListener("click", () => { state.page++; showTable(); });
showTable();

// --- one latent ---

const dialog = document.getElementById("detail");

function openLatent(key) {
  const template = document.getElementById("latent-" + key);
  if (!template) return;
  const content = document.getElementById("detail-content");
  content.replaceChildren(template.content.cloneNode(true));
  document.getElementById("detail-title").textContent = template.dataset.title;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  draw(content.querySelector(".plot"), data.latentFigures[key]);
  history.replaceState(null, "", "#latent-" + key);
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  if (opener) openLatent(opener.dataset.open);
  if (event.target === dialog) dialog.close();
});
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => history.replaceState(null, "", " "));
if (location.hash.startsWith("#latent-")) openLatent(location.hash.slice("#latent-".length));
