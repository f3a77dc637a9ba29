// Pictures on their way in: files become blobs that the server reads, and thumbnails.

import { copies } from "./dom.js";
import { newId } from "./store.js";

// What the server decodes; other kinds that the browser can decode are sent as PNG, or JPEG where that is too large.
const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"];

// The server's limits: of a picture, and of a request, whose body is 32 MiB with the pictures in base64 and the texts.
const MIB = 2 ** 20;
const MOST_BYTES = 20 * MIB;
const MOST_BYTES_TOGETHER = 24 * MIB - 2 ** 16;
export const MOST_PICTURES = 16;

// A file as a picture {id, name, blob}; throws words for the user.
export async function readPicture(file) {
  const name = file.name || "picture";
  const blob = TYPES.includes(file.type) ? file : await converted(file, name);
  if (blob.size > MOST_BYTES) throw new Error(`${name} has more than 20 MiB.`);
  return { id: newId(), name, blob };
}

// Why the server would not take the pictures of a question and those that were `sent` before, or nothing. Those that an
// earlier version of the page kept are of unknown size.
export function excess(sent, pictures) {
  const alone = overLimit(pictures);
  if (alone) return `That would be ${alone}. Take fewer or smaller ones.`;
  const all = overLimit([...sent, ...pictures]);
  return all && `All pictures of a chat are sent with each question: that would be ${all}. Begin a new chat.`;
}

function overLimit(pictures) {
  const bytes = pictures.reduce((sum, { size }) => sum + (size ?? 0), 0);
  if (pictures.length > MOST_PICTURES) return `${pictures.length} pictures, and the server takes ${MOST_PICTURES}`;
  if (bytes <= MOST_BYTES_TOGETHER) return "";
  return `${(bytes / MIB).toFixed(1)} MiB of pictures, and the server takes less than 24 MiB`;
}

async function converted(file, name) {
  try {
    const bitmap = await createImageBitmap(file);
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const png = await canvas.convertToBlob();
    return png.size > MOST_BYTES ? await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 }) : png;
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
