// Checks a running server with OpenAI's own client for Node.
//
//     cd "$(scripts/npm-target.sh tests/node CACHE_DIR)"
//     node openai_client.mjs http://127.0.0.1:8080/v1 qbridge-demo PICTURES_DIR [KEYS_URL TOOLS_URL]
//
// The last two are servers with the same model: one with the key sk-test, and one whose template knows tools.
// Prints a line for each check; ends with 1 at the first that fails.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import OpenAI from "openai";

const [baseURL, model, pictures, keysURL, toolsURL] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 300_000 });

const dataUri = (name) => `data:image/png;base64,${readFileSync(join(pictures, name)).toString("base64")}`;
const image = (url) => ({ type: "image_url", image_url: { url } });
const text = (text) => ({ type: "text", text });
const user = (...content) => ({ role: "user", content });
const dog = image(dataUri("dog.png"));
const banana = image(dataUri("banana.png"));
const question = text("What is this?");

const create = (messages, fields = {}) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_completion_tokens: 24, ...fields });
const said = (answer) => answer.choices[0].message.content;

async function refused(kind, code, param, messages, fields = {}) {
  await assert.rejects(create(messages, fields), (error) => {
    assert(error instanceof kind, `${error.constructor.name} is not ${kind.name}`);
    assert.deepEqual([error.code, error.param], [code, param], error.message);
    assert(error.requestID, "no x-request-id");
    return true;
  });
}

/** Answers chats by `statuses`, then hands them on to the server; the times at which they came. */
async function relayed(statuses, headers, use) {
  const times = [];
  const relay = createServer(async (request, response) => {
    const body = [];
    for await (const piece of request) body.push(piece);
    times.push(performance.now());
    const status = statuses.shift();
    const json = { "content-type": "application/json" };
    if (status) {
      const error = { message: "later", type: "server_error", param: null, code: "later" };
      return response.writeHead(status, { ...json, ...headers }).end(JSON.stringify({ error }));
    }
    const answer = await fetch(new URL(request.url, baseURL), { method: "POST", headers: json, body: Buffer.concat(body) });
    response.writeHead(answer.status, json).end(await answer.text());
  });
  await new Promise((resolve) => relay.listen(0, "127.0.0.1", resolve));
  try {
    await use(client.withOptions({ baseURL: `http://127.0.0.1:${relay.address().port}/v1` }));
  } finally {
    relay.closeAllConnections();
    relay.close();
  }
  return times;
}

const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather of a place.",
    strict: true,
    parameters: {
      type: "object",
      properties: { place: { enum: ["Ulm", "Bonn"] }, day: { type: "integer", minimum: 1, maximum: 31 } },
      required: ["place", "day"],
      additionalProperties: false,
    },
  },
};

const checks = {
  async "a text"() {
    const answer = await create([{ role: "system", content: "Be brief." }, user(text("Say hello."))]);
    assert.equal(answer.object, "chat.completion");
    assert.equal(answer.usage.prompt_tokens_details.image_tokens, 0);
    assert(said(answer) && answer._request_id);
  },
  async "a picture"() {
    const answer = await create([user(dog, question)]);
    assert.match(said(answer), /dog/i);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.choices[0].message.refusal, null);
    assert.equal(answer.usage.prompt_tokens_details.image_tokens, 32);
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
  },
  async "several pictures"() {
    const answer = await create([user(dog, text("and"), banana, question)]);
    assert.equal(answer.usage.prompt_tokens_details.image_tokens, 64);
    assert(said(answer));
  },
  async "several turns"() {
    const messages = [user(dog, question)];
    const first = await create(messages);
    messages.push({ role: "assistant", content: said(first) }, user(text("Is this an animal?")));
    const second = await create(messages);
    assert.equal(second.usage.prompt_tokens_details.image_tokens, 32);
    assert(second.usage.prompt_tokens > first.usage.prompt_tokens);
  },
  async "a stream, chunk by chunk"() {
    const whole = await create([user(banana, question)]);
    const stream = await create([user(banana, question)], { stream: true, stream_options: { include_usage: true } });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    const usage = chunks.pop();
    assert.deepEqual(usage.choices, []);
    assert.equal(usage.usage.total_tokens, whole.usage.total_tokens);
    assert.equal(new Set(chunks.map(({ id, created }) => `${id} ${created}`)).size, 1);
    assert(chunks.every(({ object, usage }) => object === "chat.completion.chunk" && usage === null));
    const choices = chunks.map(({ choices: [choice] }) => choice);
    assert.equal(choices[0].delta.role, "assistant");
    assert(choices.slice(0, -1).every(({ finish_reason }) => finish_reason === null));
    assert.equal(choices.at(-1).finish_reason, whole.choices[0].finish_reason);
    assert.deepEqual(choices.at(-1).delta, {});
    assert.equal(choices.map(({ delta }) => delta.content ?? "").join(""), said(whole));
  },
  async "a stream that is left"() {
    const stream = await create([user(text("Count."))], { stream: true, min_tokens: 500, max_completion_tokens: 500 });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    assert(stream.controller.signal.aborted);
    assert(said(await create([user(dog, question)])));
  },
  async "a text completion"() {
    const answer = await client.completions.create({ model, prompt: "Once upon a", max_tokens: 4, temperature: 0 });
    assert.equal(answer.object, "text_completion");
    assert.equal(answer.usage.completion_tokens, 4);
  },
  async "the models"() {
    const models = [];
    for await (const each of client.models.list()) models.push(each.id);
    assert(models.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve("no-such-model"), OpenAI.NotFoundError);
  },
  async "several prompts, and tokens"() {
    const fields = { model, max_tokens: 4, temperature: 0 };
    const answer = await client.completions.create({ ...fields, prompt: ["Once upon a", "The sky is"], n: 2, temperature: 1 });
    assert.deepEqual(answer.choices.map(({ index }) => index), [0, 1, 2, 3]);
    const { tokens } = await client.post("/../tokenize", { body: { prompt: "Once upon a" } });
    const [text, ids] = await Promise.all(
      ["Once upon a", tokens].map((prompt) => client.completions.create({ ...fields, prompt })),
    );
    assert.equal(ids.choices[0].text, text.choices[0].text);
  },
  async "JSON of a schema"() {
    const schema = { type: "object", properties: { n: { enum: [1, 2, 3] } }, required: ["n"], additionalProperties: false };
    const response_format = { type: "json_schema", json_schema: { name: "number", strict: true, schema } };
    const answer = await client.chat.completions.parse({ model, messages: [user(dog, question)], response_format, max_tokens: 60 });
    assert(Number.isInteger(answer.choices[0].message.parsed.n), said(answer));
  },
  async "errors by status, and retries"() {
    const kinds = {
      401: OpenAI.AuthenticationError,
      403: OpenAI.PermissionDeniedError,
      404: OpenAI.NotFoundError,
      408: OpenAI.APIError,
      409: OpenAI.ConflictError,
      422: OpenAI.UnprocessableEntityError,
      429: OpenAI.RateLimitError,
      500: OpenAI.InternalServerError,
      503: OpenAI.InternalServerError,
    };
    const messages = [user(text("Say hello."))];
    for (const [status, kind] of Object.entries(kinds)) {
      await relayed([Number(status)], {}, async (through) => {
        const asked = through.chat.completions.create({ model, messages });
        await assert.rejects(asked, (error) => error instanceof kind && error.status === Number(status) && error.code === "later");
      });
    }
    const [first, second] = await relayed([429], { "retry-after": "1" }, async (through) => {
      const answer = await through.withOptions({ maxRetries: 1 }).chat.completions.create({ model, messages, max_tokens: 4 });
      assert(said(answer));
    });
    assert(second - first >= 1000, `${second - first} ms`);
    const stranger = client.withOptions({ baseURL: "http://127.0.0.1:9/v1" });
    await assert.rejects(stranger.chat.completions.create({ model, messages }), OpenAI.APIConnectionError);
    const hasty = client.withOptions({ timeout: 1 });
    await assert.rejects(hasty.chat.completions.create({ model, messages, min_tokens: 200 }), OpenAI.APIConnectionTimeoutError);
  },
  async "a server with keys"() {
    const asked = (apiKey) => client.withOptions({ baseURL: keysURL, apiKey }).models.retrieve(model);
    await assert.rejects(asked("none"), (error) => error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key");
    assert.equal((await asked("sk-test")).id, model);
  },
  async "calls of functions"() {
    const messages = [user(text("What is the weather in Ulm?"))];
    const fields = { model, messages, tools: [weather], tool_choice: "required", parallel_tool_calls: false, max_tokens: 100 };
    const caller = client.withOptions({ baseURL: toolsURL });
    const whole = await caller.chat.completions.create({ ...fields, temperature: 0 });
    const [call] = whole.choices[0].message.tool_calls;
    assert.equal(whole.choices[0].finish_reason, "tool_calls");
    const { place, day } = JSON.parse(call.function.arguments);
    assert(["Ulm", "Bonn"].includes(place) && Number.isInteger(day), call.function.arguments);
    const stream = caller.chat.completions.stream({ ...fields, temperature: 0 });
    const streamed = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
    assert.deepEqual(streamed[0].function.arguments, call.function.arguments);
    messages.push(whole.choices[0].message, { role: "tool", tool_call_id: call.id, content: "rain" });
    const later = await caller.chat.completions.create({ ...fields, tool_choice: "auto", temperature: 0 });
    assert(later.usage.prompt_tokens > whole.usage.prompt_tokens);
  },
  async "errors of every class"() {
    const bad = OpenAI.BadRequestError;
    const messages = [user(dog, question)];
    const url = "messages[0].content[0].image_url.url";
    await refused(bad, "invalid_value", "temperature", messages, { temperature: 3 });
    await refused(bad, "invalid_value", "messages", []);
    await refused(bad, "missing_required_parameter", "messages[0].content", [{ role: "user" }]);
    await refused(bad, "unknown_parameter", "no_such_field", messages, { no_such_field: 1 });
    await refused(bad, "unsupported_parameter", "audio", messages, { audio: { voice: "alloy" } });
    await refused(bad, "remote_image_unsupported", url, [user(image("https://example.com/dog.png"))]);
    await refused(bad, "invalid_image", url, [user(image("data:image/png;base64,*"))]);
    await refused(OpenAI.NotFoundError, "model_not_found", "model", messages, { model: "no-such-model" });
    const large = image(`data:image/png;base64,${"A".repeat(28 << 20)}`);
    await refused(OpenAI.APIError, "image_too_large", url, [user(large)]);
    for (const stream of [false, true]) {
      const nothing = [user(image("data:image/png;base64,bm8gcGljdHVyZQ=="))];
      await refused(bad, "invalid_image", url, nothing, { stream });
      const long = [user(text("dog ".repeat(100_000)))];
      await refused(bad, "context_length_exceeded", "messages", long, { stream });
    }
  },
};

for (const [name, check] of Object.entries(checks)) {
  if ((name === "a server with keys" && !keysURL) || (name === "calls of functions" && !toolsURL)) continue;
  await check();
  console.log(`ok ${name}`);
}
