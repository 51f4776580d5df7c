/**
 * Containers and images on this kernel.
 *
 * Contract (types below are what the other folders may use; the modules behind them are written beside this file):
 * a `Host` is one agent's use of the kernel; an `Image` is a stack of read-only layer directories and its configuration;
 * a `Container` is one run of one process tree in fresh namespaces on a throw-away root file system.
 */
export type { UidRange } from "./uid-range.ts";
export type { Image, ImageConfig } from "./image.ts";
export type {
  ContainerConfig,
  ContainerResult,
  ContainerUsage,
  EndReason,
  OutputSink,
  PreparedConfig,
  ProcessConfig,
} from "./container-config.ts";
export { ExecError } from "./container-config.ts";
export { Container } from "./container.ts";
export { explainContainer, openContainer, prepareContainer, runContainer } from "./create-container.ts";
export { formatOciConfig, type StepMount, type StepUser } from "./step-config.ts";
export { StepFiles } from "./step-files.ts";
export { explainProgram } from "./program.ts";
export { execInContainer, type ExecOptions, type TerminalDimensions } from "./exec.ts";
export type { ExecProcess, ExecResult } from "./exec-process.ts";
export { Host, type HostNetworks, type HostOptions } from "./host.ts";
export type { Ceiling, StepIo, StepResources } from "./step-resources.ts";
export type { HostCheck } from "./check.ts";
export { checkHost } from "./check.ts";
export { ImageError, resolveImage } from "./image.ts";
export { ImageLease } from "./image-lease.ts";
export type { ImagePins, PullPolicy } from "./image-pull.ts";
export { RegistryClient } from "./registry-client.ts";
export { RegistryError } from "./registry-error.ts";
export { openLayout, openRepository, type RemoteImage, unpackArchive } from "./remote-image.ts";
export { readRegistrySettings, type RegistrySettings } from "./registry-settings.ts";
export { testHost } from "./self-test.ts";
export { checkNested } from "./nested-check.ts";
export { type AllowedDestination, type AllowList, lookUpAllowed, UnknownNameError } from "./network-allow.ts";
export type { ContainerNetwork, JobNetwork, Refusals, Refused, Withheld } from "./network.ts";
export { checkMode } from "./rootless-check.ts";
export { enterNetwork } from "./network-namespace.ts";
export { checkNetworks } from "./network-check.ts";
export { tryLock, waitForLock } from "./file-lock.ts";
export * as fileAt from "./file-at.ts";
export { type LayerArchiveOptions, writeLayerArchive } from "./layer-archive.ts";
export type { LayerSummary } from "./layer.ts";
export { type LayerViewOptions, openLayerView } from "./layer-view.ts";
export { adoptUpper } from "./upper-layer.ts";
export { AccountError, type Accounts, resolveOwner, resolveUser, type ResolvedUser } from "./accounts.ts";
export { diskOwner, isRootless } from "./file-owners.ts";
export { type CacheKey, ContainerCaches, type KeptCache } from "./container-caches.ts";
export { ImageStore } from "./image-store.ts";
export { imageStorePath } from "./image-store-path.ts";
export { type Collected, collectImages, type CollectOptions } from "./image-collect.ts";
export { exportArchive, exportDirectory, type ExportedFile, exportFiles, writeArchiveFile } from "./image-export.ts";
export { putIndex, readStoredIndex, type StoredIndex } from "./image-index.ts";
export { importImage } from "./image-import.ts";
export { type Descriptor, mediaTypes } from "./image-manifest.ts";
export type { NamedImage } from "./image-names.ts";
export { pullImage, type PulledImage, type PullProgress } from "./image-pull.ts";
export { pushImage, pushIndex, type PushProgress } from "./image-push.ts";
export { defaultLayerLimits } from "./layer.ts";
export { layerKey } from "./layer-store.ts";
export { removeTrees } from "./layer-workers.ts";
export { familiarName, formatReference, type ImageReference, parseReference } from "./registry-reference.ts";
export { describeManifest, putImage, readStoredImage, type StoredImage } from "./stored-image.ts";
export { type ByteRange, isTarArchive, unpackOver } from "./unpack.ts";
