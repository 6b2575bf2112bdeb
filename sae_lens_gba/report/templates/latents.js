
// --- details of latents, from the files beside the page ---

const waiting = new Map(); // name of a file -> {promise, resolve}

window[data.details.function] = (name, details) => waiting.get(name).resolve(details);

function readFile(name) {
  if (!waiting.has(name)) {
    const file = {};
    file.promise = new Promise((resolve, reject) => {
      file.resolve = resolve;
      const script = document.createElement("script");
      script.nonce = nonce;
      script.src = encodeURIComponent(data.details.folder) + "/" + name + ".js";
      script.onerror = () => {
        waiting.delete(name); // it may be there the next time
        reject(new Error(data.details.folder + "/" + name + ".js is missing: keep that folder beside this page."));
      };
      document.head.append(script);
    });
    waiting.set(name, file);
  }
  return waiting.get(name).promise;
}

async function detailOf(index, latent) {
  const position = positions[index].get(latent);
  const part = Math.floor(position / data.details.perFile);
  const details = await readFile(index + "-" + String(part).padStart(5, "0"));
  return details[position % data.details.perFile];
}

// --- what is shown of a latent ---

const rowOf = data.saes.map((sae) => new Map(sae.columns[0].values.map((latent, row) => [latent, row])));

function fact(index, latent, title) {
  const column = data.saes[index].columns.find((column) => column.title === title);
  const row = rowOf[index].get(latent);
  return column === undefined || row === undefined ? undefined : column.values[row];
}

function strongestOf(detail) {
  return detail.top.length ? detail.top[0].activations[detail.top[0].focus] : 0;
}

function facts(index, latent) {
  const known = (title, kind) => { const v = fact(index, latent, title); return v === undefined ? "?" : shown(kind, v); };
  const line = element("p", "soft");
  if (fact(index, latent, "group") !== undefined)
    line.append("Group " + known("group") + " (target " + known("target", "share") + "). ");
  line.append("Fires on " + known("frequency", "share") + " of tokens; largest activation " + known("max", "number") +
    ", Z-score " + known("Z-score", "number") + ". ");
  const nearest = fact(index, latent, "nearest");
  if (nearest !== undefined)
    line.append("Nearest latent ", linkTo(index, nearest, nearest), " (cosine " + known("cosine", "number") + ").");
  return line;
}

function coFiring(index, detail) {
  if (!detail.co_firing.length) return element("p", "soft", "No latent.");
  const heads = ["latent", "correlation", "of its tokens"].map((title) => element("th", "", title));
  const rows = detail.co_firing.map((other) => {
    const name = fact(index, other.latent, "explanation") || fact(index, other.latent, "fires most on") || "";
    const first = element("td", "", linkTo(index, other.latent, other.latent), " ", element("span", "soft", name));
    return element("tr", "", first, element("td", "", other.correlation.toFixed(2)), element("td", "", shown("share", other.share)));
  });
  return element("table", "co-firing", element("thead", "", element("tr", "", ...heads)), element("tbody", "", ...rows));
}

const shownToken = (token) => visible(token).trim() ? visible(token)
  : visible(token).replace(/./gu, (c) => c === " " ? "␣" : "⟨" + c.codePointAt(0).toString(16).toUpperCase() + "⟩");

function weights(title, items) {
  const rows = items.map((item) => element("li", "", element("code", "", shownToken(item.token)), " ",
    element("span", "soft", (item.weight < 0 ? "" : "+") + item.weight.toFixed(2))));
  return element("div", "", element("h3", "", title), element("ul", "tokens", ...rows));
}

function histogram(place, counts) {
  const figure = structuredClone(data.latentFigure);
  figure.data[0].x = counts.counts.map((_, i) => counts.start + (i + 0.5) * counts.width);
  figure.data[0].y = counts.counts;
  draw(place, figure);
}

function whole(index, detail) {
  const content = document.createDocumentFragment();
  const strongest = strongestOf(detail);
  const explanation = fact(index, detail.latent, "explanation");
  if (explanation) content.append(element("p", "explanation", explanation));
  content.append(facts(index, detail.latent), element("h3", "", "Strongest activations"));
  content.append(...detail.top.map((c) => context(c, strongest)));
  if (!detail.top.length) content.append(element("p", "soft", fact(index, detail.latent, "frequency") === 0 ?
    "It never fired here." : "It did not fire in the part of the text that examples are taken from."));
  const plot = element("div", "plot");
  const sides = element("div", "sides");
  if (detail.top.length)
    sides.append(element("div", "", element("h3", "", "How strongly it fires"), plot),
      element("div", "", element("h3", "", "Fires together with"), coFiring(index, detail)));
  if (detail.promoted.length)
    sides.append(weights("Tokens its decoder row promotes (logit lens)", detail.promoted), weights("Tokens it demotes", detail.demoted));
  content.append(sides);
  for (const interval of detail.intervals) {
    const ends = Math.round(100 * interval.low) + "% and " + Math.round(100 * interval.high) + "%";
    content.append(element("h3", "", "Activations between the " + ends + " quantiles"));
    content.append(...interval.contexts.map((c) => context(c, strongest)));
  }
  return { content: content, plot: plot };
}

// --- the dialog; the address says which latent is open ---

const dialog = document.getElementById("detail");
const ADDRESS = /^#latent-(\d+)-(\d+)$/;

async function openLatent(index, latent) {
  const place = document.getElementById("detail-content");
  const of = data.several ? " of " + data.saes[index].label : "";
  document.getElementById("detail-title").textContent = "Latent " + latent + of;
  place.replaceChildren(element("p", "soft", "Reading …"));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  if (!positions[index].has(latent)) {
    const frequency = fact(index, latent, "frequency");
    const known = frequency === undefined ? "" : facts(index, latent);
    place.replaceChildren(known, element("p", "", frequency === 0 ? "It never fired here." :
      index ? "This page has no examples of it." :
        "This page has no examples of it: sae-lens-gba report SAE_DIR --latents " + latent + " would add them."));
    return;
  }
  const asked = location.hash;
  let detail;
  try {
    detail = await detailOf(index, latent);
  } catch (error) {
    place.replaceChildren(element("p", "", error.message));
    return;
  }
  if (asked !== location.hash) return; // another was opened meanwhile
  const shownNow = whole(index, detail);
  place.replaceChildren(shownNow.content);
  if (shownNow.plot.isConnected) histogram(shownNow.plot, detail.histogram);
}

function followAddress() {
  const found = ADDRESS.exec(location.hash);
  if (found && Number(found[2]) < data.saes[found[1]]?.width) openLatent(Number(found[1]), Number(found[2]));
  else if (dialog.open) dialog.close();
}

addEventListener("hashchange", followAddress);
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => { if (ADDRESS.test(location.hash)) history.pushState(null, "", " "); });
followAddress();

// --- matched pairs, filled in when they are unfolded ---

const EXAMPLES_PER_SIDE = 4;

async function side(key) {
  const [index, latent] = key.split("-").map(Number);
  const share = fact(index, latent, "frequency");
  const title = element("h4", "", data.saes[index].label + ", latent ", linkTo(index, latent, latent),
    share === undefined ? "" : " (fires on " + shown("share", share) + ")");
  try {
    const detail = await detailOf(index, latent);
    return element("div", "", title, ...detail.top.slice(0, EXAMPLES_PER_SIDE).map((c) => context(c, strongestOf(detail))));
  } catch (error) {
    return element("div", "", title, element("p", "", error.message));
  }
}

for (const pair of document.querySelectorAll(".pair")) {
  pair.addEventListener("toggle", async () => {
    const place = pair.querySelector(".sides");
    if (pair.open && !place.children.length) place.append(...await Promise.all(pair.dataset.sides.split(" ").map(side)));
  });
}
