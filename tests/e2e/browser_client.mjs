// Drives examples/browser/parley.js as a page would. The storage is a file, so that ending this process is a reload.
//
//   node browser_client.mjs BASE_URL STORAGE_FILE ask QUESTION [LEAVE_AFTER_CHANGES]
//   node browser_client.mjs BASE_URL STORAGE_FILE resume
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { Parley } from "../../examples/browser/parley.js";

const [baseUrl, file, action, question, leaveAfter] = process.argv.slice(2);
const kept = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
const storage = {
  getItem: (key) => kept[key] ?? null,
  setItem: (key, value) => ((kept[key] = value), writeFileSync(file, JSON.stringify(kept))),
  removeItem: (key) => (delete kept[key], writeFileSync(file, JSON.stringify(kept))),
};

const texts = [];
let retries = 0;
const parley = new Parley({ baseUrl, storage, onRetry: () => retries++ });

function onText(text) {
  if (text !== texts.at(-1)) texts.push(text);
  // Left in the middle, without a goodbye: nothing runs after this.
  if (leaveAfter && texts.length > Number(leaveAfter)) process.exit(9);
}

const request = action === "ask" ? await parley.ask(question, onText) : await parley.resume(onText);
console.log(JSON.stringify({ texts, retries, request, stored: kept }));
process.exit(0);
