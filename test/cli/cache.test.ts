import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { CacheMounts } from "../../build/cache-mounts.ts";
import { ContainerCaches } from "../../runtime/index.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { slipway, TemporaryDirectory } from "./command.ts";

describe.skipIf(!isRoot)("slipway cache", () => {
  const { signal } = new AbortController();

  /** One of each kind, kept by an agent and by a command. */
  async function filled(dataDir: string) {
    const run = join(dataDir, "run");
    const take = (stateDir: string, namespace: string, id: string) =>
      new CacheMounts(stateDir, namespace).take(id, {
        uid: 0,
        gid: 0,
        mode: 0o755,
        sharing: "shared",
        signal,
        scratch: (name) => join(run, name),
      });
    const npm = await take(run, "", "npm");
    writeFileSync(join(npm.directory, "package"), Buffer.alloc(100_000));
    const apt = await take(join(dataDir, "agent"), "repository 7", "apt");
    apt[Symbol.dispose]();
    const source = join(dataDir, "left-by-a-job");
    mkdirSync(join(source, "overlay"), { recursive: true });
    const caches = new ContainerCaches(join(run, "0/container-caches"), {
      budgetBytes: Infinity,
      remove: () => Promise.resolve(),
    });
    await caches.keep({ namespace: "local /src", name: "images" }, source);
    return { npm };
  }

  async function list(dataDir: string): Promise<string[]> {
    const { code, stdout } = await slipway(["cache", "ls", "--json", "--data-dir", dataDir]);
    expect(code).toBe(0);
    const rows = JSON.parse(stdout) as { kind: string; name: string; owner: string; place: string; bytes: number }[];
    return rows.map(({ kind, name, owner, place }) => `${kind} ${name} (${owner}) ${place}`).sort();
  }

  test("lists what agents and commands have kept, and removes what nobody uses", async () => {
    await using directory = await TemporaryDirectory.create({});
    const { path } = directory;
    const empty = await slipway(["cache", "ls", "--data-dir", path]);
    expect(empty).toMatchObject({ code: 0, stderr: "Builds have kept nothing yet\n" });
    const { npm } = await filled(path);
    const [images, apt, kept] = [
      "containers images (local /src) run/0",
      "mount apt (repository 7) agent",
      "mount npm () run",
    ];
    expect(await list(path)).toEqual([images, apt, kept]);
    const all = await slipway(["cache", "rm", "--all", "--data-dir", path]);
    expect(all).toMatchObject({ code: 1, stderr: "slipway: npm (run) is in use and stays\n" });
    expect(all.stdout).toMatch(/^removed (images|apt) \(.*\nremoved (images|apt) \(.*\n.* freed\n$/);
    expect(await list(path)).toEqual([kept]);
    npm[Symbol.dispose]();
    const one = await slipway(["cache", "rm", "npm", "--data-dir", path]);
    expect(one).toMatchObject({ code: 0, stderr: "" });
    expect(one.stdout).toMatch(/^removed npm \(run\)\n\d+ KiB freed\n$/);
    expect(await list(path)).toEqual([]);
  });

  test("removes by kind and age, and says which name there is not", async () => {
    await using directory = await TemporaryDirectory.create({});
    const { path } = directory;
    (await filled(path)).npm[Symbol.dispose]();
    const options = ["--data-dir", path];
    const old = await slipway(["cache", "rm", "--all", "--unused-for", "1d", ...options]);
    expect(old).toMatchObject({ code: 0, stdout: "0 bytes freed\n" });
    const kind = await slipway(["cache", "rm", "--all", "--kind", "containers", ...options]);
    expect(kind.stdout).toMatch(/^removed images \(run\/0\)\n/);
    expect(await list(path)).toEqual(["mount apt (repository 7) agent", "mount npm () run"]);
    for (const args of [["images"], [], ["npm", "--all"], ["npm", "--kind", "layers"]]) {
      const { code, stderr } = await slipway(["cache", "rm", ...args, ...options]);
      expect({ args, code, stderr }).toMatchObject({ code: 2, stderr: expect.stringMatching(/^slipway: /) as string });
    }
    expect(await list(path)).toHaveLength(2);
  });
});
