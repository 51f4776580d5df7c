/** What root of a container's own user namespace can do in a job's network: use it. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  AT_FDCWD,
  CLONE_NEWNS,
  CLONE_NEWUSER,
  MOVE_MOUNT_F_EMPTY_PATH,
  O_CREAT,
  O_WRONLY,
} from "../../runtime/linux.ts";
import { joinNetwork, networkMemory, networkSys } from "../../runtime/network-join.ts";
import { type JobNetwork, Networks } from "../../runtime/network.ts";
import { compileProgram, type Operation } from "../../runtime/program.ts";
import { reap } from "../../runtime/reaper.ts";
import { placeDescriptors, startProgram } from "../../runtime/start-program.ts";
import { architecture, close, pipe } from "../../runtime/syscall.ts";

let directory: string;
let networks: Networks;
let network: JobNetwork;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "slipway-join-"));
  // In a network namespace that leads nowhere: nothing of this machine's network is touched.
  networks = await Networks.open({ agent: "slipway-join", runDir: directory, scratch: true, poolSize: 0 });
  network = await networks.claim();
});
afterAll(async () => {
  network[Symbol.dispose]();
  await networks[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true, force: true });
});

/** Joins the network as a container does, becomes root of a new user namespace and runs a script. */
async function runInside(script: string): Promise<string> {
  const output = join(directory, "output");
  const status = pipe();
  const descriptors = placeDescriptors([network.namespaceFd, status.write] as const);
  const [namespaceFd, statusFd] = descriptors.targets;
  const write = (path: string, content: string): Operation[] => [
    { name: `open ${path}`, call: "openat", args: [AT_FDCWD, { text: path }, O_WRONLY, 0], store: "file" },
    { name: `write ${path}`, call: "write", args: [{ load: "file" }, { text: content }, content.length] },
  ];
  const operations: Operation[] = [
    ...networkMemory,
    { memory: "file", size: 4 },
    {
      memory: "argv",
      size: 32,
      pointers: [
        { at: 0, to: "sh" },
        { at: 8, to: "c" },
        { at: 16, to: "script" },
      ],
      bytes: Buffer.alloc(32),
    },
    { memory: "sh", size: 8, bytes: Buffer.from("sh\0") },
    { memory: "c", size: 8, bytes: Buffer.from("-c\0") },
    { memory: "script", size: script.length + 1, bytes: Buffer.from(`${script}\0`) },
    ...joinNetwork(namespaceFd),
    { name: "new namespaces", call: "unshare", args: [CLONE_NEWUSER | CLONE_NEWNS] },
    ...write("/proc/self/uid_map", "0 0 1\n"),
    {
      name: "attach sysfs",
      call: "move_mount",
      args: [networkSys, { text: "" }, AT_FDCWD, { text: "/sys" }, MOVE_MOUNT_F_EMPTY_PATH],
    },
    {
      name: "open the output",
      call: "openat",
      args: [AT_FDCWD, { text: output }, O_WRONLY | O_CREAT, 0o600],
      store: "file",
    },
    ...[1, 2].map((fd): Operation => ({ name: "place output", call: "dup3", args: [{ load: "file" }, fd, 0] })),
    {
      name: "execute",
      call: "execve",
      args: [{ text: "/bin/sh" }, { addressOf: "argv" }, { addressOf: "argv", offset: 24 }],
    },
  ];
  rmSync(output, { force: true });
  const program = compileProgram(operations, { architecture, statusFd });
  const ended = await reap(startProgram(program.file, "join", descriptors.pairs));
  close(status.read);
  close(status.write);
  expect(ended.exitCode, JSON.stringify(ended)).not.toBe(127);
  return readFileSync(output, "utf8");
}

test("it sees its links in /sys, which is read-only", async () => {
  expect(await runInside("ls -x /sys/class/net; echo 1 > /sys/class/net/eth0/mtu")).toMatch(
    /^eth0 +lo\n.*(?:Read-only|Permission)/,
  );
});

test("it can change nothing of the network, whatever capabilities it has in its own user namespace", async () => {
  const changes = [
    "ip link set eth0 down",
    "ip address add 10.231.0.77/32 dev eth0",
    "ip route del default",
    "ip neighbor flush dev eth0 nud permanent",
    "nft add table inet x",
    "echo 1 > /proc/sys/net/ipv4/ip_forward",
    "mount -t sysfs sysfs /mnt",
  ];
  const script = `grep CapEff /proc/self/status; ${changes.map((change) => `{ ${change}; } && echo "done: ${change}"`).join("; ")}; true`;
  const output = await runInside(script);
  expect(output).toMatch(/CapEff:\t000001f[f0-9a-f]{9}/);
  expect(output).not.toContain("done:");
  expect(output.match(/not permitted|denied/gi)?.length).toBeGreaterThanOrEqual(changes.length - 1);
});

test("it belongs to nobody's descriptor but the agent's", () => {
  const listed = execFileSync("lsns", ["--type", "net", "--noheadings", "--output", "COMMAND"], { encoding: "utf8" });
  expect(listed).not.toContain("slipway-join");
});
