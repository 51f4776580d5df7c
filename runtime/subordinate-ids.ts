/** The ids that a user may hand out in user namespaces of their own: /etc/subuid and /etc/subgid. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import type { IdMapping } from "./oci-config.ts";
import { findProgram } from "./programs.ts";

/** Who asks; the name is absent for a uid that the host has no account for. */
export interface Account {
  readonly uid: number;
  readonly gid: number;
  readonly name?: string;
}

export interface IdRange {
  readonly start: number;
  readonly count: number;
}

export interface SubordinateIds {
  readonly uids: readonly IdRange[];
  readonly gids: readonly IdRange[];
}

/** Where subordinate ids begin in the agent's user namespace: as far up as uid ranges on a host that is ours. */
const firstInside = 1 << 28;
/** The kernel takes 340 lines; some are for the user's own id, and nobody has many. */
const maxRanges = 64;

/**
 * Finds a user's subordinate ids: lines of /etc/subuid and /etc/subgid by name or uid, or where other sources are
 * configured (nsswitch.conf, `subid`), what getsubids(1) says.
 *
 * @param path Where programs are looked for, as PATH has it.
 */
export function findSubordinateIds(account: Account, path: string | undefined): SubordinateIds {
  const find = (file: string, flags: readonly string[]) => {
    const listed = parseSubordinateIds(readText(file), account);
    return listed.length > 0 ? listed : askGetsubids(account, flags, path);
  };
  return { uids: find("/etc/subuid", []), gids: find("/etc/subgid", ["-g"]) };
}

/** Takes a user's ranges out of the text of /etc/subuid; what is not `name:start:count` is skipped. @see subuid(5) */
export function parseSubordinateIds(text: string, { uid, name }: Account): IdRange[] {
  return text.split("\n").flatMap((line) => {
    const [, owner, start = "", count = ""] = /^([^:#\s][^:]*):(\d{1,10}):(\d{1,10})\s*$/.exec(line) ?? [];
    if (owner === undefined || (owner !== name && owner !== `${uid}`)) return [];
    const range = { start: Number(start), count: Number(count) };
    // The last id is (uid_t) -1, which the kernel keeps for itself.
    return range.start > 0 && range.count > 0 && range.start + range.count < 2 ** 32 ? [range] : [];
  });
}

/**
 * The maps of a user namespace in which a user is who they are, and subordinate ids stand at the same place for uids and gids,
 * wherever on the host they are. Where one kind has more ids than the other, the rest is left out.
 */
export function planIdMaps(
  account: Account,
  { uids, gids }: SubordinateIds,
): { readonly uids: readonly IdMapping[]; readonly gids: readonly IdMapping[] } {
  const own = (id: number): IdMapping => ({ containerID: id, hostID: id, size: 1 });
  const most = Math.min(total(uids), total(gids), firstInside);
  // A user id from a directory service may be anywhere.
  const taken = [account.uid, account.gid];
  const base = [firstInside, 2 * firstInside, 4 * firstInside].find((candidate) =>
    taken.every((id) => id < candidate || id >= candidate + most),
  ) as number;
  return {
    uids: [own(account.uid), ...place(uids, base, most)],
    gids: [own(account.gid), ...place(gids, base, most)],
  };
}

function total(ranges: readonly IdRange[]): number {
  return ranges.slice(0, maxRanges).reduce((sum, { count }) => sum + count, 0);
}

function place(ranges: readonly IdRange[], base: number, most: number): IdMapping[] {
  let at = 0;
  return ranges.slice(0, maxRanges).flatMap(({ start, count }) => {
    const size = Math.min(count, most - at);
    if (size <= 0) return [];
    at += size;
    return [{ containerID: base + at - size, hostID: start, size }];
  });
}

/** `0: alice 100000 65536` */
function askGetsubids({ name, uid }: Account, flags: readonly string[], path: string | undefined): IdRange[] {
  if (!/^subid:/m.test(readText("/etc/nsswitch.conf"))) return [];
  const program = findProgram("getsubids", path);
  if (program === undefined) return [];
  const { stdout } = spawnSync(program, [...flags, name ?? `${uid}`], { encoding: "utf8", timeout: 10_000 });
  const lines = (stdout ?? "").split("\n").map((line) => line.trim().split(/\s+/));
  return lines.flatMap(([, , start, count]) =>
    start !== undefined && count !== undefined && /^\d+$/.test(start) && /^\d+$/.test(count)
      ? [{ start: Number(start), count: Number(count) }]
      : [],
  );
}

function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
