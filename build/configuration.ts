/**
 * The configuration of an image, as its JSON has it.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/config.md}
 * @see {@link https://github.com/moby/docker-image-spec/blob/main/spec.md}
 */
import { z } from "zod";
import { ImageError } from "../runtime/files.ts";
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

const strings = z.array(z.string()).nullish();
const map = z.record(z.string(), z.object({}).nullish()).nullish();
const nanoseconds = z.number().int().nonnegative().nullish();

/** What a stranger's image may say. The Go programs that write these write `null` for an empty list or map. */
const schema = z.object({
  created: z.string().nullish(),
  author: z.string().nullish(),
  os: z.string().default("linux"),
  architecture: z.string(),
  variant: z.string().nullish(),
  config: z
    .object({
      User: z.string().nullish(),
      ExposedPorts: map,
      Env: strings,
      Entrypoint: strings,
      Cmd: strings,
      Volumes: map,
      WorkingDir: z.string().nullish(),
      Labels: z.record(z.string(), z.string()).nullish(),
      StopSignal: z.string().nullish(),
      Healthcheck: z
        .object({
          Test: strings,
          Interval: nanoseconds,
          Timeout: nanoseconds,
          StartPeriod: nanoseconds,
          StartInterval: nanoseconds,
          Retries: nanoseconds,
        })
        .nullish(),
      OnBuild: strings,
      Shell: strings,
    })
    .nullish(),
  rootfs: z.object({ diff_ids: strings }),
  history: z
    .array(
      z.object({
        created: z.string().nullish(),
        created_by: z.string().nullish(),
        author: z.string().nullish(),
        comment: z.string().nullish(),
        empty_layer: z.boolean().nullish(),
      }),
    )
    .nullish(),
});

/**
 * Parses the configuration of an image that a build begins from.
 *
 * @throws {ImageError} If it is none.
 */
export function parseConfiguration(content: Uint8Array): Configuration {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(content).toString());
  } catch (error) {
    throw new ImageError(`its configuration is not JSON: ${(error as Error).message}`, { cause: error });
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new ImageError(`its configuration is not as expected at ${issue?.path.join(".")}: ${issue?.message}`);
  }
  const { config, history, rootfs, created, author, os, architecture, variant } = parsed.data;
  return withoutEmpty({
    created,
    author,
    os,
    architecture,
    variant,
    config: withoutEmpty(config ?? {}),
    rootfs: { type: "layers", diff_ids: rootfs.diff_ids ?? [] },
    history: (history ?? []).map((entry) => withoutEmpty(entry)),
  }) as unknown as Configuration;
}

/** `null` is the same as not there. */
function withoutEmpty<T extends object>(value: T): { [Key in keyof T]?: NonNullable<T[Key]> } {
  const entries = Object.entries(value).filter(([, each]) => each !== null && each !== undefined);
  return Object.fromEntries(entries) as { [Key in keyof T]?: NonNullable<T[Key]> };
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
