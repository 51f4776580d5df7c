import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { describeTree, isRoot } from "./image-fixture.ts";
import { look } from "./layer-view-fixture.ts";

describe.skipIf(!isRoot)("openLayerView", () => {
  test.for([false, true])(
    "shows layers as one and keeps changes in the upper directory; by path: %s",
    async (byPath) => {
      const directory = mkdtempSync(join(tmpdir(), "slipway-view-"));
      try {
        for (const name of ["one/etc", "two/etc", "two/usr/lib", "empty"])
          mkdirSync(join(directory, name), { recursive: true });
        writeFileSync(join(directory, "one/etc/a"), "a");
        writeFileSync(join(directory, "two/etc/b"), "b");
        symlinkSync("/usr/lib", join(directory, "two/lib"));
        symlinkSync("../../../../../etc", join(directory, "two/up"));
        symlinkSync("loop", join(directory, "two/loop"));
        const layers = ["one", "two"].map((name) => join(directory, name));
        const emptyDir = join(directory, "empty");
        const paths = ["lib/x/y", "/up/passwd", "../..", "etc/a/../b", "missing/../etc"];
        expect(await look({ layers, emptyDir, byPath, paths })).toEqual({
          names: ["etc", "lib", "loop", "up", "usr"],
          resolved: [
            { path: "usr/lib/x/y", found: 2 },
            { path: "etc/passwd", found: 1 },
            { path: "", found: 0 },
            { path: "etc/b", found: 2 },
            { path: "etc", found: 1 },
          ],
        });
        const [upper, work] = [join(directory, "upper"), join(directory, "work")];
        await look({ layers, emptyDir, byPath, upper, work, paths: [] });
        expect(describeTree(upper)).toEqual({ etc: "d 0:0 755", "etc/a": "c 0", "etc/new": "f 0:0 600 " });
        await expect(look({ layers, emptyDir, byPath, paths: ["loop"] })).rejects.toThrow("ELOOP");
        await look({ layers: layers.slice(0, 1), emptyDir, byPath, paths: [] });
        await look({ layers: [], emptyDir, byPath, paths: [] });
        expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(directory);
      } finally {
        rmSync(directory, { recursive: true });
      }
    },
  );
});
