/** SCMP_ACT_NOTIFY: somebody outside answers a container's system calls. */
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import koffi from "koffi";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM } from "../../runtime/linux.ts";
import { close, syscall, trySyscall } from "../../runtime/syscall.ts";
import { type Change, OciWorld } from "./oci-bundle.ts";

let world: OciWorld;
beforeAll(() => {
  world = new OciWorld();
});
afterAll(() => world[Symbol.dispose]());

const ENOMEDIUM = 123;
const addressOf = (buffer: Buffer) => BigInt(koffi.address(buffer));

/** Listens as agents do, and answers each notified call with ENOMEDIUM. */
class Agent implements AsyncDisposable {
  readonly path = join(world.directory, world.id());
  /** What it was told, one of each filter. */
  readonly told: Record<string, unknown>[] = [];
  /** Of the processes whose calls it answered, as it numbers them. */
  readonly asked: number[] = [];
  readonly #socket = syscall("socket", AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | 0x800 /* SOCK_NONBLOCK */, 0);
  readonly #listeners: number[] = [];
  readonly #ended: Promise<void>;
  #ends = false;

  constructor() {
    const address = Buffer.concat([Buffer.from([AF_UNIX, 0]), Buffer.from(`${this.path}\0`)]);
    syscall("bind", this.#socket, address, address.length);
    syscall("listen", this.#socket, 8);
    this.#ended = this.#run();
  }

  async #run(): Promise<void> {
    for (; !this.#ends; await delay(5)) {
      const connection = trySyscall("accept4", this.#socket, 0, 0, SOCK_CLOEXEC);
      if (connection >= 0) await this.#receive(connection);
      for (const listener of this.#listeners) this.#answer(listener);
    }
  }

  async #receive(connection: number): Promise<void> {
    const data = Buffer.alloc(65_536);
    const control = Buffer.alloc(24);
    const vector = Buffer.alloc(16);
    const message = Buffer.alloc(56);
    vector.writeBigUInt64LE(addressOf(data), 0);
    vector.writeBigUInt64LE(BigInt(data.length), 8);
    message.writeBigUInt64LE(addressOf(vector), 16);
    message.writeBigUInt64LE(1n, 24);
    message.writeBigUInt64LE(addressOf(control), 32);
    message.writeBigUInt64LE(24n, 40);
    for (; !this.#ends; await delay(5)) {
      const length = trySyscall("recvmsg", connection, message, 0x4000_0040 /* MSG_CMSG_CLOEXEC, MSG_DONTWAIT */);
      if (length === -11) continue;
      if (length > 0) {
        this.told.push(JSON.parse(data.toString("utf8", 0, length)) as Record<string, unknown>);
        this.#listeners.push(control.readInt32LE(16));
      }
      break;
    }
    close(connection);
  }

  #answer(listener: number): void {
    const poll = Buffer.alloc(8);
    poll.writeInt32LE(listener, 0);
    poll.writeInt16LE(1, 4);
    if (trySyscall("ppoll", poll, 1, Buffer.alloc(16), 0, 0) <= 0 || (poll.readInt16LE(6) & 1) === 0) return;
    const request = Buffer.alloc(80); // struct seccomp_notif
    if (trySyscall("ioctl", listener, 0xc050_2100, request) < 0) return;
    this.asked.push(request.readUInt32LE(8));
    const response = Buffer.alloc(24);
    request.copy(response, 0, 0, 8);
    response.writeInt32LE(-ENOMEDIUM, 16);
    trySyscall("ioctl", listener, 0xc018_2101, response);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ends = true;
    await this.#ended;
    for (const fd of [this.#socket, ...this.#listeners]) close(fd);
  }
}

const asking = (listenerPath: string | undefined, noNewPrivileges: boolean, more: object = {}): Change => ({
  process: { noNewPrivileges },
  annotations: { key: "value" },
  linux: {
    seccomp: {
      defaultAction: "SCMP_ACT_ALLOW",
      ...(listenerPath === undefined ? {} : { listenerPath }),
      listenerMetadata: "of the test",
      syscalls: [{ names: ["mkdir", "mkdirat"], action: "SCMP_ACT_NOTIFY" }],
      ...more,
    },
  },
});

const script = "mkdir /tmp-made; ls /proc/self/fd | wc -l; cat /proc/1/task/1/children; ls -d /tmp-made";

describe.for([true, false])("a container whose seccomp filter asks an agent, no_new_privs %s", (noNewPrivileges) => {
  test("has its calls answered outside, and nothing else of the agent", async () => {
    await using agent = new Agent();
    const id = world.id();
    const { path } = world.bundle(script, asking(agent.path, noNewPrivileges));
    const { code, stdout, stderr } = await world.start("run", "--bundle", path, id).ended;
    // 0, 1, 2 and ls's own; `cat` is the only child.
    expect(stdout).toMatch(/^4\n\d+ $/);
    expect(stderr).toContain("No medium found");
    expect(code).toBe(2);
    const [told] = agent.told;
    expect(told).toMatchObject({ ociVersion: "1.3.0", fds: ["seccompFd"], metadata: "of the test" });
    const status = noNewPrivileges ? "created" : "creating";
    expect(told?.["state"]).toMatchObject({
      id,
      status,
      bundle: path,
      pid: told?.["pid"],
      annotations: { key: "value" },
    });
    expect(agent.asked.length).toBe(1);
  });

  test("asks for processes that are executed in it, too", async () => {
    await using agent = new Agent();
    const id = world.id();
    const { path } = world.bundle("exec sleep 100", asking(agent.path, noNewPrivileges));
    expect(world.run("run", "--detach", "--bundle", path, id)).toMatchObject({ code: 0 });
    const { code, stderr } = await world.start("exec", id, "mkdir", "/made").ended;
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining("No medium found") });
    expect(agent.told.map(({ state }) => (state as { status: string }).status)).toContain("running");
    expect(agent.told[1]?.["pid"]).not.toBe(agent.told[0]?.["pid"]);
    world.run("delete", "--force", id);
  });

  test("cannot be without the agent", () => {
    const refused = (change: Change) => {
      const id = world.id();
      const { code, stderr } = world.run("run", "--bundle", world.bundle("true", change).path, id);
      expect(code).toBe(1);
      expect(world.run("state", id).stderr).toContain("does not exist");
      return stderr;
    };
    const missing = join(world.directory, "nobody");
    expect(refused(asking(missing, noNewPrivileges))).toContain("failed to connect with seccomp agent");
    expect(refused(asking(undefined, noNewPrivileges))).toContain("linux.seccomp.listenerPath is missing");
  });
});

test("what an agent cannot be told is refused", async () => {
  await using agent = new Agent();
  const long = { listenerMetadata: "x".repeat(70_000) };
  const { path } = world.bundle("true", asking(agent.path, true, long));
  const { code, stderr } = await world.start("run", "--bundle", path, world.id()).ended;
  expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining("longer than 65536 bytes") });
});

test("a filter that asks nobody needs no agent", () => {
  const syscalls = [{ names: ["mkdir"], action: "SCMP_ACT_ERRNO", errnoRet: ENOMEDIUM }];
  const change = asking(join(world.directory, "nobody"), true, { syscalls });
  expect(world.runBundle("mkdir /made; echo on", change)).toMatchObject({ stdout: "on\n" });
});
