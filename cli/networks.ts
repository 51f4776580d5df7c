/** What agents and local runs may be told about the networks of jobs. */
import type { HostNetworks } from "../runtime/index.ts";
import { parseChoice } from "./arguments.ts";
import type { Context } from "./verb.ts";

export const networkOptions = {
  network: {
    value: "KIND",
    help: "none: jobs get loopback only, which their steps and services share; for hosts\nwhere networks cannot be made [default: job]",
  },
  "block-private-networks": {
    help: "Keep jobs from private networks, too: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16,\nfc00::/7 and so on (SLIPWAY_BLOCK_PRIVATE_NETWORKS=1)",
  },
} as const;

/** @throws {UsageError} If --network is none of its words. */
export function parseNetworks(
  values: { readonly network: string | undefined; readonly "block-private-networks": boolean },
  { environment }: Context,
): HostNetworks {
  const kind = values.network === undefined ? "job" : parseChoice("--network", values.network, ["job", "none"]);
  return {
    loopbackOnly: kind === "none",
    blockPrivateRanges: values["block-private-networks"] || environment["SLIPWAY_BLOCK_PRIVATE_NETWORKS"] === "1",
  };
}

/** The same as words of a command line. */
export function networkArguments({ loopbackOnly, blockPrivateRanges }: HostNetworks): string[] {
  return [
    ...(loopbackOnly === true ? ["--network", "none"] : []),
    ...(blockPrivateRanges === true ? ["--block-private-networks"] : []),
  ];
}
