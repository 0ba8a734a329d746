"use strict";

// Shows the state that the server sends, again and again. All of it is set as text, never as markup.

const COLUMNS = [
  ["pid", true], ["state", false], ["for", true], ["done", true], ["memory", true],
  ["CPU %", true], ["task", false],
];
const CLASSES = { S: "S", _: "idle", W: "W", G: "G" };
const SVG = "http://www.w3.org/2000/svg";
const WIDEST = 512; // Looks that the server keeps.

let sortedBy = 0;
let isReversed = false;
let latest = null;

const at = (id) => document.getElementById(id);

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function heads() {
  at("columns").replaceChildren(...COLUMNS.map(([name, isNumber], index) => {
    const head = element("th", "", isNumber ? "n" : "");
    head.scope = "col";
    if (index === sortedBy) head.ariaSort = isReversed ? "descending" : "ascending";
    const button = element("button", name);
    button.type = "button";
    button.addEventListener("click", () => {
      isReversed = index === sortedBy ? !isReversed : false;
      sortedBy = index;
      heads();
      if (latest) workers(latest);
      at("columns").children[index].firstChild.focus();
    });
    head.append(button);
    return head;
  }));
}

function workers(told) {
  const order = (one, other) => {
    const [a, b] = [one[sortedBy][1], other[sortedBy][1]];
    const less = a < b ? -1 : a > b ? 1 : one[0][1] - other[0][1];
    return isReversed ? -less : less;
  };
  at("workers").replaceChildren(...[...told.workers].sort(order).map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map(([text], index) => element("td", text, COLUMNS[index][1] ? "n" : "")));
    return row;
  }));
}

function course({ name, values, top }) {
  const highest = Math.max(1, top ?? Math.max(...values));
  const figure = document.createElement("figure");
  const latestValue = values[values.length - 1];
  figure.append(element("figcaption", `${name}: ${latestValue} now, full height ${highest}`));
  const svg = document.createElementNS(SVG, "svg");
  const width = Math.min(WIDEST, Math.max(60, values.length));
  svg.setAttribute("viewBox", `0 0 ${width} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `chart of ${name}`);
  values.forEach((value, index) => {
    const bar = document.createElementNS(SVG, "rect");
    const height = Math.min(100, value / highest * 100);
    bar.setAttribute("x", width - values.length + index);
    bar.setAttribute("y", 100 - height);
    bar.setAttribute("width", 0.9);
    bar.setAttribute("height", height);
    svg.append(bar);
  });
  figure.append(svg);
  return figure;
}

function show(told) {
  latest = told;
  document.title = `${told.title} - prefork-executor top`;
  at("title").textContent = told.title;
  at("command").textContent = told.command;
  at("figures").replaceChildren(...told.figures.map(([name, value]) => {
    const pair = document.createElement("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
  at("places").replaceChildren(...[...told.places].map((letter) =>
    element("span", letter, CLASSES[letter] ?? "dim")));
  at("legend").textContent = told.legend;
  at("courses").replaceChildren(...told.courses.map(course));
  workers(told);
  at("decisions").replaceChildren(...told.decisions.map(({ at: time, what }) => {
    const row = document.createElement("tr");
    row.append(element("td", time, "dim"), element("td", what));
    return row;
  }));
  at("version").textContent = `prefork_executor ${told.version}`;
  notice(told.ended ?? "");
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

async function follow() {
  let delay = 1;
  try {
    const answer = await fetch("state", { cache: "no-store" });
    const told = await answer.json();
    show(told);
    if (told.ended) return;
    delay = told.delay;
  } catch {
    notice("The server does not answer: `prefork-executor top` has ended.");
  }
  setTimeout(follow, delay * 1000);
}

heads();
follow();
