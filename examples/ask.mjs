// Asks a running server about a picture, with OpenAI's client (npm install openai).
//
//     node ask.mjs http://127.0.0.1:8080/v1 qbridge-demo cat.png "What is this?"

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [baseURL, model, picture, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: process.env.QBRIDGE_API_KEY ?? "none" });
// What kind of picture it is, its bytes say.
const url = `data:image/png;base64,${readFileSync(picture).toString("base64")}`;
const messages = [
  {
    role: "user",
    content: [
      { type: "image_url", image_url: { url } },
      { type: "text", text: question },
    ],
  },
];

const answer = await client.chat.completions.create({ model, messages });
console.log(answer.choices[0].message.content);

// The same, word by word as it comes.
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
}
console.log();
