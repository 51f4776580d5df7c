import { mkdir, symlink } from "node:fs/promises";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { git } from "../../cli/demo-repository.ts";
import { root, TemporaryDirectory } from "./command.ts";

interface Pushed {
  readonly ref: string;
  readonly deleted: boolean;
  readonly head_commit: {
    readonly id: string;
    readonly message: string;
    readonly author: { readonly name: string };
  } | null;
}

/** A bare repository with the hook linked into it as its first lines say, and a clone with one commit. */
async function repository(
  directory: string,
): Promise<{ bare: string; push: (...refs: string[]) => Promise<string>; clone: string }> {
  const bare = join(directory, "bare.git");
  const clone = join(directory, "clone");
  const env = { ...process.env, PATH: `${join(root, "node_modules/.bin")}:${process.env["PATH"] ?? ""}` };
  await git(directory, env, "init", "--quiet", "--bare", "--template=", "--initial-branch=main", bare);
  await mkdir(join(bare, "hooks"));
  await symlink(join(root, "cli/post-receive.cjs"), join(bare, "hooks/post-receive"));
  await git(directory, env, "init", "--quiet", "--template=", "--initial-branch=main", clone);
  await git(clone, env, "commit", "--quiet", "--allow-empty", "--message=first\n\nof all");
  return { bare, clone, push: async (...refs) => await git(clone, env, "push", bare, ...refs) };
}

async function receiver(received: Pushed[]): Promise<AsyncDisposable & { readonly url: string; refused: Set<string> }> {
  const refused = new Set<string>();
  const server = createServer((request: IncomingMessage, response) => {
    void (async () => {
      const parts: Buffer[] = [];
      for await (const part of request) parts.push(part as Buffer);
      const pushed = JSON.parse(Buffer.concat(parts).toString()) as Pushed;
      if (!refused.has(pushed.ref)) received.push(pushed);
      response.writeHead(refused.has(pushed.ref) ? 500 : 202).end("no");
    })();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hooks/x`,
    refused,
    [Symbol.asyncDispose]: () => new Promise((resolve) => void server.close(() => resolve())),
  };
}

describe("the post-receive hook", () => {
  test("sends every ref of a push, whatever the others are", async () => {
    await using directory = await TemporaryDirectory.create();
    const received: Pushed[] = [];
    await using server = await receiver(received);
    const { bare, clone, push } = await repository(directory.path);
    await git(bare, process.env, "config", "slipway.webhook", server.url);
    await git(bare, process.env, "config", "slipway.secret", "a secret");
    const id = (await git(clone, process.env, "rev-parse", "HEAD")).trim();
    await git(clone, process.env, "tag", "a-tree", "HEAD^{tree}");
    await git(clone, process.env, "branch", "refused");
    server.refused.add("refs/heads/refused");
    const said = await push("HEAD:refs/heads/first", "a-tree", "refused", "HEAD:refs/heads/zebra");
    expect(received.map(({ ref }) => ref)).toEqual(["refs/heads/first", "refs/heads/zebra"]);
    expect(received[0]?.head_commit).toEqual({ id, message: "first\n\nof all", author: { name: "Slipway demo" } });
    expect(said).toMatch(/slipway: refs\/heads\/first delivered/);
    expect(said).toMatch(/slipway: refs\/tags\/a-tree is no commit: nothing to build/);
    expect(said).toMatch(/slipway: Cannot deliver the webhook of refs\/heads\/refused: 500 no/);
    await push(":zebra");
    expect(received.at(-1)).toMatchObject({ ref: "refs/heads/zebra", deleted: true, head_commit: null });
  });

  test("says what is not configured, and lets the push succeed", async () => {
    await using directory = await TemporaryDirectory.create();
    const { push } = await repository(directory.path);
    expect(await push("HEAD:refs/heads/main")).toMatch(
      /slipway: Cannot deliver the webhook of refs\/heads\/main: "git config slipway.webhook" is not set; "slipway repo add" prints/,
    );
  });
});
