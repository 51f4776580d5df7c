/** What a step may ask for beside image and program, on the real kernel. */
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { explainContainer, explainProgram, formatOciConfig } from "../../runtime/index.ts";
import { parseOciConfig } from "../../runtime/oci-config.ts";
import { TestHost } from "./host-fixture.ts";
import { needRight } from "./host-rights.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
});
afterAll(async () => host[Symbol.asyncDispose]());

describe("user", () => {
  const user = { uid: 1000, gid: 100, additionalGids: [27, 44], umask: 0o077 };

  test("has its ids, groups and umask, and no capability but in the bounding set", async () => {
    const { stdout } = await host.run("id -u; id -g; id -G; umask; grep ^Cap /proc/self/status | tr -s '\\t' ' '", {
      user,
    });
    const none = "0000000000000000";
    expect(stdout).toBe(
      `1000\n100\n100 27 44\n0077\nCapInh: ${none}\nCapPrm: ${none}\nCapEff: ${none}\nCapBnd: 00000000a80425fb\nCapAmb: ${none}\n`,
    );
  });

  test("can write the workspace, which is its own, and nothing of root's", async (context) => {
    needRight("idmapped mounts of the machine's files", context);
    const workspace = host.workspace();
    writeFileSync(join(workspace, "roots"), "");
    chmodSync(workspace, 0o777);
    const { stdout } = await host.run(
      "echo 1 > mine; stat -c '%u %g' mine; echo 1 > roots; (echo 1 > /etc/hosts) 2>&1; echo out > /dev/stdout; echo 1 > /dev/null",
      { user, workspace: { dir: workspace } },
    );
    expect(stdout).toMatch(/^1000 100\n.*hosts: Permission denied\n$/m);
    // Root's for the steps of other users, who see it as theirs.
    expect(lstatSync(join(workspace, "mine")).uid).toBe(0);
  });

  test("may have a working directory that only it can enter, or none that exists yet", async () => {
    const layer = host.workspace();
    mkdirSync(join(layer, "private"), { mode: 0o700 });
    execFileSync("chown", ["1000:100", join(layer, "private")]);
    const image = { ...host.image, layers: [...host.image.layers, layer] };
    expect((await host.run("pwd", { image, user, cwd: "/private" })).stdout).toBe("/private\n");
    expect((await host.run("pwd; stat -c %u .", { image, user, cwd: "/a/b" })).stdout).toBe("/a/b\n0\n");
  });
});

describe("mounts", () => {
  test("are directories and files of the host with mapped ids, read-only if that is asked for", async (context) => {
    needRight("idmapped mounts of the machine's files", context);
    const cache = host.workspace();
    writeFileSync(join(cache, "before"), "kept\n");
    const { stdout, stderr } = await host.run(
      "cat /root/.cache/before; echo new > /root/.cache/after; stat -c %u /root/.cache/after; cat /run/secrets/key; " +
        "(echo 1 > /run/secrets/key) 2>/dev/null || echo refused; (echo 1 > /ro/x) 2>/dev/null || echo refused",
      {
        mounts: [
          { type: "bind", source: cache, target: "/root/.cache" },
          { type: "bind", source: join(cache, "before"), target: "/run/secrets/key", readonly: true },
          { type: "bind", source: cache, target: "/ro", readonly: true, recursive: true },
        ],
      },
    );
    expect(stderr).toBe("");
    expect(stdout).toBe("kept\n0\nkept\nrefused\nrefused\n");
    expect(lstatSync(join(cache, "after")).uid).toBe(0);
  });

  test("are tmpfs with their size and mode", async () => {
    const { stdout } = await host.run(
      "stat -c %a /scratch; df -k --output=size /scratch | tail -1; head -c 2M /dev/zero 2>&1 > /scratch/x || true",
      {
        mounts: [{ type: "tmpfs", target: "/scratch", sizeBytes: 1 << 20, mode: 0o750 }],
      },
    );
    expect(stdout).toMatch(/^750\n\s*1024\n.*No space left/);
  });

  test("land inside the container, however an image bends their way", async () => {
    const layer = host.workspace();
    for (const [name, to] of [
      ["up", "../../../../../.."],
      ["abs", "/etc"],
      ["proc-root", "/proc/1/root"],
    ] as const) {
      symlinkSync(to, join(layer, name));
    }
    const image = { ...host.image, layers: [...host.image.layers, layer] };
    const names = readdirSync("/");
    for (const target of ["/up/slipway-mount", "/abs/slipway-mount", "/proc-root/slipway-mount"]) {
      const mounts = [{ type: "bind", source: layer, target } as const];
      await host.run("true", { image, mounts }).catch(() => undefined);
    }
    expect(readdirSync("/")).toEqual(names);
    expect(existsSync("/etc/slipway-mount")).toBe(false);
  });

  test("say whose source is missing", async () => {
    const mounts = [{ type: "bind", source: "/nowhere", target: "/x" } as const];
    await expect(host.run("true", { mounts })).rejects.toThrow(
      'Cannot mount "/nowhere" on "/x": there is no such file',
    );
  });
});

test("devices are nodes in /dev, also below it", async (context) => {
  needRight("device nodes", context);
  const { stdout } = await host.run("stat -c '%F %t:%T %a %u' /dev/fuse /dev/net/tun", {
    devices: [
      { type: "c", path: "/dev/fuse", major: 10, minor: 229, fileMode: 0o666 },
      { type: "c", path: "/dev/net/tun", major: 10, minor: 200, fileMode: 0o600 },
    ],
  });
  expect(stdout).toBe("character special file a:e5 666 0\ncharacter special file a:c8 600 0\n");
});

test("capabilities are those that are asked for", async () => {
  const { stdout } = await host.run("grep ^CapEff /proc/self/status", { capabilities: ["CAP_CHOWN", "CAP_NET_ADMIN"] });
  expect(stdout).toBe("CapEff:\t0000000000001001\n");
});

test("writableDir keeps what was written, and a later container goes on in it", async () => {
  const writableDir = join(host.host.stateDir, "written");
  mkdirSync(writableDir);
  await host.run("echo kept > /file; rm /etc/hosts", { writableDir });
  expect(readFileSync(join(writableDir, "upper/file"), "utf8")).toBe("kept\n");
  expect(lstatSync(join(writableDir, "upper/etc/hosts")).isCharacterDevice()).toBe(true);
  const { stdout } = await host.run("cat /file; ls /etc/hosts 2>&1 || true", { writableDir });
  expect(stdout).toMatch(/^kept\n.*No such file/);
});

test("explainContainer says what runContainer would do, in terms that slipway oci takes", () => {
  const before = readdirSync(`${host.host.stateDir}/containers`);
  const explained = explainContainer(host.host, host.prepared({ workspace: { dir: host.workspace() } }), {
    args: ["/bin/true"],
    env: {},
  });
  const config = parseOciConfig(formatOciConfig(explained.config));
  expect(config.mounts?.map(({ destination }) => destination)).toContain("/workspace");
  expect(config.linux?.uidMappings).toEqual([{ containerID: 0, hostID: host.range.base, size: host.range.size }]);
  const text = explainProgram(explained.operations);
  expect(text).toContain("move_mount(");
  expect(text.indexOf("# set no_new_privs")).toBeLessThan(text.indexOf("# execute the program"));
  expect(readdirSync(`${host.host.stateDir}/containers`)).toEqual(before);
});
