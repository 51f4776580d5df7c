/**
 * The configuration of an image, as its JSON has it.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/config.md}
 * @see {@link https://github.com/moby/docker-image-spec/blob/main/spec.md}
 */
import type { Healthcheck } from "./instruction.ts";

/** What a container of the image is started with. Healthcheck, OnBuild and Shell are Docker's. */
export interface ContainerConfiguration {
  User?: string;
  ExposedPorts?: Readonly<Record<string, object>>;
  Env?: readonly string[];
  Entrypoint?: readonly string[];
  Cmd?: readonly string[];
  Volumes?: Readonly<Record<string, object>>;
  WorkingDir?: string;
  Labels?: Readonly<Record<string, string>>;
  StopSignal?: string;
  Healthcheck?: Healthcheck;
  OnBuild?: readonly string[];
  Shell?: readonly string[];
}

export interface HistoryEntry {
  readonly created?: string;
  readonly created_by?: string;
  readonly author?: string;
  readonly comment?: string;
  readonly empty_layer?: boolean;
}

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string;
}

export interface Configuration extends Platform {
  readonly created?: string;
  readonly author?: string;
  readonly config: ContainerConfiguration;
  readonly rootfs: { readonly type: "layers"; readonly diff_ids: readonly string[] };
  readonly history: readonly HistoryEntry[];
}

/**
 * Writes a configuration in the order of the specification's fields, maps sorted by name: the same configuration is the
 * same bytes. What is empty is left out.
 */
export function formatConfiguration(configuration: Configuration): string {
  const { created, author, os, architecture, variant, config, rootfs, history } = configuration;
  const ordered = {
    created,
    author: author === "" ? undefined : author,
    architecture,
    variant,
    os,
    config: {
      User: config.User || undefined,
      ExposedPorts: sorted(config.ExposedPorts),
      Env: unlessEmpty(config.Env),
      Entrypoint: unlessEmpty(config.Entrypoint),
      Cmd: unlessEmpty(config.Cmd),
      Volumes: sorted(config.Volumes),
      WorkingDir: config.WorkingDir || undefined,
      Labels: sorted(config.Labels),
      StopSignal: config.StopSignal || undefined,
      Healthcheck: config.Healthcheck,
      OnBuild: unlessEmpty(config.OnBuild),
      Shell: unlessEmpty(config.Shell),
    },
    rootfs,
    history: history.map(({ created: time, created_by, author: by, comment, empty_layer }) => ({
      created: time,
      created_by,
      author: by,
      comment,
      empty_layer: empty_layer === true ? true : undefined,
    })),
  };
  return JSON.stringify(ordered);
}

function unlessEmpty<T>(list: readonly T[] | undefined): readonly T[] | undefined {
  return list === undefined || list.length === 0 ? undefined : list;
}

function sorted<T>(map: Readonly<Record<string, T>> | undefined): Readonly<Record<string, T>> | undefined {
  if (map === undefined) return undefined;
  const entries = Object.entries(map).sort(([a], [b]) => (a < b ? -1 : 1));
  return entries.length === 0 ? undefined : Object.fromEntries(entries);
}
