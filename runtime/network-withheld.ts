/** Where the agent's own servers are: looked up again from time to time, for names come to lead elsewhere. */
import { lookUpAllowed } from "./network-allow.ts";
import type { Destination } from "./network-elements.ts";
import type { Withheld } from "./network.ts";

const freshMs = 30_000;

/** The addresses of a few names; what was found once is kept until something else is found. */
export class WithheldAddresses {
  readonly #withheld: readonly Withheld[];
  #lookedUpAtMs = -Infinity;
  #looking: Promise<void> | undefined;
  #isKnown = false;

  constructor(withheld: readonly Withheld[]) {
    this.#withheld = withheld;
  }

  /**
   * Tells `withhold` of addresses that are new. The first time it is waited for; later it goes on in the background. A name
   * that is not known now leads nowhere for anybody, the agent included, and is asked for the next time.
   */
  async refresh(withhold: (destinations: readonly Destination[]) => Promise<void>): Promise<void> {
    if (this.#withheld.length === 0) return;
    if (this.#looking === undefined && performance.now() - this.#lookedUpAtMs > freshMs) {
      this.#looking = this.#lookUp(withhold).finally(() => {
        this.#looking = undefined;
      });
    }
    if (!this.#isKnown) await this.#looking;
  }

  async #lookUp(withhold: (destinations: readonly Destination[]) => Promise<void>): Promise<void> {
    const allowed = this.#withheld.map(({ host, port }) => ({ host, firstPort: port, lastPort: port }));
    const found = await Promise.allSettled(allowed.map((one) => lookUpAllowed([one], { ipv6: true })));
    const lists = found.filter((one) => one.status === "fulfilled").map(({ value }) => value);
    if (lists.length < allowed.length && this.#isKnown) return;
    await withhold(lists.flatMap(({ destinations }) => destinations));
    if (lists.length < allowed.length) return;
    this.#isKnown = true;
    this.#lookedUpAtMs = performance.now();
  }
}
