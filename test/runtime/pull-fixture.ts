/** A store and a client to pull with. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ImageLease } from "../../runtime/image-lease.ts";
import { type PulledImage, pullImage, type PullOptions } from "../../runtime/image-pull.ts";
import { ImageStore } from "../../runtime/image-store.ts";
import { defaultLayerLimits } from "../../runtime/layer.ts";
import { type ClientOptions, RegistryClient } from "../../runtime/registry-client.ts";
import { parseReference } from "../../runtime/registry-reference.ts";
import type { RegistrySettings } from "../../runtime/registry-settings.ts";

/** A temporary store; disposing it checks that nothing half-written was left. */
export class PullFixture implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), "pull-test-"));
  readonly lease = new ImageLease();
  readonly notes: string[] = [];
  #client: RegistryClient | undefined;

  async pull(
    name: string,
    options: Partial<PullOptions> & { settings?: RegistrySettings; clientOptions?: ClientOptions } = {},
  ): Promise<PulledImage> {
    const { settings = {}, clientOptions, ...rest } = options;
    const isUsual = options.settings === undefined && clientOptions === undefined;
    using own = isUsual ? undefined : new RegistryClient(settings, { retryBaseMs: 1, ...clientOptions });
    this.#client ??= new RegistryClient({}, { retryBaseMs: 1 });
    return await pullImage(parseReference(name), {
      store: await this.store(),
      client: own ?? this.#client,
      lease: this.lease,
      limits: defaultLayerLimits,
      onNote: (note) => this.notes.push(note),
      ...rest,
    });
  }

  store(): Promise<ImageStore> {
    return ImageStore.open(join(this.directory, "store"));
  }

  leftovers(): string[] {
    return readdirSync(join(this.directory, "store/tmp"));
  }

  layers(): string[] {
    return readdirSync(join(this.directory, "store/layers"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client?.[Symbol.dispose]();
    this.lease[Symbol.dispose]();
    await this.store();
    const left = this.leftovers();
    // Layers may still be on their way to the disk; nobody waits for that here.
    rmSync(this.directory, { recursive: true, force: true, maxRetries: 5 });
    if (left.length > 0) throw new Error(`Left half-written: ${left.join(", ")}`);
  }
}
