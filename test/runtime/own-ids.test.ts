import { describe, expect, test } from "vitest";
import { agentId, containerId, type OwnIds, ownIds, parseIdMap, planRanges } from "../../runtime/own-ids.ts";

const wholeHost = parseIdMap("         0          0 4294967295\n");
const user = parseIdMap("1000 1000 1\n268435456 100000 65536\n");
const none: OwnIds = { all: false, spare: [], own: 1000 };

describe("ownIds", () => {
  test("has everything in the host's own user namespace", () => {
    expect(ownIds({ uids: wholeHost, gids: wholeHost, uid: 0, gid: 0 }).all).toBe(true);
  });

  test("leaves a user's own id out of what is spare", () => {
    const found = ownIds({ uids: user, gids: user, uid: 1000, gid: 1000 });
    expect(found).toEqual({ all: false, own: 1000, spare: [{ first: 268435456, count: 65536 }] });
  });

  test("takes only ids that are uids and gids, within one line of each map", () => {
    const gids = parseIdMap("1000 1000 1\n268435456 100000 1000\n268436456 300000 1000\n");
    const { spare } = ownIds({ uids: user, gids, uid: 1000, gid: 1000 });
    expect(spare).toEqual([
      { first: 268435456, count: 1000 },
      { first: 268436456, count: 1000 },
    ]);
  });

  test("leaves the ids of the system around it to root in a large user namespace, not in a small one", () => {
    const large = parseIdMap("0 500000 262144\n");
    expect(ownIds({ uids: large, gids: large, uid: 0, gid: 0 }).spare).toEqual([{ first: 65536, count: 196608 }]);
    const small = parseIdMap("0 500000 65536\n");
    expect(ownIds({ uids: small, gids: small, uid: 0, gid: 0 }).spare).toEqual([{ first: 1, count: 65535 }]);
  });

  test("cuts around an own id in the middle", () => {
    const map = parseIdMap("0 0 3000\n");
    const { spare } = ownIds({ uids: map, gids: map, uid: 1000, gid: 2000 });
    expect(spare).toEqual([
      { first: 0, count: 1000 },
      { first: 1001, count: 999 },
      { first: 2001, count: 999 },
    ]);
  });
});

describe("planRanges", () => {
  const plan = (count: number) => planRanges({ all: false, spare: [{ first: 1 << 28, count }], own: 1000 });

  test("gives every job of root's 2^21 ids", () => {
    const ranges = planRanges({ all: true, spare: [], own: 0 });
    expect(ranges).toHaveLength(512);
    expect(ranges[1]).toEqual({
      base: (1 << 28) + (1 << 21),
      mappings: [{ containerID: 0, hostID: (1 << 28) + (1 << 21), size: 1 << 21 }],
    });
  });

  test.each([
    [65536, 4, 16384],
    [65535, 4, 15360],
    [262144, 4, 65536],
    [1_048_576, 4, 262144],
    [(1 << 21) - 65536, 7, 262144],
    [10_000, 4, 2048],
    [1000, 1, 1000],
  ])("divides %i ids into %i ranges of %i", (count, ranges, size) => {
    const planned = plan(count);
    expect(planned).toHaveLength(ranges);
    const sizes = planned.map(({ mappings }) => mappings.reduce((sum, mapping) => sum + mapping.size, 0));
    expect(new Set(sizes)).toEqual(new Set([size]));
  });

  test("never gives an id twice, and nobody has a place in every range", () => {
    for (const count of [3, 100, 1025, 9000, 65536, 200_000]) {
      const taken = plan(count)
        .flatMap(({ mappings }) => mappings)
        .toSorted((a, b) => a.hostID - b.hostID);
      taken.forEach(({ hostID, size }, i) =>
        expect(taken[i + 1]?.hostID ?? Infinity).toBeGreaterThanOrEqual(hostID + size),
      );
      expect((taken.at(-1)?.hostID ?? 0) + (taken.at(-1)?.size ?? 0)).toBeLessThanOrEqual((1 << 28) + count);
      for (const range of plan(count)) expect(containerId(range, agentId(range, 65534))).toBe(65534);
    }
  });

  test("has the agent's own id for root where there is no other", () => {
    expect(planRanges(none)).toEqual([{ base: 1000, mappings: [{ containerID: 0, hostID: 1000, size: 1 }] }]);
  });
});

describe("agentId", () => {
  const [first] = planRanges({ all: false, spare: [{ first: 1 << 28, count: 65536 }], own: 1000 });
  const [single] = planRanges(none);

  test("is the other way round of containerId", () => {
    for (const id of [0, 1, 1000, 15871, 65024, 65532, 65534, 65535]) {
      expect(first && containerId(first, agentId(first, id))).toBe(id);
    }
  });

  test("has a nobody for ids that are not in the range", () => {
    expect(first && containerId(first, agentId(first, 30_000))).toBe(65534);
    expect(first && containerId(first, agentId(first, 100_000))).toBe(65534);
    expect(single && agentId(single, 33)).toBe(1000);
  });
});
