/** Cgroups of OCI containers, where several runtimes make and remove them at once. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { findCgroupMounts, makeCgroup, planCgroup, removeCgroup, subCgroups } from "../../runtime/oci-cgroup.ts";

const parent = `slipway-test-oci-cgroup-${process.pid}`;
const mounts = findCgroupMounts();
const places = (path: string) => mounts.map(({ mountPoint }) => join(mountPoint, path));

/** Makes and removes fifty in a parent that goes whenever it is empty. */
const loop = `
  const { existsSync } = await import("node:fs");
  const { findCgroupMounts, makeCgroup, planCgroup, removeCgroup } = await import(${JSON.stringify(new URL("../../runtime/oci-cgroup.ts", import.meta.url).href)});
  const mounts = findCgroupMounts();
  for (let i = 0; i < 50; i++) {
    const path = "/${parent}/" + process.pid + "-" + i;
    const cgroup = planCgroup(path, mounts);
    makeCgroup(path, mounts);
    for (const { path } of cgroup.directories) if (!existsSync(path)) throw new Error("gone: " + path);
    removeCgroup(cgroup);
    for (const { path } of cgroup.directories) if (existsSync(path)) throw new Error("left: " + path);
  }
`;

describe("cgroups of containers with a parent in common", () => {
  test("come and go side by side, in a parent that goes whenever it is empty", async () => {
    const children = [1, 2, 3].map(() =>
      spawn(process.execPath, ["--input-type=module", "-e", loop], { stdio: ["ignore", "ignore", "pipe"] }),
    );
    const ends = await Promise.all(
      children.map(async (child) => {
        let stderr = "";
        child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
        const [code] = await once(child, "close");
        return { code: code as unknown, stderr };
      }),
    );
    expect(ends).toEqual(children.map(() => ({ code: 0, stderr: "" })));
    // Whoever made it has removed it if nobody was in it then.
    for (const place of places(parent)) if (existsSync(place)) rmdirSync(place);
  });

  test("are removed without those of others that have no process yet", () => {
    const path = `/${parent}/first`;
    const first = planCgroup(path, mounts);
    makeCgroup(path, mounts);
    const second = planCgroup(`/${parent}/second`, mounts);
    makeCgroup(`/${parent}/second`, mounts);
    removeCgroup(first);
    expect(places(`${parent}/first`).filter((place) => existsSync(place))).toEqual([]);
    expect(places(`${parent}/second`).filter((place) => !existsSync(place))).toEqual([]);
    removeCgroup(second);
    for (const place of places(parent)) rmdirSync(place);
  });
});

describe("subCgroups", () => {
  test("finds what is below the container's own, and nothing else", () => {
    const path = `/${parent}/own`;
    const cgroup = planCgroup(path, mounts);
    makeCgroup(path, mounts);
    for (const place of places(`${parent}/own`)) mkdirSync(join(place, "sub"));
    const own = cgroup.directories.map(({ path: at }) => at);
    expect(subCgroups(cgroup, ["/"])).toEqual(own);
    expect(subCgroups(cgroup, ["sub"])).toEqual(own.map((at) => `${at}/sub`));
    const controller = cgroup.directories.flatMap(({ controllers }) => controllers)[0] ?? "";
    const chosen = subCgroups(cgroup, [`${controller}:sub`]);
    expect(chosen.filter((at) => at.endsWith("/sub")).length).toBe(1);
    const refused =
      (...words: string[]) =>
      () =>
        subCgroups(cgroup, words);
    expect(refused("..")).toThrow('bad sub cgroup path ".."');
    expect(refused("sub/../..")).toThrow("bad sub cgroup path");
    expect(refused("nothing")).toThrow("no such file or directory");
    expect(refused("whaaat:/")).toThrow('unknown controller "whaaat"');
    expect(refused(":sub")).toThrow('unknown controller ""');
    expect(refused("sub", "sub")).toThrow("name a controller for each of several");
    expect(refused(`${controller}:sub`, `${controller}:sub`)).toThrow("is named twice");
    removeCgroup(cgroup);
  });
});
