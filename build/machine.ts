/** Where the commands of a build run. */
import type { ContainerNetwork, Host, UidRange } from "../runtime/index.ts";

/** What a command finds its machine called. */
export const hostname = "slipway";

/** What a command is run with. */
export interface OpenMachine {
  readonly host: Host;
  readonly uidRange: UidRange;
  readonly network: "none" | "host" | ContainerNetwork;
}

/** A host that is opened when the first command runs: if all is cached, none does. */
export interface BuildMachine {
  /** Of the host: what builds keep beside images is there. Exists. */
  readonly stateDir: string;
  /** What commands will get, and downloads; "job" is a network of their own. */
  readonly networkKind: "none" | "host" | "job";
  /** As the host will have it; see `mountsDetachedOverlays`. */
  readonly overlaysByPath: boolean;
  /** Opens it, the first time. The caller closes what it gives when the build is over. */
  readonly open: () => Promise<OpenMachine>;
}

/** A machine that is open already. */
export function openedMachine(opened: OpenMachine): BuildMachine {
  const { host, network } = opened;
  return {
    stateDir: host.stateDir,
    networkKind: typeof network === "object" ? "job" : network,
    overlaysByPath: !host.mountsDetachedOverlays,
    open: () => Promise.resolve(opened),
  };
}
