import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Container, ExecError, prepareContainer, runContainer } from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";
import { openDescriptors } from "./open-descriptors.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
});
afterAll(async () => host[Symbol.asyncDispose]());

describe("a container's end", () => {
  test("is the exit code of its program", async () => {
    expect(await host.run("exit 0")).toMatchObject({ reason: "exited", exitCode: 0, oomKilled: false });
    expect(await host.run("exit 41")).toMatchObject({ reason: "exited", exitCode: 41 });
  });

  test("by a signal has its name and 128 + its number", async () => {
    const result = await host.run("kill -SEGV $$");
    expect(result).toMatchObject({
      reason: "signaled",
      signal: "SIGSEGV",
      exitCode: 139,
      message: "killed by SIGSEGV",
    });
  });

  test("takes daemons along and does not wait for them", async () => {
    const result = await host.run("setsid sleep 1000 & (trap '' TERM HUP; sleep 1000) & echo started");
    expect(result).toMatchObject({ exitCode: 0, stdout: "started\n" });
  });

  test("for memory says so, with the limit", async () => {
    const resources = { memoryBytes: 32 << 20, cpu: 2, pids: 64 };
    const result = await host.run('python3 -c "x = bytearray(512 << 20)"', { resources });
    expect(result).toMatchObject({ reason: "oom", oomKilled: true, exitCode: 137 });
    expect(result.message).toMatch(/^killed: used 3[12](?:\.\d)? MiB of 32 MiB(?: \(.*largest: python3 \d.*\))?$/);
  });

  test("counts memory, CPU time and processes", async () => {
    const result = await host.run("python3 -c \"x = b'x' * (100 << 20); sum(i for i in range(2_000_000))\"");
    expect(result.usage.memoryPeakBytes).toBeGreaterThan(100 << 20);
    expect(result.usage.cpuTimeMs).toBeGreaterThan(20);
    expect(result.usage.pidsPeak ?? 2).toBeGreaterThanOrEqual(2);
  });

  test("after the time limit comes by SIGTERM first", async () => {
    const result = await host.run("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done", {
      timeoutMs: 1000,
      graceMs: 30_000,
    });
    expect(result).toMatchObject({ reason: "timeout", exitCode: 3, stdout: "ready\nbye\n" });
    expect(result.message).toBe("timed out: it ran for longer than 1 s");
  });

  test("comes by SIGTERM for a program that handles no signal at all", async () => {
    const result = await host.run("sleep 1000", { args: ["/usr/bin/sleep", "1000"], timeoutMs: 100, graceMs: 30_000 });
    expect(result).toMatchObject({ reason: "timeout", signal: "SIGTERM", exitCode: 143 });
  });

  test("comes by SIGKILL for whoever ignores SIGTERM, and for all below", async () => {
    const abort = new AbortController();
    const result = await host.run(
      "trap '' TERM; (trap '' TERM; sleep 1000) & echo ready; sleep 1000 & wait; sleep 1000",
      {
        signal: abort.signal,
        graceMs: 300,
        output: (_, chunk) => {
          if (Buffer.from(chunk).includes("ready")) abort.abort("canceled by ada");
        },
      },
    );
    expect(result).toMatchObject({ reason: "canceled", signal: "SIGKILL", exitCode: 137 });
    expect(result.message).toBe("canceled: canceled by ada");
  });

  test("and its start are timed by the kernel, however late the agent hears of them", async () => {
    const container = await runContainer(host.host, host.script("sleep 0.2"));
    // Busy until it is over, however long that takes, and for some time more.
    const init = `/proc/${container.pid}/stat`;
    while (!readFileSync(init, "latin1").includes(") Z "));
    const busyUntil = performance.now() + 200;
    while (performance.now() < busyUntil);
    const { startedAtMs, finishedAtMs } = await container.result;
    await container[Symbol.asyncDispose]();
    expect(finishedAtMs - startedAtMs).toBeGreaterThan(199);
    expect(finishedAtMs).toBeLessThan(Date.now() - 100);
  });

  test("of one that is canceled at any moment of its start comes soon", async () => {
    for (let delayMs = 0; delayMs < 8; delayMs += 0.5) {
      const abort = new AbortController();
      const running = host.run("sleep 1000", { signal: abort.signal, graceMs: 1 });
      if (delayMs > 0) await delay(delayMs);
      abort.abort("changed my mind");
      const ended = await running.catch((error: Error) => ({
        reason: "canceled",
        exitCode: 137,
        message: error.message,
      }));
      expect(ended.reason).toBe("canceled");
      expect(ended.message).toMatch(/changed my mind|was stopped before its program ran/);
    }
  });

  test("of one that is canceled before it starts is an exception", async () => {
    await expect(host.run("true", { signal: AbortSignal.abort(new Error("too late")) })).rejects.toThrow("too late");
  });

  test("reaps orphans while it runs", async () => {
    const { stdout } = await host.run(
      "for i in 1 2 3 4 5; do (sleep 0.01 &) ; done; while ps -eo comm= | grep -q sleep; do :; done; echo gone",
    );
    expect(stdout).toBe("gone\n");
  });
});

describe("output", () => {
  test("of both streams is told apart", async () => {
    const { stdout, stderr } = await host.run("echo out; echo err >&2; echo again");
    expect({ stdout, stderr }).toEqual({ stdout: "out\nagain\n", stderr: "err\n" });
  });

  test("is complete", async () => {
    const hash = createHash("sha256");
    let bytes = 0;
    await host.run("head -c 67108864 /dev/zero | tr '\\0' x", {
      output: (_, chunk) => {
        bytes += chunk.length;
        hash.update(chunk);
      },
    });
    expect(bytes).toBe(64 << 20);
    expect(hash.digest("hex")).toBe(
      createHash("sha256")
        .update(Buffer.alloc(64 << 20, "x"))
        .digest("hex"),
    );
  });

  test("waits for a sink that wants no more, and loses nothing", async () => {
    let bytes = 0;
    let pauses = 0;
    const config = host.script("head -c 4194304 /dev/zero", {
      output: (_, chunk) => {
        bytes += chunk.length;
        pauses++;
        setTimeout(() => container.resumeOutput(), 1);
        return false;
      },
    });
    const container: Container = prepareContainer(host.host, config);
    await container.start(config);
    await container.result;
    await container[Symbol.asyncDispose]();
    expect(bytes).toBe(4 << 20);
    expect(pauses).toBeGreaterThan(10);
  });

  test("ends although somebody outside holds the pipe open", async () => {
    const workspace = { dir: host.workspace() };
    const python = (code: string) => `python3 -c '${code}'`;
    const receive = python(
      'import socket,time; s=socket.socket(socket.AF_UNIX); s.bind("/workspace/s"); s.listen(); c,_=s.accept(); f=socket.recv_fds(c,1,1); print("have it",flush=True); time.sleep(1000)',
    );
    const send = python(
      'import socket; s=socket.socket(socket.AF_UNIX); s.connect("/workspace/s"); print("sent",flush=True); socket.send_fds(s,[b"x"],[1]); s.recv(1)',
    );
    const holding = Promise.withResolvers<void>();
    await using holder = await runContainer(
      host.host,
      host.script(receive, {
        workspace,
        output: (_, chunk) => (Buffer.from(chunk).includes("have") ? holding.resolve() : undefined),
      }),
    );
    const abort = new AbortController();
    void holding.promise.then(() => abort.abort("given away"));
    const result = await host.run(`while ! test -S s; do sleep 0.01; done; ${send}`, {
      workspace,
      signal: abort.signal,
    });
    expect(result).toMatchObject({ reason: "canceled", stdout: "sent\n" });
    expect(holder.pid).toBeGreaterThan(0);
  });

  test("does not keep a container that is disposed while its sink wants no more", async () => {
    const container = await runContainer(host.host, host.script("yes", { output: () => false }));
    await container[Symbol.asyncDispose]();
    expect(existsSync(`/proc/${container.pid}`)).toBe(false);
  });

  test("can be opened again by name", async () => {
    const { stdout, stderr } = await host.run("echo a > /dev/stdout; echo b > /dev/stderr; echo c | tee /dev/stderr");
    expect({ stdout, stderr }).toEqual({ stdout: "a\nc\n", stderr: "b\nc\n" });
  });
});

describe("the program", () => {
  test("is looked up in PATH of its own environment", async () => {
    const workspace = host.workspace();
    writeFileSync(join(workspace, "hello"), "#!/bin/sh\necho hello $1\n", { mode: 0o755 });
    const result = await host.run("", {
      args: ["hello", "you"],
      env: { PATH: "/nowhere:/workspace:/bin" },
      workspace: { dir: workspace },
    });
    expect(result.stdout).toBe("hello you\n");
  });

  test.for([
    { what: "is missing", args: ["/bin/no-such-program"], code: "ENOENT" },
    { what: "is nowhere in PATH", args: ["no-such-program"], code: "ENOENT" },
    { what: "is not executable", args: ["/etc/passwd"], code: "EACCES" },
    { what: "is not a program", args: ["/workspace/text"], code: "ENOEXEC" },
  ])("that $what is an ExecError", async ({ args, code }) => {
    const workspace = host.workspace();
    writeFileSync(join(workspace, "text"), "no program\n", { mode: 0o755 });
    const error = await host.run("", { args, workspace: { dir: workspace } }).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(ExecError);
    expect(error).toMatchObject({ code, message: expect.stringContaining(`Cannot execute "${args[0]}"`) });
  });

  test("gets its environment and nothing else", async () => {
    const { stdout } = await host.run("", { args: ["/usr/bin/env"], env: { A: "1", B: "two words\nand lines" } });
    expect(stdout).toBe("A=1\nB=two words\nand lines\n");
  });

  test("may have arguments of 128 KiB less one", async () => {
    const long = "x".repeat((128 << 10) - 1);
    const { stdout } = await host.run("", { args: ["/usr/bin/printf", "%s", long] });
    expect(stdout.length).toBe(long.length);
    await expect(host.run("", { args: ["/usr/bin/printf", `${long}x`] })).rejects.toMatchObject({ code: "E2BIG" });
  });

  test("starts with default signals, none blocked, and no descriptor but three", async () => {
    const { stdout } = await host.run("", {
      args: [
        "/usr/bin/python3",
        "-c",
        "import os; print(open('/proc/self/status').read(), os.listdir('/proc/self/fd'))",
      ],
    });
    expect(stdout).toMatch(/SigBlk:\s0000000000000000/);
    // Python ignores SIGPIPE (bit 12) and SIGXFSZ (bit 24) itself.
    expect(stdout).toMatch(/SigIgn:\s0000000001001000/);
    expect(stdout).toContain("['0', '1', '2', '3']"); // 3 is the directory being listed
  });

  test("has a session of its own and is process 2 below init", async () => {
    const { stdout } = await host.run("ps -eo pid=,sid=,comm= | head -2");
    expect(
      stdout
        .trim()
        .split("\n")
        .map((line) => line.trim().split(/\s+/)),
    ).toEqual([
      ["1", "0", "slipway-init"],
      ["2", "2", "sh"],
    ]);
  });
});

describe("isolation", () => {
  test("is in namespaces of its own, every time", async () => {
    const kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    const script = kinds.map((kind) => `readlink /proc/self/ns/${kind}`).join("; ");
    const [first, second] = [await host.run(script), await host.run(script)];
    const ours = kinds.map((kind) => readlinkSync(`/proc/self/ns/${kind}`));
    const seen = [...first.stdout.trim().split("\n"), ...second.stdout.trim().split("\n"), ...ours];
    expect(seen).toHaveLength(3 * kinds.length);
    // A number may be given again once a namespace is gone, so the two containers are compared with the host only.
    for (const [i, name] of ours.entries()) {
      expect(seen[i]).not.toBe(name);
      expect(seen[i + kinds.length]).not.toBe(name);
    }
  });

  test("runs root as nobody of the host", async () => {
    const container = await runContainer(host.host, host.script("sleep 1000"));
    const children = readFileSync(`/proc/${container.pid}/task/${container.pid}/children`, "utf8").trim();
    const status = readFileSync(`/proc/${children}/status`, "utf8");
    await container[Symbol.asyncDispose]();
    expect(/^Uid:\s+(.*)$/m.exec(status)?.[1]?.split("\t")).toEqual(Array(4).fill(`${host.range.base}`));
    expect(host.range.base).toBeGreaterThanOrEqual(65_536);
  });

  test("gives concurrent jobs different ids and lets neither see the other's processes", async () => {
    using other = host.host.claimUidRange();
    expect(other.base).not.toBe(host.range.base);
    const [one, two] = await Promise.all([
      host.run("sleep 0.2; cat /proc/self/uid_map; ls /proc | grep -c '^[0-9]'"),
      host.run("sleep 0.2; cat /proc/self/uid_map; ls /proc | grep -c '^[0-9]'", { uidRange: other }),
    ]);
    expect(one.stdout.split(/\s+/)[2]).toBe(`${host.range.base}`);
    expect(two.stdout.split(/\s+/)[2]).toBe(`${other.base}`);
  });

  test("leaves Docker's capabilities, no new privileges, nothing inheritable or ambient", async () => {
    const { stdout } = await host.run("grep -E '^(Cap|NoNewPrivs)' /proc/self/status");
    expect(stdout.replaceAll("\t", " ")).toBe(
      [
        "CapInh: 0000000000000000",
        "CapPrm: 00000000a80425fb",
        "CapEff: 00000000a80425fb",
        "CapBnd: 00000000a80425fb",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 1\n",
      ].join("\n"),
    );
  });

  test("shows a root file system, not the host's files", async () => {
    writeFileSync(join(host.directory, "secret"), "secret");
    const { stdout } = await host.run(
      `cat ${host.directory}/secret 2>&1 || true; ls /root /home; ls -d /proc/1/root/..`,
    );
    expect(stdout).toContain("No such file or directory");
    expect(stdout).not.toContain("secret\n");
  });

  test("masks and write-protects what tells about or controls the host", async () => {
    const { stdout } = await host.run(
      [
        "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c",
        "ls /sys/firmware 2>/dev/null | wc -l",
        "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/vm/drop_caches /sys/kernel/mm/ksm/run; do",
        "  (echo 0 > $f) 2>/dev/null && echo written $f; done",
        "mount -o remount,rw /proc/sys 2>/dev/null && echo remounted",
        "umount /proc/kcore 2>/dev/null && echo uncovered",
        "true",
      ].join("\n"),
    );
    expect(stdout).toBe("0\n0\n");
  });

  test("keeps the image and the host's /usr unchanged", async () => {
    const result = await host.run(
      "rm -rf /etc/passwd; echo x > /etc/new; touch /usr/bin/slipway-test 2>&1 || echo read-only",
    );
    expect(result.stdout).toContain("Read-only file system");
    expect(existsSync("/usr/bin/slipway-test")).toBe(false);
    expect((await host.run("cat /etc/passwd | head -1; ls /etc/new 2>&1 || true")).stdout).toMatch(
      /^root:.*\n.*No such file/,
    );
  });

  test("makes no device nodes and no set-uid programs work", async () => {
    const { stdout } = await host.run(
      "mknod /dev/sda b 8 0 2>&1 || true; mknod /tmp/mem c 1 1 2>&1 || true; dd if=/dev/vda count=1 2>&1 | tail -1 || true",
    );
    expect(stdout.match(/Operation not permitted/g)).toHaveLength(2);
    expect(stdout).toMatch(/No such file|failed to open/);
  });

  test("has a network of its own with loopback only", async () => {
    const { stdout } = await host.run(
      "ls /sys/class/net; python3 -c \"import socket; s = socket.create_server(('127.0.0.1', 8080)); " +
        "c = socket.create_connection(('localhost', 8080)); print('connected'); " +
        "print(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(('203.0.113.1', 9)))\"",
    );
    expect(stdout).toBe("lo\nconnected\n101\n"); // ENETUNREACH
  });

  test("shares the host's network where that is asked for", async () => {
    const { stdout } = await host.run("readlink /proc/self/ns/net; ls -d /sys/class/net; mount | grep ' /sys '", {
      network: "host",
    });
    expect(stdout.split("\n")[0]).toBe(readlinkSync("/proc/self/ns/net"));
    expect(stdout).toMatch(/\/sys type sysfs \(ro,/);
  });

  test("limits processes", async () => {
    const resources = { memoryBytes: 256 << 20, cpu: 2, pids: 10 };
    const { stdout, stderr } = await host.run(
      "python3 -c \"import subprocess\nn = 0\ntry:\n  while True: subprocess.Popen(['sleep', '100']); n += 1\nexcept OSError as e: print(n, e)\"",
      { resources },
    );
    expect(stdout + stderr).toMatch(/^[5-8] .*Resource temporarily unavailable/);
    const failed = await host.run("for i in $(seq 20); do sleep 100 & done; wait", { resources });
    expect(failed.exitCode).not.toBe(0);
    expect(failed.message).toMatch(/forks were refused at the limit of 10 processes/);
  });

  test("shows its own limits in /sys/fs/cgroup", async () => {
    const { stdout } = await host.run(
      "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
      { resources: { memoryBytes: 96 << 20, cpu: 1, pids: 64 } },
    );
    expect(stdout).toBe(`${96 << 20}\n`);
  });

  test("has the usual devices, terminals and shared memory", async () => {
    const { stdout } = await host.run(
      [
        "head -c 3 /dev/zero | od -An -tx1; echo x > /dev/null; head -c 4 /dev/urandom | wc -c; echo > /dev/full || echo full",
        "python3 -c \"import os, pty; m, s = pty.openpty(); print(os.ttyname(s)); os.write(s, b'y'); print(os.read(m, 1))\"",
        "echo shm > /dev/shm/x; cat /dev/shm/x; ls -d /dev/mqueue; readlink /dev/fd /dev/ptmx; ls -l /proc/self/fd/0",
      ].join("\n"),
    );
    expect(stdout).toContain(" 00 00 00\n4\nfull\n/dev/pts/0\nb'y'\nshm\n/dev/mqueue\n/proc/self/fd\npts/ptmx\n");
    expect(stdout).toMatch(/0 -> \/dev\/null\n$/);
  });
});

describe("the workspace", () => {
  test("is shared by containers and is the working directory", async () => {
    const workspace = { dir: host.workspace() };
    await host.run("pwd > where; mkdir d; ln -s d l; chmod 700 d", { workspace });
    const { stdout } = await host.run("cat where; ls -ld d l | cut -c1-10; stat -c %u:%g where", { workspace });
    expect(stdout).toBe("/workspace\ndrwx------\nlrwxrwxrwx\n0:0\n");
    expect(host.ownerOf(join(workspace.dir, "where"))).toBe(0);
  });

  test("can be shown without being changed, and its changes are the job's", async () => {
    const workspace = { dir: host.workspace(), copyOnWrite: true };
    writeFileSync(join(workspace.dir, "file"), "original\n");
    await host.run("echo changed > file; echo new > new", { workspace });
    const { stdout } = await host.run("cat file new", { workspace });
    expect(stdout).toBe("changed\nnew\n");
    expect(readFileSync(join(workspace.dir, "file"), "utf8")).toBe("original\n");
    expect(readdirSync(workspace.dir)).toEqual(["file"]);
    using other = host.host.claimUidRange();
    expect((await host.run("cat file; ls", { workspace, uidRange: other })).stdout).toBe("original\nfile\n");
  });

  test("cannot lead a mount elsewhere by symlinks in an image", async () => {
    const layer = host.workspace();
    for (const name of ["proc", "sys", "dev", "workspace", "etc", "tmp"]) symlinkSync("/usr/share", join(layer, name));
    mkdirSync(join(layer, "usr"));
    for (const name of ["bin", "lib", "lib64", "sbin"]) symlinkSync(`usr/${name}`, join(layer, name));
    const image = { ...host.image, layers: [layer] };
    const { stdout } = await host.run("stat -c '%F %n' /proc /sys /dev /workspace /etc; cat /proc/self/comm", {
      image,
      workspace: { dir: host.workspace() },
    });
    expect(stdout).toBe("directory /proc\ndirectory /sys\ndirectory /dev\ndirectory /workspace\ndirectory /etc\ncat\n");
  });
});

test("what a container mounts does not appear on a host whose mounts are shared", async () => {
  const shared = host.workspace();
  execFileSync("mount", ["--bind", shared, shared]);
  try {
    execFileSync("mount", ["--make-shared", shared]);
    const { stdout } = await host.run("cat /proc/self/mountinfo", { workspace: { dir: shared } });
    const line = stdout.split("\n").find((line) => line.split(" ")[4] === "/workspace");
    expect(line).toBeDefined();
    expect(line).not.toMatch(/shared:|master:/);
  } finally {
    execFileSync("umount", [shared]);
  }
});

describe("prepareContainer", () => {
  test("waits for arguments and environment", async () => {
    const output: string[] = [];
    const container = prepareContainer(
      host.host,
      host.prepared({
        output: (_, chunk) => {
          output.push(Buffer.from(chunk).toString());
        },
      }),
    );
    await container.created;
    await container.start({ args: ["sh", "-c", "echo $LATE"], env: { PATH: "/bin", LATE: "known now" } });
    expect(await container.result).toMatchObject({ exitCode: 0 });
    await container[Symbol.asyncDispose]();
    expect(output.join("")).toBe("known now\n");
  });

  test("can be started while it is still being created", async () => {
    await using container = prepareContainer(host.host, host.prepared());
    await container.start({ args: ["/bin/true"], env: {} });
    expect(await container.result).toMatchObject({ exitCode: 0 });
  });

  test("counts the time limit from the start", async () => {
    await using container = prepareContainer(host.host, host.prepared({ timeoutMs: 600, graceMs: 10 }));
    await container.created;
    await delay(700);
    await container.start({ args: ["/bin/true"], env: {} });
    expect(await container.result).toMatchObject({ reason: "exited", exitCode: 0 });
  });

  test("is taken down unused without a trace", async () => {
    const container = prepareContainer(host.host, host.prepared());
    await container.created;
    const { pid } = container;
    expect(existsSync(`/proc/${pid}`)).toBe(true);
    await container[Symbol.asyncDispose]();
    expect(existsSync(`/proc/${pid}`)).toBe(false);
    await expect(container.result).rejects.toThrow("was not started");
  });

  test("tells an ExecError like runContainer does", async () => {
    await using container = prepareContainer(host.host, host.prepared());
    await expect(container.start({ args: ["nothing"], env: {} })).rejects.toThrow('Cannot execute "nothing"');
  });
});

describe("overlays by path, as kernels before 6.15 want them", () => {
  let old: TestHost;
  beforeAll(async () => {
    old = await TestHost.open({ overlaysByPath: true });
  });
  afterAll(async () => old[Symbol.asyncDispose]());

  test("make the same root file system", async () => {
    expect(old.host.mountsDetachedOverlays).toBe(false);
    const workspace = { dir: old.workspace() };
    const script =
      "id -u; touch /etc/new /workspace/file; ls /etc/new; stat -c %u /etc/passwd; mount | grep -c ' / '; ls /";
    const [byPath, detached] = [await old.run(script, { workspace }), await host.run(script, { workspace })];
    expect(byPath).toMatchObject({ exitCode: 0, stdout: detached.stdout });
    expect(byPath.stdout).toMatch(/^0\n\/etc\/new\n0\n1\n/);
  });

  test("throw changes away and leave no mount or descriptor on the host", async () => {
    await old.run("echo changed > /etc/passwd");
    // Without the sockets of launchers, which come and go.
    const descriptors = () => openDescriptors().filter((target) => !target.startsWith("socket:")).length;
    const before = descriptors();
    for (let i = 0; i < 5; i++) await old.run("true");
    await expect.poll(descriptors).toBe(before);
    expect((await old.run("head -1 /etc/passwd")).stdout).toMatch(/^root:/);
    expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(old.directory);
  });

  test("show a workspace without changing it, by a copy", async () => {
    const workspace = { dir: old.workspace(), copyOnWrite: true };
    writeFileSync(join(workspace.dir, "file"), "original\n", { mode: 0o640 });
    await old.run("echo changed >> file", { workspace });
    expect((await old.run("cat file; stat -c %a file", { workspace })).stdout).toBe("original\nchanged\n640\n");
    expect(readFileSync(join(workspace.dir, "file"), "utf8")).toBe("original\n");
  });
});
