/** Networks that lead nowhere: the steps and services of a job meet on localhost, and there is nothing else. */
import { Netlink, NETLINK_ROUTE } from "./netlink.ts";
import { bringUp } from "./netlink-route.ts";
import type { KernelNetwork } from "./network-elements.ts";
import type { NetworkMaker, Refusals } from "./network-kernel.ts";
import { configureNamespace, makeNamespace, openCurrentNamespace } from "./network-namespace.ts";
import { close } from "./syscall.ts";

/** For a worker thread, as `KernelNetworks` is. */
export class LoopbackNetworks implements NetworkMaker {
  readonly probe = undefined;
  readonly #home = openCurrentNamespace();
  readonly #namespaces = new Map<number, number>();
  #slot = 0;

  /** @throws {SyscallError} `EPERM` without CAP_SYS_ADMIN and CAP_NET_ADMIN. */
  create(): KernelNetwork {
    const { fd } = makeNamespace(this.#home, () => {
      configureNamespace();
      using netlink = new Netlink(NETLINK_ROUTE);
      netlink.request(bringUp("lo"));
    });
    const slot = ++this.#slot;
    this.#namespaces.set(slot, fd);
    return { slot, namespaceFd: fd, ipv4: "127.0.0.1" };
  }

  /** Nothing is reached anyway. */
  restrict(): void {}

  keepPublic(): void {}

  takeRefused(): Refusals {
    return { destinations: [], unlistedCount: 0 };
  }

  release(slot: number): void {
    const fd = this.#namespaces.get(slot);
    this.#namespaces.delete(slot);
    if (fd !== undefined) close(fd);
  }

  [Symbol.dispose](): void {
    for (const slot of this.#namespaces.keys()) this.release(slot);
    close(this.#home);
  }
}
