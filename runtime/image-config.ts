/** The image configuration: what OCI layouts and `docker save` archives have in common. */
import { createHash } from "node:crypto";
import { z } from "zod";
import { ImageError } from "./image-error.ts";
import { parseSignal } from "./signal-number.ts";
import type { ByteRange } from "./unpack.ts";

/** The part of an OCI image configuration that containers honour; a step brings its own command, a service may not. */
export interface ImageConfig {
  readonly env: Readonly<Record<string, string>>;
  /** Absent where there is none, and never empty. */
  readonly entrypoint?: readonly string[];
  readonly cmd?: readonly string[];
  readonly workingDir?: string;
  readonly user?: string;
  /** Directories that are to be on a real file system: in nested steps they are. Absent where there are none. */
  readonly volumes?: readonly string[];
  /** The number of the signal that asks its program to end. @default SIGTERM */
  readonly stopSignal?: number;
}

/** An image found in a layout or archive, its manifests and configuration verified, its layers not yet. */
export interface FoundImage {
  /** Digest of the configuration. */
  readonly digest: string;
  readonly config: ImageConfig;
  /** The configuration, byte for byte. */
  readonly configContent: Buffer;
  /** As the layout has it; absent in archives that have another kind of manifest. */
  readonly manifestContent?: Buffer;
  /** What the archive calls it, not checked: `node:24`, `docker.io/library/node:24`. */
  readonly names: readonly string[];
  /** Base layer first. */
  readonly layers: readonly FoundLayer[];
}

export interface FoundLayer {
  readonly source: ByteRange;
  /** Digest of the bytes of `source`, if the image says it. */
  readonly digest?: string;
  /** What the image says of `source`, if it does. */
  readonly mediaType?: string;
  /** Digest of the layer decompressed: names its content. */
  readonly diffId: string;
}

/** What Docker gives a process whose image says no PATH. */
export const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Manifests and configurations are read into memory. The specification wants registries to take manifests of 4 MiB. */
export const MAX_JSON_BYTES = 4 * 2 ** 20;

/** The digests in use; of an algorithm that is not known, nothing could be verified. */
export const digestPattern = /^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

export const digestSchema = z.string().regex(digestPattern, "is not a sha256 or sha512 digest");

/** The Go programs that write these files write `null` for an empty list or map. */
const orNull = <T extends z.ZodType>(schema: T) => schema.nullish();

const imageConfiguration = z.object({
  architecture: z.string().optional(),
  os: z.string().optional(),
  config: orNull(
    z.object({
      Env: orNull(z.array(z.string())),
      Entrypoint: orNull(z.array(z.string())),
      Cmd: orNull(z.array(z.string())),
      WorkingDir: orNull(z.string()),
      User: orNull(z.string()),
      Volumes: orNull(z.record(z.string(), z.unknown())),
      StopSignal: orNull(z.string()),
    }),
  ),
  rootfs: z.object({ type: z.string().optional(), diff_ids: orNull(z.array(digestSchema)) }),
});

export interface ParsedConfiguration {
  readonly digest: string;
  readonly diffIds: readonly string[];
  readonly config: ImageConfig;
}

/**
 * Parses an image configuration.
 *
 * @param options.platform What it must be for. @default this machine's
 * @throws {ImageError} If it is not one, or is for another platform.
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/config.md}
 */
export function parseConfiguration(
  content: Buffer,
  name: string,
  options: { readonly platform?: HostPlatform | "any" | undefined } = {},
): ParsedConfiguration {
  const parsed = parseJson(content, name, imageConfiguration);
  const { platform = hostPlatform() } = options;
  const { architecture, os } = parsed;
  if (platform !== "any") {
    const fits =
      (os ?? platform.os) === platform.os && (architecture ?? platform.architecture) === platform.architecture;
    const wanted =
      platform.os === "linux" && platform.architecture === hostPlatform().architecture
        ? "this agent runs"
        : "wanted is";
    if (!fits)
      throw new ImageError(
        `it is for ${os ?? "linux"}/${architecture}; ${wanted} ${platform.os}/${platform.architecture}`,
      );
  }
  const workingDir = parsed.config?.WorkingDir;
  const user = parsed.config?.User;
  const entrypoint = parsed.config?.Entrypoint ?? [];
  const cmd = parsed.config?.Cmd ?? [];
  const volumes = Object.keys(parsed.config?.Volumes ?? {});
  // One that does not exist is no reason to refuse the image: it counts when a service is stopped, if ever.
  const stopSignal = parseSignal(parsed.config?.StopSignal ?? "");
  for (const text of [workingDir, user, ...entrypoint, ...cmd, ...volumes])
    if (text?.includes("\0")) throw new ImageError(`"${name}" contains a NUL`);
  return {
    digest: `sha256:${createHash("sha256").update(content).digest("hex")}`,
    diffIds: parsed.rootfs.diff_ids ?? [],
    config: {
      env: parseEnv(parsed.config?.Env ?? [], name),
      ...(entrypoint.length > 0 ? { entrypoint } : {}),
      ...(cmd.length > 0 ? { cmd } : {}),
      ...(workingDir ? { workingDir: workingDir.startsWith("/") ? workingDir : `/${workingDir}` } : {}),
      ...(user ? { user } : {}),
      ...(volumes.length > 0 ? { volumes } : {}),
      ...(stopSignal === undefined || stopSignal === 0 ? {} : { stopSignal }),
    },
  };
}

function parseEnv(entries: readonly string[], name: string): Record<string, string> {
  // Without a prototype: `__proto__` is as good a name as any.
  const env: Record<string, string> = Object.create(null) as Record<string, string>;
  env["PATH"] = defaultPath;
  for (const entry of entries) {
    const equals = entry.indexOf("=");
    if (entry.includes("\0")) throw new ImageError(`"${name}" has an environment variable with a NUL`);
    if (equals < 1) continue;
    env[entry.slice(0, equals)] = entry.slice(equals + 1);
  }
  return { ...env };
}

/** What an image was made for, in OCI's words. */
export interface HostPlatform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string;
}

/** The platform images are chosen for unless another one is asked for. */
export function hostPlatform(): HostPlatform {
  return { os: "linux", architecture: process.arch === "arm64" ? "arm64" : "amd64" };
}

/** @throws {ImageError} If it is not JSON of that shape; names the first place that is wrong. */
export function parseJson<T extends z.ZodType>(content: Buffer, name: string, schema: T): z.infer<T> {
  let value: unknown;
  try {
    value = JSON.parse(content.toString("utf8"));
  } catch (error) {
    throw new ImageError(`its file "${name}" is not JSON: ${(error as Error).message}`, { cause: error });
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const place = issue === undefined || issue.path.length === 0 ? "" : ` at ${issue.path.join(".")}`;
  throw new ImageError(`its file "${name}" is not as expected${place}: ${issue?.message ?? "unknown reason"}`);
}
