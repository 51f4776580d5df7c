/** Images in the store and in registries: what short commands need that start no containers. */
export { collectImages } from "./image-collect.ts";
export { exportArchive, exportDirectory, writeArchiveFile } from "./image-export.ts";
export { importImage } from "./image-import.ts";
export { readStoredIndex } from "./image-index.ts";
export { ImageLease } from "./image-lease.ts";
export { pullImage } from "./image-pull.ts";
export { pushImage, pushIndex } from "./image-push.ts";
export { ImageStore } from "./image-store.ts";
export { imageStorePath } from "./image-store-path.ts";
export { layerKey } from "./layer-store.ts";
export { defaultLayerLimits } from "./layer.ts";
export { RegistryClient } from "./registry-client.ts";
export { familiarName, formatReference, parseReference } from "./registry-reference.ts";
export { readRegistrySettings } from "./registry-settings.ts";
export { readStoredImage } from "./stored-image.ts";
