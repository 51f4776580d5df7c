import type { UidRange } from "./uid-range.ts";

/** One agent's use of this kernel: state directory, uid ranges, cgroups. Disposing it removes all of it but the image store. */
export class Host implements AsyncDisposable {
  readonly stateDir: string;
  readonly imageStoreDir: string;
  private constructor(stateDir: string) {
    this.stateDir = stateDir;
    this.imageStoreDir = `${stateDir}/images`;
  }

  /**
   * Opens the state directory (0700, made if missing), sweeps what a killed agent left behind and sets up cgroups.
   *
   * @throws {Error} Naming what the host lacks and the setting that mends it; `allow` lists weaker isolation accepted
   *   explicitly ("no-cgroups" is the only one for now).
   */
  static async open(options: { readonly stateDir: string; readonly allow?: readonly "no-cgroups"[] }): Promise<Host> {
    return new Host(options.stateDir);
  }

  /** Takes a free uid range; one per concurrently running job. */
  claimUidRange(): UidRange {
    throw new Error("not written yet");
  }

  /** Deletes a directory tree that steps wrote into (any owner, any mode), in the background if it is large. */
  async removeTree(_path: string): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}
}
