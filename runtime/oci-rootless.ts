/**
 * `slipway oci` of an ordinary user. What makes a container takes privileges, which the command has in a user namespace of its own, around
 * the container's: ids are there what they are outside, so that the configuration's mappings mean the host's. Whoever comes later, to
 * start, enter or delete it, comes from outside, where the user owns that namespace and may do anything to it.
 */
import { isNew, type IdMapping, type OciConfig } from "./oci-config.ts";
import type { Environment } from "./oci-hooks.ts";
import { OciConfigError } from "./oci-parser.ts";
import { enterUserNamespace, holdsCapabilities, ownCommand } from "./rootless.ts";

/**
 * Starts this command again where it may make the container; returns only if it may already.
 *
 * @param descriptors Those that it is to have then, too. @see callersDescriptors
 * @throws {OciConfigError | Error} If there is no way.
 */
export async function enterForContainer(
  config: OciConfig,
  environment: Environment,
  descriptors: readonly number[],
): Promise<void> {
  if (holdsCapabilities()) return;
  const { namespaces = [], uidMappings = [], gidMappings = [] } = config.linux ?? {};
  const user = namespaces.find(({ type }) => type === "user");
  if (user === undefined || !isNew(user)) {
    throw new OciConfigError(
      'linux.namespaces has no new user namespace, without which containers take CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID; "slipway oci spec --rootless" writes one',
    );
  }
  const obstacle = await enterUserNamespace(
    { ...ownCommand(environment), descriptors },
    {
      uids: sameIds(uidMappings, process.getuid?.() ?? 0),
      gids: sameIds(gidMappings, process.getgid?.() ?? 0),
    },
  );
  if (obstacle === undefined) return;
  throw new Error(`Cannot make a user namespace for the container: ${obstacle.found}; ${obstacle.mend}`);
}

/** The host's ids in the mappings and the user's own, each once. */
function sameIds(mappings: readonly IdMapping[], own: number): IdMapping[] {
  const ranges = [...mappings.map(({ hostID, size }) => ({ hostID, size })), { hostID: own, size: 1 }];
  const same: IdMapping[] = [];
  let end = 0;
  for (const { hostID, size } of ranges.toSorted((a, b) => a.hostID - b.hostID)) {
    const first = Math.max(hostID, end);
    if (hostID + size <= first) continue;
    same.push({ containerID: first, hostID: first, size: hostID + size - first });
    end = hostID + size;
  }
  return same;
}
