/**
 * Containers as the OCI runtime specification has them: a bundle in, a life cycle of commands.
 *
 * Apart from index.ts because a command that starts anew for every operation should load nothing it does not need.
 */
export { callersDescriptors } from "./descriptors.ts";
export {
  createContainer,
  deleteContainer,
  killContainer,
  readBundleConfig,
  signalNumber,
  startContainer,
  containerState,
} from "./oci-container.ts";
export { containerProcesses, pauseContainer, resumeContainer, updateContainer } from "./oci-control.ts";
export { containerStatistics, type OciEvent, oomKills } from "./oci-events.ts";
export { execInContainer } from "./oci-exec.ts";
export { ociFeatures } from "./oci-features.ts";
export { foreground, TerminalSocket } from "./oci-foreground.ts";
export { enterForContainer } from "./oci-rootless.ts";
export {
  type OciConfig,
  type OciProcess,
  type OciResources,
  parseOciProcess,
  parseOciResources,
} from "./oci-config.ts";
export { OciConfigError } from "./oci-parser.ts";
export { isCapability } from "./oci-process.ts";
export { writeExampleConfig } from "./oci-spec.ts";
export { defaultRoot, listStores, ociVersion, type OciRecord, type OciState, type OciStore } from "./oci-state.ts";
export { RawTerminal } from "./raw-terminal.ts";
export { programEnvironment } from "./rootless.ts";
