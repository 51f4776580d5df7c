/** As whom a job asks registries. */
import { RegistryClient } from "../runtime/index.ts";
import type { JobOptions } from "./job.ts";

/** What a job has to do with registries. Disposing it ends its connections, if it has connections of its own. */
export interface JobRegistry extends Disposable {
  readonly registry: RegistryClient;
  /** Only what registries give to anybody is the job's, whatever the agent's store has. */
  readonly publicOnly: boolean;
}

/** Who is told this has a commit of a stranger's. */
const nobody = "commits of strangers pull without credentials; push the branch to this repository to run it with them";

/** Opens a job's view of registries: the agent's own, or for strangers nobody's. */
export function openRegistry({ registry, untrusted }: Pick<JobOptions, "registry" | "untrusted">): JobRegistry {
  const own = registry === undefined ? new RegistryClient({}) : undefined;
  const agents = registry ?? (own as RegistryClient);
  const publicOnly = untrusted?.privateImages === false;
  return {
    registry: publicOnly ? agents.as({ nobody }) : agents,
    publicOnly,
    [Symbol.dispose]: () => own?.[Symbol.dispose](),
  };
}
