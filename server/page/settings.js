// The settings: the model, how it draws, and the key.

import { isKey, models } from "./api.js";
import { byId } from "./dom.js";
import { remembered } from "./store.js";

const dialog = byId("settings");
const form = dialog.querySelector("form");
const model = byId("model");
const key = byId("key");
const numbers = ["temperature", "top_p", "max_tokens", "seed", "num_beams"].map(byId);
const drawn = ["temperature", "top_p"].map(byId);

const kept = remembered("localStorage", "qbridge-settings");
const keptKey = remembered("sessionStorage", "qbridge-key");

export const apiKey = () => keptKey.get() ?? "";

function keptValues() {
  try {
    return JSON.parse(kept.get()) ?? {};
  } catch {
    return {};
  }
}

// The fields of a request that are not the model's own; `null` where one is out of its range, which is shown then.
export function requestFields() {
  const wrong = numbers.find((input) => !input.validity.valid && !input.disabled);
  if (wrong) {
    open(wrong);
    wrong.reportValidity();
    return null;
  }
  const set = numbers.filter((input) => input.value !== "" && !input.disabled);
  return { model: model.value, ...Object.fromEntries(set.map((input) => [input.name, input.valueAsNumber])) };
}

// What a request's field is called in the dialog, if it is there.
export const labelOf = (field) => numbers.find(({ name }) => name === field)?.labels[0].textContent;

export const systemText = () => byId("system").value.trim();

// Opens the dialog at a field.
export function open(field = null) {
  if (!dialog.open) dialog.showModal();
  field?.focus();
}

// Why a model cannot be asked; empty where it can.
function lackOf({ status, capabilities }) {
  if (status !== "loaded") return "not loaded";
  return capabilities.includes("chat") ? "" : "answers no messages";
}

// Lists the models. Throws what the API says, but asks for a key itself.
export async function listModels() {
  let served;
  try {
    served = await models(apiKey());
  } catch (error) {
    if (error.status === 401) askForKey(error);
    throw error;
  }
  describeKey();
  const option = (model) => {
    const lack = lackOf(model);
    const option = new Option(lack ? `${model.id} (${lack})` : model.id, model.id);
    option.disabled = lack !== "";
    return option;
  };
  const wanted = model.value || keptValues().model;
  model.replaceChildren(...served.map(option));
  const usable = served.filter((model) => !lackOf(model)).map(({ id }) => id);
  model.value = usable.includes(wanted) ? wanted : (usable[0] ?? "");
}

// Says below the key what is wrong with it, or else what it is.
function describeKey(wrong = "") {
  key.ariaInvalid = String(wrong !== "");
  byId("key-about").textContent = wrong || "This server asks for one. It is kept until the tab is closed.";
}

// Shows the field of the key, with what is wrong.
export function askForKey({ message }) {
  byId("key-field").hidden = false;
  const wrong = isKey(apiKey()) ? "The server does not know this key." : message;
  describeKey(apiKey() && wrong);
  open(key);
}

function save() {
  const values = Object.fromEntries([...numbers, byId("system")].map((input) => [input.name, input.value]));
  kept.set(JSON.stringify({ ...values, model: model.value }));
  const searches = byId("num_beams").valueAsNumber > 1;
  for (const input of drawn) input.disabled = searches;
}

// Fills the fields with what was kept. `onKey` is called after another key was given.
export function start(onKey) {
  const values = keptValues();
  for (const input of [...numbers, byId("system")]) input.value = values[input.name] ?? "";
  if (apiKey()) {
    byId("key-field").hidden = false;
    key.value = apiKey();
  }
  save();
  form.oninput = model.onchange = save;
  byId("show-settings").onclick = () => open();
  byId("hide-settings").onclick = () => dialog.close();
  form.onsubmit = (event) => {
    event.preventDefault();
    if (form.reportValidity()) dialog.close();
  };
  byId("reset").onclick = () => {
    for (const input of [...numbers, byId("system")]) input.value = "";
    save();
  };
  // A click beside it, which goes to the dialog itself.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.onclose = () => {
    if (key.value.trim() === apiKey()) return;
    keptKey.set(key.value.trim());
    onKey();
  };
}
