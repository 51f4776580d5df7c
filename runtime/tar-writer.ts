/**
 * Writes tar archives that are the same bytes for the same entries: ustar, and PAX records where ustar has no room.
 *
 * @see {@link https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html}
 */
import type { TarEntry, TarEntryType } from "./tar-reader.ts";

const BLOCK = 512;
const MAX_OCTAL_7 = 0o7777777;
const MAX_OCTAL_11 = 0o77777777777;

const typeFlags: Readonly<Record<TarEntryType, string>> = {
  file: "0",
  link: "1",
  symlink: "2",
  character: "3",
  block: "4",
  directory: "5",
  fifo: "6",
};

/** What an archive is written from: names are byte strings, as a `TarReader` gives them. */
export type TarHeader = Omit<TarEntry, "sparse">;

/**
 * The blocks that begin an entry; the content of a file follows, and `tarPadding` of it.
 *
 * Times are written to the second, unless they have a fraction: then a PAX record has all of it.
 */
export function tarHeader(entry: TarHeader): Buffer {
  const name = entry.type === "directory" && !entry.name.endsWith("/") ? `${entry.name}/` : entry.name;
  const records: [string, string][] = [];
  const { mtimeSeconds, mtimeNanoseconds } = entry;
  if (mtimeNanoseconds !== 0 || mtimeSeconds < 0 || mtimeSeconds > MAX_OCTAL_11) {
    records.push(["mtime", formatTime(mtimeSeconds, mtimeNanoseconds)]);
  }
  const split = splitName(name);
  if (split === undefined) records.push(["path", name]);
  if (entry.linkName.length > 100 || !isAscii(entry.linkName)) records.push(["linkpath", entry.linkName]);
  if (entry.size > MAX_OCTAL_11) records.push(["size", `${entry.size}`]);
  if (entry.uid > MAX_OCTAL_7) records.push(["uid", `${entry.uid}`]);
  if (entry.gid > MAX_OCTAL_7) records.push(["gid", `${entry.gid}`]);
  for (const [key, value] of entry.xattrs ?? []) records.push([`SCHILY.xattr.${key}`, value.toString("latin1")]);
  const block = header({ ...entry, ...(split ?? { name: name.slice(0, 100), prefix: "" }) }, typeFlags[entry.type]);
  if (records.length === 0) return block;
  const content = Buffer.from(records.map(([key, value]) => paxRecord(key, value)).join(""), "latin1");
  const extended = header(
    {
      name: "PaxHeaders.0",
      prefix: "",
      linkName: "",
      mode: 0o644,
      uid: 0,
      gid: 0,
      size: content.length,
      mtimeSeconds: 0,
    },
    "x",
  );
  return Buffer.concat([extended, content, tarPadding(content.length), block]);
}

/** The zeros between content of that many bytes and the next header. */
export function tarPadding(size: number): Buffer {
  return Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK);
}

/** What ends an archive. */
export const tarEnd = Buffer.alloc(2 * BLOCK);

interface HeaderFields {
  readonly name: string;
  readonly prefix: string;
  readonly linkName: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtimeSeconds: number;
}

function header(fields: HeaderFields, typeFlag: string): Buffer {
  const block = Buffer.alloc(BLOCK);
  block.write(fields.name, 0, 100, "latin1");
  octal(block, 100, 8, fields.mode & 0o7777);
  octal(block, 108, 8, fields.uid);
  octal(block, 116, 8, fields.gid);
  octal(block, 124, 12, fields.size);
  octal(block, 136, 12, Math.max(0, fields.mtimeSeconds));
  block.write(typeFlag, 156, "latin1");
  block.write(fields.linkName.slice(0, 100), 157, 100, "latin1");
  block.write("ustar\x0000", 257, "latin1");
  octal(block, 329, 8, 0);
  octal(block, 337, 8, 0);
  block.write(fields.prefix, 345, 155, "latin1");
  block.fill(" ", 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return block;
}

/** What does not fit is 0 here and in a PAX record. */
function octal(block: Buffer, offset: number, length: number, value: number): void {
  const digits = length - 1;
  const text = value >= 8 ** digits ? "0" : value.toString(8);
  block.write(`${text.padStart(digits, "0")}\0`, offset, "latin1");
}

/** Divides a name at a slash so that both parts fit; undefined if there is none, or the name is not ASCII. */
function splitName(name: string): { name: string; prefix: string } | undefined {
  if (!isAscii(name)) return undefined;
  if (name.length <= 100) return { name, prefix: "" };
  for (let at = name.indexOf("/", name.length - 101); at !== -1 && at <= 155; at = name.indexOf("/", at + 1)) {
    if (at > 0 && at < name.length - 1) return { name: name.slice(at + 1), prefix: name.slice(0, at) };
  }
  return undefined;
}

function isAscii(text: string): boolean {
  return !/[^\x01-\x7f]/.test(text);
}

/** `LENGTH KEY=VALUE\n`, whose length counts itself. */
function paxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`;
  let length = rest.length + 1;
  while (`${length}`.length + rest.length !== length) length = `${length}`.length + rest.length;
  return `${length}${rest}`;
}

function formatTime(seconds: number, nanoseconds: number): string {
  if (nanoseconds === 0) return `${seconds}`;
  const digits = (value: number) => `${value}`.padStart(9, "0").replace(/0+$/, "");
  // Before 1970 the fraction counts towards zero: -1.5 is half a second before -1.
  if (seconds < 0) return `-${-seconds - 1}.${digits(1_000_000_000 - nanoseconds)}`;
  return `${seconds}.${digits(nanoseconds)}`;
}
