/** Which ids this process may give to containers, and how they are divided among jobs. */
import { readFileSync } from "node:fs";
import type { IdMapping } from "./oci-config.ts";

/** Ids of the agent's user namespace, uids and gids alike. */
export interface OwnIds {
  /** The agent is in the host's own user namespace: every id is there. */
  readonly all: boolean;
  /** Contiguous stretches that are nobody's yet, the agent's own id left out. */
  readonly spare: readonly { readonly first: number; readonly count: number }[];
  /** The agent's own. */
  readonly own: number;
}

/** Nested builders need more than 65536 ids: their images map 65536 beyond the first 100000. */
const nestedSize = 1 << 18;
/** A nested step may run an agent: seven jobs of its own can then have nested steps, too. */
const fullSize = 1 << 21;
/** Beyond what /etc/subuid hands out by default; 2^30 ids further it is still below where systemd-nspawn's end (0x6fff0000). */
const firstBase = 1 << 28;
const maxRanges = 512;
/** The last 512 of the first 65536 ids: `nobody` (65534), distroless images' `nonroot` (65532). */
const highIds = 512;
const ordinarySize = 1 << 16;
/** Ids of the system that an agent which is root in a container runs in. */
const systemIds = 1 << 16;

/** Reads the id maps that this process is in. */
export function findOwnIds(): OwnIds {
  const [uids, gids] = ["uid_map", "gid_map"].map((file) => parseIdMap(readFileSync(`/proc/self/${file}`, "utf8")));
  return ownIds({ uids: uids ?? [], gids: gids ?? [], uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 });
}

/** Lines of `inside outside count`. */
export function parseIdMap(text: string): IdMapping[] {
  return text
    .trim()
    .split("\n")
    .flatMap((line) => {
      const [containerID, hostID, size] = line.trim().split(/\s+/).map(Number);
      return size === undefined || !(size > 0) ? [] : [{ containerID: containerID ?? 0, hostID: hostID ?? 0, size }];
    });
}

/** What two id maps leave to give away. A stretch must lie within one line of each: the kernel maps it further only then. */
export function ownIds(maps: {
  readonly uids: readonly IdMapping[];
  readonly gids: readonly IdMapping[];
  readonly uid: number;
  readonly gid: number;
}): OwnIds {
  const { uids, gids, uid, gid } = maps;
  const all = [uids, gids].every((map) => map.some(({ size }) => size >= 2 ** 32 - 1));
  const common = uids.flatMap((a) => gids.map((b) => overlap(a, b))).filter(({ count }) => count > 0);
  // Root's ids belong to the files around the agent as soon as there are enough beyond them.
  const beyond = common.flatMap((stretch) => without(stretch, 0, systemIds));
  const taken = uid === 0 && sum(beyond) >= systemIds ? beyond : common;
  const spare = [uid, gid].reduce((left, id) => left.flatMap((stretch) => without(stretch, id, id + 1)), taken);
  return { all, spare: spare.toSorted((a, b) => a.first - b.first), own: uid };
}

type Stretch = OwnIds["spare"][number];

function overlap(a: IdMapping, b: IdMapping): Stretch {
  const first = Math.max(a.containerID, b.containerID);
  return { first, count: Math.min(a.containerID + a.size, b.containerID + b.size) - first };
}

/** A stretch without the ids from `from` up to before `to`. */
function without({ first, count }: Stretch, from: number, to: number): Stretch[] {
  const end = first + count;
  return [
    { first, count: Math.min(end, from) - first },
    { first: Math.max(first, to), count: end - Math.max(first, to) },
  ].filter((part) => part.count > 0);
}

function sum(stretches: readonly Stretch[]): number {
  return stretches.reduce((total, { count }) => total + count, 0);
}

/** What one job gets: which ids of a container are which of the agent's. Those that are not in it show as nobody's. */
export interface RangePlan {
  /** Root's. */
  readonly base: number;
  readonly mappings: readonly IdMapping[];
}

/**
 * Divides ids among jobs; always in the same way for the same ids, because files on disk carry them.
 *
 * As root every job has 2^21. A user's are shared out: 2^18 for each job if that makes four, else 65536; with fewer than
 * 2^18, a quarter of them for each of four jobs at a time. A range of fewer than 65536 has the lowest ids and, because images
 * use them, the last 512 below 65536. With no ids to share, jobs run with the agent's own as their root, and nobody else.
 */
export function planRanges({ all, spare, own }: OwnIds): readonly RangePlan[] {
  if (all) return Array.from({ length: maxRanges }, (_, i) => range(firstBase + i * fullSize, fullSize));
  const size = sizeFor(sum(spare));
  const ranges = spare.flatMap(({ first, count }) =>
    Array.from({ length: Math.min(maxRanges, Math.floor(count / size)) }, (_, i) => range(first + i * size, size)),
  );
  return ranges.length > 0 ? ranges.slice(0, maxRanges) : [range(own, 1)];
}

function sizeFor(total: number): number {
  if (total >= 4 * nestedSize) return nestedSize;
  if (total >= 4 * ordinarySize) return ordinarySize;
  if (total >= 4 * 2048) return Math.floor(total / 4 / 1024) * 1024;
  return Math.max(total, 1);
}

function range(base: number, size: number): RangePlan {
  if (size === 1 || size >= ordinarySize) return { base, mappings: [{ containerID: 0, hostID: base, size }] };
  const high = size > 2 * highIds ? highIds : 1;
  const low = size - high;
  // `nobody` is 65534: it must be there even where it is the only one.
  const highest = high === 1 ? 65534 : ordinarySize - high;
  return {
    base,
    mappings: [
      { containerID: 0, hostID: base, size: low },
      { containerID: highest, hostID: base + low, size: high },
    ],
  };
}

const nobody = 65534;

/** The agent's id for a container's; a nobody where the range does not have it. */
export function agentId({ base, mappings }: RangePlan, id: number): number {
  const find = (wanted: number) =>
    mappings.find(({ containerID, size }) => wanted >= containerID && wanted < containerID + size);
  const found = find(id);
  if (found !== undefined) return found.hostID + id - found.containerID;
  const overflow = find(nobody);
  return overflow === undefined ? base : overflow.hostID + nobody - overflow.containerID;
}

/** The container's id for the agent's; undefined if the range does not have it. */
export function containerId({ mappings }: RangePlan, id: number): number | undefined {
  const found = mappings.find(({ hostID, size }) => id >= hostID && id < hostID + size);
  return found === undefined ? undefined : found.containerID + id - found.hostID;
}
