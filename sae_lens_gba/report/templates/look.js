const data = JSON.parse(document.getElementById("data").textContent);
const answerPlace = document.getElementById("answer");
const statusLine = document.getElementById("status");

function found(answer, one) {
  const largest = Math.max(...one.activations);
  const title = element("h3", "", "");
  if (data.report) {
    const link = element("a", "", "latent " + one.latent);
    link.href = data.report + "#latent-0-" + one.latent;
    link.target = "report";
    title.append(link);
  } else title.append("latent " + one.latent);
  title.append(" ", element("span", "soft", (data.names[one.latent] || "") + " (largest " + shown("number", largest) + ")"));
  const line = { tokens: answer.tokens, activations: one.activations, special: answer.special, focus: one.activations.indexOf(largest) };
  return element("div", "found", title, context(line, largest));
}

document.getElementById("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  statusLine.textContent = "Reading …";
  try {
    const response = await fetch("/read", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: document.getElementById("text").value }),
    });
    if (!response.ok) throw new Error(response.status === 413 ? "The text is too long." : "It could not be read (" + response.status + ").");
    const answer = await response.json();
    answerPlace.hidden = answer === null;
    if (answer === null) {
      statusLine.textContent = "There is no text.";
      return;
    }
    document.getElementById("latents").replaceChildren(...answer.latents.map((one) => found(answer, one)));
    statusLine.textContent = answer.tokens.length + " tokens, L0 " + answer.l0 +
      (answer.n_left_out ? "; the last " + answer.n_left_out + " tokens are beyond the SAE's context size and were left out" : "");
  } catch (error) {
    statusLine.textContent = error instanceof TypeError ? "The server does not answer: is it still running?" : error.message;
  }
});
