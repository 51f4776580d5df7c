/** Real repositories in temporary directories. */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const env = {
  PATH: process.env["PATH"] ?? "",
  HOME: "/nonexistent",
  GIT_CONFIG_NOSYSTEM: "1",
  GIT_CONFIG_GLOBAL: "/dev/null",
  GIT_AUTHOR_NAME: "A. Tester",
  GIT_AUTHOR_EMAIL: "tester@example.org",
  GIT_COMMITTER_NAME: "A. Tester",
  GIT_COMMITTER_EMAIL: "tester@example.org",
};

export function git(dir: string, ...args: string[]): string {
  return execFileSync("git", ["-C", dir, ...args], { env, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
}

export function temporaryDir(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "slipway-agent-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

export function createRepository(
  dir: string,
  files: Readonly<Record<string, string>> = { "README.md": "hello\n" },
): string {
  mkdirSync(dir, { recursive: true });
  git(dir, "init", "-q", "-b", "main");
  return commitFiles(dir, files);
}

export function commitFiles(dir: string, files: Readonly<Record<string, string>>, message = "a change"): string {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true });
    writeFileSync(join(dir, name), content);
  }
  git(dir, "add", "-A");
  git(dir, "commit", "-q", "--allow-empty", "-m", message);
  return git(dir, "rev-parse", "HEAD");
}

export interface TreeEntry {
  readonly mode: "100644" | "120000" | "160000" | "40000";
  readonly name: string;
  /** Content of a blob, or a commit's id. */
  readonly content: string;
}

/** Commits a tree that `git add` would refuse to make. */
export function commitTree(dir: string, entries: readonly TreeEntry[]): string {
  const lines = entries.map(({ mode, name, content }) => {
    const id = mode === "160000" || mode === "40000" ? content : hashObject(dir, "blob", Buffer.from(content));
    return Buffer.concat([Buffer.from(`${mode} ${name}\0`), Buffer.from(id, "hex")]);
  });
  const tree = hashObject(dir, "tree", Buffer.concat(lines));
  const commit = git(dir, "commit-tree", tree, "-m", "hostile");
  git(dir, "update-ref", "refs/heads/hostile", commit);
  return commit;
}

export function hashObject(dir: string, type: string, content: Buffer): string {
  return execFileSync("git", ["-C", dir, "hash-object", "-w", "--literally", "-t", type, "--stdin"], {
    env,
    input: content,
    encoding: "utf8",
  }).trim();
}
