// The page at `/` as people use it, in a browser without a window: each check prints a line `ok NAME`.
//
//     node page.mjs CHROMIUM URL URL_OF_A_SERVER_WITH_THE_KEY_sk-test PICTURES_DIR [SCREENSHOTS_DIR]

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [executablePath, open, guarded, pictures, screenshots] = process.argv.slice(2);
const KEY = "sk-test";
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const DESKTOP = { viewport: { width: 1200, height: 860 } };
const PHONE = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };

// Whatever hangs, this does not.
setTimeout(() => {
  console.error("the checks of the page took longer than four minutes");
  process.exit(1);
}, 240_000).unref();

const browser = await chromium.launch({
  executablePath,
  timeout: 30_000,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

// A browser that was never here, and what it complains of. `expected` are failures that a check is about.
async function visit({ url = open, expected = [], ...options } = {}) {
  const context = await browser.newContext({ ...DESKTOP, ...options });
  context.setDefaultTimeout(30_000);
  const complaints = [];
  context.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  context.on("weberror", (error) => complaints.push(String(error.error().stack)));
  context.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol !== "blob:" && origin !== new URL(url).origin) complaints.push(`asked ${request.url()}`);
  });
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI }) => {
      console.error(`the policy forbids ${effectiveDirective} ${blockedURI}`);
    });
  });
  const page = await context.newPage();
  await page.goto(url);
  if (url === open) await page.locator("#model option").waitFor({ state: "attached" });
  const leave = async () => {
    const unexpected = complaints.filter((complaint) => !expected.some((known) => complaint.includes(known)));
    assert.deepEqual(unexpected, []);
    await context.close();
  };
  return { context, page, leave };
}

async function check(name, work) {
  try {
    await work();
  } catch (error) {
    console.error(`failed: ${name}\n${error.stack}`);
    await browser.close();
    process.exit(1);
  }
  console.log(`ok ${name}`);
}

const file = (name) => join(pictures, name);

// Files as a page gets them by dropping or pasting.
async function transfer(page, name, type = "image/png") {
  const bytes = [...(await readFile(file(name)))];
  return page.evaluateHandle(
    ({ bytes, name, type }) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
      return transfer;
    },
    { bytes, name, type },
  );
}

// Changes settings by their labels.
async function set(page, values) {
  await page.getByRole("button", { name: "Settings", exact: true }).click();
  for (const [label, value] of Object.entries(values)) await page.getByLabel(label).fill(String(value));
  await page.getByRole("button", { name: "Done" }).click();
}

async function ask(page, text) {
  await page.getByLabel("Question").fill(text);
  await page.getByRole("button", { name: "Ask", exact: true }).click();
}

const lastTurn = (page) => page.locator(".turn").last();
const answerOf = (turn) => turn.locator(".answer .text");

// The text of the last answer once it is complete.
async function answered(page, turns, state = "done") {
  await page.locator(`.turn:nth-child(${turns}):last-child[data-state="${state}"]`).waitFor();
  return answerOf(lastTurn(page)).textContent();
}

// What the API itself answers to the same.
async function fromApi(...contents) {
  const messages = contents.map((content, i) => ({ role: i % 2 ? "assistant" : "user", content }));
  const response = await fetch(new URL("v1/chat/completions", open), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "qbridge-demo", temperature: 0, messages }),
    signal: AbortSignal.timeout(30_000),
  });
  return (await response.json()).choices[0].message.content;
}

async function withPicture(name, text) {
  const url = `data:image/png;base64,${(await readFile(file(name))).toString("base64")}`;
  return [{ type: "image_url", image_url: { url } }, { type: "text", text }];
}

// Any finding of axe, grave or not, is one too many.
async function assertAccessible(page, place, but = []) {
  await page.evaluate(AXE);
  const rules = Object.fromEntries(but.map((rule) => [rule, { enabled: false }]));
  const { violations } = await page.evaluate((rules) => globalThis.axe.run({ rules }), rules);
  const findings = violations.map(({ id, impact, nodes }) => `${place}: ${impact} ${id} ${nodes[0].html}`);
  assert.deepEqual(findings, []);
}

const shoot = (page, name) => screenshots && page.screenshot({ path: join(screenshots, `${name}.png`) });

// What a server streams, to be given in its place.
const streamed = (...data) => ({
  contentType: "text/event-stream",
  body: `: ping\n\n${data.map((data) => `data: ${JSON.stringify(data)}\n\n`).join("")}data: [DONE]\n\n`,
});
const said = (content) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });

const LONG = "Write a long story about a dog and a lighthouse.";

const { context, page, leave } = await visit();

await check("a dropped picture is asked about, and the answer is the API's", async () => {
  await assertAccessible(page, "at first");
  await set(page, { Temperature: 0 });
  const dropped = await transfer(page, "dog.png");
  await page.dispatchEvent("main", "dragenter", { dataTransfer: dropped });
  assert.ok(await page.locator("#drop").isVisible());
  await page.dispatchEvent("#drop", "drop", { dataTransfer: dropped });
  await page.locator("#chosen img[alt='dog.png']").waitFor();
  assert.ok(await page.locator("#drop").isHidden());
  await ask(page, "What is this?");
  const text = await answered(page, 1);
  assert.equal(text, await fromApi(await withPicture("dog.png", "What is this?")));
  assert.match(text, /dog/);
  assert.equal(await page.locator("#chosen li").count(), 0);
});

await check("the time of each stage is told", async () => {
  const stages = await lastTurn(page).locator(".timings dl div").allTextContents();
  for (const stage of ["ViT", "Q-Former", "prefill", "decode"]) {
    assert.ok(stages.some((told) => new RegExp(`^${stage}[0-9.]+ m?s$`).test(told)), `${stage}: ${stages}`);
  }
  assert.match(await lastTurn(page).locator(".summary").textContent(), /\d+ tokens.* · prompt \d+/);
});

await check("who listens is told the answer", async () => {
  const said = await page.locator("#announcer[aria-live=polite]").textContent();
  assert.equal(said.trim(), (await answerOf(lastTurn(page)).textContent()).trim());
});

await check("a long answer grows, and stops when it is told to", async () => {
  await set(page, { "Most tokens": 3000 });
  const lengths = await page.evaluateHandle(() => {
    const lengths = new Set();
    new MutationObserver(() => {
      const answers = document.querySelectorAll(".answer .text");
      lengths.add(answers[answers.length - 1].textContent.length);
    }).observe(document.getElementById("turns"), { subtree: true, childList: true, characterData: true });
    return lengths;
  });
  await ask(page, LONG);
  await page.waitForFunction((lengths) => lengths.size > 20, lengths);
  assert.equal(await lastTurn(page).getAttribute("data-state"), "running");
  await shoot(page, "streaming");
  await page.getByRole("button", { name: "Stop" }).click();
  const text = await answered(page, 2, "stopped");
  const running = async () => {
    const metrics = await (await fetch(new URL("metrics", open))).text();
    return /^qbridge_requests_running\{.*\} (\d+)$/m.exec(metrics)[1];
  };
  for (let tries = 0; (await running()) !== "0"; tries++) assert.ok(tries < 200, "the server goes on");
  assert.equal(await answerOf(lastTurn(page)).textContent(), text, "it grew after that");
});

await check("it can be asked again, and goes on from there", async () => {
  await set(page, { "Most tokens": 16 });
  await page.getByRole("button", { name: "Ask again" }).last().click();
  await answered(page, 2);
  await ask(page, "And then?");
  await answered(page, 3);
  assert.match(await lastTurn(page).locator(".summary").textContent(), /cached/, "it does not know what was said");
});

await check("a question that is edited replaces what follows", async () => {
  await set(page, { "Most tokens": "" });
  await page.locator(".turn").first().getByRole("button", { name: "Edit" }).click();
  await page.locator("#editing").waitFor();
  assert.equal(await page.getByLabel("Question").inputValue(), "What is this?");
  assert.equal(await page.locator("#chosen img").count(), 1);
  await ask(page, "Is this an animal?");
  const text = await answered(page, 1);
  assert.equal(text, await fromApi(await withPicture("dog.png", "Is this an animal?")));
});

await check("a chat is there after a reload, and in another tab", async () => {
  const text = await answerOf(lastTurn(page)).textContent();
  const isWhole = async (page) => {
    assert.equal(await answered(page, 1), text);
    await page.waitForFunction(() => document.querySelector(".question img")?.naturalWidth === 224);
    assert.equal(await page.locator(".chat a[aria-current]").textContent(), "Is this an animal?");
  };
  await page.reload();
  await isWhole(page);
  const other = await context.newPage();
  await other.goto(page.url());
  await isWhole(other);
  await other.close();
  const stored = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }]));
  assert.ok(!stored.includes("animal"), "chats are in IndexedDB alone");
});

await check("a second chat stands beside the first", async () => {
  await page.getByRole("link", { name: "New chat" }).click();
  await page.locator("#welcome").waitFor();
  const pasted = await transfer(page, "banana.png");
  await page.evaluate((clipboardData) => {
    const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
    document.activeElement.dispatchEvent(paste);
  }, pasted);
  await page.locator("#chosen img[alt='banana.png']").waitFor();
  await ask(page, "What is this?");
  assert.match(await answered(page, 1), /banana/);
  assert.deepEqual(await page.locator(".chat a").allTextContents(), ["What is this?", "Is this an animal?"]);
  await page.getByRole("link", { name: "Is this an animal?" }).click();
  await page.locator(".question img[alt='dog.png']").waitFor();
  await page.goBack();
  await page.locator(".question img[alt='banana.png']").waitFor();
  page.once("dialog", (dialog) => dialog.accept());
  await page.locator(".chat").first().hover();
  await page.getByRole("button", { name: "Delete What is this?" }).click();
  await page.locator("#welcome").waitFor();
  assert.equal(await page.locator(".chat").count(), 1);
  await page.waitForFunction(async () => {
    const database = await new Promise((resolve) => {
      const request = indexedDB.open("qbridge");
      request.onsuccess = () => resolve(request.result);
    });
    const pictures = database.transaction("pictures").objectStore("pictures").getAllKeys();
    const keys = await new Promise((resolve) => (pictures.onsuccess = () => resolve(pictures.result)));
    database.close();
    return keys.length === 1;
  });
});

await leave();

await check("two tabs of a chat show the same, and lose nothing of it", async () => {
  const { context, page, leave } = await visit();
  await set(page, { "Most tokens": 3000 });
  await ask(page, LONG);
  await page.locator(".turn[data-state=running]").waitFor();
  const other = await context.newPage();
  await other.goto(page.url());
  await other.locator(".turn[data-state=running]").waitFor();
  assert.ok(await other.getByRole("button", { name: "Ask", exact: true }).isHidden());
  const text = await answerOf(other.locator(".turn")).elementHandle();
  const length = (await text.textContent()).length;
  await other.waitForFunction(([text, length]) => text.isConnected && text.textContent.length > length, [text, length]);
  await other.getByRole("button", { name: "Stop" }).click();
  assert.equal(await answered(other, 1, "stopped"), await answered(page, 1, "stopped"));
  await other.locator("#model option").waitFor({ state: "attached" });
  await ask(other, LONG);
  await page.locator(".turn:nth-child(2)[data-state=running]").waitFor();
  await other.reload();
  await answered(other, 2, "stopped");
  await answered(page, 2, "stopped");
  await page.bringToFront();
  await set(page, { "Most tokens": 16 });
  await ask(page, "And then?");
  const last = await answered(page, 3);
  assert.equal(await answered(other, 3), last);
  // A tab that is gone without a word.
  await set(page, { "Most tokens": 3000 });
  await ask(page, LONG);
  await other.locator(".turn:nth-child(4)[data-state=running]").waitFor();
  const session = await context.newCDPSession(page);
  session.send("Page.crash").catch(() => {});
  await answered(other, 4, "stopped");
  await other.getByRole("button", { name: "Ask", exact: true }).waitFor();
  await leave();
});

await check("where the browser has no room left, a chat goes on until the page is left", async () => {
  const { page, leave } = await visit();
  await ask(page, "Hello?");
  await answered(page, 1);
  await page.evaluate(() => {
    globalThis.put = IDBObjectStore.prototype.put;
    IDBObjectStore.prototype.put = () => {
      throw new DOMException("The quota has been exceeded.", "QuotaExceededError");
    };
  });
  await page.getByRole("link", { name: "New chat" }).click();
  await page.locator("#files").setInputFiles(file("dog.png"));
  await page.locator("#chosen li").waitFor();
  await ask(page, "What is this?");
  assert.match(await answered(page, 1), /dog/);
  await page.getByRole("alert").getByText("The browser did not keep all of this").waitFor();
  await shoot(page, "no-room");
  await page.getByRole("link", { name: "Hello?" }).click();
  await page.getByRole("link", { name: "What is this?" }).click();
  await page.waitForFunction(() => document.querySelector(".question img")?.naturalWidth === 224);
  const sent = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "Is this an animal?");
  assert.ok((await sent).postData().includes("image_url"), "the picture is forgotten");
  await answered(page, 2);
  await page.evaluate(() => (IDBObjectStore.prototype.put = globalThis.put));
  page.once("dialog", (dialog) => dialog.accept());
  await page.getByRole("button", { name: "Delete Hello?" }).click();
  await page.waitForFunction(() => document.getElementById("notice").textContent === "");
  await page.reload();
  await page.waitForFunction(() => document.querySelector(".question img")?.naturalWidth === 224);
  await answered(page, 2);
  await leave();
});

for (const colorScheme of ["light", "dark"]) {
  await check(`axe finds nothing amiss in the ${colorScheme}`, async () => {
    const { page, leave } = await visit({ colorScheme });
    await page.locator("#files").setInputFiles(file("penguin.png"));
    await page.locator("#chosen li").waitFor();
    await assertAccessible(page, "with a picture");
    await ask(page, "What is this?");
    await answered(page, 1);
    await ask(page, "Is this an animal?");
    await answered(page, 2);
    await assertAccessible(page, "with answers");
    await shoot(page, colorScheme);
    await page.getByRole("button", { name: "Settings", exact: true }).click();
    await assertAccessible(page, "with settings");
    await shoot(page, `settings-${colorScheme}`);
    await leave();
  });
}

await check("keys are enough", async () => {
  const { page, leave } = await visit();
  const { keyboard } = page;
  const focused = (name) => page.waitForFunction((name) => {
    const { ariaLabel, id, textContent } = document.activeElement;
    return [ariaLabel, id, textContent.trim()].includes(name);
  }, name);
  await focused("question");
  const chooser = page.waitForEvent("filechooser");
  await keyboard.press("Tab");
  await focused("Add pictures");
  await keyboard.press("Enter");
  await (await chooser).setFiles(file("dog.png"));
  await focused("question");
  await keyboard.press("Shift+Tab");
  await focused("Remove dog.png");
  await keyboard.press("Tab");
  await keyboard.type("What is this?");
  await keyboard.press("Shift+Enter");
  await keyboard.press("Backspace");
  await keyboard.press("Enter");
  assert.match(await answered(page, 1), /dog/);
  await focused("question");
  for (let tabs = 0; tabs < 6; tabs++) {
    await keyboard.press("Shift+Tab");
    if (await page.evaluate(() => document.activeElement.matches(".edit"))) break;
  }
  await focused("Edit");
  await keyboard.press("Enter");
  await focused("question");
  await keyboard.press("Escape");
  assert.ok(await page.locator("#editing").isHidden());
  await keyboard.type(LONG);
  await keyboard.press("Enter");
  await page.locator(".turn:nth-child(2)[data-state=running] .text").last().waitFor();
  await keyboard.press("Escape");
  await answered(page, 2, "stopped");
  await page.locator("#show-settings").focus();
  await keyboard.press("Enter");
  await focused("Close the settings");
  await keyboard.press("Escape");
  await focused("Settings");
  await page.locator("#skip").focus();
  assert.ok(await page.locator("#skip").evaluate((link) => link.getBoundingClientRect().top >= 0));
  await keyboard.press("Enter");
  await focused("question");
  await leave();
});

await check("a phone has room for it", async () => {
  const { page, leave } = await visit(PHONE);
  const assertFits = async (place) => {
    const wide = await page.evaluate(() => {
      const isWide = (element) => {
        const { left, right, width } = element.getBoundingClientRect();
        return width > 0 && right > innerWidth + 1 && left < innerWidth + 1;
      };
      const elements = [...document.querySelectorAll("main, main *")];
      const names = elements.filter(isWide).map(({ outerHTML }) => outerHTML.slice(0, 60));
      return [...names, ...(document.scrollingElement.scrollWidth > 360 ? ["the page"] : [])];
    });
    assert.deepEqual(wide, [], place);
  };
  await assertFits("at first");
  await page.locator("#files").setInputFiles([file("rocket-pizza.png"), file("balloons.png")]);
  await page.locator("#chosen li").nth(1).waitFor();
  await page.getByLabel("Question").fill("A line".repeat(40));
  await assertFits("with a long question");
  await page.getByLabel("Question").fill("What is this?");
  await page.getByRole("button", { name: "Ask", exact: true }).tap();
  await answered(page, 1);
  await assertFits("with an answer");
  await assertAccessible(page, "on a phone");
  await shoot(page, "phone");
  await page.getByRole("button", { name: "Chats" }).tap();
  await page.getByRole("link", { name: "What is this?" }).waitFor();
  assert.ok(await page.evaluate(() => document.querySelector("main").inert));
  await page.waitForFunction(() => document.getElementById("chats").getAnimations().length === 0);
  // All but the list is inert then.
  await assertAccessible(page, "with the list of chats", ["landmark-one-main", "page-has-heading-one"]);
  await shoot(page, "phone-chats");
  await page.getByRole("link", { name: "New chat" }).tap();
  await page.locator("#welcome").waitFor();
  await page.locator("#chats").waitFor({ state: "hidden" });
  // Escape leaves the list, and only then stops an answer.
  await ask(page, LONG);
  await page.locator(".turn[data-state=running] .text").last().waitFor();
  await page.getByRole("button", { name: "Chats" }).tap();
  await page.keyboard.press("Escape");
  await page.locator("#chats").waitFor({ state: "hidden" });
  assert.equal(await lastTurn(page).getAttribute("data-state"), "running");
  await page.keyboard.press("Escape");
  await answered(page, 1, "stopped");
  await page.getByRole("button", { name: "Settings", exact: true }).tap();
  await shoot(page, "phone-settings");
  await leave();
});

await check("what the server refuses is said in its words, and goes no further", async () => {
  const { page, leave } = await visit({ expected: ["status of 400"] });
  const broken = { name: "broken.png", mimeType: "image/png", buffer: Buffer.from("no picture") };
  await page.locator("#files").setInputFiles(broken);
  await page.locator("#chosen li").waitFor();
  await ask(page, "What is this?");
  assert.equal(await answered(page, 1, "failed"), "");
  assert.match(await page.locator(".error").textContent(), /picture.*\(messages\[0\].*invalid_image\)/);
  await assertAccessible(page, "with an error");
  await shoot(page, "refused");
  await page.locator("#files").setInputFiles(file("penguin.png"));
  await page.locator("#chosen li").waitFor();
  const sent = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "What is this?");
  assert.deepEqual((await sent).postDataJSON().messages.map(({ role }) => role), ["user"]);
  assert.match(await answered(page, 2), /penguin/);
  await page.locator("#files").setInputFiles({ ...broken, name: "notes.txt", mimeType: "text/plain" });
  await page.getByText("notes.txt is not a picture").waitFor();
  await leave();
});

await check("where the model does not take what is set or was said, a way out is told", async () => {
  const { page, leave } = await visit({ expected: ["status of 400"] });
  const refuse = (message, param, code) => {
    const json = { error: { message, param, code } };
    return page.route("**/v1/chat/completions", (route) => route.fulfill({ status: 400, json }));
  };
  const errors = page.locator(".error");
  await ask(page, "Hello?");
  await answered(page, 1);
  await set(page, { "System text": "Be brief.", Temperature: 1 });
  await refuse("temperature is not supported", "temperature", "unsupported_parameter");
  await ask(page, "Hello?");
  await errors.getByText("It may help to empty “Temperature” in the settings.").waitFor();
  await refuse("this blip2-itm has no language model: send one user message", "messages", "invalid_prompt");
  await page.getByRole("button", { name: "Ask again" }).last().click();
  await errors.getByText("empty the system text in the settings, and to begin a new chat.").waitFor();
  await refuse('the model "clip" answers no messages', "model", "model_not_supported");
  await page.getByRole("button", { name: "Ask again" }).last().click();
  await errors.getByText("(model, model_not_supported). It may help to choose another model.").waitFor();
  await leave();
});

await check("a model that answers no messages cannot be chosen", async () => {
  const { page, leave } = await visit();
  const model = (id, capabilities) => ({ id, status: "loaded", capabilities });
  let data = [model("clip", ["embedding"]), model("qbridge-demo", ["chat", "completion"])];
  await page.route("**/v1/models", (route) => route.fulfill({ json: { object: "list", data } }));
  const options = async () => {
    await page.reload();
    await page.locator("#model option").first().waitFor({ state: "attached" });
    return page.locator("#model option").evaluateAll((all) => all.map(({ text, disabled, selected }) => [text, disabled, selected]));
  };
  const clip = ["clip (answers no messages)", true, false];
  assert.deepEqual(await options(), [clip, ["qbridge-demo", false, true]]);
  await ask(page, "Hello?");
  await answered(page, 1);
  data = [data[0]];
  assert.deepEqual(await options(), [clip]);
  await page.getByRole("button", { name: "Ask again" }).last().click();
  await page.getByText("There is no model to ask.").waitFor();
  await leave();
});

await check("pictures that are too many or too large are not sent, and nothing of the question is lost", async () => {
  const { page, leave } = await visit({ expected: ["status of 413"], viewport: { width: 1200, height: 560 } });
  await page.route("**/v1/chat/completions", (route) => route.fulfill(streamed(said("yes"))));
  const alert = page.getByRole("alert");
  const add = async (mebibytes, count = 1) => {
    const files = await page.evaluateHandle(
      ({ mebibytes, count }) => {
        const transfer = new DataTransfer();
        const bytes = new Uint8Array(mebibytes * 2 ** 20);
        for (let i = 0; i < count; i++) transfer.items.add(new File([bytes], `${i}.png`, { type: "image/png" }));
        return transfer;
      },
      { mebibytes, count },
    );
    await page.dispatchEvent("#drop", "drop", { dataTransfer: files });
    await page.locator("#chosen li").nth(count - 1).waitFor();
  };
  await add(20);
  await ask(page, "What is this?");
  await answered(page, 1);
  await add(4);
  await ask(page, "And this?");
  await alert.getByText("that would be 24.0 MiB of pictures, and the server takes less than 24 MiB").waitFor();
  await shoot(page, "too-large");
  assert.equal(await page.locator(".turn").count(), 1);
  await page.getByRole("link", { name: "New chat" }).click();
  await page.locator("#welcome").waitFor();
  assert.equal(await alert.textContent(), "");
  assert.equal(await page.locator("#chosen li").count(), 1);
  await page.getByRole("button", { name: "Ask", exact: true }).click();
  await answered(page, 1);
  await add(12.5, 2);
  await ask(page, "And these?");
  await alert.getByText("That would be 25.0 MiB of pictures").waitFor();
  const isAtEnd = () => {
    const { scrollHeight, scrollTop, clientHeight } = document.getElementById("conversation");
    return scrollHeight > clientHeight && scrollHeight - scrollTop - clientHeight < 2;
  };
  await page.waitForFunction(isAtEnd);
  await page.getByRole("button", { name: "Remove 0.png" }).click();
  await page.getByRole("button", { name: "Remove 1.png" }).click();
  await add(1 / 1024, 16);
  await ask(page, "And these?");
  await alert.getByText("that would be 17 pictures, and the server takes 16. Begin a new chat.").waitFor();
  await page.getByRole("link", { name: "New chat" }).click();
  await page.getByRole("button", { name: "Ask", exact: true }).click();
  await answered(page, 1);
  // What is in front of the server may take less.
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ status: 413, body: "<html>" }));
  await ask(page, "And now?");
  await answered(page, 2, "failed");
  const error = await lastTurn(page).locator(".error").textContent();
  assert.match(error, /413.*\. It may help to begin a new chat, and to take fewer or smaller pictures/);
  assert.equal(await page.getByLabel("Question").inputValue(), "And now?");
  await leave();
});

await check("a picture of a kind that the server does not read is sent in one that it reads", async () => {
  const { page, leave } = await visit();
  let sent;
  await page.route("**/v1/chat/completions", (route) => {
    sent = route.request().postData();
    return route.fulfill(streamed(said("yes")));
  });
  // What the file is, the browser sees for itself.
  const picture = await transfer(page, "dog.png", "image/avif");
  for (const type of ["png", "jpeg"]) {
    await page.dispatchEvent("#drop", "drop", { dataTransfer: picture });
    await page.locator("#chosen li").waitFor();
    await page.getByRole("link", { name: "New chat" }).click();
    await ask(page, "What is this?");
    await answered(page, 1);
    assert.equal(/data:image\/(\w+)/.exec(sent)[1], type);
    // From now on, each PNG is larger than a picture may be.
    await page.evaluate(() => {
      const convert = OffscreenCanvas.prototype.convertToBlob;
      OffscreenCanvas.prototype.convertToBlob = function (options) {
        return options ? convert.call(this, options) : new Blob([new Uint8Array(21 * 2 ** 20)]);
      };
    });
  }
  await leave();
});

await check("numbers out of range are not sent, and beams leave nothing to draw", async () => {
  const { page, leave } = await visit();
  await page.getByRole("button", { name: "Settings", exact: true }).click();
  await page.getByLabel("Temperature").fill("3");
  await page.keyboard.press("Escape");
  await ask(page, "Hello?");
  assert.ok(await page.locator("dialog[open]").isVisible());
  assert.equal(await page.locator(".turn").count(), 0);
  await page.getByLabel("Temperature").fill("1");
  await page.getByLabel("System text").fill("Answer in one word.");
  await page.getByLabel("Seed").fill("7");
  await page.getByLabel("Beams").fill("2");
  assert.ok(await page.getByLabel("Temperature").isDisabled());
  await page.getByRole("button", { name: "Done" }).click();
  const sent = page.waitForRequest("**/v1/chat/completions");
  await page.getByRole("button", { name: "Ask", exact: true }).click();
  const { model, messages, temperature, seed, num_beams } = (await sent).postDataJSON();
  assert.deepEqual([model, temperature, seed, num_beams], ["qbridge-demo", undefined, 7, 2]);
  assert.deepEqual(messages[0], { role: "system", content: "Answer in one word." });
  await answered(page, 1);
  await page.reload();
  await page.getByRole("button", { name: "Settings", exact: true }).click();
  assert.equal(await page.getByLabel("Seed").inputValue(), "7");
  await page.getByRole("button", { name: "Back to the model’s own" }).click();
  assert.equal(await page.getByLabel("Seed").inputValue(), "");
  await leave();
});

await check("what a model writes is text, and an error in the middle of it is told", async () => {
  const { page, leave } = await visit({ expected: ["net::ERR_FAILED"] });
  const evil = `<img src=x onerror="document.title='caught'"><script>document.title='caught'</script>`;
  const error = { error: { message: "the answer took longer than 600 seconds", code: "timeout", param: null } };
  await page.route("**/v1/chat/completions", (route) => route.fulfill(streamed(said(evil), error)));
  await ask(page, evil);
  assert.equal(await answered(page, 1, "failed"), evil);
  assert.equal(await page.locator(".question .text").textContent(), evil);
  assert.equal(await page.locator("#turns img, #turns script, #chat-list img").count(), 0);
  assert.equal(await page.locator(".error").textContent(), "the answer took longer than 600 seconds (timeout)");
  await page.unroute("**/v1/chat/completions");
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await page.getByRole("button", { name: "Ask again" }).click();
  await page.getByText("The server cannot be reached, or refused the question before").first().waitFor();
  assert.ok(!(await page.title()).includes("caught "));
  await leave();
});

await check("a server with keys asks for one, and the tab keeps it", async () => {
  const { context, page, leave } = await visit({ url: guarded, expected: ["status of 401", "net::ERR_"] });
  const field = page.getByLabel("API key");
  await field.waitFor();
  await field.fill("sk–test");
  await page.keyboard.press("Enter");
  await page.locator("#key-about").getByText("The API key has a character that no key can have").waitFor();
  await field.fill("sk-wrong");
  await page.keyboard.press("Enter");
  await page.getByText("The server does not know this key.").waitFor();
  await assertAccessible(page, "with a wrong key");
  await shoot(page, "wrong-key");
  await field.fill(KEY);
  await page.keyboard.press("Enter");
  await page.locator("#model option").waitFor({ state: "attached" });
  assert.equal(await field.getAttribute("aria-invalid"), "false");
  await ask(page, "Hello?");
  await answered(page, 1);
  assert.equal(await page.getByRole("alert").textContent(), "");
  await page.reload();
  await page.locator("#model option").waitFor({ state: "attached" });
  const kept = await page.evaluate(() => [JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage })]);
  assert.deepEqual(kept.map((storage) => storage.includes("sk-test")), [false, true]);
  // Refused before all of it was sent, which a browser may hear of as a connection that broke.
  await page.evaluate(() => sessionStorage.setItem("qbridge-key", "sk-wrong"));
  await page.reload();
  await page.getByText("The server does not know this key.").waitFor();
  await page.keyboard.press("Escape");
  await page.evaluate(() => document.getElementById("model").replaceChildren(new Option("qbridge-demo")));
  const large = { name: "large.png", mimeType: "image/png", buffer: Buffer.alloc(6 * 2 ** 20) };
  await page.locator("#files").setInputFiles(large);
  await page.locator("#chosen li").waitFor();
  await ask(page, "What is this?");
  await page.locator(".error").getByText(/asks for an API key|or refused the question before/).waitFor();
  const other = await context.newPage();
  await other.goto(guarded);
  await other.getByLabel("API key").waitFor();
  await leave();
});

await browser.close();
