/** The agent of an ordinary user, on the real kernel: what it starts, and what that cannot do. */
import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { AgentAnswer, AskedStep } from "./rootless-agent.ts";
import { RootlessUser } from "./rootless-user.ts";

/** Weaker isolation that this machine makes necessary: nothing is delegated to the tests' user. */
const environment = { SLIPWAY_TEST_ALLOW: "no-cgroups" };

let user: RootlessUser;
beforeAll(() => {
  user = new RootlessUser();
});
afterAll(() => user[Symbol.dispose]());

async function runSteps(asked: readonly AskedStep[], as = user): Promise<AgentAnswer> {
  const script = as.script("test/runtime/rootless-agent.ts");
  const { code, stdout, stderr } = await as.run([...script, JSON.stringify(asked)], { environment });
  if (code !== 0) throw new Error(`The rootless agent ended with ${code}: ${stderr}${stdout}`);
  return JSON.parse(stdout) as AgentAnswer;
}

const idOutside = (mapped: string, base: number) => {
  // Lines of `inside outside count` of the agent, against `inside` of a container's.
  const [, outside = 0] = /^\s*0\s+(\d+)/.exec(mapped)?.map(Number) ?? [];
  return outside - base;
};

describe("an ordinary user's command", () => {
  test("starts itself again in its own place, as the same user, with its arguments, environment and directory", async () => {
    const script = join(user.home, "echo.mts");
    writeFileSync(
      script,
      `import { enterUserNamespace, holdsCapabilities } from "${user.file("runtime/rootless.ts")}";
       import { readFileSync } from "node:fs";
       if (!holdsCapabilities()) console.error(process.pid);
       const args = readFileSync("/proc/self/cmdline", "utf8").split("\\0").slice(0, -1);
       await enterUserNamespace({ args, executable: process.execPath, environment: process.env });
       process.on("SIGTERM", () => process.exit(43));
       console.log(JSON.stringify({ pid: process.pid, uid: process.getuid(), gid: process.getgid(), cwd: process.cwd(),
         args: process.argv.slice(2), given: process.env.GIVEN, home: process.env.HOME }));
       if (process.argv[2] === "wait") { setInterval(() => {}, 1000); process.kill(process.pid, "SIGTERM"); }
       else process.exit(42);`,
    );
    const directory = user.directoryOf("somewhere");
    const args = ["a", "", "b c", "\u{1f680}'\"$x\n"];
    const { code, stdout, stderr } = await user.run([user.node, script, ...args], {
      directory,
      environment: { GIVEN: "kept\nwhole" },
    });
    expect(code).toBe(42);
    expect(JSON.parse(stdout)).toEqual({
      pid: Number(stderr),
      uid: user.uid,
      gid: user.gid,
      cwd: directory,
      args,
      given: "kept\nwhole",
      home: user.home,
    });
    expect((await user.run([user.node, script, "wait"])).code).toBe(43);
  });
});

test("a layer's copy for another range keeps owners, set-id bits and file capabilities, for that range's root", async () => {
  const script = join(user.home, "shift.mts");
  writeFileSync(
    script,
    `import { readFileSync, writeFileSync, chmodSync, mkdirSync, statSync } from "node:fs";
     import { execFileSync } from "node:child_process";
     import { enterUserNamespace } from "${user.file("runtime/rootless.ts")}";
     const args = readFileSync("/proc/self/cmdline", "utf8").split("\\0").slice(0, -1);
     await enterUserNamespace({ args, executable: process.execPath, environment: process.env });
     const { diskCapability, jobIds, shiftTree } = await import("${user.file("runtime/file-owners.ts")}");
     const { cString, syscall } = await import("${user.file("runtime/syscall.ts")}");
     const [first, second] = jobIds().ranges;
     mkdirSync("tree");
     for (const name of ["plain", "suid", "ping"]) writeFileSync("tree/" + name, "", { mode: 0o755 });
     execFileSync("chown", ["-R", first.base + ":" + first.base, "tree"]);
     chmodSync("tree/suid", 0o4755);
     // CAP_NET_RAW, permitted and effective, version 2.
     const value = Buffer.alloc(20);
     value.writeUInt32LE(0x02000001, 0);
     value.writeUInt32LE(1 << 13, 4);
     const kept = diskCapability(value);
     syscall("lsetxattr", cString("tree/ping"), cString("security.capability"), kept, kept.length, 0);
     execFileSync("cp", ["--archive", "tree", "copy"]);
     shiftTree("copy", first, second);
     const read = Buffer.alloc(24);
     const size = syscall("lgetxattr", cString("copy/ping"), cString("security.capability"), read, 24);
     const stats = ["plain", "suid", "ping"].map((name) => statSync("copy/" + name));
     console.log(JSON.stringify([stats.map(({ uid, mode }) => [uid - second.base, (mode & 0o7777).toString(8)]), size,
       read.readUInt32LE(4), read.readUInt32LE(20) - second.base]));`,
  );
  const directory = user.directoryOf("shift");
  const { code, stdout, stderr } = await user.run([user.node, script], { directory });
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  const owned = [
    [0, "755"],
    [0, "4755"],
    [0, "755"],
  ];
  expect(JSON.parse(stdout)).toEqual([owned, 24, 1 << 13, 0]);
});

test("an image's layers are copied for another range in a thread, while the agent goes on", async () => {
  const script = join(user.home, "prepare.mts");
  writeFileSync(
    script,
    `import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
     import { enterUserNamespace } from "${user.file("runtime/rootless.ts")}";
     const args = readFileSync("/proc/self/cmdline", "utf8").split("\\0").slice(0, -1);
     await enterUserNamespace({ args, executable: process.execPath, environment: process.env });
     const { jobIds } = await import("${user.file("runtime/file-owners.ts")}");
     const { ShiftedLayers } = await import("${user.file("runtime/shifted-layers.ts")}");
     const [first, second] = jobIds().ranges;
     const layers = ["a", "b"].map((name) => process.cwd() + "/store/layers/" + name);
     for (const layer of layers) { mkdirSync(layer, { recursive: true }); writeFileSync(layer + "/file", layer); }
     const shifted = new ShiftedLayers(process.cwd() + "/store", process.cwd() + "/tmp");
     let turns = 0;
     const timer = setInterval(() => turns++, 1);
     await Promise.all([shifted.prepare(layers, second), shifted.prepare(layers, second), shifted.prepare(layers, first)]);
     clearInterval(timer);
     const made = readdirSync("store/shifted/" + second.base).length;
     const copies = layers.map((layer) => shifted.get(layer, { ...second, key: "k" }));
     console.log(JSON.stringify([turns > 0, made, copies.map((copy) => readFileSync(copy + "/file", "utf8")), layers]));`,
  );
  const directory = user.directoryOf("prepare");
  const { code, stdout, stderr } = await user.run([user.node, script], { directory });
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  const [wentOn, made, copies, layers] = JSON.parse(stdout) as [boolean, number, string[], string[]];
  // Each with the link to its layer, and nothing unfinished.
  expect([wentOn, made, copies]).toEqual([true, 4, layers]);
});

describe("a rootless step", () => {
  test("is root of ids that are nobody's on the host, and not the user's", async () => {
    const { steps, uidMap, bases } = await runSteps([
      { script: "id -u; cat /proc/self/uid_map; cat /proc/self/gid_map" },
    ]);
    const [uid = "", ...maps] = (steps[0]?.stdout ?? "").trim().split("\n");
    expect(uid).toBe("0");
    expect(maps.map((line) => line.trim().split(/\s+/).map(Number))).toEqual([
      [0, bases[0], 15872],
      [65024, (bases[0] ?? 0) + 15872, 512],
      [0, bases[0], 15872],
      [65024, (bases[0] ?? 0) + 15872, 512],
    ]);
    expect(uidMap.split("\n")[1]?.trim().split(/\s+/).map(Number)).toEqual([bases[0], user.firstSubordinate, 65_536]);
    expect(idOutside(maps[0] ?? "", bases[0] ?? 0)).toBe(0);
  });

  test("has another job's ids nowhere", async () => {
    const ids = "awk '{print $2, $3}' /proc/self/uid_map";
    const { steps, bases } = await runSteps([{ script: ids }, { script: ids, range: 1 }]);
    expect(new Set(bases).size).toBe(2);
    const taken = steps
      .flatMap(({ stdout }) => stdout.trim().split("\n"))
      .map((line) => line.split(" ").map(Number) as [number, number])
      .toSorted(([a], [b]) => a - b);
    taken.forEach(([first, count], i) => expect(taken[i + 1]?.[0] ?? Infinity).toBeGreaterThanOrEqual(first + count));
  });

  test("sees files of image, skeleton and workspace as root's, writes them, and runs as other users", async () => {
    const { steps } = await runSteps([
      {
        script:
          "stat -c '%u:%g %n' / /etc/passwd /tmp /dev /workspace; echo x > /etc/new && echo y > file && stat -c %u file",
        workspace: "w",
      },
      { script: "stat -c '%u:%g %n' / /etc/passwd /workspace; cat file || true; touch file", workspace: "v", range: 1 },
      { script: "id -u; touch /tmp/mine; stat -c %u /tmp/mine; touch /etc/theirs 2>&1 || true", uid: 1000 },
      { script: "id -u; stat -c %u /dev/null", uid: 65534 },
    ]);
    expect(steps.map(({ stdout }) => stdout)).toEqual([
      "0:0 /\n0:0 /etc/passwd\n0:0 /tmp\n0:0 /dev\n0:0 /workspace\n0\n",
      "0:0 /\n0:0 /etc/passwd\n0:0 /workspace\n",
      "1000\n1000\ntouch: cannot touch '/etc/theirs': Permission denied\n",
      "65534\n65534\n",
    ]);
  });

  test("says so if an image's user is not among its ids", async () => {
    const { steps } = await runSteps([{ script: "id", uid: 20_000 }]);
    expect(steps[0]?.error).toMatch(/Cannot run as user 20000: a job has 16384 ids here.*subordinate ids/);
  });

  test("has a limit of processes by user where there are no cgroups", async () => {
    const script = `python3 -c 'import os, time
n = 0
try:
    while n < 100:
        if os.fork() == 0: time.sleep(30); os._exit(0)
        n += 1
except OSError: pass
print(n, flush=True); os._exit(0)'`;
    const [first, second] = (await runSteps([{ script, pids: 20 }, { script: "echo fine" }])).steps;
    expect(Number(first?.stdout)).toBeGreaterThan(5);
    expect(Number(first?.stdout)).toBeLessThan(20);
    expect(second?.stdout).toBe("fine\n");
  });

  test("hands exit codes, output and signals on", async () => {
    const { steps } = await runSteps([
      { script: "echo out; echo err >&2; exit 7" },
      { script: "kill -TERM $$" },
      { script: "sleep 1000 & exit 0" },
    ]);
    expect(steps[0]).toMatchObject({ stdout: "out\n", stderr: "err\n", exitCode: 7 });
    expect(steps[1]?.exitCode).toBe(143);
    expect(steps[2]?.exitCode).toBe(0);
  });

  test("has namespaces, devices and mounts of its own", async () => {
    const { steps, pid } = await runSteps([
      {
        script: [
          "for n in user mnt pid net ipc uts; do readlink /proc/self/ns/$n; done",
          "ls -1 /sys/class/net; hostname; ps -e | wc -l",
          "head -c 3 /dev/zero | wc -c; echo x > /dev/null; head -c 5 /dev/urandom | wc -c; ls -x /dev",
          "grep -c overlay /proc/mounts",
        ].join("\n"),
      },
    ]);
    const lines = (steps[0]?.stdout ?? "").trim().split("\n");
    const here = ["user", "mnt", "pid", "net", "ipc", "uts"].map((kind) =>
      execFileSync("readlink", [`/proc/self/ns/${kind}`], { encoding: "utf8" }).trim(),
    );
    expect(pid).toBeGreaterThan(1);
    expect(lines.slice(0, 6).filter((line) => here.includes(line))).toEqual([]);
    expect(lines.slice(6, 8)).toEqual(["lo", "slipway"]);
    expect(lines.slice(9, 11)).toEqual(["3", "5"]);
    expect(lines.slice(11, -1).join(" ").split(/\s+/).toSorted()).toEqual(
      "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split(" "),
    );
  });

  test("leaves no mount and no directory", async () => {
    const { leftovers } = await runSteps([{ script: "true", workspace: "w" }, { script: "false" }]);
    expect(leftovers).toEqual({ mounts: 0, containers: [] });
    const processes = () =>
      readdirSync("/proc").filter((pid) => {
        if (!/^\d+$/.test(pid)) return false;
        try {
          const uid = Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
          return uid === user.uid || (uid >= user.firstSubordinate && uid < user.firstSubordinate + 65_536);
        } catch {
          return false;
        }
      });
    // Whoever inherits the last of them reaps them when it finds the time.
    await expect.poll(processes).toEqual([]);
  });
});

describe("out of a rootless step", () => {
  test("nothing of the host can be written, made or seen", async () => {
    const secret = join(user.home, "secret");
    writeFileSync(secret, "the user's secret\n");
    chmodSync(secret, 0o644);
    const files = [
      "/proc/sys/kernel/core_pattern",
      "/proc/sys/kernel/hostname",
      "/proc/sysrq-trigger",
      "/sys/kernel/uevent_helper",
      "/proc/1/oom_score_adj",
    ];
    const { steps } = await runSteps([
      { script: files.map((file) => `(echo 1 > ${file}) 2>/dev/null && echo wrote ${file}; true`).join("\n") },
      {
        script: [
          `mknod /tmp/disk b 254 0 2>/dev/null && echo node; mknod /tmp/kmsg c 1 11 2>/dev/null && echo node`,
          "mount -t tmpfs none /mnt 2>/dev/null && echo mounted; unshare -Ur true 2>/dev/null && echo unshared",
          `cat ${secret} /proc/1/root${secret} /proc/self/cwd/../../..${secret} 2>/dev/null && echo seen`,
          "cat /proc/1/environ /proc/1/maps 2>/dev/null && echo read; ls -d /proc/[0-9]* | wc -l",
          "touch /usr/bin/new 2>/dev/null && echo usr; true",
        ].join("\n"),
      },
      {
        script: `python3 - <<'PY'
import os, socket, ctypes
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, action):
    try: action(); print(name, "WORKED")
    except OSError as error: pass
fd = os.open("/", os.O_RDONLY); os.mkdir("/tmp/jail"); os.chroot("/tmp/jail"); os.fchdir(fd)
for _ in range(64): os.chdir("..")
os.chroot(".")
print(os.path.exists("${secret}"), "workspace" in os.listdir("/"))
attempt("setuid", lambda: os.setuid(${user.uid}))
attempt("raw socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("metadata", lambda: socket.create_connection(("169.254.169.254", 80), 1))
print(libc.ptrace(16, 1, 0, 0))
PY`,
      },
    ]);
    expect(steps[0]?.stdout).toBe("");
    expect(steps[1]?.stdout.replace(/\d+\n$/, "")).toBe("");
    // Its own loopback interface, in a network of its own, is its to configure no more than in other steps.
    expect(steps[2]?.stdout.replace("raw socket WORKED\n", "")).toBe("False True\n-1\n");
  });

  test("the agent's environment is not to be seen", async () => {
    const { steps } = await runSteps([{ script: "env | sort" }]);
    expect(steps[0]?.stdout.split("\n").map((line) => line.split("=")[0])).toEqual(["PATH", "PWD", ""]);
  });
});

describe("a user without subordinate ids", () => {
  test("runs steps as root only, with the user's own id", async () => {
    using alone = new RootlessUser({ ids: 0 });
    const { problem, bases, steps } = await runSteps(
      [
        { script: "id; touch file; stat -c %u file; cat /proc/self/uid_map; cat /proc/self/setgroups", workspace: "w" },
        { script: "id", uid: 1000 },
        { script: "echo parallel", range: 1 },
      ],
      alone,
    );
    expect(problem).toBe("no subordinate ids");
    expect(bases).toEqual([alone.uid, alone.uid]);
    expect(steps[0]?.stdout).toMatch(/^uid=0\(root\) gid=0\(root\)[^\n]*\n0\n/);
    expect(steps[0]?.stdout).toMatch(new RegExp(`^\\s+0\\s+${alone.uid}\\s+1$`, "m"));
    expect(steps[0]?.stdout).toMatch(/deny\n$/);
    expect(steps[1]?.error).toMatch(/Cannot run as user 1000/);
    expect(steps[2]?.stdout).toBe("parallel\n");
  });
});

describe("slipway doctor", () => {
  test("says which mode it is, what is missing and how to mend it", async () => {
    const { stdout } = await user.slipway(["doctor", "--json"]);
    const checks = JSON.parse(stdout) as { name: string; ok: boolean; found: string; mend?: string }[];
    const find = (name: string) => checks.find((check) => check.name === name);
    expect(find("mode")).toMatchObject({
      ok: true,
      found: expect.stringContaining(`rootless, as rootless (${user.uid})`),
    });
    expect(find("ids for jobs")?.found).toMatch(/^16384 for each of 4 jobs/);
    expect(find("overlay in a user namespace")?.ok).toBe(true);
  });

  test("says what stands in the way of user namespaces", async () => {
    // Room for one more, which is taken at once.
    const script = `echo 1 > /proc/sys/user/max_user_namespaces
      exec unshare --user --map-user=${user.uid} --map-group=${user.gid} -- "$@"`;
    const command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
    const { code, stdout } = await user.run([...command, user.node, user.file("cli/slipway.cjs"), "doctor"]);
    expect([code, stdout]).toEqual([
      125,
      expect.stringMatching(/neither root nor rootless: .*ENOSPC[^]*mend: .*sysctl/),
    ]);
  });
});

test("a whole pipeline runs for an ordinary user and leaves the working tree as it was", async () => {
  const project = user.directoryOf("pipeline");
  const write = (name: string, text: string) => writeFileSync(join(project, name), text);
  write("source.txt", "before\n");
  write(
    ".slipway.yml",
    `jobs:
  one:
    steps:
      - { name: change, run: "id -u && echo changed > source.txt && cat source.txt && echo made > new" }
      - { name: see, run: "cat source.txt new; stat -c %u:%g source.txt" }
  two:
    steps:
      - { name: fails, run: "cat source.txt; exit 3" }
`,
  );
  const { code, stdout } = await user.slipway(["run", "--allow", "no-cgroups", "--network", "none"], {
    directory: project,
  });
  expect(code).toBe(1);
  for (const line of ["one │ 0", "one │ changed", "one │ made", "one │ 0:0", "two │ before"])
    expect(stdout).toContain(line);
  expect(readFileSync(join(project, "source.txt"), "utf8")).toBe("before\n");
  expect(existsSync(join(project, "new"))).toBe(false);
});

test("a step of an ordinary user has its secret as a file of its own in memory, which its log masks", async () => {
  const project = user.directoryOf("secrets");
  const run =
    "stat -c '%a %u %g' /run/secrets/key; stat -f -c %T /run/secrets; wc -c < /run/secrets/key; cat /run/secrets/key";
  writeFileSync(
    join(project, ".slipway.yml"),
    `jobs: { one: { steps: [{ run: "${run}", secrets: { key: { file: true } } }] } }\n`,
  );
  writeFileSync(join(project, "env"), "key='a value that is not shown'\n");
  const words = ["run", "--allow", "no-cgroups", "--network", "none", "--secrets-file", "env"];
  const { code, stdout, stderr } = await user.slipway(words, { directory: project });
  expect(stdout + stderr).toMatch(/400 0 0\n.*tmpfs\n.*25\n.*\*\*\*/);
  expect(stdout + stderr).not.toContain("not shown");
  expect(code).toBe(0);
});

test("an image is built for an ordinary user, with the owners that its files have for everybody", async () => {
  const project = user.directoryOf("image");
  cpSync("/bin/busybox", join(project, "busybox"));
  writeFileSync(
    join(project, "Dockerfile"),
    `FROM scratch
COPY --chown=5:6 busybox /bin/busybox
COPY busybox /bin/sh
RUN b=/bin/busybox; $b mkdir /made && $b touch /made/file && $b chown 33:44 /made/file && $b chmod 4755 /made/file
`,
  );
  writeFileSync(
    join(project, ".slipway.yml"),
    `jobs:
  image:
    steps:
      - build: { tags: mine, output: image.tar }
      - { image: mine, run: "/bin/busybox stat -c '%u:%g %a %n' /made/file /bin/busybox" }
      - mkdir layout && tar -C layout -xf image.tar && for f in layout/blobs/sha256/*; do tar --numeric-owner -tvzf $f 2>/dev/null || true; done
`,
  );
  const { stdout } = await user.slipway(["run", "--allow", "no-cgroups", "--network", "none"], { directory: project });
  expect(stdout).toContain("image │ 33:44 4755 /made/file");
  expect(stdout).toContain("image │ 5:6 755 /bin/busybox");
  expect(stdout).toMatch(/-rwsr-xr-x 33\/44 .* made\/file/);
});
