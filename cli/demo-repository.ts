/** The demo's Git repository: a bare one with a webhook, and a clone of it with the example project. */
import { execFile } from "node:child_process";
import { chmod, cp, mkdir, writeFile } from "node:fs/promises";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const example = fileURLToPath(new URL("../examples/hello-slipway", import.meta.url));
const hook = fileURLToPath(new URL("post-receive.cjs", import.meta.url));

export interface DemoRepository {
  /** The bare repository, what the server clones. */
  readonly bare: string;
  /** A clone to work in and push from. */
  readonly clone: string;
}

/** Runs git with nothing of the user's configuration, so that a signing key or a template of theirs has no say. */
export async function git(
  directory: string,
  environment: NodeJS.ProcessEnv,
  ...args: readonly string[]
): Promise<string> {
  const env = {
    ...environment,
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_CONFIG_NOSYSTEM: "1",
    GIT_TERMINAL_PROMPT: "0",
    GIT_AUTHOR_NAME: "Slipway demo",
    GIT_AUTHOR_EMAIL: "demo@slipway.invalid",
    GIT_COMMITTER_NAME: "Slipway demo",
    GIT_COMMITTER_EMAIL: "demo@slipway.invalid",
    PATH: `${environment["PATH"] ?? ""}${delimiter}/usr/bin`,
  };
  for (const name of ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"]) Reflect.deleteProperty(env, name);
  const { stdout, stderr } = await promisify(execFile)("git", ["-C", directory, ...args], { env });
  return stdout + stderr;
}

/** Creates the bare repository and the clone with one commit, not pushed yet. */
export async function createRepository(directory: string, environment: NodeJS.ProcessEnv): Promise<DemoRepository> {
  const bare = join(directory, "hello-slipway.git");
  const clone = join(directory, "hello-slipway");
  await mkdir(directory, { recursive: true });
  await git(directory, environment, "init", "--quiet", "--bare", "--template=", "--initial-branch=main", bare);
  await cp(example, clone, { recursive: true });
  await git(clone, environment, "init", "--quiet", "--template=", "--initial-branch=main");
  // So that pushing by hand (--keep) works on a machine where Git does not know who is at the keyboard.
  await git(clone, environment, "config", "user.name", "Slipway demo");
  await git(clone, environment, "config", "user.email", "demo@slipway.invalid");
  await git(clone, environment, "remote", "add", "origin", bare);
  await git(clone, environment, "config", "branch.main.remote", "origin");
  await git(clone, environment, "config", "branch.main.merge", "refs/heads/main");
  await git(clone, environment, "add", "--all");
  await git(clone, environment, "commit", "--quiet", "--message=Compare, bump and sort semantic versions");
  return { bare, clone };
}

/** Installs the hook that tells Slipway about each push. */
export async function installHook(
  bare: string,
  environment: NodeJS.ProcessEnv,
  webhook: { readonly url: string; readonly secret: string },
): Promise<void> {
  await git(bare, environment, "config", "slipway.webhook", webhook.url);
  await git(bare, environment, "config", "slipway.secret", webhook.secret);
  const path = join(bare, "hooks/post-receive");
  await mkdir(dirname(path), { recursive: true });
  const quoted = [process.execPath, hook].map((word) => `'${word.replaceAll("'", "'\\''")}'`);
  await writeFile(path, `#!/bin/sh\nexec ${quoted.join(" ")}\n`);
  await chmod(path, 0o755);
}
