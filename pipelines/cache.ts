/** `cache:` of a step: what is kept between builds. */
import { identifier } from "./value.ts";
import { mapping } from "./shape.ts";

const cacheTable = {
  noun: "a cache",
  fields: {
    containers: {
      shape: identifier,
      summary:
        "Keeps images and layers of the builders in a nested step under this name: each build begins with a copy of what the last good job of the default branch left.",
    },
  },
  synonyms: { docker: "containers", podman: "containers", buildah: "containers", images: "containers" },
  hints: {
    paths: "caches of files are not supported yet",
    path: "caches of files are not supported yet",
    key: "caches of files are not supported yet",
  },
} as const;

/** A cache's mapping. */
export const cache = mapping(cacheTable);
