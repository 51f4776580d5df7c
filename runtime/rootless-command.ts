/** How a command starts itself again in a user namespace. @see rootless.ts */
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import {
  CLONE_NEWNS,
  CLONE_NEWUSER,
  EINVAL,
  ENOMEM,
  EPERM,
  F_SETFD,
  LINUX_CAPABILITY_VERSION_3,
  O_RDONLY,
  PR_CAP_AMBIENT,
  PR_CAP_AMBIENT_RAISE,
  capabilityNames,
} from "./linux.ts";
import type { IdMapping } from "./oci-config.ts";
import { compileProgram, type Operation } from "./program.ts";
import { findProgram } from "./programs.ts";
import type { NamespaceIds, RootlessCommand } from "./rootless.ts";
import { sealedProgram } from "./start-program.ts";
import { type Account, findSubordinateIds, planIdMaps } from "./subordinate-ids.ts";
import { architecture, close, execute, open, pipe, SyscallError, trySyscall } from "./syscall.ts";
import { visitNewNamespaces, writeIdMaps } from "./user-namespace.ts";

/**
 * Makes a user namespace with the subordinate ids that the user has, or else with the user's own id alone, and says
 * why. The caller closes the descriptor.
 *
 * @throws {SyscallError | Error} If the kernel refuses.
 */
export function makeUserNamespace(
  account: Account,
  path: string | undefined,
): { readonly namespaceFd: number; readonly problem: string } {
  const maps = planIdMaps(account, findSubordinateIds(account, path));
  let problem = "";
  if (maps.uids.length === 1) {
    problem = "no subordinate ids";
  } else {
    try {
      const mapWith = (pid: number) => {
        runMapper("newuidmap", pid, { map: maps.uids, path });
        runMapper("newgidmap", pid, { map: maps.gids, path });
      };
      return { namespaceFd: holdNamespace(mapWith), problem };
    } catch (error) {
      if (error instanceof SyscallError) throw error;
      problem = (error as Error).message;
    }
  }
  return { namespaceFd: holdNamespace((pid) => mapOwnId(pid, account)), problem };
}

/**
 * Makes a user namespace in which the given ids are what they are outside. The caller closes the descriptor.
 *
 * @param ids `containerID` and `hostID` are one; the account's own are among them.
 * @throws {SyscallError | Error} If the kernel refuses, or the user does not have them.
 */
export function makeSameUserNamespace({ uids, gids }: NamespaceIds, path: string | undefined): number {
  const isOwn = [uids, gids].every(([first, ...others]) => first?.size === 1 && others.length === 0);
  return holdNamespace((pid) => {
    if (isOwn) {
      writeFileSync(`/proc/${pid}/setgroups`, "deny");
      writeIdMaps(pid, uids, gids);
    } else {
      runMapper("newuidmap", pid, { map: uids, path });
      runMapper("newgidmap", pid, { map: gids, path });
    }
  });
}

/** The mount namespace is made only to see whether it may be: the command makes its own. */
function holdNamespace(map: (pid: number) => void): number {
  return visitNewNamespaces(CLONE_NEWUSER | CLONE_NEWNS, (pid) => {
    map(pid);
    return open(`/proc/${pid}/ns/user`, O_RDONLY);
  });
}

function runMapper(
  name: string,
  pid: number,
  { map, path }: { readonly map: readonly IdMapping[]; readonly path: string | undefined },
): void {
  const program = findProgram(name, path);
  if (program === undefined) throw new Error(`${name} is not installed`);
  const args = map.flatMap(({ containerID, hostID, size }) => [`${containerID}`, `${hostID}`, `${size}`]);
  const { status, stderr, error } = spawnSync(program, [`${pid}`, ...args], { encoding: "utf8", timeout: 30_000 });
  if (error !== undefined) throw new Error(`${name} cannot be run: ${error.message}`);
  // It speaks of itself by name.
  if (status !== 0) throw new Error(stderr.trim().split("\n").at(-1) || `${name} failed with exit code ${status}`);
}

/**
 * The group has the number of the user, so that both are one id to whoever has a range of one. Without CAP_SETGID outside, setgroups(2) has to be given up for a group
 * map. @see user_namespaces(7)
 */
function mapOwnId(pid: number, { uid, gid }: Account): void {
  for (const [file, text] of [
    ["setgroups", "deny"],
    ["uid_map", `${uid} ${uid} 1\n`],
    ["gid_map", `${uid} ${gid} 1\n`],
  ] as const) {
    writeFileSync(`/proc/${pid}/${file}`, text);
  }
}

/**
 * Joins the namespace and executes the command in this process's place.
 *
 * @throws {SyscallError} If the program that does it cannot be executed; after that there is no way back.
 */
export function becomeCommand(command: RootlessCommand, namespaceFd: number): void {
  // Nobody listens: what fails but for the last operation is tolerated, and told by the command that finds itself without.
  const status = pipe();
  // Node marks those that it was started with close-on-exec.
  for (const fd of [0, 1, 2, namespaceFd, ...(command.descriptors ?? [])]) trySyscall("fcntl", fd, F_SETFD, 0);
  const program = compileProgram(planCommand(command, namespaceFd), { architecture, statusFd: status.write });
  const memory = sealedProgram(program.file, "slipway-rootless");
  try {
    execute(`/proc/self/fd/${memory}`, ["slipway-rootless"]);
  } finally {
    for (const fd of [memory, namespaceFd, status.read, status.write]) close(fd);
  }
}

/** Joins the user namespace, makes all its capabilities ambient, and executes the command. */
export function planCommand(command: RootlessCommand, namespaceFd: number): Operation[] {
  const header = Buffer.alloc(8);
  header.writeUInt32LE(LINUX_CAPABILITY_VERSION_3, 0);
  const lastCapability = Number(readFileSync("/proc/sys/kernel/cap_last_cap", "utf8"));
  const all = (1n << BigInt(lastCapability + 1)) - 1n;
  const sets = Buffer.alloc(24); // effective, permitted, inheritable of the lower 32, then of the upper
  for (const half of [0, 1]) {
    const bits = Number((all >> BigInt(32 * half)) & 0xffff_ffffn);
    for (const set of [0, 4, 8]) sets.writeUInt32LE(bits, 12 * half + set);
  }
  const tolerate = [EPERM, EINVAL, ENOMEM];
  const strings = (name: string, values: readonly string[]): Operation[] => [
    ...values.map((value, i): Operation => ({ memory: `${name}${i}`, size: 0, bytes: Buffer.from(`${value}\0`) })),
    {
      memory: name,
      size: 8 * (values.length + 1),
      bytes: Buffer.alloc(8 * (values.length + 1)),
      pointers: values.map((_, i) => ({ at: 8 * i, to: `${name}${i}` })),
    },
  ];
  const environment = Object.entries(command.environment).flatMap(([key, value]) =>
    value === undefined ? [] : [`${key}=${value}`],
  );
  return [
    ...strings("argv", command.args),
    ...strings("envp", environment),
    { name: "join the user namespace", call: "setns", args: [namespaceFd, CLONE_NEWUSER], tolerate },
    { name: "let go of the user namespace", call: "close", args: [namespaceFd], tolerate },
    { name: "new mount namespace", call: "unshare", args: [CLONE_NEWNS], tolerate },
    { name: "make capabilities inheritable", call: "capset", args: [{ bytes: header }, { bytes: sets }], tolerate },
    ...Array.from(
      { length: lastCapability + 1 },
      (_, capability): Operation => ({
        name: `make ${capabilityNames[capability] ?? `capability ${capability}`} ambient`,
        call: "prctl",
        args: [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0],
        tolerate,
      }),
    ),
    {
      name: `execute "${command.executable}"`,
      call: "execve",
      args: [{ text: command.executable }, { addressOf: "argv" }, { addressOf: "envp" }],
    },
  ];
}
