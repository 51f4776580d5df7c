/** What an agent keeps on its disk beside jobs, as options of the verbs that start one. */
import type { Options, Values } from "./arguments.ts";
import { parseBytes } from "./size.ts";

export const storageOptions = {
  "image-budget": {
    value: "SIZE",
    help: "What the image store may have, like 50GiB: the longest unused goes first\n[default: a third of its file system]",
  },
  "container-cache": {
    value: "SIZE",
    help: "What nested steps may keep between builds, all together [default: 20GiB]",
  },
} as const satisfies Options;

type StorageValues = Values<typeof storageOptions>;

/** Reads the options. @throws {UsageError} */
export function parseStorage(values: StorageValues): {
  readonly imageBudgetBytes?: number;
  readonly containerCacheBytes?: number;
} {
  const { "image-budget": images, "container-cache": containers } = values;
  return {
    ...(images !== undefined && { imageBudgetBytes: parseBytes("--image-budget", images) }),
    ...(containers !== undefined && { containerCacheBytes: parseBytes("--container-cache", containers) }),
  };
}

/** The options as they were given, for an agent that is started. */
export function storageArguments(values: StorageValues): string[] {
  return Object.keys(storageOptions).flatMap((name) => {
    const value = values[name as keyof StorageValues];
    return value === undefined ? [] : [`--${name}`, value];
  });
}
