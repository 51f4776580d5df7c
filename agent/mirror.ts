/** A bare copy of one repository on this machine, from which workspaces are made. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { asError } from "./cause.ts";
import { CheckoutError } from "./checkout-error.ts";
import { type CloneUrl, redact } from "./clone-url.ts";
import { answeringGit, GitError, runGit, shortenGitMessage } from "./git.ts";
import { withMirrorLock } from "./mirror-lock.ts";
import { hasObject } from "./pack-index.ts";
import { copyPacks, createRepository, readRefs } from "./repository.ts";

export interface MirrorKey {
  readonly mirrorsDir: string;
  /**
   * The repository on whose behalf this one is fetched. Part of the key, because what a mirror has is given out without asking
   * the host again: a stranger's submodule entry must not find what another repository's credentials fetched.
   */
  readonly repositoryId: string;
  readonly url: CloneUrl;
}

export interface FetchRequest {
  /** 40 or 64 hexadecimal digits. */
  readonly commit: string;
  /** A full ref name that may contain the commit, for hosts that do not give out commits by id. */
  readonly ref?: string;
  readonly signal?: AbortSignal;
  readonly timeoutMs: number;
}

const repackAtPacks = 16;
const packRefsAtLooseRefs = 200;
/** The object file or ref is not as it should be: a power cut, a full disk. The mirror is only a copy: made anew. */
const damaged =
  /corrupt|bad object|loose object|packfile|object file .* is empty|unable to read|invalid sha1 pointer|\.lock'/i;
const refusedCommit =
  /not our ref|unadvertised object|couldn't find remote ref|no such remote ref|remote error: .*not our/i;

/**
 * The mirror of one repository.
 *
 * Readers need no lock: packs and refs appear whole. It has all branches and tags of its repository, as they were when it was
 * last asked for a commit it did not have, and forgets no object: a build can be run again after its branch is gone.
 */
export class Mirror {
  readonly dir: string;
  readonly #url: CloneUrl;
  /** Settles when background tidying is over; tests wait for it. */
  tidied: Promise<void> = Promise.resolve();

  constructor({ mirrorsDir, repositoryId, url }: MirrorKey) {
    const key = createHash("sha256").update(`${repositoryId}\0${url.url}`).digest("hex").slice(0, 20);
    // The readable part is for whoever looks into the directory; the key alone tells mirrors apart.
    const name = /([^/:]+?)(?:\.git)?\/*$/.exec(url.url)?.[1] ?? "";
    mkdirSync(mirrorsDir, { recursive: true, mode: 0o700 });
    this.dir = join(mirrorsDir, `${name.replaceAll(/[^\w.-]/g, "_").slice(0, 60)}-${key}.git`);
    this.#url = url;
  }

  has(commit: string): boolean {
    return hasObject(join(this.dir, "objects"), commit);
  }

  /** Branches and tags as of the last fetch: full name to object id. */
  refs(): Map<string, string> {
    return readRefs(this.dir);
  }

  /** @throws {Error} `ENOENT` if it was repacked meanwhile. */
  async copyPacks(targetGitDir: string): Promise<void> {
    await copyPacks(this.dir, targetGitDir);
  }

  /**
   * Fetches a commit unless it is here.
   *
   * @throws {CheckoutError} If it does not exist, or the repository cannot be reached or refuses.
   * @throws The signal's reason, if it was aborted.
   */
  async fetch(request: FetchRequest): Promise<void> {
    if (this.has(request.commit)) return;
    const deadline = AbortSignal.timeout(request.timeoutMs);
    const signal = request.signal === undefined ? deadline : AbortSignal.any([request.signal, deadline]);
    try {
      await withMirrorLock(
        `${this.dir}.lock`,
        async () => {
          // Another job of the same build waited for the same commit, most likely.
          if (this.has(request.commit)) return;
          await this.#fetchOrStartOver({ ...request, signal });
        },
        signal,
      );
    } catch (error) {
      request.signal?.throwIfAborted();
      throw this.#explain(error, request, deadline.aborted);
    }
    this.tidied = this.#tidy();
  }

  /** Throws the mirror away, so that the next fetch makes a new one. */
  async discard(): Promise<void> {
    await withMirrorLock(`${this.dir}.lock`, () => this.#remove());
  }

  async #fetchOrStartOver(request: FetchRequest): Promise<void> {
    this.#create(request.commit);
    try {
      await this.#fetchSomehow(request);
    } catch (error) {
      if (!(error instanceof GitError) || !damaged.test(error.message)) throw error;
      await this.#remove();
      this.#create(request.commit);
      await this.#fetchSomehow(request);
    }
  }

  #create(commit: string): void {
    // packed-refs, config, HEAD: config is written last.
    if (existsSync(join(this.dir, "config"))) return;
    createRepository(this.dir, { commit, bare: true, head: "ref: refs/heads/main" });
  }

  async #remove(): Promise<void> {
    const aside = `${this.dir}.${process.pid}.old`;
    await rename(this.dir, aside).catch(() => {});
    await rm(aside, { recursive: true, force: true });
  }

  /** Everything in one command; with a host that does not give out commits by id, by all refs that may have it. */
  async #fetchSomehow({ commit, ref, signal }: FetchRequest): Promise<void> {
    const all = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
    try {
      await this.#fetchOnce([...all, commit], signal);
    } catch (error) {
      if (!(error instanceof GitError) || !refusedCommit.test(error.message)) throw error;
      await this.#fetchOnce(all, signal);
      const special = ref !== undefined && !/^refs\/(?:heads|tags)\//.test(ref);
      if (!this.has(commit) && special) await this.#fetchOnce([`+${ref}:refs/slipway/${digest(ref)}`], signal);
      if (!this.has(commit)) throw error;
    }
  }

  async #fetchOnce(refspecs: readonly string[], signal: AbortSignal | undefined): Promise<void> {
    // --prune: a deleted branch `a` would be in the way of a new branch `a/b`.
    const options = ["--quiet", "--prune", "--no-tags", "--no-auto-maintenance", "--no-write-fetch-head", "--force"];
    await runGit(["fetch", ...options, "--no-show-forced-updates", "--", this.#url.url, ...refspecs], {
      gitDir: this.dir,
      remote: this.#url,
      ...(signal !== undefined && { signal }),
    });
  }

  #explain(thrown: unknown, { commit, timeoutMs }: FetchRequest, timedOut: boolean): unknown {
    const error = asError(thrown);
    const where = `"${this.#url.url}"`;
    const cause = { cause: error };
    if (timedOut) {
      const seconds = Math.round(timeoutMs / 1000);
      return new CheckoutError("error", `Cannot fetch ${where}: it was not done within ${seconds} s`, cause);
    }
    if (!(error instanceof GitError)) return error;
    const words = redact(shortenGitMessage(error.message), this.#url);
    if (refusedCommit.test(error.message)) {
      return new CheckoutError("failure", `Cannot find commit ${commit} in ${where}: ${words}`, cause);
    }
    return new CheckoutError("error", `Cannot fetch ${where}: ${words}${advice(words)}`, cause);
  }

  /** Keeps the mirror quick, beside the job: few packs and few loose refs. What is unreachable stays. */
  async #tidy(): Promise<void> {
    try {
      const names = readdirSync(join(this.dir, "objects/pack"));
      const packs = names.filter((name) => name.endsWith(".pack")).length;
      // What a killed fetch left behind; nobody writes while the lock is held.
      const leftovers = names.filter((name) => name.startsWith("tmp_"));
      const looseRefs = readdirSync(join(this.dir, "refs"), { recursive: true }).length;
      if (packs < repackAtPacks && looseRefs < packRefsAtLooseRefs && leftovers.length === 0) return;
      await withMirrorLock(`${this.dir}.lock`, async () => {
        for (const name of leftovers) await rm(join(this.dir, "objects/pack", name), { force: true });
        const git = answeringGit({ gitDir: this.dir });
        if (looseRefs >= packRefsAtLooseRefs) await git.raw(["pack-refs", "--all"]);
        // Geometric: the big packs stay as they are.
        if (packs >= repackAtPacks) await git.raw(["repack", "-d", "--geometric=2", "--no-write-bitmap-index", "-q"]);
      });
    } catch {
      // Tidied up after the next fetch; nothing depends on it.
    }
  }
}

function digest(ref: string): string {
  return createHash("sha256").update(ref).digest("hex").slice(0, 40);
}

function advice(words: string): string {
  if (/dubious ownership/i.test(words)) {
    return "; git serves a directory to its owner only: make the agent's user its owner, or give an http or ssh URL";
  }
  if (/could not read (?:username|password)|authentication failed|permission denied/i.test(words)) {
    return "; check the credentials in the repository's clone URL";
  }
  return "";
}
