/** Tar archives assembled by hand: for what no honest program writes. */

export interface Member {
  readonly name: string;
  /** Type flag. @default "0", or "5" where the name ends with a slash */
  readonly type?: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly mtime?: number;
  readonly linkName?: string;
  readonly content?: string | Buffer;
  /** What the header says, where it is not the content's length. */
  readonly size?: number;
  /** Replaces the 12 bytes of the size field. */
  readonly sizeField?: Buffer;
  /** Written as a PAX header before the entry. */
  readonly pax?: Readonly<Record<string, string | Buffer>>;
}

/** @param options.end Whether the two blocks of zeros follow. @default true */
export function tarArchive(members: readonly Member[], options: { readonly end?: boolean } = {}): Buffer {
  const parts = members.flatMap(memberBlocks);
  if (options.end !== false) parts.push(Buffer.alloc(1024));
  return Buffer.concat(parts);
}

function memberBlocks(member: Member): Buffer[] {
  const content = Buffer.from(member.content ?? "");
  const blocks: Buffer[] = [];
  if (member.pax !== undefined) {
    const records = Buffer.concat(Object.entries(member.pax).map(([key, value]) => paxRecord(key, Buffer.from(value))));
    blocks.push(header({ name: "pax", type: "x" }, records.length), padded(records));
  }
  blocks.push(header(member, member.size ?? content.length), padded(content));
  return blocks;
}

function paxRecord(key: string, value: Buffer): Buffer {
  const rest = key.length + value.length + 3;
  let length = rest + String(rest).length;
  length = rest + String(length).length;
  return Buffer.concat([Buffer.from(`${length} ${key}=`), value, Buffer.from("\n")]);
}

function header(member: Member, size: number): Buffer {
  const block = Buffer.alloc(512);
  block.write(member.name, 0, 100, "utf8");
  block.write(octal(member.mode ?? 0o644, 7), 100);
  block.write(octal(member.uid ?? 0, 7), 108);
  block.write(octal(member.gid ?? 0, 7), 116);
  if (member.sizeField === undefined) block.write(octal(size, 11), 124);
  else member.sizeField.copy(block, 124);
  block.write(octal(member.mtime ?? 1_600_000_000, 11), 136);
  block.write(member.type ?? (member.name.endsWith("/") ? "5" : "0"), 156);
  block.write(member.linkName ?? "", 157, 100, "utf8");
  block.write("ustar\x0000", 257, "latin1");
  block.fill(" ", 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${octal(sum, 6)}\0 `, 148);
  return block;
}

function octal(value: number, digits: number): string {
  return value.toString(8).padStart(digits, "0");
}

function padded(content: Buffer): Buffer {
  return Buffer.concat([content, Buffer.alloc((512 - (content.length % 512)) % 512)]);
}
