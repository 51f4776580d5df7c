/**
 * ADD of Git repositories: `https://host/owner/name.git#ref:directory`.
 *
 * Git runs in a container with the network of the build's commands: it meets the repository of a stranger, and the agent's
 * own credentials are not there.
 */
import { createHash } from "node:crypto";
import { chmodSync } from "node:fs";
import { ExecError, resolveImage, runContainer } from "../runtime/index.ts";
import type { FetchContext, FetchedTree, FetchOptions } from "./download.ts";
import { OperationError } from "./operation.ts";
import { scratchDirectory } from "./scratch.ts";

interface GitUrl {
  readonly remote: string;
  readonly ref: string | undefined;
  readonly directory: string;
  /** The commit that it must be, or how that begins. */
  readonly commit: string | undefined;
}

/** Whether ADD takes a URL for a repository: one of a file has no `.git` at the end of its path. */
export function isGitUrl(url: string): boolean {
  return parseGitUrl(url) !== undefined;
}

/** @throws {OperationError} If the URL asks for something that is not known. */
function parseGitUrl(url: string): GitUrl | undefined {
  if (/^(?:ssh:\/\/|git@)/.test(url)) return { remote: url, ref: undefined, directory: "", commit: undefined };
  const match = /^((?:https?|git):\/\/[^#?\s]+)(?:\?([^#\s]*))?(?:#([^:\s]*)(?::(.*))?)?$/.exec(url);
  if (match === null) return undefined;
  const [, remote = "", query = "", ref, directory] = match;
  if (!remote.endsWith(".git") && !remote.startsWith("git://")) return undefined;
  const asked = readQuery(url, query);
  return {
    remote,
    ref: (ref || undefined) ?? asked.get("ref"),
    directory: (directory || undefined) ?? asked.get("subdir") ?? "",
    commit: asked.get("commit"),
  };
}

const queryKeys = new Map([
  ["ref", "ref"],
  ["branch", "ref"],
  ["tag", "ref"],
  ["subdir", "subdir"],
  ["checksum", "commit"],
  ["commit", "commit"],
]);

/** What BuildKit reads behind a question mark. */
function readQuery(url: string, query: string): ReadonlyMap<string, string> {
  const asked = new Map<string, string>();
  for (const [key, value] of new URLSearchParams(query)) {
    const name = queryKeys.get(key);
    const text = key === "branch" ? `refs/heads/${value}` : key === "tag" ? `refs/tags/${value}` : value;
    if (name === undefined || (asked.has(name) && asked.get(name) !== text)) {
      throw new OperationError(`${url} cannot be fetched: ${JSON.stringify(`${key}=${value}`)} is not understood`, {
        suggestion: "write one of ref, branch and tag, subdir, commit; or #ref:subdir",
      });
    }
    if (value !== "") asked.set(name, text);
  }
  return asked;
}

/** Prints the commit and when it was made; leaves its files in the working directory. */
const script = `
set -eu
git init -q -b main .
git remote add origin -- "$REMOTE"
git fetch -q --depth 1 --no-tags -- origin "$REF" || git fetch -q -- origin "$REF"
git -c advice.detachedHead=false checkout -q FETCH_HEAD
git -c protocol.file.allow=never submodule --quiet update --init --recursive --depth 1
git log -1 --format='%H %ct'
if [ "$KEEP" = no ]; then find . -name .git -prune -exec rm -rf {} +; fi
`;

/**
 * Fetches the files of a commit.
 *
 * @param options.stack Deletes them at the end of the build.
 * @throws {OperationError} If that is not possible.
 */
export async function cloneRepository(
  url: string,
  options: FetchOptions & { readonly context: FetchContext; readonly stack: AsyncDisposableStack },
): Promise<FetchedTree> {
  const parsed = parseGitUrl(url) as GitUrl;
  if (!/^(?:https?|git):/.test(parsed.remote)) {
    throw new OperationError(`${url} cannot be fetched: ssh is not supported`, {
      suggestion: "write its https address",
    });
  }
  const { keepGitDir, context, stack } = options;
  const checksum = (options.checksum || undefined) ?? parsed.commit;
  const directory = scratchDirectory(context.machine.stateDir, "git", stack);
  chmodSync(directory, 0o755);
  const ref = parsed.ref ?? "HEAD";
  const env = { REMOTE: parsed.remote, REF: ref, KEEP: keepGitDir ? "yes" : "no" };
  const [commit = "", time] = (await runGit(script, { directory, context, env })).split(" ");
  if (checksum !== undefined && !commit.startsWith(checksum)) {
    throw new OperationError(`${url} is at the commit ${commit}, expected is ${checksum}`);
  }
  const key = createHash("sha256")
    .update(JSON.stringify([commit, parsed.directory, keepGitDir]))
    .digest("hex");
  const inside = parsed.directory.split("/").filter((component) => component !== "" && component !== ".");
  if (inside.includes("..")) throw new OperationError(`${url} names a directory outside of the repository`);
  return { kind: "tree", key, directory, inside: inside.join("/"), mtimeSeconds: Number(time) };
}

async function runGit(
  text: string,
  {
    directory,
    context,
    env,
  }: {
    readonly directory: string;
    readonly context: FetchContext;
    readonly env: Readonly<Record<string, string>>;
  },
): Promise<string> {
  const { machine, resources, signal, cache } = context;
  const { host, uidRange, network } = await machine.open();
  await host.workspaces.give({ dir: directory }, uidRange);
  const image = await resolveImage("host", { baseDir: directory, storeDir: host.imageStoreDir, lease: cache.lease });
  const output = { stdout: "", stderr: "" };
  try {
    await using container = await runContainer(host, {
      id: `build-git-${crypto.randomUUID()}`,
      image,
      uidRange,
      workspace: { dir: directory },
      args: ["/bin/sh", "-c", text],
      env: { PATH: "/usr/local/bin:/usr/bin:/bin", HOME: "/tmp", GIT_TERMINAL_PROMPT: "0", LC_ALL: "C", ...env },
      resources,
      network,
      output: (stream, chunk) => {
        if (output[stream].length < 10_000) output[stream] += Buffer.from(chunk).toString();
      },
      signal,
    });
    const result = await container.result;
    signal.throwIfAborted();
    if (result.reason === "exited" && result.exitCode === 0) return output.stdout.trim();
  } catch (error) {
    if (!(error instanceof ExecError)) throw error;
    output.stderr = error.message;
  }
  const reason = output.stderr
    .trim()
    .split("\n")
    .slice(-2)
    .join(" ")
    .replaceAll(/[^\x20-\x7e]/g, "?");
  throw new OperationError(`${env["REMOTE"]} cannot be fetched: ${reason}`);
}
