"use strict";
// A Git post-receive hook: sends one signed push webhook per updated ref, as a forge would. For bare repositories that no
// forge looks after. Runs in the repository; reads `git config slipway.webhook` and `slipway.secret`.

const { execFileSync } = require("node:child_process");
const { createHmac, randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { basename } = require("node:path");

const git = (...args) => execFileSync("git", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trimEnd();
const config = (name) => git("config", "--get", `slipway.${name}`);
const directory = git("rev-parse", "--absolute-git-dir");

function payload([before, after, ref]) {
  const deleted = /^0+$/.test(after);
  const [id, name, message] = deleted
    ? []
    : git("show", "--no-patch", "--format=%H%x00%an%x00%B", `${after}^{commit}`).split("\0");
  return {
    ref,
    before,
    after,
    deleted,
    head_commit: deleted ? null : { id, message, author: { name } },
    repository: { full_name: basename(directory, ".git"), clone_url: directory },
  };
}

async function send(update) {
  const body = JSON.stringify(payload(update));
  const response = await fetch(config("webhook"), {
    method: "POST",
    body,
    headers: {
      "content-type": "application/json",
      "x-github-event": "push",
      "x-github-delivery": randomUUID(),
      "x-hub-signature-256": `sha256=${createHmac("sha256", config("secret")).update(body).digest("hex")}`,
    },
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  console.log(`slipway: ${update[2]} delivered`);
}

async function main() {
  const updates = readFileSync(0, "utf8").split("\n").filter(Boolean);
  for (const update of updates) await send(update.split(" "));
}

// The push has succeeded already: a server that is down is worth a line, not a failure.
main().catch((error) => console.error(`slipway: Cannot deliver the webhook: ${error.cause?.message ?? error.message}`));
