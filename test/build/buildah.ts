/** Debian's buildah, to compare with: storage of its own, no privileges on the host's, no network. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { gunzipSync } from "node:zlib";

export const hasBuildah = existsSync("/usr/bin/buildah");

export interface BuildahImage {
  readonly configuration: { readonly config: Record<string, unknown>; readonly author?: string };
  /** Decompressed, base first. */
  readonly layers: readonly Buffer[];
}

export class Buildah {
  readonly #directory: string;

  /** @param directory For everything it keeps. */
  constructor(directory: string) {
    this.#directory = directory;
    mkdirSync(directory, { recursive: true });
  }

  /** Takes an image over from an OCI layout. */
  import(layout: string, name: string): void {
    // buildah names it by its path, which must be in lower case.
    const id = this.#run(["pull", "--quiet", `oci:${basename(layout)}`], dirname(layout)).trim();
    this.#run(["tag", id, name]);
  }

  build(
    context: string,
    options: { readonly name: string; readonly args?: readonly string[]; readonly layers?: boolean },
  ): void {
    const { name, args = [], layers = false } = options;
    const common = ["--isolation", "chroot", "--pull-never", "--format", "docker"];
    this.#run(["bud", "--quiet", ...common, `--layers=${layers}`, "-t", name, ...args, context]);
  }

  read(name: string): BuildahImage {
    const directory = join(this.#directory, `image-${name.replaceAll("/", "-")}`);
    this.#run(["push", "--quiet", name, `dir:${directory}`]);
    const blob = (digest: string) => readFileSync(join(directory, digest.slice(digest.indexOf(":") + 1)));
    const manifest = JSON.parse(readFileSync(join(directory, "manifest.json"), "utf8")) as {
      config: { digest: string };
      layers: { digest: string }[];
    };
    const layers = manifest.layers.map(({ digest }) => {
      const content = blob(digest);
      return content[0] === 0x1f ? gunzipSync(content) : content;
    });
    return {
      configuration: JSON.parse(blob(manifest.config.digest).toString()) as BuildahImage["configuration"],
      layers,
    };
  }

  #run(args: readonly string[], directory = this.#directory): string {
    const storage = ["--root", join(this.#directory, "root"), "--runroot", join(this.#directory, "run")];
    try {
      return execFileSync("buildah", [...storage, "--storage-driver", "vfs", ...args], {
        cwd: directory,
        encoding: "utf8",
        stdio: ["ignore", "pipe", "pipe"],
        env: { PATH: process.env["PATH"], HOME: this.#directory, BUILDAH_ISOLATION: "chroot" },
      });
    } catch (error) {
      const { stderr } = error as { stderr?: string };
      throw new Error(`buildah ${args.join(" ")}: ${stderr?.trim() ?? String(error)}`, { cause: error });
    }
  }
}
