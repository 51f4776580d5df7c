/** The root file system of an image, put together from the archives of its layers: what a container of it would see. */
import { createHash, type Hash } from "node:crypto";
import { type TarEntry, TarReader } from "../../runtime/tar-reader.ts";

interface File {
  readonly entry: TarEntry;
  /** The same for all names of a file. */
  readonly identity: number;
  content: string;
}

/**
 * Applies layers, base first.
 *
 * @returns For each path: type, owner, mode, content (shortened, or its digest), link target, other names, attributes.
 */
export function mergeLayers(layers: readonly Buffer[]): Record<string, string> {
  const files = new Map<string, File>();
  let identity = 0;
  for (const layer of layers) {
    const added = new Map<string, File>();
    const gone: string[] = [];
    const opaque: string[] = [];
    let current: File | undefined;
    let hash: Hash | undefined;
    let text = "";
    const reader = new TarReader(
      {
        entry(entry) {
          const path = cleanName(entry.name);
          const slash = path.lastIndexOf("/");
          const base = path.slice(slash + 1);
          const directory = slash === -1 ? "" : path.slice(0, slash);
          current = undefined;
          if (base === ".wh..wh..opq") opaque.push(directory);
          else if (base.startsWith(".wh."))
            gone.push(directory === "" ? base.slice(4) : `${directory}/${base.slice(4)}`);
          else if (path !== "") {
            const linked = entry.type === "link" ? added.get(cleanName(entry.linkName)) : undefined;
            current = linked ?? { entry, identity: identity++, content: "" };
            added.set(path, current);
            hash = linked === undefined ? createHash("sha256") : undefined;
            text = "";
          }
        },
        data(chunk) {
          hash?.update(chunk);
          if (text.length < 100) text += chunk.toString("utf8", 0, 100);
        },
        end() {
          if (current === undefined || hash === undefined) return;
          current.content = current.entry.size <= 80 ? text : `sha256:${hash.digest("hex").slice(0, 16)}`;
        },
      },
      { endMarker: "optional" },
    );
    reader.write(layer);
    reader.end();
    for (const path of files.keys()) {
      const isGone = gone.some((each) => path === each || path.startsWith(`${each}/`));
      const isHidden = opaque.some((each) => path.startsWith(`${each}/`));
      if (isGone || isHidden) files.delete(path);
    }
    for (const [path, file] of added) {
      // What is no directory any more has nothing in it.
      if (file.entry.type !== "directory") {
        for (const below of files.keys()) if (below.startsWith(`${path}/`)) files.delete(below);
      }
      files.set(path, file);
    }
  }
  return describe(files);
}

function cleanName(name: string): string {
  return Buffer.from(name, "latin1")
    .toString()
    .split("/")
    .filter((component) => component !== "" && component !== ".")
    .join("/");
}

function describe(files: ReadonlyMap<string, File>): Record<string, string> {
  const names = new Map<number, string[]>();
  for (const [path, { identity }] of files) names.set(identity, [...(names.get(identity) ?? []), path]);
  const described: [string, string][] = [];
  for (const [path, { entry, identity, content }] of files) {
    const owner = `${entry.uid}:${entry.gid} ${entry.mode.toString(8)}`;
    const others = (names.get(identity) as string[]).filter((name) => name !== path);
    const xattrs = [...(entry.xattrs ?? [])].map(([key, value]) => `${key}=${value.toString("hex")}`);
    const kinds: Readonly<Record<string, string>> = {
      directory: `d ${owner}`,
      symlink: `l ${entry.uid}:${entry.gid} ${entry.linkName}`,
      fifo: `p ${owner}`,
    };
    const more = [...xattrs, ...(others.length === 0 ? [] : [`= ${others.sort().join(", ")}`])];
    const text = kinds[entry.type] ?? `f ${owner} ${content}`;
    described.push([path, [text, ...more].join(" ")]);
  }
  return Object.fromEntries(described.sort(([a], [b]) => (a < b ? -1 : 1)));
}
