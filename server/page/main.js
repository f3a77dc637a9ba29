// The page: chats about pictures, kept in the browser and answered by the server.

import { ask } from "./api.js";
import * as chatList from "./chats.js";
import * as composer from "./composer.js";
import * as conversation from "./conversation.js";
import { byId } from "./dom.js";
import { dataUri, excess } from "./pictures.js";
import * as settings from "./settings.js";
import { newId, openStore } from "./store.js";

// How often, in milliseconds, an answer that is being written is kept, and a server that does not answer is asked.
const KEEP_INTERVAL = 1000;
const RETRY_INTERVAL = 2000;
// After how long, in milliseconds, an answer of which another tab kept nothing more was stopped.
const SILENCE = 5000;

const NO_ROOM =
  "The browser did not keep all of this, perhaps for lack of room: what is new lasts until the page is left. " +
  "Delete other chats, and it is kept.";

const { store, lasts } = await openStore();
const otherTabs = new BroadcastChannel("qbridge");

// As they are kept: {id, title, updated, turns: [{question: {text, pictures}, answer: {text, state, ...}}]}, where
// pictures are {id, name, size}, and an answer is running, done, stopped or failed.
let chats = [];
let current = newChat();
// What ends the answer that is being written, by the id of its chat.
const running = new Map();

function newChat() {
  return { id: newId(), title: "", updated: 0, turns: [] };
}

// Whether an answer is being written, by this tab or another.
const isRunning = (chat) => running.has(chat.id) || chat.turns.at(-1)?.answer.state === "running";

let silence;

// Reads the chats of the store, but for those that this tab is writing to. What another tab writes to is read again,
// and was stopped where nothing is heard of it.
async function readChats() {
  const stored = await store.all("chats");
  const known = new Map(chats.map((chat) => [chat.id, chat]));
  const others = stored.filter(({ id }) => !running.has(id)).map((chat) => renewed(known.get(chat.id), chat));
  for (const chat of others.filter(isRunning)) {
    if (Date.now() - chat.updated > SILENCE) chat.turns.at(-1).answer.state = "stopped";
  }
  chats = [...chats.filter(({ id }) => running.has(id)), ...others];
  clearTimeout(silence);
  if (others.some(isRunning)) silence = setTimeout(refresh, SILENCE);
}

// A chat as it is stored, in the objects that it has here: what is shown of it stays where it is.
function renewed(known, chat) {
  if (!known || chat.updated <= known.updated) return known ?? chat;
  const isSame = (turn, i) => JSON.stringify(turn.question) === JSON.stringify(known.turns[i]?.question);
  const turns = chat.turns.map((turn, i) => (isSame(turn, i) ? Object.assign(known.turns[i], turn) : turn));
  return Object.assign(known, chat, { turns });
}

// Shows what another tab did.
async function refresh() {
  await readChats();
  current = chats.find(({ id }) => id === current.id) ?? current;
  current.turns.forEach(conversation.update);
  await showCurrent();
}

// Keeps a record; what the browser refuses, until the page is left.
async function put(kind, record) {
  await store.put(kind, record);
  if (store.isFull) composer.notify(NO_ROOM);
}

// Keeps a chat as it is now, unless it was deleted.
async function keep(chat) {
  if (!chats.includes(chat)) return;
  chat.updated = Date.now();
  await put("chats", chat);
  otherTabs.postMessage(null);
}

// Deletes the pictures of a chat that none of its turns has.
async function forgetPictures(id, turns) {
  const used = new Set(turns.flatMap(({ question }) => question.pictures).map(({ id }) => id));
  const unused = (await store.picturesOf(id)).filter((picture) => !used.has(picture));
  await Promise.all(unused.map((picture) => store.delete("pictures", picture)));
}

async function deleteChat(chat) {
  if (!confirm(`Delete “${chat.title}” and its pictures?`)) return;
  chats = chats.filter((other) => other !== chat);
  running.get(chat.id)?.abort();
  await store.delete("chats", chat.id);
  await forgetPictures(chat.id, []);
  composer.notify(store.isFull ? NO_ROOM : "");
  otherTabs.postMessage({ deleted: chat.id });
  if (chat === current) location.hash = "";
  listChats();
  byId("new-chat").focus();
}

function listChats() {
  chats.sort((a, b) => b.updated - a.updated);
  chatList.show(chats, current, deleteChat);
}

const loadPicture = async ({ id, name }) => ({ id, name, blob: (await store.get("pictures", id))?.blob });

async function showCurrent() {
  document.title = current.title ? `${current.title} · qbridge` : "qbridge";
  listChats();
  await conversation.show(current, { load: loadPicture, edit, again });
  showRunning();
}

function showRunning() {
  conversation.setRunning(isRunning(current));
  composer.setRunning(isRunning(current));
}

// Opens the chat that the address names, or a new one.
async function openChat() {
  const id = location.hash.slice(1);
  current = chats.find((chat) => chat.id === id) ?? newChat();
  composer.notify("");
  if (composer.isEditing()) composer.fill();
  await showCurrent();
  // Keys on a screen would cover half of it.
  if (matchMedia("(pointer: fine)").matches) composer.focus();
}

async function edit(turn) {
  composer.fill(turn.question.text, await Promise.all(turn.question.pictures.map(loadPicture)), turn);
  composer.focus();
}

function again(turn) {
  const fields = readFields();
  if (fields && isSendable(before(current, turn), turn.question.pictures)) answer(current, turn, fields, []);
}

// The fields of a request that are not the chat's; `null` where they cannot be sent, which the user is told.
function readFields() {
  const fields = settings.requestFields();
  if (!fields || fields.model) return fields;
  composer.notify("There is no model to ask.");
  return null;
}

// Says whether the server takes a question's pictures, and to the user if not.
function isSendable(turns, pictures) {
  const reason = excess(turns.flatMap(({ question }) => question.pictures), pictures);
  composer.notify(reason);
  return !reason;
}

// Asks a question at the end of the chat, or in place of an `edited` turn and all that follow it. Says whether it is
// asked.
function askQuestion({ text, pictures, edited }) {
  const fields = readFields();
  if (!fields) return false;
  const turn = { question: { text, pictures: pictures.map(({ id, name, blob }) => ({ id, name, size: blob?.size })) } };
  if (!isSendable(before(current, edited), turn.question.pictures)) return false;
  if (current.turns.includes(edited)) current.turns.splice(current.turns.indexOf(edited));
  current.turns.push(turn);
  current.title = current.turns[0].question.text.slice(0, 80) || "A picture";
  if (!chats.includes(current)) chats.push(current);
  history.replaceState(null, "", `#${current.id}`);
  answer(current, turn, fields, pictures);
  return true;
}

// Answers a turn of a chat, whose pictures are new.
async function answer(chat, turn, fields, pictures) {
  const controller = new AbortController();
  running.set(chat.id, controller);
  showRunning();
  turn.answer = { text: "", state: "running", model: fields.model };
  composer.notify("");
  const announcer = new conversation.Announcer();
  const keepOn = () => Date.now() - chat.updated >= KEEP_INTERVAL && keep(chat);
  // Other tabs hear of it before its first word too.
  const timer = setInterval(keepOn, KEEP_INTERVAL);
  let request;
  try {
    await Promise.all(pictures.map((picture) => put("pictures", { ...picture, chat: chat.id })));
    conversation.update(turn);
    await showCurrent();
    await keep(chat);
    await forgetPictures(chat.id, chat.turns);
    request = { ...fields, messages: await messages(chat, turn) };
    for await (const chunk of ask(request, settings.apiKey(), controller.signal)) {
      take(turn, chunk, announcer);
      keepOn();
    }
    turn.answer.state = "done";
  } catch (error) {
    const isStopped = controller.signal.aborted;
    turn.answer.state = isStopped ? "stopped" : "failed";
    if (!isStopped) turn.answer.error = inWords(error, request?.messages);
    if (error.status === 401) settings.askForKey(error);
    if (error.param === "model") connect();
    if (isTooLarge(error)) await giveBack(chat, turn);
  }
  clearInterval(timer);
  announcer.finish(turn.answer.error);
  conversation.update(turn);
  // Until it is kept, it is not to be read again.
  await keep(chat);
  running.delete(chat.id);
  showRunning();
  listChats();
}

// Puts a copy of a question back, to be asked in another chat or with other pictures.
async function giveBack(chat, { question }) {
  const loaded = await Promise.all(question.pictures.map(loadPicture));
  const pictures = loaded.map((picture) => ({ ...picture, id: newId() }));
  if (chat === current && composer.isEmpty()) composer.fill(question.text, pictures);
}

function take(turn, { choices: [choice], usage, timings }, announcer) {
  const text = choice?.delta.content;
  if (text) {
    turn.answer.text += text;
    conversation.append(turn, text);
    announcer.hear(text);
  }
  if (choice?.finish_reason) turn.answer.reason = choice.finish_reason;
  if (usage) turn.answer.usage = usage;
  if (timings) turn.answer.timings = timings;
}

// What went wrong, and with the messages that were sent, what may help.
function inWords(error, sent = []) {
  const { message, code, param, retryAfter } = error;
  if (code === "loading") return "The model is being loaded.";
  if (code === "invalid_api_key") return "This server asks for an API key, which the settings have a field for.";
  const place = [param, code].filter(Boolean).join(", ");
  const said = `${message}${place ? ` (${place})` : ""}`;
  const help = ways(error, sent).join(", and to ");
  const hints = [retryAfter && `Try again in ${retryAfter} s.`, help && `It may help to ${help}.`].filter(Boolean);
  return [hints.length && !/[.?!]$/.test(said) ? `${said}.` : said, ...hints].join(" ");
}

// Whether a request, which holds the whole chat, is too large.
const isTooLarge = ({ status, code, message }) =>
  (status === 413 && code !== "image_too_large") || /more than \d+ pictures/.test(message);

// What may help, each as "to ...".
function ways(error, sent) {
  const { code, param } = error;
  const ways = [];
  if (settings.labelOf(param)) ways.push(`empty “${settings.labelOf(param)}” in the settings`);
  if (code === "model_not_supported") ways.push("choose another model");
  if (code === "invalid_prompt" && sent[0]?.role === "system") ways.push("empty the system text in the settings");
  if (isTooLarge(error) || code === "context_length_exceeded" || code === "invalid_prompt") {
    if (sent.some(({ role }) => role === "assistant")) ways.push("begin a new chat");
    if (isTooLarge(error)) ways.push("take fewer or smaller pictures");
  }
  return ways;
}

// The turns before one, or before a new one. A question that was not answered is none of them.
function before(chat, turn) {
  const { turns } = chat;
  return turns.slice(0, turns.includes(turn) ? turns.indexOf(turn) : turns.length).filter(({ answer }) => answer.text);
}

// What was said until `last`.
async function messages(chat, last) {
  const messages = [];
  if (settings.systemText()) messages.push({ role: "system", content: settings.systemText() });
  for (const turn of before(chat, last)) {
    messages.push({ role: "user", content: await content(turn.question) });
    messages.push({ role: "assistant", content: turn.answer.text });
  }
  messages.push({ role: "user", content: await content(last.question) });
  return messages;
}

async function content({ text, pictures }) {
  const parts = await Promise.all(
    pictures.map(async (picture) => {
      const { name, blob } = await loadPicture(picture);
      if (!blob) throw new Error(`${name} is not in this browser any more.`);
      return { type: "image_url", image_url: { url: await dataUri(blob) } };
    }),
  );
  return text ? [...parts, { type: "text", text }] : parts;
}

let retry;

// Asks for the models until they are told.
async function connect() {
  clearTimeout(retry);
  try {
    await settings.listModels();
    composer.notify("");
  } catch (error) {
    composer.notify(inWords(error));
    // What lacks is a key, which is asked for.
    if (error.status !== 401) retry = setTimeout(connect, RETRY_INTERVAL);
  }
}

// Ends the answer of the open chat, whichever tab is writing it.
function stop() {
  if (running.has(current.id)) running.get(current.id).abort();
  else otherTabs.postMessage({ stopped: current.id });
}

otherTabs.onmessage = ({ data }) => {
  const { stopped, deleted } = data ?? {};
  chats = chats.filter(({ id }) => id !== deleted);
  running.get(stopped ?? deleted)?.abort();
  refresh();
};
settings.start(connect);
chatList.start();
composer.start({ ask: askQuestion, stop });
byId("skip").onclick = (event) => {
  event.preventDefault();
  composer.focus();
};
if (!lasts) byId("storage").textContent = "This browser keeps no chats: they last until the page is left.";
await readChats();
window.addEventListener("hashchange", openChat);
// What is being written when the page is left was stopped, and did not fail.
window.addEventListener("pagehide", () => {
  for (const chat of chats.filter(({ id }) => running.has(id))) {
    running.get(chat.id).abort();
    chat.turns.at(-1).answer.state = "stopped";
    keep(chat);
  }
});
await openChat();
await connect();
