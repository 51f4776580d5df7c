/** Git LFS: replaces pointer files by what they point to, if this machine has git-lfs. */
import { accessSync, constants, existsSync, lutimesSync, rmSync } from "node:fs";
import { delimiter, join } from "node:path";
import type { CheckoutScope, Source } from "./checkout.ts";
import { CheckoutError } from "./checkout-error.ts";
import { CloneUrlError, redact, resolveSubmoduleUrl } from "./clone-url.ts";
import { answeringGit, GitError, type GitOptions, runGit, shortenGitMessage } from "./git.ts";
import type { Mirror } from "./mirror.ts";

/**
 * Fetches the large files of a work tree that git has just written; each is downloaded once per mirror.
 *
 * `git lfs pull` is not used: writing files is left to git, which does not write through links that a repository brings along
 * (CVE-2025-26625), and git-lfs only downloads and filters.
 *
 * @throws {CheckoutError} If they cannot be had.
 */
export async function fetchLargeFiles(
  mirror: Mirror,
  source: Source,
  workTree: string,
  { signal, untrusted }: Pick<CheckoutScope, "signal" | "untrusted">,
): Promise<void> {
  if (!hasGitLfs()) return;
  const options: GitOptions = {
    gitDir: join(workTree, ".git"),
    workTree,
    remote: source.url,
    config: {
      // With a remote on this machine git-lfs would take this for the remote's storage, too; copying is cheap there.
      ...(source.url.transport !== "file" && { "lfs.storage": join(mirror.dir, "lfs") }),
      "filter.lfs.process": "git-lfs filter-process",
      "filter.lfs.smudge": "git-lfs smudge -- %f",
      "filter.lfs.clean": "git-lfs clean -- %f",
      "filter.lfs.required": "true",
    },
    ...(signal !== undefined && { signal }),
  };
  try {
    const list = await runGit(["ls-files", "-z", "--", ":(top,attr:filter=lfs)"], options);
    const paths = list.split("\0").filter(Boolean);
    if (paths.length === 0) return;
    if (existsSync(join(workTree, ".lfsconfig"))) await checkAddresses(source, { ...options, untrusted });
    await runGit(["lfs", "fetch", "origin", source.commit], options);
    // What is up to date, as pointers are, git would not write again.
    for (const path of paths) rmSync(join(workTree, path), { force: true });
    await runGit(["checkout-index", "--force", "--index", "--all"], options);
    // What is as young as the index, git compares by content ("racy git", in whole seconds where it is built so), and without
    // git-lfs in the container finds it changed.
    const past = Date.now() / 1000 - 10;
    for (const path of paths) lutimesSync(join(workTree, path), past, past);
    await runGit(["update-index", "-q", "--refresh"], options);
  } catch (error) {
    signal?.throwIfAborted();
    throw explain(error, source);
  }
}

/** A repository may say where its large files are; not: on the agent's machine. A stranger's commit says nothing. */
async function checkAddresses(
  source: Source,
  { untrusted, ...options }: GitOptions & { readonly untrusted: boolean },
): Promise<void> {
  const text = await answeringGit(options).raw(["config", "--blob", `${source.commit}:.lfsconfig`, "-z", "--list"]);
  for (const entry of text.split("\0")) {
    const [, address] = /^(?:lfs\.(?:push)?url|remote\.[^\n]*\.lfs(?:push)?url)\n([^]*)$/.exec(entry) ?? [];
    if (address === undefined) continue;
    resolveSubmoduleUrl(source.url, address);
    // Git would send the repository's credentials to any address of the same server.
    if (untrusted)
      throw new CloneUrlError("its .lfsconfig names another address, which is not used for a stranger's commit");
  }
}

function explain(error: unknown, { commit, url }: Source): unknown {
  const what = `Cannot fetch the large files of commit ${commit} of "${url.url}"`;
  if (error instanceof CloneUrlError)
    return new CheckoutError("failure", `${what}: ${error.message}`, { cause: error });
  if (!(error instanceof GitError)) return error;
  const words = redact(shortenGitMessage(error.message), url);
  const status = /not found|does not exist|missing/i.test(error.message) ? "failure" : "error";
  return new CheckoutError(status, `${what}: ${words}`, { cause: error });
}

let found: boolean | undefined;

function hasGitLfs(): boolean {
  return (found ??= (process.env["PATH"] ?? "").split(delimiter).some((dir) => isExecutable(join(dir, "git-lfs"))));
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
