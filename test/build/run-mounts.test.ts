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

  function secret(ageSeconds: number): string {
    const directory = mkdtempSync("/dev/shm/slipway-secret-");
    made.push(directory);
    writeFileSync(`${directory}/secret`, "hidden");
    const time = Date.now() / 1000 - ageSeconds;
    utimesSync(directory, time, time);
    return directory;
  }

  test("removes what a killed build has left, and nothing else", () => {
    const [left, used, young, open, others] = [secret(60), secret(60), secret(0), secret(60), secret(60)];
    const lock = tryLock(used, "shared");
    chmodSync(open, 0o755);
    chownSync(others, 1000, 1000);
    sweepSecrets();
    if (typeof lock === "number") fileAt.closeFile(lock);
    expect(existsSync(left)).toBe(false);
    expect([used, young, open, others].filter((each) => !existsSync(each))).toEqual([]);
  });
});
