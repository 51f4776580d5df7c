/** An image of half a gigabyte in a registry of this machine: what pulls are measured with. */
import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

/** Shares of the layers in the image's bytes, base first: a large base, a few middle ones, small ones on top. */
const shares = [0.3, 0.22, 0.14, 0.09, 0.07, 0.05, 0.04, 0.03, 0.02, 0.02, 0.01, 0.01];
const totalBytes = 500e6;

export interface BenchImage {
  /** Of what is in the files; the archives are `compressedBytes`. */
  readonly bytes: number;
  readonly compressedBytes: number;
  readonly files: number;
  readonly layers: number;
}

/** Makes an OCI layout out of files of this machine's /usr, which compress as images do. */
export function makeImage(layout: string): BenchImage {
  mkdirSync(join(layout, "blobs/sha256"), { recursive: true });
  const files = collectFiles();
  const counts = { bytes: 0, compressedBytes: 0, files: 0, layers: shares.length };
  const diffIds: string[] = [];
  const layers: object[] = [];
  let next = 0;
  for (const [index, share] of shares.entries()) {
    const names = index === 0 ? [...programFiles()] : [];
    for (let bytes = 0; bytes < totalBytes * share && next < files.length; next++) {
      const { path, size } = files[next] as { path: string; size: number };
      bytes += size;
      counts.bytes += size;
      names.push(path);
    }
    counts.files += names.length;
    const list = join(layout, "files");
    const tar = join(layout, "layer.tar");
    writeFileSync(list, names.join("\0"));
    execFileSync("tar", ["--create", "--file", tar, "-C", "/", "--null", "--no-recursion", "--files-from", list], {
      stdio: "ignore",
    });
    diffIds.push(`sha256:${sha256(readFileSync(tar))}`);
    execFileSync("gzip", ["--no-name", "--force", tar]);
    const content = readFileSync(`${tar}.gz`);
    const digest = sha256(content);
    renameSync(`${tar}.gz`, join(layout, "blobs/sha256", digest));
    counts.compressedBytes += content.length;
    const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip";
    layers.push({ mediaType, digest: `sha256:${digest}`, size: content.length });
  }
  const put = (value: object, mediaType: string) => {
    const content = Buffer.from(JSON.stringify(value));
    writeFileSync(join(layout, "blobs/sha256", sha256(content)), content);
    return { mediaType, digest: `sha256:${sha256(content)}`, size: content.length };
  };
  const architecture = process.arch === "arm64" ? "arm64" : "amd64";
  const config = put(
    { os: "linux", architecture, config: {}, rootfs: { type: "layers", diff_ids: diffIds } },
    "application/vnd.oci.image.config.v1+json",
  );
  const type = "application/vnd.oci.image.manifest.v1+json";
  const manifest = put({ schemaVersion: 2, mediaType: type, config, layers }, type);
  writeFileSync(join(layout, "index.json"), JSON.stringify({ schemaVersion: 2, manifests: [manifest] }));
  writeFileSync(join(layout, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  return counts;
}

/** Regular files, in the order of their names, until there are enough; none that is larger than a layer should be. */
function collectFiles(): { path: string; size: number }[] {
  const found: { path: string; size: number }[] = [];
  let bytes = 0;
  const visit = (directory: string): void => {
    for (const name of readdirSync(`/${directory}`).sort()) {
      if (bytes > totalBytes * 1.02) return;
      const path = `${directory}/${name}`;
      const stat = lstatSync(`/${path}`);
      if (stat.isDirectory()) visit(path);
      else if (stat.isFile() && stat.size < 60e6) {
        found.push({ path, size: stat.size });
        bytes += stat.size;
      }
    }
  };
  for (const directory of ["usr/lib/python3", "usr/share", "usr/bin", "usr/lib"]) {
    if (statSync(`/${directory}`, { throwIfNoEntry: false })?.isDirectory() === true) visit(directory);
  }
  return found;
}

/** What `true` needs to run. */
function programFiles(): Set<string> {
  const libraries = execFileSync("ldd", ["/usr/bin/true"], { encoding: "utf8" }).matchAll(/(\/\S+) \(0x/g);
  const links = ["bin", "lib", "lib64"].filter((name) =>
    lstatSync(`/${name}`, { throwIfNoEntry: false })?.isSymbolicLink(),
  );
  return new Set([...links, "usr/bin/true", ...[...libraries].flatMap(([, path = ""]) => withTarget(path.slice(1)))]);
}

function withTarget(path: string): string[] {
  const real = execFileSync("realpath", [`/${path}`], { encoding: "utf8" })
    .trim()
    .slice(1);
  // Below a link of the image the file is where the link leads.
  return [path.startsWith("usr/") ? path : `usr/${path}`, real];
}

function sha256(content: Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}

/** A registry that holds the image as `bench:1`; disposing it ends it. */
export async function startRegistry(
  directory: string,
  layout: string,
): Promise<AsyncDisposable & { readonly host: string }> {
  const config = join(directory, "registry.yml");
  writeFileSync(
    config,
    `version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: ${directory}/registry}}\nhttp: {addr: "127.0.0.1:0"}\n`,
  );
  const child = spawn("docker-registry", ["serve", config], { stdio: ["ignore", "ignore", "pipe"] });
  const dispose = async () => {
    child.kill("SIGKILL");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  };
  let host: string | undefined;
  for await (const line of createInterface(child.stderr)) {
    host = /listening on (127\.0\.0\.1:\d+)/.exec(line)?.[1];
    if (host !== undefined) break;
  }
  if (host === undefined) throw new Error("docker-registry does not start: apt-get install docker-registry");
  // It waits for who reads what it says.
  child.stderr.resume();
  const copy = ["copy", "--dest-tls-verify=false", `oci:${layout}`, `docker://${host}/bench:1`];
  await promisify(execFile)("skopeo", copy);
  return { host, [Symbol.asyncDispose]: dispose };
}
