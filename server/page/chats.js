// The list of chats: a column, or on narrow screens a drawer over the page.

import { byId, copies, setChildren } from "./dom.js";

const nav = byId("chats");
const list = byId("chat-list");
const opener = byId("show-chats");
const rest = document.querySelector("main");
const newItem = copies("chat");
const items = new WeakMap();

// Lists chats, of which one is open.
export function show(chats, current, onDelete) {
  const shown = chats.map((chat) => {
    if (!items.has(chat)) items.set(chat, newItem());
    const item = items.get(chat);
    const [link, button] = [item.querySelector("a"), item.querySelector("button")];
    link.textContent = chat.title;
    link.href = `#${chat.id}`;
    link.ariaCurrent = chat === current ? "page" : null;
    button.ariaLabel = `Delete ${chat.title}`;
    button.onclick = () => onDelete(chat);
    return item;
  });
  setChildren(list, shown);
}

function setOpen(isOpen) {
  document.body.classList.toggle("chats-open", isOpen);
  opener.ariaExpanded = String(isOpen);
  rest.inert = isOpen;
  if (isOpen) byId("hide-chats").focus();
}

function close() {
  if (!rest.inert) return;
  setOpen(false);
  opener.focus();
}

export function start() {
  opener.onclick = () => setOpen(true);
  byId("hide-chats").onclick = close;
  // Before anything else hears of it.
  const leave = (event) => {
    if (event.key !== "Escape" || !rest.inert) return;
    event.preventDefault();
    close();
  };
  document.addEventListener("keydown", leave, { capture: true });
  nav.addEventListener("click", (event) => event.target.closest("a") && close());
  // Beside the drawer.
  document.addEventListener("click", (event) => event.target === document.body && close());
  matchMedia("(min-width: 56rem)").addEventListener("change", close);
}
