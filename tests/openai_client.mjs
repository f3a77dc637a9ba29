// Checks a running server with OpenAI's own client for Node.
//
//     cd "$(scripts/npm-target.sh tests/node CACHE_DIR)"
//     node openai_client.mjs http://127.0.0.1:8080/v1 qbridge-demo PICTURES_DIR
//
// Prints a line for each check; ends with 1 at the first that fails.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import OpenAI from "openai";

const [baseURL, model, pictures] = process.argv.slice(2);
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
  await check();
  console.log(`ok ${name}`);
}
