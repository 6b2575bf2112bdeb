const nonce = document.currentScript.nonce;
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

const columns = data.saes[0].columns;
const nRows = columns[0].values.length;
const texts = columns.filter((column) => column.kind === "text").map((column) => column.values);
const groups = columns.find((column) => column.title === "group");
const body = document.querySelector("#latents tbody");
const search = document.getElementById("search");
const onlyOpenable = document.getElementById("only-openable");
const groupSelect = document.getElementById("group");
const PAGE_ROWS = 25;
const state = { column: 0, descending: false, page: 0 };

// where each SAE's latents with examples stand in its files
const positions = data.saes.map((sae) => new Map(sae.detailed.map((latent, position) => [latent, position])));

function linkTo(index, latent, text) {
  const link = element("a", "", String(text));
  link.href = "#latent-" + index + "-" + latent;
  return link;
}

function matching() {
  const words = search.value.trim().toLowerCase();
  const rows = [];
  for (let row = 0; row < nRows; row++) {
    if (onlyOpenable.checked && !positions[0].has(columns[0].values[row])) continue;
    if (groupSelect && groupSelect.value !== "" && groups.values[row] !== Number(groupSelect.value)) continue;
    if (words && String(columns[0].values[row]) !== words && !texts.some((text) => text[row].toLowerCase().includes(words))) continue;
    rows.push(row);
  }
  const values = columns[state.column].values;
  const sign = state.descending ? -1 : 1;
  return rows.sort((a, b) => sign * (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : a - b));
}

function cell(row, column) {
  const value = column.values[row];
  const content = column.kind === "latent" ? linkTo(column.to, value, value) : shown(column.kind, value);
  return element("td", column.kind === "text" ? "text" : "", content);
}

function showTable() {
  const rows = matching();
  const nPages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  state.page = Math.min(state.page, nPages - 1);
  const start = state.page * PAGE_ROWS;
  body.replaceChildren(...rows.slice(start, start + PAGE_ROWS).map((row) => element("tr", "", ...columns.map((column) => cell(row, column)))));
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
    const numeric = column.kind === "number" || column.kind === "share";
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
