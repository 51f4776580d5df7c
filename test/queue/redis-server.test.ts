import { describe, expect, test } from "vitest";
import { findRedisServer, installHint } from "../../queue/index.ts";

describe("findRedisServer", () => {
  test("finds a program that runs, and its version", async () => {
    const server = await findRedisServer();
    expect(server?.path).toMatch(/^\/.*(redis|valkey)-server$/);
    expect(server?.version).toMatch(/^\d+\.\d+/);
  });
});

describe("installHint", () => {
  test("is one line", () => {
    expect(installHint()).toMatch(/^.*(redis|Redis|valkey|Valkey).*$/);
    expect(installHint()).not.toContain("\n");
  });
});
