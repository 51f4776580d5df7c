import { describe, expect, test } from "vitest";
import { parseSubordinateIds, planIdMaps } from "../../runtime/subordinate-ids.ts";

const alice = { uid: 1000, gid: 1000, name: "alice" };

describe("parseSubordinateIds", () => {
  test("finds lines by name and by uid, in their order", () => {
    const text = "bob:100000:65536\nalice:165536:65536\n1000:300000:1000\n";
    expect(parseSubordinateIds(text, alice)).toEqual([
      { start: 165536, count: 65536 },
      { start: 300000, count: 1000 },
    ]);
  });

  test("skips comments and what is no range", () => {
    const lines = [
      "#alice:1:2",
      "alice",
      "alice:x:1",
      "alice:100000:0",
      "alice:0:10",
      "alice:4294967295:1",
      "alice:1:2:3",
    ];
    expect(parseSubordinateIds(lines.join("\n"), alice)).toEqual([]);
  });

  test("does not take a number for a name", () => {
    expect(parseSubordinateIds("1000:5:5\n", { uid: 1001, gid: 1, name: "1000x" })).toEqual([]);
  });
});

describe("planIdMaps", () => {
  test("leaves the user who they are and puts the rest where nothing else is", () => {
    const range = [{ start: 100000, count: 65536 }];
    const { uids } = planIdMaps(alice, { uids: range, gids: range });
    expect(uids).toEqual([
      { containerID: 1000, hostID: 1000, size: 1 },
      { containerID: 1 << 28, hostID: 100000, size: 65536 },
    ]);
  });

  test("has as many uids as gids, at the same places", () => {
    const { uids, gids } = planIdMaps(alice, {
      uids: [
        { start: 100000, count: 1000 },
        { start: 200000, count: 1000 },
      ],
      gids: [{ start: 500000, count: 1500 }],
    });
    expect(uids.slice(1)).toEqual([
      { containerID: 1 << 28, hostID: 100000, size: 1000 },
      { containerID: (1 << 28) + 1000, hostID: 200000, size: 500 },
    ]);
    expect(gids.slice(1)).toEqual([{ containerID: 1 << 28, hostID: 500000, size: 1500 }]);
  });

  test("makes room for a user id of a directory service", () => {
    const range = [{ start: 100000, count: 65536 }];
    const { uids } = planIdMaps({ uid: (1 << 28) + 5, gid: 1000 }, { uids: range, gids: range });
    expect(uids[1]?.containerID).toBe(1 << 29);
  });

  test("is the own id alone without gids", () => {
    const { uids, gids } = planIdMaps(alice, { uids: [{ start: 100000, count: 65536 }], gids: [] });
    expect([uids.length, gids.length]).toEqual([1, 1]);
  });
});
