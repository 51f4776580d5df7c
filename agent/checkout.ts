/** Makes a workspace: the files of one commit, and a repository in which git works inside a container. */
import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { CheckoutError } from "./checkout-error.ts";
import { type CloneUrl, CloneUrlError, parseCloneUrl } from "./clone-url.ts";
import { GitError, runGit, shortenGitMessage } from "./git.ts";
import { fetchLargeFiles } from "./large-files.ts";
import { Mirror } from "./mirror.ts";
import { createRepository, isCode, writeRefs } from "./repository.ts";
import { checkoutSubmodules } from "./submodules.ts";

export interface CheckoutOptions {
  readonly mirrorsDir: string;
  readonly repositoryId: string;
  /** May carry a user and password; they go to git's environment only, never into the workspace or a message. */
  readonly cloneUrl: string;
  /** 40 or 64 hexadecimal digits. */
  readonly commit: string;
  /** A full ref name that contains the commit, for hosts that do not give out commits by id. */
  readonly ref?: string;
  /** Made by the checkout if it is missing; its parent exists, and it is empty. */
  readonly workspaceDir: string;
  /** @default true */
  readonly submodules?: boolean;
  /**
   * The commit may be a stranger's: nothing that its files name is fetched with the agent's credentials, or out of what was
   * fetched with them. @default false
   */
  readonly untrusted?: boolean;
  /** For each repository, submodules included. @default 30 minutes */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** What all repositories of one checkout share. */
export interface CheckoutScope {
  readonly mirrorsDir: string;
  readonly repositoryId: string;
  readonly submodules: boolean;
  readonly untrusted: boolean;
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

export interface Source {
  readonly url: CloneUrl;
  readonly commit: string;
  readonly ref?: string;
}

const damaged = /unable to read|bad object|corrupt|failed to unpack tree object|packfile|loose object|invalid object/i;

/**
 * Checks out one commit, with its submodules, fetching only what the mirrors on this machine lack.
 *
 * HEAD is detached at the commit; branches are `origin/…`, tags are there, history is complete. The workspace has the mirror's
 * packs as its own, so git works in a container, where the mirror cannot be seen. After a step has run, git must not be run in the workspace by the agent any more: its
 * configuration is the step's then.
 *
 * @throws {CheckoutError} Whose `status` says whose matter it is.
 * @throws The signal's reason, if it was aborted.
 */
export async function checkout(options: CheckoutOptions): Promise<void> {
  const { commit, ref, workspaceDir } = options;
  if (!/^(?:[0-9a-f]{40}|[0-9a-f]{64})$/.test(commit)) {
    throw new CheckoutError(
      "failure",
      `Cannot check out "${commit.slice(0, 100)}": a commit is 40 or 64 hexadecimal digits`,
    );
  }
  const url = parse(options.cloneUrl);
  const scope: CheckoutScope = {
    mirrorsDir: options.mirrorsDir,
    repositoryId: options.repositoryId,
    submodules: options.submodules ?? true,
    untrusted: options.untrusted ?? false,
    timeoutMs: options.timeoutMs ?? 30 * 60_000,
    ...(options.signal !== undefined && { signal: options.signal }),
  };
  const source = { url, commit, ...(ref !== undefined && isPlainRef(ref) && { ref }) };
  mkdirSync(workspaceDir, { recursive: true, mode: 0o755 });
  await checkoutRepository(source, workspaceDir, scope, []);
}

/**
 * @param workTree Exists and is empty.
 * @param parents The repositories whose submodule this is, outermost first.
 */
export async function checkoutRepository(
  source: Source,
  workTree: string,
  scope: CheckoutScope,
  parents: readonly Source[],
): Promise<void> {
  const mirror = new Mirror({ ...scope, url: source.url });
  const request = {
    ...source,
    timeoutMs: scope.timeoutMs,
    ...(scope.signal !== undefined && { signal: scope.signal }),
  };
  await mirror.fetch(request);
  const deadline = AbortSignal.timeout(scope.timeoutMs);
  const signal = scope.signal === undefined ? deadline : AbortSignal.any([scope.signal, deadline]);
  try {
    await fillWorkTree(mirror, source, workTree, signal);
  } catch (error) {
    scope.signal?.throwIfAborted();
    if (deadline.aborted)
      throw new CheckoutError("failure", `${action(source)}: it was not done in time`, { cause: error });
    if (!(error instanceof GitError) || !damaged.test(error.message)) throw explain(error, source);
    // The mirror is damaged, by a power cut most likely: once more with a new one.
    await mirror.discard();
    await mirror.fetch(request);
    // Not the directory itself: a container may have it mounted already.
    for (const name of readdirSync(workTree)) rmSync(join(workTree, name), { recursive: true, force: true });
    await fillWorkTree(mirror, source, workTree, signal).catch((again) => {
      throw explain(again, source);
    });
  }
  await fetchLargeFiles(mirror, source, workTree, scope);
  if (scope.submodules && existsSync(join(workTree, ".gitmodules"))) {
    await checkoutSubmodules(source, workTree, scope, parents);
  }
}

async function fillWorkTree(
  mirror: Mirror,
  source: Source,
  workTree: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const gitDir = join(workTree, ".git");
  await makeRepository(mirror, source, gitDir);
  await runGit(["read-tree", "--reset", "-u", source.commit], {
    gitDir,
    workTree,
    ...(signal !== undefined && { signal }),
  });
}

async function makeRepository(mirror: Mirror, source: Source, gitDir: string): Promise<void> {
  const { commit, url } = source;
  for (let tries = 1; ; tries++) {
    createRepository(gitDir, { commit, bare: false, head: commit, originUrl: url.url });
    try {
      // Refs first: objects they name are then among the packs.
      writeRefs(gitDir, workspaceRefs(mirror.refs(), source));
      await mirror.copyPacks(gitDir);
      return;
    } catch (error) {
      if (!isCode(error, "ENOENT") || tries === 5) throw error;
      rmSync(gitDir, { recursive: true });
    }
  }
}

/** What `git fetch` in an ordinary clone would have made, with the event's branch at the event's commit. */
function workspaceRefs(mirrored: ReadonlyMap<string, string>, { commit, ref }: Source): Map<string, string> {
  const refs = new Map<string, string>();
  for (const [name, id] of mirrored) refs.set(toWorkspaceRef(name), id);
  if (ref !== undefined && ref.startsWith("refs/heads/")) refs.set(toWorkspaceRef(ref), commit);
  return refs;
}

function toWorkspaceRef(name: string): string {
  return name.replace(/^refs\/heads\//, "refs/remotes/origin/");
}

function parse(cloneUrl: string): CloneUrl {
  try {
    return parseCloneUrl(cloneUrl);
  } catch (error) {
    if (error instanceof CloneUrlError) throw new CheckoutError("error", error.message, { cause: error });
    throw error;
  }
}

/** Whether git would take this for exactly one ref; anything else in its place is ignored, the commit is what counts. */
function isPlainRef(ref: string): boolean {
  const parts = ref.split("/");
  return (
    parts[0] === "refs" &&
    parts.length > 2 &&
    ref.length < 1000 &&
    !/[\p{Cc} ~^:?*[\\]|\.\.|@\{/u.test(ref) &&
    parts.every((part) => part !== "" && !part.startsWith(".") && !part.endsWith(".") && !part.endsWith(".lock"))
  );
}

function explain(error: unknown, source: Source): unknown {
  if (!(error instanceof GitError)) return error;
  const words = shortenGitMessage(error.message);
  const status = /no space left|disk quota|input\/output error|memory/i.test(words) ? "error" : "failure";
  return new CheckoutError(status, `${action(source)}: ${words}`, { cause: error });
}

function action({ commit, url }: Source): string {
  return `Cannot check out commit ${commit} of "${url.url}"`;
}
