/** Known ways out of a container, each tried from inside a step. docs/security.md names the test of every threat. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { findMountedCgroups } from "../../runtime/cgroup-host.ts";
import { type ContainerConfig, execInContainer, runContainer } from "../../runtime/index.ts";
import { syscallNumber } from "../../runtime/syscall-table.ts";
import { architecture } from "../../runtime/syscall.ts";
import { TestHost } from "./host-fixture.ts";
import { needRight } from "./host-rights.ts";

let host: TestHost;
/** A file of the host that no step may ever see. */
let secret = "";
beforeAll(async () => {
  host = await TestHost.open();
  secret = join(host.directory, "secret-of-the-host");
  writeFileSync(secret, "the host's secret\n");
});
afterAll(async () => host[Symbol.asyncDispose]());

/** Runs a container that does nothing, and in it what the configuration says, as `slipway shell` would. */
async function runInside({ args, env, ...config }: ContainerConfig): Promise<{ readonly stdout: string }> {
  const idle = { args: ["/bin/sleep", "1000"], env };
  await using container = await runContainer(host.host, { ...config, ...idle, output: () => undefined });
  let stdout = "";
  const output = (stream: string, chunk: Uint8Array) => {
    if (stream === "stdout") stdout += Buffer.from(chunk).toString();
  };
  const running = await execInContainer(container, { args, env, output });
  running.endInput();
  await running.result;
  return { stdout };
}

/** Whatever a step may do in its own namespaces, the host is out of its reach; and of who joins it later. */
const nested = { nested: { home: "/root" } };
const kinds = [
  { kind: "a step", isShell: false, options: {} },
  { kind: "a nested step", isShell: false, options: nested },
  { kind: "a shell in a step", isShell: true, options: {} },
  { kind: "a shell in a nested step", isShell: true, options: nested },
] as const;

describe.for(kinds)("$kind", ({ isShell, options: kindOptions }) => {
  const isNested = "nested" in kindOptions;
  const run = async (script: string, options: Partial<ContainerConfig> = {}): Promise<{ readonly stdout: string }> => {
    const config = host.script(script, { ...kindOptions, ...options });
    return isShell ? await runInside(config) : await host.run(script, { ...kindOptions, ...options });
  };

  const python = (code: string, options = {}) =>
    run("", { args: ["/usr/bin/python3", "-c", code], env: { PATH: "/usr/bin:/bin" }, ...options });

  /** Makes system calls by number and prints the errno of each, 0 for success. */
  async function errnos(calls: readonly (readonly [string, ...number[]])[]): Promise<Record<string, number>> {
    const list = calls.map(([name, ...args]) => [name, syscallNumber(name, architecture), ...args]);
    const { stdout } = await python(`
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
result = {}
for name, number, *args in json.loads('${JSON.stringify(list)}'):
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    result[name] = ctypes.get_errno() if value == -1 else 0
print(json.dumps(result))`);
    return JSON.parse(stdout) as Record<string, number>;
  }

  const EPERM = 1;
  const ENOSYS = 38;

  describe("the kernel's control files", () => {
    test.for([
      "/proc/sys/kernel/core_pattern",
      "/proc/sys/kernel/modprobe",
      "/proc/sys/kernel/hotplug",
      "/proc/sys/vm/panic_on_oom",
      "/proc/sys/fs/binfmt_misc/register",
      "/proc/sysrq-trigger",
      "/proc/irq/0/smp_affinity",
      "/sys/kernel/uevent_helper",
      "/sys/fs/cgroup/memory/release_agent",
      "/sys/fs/cgroup/memory/memory.limit_in_bytes",
      "/sys/fs/cgroup/memory.max",
      "/sys/fs/cgroup/cgroup.procs",
      "/proc/1/oom_score_adj",
    ])("%s cannot be written", async (path, context) => {
      // On v2 a nested step has a cgroup that is its own to divide, but not to widen.
      if (isNested && path === "/sys/fs/cgroup/cgroup.procs" && findMountedCgroups()?.version === 2)
        return context.skip("it is the step's own");
      const read = () =>
        execFileSync("sh", ["-c", 'case $1 in */cgroup/*) ;; *) cat "$1" 2>/dev/null || true;; esac', "sh", path]);
      const before = read();
      const { stdout } = await run(`(test -e ${path} && echo 1 > ${path}) 2>/dev/null && echo written || echo refused`);
      expect(stdout).toBe("refused\n");
      expect(read()).toEqual(before);
    });

    test("a cgroup hierarchy cannot be mounted in a new user namespace (CVE-2022-0492)", async () => {
      const { stdout } = await run(
        "unshare -UrmC sh -c 'mount -t cgroup -o rdma none /mnt && echo mounted' 2>&1 || true; mount -t cgroup -o rdma none /mnt 2>&1 && echo mounted || true",
      );
      expect(stdout).not.toContain("mounted\n");
    });
  });

  describe("dangerous system calls", () => {
    test("of kernel subsystems are refused", async () => {
      const refused = await errnos([
        ["io_uring_setup", 1, 0],
        ["io_uring_enter", 0, 0, 0, 0],
        ["userfaultfd", 0],
        ["bpf", 0, 0, 0],
        ["perf_event_open", 0, 0, -1, -1, 0],
        // A nested step's runtimes make session keyrings for their containers.
        ...(isNested ? [] : [["keyctl", 0, 0] as const]),
        ["add_key", 0, 0, 0, 0, 0],
        ["request_key", 0, 0, 0, 0],
        ["kexec_load", 0, 0, 0, 0],
        ["init_module", 0, 0, 0],
        ["finit_module", 0, 0, 0],
        ["delete_module", 0, 0],
        ["open_by_handle_at", 0, 0, 0],
        ["reboot", 0, 0, 0],
        ["swapon", 0, 0],
        ["quotactl", 0, 0, 0, 0],
        ["settimeofday", 0, 0],
        ["clock_settime", 0, 0],
        ["syslog", 3, 0, 0],
        ["fanotify_init", 1, 0],
        ["quotactl_fd", 0, 0, 0, 0],
        ["acct", 0],
      ]);
      expect(Object.entries(refused).filter(([, errno]) => errno !== EPERM && errno !== ENOSYS)).toEqual([]);
    });

    test.skipIf(isNested)(
      "of the mount family and of namespaces are refused, clone3 so that libc falls back",
      async () => {
        const refused = await errnos([
          ["mount", 0, 0, 0, 0, 0],
          ["umount2", 0, 0],
          ["pivot_root", 0, 0],
          ["fsopen", 0, 0],
          ["fsmount", 0, 0, 0],
          ["open_tree", -100, 0, 1],
          ["move_mount", 0, 0, 0, 0, 0],
          ["mount_setattr", 0, 0, 0, 0, 0],
          ["setns", 0, 0],
          ["unshare", 0x10000000],
          ["clone", 0x10000000 | 17, 0, 0, 0, 0],
          ["clone3", 0, 0],
        ]);
        const { clone3, ...others } = refused;
        expect(clone3).toBe(ENOSYS);
        expect(Object.entries(others).filter(([, errno]) => errno !== EPERM)).toEqual([]);
      },
    );

    test("that do not exist yet answer ENOSYS", async () => {
      const { stdout } = await python(
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); print([(l.syscall(n), ctypes.get_errno()) for n in (600, 1000, 4000)])",
      );
      expect(stdout).toBe("[(-1, 38), (-1, 38), (-1, 38)]\n");
    });
  });

  describe("the host's files", () => {
    test("are not beneath the root, by chroot and an open directory neither", async () => {
      const { stdout } = await python(`
import os
fd = os.open("/", os.O_RDONLY)
os.mkdir("/tmp/jail"); os.chroot("/tmp/jail"); os.fchdir(fd)
for _ in range(64): os.chdir("..")
os.chroot(".")
print(sorted(os.listdir("/")), os.path.exists("${secret}"))`);
      expect(stdout).toContain("'workspace'");
      expect(stdout).toMatch(/False\n$/);
    });

    test("cannot be reached through a working directory in /proc (CVE-2024-21626)", async () => {
      for (let fd = 3; fd < 24; fd++) {
        const ended = await host
          .run(`cat ../../../../../../../../..${secret} 2>&1; pwd -P`, { cwd: `/proc/self/fd/${fd}` })
          .catch((error: Error) => ({ stdout: error.message }));
        expect(ended.stdout).not.toContain("the host's secret");
      }
    });

    test("are behind none of the descriptors or roots of its processes", async () => {
      const { stdout } = await run(
        `ls /proc/self/fd | wc -w; for p in 1 self; do cat /proc/$p/root${secret} /proc/$p/cwd/../../..${secret} 2>/dev/null; done; true`,
      );
      expect(stdout).toBe("4\n"); // standard ones and the directory being listed
    });

    test("cannot be opened by handle: the layer's file system is the host's, the right to do so is not", async () => {
      const { stdout } = await python(`
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
handle = ctypes.create_string_buffer(bytes([8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]))
print(libc.open_by_handle_at(3, handle, 0), ctypes.get_errno())`);
      expect(stdout).toBe("-1 1\n");
    });

    test("a device node in a layer opens nothing", async (context) => {
      needRight("device nodes", context);
      const layer = host.workspace();
      execFileSync("mknod", ["-m", "666", join(layer, "disk"), "b", "254", "0"]);
      execFileSync("mknod", ["-m", "666", join(layer, "memory"), "c", "1", "1"]);
      const image = { ...host.image, layers: [...host.image.layers, layer] };
      const { stdout } = await run("head -c 1 /disk 2>&1 || true; head -c 1 /memory 2>&1 || true", { image });
      expect(stdout.match(/Permission denied/g)).toHaveLength(2);
    });
  });

  describe("other processes", () => {
    test("init cannot be traced, read, written or replaced", async () => {
      const { stdout } = await python(`
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, action):
    try: action(); print(name, "WORKED")
    except OSError as error: print(name, error.errno)
attempt("mem", lambda: open("/proc/1/mem", "r+b"))
attempt("exe", lambda: open("/proc/1/exe", "wb"))
attempt("environ", lambda: open("/proc/1/environ").read())
attempt("maps", lambda: open("/proc/1/maps").read())
print("ptrace", libc.ptrace(16, 1, 0, 0), "kill", end=" ")
os.kill(1, 9); print("ignored")`);
      expect(stdout).not.toContain("WORKED");
      expect(stdout).toMatch(/ptrace -1 kill ignored\n$/);
    });

    test("the agent is not to be seen, its environment and descriptors neither", async () => {
      const { stdout } = await run(`ls /proc | grep -c '^[0-9]'; ls -d /proc/${process.pid} 2>&1 || true; env | wc -l`);
      expect(stdout).toMatch(/No such file or directory/);
      expect(Number(stdout.split("\n")[0])).toBeLessThan(10);
    });

    test("set-uid programs gain nothing", async () => {
      const workspace = host.workspace();
      cpSync("/usr/bin/id", join(workspace, "id"));
      chmodSync(join(workspace, "id"), 0o4755);
      const { stdout } = await python("import os; os.setuid(1000); os.execv('/workspace/id', ['id', '-u'])", {
        workspace: { dir: workspace },
      });
      expect(stdout).toBe("1000\n");
    });

    test("a job that runs beside it has other ids, files, processes and sockets", async () => {
      using range = host.host.claimUidRange();
      const theirs = host.workspace();
      const serve = `
import os, signal, socket
kept = []
for family, address in ((socket.AF_UNIX, "\\0slipway-neighbour"), (socket.AF_INET, ("127.0.0.1", 7777))):
    s = socket.socket(family); s.bind(address); s.listen(); kept.append(s)
for path in ("/tmp/file", "file", "ready"): open(path, "w").write("theirs")
signal.pause()`;
      await using other = await runContainer(host.host, {
        ...host.script("", { workspace: { dir: theirs }, uidRange: range }),
        args: ["/usr/bin/python3", "-c", serve, "the-neighbour"],
      });
      while (!existsSync(join(theirs, "ready"))) await new Promise((resolve) => setTimeout(resolve, 20));
      const { stdout } = await python(
        `
import glob, os, socket
print([path for path in ("/tmp/file", "file") if os.path.exists(path)])
print([pid for pid in glob.glob("/proc/[0-9]*/cmdline") if b"the-" + b"neighbour" in open(pid, "rb").read()])
for family, address in ((socket.AF_UNIX, "\\0slipway-neighbour"), (socket.AF_INET, ("127.0.0.1", 7777))):
    s = socket.socket(family); s.settimeout(2)
    print(s.connect_ex(address))`,
        { workspace: { dir: host.workspace() } },
      );
      expect(stdout).toBe("[]\n[]\n111\n111\n"); // ECONNREFUSED
      expect(other.pid).toBeGreaterThan(0);
    });
  });

  describe("the network", () => {
    test("does not lead to abstract sockets of the host", async () => {
      const server = createServer((socket) => socket.end("host"));
      server.listen(`\0slipway-escape-${process.pid}`);
      await once(server, "listening");
      const { stdout } = await python(`
import socket
s = socket.socket(socket.AF_UNIX)
try: s.connect("\\0slipway-escape-${process.pid}"); print(s.recv(10))
except OSError as error: print(error.errno)`);
      server.close();
      expect(stdout).toBe("111\n"); // ECONNREFUSED
    });

    test("does not lead to the metadata service or to servers on the host's loopback", async () => {
      const server = createServer((socket) => socket.end("host"));
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      const address = server.address();
      const port = address !== null && typeof address === "object" ? address.port : 0;
      const { stdout } = await python(`
import socket
for target in (("169.254.169.254", 80), ("127.0.0.1", ${port})):
    s = socket.socket(); s.settimeout(2)
    print(s.connect_ex(target))`);
      server.close();
      expect(stdout).toBe("101\n111\n"); // ENETUNREACH, ECONNREFUSED
    });
  });

  test("a race on mount points cannot be run: they are in a layer that no step can write to", async () => {
    const workspace = { dir: host.workspace() };
    mkdirSync(join(workspace.dir, "target"));
    symlinkSync("/", join(workspace.dir, "link"));
    await run(
      "rmdir /proc /sys /dev /workspace 2>/dev/null; mv /workspace /elsewhere 2>/dev/null; ln -sfn /usr /sys 2>/dev/null; true",
      {
        workspace,
      },
    );
    const { stdout } = await run("stat -c '%F' /proc /sys /dev /workspace | sort | uniq -c | tr -s ' '", {
      workspace,
    });
    expect(stdout).toBe(" 4 directory\n");
    expect(readFileSync(secret, "utf8")).toBe("the host's secret\n");
  });
});
