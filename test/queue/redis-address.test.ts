import { describe, expect, test } from "vitest";
import { parseRedisAddress } from "../../queue/redis-address.ts";

describe("parseRedisAddress", () => {
  test.for<[string, object]>([
    ["redis://localhost", { host: "localhost", port: 6379, tls: false, db: 0, display: "redis://localhost:6379" }],
    ["redis://h:1/3", { host: "h", port: 1, db: 3, display: "redis://h:1/3" }],
    ["redis://[::1]:7000", { host: "::1", port: 7000, display: "redis://[::1]:7000" }],
    ["rediss://u:p%40ss@h", { host: "h", tls: true, username: "u", password: "p@ss", display: "rediss://h:6379" }],
    ["redis://:secret@h", { host: "h", password: "secret", display: "redis://h:6379" }],
    ["unix:///run/a%20b.sock?db=2", { path: "/run/a b.sock", db: 2, display: "unix:///run/a b.sock" }],
    [
      "unix://u:p%2Fw@/run/r.sock",
      { path: "/run/r.sock", username: "u", password: "p/w", display: "unix:///run/r.sock" },
    ],
    ["/run/redis.sock", { path: "/run/redis.sock", db: 0, display: "unix:///run/redis.sock" }],
  ])("reads %s", ([address, expected]) => {
    expect(parseRedisAddress(address)).toMatchObject(expected);
  });

  test.for<[string, string]>([
    ["localhost:6379", '"localhost:" is not a known scheme'],
    ["http://h", '"http:" is not a known scheme'],
    ["redis", "it is not a URL"],
    ["", "it is not a URL"],
    ["unix://run/redis.sock", "three slashes"],
    ["redis://h/x", 'the database "x" is not a number'],
    [`/${"a".repeat(107)}`, "a Unix socket's path has at most 107 bytes, this one has 108"],
  ])("refuses %s", ([address, reason]) => {
    expect(() => parseRedisAddress(address)).toThrow(reason);
  });

  test.for([
    "http://u:hunter2@h",
    "u:hunter2@h:6379",
    "redis://u:hunter2@h:port",
    "redis://u:hunter2@h/x",
    "redis://u:hun/ter2@h:1:1",
    "redis://u:%zzhunter2@h",
    "redis://:hunter2/x@h",
    "unix://:hunter2@host/x",
  ])("keeps the password of %s out of its error", (address) => {
    let message = "accepted";
    try {
      parseRedisAddress(address);
    } catch (error) {
      message = String(error);
    }
    expect(message).not.toMatch(/hunter2|ter2/);
    expect(message).toContain("give one like redis://host:6379");
  });
});
