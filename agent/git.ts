/** Runs git so that nothing but its arguments decides what it does: no configuration of the host, no hooks, no prompts. */
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { type SimpleGit, simpleGit } from "simple-git";
import type { CloneUrl } from "./clone-url.ts";

export interface GitOptions {
  /** The repository; never discovered, so that none above it or inside a workspace is taken by mistake. */
  readonly gitDir: string;
  readonly workTree?: string;
  /** The remote of this command: its transport is the only one allowed and its credentials go along. */
  readonly remote?: CloneUrl;
  /** Beside what every git here runs with. */
  readonly config?: Readonly<Record<string, string>>;
  /** Aborting ends git and all its children. */
  readonly signal?: AbortSignal;
}

/** Git failed. `message` is its own last words; the caller removes credentials and control characters. */
export class GitError extends Error {
  override readonly name = "GitError";
  /** `fetch` */
  readonly command: string;

  constructor(args: readonly string[], message: string) {
    super(message);
    this.command = args[0] ?? "";
  }
}

const keptStderrBytes = 16 * 1024;
const maxOutputBytes = 64 * 1024 * 1024;
/** Between asking git to end (it then deletes its temporary packs) and killing what is left of it. */
const graceMs = 3_000;

/**
 * Runs one git command and answers what it printed.
 *
 * Not through simple-git, which waits 50 ms for a command that prints nothing, and stops only git itself, not its children.
 *
 * @throws {GitError} If git ends with another exit code than 0.
 * @throws The signal's reason, if it was aborted.
 */
export async function runGit(args: readonly string[], options: GitOptions): Promise<string> {
  const { gitDir, workTree, signal } = options;
  signal?.throwIfAborted();
  const where = [`--git-dir=${gitDir}`, ...(workTree === undefined ? [] : [`--work-tree=${workTree}`])];
  const git = spawn("git", [...where, ...args], {
    cwd: workTree ?? gitDir,
    env: gitEnvironment(options),
    stdio: ["ignore", "pipe", "pipe"],
    // Its own process group: fetch runs ssh or git-remote-https, and those their own children.
    detached: true,
  });
  preferForOutOfMemory(git.pid);
  let stderr = "";
  git.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr = (stderr + text).slice(-keptStderrBytes);
  });
  const output: Buffer[] = [];
  let outputBytes = 0;
  git.stdout.on("data", (part: Buffer) => {
    outputBytes += part.length;
    if (outputBytes <= maxOutputBytes) output.push(part);
  });
  let killTimer: NodeJS.Timeout | undefined;
  const stop = () => {
    killGroup(git.pid, "SIGTERM");
    killTimer = setTimeout(() => killGroup(git.pid, "SIGKILL"), graceMs);
  };
  signal?.addEventListener("abort", stop, { once: true });
  try {
    const end = await new Promise<number | NodeJS.Signals | null>((resolve, reject) => {
      git.on("error", (error) => reject(new Error(`Cannot run git: ${error.message}; install git`, { cause: error })));
      git.on("close", (exitCode, endSignal) => resolve(exitCode ?? endSignal));
    });
    signal?.throwIfAborted();
    if (typeof end === "string") throw new GitError(args, `git was killed by ${end}, for lack of memory most likely`);
    if (end !== 0) throw new GitError(args, stderr.trim() || `git ${args[0]} ended with exit code ${end}`);
    if (outputBytes > maxOutputBytes) throw new GitError(args, `git printed more than ${maxOutputBytes} bytes`);
    return Buffer.concat(output).toString();
  } finally {
    clearTimeout(killTimer);
    signal?.removeEventListener("abort", stop);
  }
}

/** simple-git for reading a repository of ours and tidying it; no remote can be reached with it. */
export function answeringGit({ gitDir, signal }: Pick<GitOptions, "gitDir" | "signal">): SimpleGit {
  const env = { ...gitEnvironment({}), GIT_DIR: gitDir };
  return simpleGit({
    baseDir: gitDir,
    allowEnvironment: Object.keys(env),
    // What simple-git warns of is set here to switch things off: hooks, askpass, the host's configuration.
    unsafe: {
      allowUnsafeAskPass: true,
      allowUnsafeConfigEnvCount: true,
      allowUnsafeConfigPaths: true,
      allowUnsafeFsMonitor: true,
      allowUnsafeHooksPath: true,
      allowUnsafeSshCommand: true,
      allowUnsafeCredentialHelper: true,
    },
    ...(signal !== undefined && { abort: signal }),
  }).env(env);
}

/** A commit whose trees repeat themselves makes git want any amount of memory; the kernel then ends git, not the agent. */
function preferForOutOfMemory(pid: number | undefined): void {
  try {
    if (pid !== undefined) writeFileSync(`/proc/${pid}/oom_score_adj`, "1000");
  } catch {
    // It has ended already.
  }
}

function killGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // The whole group has ended.
  }
}

/** The configuration every git here runs with; what a repository's own says is ours as well, no stranger writes it. */
const standardConfig: Readonly<Record<string, string>> = {
  "core.hooksPath": "/dev/null",
  "core.fsmonitor": "false",
  // Unlike configuration files, these have defaults below the home directory.
  "core.attributesFile": "/dev/null",
  "core.excludesFile": "/dev/null",
  "core.protectHFS": "true",
  "core.protectNTFS": "true",
  "credential.helper": "",
  "gc.auto": "0",
  "maintenance.auto": "false",
  // One pack for each fetch, however small: a workspace is made by copying packs.
  "fetch.unpackLimit": "1",
  "fetch.recurseSubmodules": "false",
  "submodule.recurse": "false",
  // A host that sends nothing for a minute is given up; time limits bound the rest.
  "http.lowSpeedLimit": "1000",
  "http.lowSpeedTime": "60",
  // Several processes write a large tree; below the threshold starting them takes longer than it saves.
  "checkout.workers": "0",
  "checkout.thresholdForParallelism": "1000",
};

const inheritedNames =
  /^(?:PATH|HOME|TMPDIR|SSH_AUTH_SOCK|SSL_CERT_FILE|SSL_CERT_DIR|CURL_CA_BUNDLE|(?:https?|all|no)_proxy)$/i;

function gitEnvironment({ remote, config }: Pick<GitOptions, "remote" | "config">): Record<string, string> {
  const settings: Record<string, string> = { ...standardConfig, ...config };
  if (remote?.header !== undefined) settings[`http.${remote.header.origin}/.extraHeader`] = remote.header.value;
  // In the environment, not on the command line, which every user of the machine can read.
  const entries = Object.entries(settings);
  return {
    HOME: homedir(),
    ...Object.fromEntries(Object.entries(process.env).filter(([name, value]) => inheritedNames.test(name) && value)),
    // There may be a .netrc.
    ...(remote?.isAnonymous === true && { HOME: "/nonexistent" }),
    LC_ALL: "C",
    GIT_CONFIG_NOSYSTEM: "1",
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_ATTR_NOSYSTEM: "1",
    GIT_NO_REPLACE_OBJECTS: "1",
    GIT_TERMINAL_PROMPT: "0",
    GIT_ASKPASS: "true",
    GIT_SSH_COMMAND:
      "ssh -oBatchMode=yes -oConnectTimeout=15 -oServerAliveInterval=15 -oStrictHostKeyChecking=accept-new",
    GIT_ALLOW_PROTOCOL: allowedTransports(remote),
    GIT_CONFIG_COUNT: String(entries.length),
    ...Object.fromEntries(
      entries.flatMap(([key, value], index) => [
        [`GIT_CONFIG_KEY_${index}`, key],
        [`GIT_CONFIG_VALUE_${index}`, value],
      ]),
    ),
  };
}

/** A host may redirect from http to https, never to another transport. */
function allowedTransports(remote: CloneUrl | undefined): string {
  if (remote === undefined) return "none";
  return remote.transport === "http" ? "http:https" : remote.transport;
}

/** What a person needs of git's words, on one line. */
export function shortenGitMessage(message: string): string {
  const lines = message.split(/[\r\n]+/).map((line) => line.replaceAll(/\p{Cc}/gu, " ").trim());
  const telling = lines.filter((line) => /^(?:fatal|error|remote|ssh)\b|denied|refused/i.test(line));
  return (telling.length > 0 ? telling : lines.filter(Boolean))
    .map((line) => line.replace(/^(?:fatal|error): /, ""))
    .join("; ")
    .slice(0, 600);
}
