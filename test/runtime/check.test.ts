import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { checkHost, checkNested, isRootless, testHost } from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";

test("checkHost finds what this host can do and leaves nothing behind", async () => {
  const stateDir = mkdtempSync(join(tmpdir(), "slipway-check-"));
  try {
    const checks = await checkHost({ stateDir });
    expect(checks.filter(({ ok, required }) => required && !ok)).toEqual([]);
    expect(checks.map(({ name }) => name)).toContain(
      isRootless() ? "overlay in a user namespace" : "overlay on idmapped layers",
    );
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

test("checkNested tries in a nested container what builders need", async () => {
  await using host = await TestHost.open();
  expect(await checkNested(host.host)).toMatchObject({ name: "nested steps", ok: true, required: false });
});

describe("checkHost on what limits need", () => {
  test("tells how disks, I/O and the kernel's log can be used, and requires none of it", async () => {
    const directory = mkdtempSync(join(tmpdir(), "slipway-check-"));
    try {
      const checks = await checkHost({ stateDir: directory });
      const found = (name: string) => checks.find((check) => check.name === name);
      expect(found("disk")?.found).toMatch(
        /GiB free in ".*"; what steps write is (measured|counted by project quotas)$/,
      );
      expect(found("I/O limits")).toMatchObject({ required: false, found: expect.stringMatching(/./) as string });
      expect(found("kernel log")).toMatchObject({ required: false, found: expect.stringMatching(/./) as string });
      expect(readdirSync(directory)).toEqual([]);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});
