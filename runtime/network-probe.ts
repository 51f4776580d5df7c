/** Asks the kernel whether a job was refused anything, without the thread that makes networks: it may be busy for milliseconds. */
import { Netlink } from "./netlink.ts";
import { addressBytes, isIPv6 } from "./network-address.ts";
import { addressesOf, type KernelNetwork } from "./network-elements.ts";
import { findElement, NFPROTO_INET, type Table } from "./nftables.ts";

/** Not to be used once its socket is closed, which is its maker's business. */
export class RefusalProbe {
  readonly #netlink: Netlink;
  readonly #table: Table;

  /** @param agent Whose rules these are. */
  constructor(socket: { readonly fd: number }, agent: string) {
    this.#netlink = new Netlink(socket);
    this.#table = { family: NFPROTO_INET, name: agent };
  }

  /**
   * What says whether a network has been refused anything since its refusals were taken the last time: whatever is refused has an
   * element in these sets. It blocks for some microseconds. @throws {SyscallError}
   */
  of(network: KernelNetwork): () => boolean {
    const questions = this.#netlink.prepare(
      addressesOf(network).map((address) =>
        findElement(this.#table, `listing${isIPv6(address) ? 6 : 4}`, addressBytes(address)),
      ),
    );
    return () => this.#netlink.anyFound(questions);
  }
}
