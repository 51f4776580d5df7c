/** What a step with containers of its own can do, and that it still can do nothing to the host. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { execInContainer, explainContainer, formatOciConfig, runContainer } from "../../runtime/index.ts";
import { parseOciConfig } from "../../runtime/oci-config.ts";
import { syscallNumber } from "../../runtime/syscall-table.ts";
import { architecture, cString, trySyscall } from "../../runtime/syscall.ts";
import { type Ended, TestHost } from "./host-fixture.ts";
import { needRight } from "./host-rights.ts";

const KEY_SPEC_SESSION_KEYRING = -3;

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
});
afterAll(async () => host[Symbol.asyncDispose]());

const nested = { home: "/root" };
const run = (script: string, options: Parameters<TestHost["run"]>[1] = {}): Promise<Ended> =>
  host.run(`set +e\n${script}`, { nested, env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" }, ...options });
const isV2 = () => host.host.cgroups?.version === 2;

describe("a nested step", () => {
  test("makes namespaces, with a /proc and a /sys of their own", async () => {
    const { stdout } = await run(
      "unshare --user --map-root-user --pid --fork --mount --net --mount-proc sh -c 'ps -e -o pid= | wc -l; mount -t sysfs sysfs /sys && echo mounted; for f in kernel/mm/ksm/run kernel/profiling power/state; do (: >> /sys/$f) 2>/dev/null && echo opened; done; true'; echo $?",
    );
    expect(stdout).toMatch(/^\d\nmounted\n0\n$/);
  });

  test("mounts an overlay where builders keep layers, and not on its own root", async () => {
    const { stdout } = await run(`
      for at in /var/lib/containers /var/lib/docker /var/lib/buildkit /var/lib/containerd /root/.local/share/containers; do
        cd $at && mkdir u w m && mount -t overlay overlay -o lowerdir=/etc,upperdir=u,workdir=w m && touch m/x && ls u
      done
      mkdir /u /w /m; mount -t overlay overlay -o lowerdir=/etc,upperdir=/u,workdir=/w /m 2>/dev/null || echo refused`);
    expect(stdout).toBe("x\nx\nx\nx\nx\nrefused\n");
  });

  test("has its network for itself", async () => {
    const { stdout } = await run(
      "ip link add bridge0 type bridge && ip link set bridge0 up && echo made; sysctl -w net.ipv4.ip_forward=1; nft add table ip t && nft list tables",
    );
    expect(stdout).toBe("made\nnet.ipv4.ip_forward = 1\ntable ip t\n");
  });

  test("makes cgroups with limits below its own, whose limits it cannot change", async () => {
    const memory = isV2() ? "" : "/memory";
    const limit = isV2() ? "memory.max" : "memory.limit_in_bytes";
    const { stdout } = await run(`
      cd /sys/fs/cgroup${memory}
      test -e cgroup.subtree_control && echo +memory > cgroup.subtree_control
      mkdir mine && echo 16777216 > mine/${limit} && cat mine/${limit}
      echo $$ > mine/cgroup.procs && grep -c mine /proc/self/cgroup
      (echo 1 > ${limit}) 2>/dev/null || echo refused
      # On v2 the step itself is in a leaf called "step".
      for type in cgroup2 "cgroup -o freezer" "cgroup -o memory"; do
        mount -t $type none /mnt 2>/dev/null || continue
        ls -d /mnt/*/ 2>/dev/null | grep -v -e mine -e '^/mnt/step/$'; (echo 1 > /mnt/${limit}) 2>/dev/null && echo written; umount /mnt
      done`);
    expect(stdout).toBe("16777216\n1\nrefused\n");
  });

  test("is not killed for memory because a container of its own is", async () => {
    const memory = isV2() ? "" : "/memory";
    const limit = isV2() ? "memory.max" : "memory.limit_in_bytes";
    const result = await run(`
      cd /sys/fs/cgroup${memory}
      test -e cgroup.subtree_control && echo +memory > cgroup.subtree_control
      mkdir mine && echo 16777216 > mine/${limit}
      sh -c 'echo $$ > mine/cgroup.procs; exec python3 -c "bytearray(200 << 20)"'; echo $?`);
    expect(result).toMatchObject({ reason: "exited", exitCode: 0, stdout: "137\n" });
  });

  test("may lower the score by which the kernel chooses whom to kill to the agent's, not below", async () => {
    const { stdout } = await run(
      "echo 0 > /proc/self/oom_score_adj && echo lowered; (echo -500 > /proc/self/oom_score_adj) 2>/dev/null || echo refused",
    );
    expect(stdout).toBe("lowered\nrefused\n");
  });

  test("has devices for fuse and tun that work", async () => {
    const { stdout } = await run("stat -c %a /dev/fuse /dev/net/tun; ip tuntap add t0 mode tun && echo made");
    expect(stdout).toBe("666\n666\nmade\n");
  });

  test("gives root and its user ranges of ids, unless the image has some", async () => {
    const layer = host.workspace();
    mkdirSync(join(layer, "etc"));
    writeFileSync(join(layer, "etc/passwd"), "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n");
    writeFileSync(join(layer, "etc/subgid"), "ada:5000:1000");
    const image = { ...host.image, layers: [...host.image.layers, layer] };
    const { stdout } = await run(
      "cat /etc/subuid /etc/subgid; stat -c '%u %n' /home/ada/.local /home/ada/.local/share/containers",
      { image, nested: { home: "/home/ada" }, user: { uid: 1000, gid: 1000 } },
    );
    expect(stdout).toBe(
      "root:100000:65536\nada:100000:65536\nada:5000:1000\nroot:100000:65536\n1000 /home/ada/.local\n1000 /home/ada/.local/share/containers\n",
    );
  });

  test("gives set-uid programs their rights", async (context) => {
    // Of the image host: its files are nobody's where mounts map no ids.
    needRight("idmapped mounts of the machine's files", context);
    const layer = host.workspace();
    mkdirSync(join(layer, "etc"));
    writeFileSync(join(layer, "etc/passwd"), "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n");
    const image = { ...host.image, layers: [...host.image.layers, layer] };
    const { stdout } = await run("unshare --user --map-auto --map-root-user cat /proc/self/uid_map", {
      image,
      nested: { home: "/home/ada" },
      user: { uid: 1000, gid: 1000 },
    });
    expect(stdout.replace(/ +/g, " ")).toBe(" 0 1000 1\n 1 100000 65535\n");
  });

  test("has a home of its user's also where the root file system is put together by paths, as before Linux 6.15", async () => {
    await using old = await TestHost.open({ overlaysByPath: true });
    const layer = old.workspace();
    mkdirSync(join(layer, "home/ada"), { recursive: true });
    execFileSync("chown", ["1000:1000", join(layer, "home/ada")]);
    execFileSync("chmod", ["700", join(layer, "home/ada")]);
    const image = { ...old.image, layers: [...old.image.layers, layer] };
    const { stdout } = await old.run(
      "stat -c '%u %a %n' /home /home/ada /home/ada/.local /home/ada/.local/share /home/ada/.local/share/containers",
      { image, nested: { home: "/home/ada" }, user: { uid: 1000, gid: 1000 } },
    );
    expect(stdout).toBe(
      "0 755 /home\n1000 700 /home/ada\n1000 755 /home/ada/.local\n1000 755 /home/ada/.local/share\n1000 755 /home/ada/.local/share/containers\n",
    );
  });

  test("has a home of its user's below /tmp, too, from Linux 6.15 on", async (context) => {
    if (!host.host.mountsDetachedOverlays) context.skip("the root file system is put together later");
    const { stdout } = await run("mkdir ~/.config && stat -c '%u %a %n' /tmp /tmp/home /tmp/home/.local/share/docker", {
      nested: { home: "/tmp/home" },
      user: { uid: 1000, gid: 1000 },
      env: { PATH: "/usr/bin:/bin", HOME: "/tmp/home" },
    });
    expect(stdout).toBe("0 1777 /tmp\n1000 755 /tmp/home\n1000 755 /tmp/home/.local/share/docker\n");
  });

  test("finds in a volume what the image has there, from Linux 6.15 on", async () => {
    const layer = host.workspace();
    mkdirSync(join(layer, "data/below"), { recursive: true });
    writeFileSync(join(layer, "data/below/file"), "the image's\n");
    execFileSync("chown", ["-R", "7:8", join(layer, "data")]);
    const image = { ...host.image, layers: [...host.image.layers, layer] };
    const { stdout } = await run("cat /data/below/file; stat -c '%u %g' /data; findmnt -n -o FSTYPE /data", {
      image,
      nested: { home: "/root", volumes: ["/data", "/", "/proc/x", "/../etc/.."] },
    });
    const found = host.host.mountsDetachedOverlays ? /^the image's\n7 8\n(?!overlay)\w+\n$/ : /^0 0\n(?!overlay)\w+\n$/;
    expect(stdout).toMatch(found);
  });

  test("leaves nothing behind: directories, cgroups, mounts", async () => {
    const { cgroups } = host.host;
    const below = () =>
      [...(cgroups?.directories ?? []), ...(cgroups?.otherDirectories ?? [])]
        .filter(existsSync)
        .flatMap((path) => readdirSync(path, { withFileTypes: true, recursive: true }))
        .filter((entry) => entry.isDirectory() && /^[abc]$/.test(entry.name));
    const before = readdirSync(`${host.host.stateDir}/containers`);
    const made = Promise.withResolvers<void>();
    const container = await runContainer(host.host, {
      ...host.script(
        "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir -p $d/a/b/c 2>/dev/null; done; mkdir -p /var/lib/docker/x; echo made; sleep 1000",
        { output: () => made.resolve() },
      ),
      nested,
    });
    await made.promise;
    expect(below().length).toBeGreaterThan(2);
    await container[Symbol.asyncDispose]();
    expect(below()).toEqual([]);
    expect(readdirSync(`${host.host.stateDir}/containers`)).toEqual(before);
    expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(host.host.stateDir);
  });

  test("is an ordinary configuration, too", () => {
    const explained = explainContainer(host.host, { ...host.prepared(), nested });
    const config = parseOciConfig(formatOciConfig(explained.config));
    expect(config.process?.noNewPrivileges).toBe(false);
    expect(config.linux?.readonlyPaths).not.toContain("/proc/sys");
    expect(config.linux?.namespaces?.find(({ type }) => type === "user")?.path).toMatch(/^\/proc\/\d+\/fd\/\d+$/);
  });
});

/** Serves a FUSE file system, takes a request of its own and never answers it: no signal ends who waits for that. */
const stuck = `
import ctypes, os, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
os.makedirs("/f", exist_ok=True)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"x", b"/f", b"fuse", 0, options) != 0: print("cannot mount", ctypes.get_errno())
def serve():
    while True:
        request = os.read(fd, 1 << 17)
        if int.from_bytes(request[4:8], "little") == 26: # FUSE_INIT
            answer = struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, 0, 12, 10, 4096, 1, 0, 0, 0)
            os.write(fd, struct.pack("<Ii", 16 + len(answer), 0) + request[8:16] + answer)
        else: print("taken", flush=True)
threading.Thread(target=serve, daemon=True).start()
os.stat("/f/x")
`;

describe("what waits for a file system of its own", () => {
  test("is killed with its container", async (context) => {
    needRight("the list of FUSE connections", context);
    const taken = Promise.withResolvers<void>();
    const container = await runContainer(host.host, {
      ...host.script("", { args: ["/usr/bin/python3", "-c", stuck], output: () => taken.resolve(), graceMs: 1 }),
      nested,
    });
    await taken.promise;
    container.stop("canceled", "enough");
    expect(await container.result).toMatchObject({ reason: "canceled", exitCode: 137 });
    await container[Symbol.asyncDispose]();
  });

  test("does not outlive the step's program", async (context) => {
    needRight("the list of FUSE connections", context);
    const { stdout, exitCode } = await run(
      `cat > /stuck.py <<'END'\n${stuck}\nEND\nmkfifo /taken; setsid python3 /stuck.py > /taken & read -r line < /taken; echo $line`,
    );
    expect({ stdout, exitCode }).toEqual({ stdout: "taken\n", exitCode: 0 });
  });
});

describe("the host", () => {
  test("has its kernel's settings for itself", async () => {
    const files = ["kernel/core_pattern", "kernel/modprobe", "vm/panic_on_oom", "fs/file-max", "kernel/sysrq"].filter(
      (name) => existsSync(`/proc/sys/${name}`),
    );
    const read = () => files.map((name) => readFileSync(`/proc/sys/${name}`, "utf8"));
    const before = read();
    const { stdout } = await run(
      `mkdir /p; mount -t proc proc /p; for f in ${files.join(" ")}; do for p in /proc /p; do (echo 1 > $p/sys/$f) 2>/dev/null && echo $f; done; done; (echo b > /p/sysrq-trigger) 2>/dev/null && echo sysrq; true`,
    );
    expect(stdout).toBe("");
    expect(read()).toEqual(before);
  });

  test("gives away no device, however it is asked for one", async () => {
    const { stdout } = await run(
      "mknod /b b 8 0; mknod /var/lib/docker/b b 8 0; mount -t devtmpfs none /mnt; mount -t tmpfs none /mnt && mknod /mnt/b b 8 0; ls /b /mnt/b /var/lib/docker/b; true",
    );
    expect(stdout).toBe("");
  });

  test("keeps the keys in the agent's session keyring to itself", async (context) => {
    needRight("adding keys", context);
    const [description, payload] = [cString(`slipway-test-${process.pid}`), Buffer.from("the agent's")];
    const KEYCTL_JOIN_SESSION_KEYRING = 1;
    expect(trySyscall("keyctl", KEYCTL_JOIN_SESSION_KEYRING, cString("slipway-test"))).toBeGreaterThan(0);
    const key = trySyscall("add_key", cString("user"), description, payload, payload.length, KEY_SPEC_SESSION_KEYRING);
    expect(key).toBeGreaterThan(0);
    // Launchers that were started before have another keyring.
    await using own = await TestHost.open();
    const keyctl = syscallNumber("keyctl", architecture);
    const { stdout } = await own.run(
      `python3 - <<'END'
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
KEYCTL_SEARCH, KEYCTL_READ = 10, 11
print(libc.syscall(${keyctl}, KEYCTL_SEARCH, ${KEY_SPEC_SESSION_KEYRING}, b"user", b"slipway-test-${process.pid}", 0))
print(libc.syscall(${keyctl}, KEYCTL_READ, ${key}, ctypes.create_string_buffer(64), 64))
END`,
      { nested },
    );
    expect(stdout).toBe("-1\n-1\n");
    // Who joins the container later is the container's to trace.
    await using container = await runContainer(own.host, { ...own.script("sleep 1000"), nested });
    const chunks: Buffer[] = [];
    const joined = await execInContainer(container, {
      args: [
        "/usr/bin/python3",
        "-c",
        `import ctypes; l = ctypes.CDLL(None); print(l.syscall(${keyctl}, 10, ${KEY_SPEC_SESSION_KEYRING}, b"user", b"slipway-test-${process.pid}", 0), open("/proc/self/uid_map").read().split()[0])`,
      ],
      env: {},
      output: (_, chunk) => void chunks.push(Buffer.from(chunk)),
    });
    await joined.result;
    expect(Buffer.concat(chunks).toString()).toBe("-1 0\n");
  });

  test("cannot be reached by a handle, a keyring, a module, BPF or a raw port", async () => {
    const { stdout } = await run("python3 - <<'END'\n" + probe + "END");
    expect(stdout).toBe("");
  });
});

const probe = `
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
calls = {"x86_64": {"open_by_handle_at": 304, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425,
  "init_module": 175, "kexec_load": 246, "iopl": 172, "add_key": 248, "reboot": 169, "swapon": 167, "acct": 163}}
for name, number in calls.get(platform.machine(), {}).items():
    ctypes.set_errno(0)
    if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() not in (1, 38): print(name, ctypes.get_errno())
`;
