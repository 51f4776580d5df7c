#!/usr/bin/env node
"use strict";
// A Git post-receive hook: sends one signed push webhook per updated ref, as a forge would. For bare repositories that no
// forge looks after. With what `slipway repo add` prints, in the repository:
//
//   git config slipway.webhook http://127.0.0.1:7433/hooks/…
//   git config slipway.secret …
//   ln -s …/cli/post-receive.cjs hooks/post-receive

const { execFileSync } = require("node:child_process");
const { createHmac, randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { basename } = require("node:path");

const git = (...args) =>
  execFileSync("git", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], maxBuffer: 2 ** 26 }).trimEnd();
const directory = git("rev-parse", "--absolute-git-dir");

function config(name) {
  try {
    return git("config", "--get", `slipway.${name}`);
  } catch {
    throw new Error(`"git config slipway.${name}" is not set; "slipway repo add" prints what belongs there`);
  }
}

/** The commit a ref was set to; undefined for a tag of a tree or a file. */
function headCommit(after) {
  try {
    const [id, name, message] = git("show", "--no-patch", "--format=%H%x00%an%x00%B", `${after}^{commit}`).split("\0");
    return { id, message, author: { name } };
  } catch {
    return undefined;
  }
}

function payload([before, after, ref]) {
  const deleted = /^0+$/.test(after);
  const commit = deleted ? null : headCommit(after);
  if (commit === undefined) return undefined;
  return {
    ref,
    before,
    after,
    deleted,
    head_commit: commit,
    repository: { full_name: basename(directory, ".git"), clone_url: directory },
  };
}

async function send(update) {
  const event = payload(update);
  if (event === undefined) return console.log(`slipway: ${update[2]} is no commit: nothing to build`);
  const body = JSON.stringify(event);
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
  for (const update of updates.map((line) => line.split(" "))) {
    // The push has succeeded already: a server that is down is worth a line, not a failure. The other refs are sent all the same.
    await send(update).catch((error) => {
      console.error(`slipway: Cannot deliver the webhook of ${update[2]}: ${error.cause?.message || error.message}`);
    });
  }
}

void main();
