// Shorthands for the document.

export const byId = (id) => document.getElementById(id);

// A function that makes copies of what a template holds.
export const copies = (id) => {
  const original = byId(id).content.firstElementChild;
  return () => original.cloneNode(true);
};

// Makes `children` those of `parent`. Where they are, nothing moves: what has the focus keeps it.
export function setChildren(parent, children) {
  const isSame = parent.children.length === children.length && children.every((child, i) => child === parent.children[i]);
  if (!isSame) parent.replaceChildren(...children);
  return !isSame;
}
