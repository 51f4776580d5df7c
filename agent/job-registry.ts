/** As whom a job asks registries. */
import type { JobSpec } from "../pipelines/index.ts";
import { RegistryClient } from "../runtime/index.ts";
import type { JobOptions } from "./job.ts";
import type { JobSecrets } from "./job-secrets.ts";

/** What a job has to do with registries. Disposing it ends its connections, if it has connections of its own. */
export interface JobRegistry extends Disposable {
  readonly registry: RegistryClient;
  /** Only what registries give to anybody is the job's, whatever the agent's store has. */
  readonly publicOnly: boolean;
}

/** Who is told this has a commit of a stranger's. */
const nobody = "commits of strangers pull without credentials; push the branch to this repository to run it with them";

/** Opens a job's view of registries: the agent's own, with what the pipeline says of some; or for strangers nobody's. */
export function openRegistry(
  { registries = [] }: JobSpec,
  { registry, untrusted, secrets }: Pick<JobOptions, "registry" | "untrusted"> & { readonly secrets: JobSecrets },
): JobRegistry {
  const own = registry === undefined ? new RegistryClient({}) : undefined;
  const agents = registry ?? (own as RegistryClient);
  const dispose = { [Symbol.dispose]: () => own?.[Symbol.dispose]() };
  if (untrusted !== undefined) {
    const publicOnly = !untrusted.privateImages;
    return { registry: publicOnly ? agents.as({ nobody }) : agents, publicOnly, ...dispose };
  }
  if (registries.length === 0) return { registry: agents, publicOnly: false, ...dispose };
  // What a file holds ends with a line, which is no part of it.
  const text = (name: string) => secrets.text(name).replace(/\r?\n$/, "");
  const credentials = new Map(
    registries.map(({ registry: host, username, password }) => [
      host,
      { username: typeof username === "string" ? username : text(username.secret), password: text(password.secret) },
    ]),
  );
  return { registry: agents.as({ credentials }), publicOnly: false, ...dispose };
}
