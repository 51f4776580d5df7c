/** `slipway oci` of an ordinary user, who has no cgroups and makes no network. */
import { spawn } from "node:child_process";
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { exampleConfig, rootlessConfig } from "../../runtime/oci-spec.ts";
import { type Outcome, RootlessUser } from "./rootless-user.ts";

const slipway = fileURLToPath(new URL("../../cli/slipway.cjs", import.meta.url));

let user: RootlessUser;
let runtimeDirectory: string;
beforeAll(() => {
  user = new RootlessUser();
  runtimeDirectory = user.directoryOf("run");
});
afterAll(async () => {
  // Of a test that failed.
  const states = join(runtimeDirectory, "slipway/oci");
  for (const id of existsSync(states) ? readdirSync(states) : []) await oci("delete", "--force", id);
  user[Symbol.dispose]();
});

/** What is left of all containers. */
const left = () => [...readdirSync(join(runtimeDirectory, "slipway/oci")), ...processes()];

const oci = (...args: readonly string[]): Promise<Outcome> =>
  user.slipway(["oci", ...args], { environment: { XDG_RUNTIME_DIR: runtimeDirectory } });

/** A line of a shell in the user's home, in which "$@" is `slipway oci`. */
const shell = (line: string, environment: NodeJS.ProcessEnv = {}): Promise<Outcome> =>
  user.run(["sh", "-c", line, "sh", user.node, user.file("cli/slipway.cjs"), "oci"], {
    environment: { XDG_RUNTIME_DIR: runtimeDirectory, ...environment },
  });

/** Of the user, in any namespace; who made a container does not reap it. */
function processes(): string[] {
  const own = new Set([user.uid, user.firstSubordinate, user.firstSubordinate + 999].map(String));
  return readdirSync("/proc").filter((pid) => {
    try {
      const status = /^\d+$/.test(pid) ? readFileSync(`/proc/${pid}/status`, "utf8") : "";
      return own.has(/^Uid:\t(\d+)/m.exec(status)?.[1] ?? "") && !/^State:\tZ/m.test(status);
    } catch {
      return false;
    }
  });
}

let bundles = 0;

/** A bundle of the user, as `slipway oci spec --rootless` writes it, that runs a shell. */
function bundle(
  script: string,
  {
    process = {},
    linux = {},
    hooks = {},
  }: { readonly process?: object; readonly linux?: object; readonly hooks?: object } = {},
) {
  const path = user.directoryOf(`bundle${bundles++}`);
  const rootfs = join(path, "rootfs");
  for (const name of ["", "dev", "etc", "proc", "sys", "tmp", "usr"]) {
    mkdirSync(join(rootfs, name), { recursive: true });
    chownSync(join(rootfs, name), user.uid, user.gid);
  }
  for (const name of ["bin", "lib", "lib64"]) symlinkSync(`usr/${name}`, join(rootfs, name));
  const config = rootlessConfig(exampleConfig()) as ReturnType<typeof exampleConfig>;
  const own = (hostID: number) => [{ containerID: 0, hostID, size: 1 }];
  const whole = {
    ...config,
    process: { ...config.process, terminal: false, args: ["sh", "-c", script], ...process },
    mounts: [...config.mounts, { destination: "/usr", source: "/usr", options: ["rbind", "ro"] }],
    linux: { ...config.linux, uidMappings: own(user.uid), gidMappings: own(user.gid), ...linux },
    hooks,
  };
  writeFileSync(join(path, "config.json"), JSON.stringify(whole));
  return path;
}

/** Root is the user, the others have subordinate ids. */
function subordinate() {
  const mappings = (hostID: number) => [
    { containerID: 0, hostID, size: 1 },
    { containerID: 1, hostID: user.firstSubordinate, size: 1000 },
  ];
  return { uidMappings: mappings(user.uid), gidMappings: mappings(user.gid) };
}

describe("slipway oci of a user", () => {
  test("runs what `spec --rootless` describes, with the program's exit code", async () => {
    const at = bundle("id -u; cat /proc/self/setgroups; exit 7");
    expect(await oci("run", "--bundle", at, "a")).toMatchObject({ code: 7, stdout: "0\ndeny\n", stderr: "" });
    expect(left()).toEqual([]);
  });

  test("writes that itself", async () => {
    const at = user.directoryOf("written");
    expect(await oci("spec", "--rootless", "--bundle", at)).toMatchObject({ code: 0, stderr: "" });
    const { linux } = JSON.parse(readFileSync(join(at, "config.json"), "utf8"));
    expect(linux).toMatchObject({ uidMappings: [{ containerID: 0, hostID: user.uid, size: 1 }] });
    expect(linux).toMatchObject({ gidMappings: [{ containerID: 0, hostID: user.gid, size: 1 }] });
  });

  test("gives subordinate ids to whom the configuration does", async () => {
    const ids = { uid: 1000, gid: 1000, additionalGids: [5] };
    const at = bundle("id; cat /proc/self/uid_map", { process: { user: ids }, linux: subordinate() });
    const { code, stdout, stderr } = await oci("run", "--bundle", at, "b");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^uid=1000.* gid=1000.* groups=1000.*,5/);
    expect(stdout).toMatch(new RegExp(`^ +1 +${user.firstSubordinate} +1000$`, "m"));
    expect(left()).toEqual([]);
  });

  test("goes through a container's whole life, each time from outside", async () => {
    const at = bundle("echo begun; sleep 1000 & wait", { linux: subordinate() });
    const out = join(user.home, "out");
    const created = await shell(`exec "$@" create --bundle ${at} c > ${out} 2>&1`);
    expect({ ...created, output: readFileSync(out, "utf8") }).toMatchObject({ code: 0, output: "" });
    expect(JSON.parse((await oci("state", "c")).stdout)).toMatchObject({ status: "created" });
    expect(await oci("start", "c")).toMatchObject({ code: 0, stderr: "" });
    expect(await oci("exec", "c", "sh", "-c", "id -u; exit 3")).toMatchObject({ code: 3, stdout: "0\n" });
    expect(await oci("exec", "--user", "1000:1000", "c", "id", "-u")).toMatchObject({ code: 0, stdout: "1000\n" });
    using elsewhere = new RootlessUser({ delegated: true });
    const exec = ["oci", "exec", "c", "echo", "done"];
    expect(await elsewhere.slipway(exec, { environment: { XDG_RUNTIME_DIR: runtimeDirectory } })).toMatchObject({
      code: 0,
      stdout: "done\n",
      stderr: "",
    });
    expect(JSON.parse((await oci("ps", "--format", "json", "c")).stdout)).toHaveLength(2);
    expect((await oci("list", "--quiet")).stdout).toBe("c\n");
    expect((await oci("delete", "c")).stderr).toContain("it is running, not stopped");
    expect(await oci("kill", "c", "KILL")).toMatchObject({ code: 0, stderr: "" });
    expect(await oci("delete", "--force", "c")).toMatchObject({ code: 0, stderr: "" });
    expect(readFileSync(out, "utf8")).toBe("begun\n");
    expect(left()).toEqual([]);
  });

  test.each([
    ["--preserve-fds 1", {}],
    ["", { LISTEN_FDS: "1" }],
  ])("hands a descriptor on: run %s %o", async (option, environment) => {
    const at = bundle("cat <&3");
    const { stdout, stderr } = await shell(
      `echo handed | exec "$@" run ${option} --bundle ${at} e 3<&0 <&-`,
      environment,
    );
    expect({ stdout, stderr, left: left() }).toEqual({ stdout: "handed\n", stderr: "", left: [] });
  });

  test("keeps from hooks that it has started itself again", async () => {
    const log = join(user.home, "hooks");
    const hook = { path: "/bin/sh", args: ["sh", "-c", `env | grep -e XDG_ -e SLIPWAY >> ${log}`] };
    const kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    const at = bundle("true", { hooks: Object.fromEntries(kinds.map((kind) => [kind, [hook]])) });
    expect(await oci("run", "--bundle", at, "f")).toMatchObject({ code: 0, stderr: "" });
    expect(readFileSync(log, "utf8")).toBe(`XDG_RUNTIME_DIR=${runtimeDirectory}\n`.repeat(kinds.length));
    expect(left()).toEqual([]);
  });

  test("has containers that root can see but has to leave to the user", async () => {
    const trace = join(user.home, "trace");
    const hooks = { poststop: [{ path: "/bin/sh", args: ["sh", "-c", `id -u > ${trace}`] }] };
    expect(await shell(`exec "$@" create --bundle ${bundle("true", { hooks })} g > out 2>&1`)).toMatchObject({
      code: 0,
    });
    const root = async (...args: readonly string[]) => {
      const at = ["--root", join(runtimeDirectory, "slipway/oci")];
      // On a machine without accounts.
      const command = ["--mount", "sh", "-c", 'mount -t tmpfs none /etc && exec "$@"', "sh", process.execPath, slipway];
      const child = spawn("unshare", [...command, "oci", ...at, ...args], { stdio: ["ignore", "pipe", "pipe"] });
      const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
      return stdout + stderr;
    };
    expect(JSON.parse(await root("list", "--format", "json"))).toMatchObject([{ id: "g", owner: `#${user.uid}` }]);
    expect(JSON.parse(await root("state", "g"))).toMatchObject({ status: "created" });
    for (const args of [
      ["delete", "--force", "g"],
      ["kill", "g", "KILL"],
      ["start", "g"],
      ["exec", "g", "id"],
      ["pause", "g"],
    ]) {
      expect(await root(...args)).toBe(`slipway: Container "g" belongs to user ${user.uid}: do this as that user\n`);
    }
    expect(JSON.parse((await oci("list", "--format", "json")).stdout)).toMatchObject([{ owner: "rootless" }]);
    expect(existsSync(trace)).toBe(false);
    expect(await oci("delete", "--force", "g")).toMatchObject({ code: 0, stderr: "" });
    expect(readFileSync(trace, "utf8")).toBe(`${user.uid}\n`);
    expect(left()).toEqual([]);
  });

  test.each(["", "relative", "/root/of-nobody"])(
    "says what is missing for state with XDG_RUNTIME_DIR %j",
    async (place) => {
      const { code, stderr } = await shell(`exec "$@" run --bundle ${bundle("true")} h`, { XDG_RUNTIME_DIR: place });
      expect(stderr).toMatch(
        /^slipway: Cannot create container "h": its state cannot be kept in "\/.*\/h": E[A-Z]+; .*--root.*\n$/,
      );
      expect({ code, left: left() }).toEqual({ code: 1, left: [] });
    },
  );

  test.each([
    [
      "no user namespace",
      {
        linux: {
          namespaces: ["mount", "uts", "pid", "ipc"].map((type) => ({ type })),
          uidMappings: [],
          gidMappings: [],
        },
      },
      /no new user namespace.*spec --rootless/,
    ],
    [
      "another user's ids",
      { linux: { uidMappings: [{ containerID: 0, hostID: 12_345, size: 1 }] } },
      /newuidmap|12345/,
    ],
    [
      "groups without subordinate ids",
      { process: { user: { uid: 0, gid: 0, additionalGids: [0] } } },
      /additionalGids/,
    ],
    [
      "limits, which need a cgroup",
      { linux: { resources: { memory: { limit: 1 << 26 } } } },
      /linux\.resources\.memory.*no cgroup of the user's/,
    ],
    ["a cgroup that it may not make", { linux: { cgroupsPath: "/of-nobody" } }, /Cannot make cgroup "\/of-nobody"/],
  ])("refuses %s", async (_, options, message) => {
    const { code, stderr } = await oci("run", "--bundle", bundle("true", options), "d");
    expect(stderr).toMatch(message);
    expect({ code, left: left() }).toEqual({ code: 1, left: [] });
  });
});
