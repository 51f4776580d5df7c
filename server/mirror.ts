import { createHash } from "node:crypto";
import { mkdir, mkdtemp, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { simpleGit } from "simple-git";
import { type CloneSource, allowedTransports, parseCloneUrl, redact } from "./clone-url.ts";
import { GitObjects } from "./git-objects.ts";

/** What to find: the commit, or what the ref points to where no commit is given. */
export interface Revision {
  /** A full ref name that passed `isRefName`. */
  readonly ref: string;
  /** 40 or 64 hexadecimal digits; a tag object's id is followed to its commit. */
  readonly commit?: string | undefined;
}

export interface Commit {
  readonly id: string;
  readonly message: string;
  /** The message's first line. */
  readonly title: string;
  readonly author: string;
}

/** A file of a commit: its bytes, or why there is none; `undefined` if the commit does not have it. */
export type CommitFile = { readonly bytes: Uint8Array } | { readonly problem: string } | undefined;

/** The commit cannot be had; the message is for the build's page and holds no credentials. */
export class MirrorError extends Error {
  override readonly name = "MirrorError";
}

/** A commit older than its branch's tip by more than this is not found where a host refuses to be asked for commits. */
const fallbackDepth = 200;
const maxTreeBytes = 16 << 20;
const maxCommitBytes = 1 << 20;

/**
 * The server's own bare copy of one repository: only what planning needs, the last commit of each ref without its history.
 * It is a cache: a damaged one is thrown away and fetched again. Calls must not overlap.
 */
export class Mirror implements Disposable {
  readonly #dir: string;
  readonly #source: CloneSource;
  readonly #timeoutMs: number;
  readonly #env: Readonly<Record<string, string>>;
  readonly #objects: GitObjects;
  #ready = false;

  /** @throws {CloneUrlError} If git must not be given this URL. */
  constructor(dir: string, options: { readonly cloneUrl: string; readonly timeoutMs: number }) {
    this.#dir = dir;
    this.#source = parseCloneUrl(options.cloneUrl);
    this.#timeoutMs = options.timeoutMs;
    this.#env = gitEnvironment(this.#source);
    this.#objects = new GitObjects(dir, this.#env);
  }

  /**
   * Finds a commit, fetching it only if it is not here yet.
   *
   * @throws {MirrorError} If it does not exist, or the repository refuses or takes too long.
   */
  async find(revision: Revision, signal?: AbortSignal): Promise<Commit> {
    await this.#prepare(revision.commit);
    const ownRef = `refs/slipway/${createHash("sha256").update(revision.ref).digest("hex")}`;
    const here = revision.commit && (await this.#commit(revision.commit));
    if (here) return here;
    await this.#fetchOrStartOver(revision, ownRef, signal);
    const found = await this.#commit(revision.commit ?? ownRef);
    if (found) return found;
    throw new MirrorError(
      revision.commit
        ? `commit ${revision.commit} does not exist in the repository, or ${revision.ref} no longer contains it`
        : `${revision.ref} is not a commit`,
    );
  }

  /** Reads a file in the top directory of a commit that `find` returned. */
  async readFile(commit: string, name: string, options: { readonly maxBytes: number }): Promise<CommitFile> {
    const tree = await this.#objects.info(`${commit}^{tree}`);
    if (!tree) throw new MirrorError(`the tree of commit ${commit} cannot be read`);
    if (tree.sizeBytes > maxTreeBytes)
      return { problem: `the top directory has more than ${maxTreeBytes >> 20} MiB of names` };
    const entry = findEntry((await this.#objects.contents(tree.id)) ?? Buffer.alloc(0), name, tree.id.length / 2);
    if (!entry) return undefined;
    if (!entry.mode.startsWith("100"))
      return { problem: `${name} is ${modeName(entry.mode)}; it must be a regular file` };
    const blob = await this.#objects.info(entry.id);
    if (!blob) throw new MirrorError(`${name} of commit ${commit} cannot be read`);
    if (blob.sizeBytes > options.maxBytes) {
      return { problem: `${name} has ${blob.sizeBytes} bytes; at most ${options.maxBytes} bytes are read` };
    }
    return { bytes: (await this.#objects.contents(entry.id)) ?? Buffer.alloc(0) };
  }

  [Symbol.dispose](): void {
    this.#objects[Symbol.dispose]();
  }

  async #prepare(commit: string | undefined): Promise<void> {
    if (this.#ready) return;
    if (!(await exists(join(this.#dir, "HEAD")))) await this.#create(commit?.length === 64 ? "sha256" : "sha1");
    this.#ready = true;
  }

  /** Made beside and renamed, so that what is at the final path is whole. */
  async #create(objectFormat: "sha1" | "sha256"): Promise<void> {
    const parent = join(this.#dir, "..");
    await mkdir(parent, { recursive: true, mode: 0o700 });
    const temporary = await mkdtemp(join(parent, "new-"));
    await this.#git(temporary).raw(["init", "--bare", `--object-format=${objectFormat}`, "."]);
    await rm(join(temporary, "hooks"), { recursive: true, force: true });
    // Nothing may repack under a reader, and a mirror of single commits never grows enough to need it.
    await writeFile(join(temporary, "config"), configText(objectFormat));
    await rm(this.#dir, { recursive: true, force: true });
    await rename(temporary, this.#dir);
  }

  async #fetchOrStartOver(revision: Revision, ownRef: string, signal: AbortSignal | undefined): Promise<void> {
    try {
      await this.#fetch(revision, ownRef, signal);
    } catch (error) {
      if (!(error instanceof MirrorError) || !damaged.test(error.message)) throw error;
      // A power cut leaves lock files and empty objects behind.
      this.#objects[Symbol.dispose]();
      await rm(this.#dir, { recursive: true, force: true });
      this.#ready = false;
      await this.#prepare(revision.commit);
      await this.#fetch(revision, ownRef, signal);
    }
  }

  /** Asks for the commit itself; hosts that answer only for refs are asked for the ref. */
  async #fetch(revision: Revision, ownRef: string, signal: AbortSignal | undefined): Promise<void> {
    const deadline = AbortSignal.timeout(this.#timeoutMs);
    const stop = signal ? AbortSignal.any([signal, deadline]) : deadline;
    try {
      if (!revision.commit) return await this.#fetchOnce(`+${revision.ref}:${ownRef}`, 1, stop);
      try {
        await this.#fetchOnce(`+${revision.commit}:${ownRef}`, 1, stop);
      } catch (error) {
        if (!(error instanceof MirrorError) || !refusedCommit.test(error.message) || revision.ref === "HEAD")
          throw error;
        await this.#fetchOnce(`+${revision.ref}:${ownRef}`, fallbackDepth, stop);
      }
    } catch (error) {
      if (deadline.aborted) {
        throw new MirrorError(`the repository did not answer within ${this.#timeoutMs / 1000} s`, { cause: error });
      }
      if (error instanceof MirrorError && refusedCommit.test(error.message)) {
        const what = revision.commit ? `commit ${revision.commit}` : revision.ref;
        throw new MirrorError(`${what} does not exist in the repository (${error.message})`, { cause: error });
      }
      throw error;
    }
  }

  async #fetchOnce(refspec: string, depth: number, signal: AbortSignal): Promise<void> {
    // -v: simple-git waits another 50 ms for a process that printed nothing. "--" ends the options.
    const args = [
      "fetch",
      "-v",
      "--no-tags",
      "--no-auto-maintenance",
      "--no-write-fetch-head",
      "--no-recurse-submodules",
    ];
    try {
      await this.#git(this.#dir, signal).raw([...args, `--depth=${depth}`, "--", this.#source.url, refspec]);
    } catch (error) {
      throw new MirrorError(shorten(redact(error instanceof Error ? error.message : String(error), this.#source)));
    }
  }

  #git(dir: string, abort?: AbortSignal) {
    return simpleGit({
      baseDir: dir,
      ...(abort && { abort }),
      allowEnvironment: Object.keys(this.#env),
      unsafe: { allowUnsafeSshCommand: true, allowUnsafeAskPass: true, allowUnsafeConfigEnvCount: true },
    }).env(this.#env);
  }

  async #commit(name: string): Promise<Commit | undefined> {
    const info = await this.#objects.info(`${name}^{commit}`);
    if (!info) return undefined;
    if (info.sizeBytes > maxCommitBytes) return { id: info.id, message: "", title: "", author: "" };
    const text = ((await this.#objects.contents(info.id)) ?? Buffer.alloc(0)).toString("utf8");
    const headersEnd = text.indexOf("\n\n");
    const headers = text.slice(0, headersEnd);
    const message = text.slice(headersEnd + 2).trimStart();
    return {
      id: info.id,
      message,
      title: (message.split("\n")[0] ?? "").slice(0, 500),
      author: (/^author (.*?) <[^>]*> \d+/m.exec(headers)?.[1] ?? "").slice(0, 200),
    };
  }
}

/**
 * Tells whether git would accept a full ref name, so that it can stand in a refspec and nothing else.
 *
 * @see {@link https://git-scm.com/docs/git-check-ref-format}
 */
export function isRefName(ref: string): boolean {
  if (ref === "HEAD") return true;
  if (!ref.startsWith("refs/") || ref.length > 1000 || ref.endsWith(".") || ref.endsWith("/")) return false;
  if (/[\p{Cc} ~^:?*[\\]|\.\.|@\{|\/\//u.test(ref)) return false;
  const parts = ref.split("/");
  return parts.length > 2 && parts.every((part) => !part.startsWith(".") && !part.endsWith(".lock"));
}

const refusedCommit = /not our ref|unadvertised object|couldn't find remote ref|no such remote ref/i;
const damaged =
  /\.lock'|bad object|corrupt|object file .* is empty|not a git repository: '?\.|unable to read (?:tree|sha1)/i;

function gitEnvironment(source: CloneSource): Record<string, string> {
  const config = Object.entries(source.config);
  return {
    ...inherited(),
    LC_ALL: "C",
    GIT_ALLOW_PROTOCOL: allowedTransports,
    GIT_TERMINAL_PROMPT: "0",
    GIT_ASKPASS: "true",
    GIT_SSH_COMMAND: "ssh -oBatchMode=yes -oConnectTimeout=10 -oServerAliveInterval=10",
    GIT_NO_REPLACE_OBJECTS: "1",
    GIT_CONFIG_COUNT: String(config.length),
    ...Object.fromEntries(
      config.flatMap(([key, value], i) => [
        [`GIT_CONFIG_KEY_${i}`, key],
        [`GIT_CONFIG_VALUE_${i}`, value],
      ]),
    ),
  };
}

/** What git needs of the server's environment and nothing else: no GIT_DIR of a caller, no secret of the server. */
function inherited(): Record<string, string> {
  const wanted =
    /^(?:PATH|HOME|USER|TMPDIR|XDG_CONFIG_HOME|SSH_AUTH_SOCK|SSL_CERT_(?:FILE|DIR)|(?:https?|all|no)_proxy)$/i;
  return Object.fromEntries(
    Object.entries(process.env).filter((entry): entry is [string, string] => wanted.test(entry[0]) && !!entry[1]),
  );
}

function configText(objectFormat: "sha1" | "sha256"): string {
  const extension = objectFormat === "sha256" ? "[extensions]\n\tobjectFormat = sha256\n" : "";
  const version = objectFormat === "sha256" ? 1 : 0;
  return `[core]
\trepositoryFormatVersion = ${version}
\tbare = true
${extension}[gc]
\tauto = 0
[maintenance]
\tauto = false
[fetch]
\tfsckObjects = true
`;
}

/** A tree is `<octal mode> <name>\\0<binary id>` over and over. */
function findEntry(tree: Buffer, name: string, idBytes: number): { mode: string; id: string } | undefined {
  for (let at = 0; at < tree.length; ) {
    const space = tree.indexOf(32, at);
    const end = tree.indexOf(0, space);
    if (space < 0 || end < 0) return undefined;
    if (tree.toString("utf8", space + 1, end) === name) {
      return { mode: tree.toString("latin1", at, space), id: tree.toString("hex", end + 1, end + 1 + idBytes) };
    }
    at = end + 1 + idBytes;
  }
  return undefined;
}

function modeName(mode: string): string {
  if (mode === "120000") return "a symbolic link";
  return mode === "160000" ? "a submodule" : "a directory";
}

/** Keeps what a person needs of git's words: no progress, no control characters, one line. */
function shorten(message: string): string {
  const lines = message
    .split(/[\r\n]+/)
    .filter((line) => /^(?:fatal|error|remote|ssh|.*denied|.*refused)\b/i.test(line.trim()));
  const text = (lines.length > 0 ? lines : message.split("\n")).join("; ");
  return text
    .replaceAll(/\p{Cc}/gu, " ")
    .trim()
    .slice(0, 600);
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
