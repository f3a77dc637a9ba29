// One chat on the page. Whatever a model or a user wrote is put in as text.

import { byId, copies, setChildren } from "./dom.js";
import { thumbnail } from "./pictures.js";

const section = byId("conversation");
const list = byId("turns");
const announcer = byId("announcer");
const newItem = copies("turn");

// Near enough to the end, in pixels, to be taken along.
const NEAR = 48;
// How long, in milliseconds, a button tells that it did something.
const SHORTLY = 1500;

// What shows a turn, for as long as there is the turn.
const views = new WeakMap();
let shown = 0;

// Shows `chat`. `load` gives a picture its blob, `edit` and `again` are called for the turn of a pressed button.
export async function show(chat, { load, edit, again }) {
  const call = ++shown;
  for (const turn of chat.turns) {
    if (views.has(turn)) continue;
    const pictures = await Promise.all(turn.question.pictures.map(load));
    views.set(turn, view(turn, pictures, { edit, again }));
    update(turn);
  }
  // Another chat was wanted meanwhile.
  if (call !== shown) return;
  byId("welcome").hidden = chat.turns.length > 0;
  const isChanged = setChildren(list, chat.turns.map((turn) => views.get(turn).item));
  if (isChanged) toEnd();
}

function view(turn, pictures, { edit, again }) {
  const item = newItem();
  const part = (name) => item.querySelector(name);
  part(".question .text").textContent = turn.question.text;
  part(".pictures").append(...pictures.map((picture) => thumbnail(picture)));
  part(".edit").onclick = () => edit(turn);
  part(".again").onclick = () => again(turn);
  part(".copy").onclick = ({ target }) => copy(turn.answer.text, target);
  // Pages over plain http may not touch the clipboard.
  part(".copy").hidden = !navigator.clipboard;
  return { item, part, text: part(".answer .text").appendChild(new Text()) };
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => (button.textContent = "Copy"), SHORTLY);
}

// Buttons that would change the chat wait for the answer that is being written.
export function setRunning(isRunning) {
  list.classList.toggle("running", isRunning);
  for (const button of list.querySelectorAll(".edit, .again")) button.disabled = isRunning;
}

const isAtEnd = () => section.scrollHeight - section.scrollTop - section.clientHeight < NEAR;
const toEnd = () => (section.scrollTop = section.scrollHeight);

// Changes the page; whoever was at its end stays there.
function stayingAtEnd(change) {
  const stays = isAtEnd();
  change();
  if (stays) toEnd();
}

// So do they where the composer grows.
let wasAtEnd = true;
section.addEventListener("scroll", () => (wasAtEnd = isAtEnd()));
new ResizeObserver(() => wasAtEnd && toEnd()).observe(section);

// Shows more of an answer's text: what is selected of it stays selected.
export function append(turn, text) {
  const view = views.get(turn);
  if (view) stayingAtEnd(() => view.text.appendData(text));
}

// Shows all of an answer.
export function update(turn) {
  const view = views.get(turn);
  if (!view) return;
  const { item, part, text } = view;
  const { answer } = turn;
  stayingAtEnd(() => {
    item.dataset.state = answer.state;
    part(".answer").ariaBusy = String(answer.state === "running");
    if (text.data !== answer.text) text.data = answer.text;
    part(".copy").disabled = answer.text === "";
    part(".error").textContent = answer.error ?? "";
    part(".summary").textContent = summary(answer);
    showTimings(part(".timings"), answer.timings);
  });
}

function summary({ text, state, reason, usage, timings, model }) {
  const parts = [];
  if (state === "stopped") parts.push("stopped");
  if (state === "done" && text === "") parts.push("nothing was said");
  if (reason === "length") parts.push("cut at the most tokens");
  if (timings) parts.push(duration(timings.total));
  if (usage) {
    const { prompt_tokens, completion_tokens, prompt_tokens_details: details } = usage;
    const speed = timings?.decode > 0 && (completion_tokens - 1) / timings.decode;
    parts.push(`${completion_tokens} tokens${speed ? `, ${number(speed)}/s` : ""}`);
    parts.push(`prompt ${prompt_tokens}${details.cached_tokens ? `, ${details.cached_tokens} cached` : ""}`);
  }
  if (state === "done" || state === "stopped") parts.push(model);
  return parts.join(" · ");
}

// The server's stages, in the order in which a request passes them.
const STAGES = {
  image_decode: "picture",
  preprocess: "preprocess",
  vit: "ViT",
  qformer: "Q-Former",
  queue: "queue",
  prefill: "prefill",
  decode: "decode",
};

// What is shorter, in seconds, is not worth a word.
const LEAST = 0.00005;

function showTimings(place, timings) {
  place.hidden = !timings;
  const stages = Object.keys(STAGES).filter((stage) => timings?.[stage] >= LEAST);
  const bars = stages.map((stage) => {
    const bar = document.createElement("span");
    bar.dataset.stage = stage;
    bar.style.flexGrow = timings[stage] / timings.total;
    return bar;
  });
  const entries = stages.map((stage) => {
    const [entry, name, value] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    entry.dataset.stage = stage;
    name.textContent = STAGES[stage];
    value.textContent = duration(timings[stage]);
    entry.append(name, value);
    return entry;
  });
  place.querySelector(".bar").replaceChildren(...bars);
  place.querySelector("dl").replaceChildren(...entries);
}

const number = (value) => Number(value.toPrecision(2)).toString();

function duration(seconds) {
  if (seconds >= 0.9995) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return `${seconds < 0.00995 ? number(seconds * 1000) : Math.round(seconds * 1000)} ms`;
}

// Reads an answer out to those who listen, a sentence at a time: as it comes it would be syllables.
export class Announcer {
  #unsaid = "";

  constructor() {
    announcer.replaceChildren();
  }

  hear(text) {
    this.#unsaid += text;
    const ends = [". ", "! ", "? ", "\n"].map((end) => this.#unsaid.lastIndexOf(end));
    this.#say(Math.max(...ends) + 1);
  }

  // Says what is left, and how it ended where that was not well.
  finish(ending = "") {
    this.#say(this.#unsaid.length);
    this.#unsaid = ending;
    this.#say(ending.length);
  }

  #say(length) {
    const sentence = this.#unsaid.slice(0, length).trim();
    this.#unsaid = this.#unsaid.slice(length);
    if (!sentence) return;
    const paragraph = document.createElement("p");
    paragraph.textContent = sentence;
    announcer.append(paragraph);
  }
}
