/** What those who come from runc and crun expect of an OCI runtime's command line beyond the specification. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { findCgroupMounts } from "../../runtime/oci-cgroup.ts";
import { parseOciConfig } from "../../runtime/oci-config.ts";
import { AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM } from "../../runtime/linux.ts";
import { exampleConfig, rootlessConfig } from "../../runtime/oci-spec.ts";
import { startTime } from "../../runtime/oci-state.ts";
import { close, receiveDescriptor, syscall } from "../../runtime/syscall.ts";
import { needRight } from "./host-rights.ts";
import { namespaces, OciWorld } from "./oci-bundle.ts";

let world: OciWorld;
beforeAll(() => {
  world = new OciWorld();
});
afterAll(() => world[Symbol.dispose]());

const v1Freezer = findCgroupMounts().find(
  ({ version, controllers }) => version === 1 && controllers.includes("freezer"),
);

/** Whoever maps root into a user namespace needs it. */
const setfcap = ["CAP_SETFCAP", "CAP_SYS_ADMIN"];

const mapped = {
  namespaces: [...namespaces, { type: "user" }],
  uidMappings: [{ containerID: 0, hostID: 300_000, size: 65_536 }],
  gidMappings: [{ containerID: 0, hostID: 300_000, size: 65_536 }],
};

/** A container that runs until it is killed. */
function running(change: Parameters<OciWorld["bundle"]>[1] = {}): string {
  const id = world.id();
  expect(world.run("run", "--detach", "--bundle", world.bundle("exec sleep 100", change).path, id)).toMatchObject({
    code: 0,
  });
  return id;
}

describe("oci spec", () => {
  test("writes a configuration that runs, once", () => {
    expect(parseOciConfig(JSON.stringify(exampleConfig())).process?.args).toEqual(["sh"]);
    const bundle = join(world.directory, "example");
    mkdirSync(join(bundle, "rootfs"), { recursive: true });
    expect(world.run("spec", "--bundle", bundle)).toEqual({ code: 0, stdout: "", stderr: "" });
    const config = JSON.parse(readFileSync(join(bundle, "config.json"), "utf8")) as {
      process: { terminal: boolean; args: string[] };
      root: object;
      mounts: object[];
    };
    config.process.terminal = false;
    config.process.args = ["/usr/bin/id", "-u"];
    // A root of links to this host's programs; their targets are made beneath it.
    config.root = { path: "rootfs" };
    for (const name of ["/bin", "/lib", "/lib64"]) symlinkSync(`usr${name}`, join(bundle, "rootfs", name));
    config.mounts.push({ destination: "/usr", source: "/usr", options: ["rbind", "ro"] });
    writeFileSync(join(bundle, "config.json"), JSON.stringify(config));
    expect(world.run("run", "--bundle", bundle, world.id())).toMatchObject({ code: 0, stdout: "0\n" });
    const again = world.run("spec", "--bundle", bundle);
    expect(again).toMatchObject({ code: 1, stderr: expect.stringContaining("it exists; remove it first") });
  });
});

describe("oci create and run", () => {
  test("--config names another file of the bundle", () => {
    const { path } = world.bundle("echo first");
    const other = readFileSync(join(path, "config.json"), "utf8").replace("echo first", "echo second");
    writeFileSync(join(path, "other.json"), other);
    const { stdout } = world.run("run", "--bundle", path, "--config", "other.json", world.id());
    expect(stdout).toBe("second\n");
    const none = world.run("run", "--bundle", path, "--config", "none.json", world.id());
    expect(none.stderr).toContain(`Cannot read the bundle "${path}": none.json: ENOENT`);
  });

  test("--preserve-fds passes on what the caller has open, and nothing of the runtime's", () => {
    const { path } = world.bundle(["/bin/ls", "-l", "/proc/self/fd"]);
    const { stdout, stderr } = world.runWith(
      "3<&- 4<&- 5<&- 6<&- 7</etc/passwd 8<&- 9<&-",
      "run",
      "--preserve-fds",
      "100",
      "--bundle",
      path,
      world.id(),
    );
    const links = stdout.split("\n").flatMap((line) => /\d+ -> .*/.exec(line) ?? []);
    // ls has a descriptor of its own, and Node a null device that cannot be told from a caller's.
    const lines = links.filter((link) => !/^[012] |\/proc\/|\/dev\/null/.test(link));
    expect({ lines, stderr }).toEqual({ lines: ["7 -> /etc/passwd"], stderr: "" });
  });

  test("a log that cannot be written is an error", () => {
    const { code, stderr } = world.run("--log", "/no/such/directory/log", "list");
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: 'slipway: Cannot write the log "/no/such/directory/log": ENOENT\n',
    });
  });

  test("a domain name may be given twice if it is the same", () => {
    const linux = { namespaces, sysctl: { "kernel.domainname": "d" } };
    expect(world.runBundle("cat /proc/sys/kernel/domainname", { domainname: "d", linux }).stdout).toBe("d\n");
  });

  test("a variable twice has its last value, and HOME is never empty", () => {
    const { stdout } = world.runBundle(["/usr/bin/env"], { process: { env: ["A=1", "HOME=", "A=2"] } });
    expect(stdout).toBe("A=2\nHOME=/\n");
  });

  test("a tmpfs without a mode has that of the directory it covers", () => {
    const { path, rootfs } = world.bundle(["/usr/bin/stat", "-c", "%n %a", "/private", "/own", "/made"], {
      mounts: [
        { destination: "/private", type: "tmpfs", source: "tmpfs", options: ["nosuid"] },
        { destination: "/own", type: "tmpfs", source: "tmpfs", options: ["mode=1700"] },
        { destination: "/made", type: "tmpfs", source: "tmpfs" },
      ],
    });
    mkdirSync(join(rootfs, "private"), { mode: 0o710 });
    mkdirSync(join(rootfs, "own"), { mode: 0o710 });
    const { stdout } = world.run("run", "--bundle", path, world.id());
    expect(stdout).toBe("/private 710\n/own 1700\n/made 1777\n");
  });

  test.for([{ options: [] }, { options: ["--no-pivot"] }])(
    "$options: no proc beside the container's, which is masked",
    ({ options }, context) => {
      // Slipway's nested steps have one below what is mounted on it.
      if (/ \/dev\/\.slipway\/proc /.test(readFileSync("/proc/self/mountinfo", "utf8"))) {
        context.skip("there is a proc here that cannot be unmounted");
      }
      const { path } = world.bundle("unshare -mrpf mount -t proc none /proc; echo $?", {
        process: { capabilities: { bounding: setfcap, permitted: setfcap, effective: setfcap } },
        linux: { namespaces, maskedPaths: ["/proc/scsi", "/proc/timer_list"] },
      });
      const { stdout, stderr } = world.run("run", ...options, "--bundle", path, world.id());
      expect({ stdout, stderr }).toMatchObject({
        stdout: "32\n",
        stderr: expect.stringContaining("permission denied"),
      });
    },
  );

  test("few descriptors are enough for a container that may have no more", () => {
    const rlimits = [{ type: "RLIMIT_NOFILE", soft: 8, hard: 8 }];
    expect(world.runBundle("ulimit -n", { process: { rlimits } })).toEqual({ code: 0, stdout: "8\n", stderr: "" });
  });

  test("output of a terminal has plain line feeds where no terminal shows it", () => {
    expect(world.runBundle("tty; echo two", { process: { terminal: true } }).stdout).toBe("/dev/pts/0\ntwo\n");
    const id = running();
    expect(world.run("exec", "--tty", id, "echo", "three").stdout).toBe("three\n");
    world.run("delete", "--force", id);
  });

  test("a device that the rules forbid is there and cannot be opened", (context) => {
    needRight("device nodes", context);
    const devices = [{ path: "/dev/fuse", type: "c", major: 10, minor: 229 }];
    const linux = { namespaces, devices, resources: { devices: [{ allow: false, access: "rwm" }] } };
    const { stdout, stderr } = world.runBundle("ls /dev/fuse; : < /dev/fuse", { linux });
    expect(stdout).toBe("/dev/fuse\n");
    expect(stderr).toContain("not permitted");
  });

  test("a cgroup with somebody's processes, or a frozen one, is refused", () => {
    const cgroupsPath = `/slipway-test-${process.pid}/shared`;
    const first = running({ linux: { namespaces, cgroupsPath } });
    const second = world.runBundle("true", { linux: { namespaces, cgroupsPath } });
    const message = `the container's cgroup is not empty: "${cgroupsPath}" has 1 processes`;
    expect(second).toMatchObject({ code: 1, stderr: expect.stringContaining(message) });
    world.run("delete", "--force", first);
    if (v1Freezer === undefined) return;
    const frozen = `/slipway-test-frozen-${process.pid}`;
    mkdirSync(v1Freezer.mountPoint + frozen);
    try {
      writeFileSync(`${v1Freezer.mountPoint}${frozen}/freezer.state`, "FROZEN");
      const { stderr } = world.runBundle("true", { linux: { namespaces, cgroupsPath: frozen } });
      expect(stderr).toContain(`the container's cgroup is frozen: thaw "${frozen}"`);
    } finally {
      rmdirSync(v1Freezer.mountPoint + frozen);
    }
  });

  test.for([
    ["kernel.hostname", {}, "set hostname"],
    ["kernel/domainname", { domainname: "d" }, "and domainname say two things"],
  ] as const)("sysctl %s has one place only", ([name, change, reason]) => {
    const linux = { namespaces, sysctl: { [name]: "x" } };
    expect(world.runBundle("true", { ...change, linux }).stderr).toContain(reason);
  });

  test("devices in a user namespace are its own: owner, mode, nosuid and noexec", (context) => {
    needRight("device nodes", context);
    const devices = [{ path: "/dev/mine", type: "c", major: 1, minor: 3, fileMode: 0o640, uid: 5, gid: 6 }];
    const script = [
      "stat -c '%F %a %u %g' /dev/mine /dev/null",
      "echo x > /dev/null && echo x > /dev/mine && head -c 2 /dev/zero | wc -c",
      "grep -c ' /dev/\\(mine\\|null\\) [^ ]*nosuid[^ ]*noexec' /proc/self/mountinfo",
    ].join("; ");
    const { stdout, stderr } = world.runBundle(script, {
      linux: { ...mapped, devices, resources: { devices: [{ allow: true, access: "rwm" }] } },
    });
    const expected = ["character special file 640 5 6", "character special file 666 0 0", "2", "2", ""];
    expect({ lines: stdout.split("\n"), stderr }).toEqual({ lines: expected, stderr: "" });
  });
});

describe("hooks", () => {
  test("have the runtime's environment unless they have their own; those in the container have its own", () => {
    const script = (name: string) =>
      `echo ${name} "$PATH" >> ${name === "startContainer" ? "/hooks" : `${world.directory}/hooks`}`;
    const hook = (name: string, env?: string[]) => ({
      path: "/bin/sh",
      args: ["sh", "-c", script(name)],
      ...(env && { env }),
    });
    const { path, rootfs } = world.bundle("true", {
      process: { env: ["PATH=/usr/bin:/inside"] },
      hooks: {
        createRuntime: [hook("createRuntime"), hook("own", ["PATH=/own"])],
        createContainer: [hook("createContainer")],
        startContainer: [hook("startContainer")],
        poststop: [hook("poststop")],
      },
    });
    expect(world.run("run", "--bundle", path, world.id())).toMatchObject({ code: 0, stderr: "" });
    const environment = process.env["PATH"];
    expect(readFileSync(join(world.directory, "hooks"), "utf8").split("\n")).toEqual([
      `createRuntime ${environment}`,
      "own /own",
      `createContainer ${environment}`,
      `poststop ${environment}`,
      "",
    ]);
    expect(readFileSync(join(rootfs, "hooks"), "utf8")).toBe("startContainer /usr/bin:/inside\n");
  });
});

describe("oci exec", () => {
  test("a variable given takes the place of the container's", () => {
    const id = running({ process: { env: ["PATH=/usr/bin:/bin", "A=1", "B=2"] } });
    const { stdout } = world.run("exec", "--env", "A=3", "--env", "C=4", id, "env");
    const lines = stdout.split("\n").filter((line) => /^[A-C]=/.test(line));
    expect(lines).toEqual(["A=3", "B=2", "C=4"]);
    world.run("delete", "--force", id);
  });

  test("--cap makes ambient what is inheritable, and refuses what there is not", () => {
    const sets = ["CAP_KILL", "CAP_CHOWN"];
    const capabilities = { bounding: sets, permitted: ["CAP_KILL"], effective: [], inheritable: ["CAP_CHOWN"] };
    const id = running({ process: { capabilities } });
    const ambient = (cap: string) => world.run("exec", "--cap", cap, id, "grep", "CapAmb", "/proc/self/status");
    expect(ambient("CAP_CHOWN").stdout).toBe("CapAmb:\t0000000000000001\n");
    expect(ambient("CAP_KILL").stdout).toBe("CapAmb:\t0000000000000000\n");
    expect(ambient("CAP_NONE")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('--cap: there is no capability "CAP_NONE"'),
    });
    world.run("delete", "--force", id);
  });

  test("--ignore-paused waits until the container is resumed", async (context) => {
    needRight("freezers", context);
    const id = running();
    expect(world.run("pause", id).code).toBe(0);
    const refused = world.run("exec", id, "true");
    expect(refused).toMatchObject({ code: 255, stderr: expect.stringContaining("--ignore-paused") });
    const { ended } = world.start("exec", "--ignore-paused", id, "echo", "went on");
    await new Promise((done) => setTimeout(done, 300));
    expect(world.run("resume", id).code).toBe(0);
    expect(await ended).toMatchObject({ code: 0, stdout: "went on\n" });
    world.run("delete", "--force", id);
  });

  test("has the container's personality", () => {
    const id = running({ linux: { namespaces, personality: { domain: "LINUX32" } } });
    expect(world.run("exec", id, "uname", "-m").stdout).toBe("i686\n");
    world.run("delete", "--force", id);
  });

  test("says which directory it cannot enter", () => {
    const id = running();
    const { code, stderr } = world.run("exec", "--cwd", "/none", id, "true");
    const message = 'slipway: Cannot start a process in the container: chdir to cwd "/none": ENOENT\n';
    expect({ code, stderr }).toEqual({ code: 255, stderr: message });
    world.run("delete", "--force", id);
  });
});

describe("oci delete", () => {
  test.skipIf(v1Freezer === undefined)("--force ends a process that somebody froze in a cgroup of his own", () => {
    const id = running();
    const { pid } = world.state(id);
    const foreign = `${v1Freezer?.mountPoint}/slipway-test-frozen-${process.pid}`;
    mkdirSync(foreign);
    try {
      writeFileSync(`${foreign}/cgroup.procs`, `${pid}`);
      writeFileSync(`${foreign}/freezer.state`, "FROZEN");
      expect(world.run("delete", "--force", id)).toEqual({ code: 0, stdout: "", stderr: "" });
      expect(startTime(pid)).toBe(undefined);
    } finally {
      writeFileSync(`${foreign}/freezer.state`, "THAWED");
      rmdirSync(foreign);
    }
  });
});

describe("oci spec --rootless", () => {
  test("maps the caller to root, with the host's network and /sys, and no limits", () => {
    const config = parseOciConfig(JSON.stringify(rootlessConfig(exampleConfig())));
    expect(config.linux?.uidMappings).toEqual([{ containerID: 0, hostID: process.geteuid?.(), size: 1 }]);
    const types = config.linux?.namespaces?.map(({ type }) => type);
    expect(types).toContain("user");
    expect(types).not.toContain("network");
    expect(config.linux?.resources).toBeUndefined();
    const options = (at: string) => config.mounts?.find(({ destination }) => destination === at)?.options;
    expect(options("/sys")).toContain("rbind");
    expect(options("/dev/pts")?.join()).not.toContain("gid=");
    const bundle = join(world.directory, "rootless");
    mkdirSync(bundle);
    expect(world.run("spec", "--rootless", "--bundle", bundle)).toMatchObject({ code: 0 });
    expect(JSON.parse(readFileSync(join(bundle, "config.json"), "utf8"))).toEqual(
      JSON.parse(JSON.stringify(rootlessConfig(exampleConfig()))),
    );
  });
});

describe("oci exec --cgroup", () => {
  test("has the process join cgroups below the container's", () => {
    const id = running();
    const pids = findCgroupMounts().find(({ controllers }) => controllers.includes("pids"));
    const place = `${pids?.mountPoint}/slipway-oci/${id}`;
    mkdirSync(`${place}/below`);
    const count = (...words: string[]) =>
      world.run("exec", ...words, id, "grep", "-c", ":/below$", "/proc/self/cgroup").stdout.trim();
    expect(count("--cgroup", pids?.version === 1 ? "pids:below" : "below")).toBe("1");
    expect(count("--cgroup", "/")).toBe("0");
    expect(count()).toBe("0");
    const refused = world.run("exec", "--cgroup", "../..", id, "true");
    expect(refused).toMatchObject({ code: 255, stderr: expect.stringContaining('bad sub cgroup path "../.."') });
    expect(world.run("delete", "--force", id)).toMatchObject({ code: 0 });
    expect(existsSync(place)).toBe(false);
  });
});

describe("--pidfd-socket", () => {
  test("gets a descriptor of the process, of create and of exec", () => {
    const path = join(world.directory, "pidfd");
    const listening = syscall("socket", AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const address = Buffer.concat([Buffer.from([AF_UNIX, 0]), Buffer.from(`${path}\0`)]);
    syscall("bind", listening, address, address.length);
    syscall("listen", listening, 8);
    const received = () => {
      const connection = syscall("accept4", listening, 0, 0, SOCK_CLOEXEC);
      const pidFd = receiveDescriptor(connection);
      const pid = /^Pid:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${pidFd}`, "utf8"))?.[1];
      for (const fd of [pidFd, connection]) close(fd);
      return Number(pid);
    };
    const id = world.id();
    const bundle = world.bundle("exec sleep 100").path;
    expect(world.run("create", "--pidfd-socket", path, "--bundle", bundle, id)).toMatchObject({ code: 0 });
    expect(received()).toBe(world.state(id).pid);
    const pidFile = join(world.directory, "pidfd-pid");
    const exec = ["exec", "--detach", "--pidfd-socket", path, "--pid-file", pidFile, id, "sleep", "100"];
    expect(world.run(...exec)).toMatchObject({ code: 0 });
    expect(received()).toBe(Number(readFileSync(pidFile, "utf8")));
    world.run("delete", "--force", id);
    close(listening);
    const other = world.id();
    const refused = world.run("create", "--pidfd-socket", path, "--bundle", bundle, other);
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining(`--pidfd-socket "${path}"`) });
    expect(world.run("state", other).stderr).toContain("does not exist");
  });
});
