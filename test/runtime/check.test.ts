import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { checkHost, testHost } from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";

test("checkHost finds what this host can do and leaves nothing behind", async () => {
  const stateDir = mkdtempSync(join(tmpdir(), "slipway-check-"));
  try {
    const checks = await checkHost({ stateDir });
    expect(checks.filter(({ ok, required }) => required && !ok)).toEqual([]);
    expect(checks.map(({ name }) => name)).toContain("overlay on idmapped layers");
    expect(readdirSync(stateDir)).toEqual([]);
  } finally {
    rmSync(stateDir, { recursive: true });
  }
});

test("testHost starts a whole container and leaves nothing behind", async () => {
  await using host = await TestHost.open();
  expect(await testHost(host.host)).toMatchObject({ ok: true, found: expect.stringMatching(/^started and gone in/) });
  expect(existsSync(join(host.host.stateDir, "self-test"))).toBe(false);
});
