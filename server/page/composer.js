// What is asked next: a question and its pictures.

import { byId } from "./dom.js";
import { MOST_PICTURES, readPicture, thumbnail } from "./pictures.js";

const form = byId("composer");
const question = byId("question");
const list = byId("chosen");
const [askButton, stopButton] = [byId("ask"), byId("stop")];

// Pictures {id, name, blob}.
let chosen = [];
// The turn whose question is asked anew.
let edited = null;
let isRunning = false;

// Says what went wrong, or nothing.
export function notify(text) {
  const notice = byId("notice");
  if (notice.textContent !== text) notice.textContent = text;
}

export const focus = () => question.focus();

// Puts a question in, that of a turn to ask it anew.
export function fill(text = "", pictures = [], turn = null) {
  question.value = text;
  edited = turn;
  byId("editing").hidden = turn === null;
  choose(pictures);
  fit();
}

export const isEmpty = () => question.value === "" && chosen.length === 0;

export const isEditing = () => edited !== null;

// While an answer is being written, it can be stopped and nothing else asked.
export function setRunning(next) {
  const hadFocus = [askButton, stopButton].includes(document.activeElement);
  isRunning = next;
  askButton.hidden = isRunning;
  stopButton.hidden = !isRunning;
  if (hadFocus) (isRunning ? stopButton : askButton).focus();
}

function choose(pictures) {
  chosen = pictures;
  list.hidden = chosen.length === 0;
  const remove = (picture) => () => {
    choose(chosen.filter((other) => other !== picture));
    focus();
  };
  list.replaceChildren(...chosen.map((picture) => thumbnail(picture, remove(picture))));
}

async function add(files) {
  const read = await Promise.allSettled(files.map(readPicture));
  const pictures = read.filter(({ value }) => value).map(({ value }) => value);
  const wrong = read.filter(({ reason }) => reason).map(({ reason }) => reason.message);
  if (chosen.length + pictures.length > MOST_PICTURES) {
    wrong.push(`A question has at most ${MOST_PICTURES} pictures.`);
  }
  choose([...chosen, ...pictures].slice(0, MOST_PICTURES));
  notify(wrong.join(" "));
  focus();
}

// As high as the question is.
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

// `ask` gets `{text, pictures, edited}` and says whether it took them; `stop` ends the answer.
export function start({ ask, stop }) {
  form.onsubmit = (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (isRunning || (!text && chosen.length === 0)) return;
    if (ask({ text, pictures: chosen, edited })) fill();
  };
  stopButton.onclick = stop;
  question.oninput = fit;
  // Where keys are on the screen there is no other way to begin a line.
  const keysAreReal = matchMedia("(pointer: fine)");
  question.onkeydown = (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    if (event.ctrlKey || event.metaKey || (keysAreReal.matches && !event.shiftKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  };
  byId("leave-editing").onclick = () => {
    fill();
    focus();
  };
  byId("choose").onclick = () => byId("files").click();
  byId("files").onchange = (event) => {
    add([...event.target.files]);
    // The same file can be chosen again.
    event.target.value = "";
  };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (isRunning) stop();
    else if (isEditing()) byId("leave-editing").click();
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    // Texts from office programs come with a picture of themselves.
    if (files.length === 0 || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    add(files);
  });
  startDropping();
}

function startDropping() {
  const drop = byId("drop");
  const holdsFiles = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragenter", (event) => (drop.hidden = !holdsFiles(event)));
  // The cover is all that can be left.
  drop.addEventListener("dragleave", () => (drop.hidden = true));
  document.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    drop.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
}
