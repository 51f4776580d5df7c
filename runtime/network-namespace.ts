/** Network namespaces made by a thread that visits them. For worker threads only: whatever else runs on the thread goes along. */
import { writeFileSync } from "node:fs";
import { jobIds } from "./file-owners.ts";
import { CLONE_NEWNET, O_RDONLY } from "./linux.ts";
import { close, open, SyscallError, syscall, trySyscall } from "./syscall.ts";
import { visitNewNamespaces } from "./user-namespace.ts";

const currentNamespace = "/proc/thread-self/ns/net";

/** A descriptor of the network namespace that this thread is in. */
export function openCurrentNamespace(): number {
  return open(currentNamespace, O_RDONLY);
}

/**
 * Makes a network namespace, runs `prepare` in it and comes back.
 *
 * It belongs to the agent's user namespace, so nobody in a container has a right in it, whatever capabilities they have
 * in their own; or to `owner`, and then whoever is root there may do with it what he likes. It lasts as long as its
 * descriptor, or a process in it.
 *
 * @param home Where to come back to.
 * @throws {SyscallError}
 */
export function makeNamespace<T>(
  home: number,
  prepare: () => T,
  { owner }: { readonly owner?: number | undefined } = {},
): { readonly fd: number; readonly prepared: T } {
  const fd = owner === undefined ? enterNew() : enterOwned(owner);
  try {
    return { fd, prepared: prepare() };
  } catch (error) {
    close(fd);
    throw error;
  } finally {
    syscall("setns", home, CLONE_NEWNET);
  }
}

function enterNew(): number {
  syscall("unshare", CLONE_NEWNET);
  return openCurrentNamespace();
}

/** A thread of this process could not enter a user namespace, another process can. */
function enterOwned(owner: number): number {
  const visit = (pid: number) => open(`/proc/${pid}/ns/net`, O_RDONLY);
  const fd = visitNewNamespaces(CLONE_NEWNET, visit, { within: owner });
  const entered = trySyscall("setns", fd, CLONE_NEWNET);
  if (entered === 0) return fd;
  close(fd);
  throw new SyscallError("setns", -entered, "enter a job's network");
}

/**
 * Settings of a job's namespace, below /proc/sys/net.
 *
 * Steps have no capability here, CAP_NET_BIND_SERVICE and CAP_NET_RAW included; what those are commonly needed for (a server
 * on port 80, ping) is allowed to everybody instead.
 */
export function namespaceSettings({ hasOwner = false } = {}): (readonly [path: string, value: string])[] {
  return [
    ["ipv4/ip_unprivileged_port_start", "0"],
    // Who writes it in the namespace of an owner has no name for other groups; its root needs none.
    ...(hasOwner ? [] : [["ipv4/ping_group_range", jobGroups()] as const]),
    ...["all", "default"].flatMap((link) => [
      [`ipv6/conf/${link}/accept_ra`, "0"] as const,
      [`ipv4/conf/${link}/accept_redirects`, "0"] as const,
      [`ipv6/conf/${link}/accept_redirects`, "0"] as const,
    ]),
  ];
}

/** The group ids of all ranges; of the agent's user namespace, which must have both ends. */
function jobGroups(): string {
  const { ids } = jobIds();
  if (ids.all) return "0 2147483647";
  const [most] = ids.spare.toSorted((a, b) => b.count - a.count);
  return most === undefined ? `${ids.own} ${ids.own}` : `${most.first} ${most.first + most.count - 1}`;
}

/** Called inside the namespace. */
export function configureNamespace(): void {
  for (const [path, value] of namespaceSettings()) {
    try {
      writeFileSync(`/proc/sys/net/${path}`, value);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error; // a kernel without IPv6
    }
  }
}

/**
 * Whether this thread could come back to its network namespace after having been in another one: it belongs to the agent's
 * user namespace or one below.
 */
export function canVisitNamespaces(): boolean {
  const home = openCurrentNamespace();
  try {
    return trySyscall("setns", home, CLONE_NEWNET) === 0;
  } finally {
    close(home);
  }
}

/** Moves this thread to a network for good; only for a thread of its own. @throws {SyscallError} */
export function enterNetwork(namespaceFd: number): void {
  syscall("setns", namespaceFd, CLONE_NEWNET);
}
