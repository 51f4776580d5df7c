/** With which privileges the agent would run here, and what would be better. */
import type { HostCheck } from "./check.ts";
import { isRootless, jobIds } from "./file-owners.ts";
import { findProgram } from "./programs.ts";
import { findAccount, type RootlessObstacle, rootlessProblem } from "./rootless.ts";
import { findSubordinateIds } from "./subordinate-ids.ts";

/** As many as useradd(8) gives, behind those that it would give first. */
const suggestedIds = "100000-165535";

/**
 * Says whether the agent runs as root or rootless, and in the second case, how many ids it has to give.
 *
 * @param obstacle Why an ordinary user's command has no privileges.
 */
export function checkMode(environment: NodeJS.ProcessEnv, obstacle: RootlessObstacle | undefined): HostCheck[] {
  const name = "mode";
  const account = findAccount();
  const who = `${account.name ?? "nobody known"} (${account.uid})`;
  if (obstacle !== undefined) {
    return [
      { name, ok: false, required: true, found: `neither root nor rootless: ${obstacle.found}`, mend: obstacle.mend },
    ];
  }
  if (!isRootless()) return [{ name, ok: true, required: true, found: "root" }];
  const found = `rootless, as ${who} in a user namespace; what root has more of: docs/security.md`;
  return [{ name, ok: true, required: true, found }, checkIds(environment)];
}

function checkIds(environment: NodeJS.ProcessEnv): HostCheck {
  const name = "ids for jobs";
  const { ranges } = jobIds();
  const size = ranges[0]?.mappings.reduce((sum, mapping) => sum + mapping.size, 0) ?? 0;
  const mend = mendIds(environment);
  if (size === 1) {
    const problem = rootlessProblem(environment) || "the user namespace has one id";
    return {
      name,
      ok: false,
      required: false,
      found: `${problem}: steps run with your own id, and only as root; images with other users do not work`,
      mend,
    };
  }
  const ok = size >= 1 << 16;
  const found = `${size} for each of ${ranges.length} jobs at a time${ok ? "" : "; more jobs share them, images with higher ids show nobody"}`;
  return { name, ok, required: false, found, ...(ok ? {} : { mend }) };
}

function mendIds(environment: NodeJS.ProcessEnv): string {
  const account = findAccount();
  const name = account.name ?? `${account.uid}`;
  const path = environment["PATH"];
  if (findProgram("newuidmap", path) === undefined || findProgram("newgidmap", path) === undefined) {
    return "install newuidmap and newgidmap: apt-get install uidmap (Fedora: dnf install shadow-utils)";
  }
  const { uids, gids } = findSubordinateIds(account, path);
  if (uids.length === 0 || gids.length === 0) {
    return `usermod --add-subuids ${suggestedIds} --add-subgids ${suggestedIds} ${name}, with ids that nobody else has`;
  }
  return `more ids, as root: usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST ${name} (262144 are enough)`;
}
