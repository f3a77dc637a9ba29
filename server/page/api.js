// The server's API. Addresses are relative to the page's own, so that a proxy may put both below a path.

const address = (path) => new URL(path, document.baseURI);

// What the server, or the way to it, has to say against a request.
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

// Whether a server can have such a key.
export const isKey = (key) => /^[\x21-\x7e]*$/.test(key);

const fromBody = (error, more = {}) =>
  new ApiError(error.message ?? "The server gives no reason.", { code: error.code, param: error.param, ...more });

async function send(path, key, options = {}) {
  if (!isKey(key)) {
    const message = "The API key has a character that no key can have, such as a space or a long dash: copy it anew.";
    throw new ApiError(message, { status: 401 });
  }
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A server may refuse a question before it has all of it, and not every browser reads that answer then.
    const refusal = "refused the question before it had all of it: for a wrong API key, too large pictures or its load";
    throw new ApiError(`The server cannot be reached${options.body ? `, or ${refusal}.` : ". Is it running?"}`);
  }
  if (response.ok) return response;
  const status = response.status;
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  const body = await response.json().catch(() => null);
  if (body?.error) throw fromBody(body.error, { status, retryAfter });
  throw new ApiError(`The server answers ${status} ${response.statusText}`.trim(), { status, retryAfter });
}

// The models, each with `id`, `status` and, where it is loaded, `capabilities`.
export async function models(key) {
  const response = await send("v1/models", key);
  return (await response.json()).data;
}

// Asks, and yields the chunks of the answer.
export async function* ask(request, key, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true }, timings: true };
  const response = await send("v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw fromBody(chunk.error);
    yield chunk;
  }
  throw new ApiError("The connection broke before the answer was complete.");
}

// The data of server-sent events. Lines that hold none, as the server's pings, are passed over.
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        return { done: true };
      });
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
