/** Submodules, checked out without `git submodule`, which would run what a repository's configuration says. */
import { lstatSync } from "node:fs";
import { basename, join } from "node:path";
import { checkoutRepository, type CheckoutScope, type Source } from "./checkout.ts";
import { CheckoutError } from "./checkout-error.ts";
import { CloneUrlError, resolveSubmoduleUrl, withoutCredentials } from "./clone-url.ts";
import { answeringGit, shortenGitMessage } from "./git.ts";
import { asError } from "./cause.ts";

/** Deeper nesting than any real project's; a repository that contains itself would never end. */
const maxDepth = 8;
const maxSubmodules = 200;
const atOnce = 4;
/** Below the mirrors; no mirror is called so, for their names end in `.git`. */
const untrustedMirrors = "untrusted";

interface Submodule {
  readonly path: string;
  readonly url: string;
}

/**
 * Checks out the submodules of a work tree that git has just written, and theirs.
 *
 * Only entries of .gitmodules whose path is a commit in the tree count, as with git. Each submodule has its own `.git` directory
 * in place, so that none of its names becomes a path below the parent's.
 *
 * @throws {CheckoutError} With status `failure` if one is not allowed or does not exist.
 */
export async function checkoutSubmodules(
  parent: Source,
  workTree: string,
  scope: CheckoutScope,
  parents: readonly Source[],
): Promise<void> {
  const signal = scope.signal === undefined ? {} : { signal: scope.signal };
  const git = answeringGit({ gitDir: join(workTree, ".git"), ...signal });
  let submodules: Submodule[];
  let commits: Map<string, string>;
  try {
    // By blob: a .gitmodules that is a symbolic link is not followed.
    submodules = parseModules(await git.raw(["config", "--blob", `${parent.commit}:.gitmodules`, "-z", "--list"]));
    if (submodules.length === 0) return;
    const paths = submodules.map(({ path }) => path);
    commits = parseTree(await git.raw(["--literal-pathspecs", "ls-tree", "-z", parent.commit, "--", ...paths]));
  } catch (error) {
    scope.signal?.throwIfAborted();
    throw failure(`Cannot read .gitmodules of "${parent.url.url}": ${shortenGitMessage(asError(error).message)}`);
  }
  const present = submodules.filter(({ path }) => commits.has(path));
  if (present.length > maxSubmodules) {
    throw failure(`Cannot check out ${present.length} submodules of "${parent.url.url}": at most ${maxSubmodules} are`);
  }
  if (present.length > 0 && parents.length >= maxDepth) {
    throw failure(`Cannot check out submodules of "${parent.url.url}": they are nested deeper than ${maxDepth}`);
  }
  const waiting = present.values();
  const work = async () => {
    for (const submodule of waiting) {
      await checkoutSubmodule(submodule, commits.get(submodule.path)!, { parent, workTree, scope, parents });
    }
  };
  const results = await Promise.allSettled(Array.from({ length: atOnce }, work));
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

interface SubmoduleContext {
  readonly parent: Source;
  readonly workTree: string;
  readonly scope: CheckoutScope;
  readonly parents: readonly Source[];
}

async function checkoutSubmodule({ path, url }: Submodule, commit: string, context: SubmoduleContext): Promise<void> {
  const { parent, workTree, scope, parents } = context;
  const where = `submodule "${path.replaceAll(/\p{Cc}/gu, "?")}"`;
  requireRealDirectory(workTree, path, where);
  try {
    const resolved = resolveSubmoduleUrl(parent.url, url);
    const source = { url: scope.untrusted ? withoutCredentials(resolved) : resolved, commit };
    await checkoutRepository(source, join(workTree, path), submoduleScope(scope), [...parents, parent]);
  } catch (error) {
    if (error instanceof CloneUrlError) throw failure(`${where}: ${error.message}`);
    if (error instanceof CheckoutError)
      throw new CheckoutError(error.status, `${where}: ${error.message}`, { cause: error });
    throw error;
  }
}

/** What mirrors have was fetched with credentials that a stranger's submodule does not get: such have mirrors of their own. */
function submoduleScope(scope: CheckoutScope): CheckoutScope {
  const { untrusted, mirrorsDir } = scope;
  if (!untrusted || basename(mirrorsDir) === untrustedMirrors) return scope;
  return { ...scope, mirrorsDir: join(mirrorsDir, untrustedMirrors) };
}

/** Git has made the directory; that nothing on the way to it is a link is checked all the same before we write there. */
function requireRealDirectory(workTree: string, path: string, where: string): void {
  let at = workTree;
  for (const part of path.split("/")) {
    if (part === "" || part === "." || part === ".." || part.toLowerCase() === ".git") {
      throw failure(`${where}: its path is not allowed`);
    }
    at = join(at, part);
    if (!lstatSync(at, { throwIfNoEntry: false })?.isDirectory()) throw failure(`${where}: its path is no directory`);
  }
}

/** `submodule.<name>.path\n<value>\0…`; names may hold dots, and later entries win, as in git. */
function parseModules(list: string): Submodule[] {
  const byName = new Map<string, { path?: string; url?: string }>();
  for (const entry of list.split("\0")) {
    const [, name, key, value] = /^submodule\.([^]*)\.(path|url)\n([^]*)$/.exec(entry) ?? [];
    if (name === undefined || value === undefined) continue;
    byName.set(name, { ...byName.get(name), [key === "path" ? "path" : "url"]: value });
  }
  const modules: Submodule[] = [];
  for (const { path, url } of byName.values()) {
    if (path !== undefined && path !== "" && url !== undefined) modules.push({ path: path.replace(/\/+$/, ""), url });
  }
  return modules;
}

/** `160000 commit <id>\t<path>\0…`: the entries that are commits. */
function parseTree(list: string): Map<string, string> {
  const commits = new Map<string, string>();
  for (const entry of list.split("\0")) {
    const [, id, path] = /^160000 commit ([0-9a-f]+)\t([^]+)$/.exec(entry) ?? [];
    if (id !== undefined && path !== undefined) commits.set(path, id);
  }
  return commits;
}

function failure(message: string): CheckoutError {
  return new CheckoutError("failure", message);
}
