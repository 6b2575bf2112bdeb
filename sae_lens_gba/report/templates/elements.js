"use strict";
// what the report and `look` have in common: elements, numbers, text with activations

function shown(kind, value) {
  if (kind === "share") return Number((100 * value).toPrecision(3)) + "%";
  if (kind === "number") return Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : Math.round(value).toLocaleString("en");
  return String(value);
}

function element(name, className, ...content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

// what can't be seen by itself, or turns the direction of what follows, by its code: as in page_data.py
const UNSEEN = /(?![\u200c\u200d\u0600-\u0605\u06dd\u070f\u08e2])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u115f\u1160\u2800\u3164\uffa0]/gu;
const JOINERS_ALONE = /^[\u034f\u200c\u200d\ufe0e\ufe0f]+$/u;

function visible(token) {
  const text = token.replaceAll("\r", "").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const code = (c) => "⟨" + c.codePointAt(0).toString(16).toUpperCase() + "⟩";
  return JOINERS_ALONE.test(text) ? [...text].map(code).join("") : text.replace(UNSEEN, code);
}

function context(c, strongest) {
  const line = element("p", "context");
  const special = new Set(c.special);
  c.tokens.forEach((token, i) => {
    const activation = c.activations[i];
    if (special.has(i)) {
      const mark = element("span", "special", token);
      mark.title = "special token";
      line.append(mark);
    } else if (activation > 0) {
      const span = element("span", i === c.focus ? "focus" : "", visible(token));
      span.style.setProperty("--a", (strongest > 0 ? activation / strongest : 0).toFixed(2));
      span.title = shown("number", activation);
      line.append(span);
    } else line.append(visible(token));
  });
  return line;
}

