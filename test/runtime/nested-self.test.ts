/** Slipway's own tests in a nested step: their containers are two levels deep. `npm run test:nested` runs all of them so. */
import { relative } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { TestHost } from "./host-fixture.ts";
import { needRight } from "./host-rights.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
});
afterAll(async () => host[Symbol.asyncDispose]());

test("a nested step runs containers, and builds layers in them", { timeout: 240_000 }, async (context) => {
  // Else the working tree would be copied, and the third level would be one too deep for its overlays.
  needRight("idmapped mounts of the machine's files", context);
  const inside = relative(root, process.execPath);
  const node = inside.startsWith("..") ? process.execPath : `/workspace/${inside}`;
  const files = ["upper-layer", "root-pool", "layer-view"].map((name) => `test/runtime/${name}.test.ts`);
  const { exitCode, stdout, stderr } = await host.run(
    `${node} node_modules/vitest/vitest.mjs run ${files.join(" ")} 2>&1`,
    {
      nested: { home: "/root" },
      workspace: { dir: root, copyOnWrite: true },
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", HOME: "/root", NO_COLOR: "1", CI: "true" },
      resources: { memoryBytes: 2 * 2 ** 30, cpu: 2, pids: 2000 },
    },
  );
  expect({ exitCode, stderr, output: exitCode === 0 ? "" : stdout }).toEqual({ exitCode: 0, stderr: "", output: "" });
  expect(stdout).toMatch(/Test Files\s+3 passed/);
});
