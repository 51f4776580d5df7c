import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { needRight } from "./host-rights.ts";
import { findCgroupMounts } from "../../runtime/oci-cgroup.ts";
import { hasSelinux } from "../../runtime/oci-mounts.ts";
import { AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM } from "../../runtime/linux.ts";
import { close, receiveDescriptor, syscall } from "../../runtime/syscall.ts";
import { type Change, namespaces, OciWorld } from "./oci-bundle.ts";

let world: OciWorld;
beforeAll(() => {
  world = new OciWorld();
});
afterAll(() => world[Symbol.dispose]());

const mapped = {
  namespaces: [...namespaces, { type: "user" }],
  uidMappings: [{ containerID: 0, hostID: 300_000, size: 65_536 }],
  gidMappings: [{ containerID: 0, hostID: 300_000, size: 65_536 }],
};

function created(script: string, change: Change = {}): { id: string; rootfs: string; path: string } {
  const id = world.id();
  const { path, rootfs } = world.bundle(script, change);
  expect(world.run("create", "--bundle", path, id)).toMatchObject({ code: 0 });
  return { id, rootfs, path };
}

describe("oci run", () => {
  test("runs the program as process 1 and answers its exit code", () => {
    const { code, stdout, stderr } = world.runBundle("echo $$; hostname; echo problem >&2; exit 7");
    expect({ code, stdout }).toEqual({ code: 7, stdout: "1\nbundle\n" });
    expect(stderr).toBe("problem\n");
    expect(world.run("list", "--quiet").stdout).toBe("");
  });

  test("answers 128 and the signal that ended the program", () => {
    expect(world.runBundle("kill -9 $$; sleep 10", { linux: { namespaces: namespaces.slice(1) } }).code).toBe(137);
  });

  test("passes signals on", async () => {
    const { path } = world.bundle("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    const { child, ended } = world.start("run", "--bundle", path, world.id());
    child.stdout.on("data", () => child.kill("SIGTERM"));
    expect(await ended).toMatchObject({ code: 3 });
  });

  test("says which program is missing, and leaves nothing", () => {
    const outcome = world.runBundle(["/no/such/program"]);
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain('Cannot execute "/no/such/program": there is no such program in the container');
    expect(readdirSync(world.root)).toEqual([]);
  });

  test("refuses by name what it does not do", () => {
    const { code, stderr } = world.runBundle("true", { linux: { netDevices: { eth9: {} } } });
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: "slipway: linux.netDevices is not supported: Slipway does not move network devices\n",
    });
  });
});

describe("life cycle", () => {
  test("create, start, kill, delete, each with its state", async () => {
    const { id, path, rootfs } = created("touch /began; sleep 100", { annotations: { "a.b": "c" } });
    const state = world.state(id);
    expect(state).toMatchObject({
      ociVersion: "1.3.0",
      id,
      status: "created",
      bundle: path,
      annotations: { "a.b": "c" },
    });
    expect(existsSync(`/proc/${state.pid}`)).toBe(true);
    expect(existsSync(`${rootfs}/began`)).toBe(false);
    expect(world.run("delete", id)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("is created, not stopped"),
    });

    expect(world.run("start", id)).toEqual({ code: 0, stdout: "", stderr: "" });
    expect(world.state(id)).toMatchObject({ status: "running", pid: state.pid });
    expect(world.run("start", id)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("is running, not created"),
    });
    expect(world.run("delete", id)).toMatchObject({ code: 1 });
    expect(world.run("list").stdout).toContain(`${id}  ${state.pid}`);

    expect(world.run("kill", id, "KILL").code).toBe(0);
    await world.reaches(id, "stopped");
    expect(world.run("kill", id)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("container not running"),
    });
    expect(world.run("delete", id).code).toBe(0);
    expect(world.run("state", id)).toMatchObject({ code: 1, stderr: `slipway: Container "${id}" does not exist\n` });
    expect(findCgroupMounts().filter(({ mountPoint }) => existsSync(`${mountPoint}/slipway-oci/${id}`))).toEqual([]);
  });

  test("an id is taken until its container is deleted", () => {
    const { id, path } = created("true");
    expect(world.run("create", "--bundle", path, id).stderr).toContain("there is one with this id");
    expect(world.run("delete", "--force", id).code).toBe(0);
    expect(world.run("delete", "--force", id).code).toBe(0);
  });

  test.for(["..", "a/b", "", "a b"])("id %j is refused", (id) => {
    expect(world.run("create", "--bundle", world.bundle("true").path, id).code).not.toBe(0);
  });

  test("what changes in config.json after create has no effect", async () => {
    const { id, path, rootfs } = created("echo first > /who");
    writeFileSync(join(path, "config.json"), "{}");
    expect(world.run("start", id).code).toBe(0);
    await world.reaches(id, "stopped");
    expect(readFileSync(`${rootfs}/who`, "utf8")).toBe("first\n");
  });

  test("a container without a process can be created, not started", () => {
    const { id } = created("true", { process: { args: undefined } });
    expect(world.run("start", id)).toMatchObject({ code: 1, stderr: expect.stringContaining("has no process") });
  });

  test("writes the process id and a log that callers parse", () => {
    const log = join(world.directory, "log");
    const pidFile = join(world.directory, "pid");
    const id = world.id();
    const { path } = world.bundle("sleep 100");
    const options = ["--log", log, "--log-format", "json", "--cgroup-manager", "cgroupfs"];
    expect(world.run(...options, "create", "--bundle", path, "--pid-file", pidFile, id).code).toBe(0);
    expect(Number(readFileSync(pidFile, "utf8"))).toBe(world.state(id).pid);
    world.run(...options, "state", "nobody");
    expect(JSON.parse(readFileSync(log, "utf8"))).toMatchObject({
      level: "error",
      msg: 'Container "nobody" does not exist',
    });
  });
});

describe("hooks", () => {
  const hook = (kind: string, more = "") => ({
    path: "/bin/sh",
    args: ["sh", "-c", `echo ${kind} $(cat) >> ${join(world.directory, "hooks")}; ${more}`],
    env: ["PATH=/usr/bin:/bin"],
  });
  const calls = () => {
    const lines = readFileSync(join(world.directory, "hooks"), "utf8").trim().split("\n");
    writeFileSync(join(world.directory, "hooks"), "");
    return lines.map((line) => {
      const { status, pid } = JSON.parse(line.slice(line.indexOf("{"))) as { status: string; pid: number };
      return { kind: line.split(" ")[0], status, isOne: pid === 1 };
    });
  };
  const kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] as const;

  test("run in the order of the specification, with the state on standard input", () => {
    const startContainer = [{ ...hook("startContainer"), args: ["sh", "-c", "cat > /state"] }];
    const hooks = { ...Object.fromEntries(kinds.map((kind) => [kind, [hook(kind)]])), startContainer };
    const { code, stdout } = world.runBundle("cat /state", { hooks });
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ status: "created", pid: 1 });
    expect(calls()).toEqual([
      { kind: "prestart", status: "created", isOne: false },
      { kind: "createRuntime", status: "created", isOne: false },
      { kind: "createContainer", status: "created", isOne: true },
      { kind: "poststart", status: "running", isOne: false },
      { kind: "poststop", status: "stopped", isOne: false },
    ]);
  });

  test.for(["prestart", "createRuntime", "createContainer", "startContainer", "poststart"])(
    "a failing %s hook stops the container, and poststop hooks run",
    (kind) => {
      const failing = { path: "/bin/sh", args: ["sh", "-c", "echo no luck; exit 4"] };
      const before = readdirSync(world.root);
      const { code, stderr } = world.runBundle("sleep 100", {
        hooks: { [kind]: [failing], poststop: [hook("poststop")] },
      });
      expect(code).toBe(1);
      expect(stderr).toContain(`error running ${kind} hook #0: "/bin/sh"`);
      expect(stderr).toContain("no luck");
      expect(calls().map((call) => call.kind)).toEqual(["poststop"]);
      expect(readdirSync(world.root)).toEqual(before);
    },
  );

  test.for(["createRuntime", "createContainer"])("a %s hook has a time limit", (kind) => {
    const slow = { path: "/bin/sh", args: ["sh", "-c", "sleep 100"], timeout: 1 };
    expect(world.runBundle("true", { hooks: { [kind]: [slow] } })).toMatchObject({ code: 1 });
  });

  test("a failing poststop hook is a warning", () => {
    const failing = { path: "/bin/sh", args: ["sh", "-c", "exit 1"] };
    const { code, stderr } = world.runBundle("exit 5", { hooks: { poststop: [failing, hook("poststop")] } });
    expect({ code, stderr }).toEqual({
      code: 5,
      stderr:
        'slipway: Cannot clean up all of the container: error running poststop hook #0: "/bin/sh" ended with exit code 1\n',
    });
    expect(calls()).toHaveLength(1);
  });
});

describe("mounts", () => {
  test("targets are resolved beneath the root, wherever links lead", () => {
    const outside = join(world.directory, "outside");
    mkdirSync(outside);
    const source = join(world.directory, "source");
    mkdirSync(source);
    const id = world.id();
    const { path, rootfs } = world.bundle("touch /link/made; ls /link; ls -d /link/..", {
      mounts: [{ destination: "/link/deep", source, options: ["bind"] }],
    });
    symlinkSync(`../../../../../../..${outside}`, join(rootfs, "link"));
    mkdirSync(join(rootfs, outside), { recursive: true });
    expect(world.run("run", "--bundle", path, id)).toMatchObject({ code: 0, stdout: "deep\nmade\n/link/..\n" });
    expect(readdirSync(outside)).toEqual([]);
    expect(readdirSync(join(rootfs, outside)).toSorted()).toEqual(["deep", "made"]);
  });

  test.for(["proc", "sysfs"])("%s is not mounted through a symbolic link", (type) => {
    const { path, rootfs } = world.bundle("true", { mounts: [{ destination: "/there", type, source: type }] });
    symlinkSync("usr", join(rootfs, "there"));
    const { code, stderr } = world.run("run", "--bundle", path, world.id());
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining("ELOOP") });
  });

  test("bind files and directories, read-only or not, in order", () => {
    const file = join(world.directory, "file");
    writeFileSync(file, "content");
    const script = `cat /etc/a/file; echo x > /etc/a/file || echo refused; grep -o ' /etc/a.* - [a-z0-9]*' /proc/self/mountinfo | cut -d' ' -f2,3 | cut -d, -f1`;
    const { code, stdout } = world.runBundle(script, {
      mounts: [
        { destination: "/etc/a", type: "tmpfs", source: "t", options: ["size=1m", "ro"] },
        { destination: "/etc/a/file", source: file, options: ["bind", "ro", "nosuid"] },
      ],
    });
    expect({ code, stdout }).toEqual({ code: 0, stdout: "contentrefused\n/etc/a ro\n/etc/a/file ro\n" });
  });

  test("tmpcopyup shows what the image has there", () => {
    const { path, rootfs } = world.bundle("cat /data/sub/file; echo new > /data/sub/file; readlink /data/link", {
      mounts: [{ destination: "/data", type: "tmpfs", source: "tmpfs", options: ["tmpcopyup"] }],
    });
    mkdirSync(join(rootfs, "data/sub"), { recursive: true });
    writeFileSync(join(rootfs, "data/sub/file"), "old\n");
    symlinkSync("sub/file", join(rootfs, "data/link"));
    expect(world.run("run", "--bundle", path, world.id())).toMatchObject({ code: 0, stdout: "old\nsub/file\n" });
    expect(readFileSync(join(rootfs, "data/sub/file"), "utf8")).toBe("old\n");
  });

  test("idmap shows other owners", (context) => {
    needRight("idmapped mounts of the machine's files", context);
    const source = join(world.directory, "owned");
    mkdirSync(source);
    const ids = [{ containerID: 0, hostID: 1234, size: 10 }];
    const mounts = [{ destination: "/owned", source, options: ["bind", "idmap"], uidMappings: ids, gidMappings: ids }];
    expect(world.runBundle("stat -c %u:%g /owned", { mounts })).toMatchObject({ code: 0, stdout: "1234:1234\n" });
    const without = [{ destination: "/owned", source, options: ["bind", "idmap"] }];
    expect(world.runBundle("true", { mounts: without }).stderr).toContain(
      "an id mapping needs uidMappings and gidMappings",
    );
  });

  test("a source that is missing is named", () => {
    const { stderr } = world.runBundle("true", {
      mounts: [{ destination: "/x", source: "/no/such", options: ["bind"] }],
    });
    expect(stderr).toContain("mounts[");
    expect(stderr).toContain('] on "/x": its source "/no/such": ENOENT');
  });

  test("on a link to what is missing has its place there, as runc has it", () => {
    const file = join(world.directory, "resolv");
    writeFileSync(file, "names\n");
    const script = "cat /etc/resolv.conf /run/systemd/stub; readlink /etc/resolv.conf; stat -c %F /opt/new; ls /escape";
    const { path, rootfs } = world.bundle(script, {
      mounts: [
        { destination: "/run", type: "tmpfs", source: "t" },
        { destination: "/etc/resolv.conf", source: file, options: ["bind", "ro"] },
        { destination: "/data", type: "tmpfs", source: "t" },
        { destination: "/out", source: file, options: ["bind", "ro"] },
      ],
    });
    mkdirSync(join(rootfs, "etc"));
    symlinkSync("../run/systemd/stub", join(rootfs, "etc/resolv.conf"));
    symlinkSync("/opt/new", join(rootfs, "data"));
    const outside = join(world.directory, "escape");
    symlinkSync(`../../../../../../../..${outside}`, join(rootfs, "out"));
    const { code, stdout } = world.run("run", "--bundle", path, world.id());
    expect({ code, stdout }).toEqual({ code: 2, stdout: "names\nnames\n../run/systemd/stub\ndirectory\n" });
    expect(existsSync(outside)).toBe(false);
    expect(existsSync(join(rootfs, outside))).toBe(true);
  });

  test("of a proc does not follow links, to what is missing neither", () => {
    const { path, rootfs } = world.bundle("true", {
      mounts: [{ destination: "/elsewhere", type: "proc", source: "proc" }],
    });
    symlinkSync("/missing", join(rootfs, "elsewhere"));
    expect(world.run("run", "--bundle", path, world.id()).code).not.toBe(0);
  });

  test("labels need SELinux, and say so", () => {
    const linux = { mountLabel: "system_u:object_r:container_file_t:s0" };
    const mounts = [{ destination: "/x", type: "tmpfs", source: "t" }];
    const { stdout, stderr } = world.runBundle("ls -Zd /x", { linux, mounts });
    const [where, what] = hasSelinux() ? [stdout, linux.mountLabel] : [stderr, "this kernel has no SELinux"];
    expect(where).toContain(what);
  });

  test("an option that the file system does not know is named", () => {
    const mounts = [{ destination: "/x", type: "tmpfs", source: "t", options: ["rubbish=1"] }];
    expect(world.runBundle("true", { mounts }).stderr).toContain('mount tmpfs on "/x" with option "rubbish=1": EINVAL');
  });

  test("the root may be read-only", () => {
    expect(world.runBundle("touch /x 2>&1", { root: { readonly: true } })).toMatchObject({
      code: 1,
      stdout: expect.stringContaining("Read-only file system"),
    });
  });

  test("masked paths are empty, read-only paths cannot be written, missing ones do not matter", () => {
    const linux = {
      maskedPaths: ["/proc/timer_list", "/proc/fs", "/nowhere"],
      readonlyPaths: ["/proc/sys", "/nowhere"],
    };
    const script = "wc -c < /proc/timer_list; ls /proc/fs | wc -l; echo x > /proc/sys/kernel/hostname || echo refused";
    expect(world.runBundle(script, { linux })).toMatchObject({ code: 0, stdout: "0\n0\nrefused\n" });
  });

  test("a device's place that is taken by something else is an error", (context) => {
    needRight("device nodes", context);
    const { path, rootfs } = world.bundle("true", {
      linux: { devices: [{ type: "c", path: "/fuse", major: 10, minor: 229 }] },
    });
    symlinkSync("/dev/null", join(rootfs, "fuse"));
    const { code, stderr } = world.run("run", "--bundle", path, world.id());
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining("something else is there") });
  });

  test("devices have their numbers, modes and owners", (context) => {
    needRight("device nodes", context);
    const linux = { devices: [{ type: "c", path: "/dev/net/tun", major: 10, minor: 200, fileMode: 0o640, gid: 7 }] };
    const script = "stat -c '%t:%T %a %u:%g' /dev/net/tun /dev/null; readlink /dev/ptmx /dev/fd";
    expect(world.runBundle(script, { linux })).toMatchObject({
      code: 0,
      stdout: "a:c8 640 0:7\n1:3 666 0:0\npts/ptmx\n/proc/self/fd\n",
    });
  });

  test("in a user namespace, too, /dev/ptmx is that of its own terminals, whatever the configuration has there", () => {
    const linux = { ...mapped, devices: [{ type: "c", path: "/dev/ptmx", major: 5, minor: 2 }] };
    expect(world.runBundle("readlink /dev/ptmx", { linux })).toMatchObject({ stdout: "pts/ptmx\n", stderr: "" });
  });
});

describe("process", () => {
  test("has its user, groups, umask, capabilities and no_new_privs", () => {
    const script = "id; umask; pwd; grep -E '^(Cap|NoNewPrivs)' /proc/self/status";
    const caps = {
      bounding: ["CAP_KILL", "CAP_CHOWN"],
      permitted: ["CAP_KILL"],
      inheritable: ["CAP_KILL"],
      ambient: ["CAP_KILL"],
    };
    const process = {
      cwd: "/made/for/it",
      user: { uid: 1000, gid: 1001, umask: 0o27, additionalGids: [5, 6] },
      capabilities: { ...caps, effective: ["CAP_KILL"] },
    };
    const { code, stdout } = world.runBundle(script, { process });
    expect(code).toBe(0);
    expect(stdout).toContain("uid=1000 gid=1001 groups=1001,5");
    expect(stdout).toContain("0027\n/made/for/it\n");
    for (const set of ["CapInh", "CapPrm", "CapEff", "CapAmb"]) expect(stdout).toContain(`${set}:\t0000000000000020`);
    expect(stdout).toContain("CapBnd:\t0000000000000021\nCapAmb");
    expect(stdout).toContain("NoNewPrivs:\t1");
  });

  test("can open its output again if that is a pipe, and owns nothing else of the host", () => {
    const before = statSync("/dev/null").uid;
    const user = { process: { user: { uid: 1000, gid: 1000 } } };
    const { path } = world.bundle("echo again > /dev/stdout; stat -Lc %u /dev/stdin", user);
    // Node's own pipes are sockets, which nobody can open again.
    expect(world.runWith("> >(cat)", "run", "--bundle", path, world.id()).stdout).toBe(`again\n${before}\n`);
    expect(statSync("/dev/null").uid).toBe(before);
  });

  test("a capability that is not known is a warning", () => {
    const { code, stderr } = world.runBundle("true", { process: { capabilities: { bounding: ["CAP_TEST"] } } });
    expect({ code, stderr }).toEqual({ code: 0, stderr: 'slipway: Capability "CAP_TEST" is unknown: not granted\n' });
  });

  test("has its limits, priorities and personality", () => {
    const process = {
      oomScoreAdj: 321,
      rlimits: [{ type: "RLIMIT_NOFILE", soft: 77, hard: 88 }],
      ioPriority: { class: "IOPRIO_CLASS_IDLE", priority: 0 },
      scheduler: { policy: "SCHED_BATCH", nice: 5 },
    };
    const script =
      "cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn; ionice; uname -m; cut -d' ' -f19,41 /proc/self/stat";
    const { stdout } = world.runBundle(script, { process, linux: { personality: { domain: "LINUX32" } } });
    const machine = globalThis.process.arch === "arm64" ? "armv8l" : "i686";
    expect(stdout).toBe(`321\n77\n88\nidle\n${machine}\n5 3\n`);
  });

  test("a leaked descriptor is no way out (CVE-2024-21626)", () => {
    const leaked = { process: { cwd: "/proc/self/fd/3" } };
    const { path } = world.bundle("ls", leaked);
    // A directory of the host, handed over on purpose: descriptor 3 is the first that --preserve-fds passes on.
    expect(world.runWith("3</", "run", "--bundle", path, "--preserve-fds", "1", world.id())).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('open "/proc/self/fd/3" in the container: ELOOP'),
    });
    const { id } = created("sleep 100");
    expect(world.run("start", id).code).toBe(0);
    const exec = ["exec", "--cwd", "/proc/self/fd/3", "--preserve-fds", "1", id, "/bin/ls"];
    expect(world.runWith("3</", ...exec)).toMatchObject({
      code: 255,
      stderr: expect.stringContaining('chdir to cwd "/proc/self/fd/3": it leads out of the container'),
    });
  });

  test("gets the descriptors that it should, and no others", () => {
    const file = join(world.directory, "handed");
    writeFileSync(file, "handed over\n");
    const { path } = world.bundle("cat <&3; ls /proc/self/fd | wc -l");
    // 0, 1, 2, 3, and that of the directory itself.
    expect(
      world.runWith(`3<${file} 4<${file}`, "run", "--bundle", path, "--preserve-fds", "1", world.id()).stdout,
    ).toBe("handed over\n5\n");
  });

  test("holds nothing of its caller's, and no directory of its own, while it waits for its start", () => {
    const file = join(world.directory, "handed");
    writeFileSync(file, "handed over\n");
    const readonly = { destination: "/readonly", type: "tmpfs", source: "tmpfs", options: ["ro"] };
    const { path } = world.bundle("sleep 100", { mounts: [readonly] });
    const id = world.id();
    expect(world.runWith(`3<${file} 60<${file} 300<${file}`, "create", "--bundle", path, id).code).toBe(0);
    const { pid } = JSON.parse(world.run("state", id).stdout) as { pid: number };
    const held = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
    expect(held.filter((target) => target === file || target === "/readonly")).toEqual([]);
    expect(world.run("start", id).code).toBe(0);
    expect(world.run("delete", "--force", id).code).toBe(0);
  });

  test("obeys its seccomp filter, with no_new_privs and without", () => {
    const seccomp = {
      defaultAction: "SCMP_ACT_ALLOW",
      syscalls: [{ names: ["getcwd", "mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 30 }],
    };
    for (const noNewPrivileges of [true, false]) {
      const { stdout } = world.runBundle("grep Seccomp: /proc/self/status; mkdir /x 2>&1", {
        process: { noNewPrivileges },
        linux: { seccomp },
      });
      expect(stdout).toMatch(/^Seccomp:\t2\n.*Read-only file system\n$/);
    }
  });

  test.skipIf(existsSync("/sys/fs/selinux/enforce"))("a label that this kernel cannot give is refused", () => {
    expect(world.runBundle("true", { process: { selinuxLabel: "a:b:c:s0" } }).stderr).toContain(
      'process.selinuxLabel "a:b:c:s0" is not supported',
    );
  });

  test("its terminal goes to the console socket", async () => {
    const path = join(world.directory, "console");
    const server = syscall("socket", AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const address = Buffer.alloc(2 + path.length + 1);
    address.writeUInt16LE(AF_UNIX, 0);
    address.write(path, 2);
    syscall("bind", server, address, address.length);
    syscall("listen", server, 1);
    const process = { terminal: true, consoleSize: { height: 33, width: 77 } };
    const id = world.id();
    const { path: bundle, rootfs } = world.bundle(
      "tty > /result; stty size >> /result; test -c /dev/console && ps -o tty= -p $$ >> /result; echo said; read line; echo $line >> /result",
      { process },
    );
    expect(world.run("create", "--bundle", bundle, id).stderr).toContain("give --console-socket");
    expect(world.run("create", "--bundle", bundle, "--console-socket", path, id)).toMatchObject({ code: 0 });
    const connection = syscall("accept4", server, 0, 0, SOCK_CLOEXEC);
    const master = receiveDescriptor(connection);
    expect(world.run("start", id).code).toBe(0);
    const buffer = Buffer.alloc(64);
    expect(buffer.toString("utf8", 0, syscall("read", master, buffer, buffer.length))).toContain("said");
    syscall("write", master, Buffer.from("typed\n"), 6);
    await world.reaches(id, "stopped");
    expect(readFileSync(`${rootfs}/result`, "utf8")).toBe("/dev/pts/0\n33 77\npts/0\ntyped\n");
    for (const fd of [master, connection, server]) close(fd);
  });
});

describe("namespaces", () => {
  test("are new, the runtime's or those of a path", () => {
    const { id } = created("sleep 100");
    const { pid } = world.state(id);
    const types = ["mnt", "net", "ipc", "uts", "pid", "cgroup"];
    const links = (of: number | string) => types.map((type) => readlinkSync(`/proc/${of}/ns/${type}`));
    for (const [i, link] of links(pid).entries()) expect(link).not.toBe(links("self")[i]);
    const joining = [
      { type: "mount" },
      ...["network", "ipc", "uts", "pid"].map((type) => ({
        type,
        path: `/proc/${pid}/ns/${type === "network" ? "net" : type}`,
      })),
    ];
    const other = created("sleep 100", { linux: { namespaces: joining } });
    const joined = links(world.state(other.id).pid);
    expect(joined.slice(1, 5)).toEqual(links(pid).slice(1, 5));
    expect(joined[5]).toBe(links("self")[5]);
    for (const one of [id, other.id]) expect(world.run("delete", "--force", one).code).toBe(0);
  });

  test("a path of another type is refused", () => {
    const wrong = [{ type: "mount" }, { type: "uts" }, { type: "network", path: "/proc/self/ns/ipc" }];
    expect(world.runBundle("true", { linux: { namespaces: wrong } }).stderr).toContain(
      'linux.namespaces: "/proc/self/ns/ipc" is no network namespace',
    );
  });

  test("a user namespace maps ids, and its root can do what is its own only", () => {
    const script =
      "id -u; cat /proc/self/uid_map; stat -c %a:%t:%T /dev/null; echo y > /dev/null; hostname x && hostname; mknod /tmp/n c 1 3 2>&1";
    const mounts = [{ destination: "/tmp", type: "tmpfs", source: "tmpfs" }];
    const { stdout } = world.runBundle(script, { linux: mapped, mounts });
    expect(stdout).toMatch(/^0\n\s+0\s+300000\s+65536\n666:1:3\nx\n.*Operation not permitted\n$/);
  });

  test("a time namespace has its own clocks", () => {
    const linux = { namespaces: [...namespaces, { type: "time" }], timeOffsets: { boottime: { secs: 1_000_000 } } };
    const { stdout } = world.runBundle("cut -d. -f1 /proc/uptime", { linux });
    expect(Number(stdout)).toBeGreaterThan(1_000_000);
  });

  test("sysctls and names are the container's", () => {
    const linux = { sysctl: { "net.ipv4.ip_forward": "1", "kernel.msgmax": "4242" } };
    const script =
      "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; hostname; cat /proc/sys/kernel/domainname";
    const { stdout } = world.runBundle(script, { hostname: "h", domainname: "d.test", linux });
    expect(stdout).toBe("1\n4242\nh\nd.test\n");
    expect(readFileSync("/proc/sys/kernel/msgmax", "utf8")).not.toBe("4242\n");
  });
});

describe("cgroups", () => {
  test("limits are in force and gone afterwards", () => {
    const id = world.id();
    const resources = {
      pids: { limit: 30 },
      memory: { limit: 64 << 20 },
      cpu: { shares: 512, quota: 50_000, period: 100_000 },
    };
    const { path } = world.bundle("sleep 100", { linux: { cgroupsPath: `/slipway-test/${id}`, resources } });
    expect(world.run("create", "--bundle", path, id)).toMatchObject({ code: 0 });
    const read = (controller: string, ...files: readonly string[]) => {
      const mount = findCgroupMounts().find(({ controllers }) => controllers.includes(controller));
      return files
        .map((file) => {
          const at = `${mount?.mountPoint}/slipway-test/${id}/${file}`;
          return existsSync(at) ? readFileSync(at, "utf8").trim() : undefined;
        })
        .find((text) => text !== undefined);
    };
    expect(read("pids", "pids.max")).toBe("30");
    expect(read("memory", "memory.max", "memory.limit_in_bytes")).toBe(`${64 << 20}`);
    expect(read("cpu", "cpu.max", "cpu.cfs_quota_us")).toMatch(/^50000/);
    expect(read("pids", "cgroup.procs")).toBe(`${world.state(id).pid}`);
    expect(world.run("delete", "--force", id).code).toBe(0);
    expect(read("pids", "pids.max")).toBeUndefined();
  });

  test("devices that no rule allows cannot be opened", (context) => {
    needRight("device nodes", context);
    const linux = { resources: { devices: [{ allow: false, access: "rwm" }] } };
    const script = "mknod /kmsg c 1 11 && cat /kmsg 2>&1 | head -1; head -c 1 /dev/zero | wc -c";
    expect(world.runBundle(script, { linux }).stdout).toBe("cat: /kmsg: Operation not permitted\n1\n");
  });

  test("what this host has no file for is refused by name", () => {
    const linux = { resources: { unified: { "no.such": "1" } } };
    expect(world.runBundle("true", { linux }).stderr).toContain("linux.resources.unified");
  });
});

describe("oci exec", () => {
  test("runs a further process in the container, with its own user and environment", () => {
    const { id } = created("sleep 100", { linux: { resources: { pids: { limit: 50 } } } });
    expect(world.run("start", id).code).toBe(0);
    const shell = (...options: readonly string[]) =>
      world.run("exec", ...options, id, "/bin/sh", "-c", "id -u; pwd; echo $WORD; ls -d /proc/[0-9]*; exit 9");
    const { code, stdout } = shell("--user", "12:34", "--cwd", "/usr", "--env", "WORD=hello");
    expect({ code, stdout }).toMatchObject({
      code: 9,
      stdout: expect.stringMatching(/^12\n\/usr\nhello\n\/proc\/1\n/),
    });
    expect(world.run("exec", id, "cat", "/proc/self/cgroup").stdout).not.toContain("slipway-oci");
    expect(world.run("exec", id, "no-such-program").stderr).toContain("there is no such program in the container");
  });

  test("reads a process from a file and goes on without waiting", async () => {
    const { id, rootfs } = created("sleep 100");
    expect(world.run("start", id).code).toBe(0);
    const file = join(world.directory, "process.json");
    const pidFile = join(world.directory, "exec.pid");
    writeFileSync(
      file,
      JSON.stringify({ cwd: "/", args: ["/bin/sh", "-c", "echo done > /exec; sleep 100"], user: { uid: 0, gid: 0 } }),
    );
    expect(world.run("exec", "--process", file, "--detach", "--pid-file", pidFile, id)).toMatchObject({ code: 0 });
    expect(readFileSync(`/proc/${readFileSync(pidFile, "utf8")}/cmdline`, "utf8")).toContain("sleep 100");
    await expect.poll(() => existsSync(`${rootfs}/exec`)).toBe(true);
    expect(world.run("kill", "--all", id, "KILL").code).toBe(0);
    await world.reaches(id, "stopped");
  });

  test("joins a container's user namespace", () => {
    const { id } = created("sleep 100", { linux: mapped });
    expect(world.run("start", id).code).toBe(0);
    expect(world.run("exec", id, "/bin/sh", "-c", "id -u; cut -c1-40 /proc/self/uid_map").stdout).toMatch(
      /^0\n\s+0\s+300000/,
    );
  });

  test("is refused for a container that has stopped", async () => {
    const { id } = created("true");
    world.run("start", id);
    await world.reaches(id, "stopped");
    expect(world.run("exec", id, "true").stderr).toContain("it is stopped, not running");
  });
});

describe("oci features", () => {
  test("are those of the specification", () => {
    const features = JSON.parse(world.run("features").stdout) as { ociVersionMax: string; hooks: string[] };
    expect(features).toMatchObject({ ociVersionMin: "1.0.0", ociVersionMax: "1.3.0" });
    expect(features.hooks).toHaveLength(6);
  });
});
