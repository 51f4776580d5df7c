/** Looks for an object in a repository without starting git, which takes longer than all else that a known commit needs. */
import { closeSync, openSync, readdirSync, readSync } from "node:fs";
import { join } from "node:path";

/**
 * Tells whether a repository has an object in one of its packs; loose ones, which a mirror does not have, are not looked at.
 *
 * @param id 40 or 64 hexadecimal digits, as the repository's object format has it.
 * @see {@link https://git-scm.com/docs/gitformat-pack} "Version 2 pack-*.idx files"
 */
export function hasObject(objectsDir: string, id: string): boolean {
  const wanted = Buffer.from(id, "hex");
  for (const name of listOrNothing(join(objectsDir, "pack"))) {
    if (name.endsWith(".idx") && indexHas(join(objectsDir, "pack", name), wanted)) return true;
  }
  return false;
}

const magic = 0xff744f63;
const fanoutOffset = 8;
const namesOffset = fanoutOffset + 256 * 4;

function indexHas(path: string, wanted: Buffer): boolean {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return false; // Repacked in this moment: the next index has what this one had.
  }
  try {
    const head = Buffer.alloc(namesOffset);
    if (readSync(fd, head, 0, namesOffset, 0) < namesOffset || head.readUInt32BE(0) !== magic) return false;
    const first = wanted[0]!;
    let low = first === 0 ? 0 : head.readUInt32BE(fanoutOffset + (first - 1) * 4);
    let high = head.readUInt32BE(fanoutOffset + first * 4);
    const name = Buffer.alloc(wanted.length);
    while (low < high) {
      const middle = (low + high) >>> 1;
      readSync(fd, name, 0, name.length, namesOffset + middle * name.length);
      const order = name.compare(wanted);
      if (order === 0) return true;
      if (order < 0) low = middle + 1;
      else high = middle;
    }
    return false;
  } finally {
    closeSync(fd);
  }
}

function listOrNothing(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
}
