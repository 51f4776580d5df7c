/**
 * Builds images from Dockerfiles.
 *
 * A *Dockerfile* is a list of *stages*; a stage is a base image and *instructions* that change its files and its
 * *configuration*. What changes files makes a *layer*. The *context* is the directory that COPY and ADD take from.
 */
export type * from "./instruction.ts";
export { type ParsedDockerfile, parseDockerfile } from "./parse.ts";
export { buildImage, type ImageBuildOptions } from "./image-build.ts";
export { FileWorkers } from "./file-workers.ts";
export type { FinishedImage } from "./finish-image.ts";
export { type BuildCommand, BuildError, type BuildReporter, type BuildStep } from "./report.ts";
export { type BuildMachine, openedMachine, type OpenMachine } from "./machine.ts";
export { type BuiltImage, buildImages, type PlatformBuildOptions } from "./platform-builds.ts";
export { type BuildOutput, type OutputOptions, writeOutput } from "./outputs.ts";
export type { Platform } from "./configuration.ts";
export { formatPlatform, hostPlatform, parsePlatform } from "./platform.ts";
export type { CachedLayer } from "./build-cache.ts";
export type { SecretSource } from "./operation.ts";
export type { BaseImage, BaseImages } from "./base-image.ts";
export { Contexts, type ContextSource, type NamedContext } from "./contexts.ts";
export type { CachePlace } from "./cache-transfer.ts";
export { type KeptCacheMount, listCacheMounts, removeCacheMount } from "./cache-mounts.ts";
export { StoreImages, type StoreImagesOptions } from "./store-images.ts";
