/**
 * What a build that was all cached needs to say so again in a few milliseconds: what it looked at, and what it gave.
 *
 *     run/build/memos/KEY.json    KEY names the command: Dockerfile, options, context
 *
 * A memo holds as long as nothing that the build looked at has changed: every file of the context by what the kernel says of
 * it (nobody but the kernel sets change times), what the names of base images stand for, and that all of the image is still
 * in the store. Whatever a memo does not know, a build finds out the long way. This module loads nothing that is large.
 */
import { createHash } from "node:crypto";
import {
  type BigIntStats,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { imageStorePath } from "../runtime/image-store-path.ts";

/** Another format, or another meaning: older memos are not read. */
const VERSION = 2;
/** A context with more is not looked at twice. */
const MAX_FILES = 20_000;
/** Two changes within a tick of the kernel's clock look like one. */
const RACY_NS = 2_000_000_000n;
const MAX_MEMOS = 200;
const USED_STEP_MS = 60_000;

/** What a name of the store stands for. */
export interface KnownName {
  /** In full. */
  readonly name: string;
  readonly manifest: string;
  readonly resolved: string | undefined;
}

export interface Memo {
  /** Of the context, as it was before the build. */
  readonly context: string;
  /** Of base images and of the image itself. */
  readonly names: readonly KnownName[];
  /** Files and directories of the store that the image is made of, relative to it. */
  readonly parts: readonly string[];
  /** Of the steps, in the order in which they ended. */
  readonly titles: readonly string[];
  /** The image's names, in full. */
  readonly imageNames: readonly string[];
  readonly digest: string;
  /** For --metadata-file. */
  readonly metadata: object;
}

interface MemoFile extends Memo {
  readonly version: number;
  /** Layers that are not on disk yet do not outlive a crash of the machine. */
  readonly bootId: string;
}

/** Names a command by all that it is given. */
export function memoKey(what: object): string {
  return createHash("sha256")
    .update(JSON.stringify([VERSION, what]))
    .digest("hex");
}

/**
 * Digests what the kernel says of a context's files.
 *
 * @param ignored Content of the ignore file that holds; names in it that are no patterns are not looked at.
 * @returns undefined if there are too many, or some are so new that a change could go unseen.
 */
export function fingerprintContext(directory: string, ignored: string): string | undefined {
  const walk = new ContextWalk(directory, plainNames(ignored));
  try {
    return walk.run() ? walk.digest() : undefined;
  } catch {
    // It changes just now, or may not be read: the build says what is wrong.
    return undefined;
  }
}

/** Entries of an ignore file that stand for exactly one name; none if it has exceptions. */
function plainNames(content: string): ReadonlySet<string> {
  const lines = content.split("\n").map((line) => line.trim());
  if (lines.some((line) => line.startsWith("!"))) return new Set();
  return new Set(
    lines.filter((line) => /^\/?[\w.@+-]+(?:\/[\w.@+-]+)*\/?$/.test(line)).map((line) => line.replace(/^\/|\/$/g, "")),
  );
}

class ContextWalk {
  /** As bytes, one in each character: a name need not be text. */
  readonly #root: string;
  readonly #ignored: ReadonlySet<string>;
  readonly #hash = createHash("sha256");
  readonly #newestNs = BigInt(Date.now()) * 1_000_000n - RACY_NS;
  #count = 0;

  constructor(root: string, ignored: ReadonlySet<string>) {
    this.#root = Buffer.from(root).toString("latin1");
    this.#ignored = ignored;
  }

  /** @returns Whether it can be trusted. */
  run(): boolean {
    const stat = lstatSync(this.#path(""), { bigint: true, throwIfNoEntry: false });
    if (stat === undefined) return false;
    return stat.isSymbolicLink() ? false : this.#entry("", stat);
  }

  digest(): string {
    return this.#hash.digest("hex");
  }

  #entry(path: string, stat: BigIntStats): boolean {
    if (++this.#count > MAX_FILES || stat.ctimeNs > this.#newestNs) return false;
    this.#hash.update(
      `${JSON.stringify(path)} ${stat.dev}:${stat.ino} ${stat.mode} ${stat.size} ${stat.mtimeNs} ${stat.ctimeNs}\n`,
    );
    if (!stat.isDirectory()) return true;
    for (const name of readdirSync(this.#path(path), "latin1").sort()) {
      const below = path === "" ? name : `${path}/${name}`;
      if (this.#ignored.has(below)) continue;
      const found = lstatSync(this.#path(below), { bigint: true, throwIfNoEntry: false });
      if (found === undefined || !this.#entry(below, found)) return false;
    }
    return true;
  }

  #path(below: string): Buffer {
    return Buffer.from(`${this.#root}/${below}`, "latin1");
  }
}

/** The memos of a data directory, about one store. */
export class BuildMemos {
  readonly #directory: string;
  readonly #storeDir: string;

  /** @param dataDir Has `run/` and `images/`. */
  constructor(dataDir: string) {
    this.#directory = join(dataDir, "run/build/memos");
    this.#storeDir = imageStorePath(join(dataDir, "images"));
  }

  /** What a build would find out, if nothing has changed since it last did. Marks what it is made of as used. */
  find(key: string, context: string): Memo | undefined {
    let memo: MemoFile;
    try {
      memo = JSON.parse(readFileSync(this.#path(key), "utf8")) as MemoFile;
    } catch {
      return undefined;
    }
    if (memo.version !== VERSION || memo.context !== context || memo.bootId !== bootId()) return undefined;
    for (const known of memo.names) {
      const now = this.name(known.name);
      if (now?.manifest !== known.manifest || now.resolved !== known.resolved) return undefined;
    }
    const parts = memo.parts.map((part) => join(this.#storeDir, part));
    const now = Date.now();
    const stats = parts.map((part) => statSync(part, { throwIfNoEntry: false }));
    if (stats.includes(undefined)) return undefined;
    try {
      for (const [index, stat] of stats.entries()) {
        if (stat !== undefined && now - stat.mtimeMs > USED_STEP_MS)
          utimesSync(parts[index] as string, now / 1000, now / 1000);
      }
    } catch {
      // Somebody removes it just now.
      return undefined;
    }
    return memo;
  }

  /**
   * Keeps what a build has found out. It may be wrong about what has changed meanwhile only by knowing less. Where it cannot be
   * written the next build takes longer, and this one has succeeded all the same.
   */
  keep(key: string, memo: Memo): void {
    const file: MemoFile = { ...memo, version: VERSION, bootId: bootId() };
    const beside = `${this.#path(key)}.${process.pid}`;
    try {
      mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
      writeFileSync(beside, JSON.stringify(file), { mode: 0o600 });
      renameSync(beside, this.#path(key));
      this.#prune();
    } catch {
      if (existsSync(beside)) rmSync(beside);
    }
  }

  /** What the store says of a name. */
  name(name: string): KnownName | undefined {
    try {
      const file = `${createHash("sha256").update(name).digest("hex")}.json`;
      const { manifest, resolved } = JSON.parse(readFileSync(join(this.#storeDir, "names", file), "utf8")) as {
        manifest: { digest: string };
        resolved?: string;
      };
      return { name, manifest: manifest.digest, resolved };
    } catch {
      return undefined;
    }
  }

  /** Whether the store has a part. */
  has(part: string): boolean {
    return statSync(join(this.#storeDir, part), { throwIfNoEntry: false }) !== undefined;
  }

  #path(key: string): string {
    return join(this.#directory, `${key}.json`);
  }

  #prune(): void {
    const files = readdirSync(this.#directory).map((name) => join(this.#directory, name));
    if (files.length <= MAX_MEMOS) return;
    const age = (file: string) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
    for (const file of files.sort((a, b) => age(a) - age(b)).slice(0, files.length - MAX_MEMOS))
      rmSync(file, { force: true });
  }
}

function bootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
}
