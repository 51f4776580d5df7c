/** Where the registries' settings and credentials are: the options and environment that verbs share. */
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import type { RegistrySettings } from "../runtime/index.ts";
import type { Values } from "./arguments.ts";
import { type Context, findDataDir } from "./verb.ts";

/** The option of every verb that pulls. */
export const registriesOption = {
  value: "FILE",
  help: "Mirrors, certificates, plain HTTP and credentials of registries (SLIPWAY_REGISTRIES)\n[default: registries.json in the data directory]",
} as const;

type RegistryValues = Values<{ registries: typeof registriesOption; "data-dir": { value: string; help: string } }>;

/** Reads what holds for which registry: the settings' file, Docker's credentials, the proxies of the environment. */
export async function findRegistrySettings(values: RegistryValues, context: Context): Promise<RegistrySettings> {
  const { readRegistrySettings } = await import("../runtime/images.ts");
  const { environment, directory } = context;
  const given = values.registries ?? (environment["SLIPWAY_REGISTRIES"] || undefined);
  const file = given === undefined ? join(findDataDir(values, context), "registries.json") : resolve(directory, given);
  const dockerDir = environment["DOCKER_CONFIG"] || join(environment["HOME"] || homedir(), ".docker");
  return {
    hosts: readRegistrySettings(file, { mustExist: given !== undefined }),
    dockerConfig: join(resolve(directory, dockerDir), "config.json"),
    environment,
  };
}

/** The store that agents, local runs and `slipway image` of one data directory share. */
export function imageStoreDir(values: Pick<RegistryValues, "data-dir">, context: Context): string {
  return join(findDataDir(values, context), "images");
}
