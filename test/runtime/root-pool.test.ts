import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TestHost } from "./host-fixture.ts";
import { needRight } from "./host-rights.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
});
afterAll(async () => host[Symbol.asyncDispose]());

/** A container's view of its root: which file system it is, what is in it, and what its own attributes are. */
const look =
  "stat -c %d /; find / /dev -xdev -printf '%H/%P %y %m %U:%G %l\\n' | sort; cat /etc/hosts; python3 -c 'import os; print(os.listxattr(\"/\"))'";
const device = (output: string) => output.split("\n")[0];
const rest = (output: string) => output.slice(output.indexOf("\n"));
const isPooled = () => host.host.mountsDetachedOverlays;

describe("a root file system that its container", () => {
  test("has not changed serves the next one of the job", async () => {
    const first = await host.run(`${look}; echo x > /dev/shm/file`);
    const second = await host.run(`${look}; ls -A /dev/shm`);
    expect(second.exitCode).toBe(0);
    expect(device(second.stdout) === device(first.stdout)).toBe(isPooled());
    expect(second.stdout).toBe(`${second.stdout.slice(0, second.stdout.indexOf("\n"))}${rest(first.stdout)}`);
  });

  test.for([
    "echo x > /new",
    "echo x > /tmp/file",
    "echo x > /tmp/file && rm /tmp/file",
    "mkdir /new && rmdir /new",
    "echo x > /opt/new",
    "echo x >> /etc/hosts",
    "rm /etc/hosts",
    "touch /etc/hosts",
    "rm -r /opt",
    "chmod 700 /",
    "chmod 700 / && chmod 755 /",
    "chown 1:1 /",
    "touch /",
    "touch -d @0 /",
    'python3 -c \'import os; os.setxattr("/", "user.x", b"1"); os.removexattr("/", "user.x")\'',
    'python3 -c \'import os; os.setxattr("/", "user.x", b"1")\'',
    "ln -s target /new && rm /new",
    "chmod 600 /dev/null && chmod 666 /dev/null",
    "chmod 600 /dev/null",
    "chown 1 /dev/tty",
    "rm /dev/full",
    "mv /dev/zero /dev/one",
    "echo x > /dev/file",
    "echo x > /dev/file && rm /dev/file",
    "ln -sfn /etc/passwd /dev/stdin",
    "mkdir /dev/dir && chmod 700 /dev",
    "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/new\")'",
  ])("has changed serves nobody: %s", async (change, context) => {
    // Bound ones are the host's.
    if (/ \/dev\/(null|tty|full|zero)/.test(change)) needRight("device nodes", context);
    const before = await host.run(look);
    expect(await host.run(change)).toMatchObject({ exitCode: 0, stderr: "" });
    const after = await host.run(look);
    expect(after.exitCode).toBe(0);
    expect(rest(after.stdout)).toBe(rest(before.stdout));
  });

  test("has still open serves nobody else meanwhile", async () => {
    const script = `${look}; sleep 1`;
    const [one, other] = await Promise.all([host.run(script), host.run(script)]);
    expect(device(one.stdout)).not.toBe(device(other.stdout));
  });
});

test("RootPool keeps nothing of a job for another one, and nothing when the job is over", async () => {
  const roots = () => readdirSync(join(host.host.stateDir, "roots"));
  const of = async (uidRange: TestHost["range"]) => device((await host.run(look, { uidRange })).stdout);
  const before = roots();
  const first = host.host.claimUidRange();
  const used = await of(first);
  expect(roots().length > before.length).toBe(isPooled());
  first[Symbol.dispose]();
  // Open, so that its number stays taken.
  for (let i = 0; i < 500 && roots().length > before.length; i++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  expect(roots()).toEqual(before);
  using second = host.host.claimUidRange();
  expect(second.key).not.toBe(first.key);
  expect(await of(second)).toBeDefined();
  expect(used).toBeDefined();
});
