import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkout } from "../../agent/checkout.ts";
import { commitFiles, createRepository, git, temporaryDir } from "./git-fixture.ts";
import { type GitHttpServer, startGitHttpServer } from "./git-http-server.ts";

let dir: ReturnType<typeof temporaryDir>;
let origin: string;
let server: GitHttpServer;
let files: Map<string, string>;

beforeEach(async () => {
  dir = temporaryDir();
  origin = join(dir.path, "origin");
  createRepository(origin);
  files = new Map();
  server = await startGitHttpServer(dir.path, "ada:s3cret-word", files);
});
afterEach(async () => {
  await server[Symbol.asyncDispose]();
  dir[Symbol.dispose]();
});

function hasGitLfs(): boolean {
  try {
    execFileSync("git-lfs", ["version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

function pointer(content: string, { stored = true } = {}): string {
  const id = createHash("sha256").update(content).digest("hex");
  if (stored) files.set(id, content);
  return `version https://git-lfs.github.com/spec/v1\noid sha256:${id}\nsize ${content.length}\n`;
}

let count = 0;
async function workspaceOf(commit: string): Promise<string> {
  const workspaceDir = join(dir.path, `workspace-${count++}`);
  const cloneUrl = `http://ada:s3cret-word@${server.host}/origin/.git`;
  await checkout({ mirrorsDir: join(dir.path, "mirrors"), repositoryId: "1", cloneUrl, commit, workspaceDir });
  return workspaceDir;
}

describe.skipIf(!hasGitLfs())("fetchLargeFiles", () => {
  test("replaces pointers in any directory, and downloads each once", async () => {
    const commit = commitFiles(origin, {
      "assets/.gitattributes": "*.bin filter=lfs -text\n",
      "assets/a.bin": pointer("large a\n"),
      "assets/deeper/b.bin": pointer("large b\n"),
      "plain.bin": "plain\n",
    });
    const workspace = await workspaceOf(commit);
    expect(readFileSync(join(workspace, "assets/a.bin"), "utf8")).toBe("large a\n");
    expect(readFileSync(join(workspace, "assets/deeper/b.bin"), "utf8")).toBe("large b\n");
    expect(readFileSync(join(workspace, "plain.bin"), "utf8")).toBe("plain\n");
    expect(git(workspace, "status", "--porcelain")).toBe("");
    expect(readFileSync(join(workspace, ".git/config"), "utf8")).not.toContain("s3cret");
    expect(existsSync(join(workspace, ".git/hooks"))).toBe(false);
    const asked = server.requests.length;
    expect(readFileSync(join(await workspaceOf(commit), "assets/a.bin"), "utf8")).toBe("large a\n");
    expect(server.requests.length).toBe(asked);
  });

  test("refuses a commit whose large file is nowhere, as the repository's matter", async () => {
    const commit = commitFiles(origin, {
      ".gitattributes": "*.bin filter=lfs -text\n",
      "a.bin": pointer("never stored\n", { stored: false }),
    });
    const message = /Cannot fetch the large files of commit/;
    await expect(workspaceOf(commit)).rejects.toMatchObject({ message, status: "failure" });
  });

  test.each([
    ["ext::touch%20pwned", /git would run a remote helper/],
    ["file:///etc", /names a directory of the agent's machine/],
  ])("refuses large files at %s", async (address, message) => {
    const commit = commitFiles(origin, {
      ".gitattributes": "*.bin filter=lfs -text\n",
      ".lfsconfig": `[lfs]\n\turl = ${address}\n`,
      "a.bin": pointer("large\n"),
    });
    await expect(workspaceOf(commit)).rejects.toThrow(message);
  });
});
