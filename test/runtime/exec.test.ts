import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  type Container,
  type ContainerConfig,
  type ExecOptions,
  type ExecProcess,
  execInContainer,
  openContainer,
  runContainer,
} from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";
import { openDescriptors } from "./open-descriptors.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
});
afterAll(async () => host[Symbol.asyncDispose]());

const env = { PATH: "/usr/local/bin:/usr/bin:/bin", HOME: "/root" };

/** A container whose program does nothing for as long as it is left alone. */
async function idle(options: Partial<ContainerConfig> = {}): Promise<Container> {
  return await runContainer(host.host, host.script("exec sleep 1000", options));
}

/** A process whose output is collected and waited for. */
class Run {
  readonly process: ExecProcess;
  #text = "";
  #waiting: (() => void)[] = [];

  private constructor(process: ExecProcess) {
    this.process = process;
  }

  static async start(container: Container, args: readonly string[], options: Partial<ExecOptions> = {}): Promise<Run> {
    let run: Run | undefined;
    let early = "";
    const output: ExecOptions["output"] = (_, chunk) => {
      const text = Buffer.from(chunk).toString("latin1");
      if (run === undefined) early += text;
      else run.#add(text);
    };
    run = new Run(await execInContainer(container, { args, env, output, ...options }));
    run.#add(early);
    return run;
  }

  get text(): string {
    return this.#text;
  }

  #add(text: string): void {
    this.#text += text;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  type(text: string): void {
    this.process.write(Buffer.from(text), () => {});
  }

  /** Waits until the output matches. */
  async until(pattern: RegExp): Promise<string> {
    for (;;) {
      const match = pattern.exec(this.#text);
      if (match !== null) return match[1] ?? match[0];
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }
}

/** Runs a command in a container and returns what it printed. */
async function capture(container: Container, script: string, options: Partial<ExecOptions> = {}): Promise<string> {
  const run = await Run.start(container, ["/bin/sh", "-c", script], options);
  await run.process.result;
  return run.text;
}

const terminal = { rows: 24, columns: 80 };

/** What this process and the machine hold, as far as a further process of a container could leave it behind. */
function traces() {
  return {
    descriptors: openDescriptors().length - host.host.launchers.ready,
    mounts: host.mountPoints(),
    children: execFileSync("ps", ["-o", "pid=,stat=,args=", "--ppid", `${process.pid}`])
      .toString()
      .split("\n")
      .filter((line) => line !== "" && !/slipway-launcher|slipway-init|ps -o|esbuild/.test(line)),
  };
}

/** The traces, once no launcher is under way, which has a descriptor before it is ready. */
async function settled(): Promise<ReturnType<typeof traces>> {
  let last = "";
  for (let same = 0; same < 5; ) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    const now = JSON.stringify(traces());
    same = now === last ? same + 1 : 0;
    last = now;
  }
  return JSON.parse(last) as ReturnType<typeof traces>;
}

describe("execInContainer", () => {
  test("joins everything that the container's program is in, with its identity and limits", async () => {
    const workspace = host.workspace();
    const container = await idle({ workspace: { dir: workspace }, args: ["/bin/sleep", "1000"] });
    const facts = `
      for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup; pwd; id
      grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups|Umask)' /proc/self/status; cat /proc/self/limits; hostname; cat /proc/mounts`;
    writeFileSync(join(workspace, "facts.sh"), facts);
    const run = await capture(container, ". /workspace/facts.sh");
    // The program's own view: the same script, run by the container itself.
    const own = await host.run(". /workspace/facts.sh", { workspace: { dir: workspace } });
    const same = (text: string) =>
      text.replaceAll(/(user|mnt|pid|net|ipc|uts|cgroup):\[\d+\]|\/c\d+|upperdir=\S+/g, "");
    expect(same(run)).toBe(same(own.stdout));
    const namespaces = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    for (const name of namespaces) expect(run).toContain(readlinkSync(`/proc/${container.pid}/ns/${name}`));
    expect(await capture(container, "ps -e -o pid=,comm=")).toMatch(
      /^\s*1 slipway-init\n\s*2 sleep\n\s*\d+ sh\n\s*\d+ ps\n$/,
    );
    await container[Symbol.asyncDispose]();
  });

  test("counts in the container's cgroup, on the host's side too", async () => {
    const container = await idle();
    const run = await Run.start(container, ["/bin/cat"]);
    expect(readFileSync(`/proc/${run.process.pid}/cgroup`, "utf8")).toBe(
      readFileSync(`/proc/${container.pid}/cgroup`, "utf8"),
    );
    run.process.endInput();
    expect(await run.process.result).toEqual({ exitCode: 0 });
    await container[Symbol.asyncDispose]();
  });

  test("passes input and output as bytes, tells exit codes and signals", async () => {
    const container = await idle();
    const bytes = Buffer.from(Array.from({ length: 200_000 }, (_, i) => (i * 7) & 0xff));
    const run = await Run.start(container, ["/bin/cat"]);
    run.process.write(bytes, () => run.process.endInput());
    expect(await run.process.result).toEqual({ exitCode: 0 });
    expect(run.text === bytes.toString("latin1")).toBe(true);
    const outputs: string[] = [];
    const both = await execInContainer(container, {
      args: ["/bin/sh", "-c", "echo out; echo err >&2; exit 7"],
      env,
      output: (stream, chunk) => void outputs.push(`${stream} ${Buffer.from(chunk).toString()}`),
    });
    expect(await both.result).toEqual({ exitCode: 7 });
    expect(outputs.sort()).toEqual(["stderr err\n", "stdout out\n"]);
    const killed = await Run.start(container, ["/bin/sh", "-c", "kill -SEGV $$"]);
    expect(await killed.process.result).toEqual({ exitCode: 139, signal: "SIGSEGV" });
    await container[Symbol.asyncDispose]();
  });

  test("runs with the environment and working directory it is given, and nothing else", async () => {
    const container = await idle();
    expect(await capture(container, "pwd; env | sort", { cwd: "/usr", env: { A: "1", PATH: "/bin" } })).toBe(
      "/usr\nA=1\nPATH=/bin\nPWD=/usr\n",
    );
    await expect(
      execInContainer(container, { args: ["/bin/sh"], env, cwd: "/none", output: () => {} }),
    ).rejects.toThrow('Cannot start a process in the container: chdir to cwd "/none": ENOENT');
    await container[Symbol.asyncDispose]();
  });

  test("looks the program up in PATH and says when it cannot be executed", async () => {
    const container = await idle();
    expect(await (await Run.start(container, ["true"])).process.result).toEqual({ exitCode: 0 });
    const missing = execInContainer(container, { args: ["no-such-program"], env, output: () => {} });
    await expect(missing).rejects.toMatchObject({ name: "ExecError", code: "ENOENT" });
    await expect(execInContainer(container, { args: ["/etc"], env, output: () => {} })).rejects.toMatchObject({
      name: "ExecError",
      code: "EACCES",
    });
    await container[Symbol.asyncDispose]();
  });

  test("is the container's user, who may open its own standard descriptors again", async () => {
    const container = await idle({ user: { uid: 1000, gid: 100, additionalGids: [5] } });
    const script = "id -u; id -g; id -G; grep CapEff /proc/self/status; echo again > /dev/stdout; cat /dev/stdin";
    const run = await Run.start(container, ["/bin/sh", "-c", script]);
    run.type("in\n");
    run.process.endInput();
    await run.process.result;
    expect(run.text).toBe("1000\n100\n100 5\nCapEff:\t0000000000000000\nagain\nin\n");
    expect(await capture(container, "tty; stat -c %u $(tty); echo again > /dev/stdout", { terminal })).toBe(
      "/dev/pts/0\r\n1000\r\nagain\r\n",
    );
    await container[Symbol.asyncDispose]();
  });

  test("is in the job's network where the container is", async () => {
    using network = await host.host.claimNetwork();
    const container = await idle({ network });
    expect(await capture(container, "readlink /proc/self/ns/net; ls /sys/class/net; cat /etc/hosts")).toContain("eth0");
    await container[Symbol.asyncDispose]();
  });

  test("is refused by a container that has ended, or has no processes left, with the reason", async () => {
    const ended = await runContainer(host.host, host.script("true"));
    await ended.result;
    await expect(execInContainer(ended, { args: ["sh"], env, output: () => {} })).rejects.toThrow(
      /has ended|was killed/,
    );
    await ended[Symbol.asyncDispose]();
    const full = await idle({ resources: { memoryBytes: 256 << 20, cpu: 2, pids: 5 } });
    // Init, its program, and what is started here; for a moment the process that has cloned init, too.
    const fill = async () => {
      for (let n = 0; n < 4; n++) await execInContainer(full, { args: ["sleep", "1000"], env, output: () => {} });
    };
    await expect(fill()).rejects.toThrow(
      "Cannot start a process in the container: it has as many processes as it may have",
    );
    await full[Symbol.asyncDispose]();
  });

  test("ends with its container", async () => {
    const container = await idle();
    const run = await Run.start(container, ["/bin/sh", "-c", "trap '' TERM HUP; echo on; exec sleep 1000"]);
    await run.until(/on/);
    await container[Symbol.asyncDispose]();
    expect(await run.process.result).toEqual({ exitCode: 137, signal: "SIGKILL" });
  });

  test("does not keep a container from ending, nor from being removed", async () => {
    const container = await runContainer(
      host.host,
      host.script("read line < /workspace/go", {
        workspace: { dir: fifoWorkspace() },
      }),
    );
    const run = await Run.start(container, ["/bin/sh", "-c", "echo on; sleep 1000"]);
    await run.until(/on/);
    expect(await capture(container, "echo go > /workspace/go")).toBe("");
    expect((await container.result).exitCode).toBe(0);
    await container[Symbol.asyncDispose]();
    expect((await run.process.result).signal).toBe("SIGKILL");
  });
});

function fifoWorkspace(): string {
  const dir = host.workspace();
  execFileSync("mkfifo", ["-m", "666", join(dir, "go")]);
  return dir;
}

describe("a terminal", () => {
  test("is the container's own, the controlling one of a session, with the size it was given", async () => {
    const container = await idle();
    const text = await capture(
      container,
      "tty; stty size; ls -1 /dev/pts; ps -o tty=,tpgid= -p $$; echo $$ > /dev/tty",
      {
        terminal: { rows: 33, columns: 101 },
      },
    );
    expect(text).toMatch(/^\/dev\/pts\/0\r\n33 101\r\n0\r\nptmx\r\npts\/0\s+(\d+)\r\n\1\r\n$/);
    await container[Symbol.asyncDispose]();
  });

  test("is resized, and its programs are told", async () => {
    const container = await idle();
    const run = await Run.start(
      container,
      ["/bin/sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"],
      { terminal },
    );
    await run.until(/ready/);
    run.process.resize({ rows: 50, columns: 132 });
    expect(await run.until(/(50 132)/)).toBe("50 132");
    await run.process[Symbol.asyncDispose]();
    await container[Symbol.asyncDispose]();
  });

  test("turns keys into signals and ends of input", async () => {
    const container = await idle();
    const run = await Run.start(container, ["/bin/sh"], { terminal });
    run.type("sleep 1004\n");
    await run.until(/sleep 1004\r\n/);
    while (!psOf(container).includes("sleep 1004\n")) await new Promise((resolve) => setTimeout(resolve, 5));
    run.type("\x03");
    run.type("echo status $?\n");
    expect(await run.until(/status (\d+)/)).toBe("130");
    run.type("exit 3\n");
    expect(await run.process.result).toEqual({ exitCode: 3 });
    const cat = await Run.start(container, ["/bin/cat"], { terminal });
    cat.process.endInput();
    expect(await cat.process.result).toEqual({ exitCode: 0 });
    await container[Symbol.asyncDispose]();
  });

  test("stays as long as the program runs, though that has closed it already", async () => {
    const container = await idle();
    const script = "exec 0<&- 1>&- 2>&-; sleep 0.3; exit 7";
    const run = await Run.start(container, ["/bin/sh", "-c", script], { terminal });
    expect(await run.process.result).toEqual({ exitCode: 7 });
    await container[Symbol.asyncDispose]();
  });

  test("that is hung up takes the shell, what it runs and what ignores it", async () => {
    const container = await idle();
    const run = await Run.start(container, ["/bin/sh"], { terminal });
    run.type("(trap '' HUP; exec sleep 1001) & sleep 1002\n");
    while (!/sleep 1001\n[^]*sleep 1002\n|sleep 1002\n[^]*sleep 1001\n/.test(psOf(container))) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await run.process[Symbol.asyncDispose]();
    while (/sleep 100[12]/.test(psOf(container))) await new Promise((resolve) => setTimeout(resolve, 5));
    expect(psOf(container)).toContain("sleep 1000\n");
    await container[Symbol.asyncDispose]();
  });

  test("shows all that was printed before the end, and does not wait for who stays behind with it", async () => {
    const container = await idle();
    const text = await capture(container, "(trap '' HUP; exec sleep 1003) & seq 1 20000", { terminal });
    expect(text).toBe(Array.from({ length: 20_000 }, (_, i) => `${i + 1}\r\n`).join(""));
    await container[Symbol.asyncDispose]();
  });

  test("of a container that lies about /dev/pts/ptmx is refused", async () => {
    const container = await idle({
      mounts: [{ type: "tmpfs", target: "/dev/pts" }],
    });
    const open = () => execInContainer(container, { args: ["sh"], env, terminal, output: () => {} });
    await expect(open()).rejects.toThrow(/open "\/dev\/pts\/ptmx" in the container: ENOENT/);
    await capture(container, "touch /dev/pts/ptmx");
    await expect(open()).rejects.toThrow(/unlock the terminal: ENOTTY/);
    await capture(container, "ln -sf /proc/self/fd/0 /dev/pts/ptmx");
    await expect(open()).rejects.toThrow(/open "\/dev\/pts\/ptmx" in the container: ELOOP/);
    await container[Symbol.asyncDispose]();
  });
});

/** The command lines in a container's cgroup, seen from the host. */
function psOf(container: Container): string {
  const own = readFileSync(`/proc/${container.pid}/cgroup`, "utf8");
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        if (readFileSync(`/proc/${pid}/cgroup`, "utf8") !== own) return "";
        return `${readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim()}\n`;
      } catch {
        return "";
      }
    })
    .join("");
}

describe("openContainer", () => {
  test("makes a container to work in; what is left behind there is no zombie, and goes with it", async () => {
    const writableDir = join(host.host.stateDir, "kept-test");
    mkdirSync(writableDir);
    await host.run("echo kept > /left", { writableDir });
    const container = openContainer(host.host, host.prepared({ writableDir }));
    await container.created;
    const run = await Run.start(container, ["/bin/sh"], { terminal });
    run.type(
      "cat /left; for i in 1 2 3; do (sleep 0.01 &); done; while ps -e -o comm= | grep -q sleep; do :; done; ps -e -o stat=,comm=; exit\n",
    );
    await run.process.result;
    expect(run.text).toContain("kept\r\n");
    expect(run.text).not.toMatch(/\r\nZ/);
    await container[Symbol.asyncDispose]();
    expect(existsSync(`/proc/${container.pid}`)).toBe(false);
    await host.host.removeTree(writableDir);
  });
});

describe("from inside a further process", () => {
  test("neither init, nor the program that joined, nor the agent can be read or traced", async () => {
    for (const container of [await idle(), openContainer(host.host, host.prepared())]) {
      await container.created;
      const text = await capture(
        container,
        `for f in mem environ maps auxv exe fd/0 cwd root; do
          (head -c 1 /proc/1/$f || readlink /proc/1/$f) >/dev/null 2>&1 && echo "read $f"; done
         ls /proc/1/fd 2>/dev/null | wc -l; readlink /proc/self/exe; ls -l /proc/self/fd; ls /proc | grep -E '^[0-9]+$' | wc -l`,
      );
      expect(text).not.toMatch(/read (mem|environ|maps|auxv|exe|fd|cwd)/);
      const [count, exe] = text.trim().split("\n");
      expect([count, exe]).toEqual(["0", expect.stringMatching(/^\/usr\/bin\/(da|ba)?sh|readlink$/)]);
      // 0, 1, 2 are pipes, 3 is the directory that ls reads.
      expect(text.match(/ -> (\S+)/g)?.map((link) => link.replace(/\d+/g, "N"))).toEqual([
        " -> pipe:[N]",
        " -> pipe:[N]",
        " -> pipe:[N]",
        " -> /proc/N/fd",
      ]);
      await container[Symbol.asyncDispose]();
    }
  });

  test("a program that races for the descriptors of those that join finds none of the host's", async () => {
    const spy = `
      while :; do for p in /proc/[0-9]*; do
        for f in $p/fd/*; do l=$(readlink $f 2>/dev/null) && case $l in pipe:*|/dev/*|/proc*|anon*|/usr*|/workspace*|socket:*) ;; *) echo "$p $l";; esac; done
        head -c 1 $p/mem >/dev/null 2>&1 && case $(cat $p/comm 2>/dev/null) in slipway*) echo "mem of $p";; esac
      done; done > /workspace/found 2>/dev/null`;
    const dir = host.workspace();
    const container = await runContainer(host.host, host.script(spy, { workspace: { dir } }));
    for (let i = 0; i < 40; i++) await capture(container, "true", i % 2 === 0 ? {} : { terminal });
    await container[Symbol.asyncDispose]();
    expect(readFileSync(join(dir, "found"), "utf8")).toBe("");
  });

  test("a working directory that leads out through a descriptor is refused (CVE-2024-21626)", async () => {
    const container = await idle();
    const enter = (cwd: string) =>
      execInContainer(container, { args: ["pwd"], env, cwd, output: () => {} }).then(
        (run) => run.result,
        (error: Error) => error.message,
      );
    for (const cwd of ["/proc/self/fd/3", "/proc/self/fd/64", "/proc/self/fd/66", "/proc/1/cwd"]) {
      expect(await enter(cwd)).toMatch(/chdir to cwd "/);
    }
    expect(await enter("/proc/self/cwd")).toEqual({ exitCode: 0 });
    await container[Symbol.asyncDispose]();
  });
});

test("leaves nothing behind: descriptors, processes, mounts, terminals", async () => {
  const container = await idle();
  await capture(container, "true", { terminal });
  const before = await settled();
  for (let i = 0; i < 10; i++) {
    await capture(container, "true");
    await capture(container, "true", { terminal });
    await execInContainer(container, { args: ["none"], env, output: () => {} }).catch(() => {});
    const run = await Run.start(container, ["/bin/sh"], { terminal });
    await run.process[Symbol.asyncDispose]();
  }
  expect(await capture(container, "ls /dev/pts")).toBe("ptmx\n");
  await expect.poll(traces).toEqual(before);
  await container[Symbol.asyncDispose]();
});
