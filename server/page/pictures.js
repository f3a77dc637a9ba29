// Pictures on their way in: files become blobs that the server reads, and thumbnails.

import { copies } from "./dom.js";
import { newId } from "./store.js";

// What the server decodes; other kinds that the browser can decode are sent as PNG.
const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"];

// The server's limits.
const MOST_BYTES = 20 * 2 ** 20;
export const MOST_PICTURES = 16;

// A file as a picture {id, name, blob}; throws words for the user.
export async function readPicture(file) {
  const name = file.name || "picture";
  const blob = TYPES.includes(file.type) ? file : await asPng(file, name);
  if (blob.size > MOST_BYTES) throw new Error(`${name} has more than 20 MiB.`);
  return { id: newId(), name, blob };
}

async function asPng(file, name) {
  try {
    const bitmap = await createImageBitmap(file);
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    return await canvas.convertToBlob();
  } catch {
    throw new Error(`${name} is not a picture that can be read here.`);
  }
}

// A blob as a `data:` URI.
export const dataUri = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("A picture of this chat cannot be read any more."));
    reader.readAsDataURL(blob);
  });

const newItem = copies("picture");

// A thumbnail; with `remove`, a button that calls it.
export function thumbnail({ name, blob }, remove = null) {
  const item = newItem();
  const [image, button] = [item.querySelector("img"), item.querySelector("button")];
  image.alt = name;
  image.title = name;
  if (blob) {
    image.src = URL.createObjectURL(blob);
    image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  }
  button.hidden = remove === null;
  button.ariaLabel = `Remove ${name}`;
  button.onclick = remove;
  return item;
}
