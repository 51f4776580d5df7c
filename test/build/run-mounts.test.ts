import { chmodSync, chownSync, existsSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import { sweepSecrets } from "../../build/run-mounts.ts";
import { fileAt, tryLock } from "../../runtime/index.ts";
import { isRoot } from "../runtime/image-fixture.ts";

describe.skipIf(!isRoot)("sweepSecrets", () => {
  const made: string[] = [];
  afterEach(() => {
    for (const each of made.splice(0)) rmSync(each, { recursive: true, force: true });
  });

  /** @param prepare Called while it is young: builds of other tests sweep, too. */
  function secret<Result>(ageSeconds: number, prepare: (directory: string) => Result): [string, Result] {
    const directory = mkdtempSync("/dev/shm/slipway-secret-");
    made.push(directory);
    writeFileSync(`${directory}/secret`, "hidden");
    const prepared = prepare(directory);
    const time = Date.now() / 1000 - ageSeconds;
    utimesSync(directory, time, time);
    return [directory, prepared];
  }

  test("removes what a killed build has left, and nothing else", async () => {
    const [left] = secret(60, () => undefined);
    const [young] = secret(0, () => undefined);
    const [used, lock] = secret(60, (directory) => tryLock(directory, "shared"));
    const [open] = secret(60, (directory) => chmodSync(directory, 0o755));
    const [others] = secret(60, (directory) => chownSync(directory, 1000, 1000));
    sweepSecrets();
    // By whoever sweeps.
    await expect.poll(() => existsSync(left)).toBe(false);
    expect([used, young, open, others].filter((each) => !existsSync(each))).toEqual([]);
    if (typeof lock === "number") fileAt.closeFile(lock);
  });
});
