/** Writes the files of a git repository directly: `git init` would cost more than the rest of a checkout. */
import { constants, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { copyFile, readdir } from "node:fs/promises";
import { join } from "node:path";

export interface RepositoryLayout {
  /** Decides the object format: 40 digits are SHA-1, 64 SHA-256. */
  readonly commit: string;
  readonly bare: boolean;
  /** The content of HEAD without its newline: a commit, or `ref: refs/heads/…`. */
  readonly head: string;
  readonly originUrl?: string;
}

/**
 * Makes a new repository at `gitDir`, whose parent must exist.
 *
 * @see {@link https://git-scm.com/docs/gitrepository-layout}
 */
export function createRepository(gitDir: string, layout: RepositoryLayout): void {
  for (const dir of ["", "objects", "objects/pack", "objects/info", "refs", "refs/heads", "refs/tags", "info"]) {
    mkdirSync(join(gitDir, dir), { mode: 0o755, recursive: true });
  }
  writeFileSync(join(gitDir, "HEAD"), `${layout.head}\n`);
  writeFileSync(join(gitDir, "config"), configText(layout));
}

function configText({ commit, bare, originUrl }: RepositoryLayout): string {
  const sha256 = commit.length === 64;
  const sections = [
    `[core]\n\trepositoryformatversion = ${sha256 ? 1 : 0}\n\tfilemode = true\n\tbare = ${bare}\n`,
    ...(bare ? [] : ["\tlogallrefupdates = true\n"]),
    ...(sha256 ? ["[extensions]\n\tobjectformat = sha256\n"] : []),
    ...(originUrl === undefined
      ? []
      : [`[remote "origin"]\n\turl = ${quote(originUrl)}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n`]),
  ];
  return sections.join("");
}

/** A value of a configuration file; control characters were refused with the URL. */
function quote(value: string): string {
  return `"${value.replaceAll(/["\\]/g, (character) => `\\${character}`)}"`;
}

/** Full ref name to object id, loose and packed; of `refs/heads/` and `refs/tags/` only. */
export function readRefs(gitDir: string): Map<string, string> {
  const refs = new Map<string, string>();
  for (const line of readOrEmpty(join(gitDir, "packed-refs")).split("\n")) {
    const [, id, name] = /^([0-9a-f]{40,64}) (refs\/(?:heads|tags)\/.+)$/.exec(line) ?? [];
    if (id !== undefined && name !== undefined) refs.set(name, id);
  }
  for (const kind of ["refs/heads", "refs/tags"]) {
    for (const entry of listTree(join(gitDir, kind))) {
      const id = readOrEmpty(join(gitDir, kind, entry)).trim();
      // A name that is not UTF-8 was changed by reading it: such a ref is left out.
      if (/^[0-9a-f]{40,64}$/.test(id) && !entry.includes("\ufffd")) refs.set(`${kind}/${entry}`, id);
    }
  }
  return refs;
}

/** Writes refs into a new repository; replaces those it has. */
export function writeRefs(gitDir: string, refs: ReadonlyMap<string, string>): void {
  const lines = [...refs]
    .map(([name, id]) => ({ key: Buffer.from(name), line: `${id} ${name}\n` }))
    .sort((a, b) => a.key.compare(b.key))
    .map(({ line }) => line);
  writeFileSync(join(gitDir, "packed-refs"), `# pack-refs with: sorted \n${lines.join("")}`);
}

/**
 * Gives a new repository all packs of another, as reflinks where the file system has them (XFS, Btrfs), else as copies.
 *
 * Not as hard links: root in a container could write into them, and so put its own objects under the names of other builds'
 * (git checks no hash when it reads a blob). Were they owned by an id that no container has, it could not even delete them:
 * `rm -rf .git` would fail with EOVERFLOW. Copying takes no longer than writing the files of the commit does.
 *
 * @throws {Error} `ENOENT` if the source was repacked meanwhile; try again with a new repository.
 */
export async function copyPacks(sourceGitDir: string, targetGitDir: string): Promise<void> {
  const source = join(sourceGitDir, "objects/pack");
  const target = join(targetGitDir, "objects/pack");
  const names = (await readdir(source)).filter((name) => /^pack-[0-9a-f]+\.(?:pack|idx|rev)$/.test(name));
  await Promise.all(names.map((name) => copyFile(join(source, name), join(target, name), constants.COPYFILE_FICLONE)));
}

/** Whether a system call failed for one of these reasons. */
export function isCode(error: unknown, ...codes: readonly string[]): boolean {
  return error instanceof Error && "code" in error && typeof error.code === "string" && codes.includes(error.code);
}

function listTree(dir: string): string[] {
  try {
    return readdirSync(dir, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(dir.length + 1));
  } catch (error) {
    if (isCode(error, "ENOENT")) return [];
    throw error;
  }
}

function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (isCode(error, "ENOENT", "EISDIR")) return "";
    throw error;
  }
}
