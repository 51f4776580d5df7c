/** Trees of files on this kernel: what threads and short commands need that load no containers, networks and registries. */
export { formatBytes } from "./bytes.ts";
export { AccountError, type Accounts, resolveOwner, resolveUser, type ResolvedUser } from "./accounts.ts";
export * as fileAt from "./file-at.ts";
export { ImageError } from "./image-error.ts";
export { defaultLayerLimits, type LayerSummary } from "./layer.ts";
export { type LayerArchiveOptions, writeLayerArchive } from "./layer-archive.ts";
export { type LayerViewOptions, openLayerView } from "./layer-view.ts";
export { type ByteRange, isTarArchive, unpackOver } from "./unpack.ts";
export { adoptUpper } from "./upper-layer.ts";
export { startThread } from "./thread.ts";
