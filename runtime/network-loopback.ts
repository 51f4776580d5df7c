/** Networks that lead nowhere: the steps and services of a job meet on localhost, and there is nothing else. */
import { Netlink } from "./netlink.ts";
import { bringUp } from "./netlink-route.ts";
import type { KernelNetwork } from "./network-elements.ts";
import type { NetworkMaker, Refusals } from "./network-kernel.ts";
import { makeNamespaceWithSockets } from "./network-socket.ts";
import { close } from "./syscall.ts";

/** For a worker thread, as `KernelNetworks` is. */
export class LoopbackNetworks implements NetworkMaker {
  readonly probe = undefined;
  readonly #namespaces = new Map<number, number>();
  #slot = 0;

  /** @throws {SyscallError} `EPERM` without CAP_SYS_ADMIN. */
  create(owner?: number): KernelNetwork {
    const { namespaceFd: fd, ...sockets } = makeNamespaceWithSockets({ owner });
    new Netlink({ fd: sockets.routeFd }).request(bringUp("lo"));
    for (const socket of Object.values(sockets)) close(socket as number);
    const slot = ++this.#slot;
    this.#namespaces.set(slot, fd);
    return { slot, namespaceFd: fd, ipv4: "127.0.0.1" };
  }

  /** Nothing is reached anyway. */
  withhold(): void {}

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
  }
}
