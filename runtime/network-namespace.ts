/** Network namespaces made by a thread that visits them. For worker threads only: whatever else runs on the thread goes along. */
import { writeFileSync } from "node:fs";
import { CLONE_NEWNET, O_RDONLY } from "./linux.ts";
import { close, open, syscall } from "./syscall.ts";

const currentNamespace = "/proc/thread-self/ns/net";

/** A descriptor of the network namespace that this thread is in. */
export function openCurrentNamespace(): number {
  return open(currentNamespace, O_RDONLY);
}

/**
 * Makes a network namespace, runs `prepare` in it and comes back.
 *
 * The namespace belongs to the agent's user namespace, so nobody in a container has a right in it, whatever capabilities
 * they have in their own. It lasts as long as its descriptor, or a process in it.
 *
 * @param home Where to come back to.
 * @throws {SyscallError}
 */
export function makeNamespace<T>(home: number, prepare: () => T): { readonly fd: number; readonly prepared: T } {
  syscall("unshare", CLONE_NEWNET);
  try {
    const fd = openCurrentNamespace();
    try {
      return { fd, prepared: prepare() };
    } catch (error) {
      close(fd);
      throw error;
    }
  } finally {
    syscall("setns", home, CLONE_NEWNET);
  }
}

/** Settings of a job's namespace; called inside it. */
export function configureNamespace(): void {
  // Steps have no capability here, CAP_NET_BIND_SERVICE and CAP_NET_RAW included; what those are commonly needed for
  // (a server on port 80, ping) is allowed to everybody instead. Group ids are the host's: those of all uid ranges.
  write("ipv4/ip_unprivileged_port_start", "0");
  write("ipv4/ping_group_range", "0 2147483647");
  for (const link of ["all", "default"]) {
    write(`ipv6/conf/${link}/accept_ra`, "0");
    write(`ipv4/conf/${link}/accept_redirects`, "0");
    write(`ipv6/conf/${link}/accept_redirects`, "0");
  }
}

function write(path: string, value: string): void {
  try {
    writeFileSync(`/proc/sys/net/${path}`, value);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error; // a kernel without IPv6
  }
}
