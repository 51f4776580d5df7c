/**
 * The image `host`: the host's own programs, without its configuration, its users and its secrets.
 *
 * /usr is bound read-only; everything else is one generated layer. Of /etc it has what programs in /usr cannot work
 * without: the loader's cache, the links of update-alternatives, certificate authorities, the configuration that language
 * runtimes are installed with. What a host keeps in /etc for itself is not taken over: accounts, shadow, profiles, proxies
 * and tokens (npmrc, pip.conf, wgetrc, gitconfig, maven/settings.xml), and nothing that not everybody may read.
 *
 * Host name, /etc/hosts and /etc/resolv.conf are the container's, not the image's.
 */
import { createHash } from "node:crypto";
import {
  chmodSync,
  type BigIntStats,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { adoptTree } from "./file-owners.ts";
import { defaultPath } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import type { ImageLease } from "./image-lease.ts";
import type { ImageStore } from "./image-store.ts";
import type { Image } from "./image.ts";
import type { LayerSummary } from "./layer.ts";

/** One file, directory or link of the generated layer; the path is relative to its root. */
export type SkeletonItem =
  | { readonly kind: "directory"; readonly path: string; readonly mode: number }
  | { readonly kind: "file"; readonly path: string; readonly content: Buffer }
  | { readonly kind: "link"; readonly path: string; readonly target: string };

/** What the layer is to hold, found out without changing anything. */
export interface HostSkeleton {
  readonly items: readonly SkeletonItem[];
  readonly binds: Image["binds"];
  /** Everything on the host that was looked at; the plan holds as long as none of it has changed. */
  readonly witnesses: readonly { readonly path: string; readonly version: string }[];
}

/** Names in /etc that are taken over, with what they are for. */
const configuration: readonly RegExp[] = [
  // The dynamic loader (glibc, musl).
  /^ld\.so\.(cache|conf|conf\.d)$/,
  /^ld-musl-.*\.path$/,
  // What /usr/bin/awk, cc, java, … point at.
  /^alternatives$/,
  // Certificate authorities and the libraries that look for them: Debian, Fedora, Arch and openSUSE, Alpine.
  /^ca-certificates(\.conf)?$/,
  /^(ssl|pki|crypto-policies|gnutls)$/,
  // What system this is, and its time zone.
  /^(os|lsb|debian|alpine|arch|fedora|redhat|centos|rocky|almalinux|system|SuSE)[-_](release|version)$/,
  /^(localtime|timezone|locale\.alias|locale\.conf)$/,
  // Names of ports and protocols, media types, file types.
  /^(services|protocols|rpc|ethertypes|mime\.types|magic|magic\.mime|mke2fs\.conf)$/,
  // Language runtimes that keep part of their installation here.
  /^(perl|python|python3|python3\.\d+|ruby|R|ghc|mono|dotnet|php|php\d*|php\.d|php\.ini|lua)$/,
  /^(java|java-\d+.*|jvm|jvm-.*|javapackages|maven|ant|ant\.conf|ant\.d)$/,
  // Package builders, typesetting, fonts and pictures, catalogs of XML, graphics drivers.
  /^(dpkg|rpm|texmf|fonts|groff|ghostscript|ImageMagick-\d+|xml|sgml|OpenCL|vulkan|glvnd)$/,
];

/** Never taken over, wherever it stands: keys, passwords, configuration that people put tokens into. */
const excluded =
  /(^|\/)(private|nssdb|entitlement.*|consumer|product.*|rhsm.*|settings.*\.xml|toolchains\.xml|fpm|apache2|cgi|.*\.(key|p12|pfx|jks|keytab)|.*(password|passwd|secret|credential|token)[^/]*)$/i;

const directories: readonly (readonly [string, number])[] = [
  ["dev", 0o755],
  ["etc", 0o755],
  ["home", 0o755],
  ["mnt", 0o755],
  ["opt", 0o755],
  ["proc", 0o555],
  ["root", 0o700],
  ["run", 0o755],
  ["run/lock", 0o1777],
  ["srv", 0o755],
  ["sys", 0o555],
  ["tmp", 0o1777],
  ["usr", 0o755],
  ["var", 0o755],
  ["var/cache", 0o755],
  ["var/lib", 0o755],
  ["var/log", 0o755],
  ["var/spool", 0o755],
  ["var/tmp", 0o1777],
  ["workspace", 0o755],
];

const nsswitch = `passwd: files
group: files
shadow: files
hosts: files dns
networks: files
services: files
protocols: files
rpc: files
ethers: files
netgroup: files
`;

/** Debian's fixed ids, which programs expect: 5 is the group of terminals, 65534 is what an unmapped id looks like. */
const users = `root:x:0:0:root:/root:SHELL
daemon:x:1:1:daemon:/usr/sbin:NOLOGIN
bin:x:2:2:bin:/bin:NOLOGIN
sys:x:3:3:sys:/dev:NOLOGIN
nobody:x:65534:65534:nobody:/:NOLOGIN
`;
const groups = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
utmp:x:43:
staff:x:50:
users:x:100:
NOBODY:x:65534:
`;

/** The top-level directories that a host has merged into /usr, or has not. */
const programDirectories = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec"];

/** A configuration file is small; a Java key store of authorities has 200 KiB. */
const MAX_FILE_BYTES = 8 * 2 ** 20;
const MAX_TOTAL_BYTES = 64 * 2 ** 20;

/** The last plan, kept by store: planning reads a thousand names, checking it asks for a few hundred versions. */
const resolved = new Map<string, { readonly skeleton: HostSkeleton; readonly key: string }>();

/** Resolves the image `host`; its layer is generated again when something it was made from has changed. */
export async function resolveHostImage(
  store: ImageStore,
  options: { readonly lease: ImageLease; readonly signal: AbortSignal | undefined },
): Promise<Image> {
  let known = resolved.get(store.directory);
  if (known === undefined || !known.skeleton.witnesses.every(({ path, version }) => versionOf(path) === version)) {
    const skeleton = planHostSkeleton();
    known = { skeleton, key: `host-${digestOf(skeleton.items)}` };
    resolved.set(store.directory, known);
  }
  const { skeleton, key } = known;
  const layer = await store.layers.produce(
    key,
    (directory) => Promise.resolve(writeSkeleton(skeleton.items, directory)),
    // It is made again in a few milliseconds: not worth waiting for a disk.
    { ...options, durable: false },
  );
  return { reference: "host", layers: [layer], binds: skeleton.binds, config: { env: { PATH: hostPath() } } };
}

/** Programs that are unpacked rather than installed usually are in these directories of /usr/local. */
function hostPath(): string {
  const extra = ["/usr/local/go/bin", "/usr/local/cargo/bin"].filter((path) => isDirectory(path));
  return [defaultPath, ...extra].join(":");
}

/** @throws {ImageError} If the host keeps its programs elsewhere (NixOS, Guix). */
export function planHostSkeleton(): HostSkeleton {
  if (!isDirectory("/usr/bin")) {
    throw new ImageError(
      'Cannot use the image "host": this host has no /usr/bin; name an image archive or directory in the pipeline instead',
    );
  }
  const plan = new SkeletonPlan();
  for (const [path, mode] of directories) plan.add({ kind: "directory", path, mode });
  for (const name of programDirectories) plan.programDirectory(name);
  plan.file("etc/nsswitch.conf", nsswitch);
  const nologin = ["/usr/sbin/nologin", "/sbin/nologin", "/bin/false"].find((path) => exists(path)) ?? "/bin/false";
  const shell = exists("/bin/bash") ? "/bin/bash" : "/bin/sh";
  plan.file("etc/passwd", users.replaceAll("SHELL", shell).replaceAll("NOLOGIN", nologin));
  plan.file("etc/group", groups.replaceAll("NOBODY", exists("/etc/debian_version") ? "nogroup" : "nobody"));
  plan.file(
    "etc/shells",
    ["/bin/sh", "/bin/bash"]
      .filter((path) => exists(path))
      .join("\n")
      .concat("\n"),
  );
  plan.add({ kind: "link", path: "etc/mtab", target: "/proc/self/mounts" });
  plan.configuration();
  return plan.skeleton();
}

/** Collects what of the host goes into the layer. */
class SkeletonPlan {
  readonly #items = new Map<string, SkeletonItem>();
  readonly #binds: { source: string; target: string }[] = [{ source: "/usr", target: "usr" }];
  readonly #witnesses = new Map<string, string>();
  #bytes = 0;

  add(item: SkeletonItem): void {
    this.#items.set(item.path, item);
  }

  file(path: string, content: string): void {
    this.add({ kind: "file", path, content: Buffer.from(content) });
  }

  /** A link into /usr is made alike; a directory (Alpine, old hosts) is bound like /usr. */
  programDirectory(name: string): void {
    const path = `/${name}`;
    const stat = this.#look(path);
    if (stat === undefined) return;
    if (stat.isSymbolicLink()) {
      const target = readlinkSync(path);
      if (isBelow(resolve("/", target), ["/usr"])) this.add({ kind: "link", path: name, target });
      else this.#bind(name, realpathSync(path));
    } else if (stat.isDirectory()) {
      this.#bind(name, path);
    }
  }

  #bind(name: string, source: string): void {
    this.#binds.push({ source, target: name });
    this.add({ kind: "directory", path: name, mode: 0o755 });
  }

  configuration(): void {
    this.#look("/etc");
    for (const name of readdirSync("/etc").sort()) {
      if (isTaken(`/etc/${name}`)) this.#copy(`/etc/${name}`, `etc/${name}`, 0);
    }
    this.#builders();
  }

  /** Without them skopeo, podman and buildah do nothing at all; what else is there may be anybody's. */
  #builders(): void {
    const files = ["policy.json", "registries.conf"].filter((name) => this.#look(`/etc/containers/${name}`)?.isFile());
    if (files.length > 0) this.add({ kind: "directory", path: "etc/containers", mode: 0o755 });
    for (const name of files) this.#copy(`/etc/containers/${name}`, `etc/containers/${name}`, 0);
  }

  skeleton(): HostSkeleton {
    return {
      items: [...this.#items.values()],
      binds: this.#binds,
      witnesses: [...this.#witnesses].map(([path, version]) => ({ path, version })),
    };
  }

  #look(path: string): BigIntStats | undefined {
    const stat = lstatSync(path, { bigint: true, throwIfNoEntry: false });
    this.#witnesses.set(path, version(stat));
    return stat;
  }

  /** @param source Where it is on the host; differs from `path` where a link is replaced by what it leads to. */
  #copy(source: string, path: string, depth: number): void {
    // A link of a link of …: hosts have two or three, a loop has no end.
    if (excluded.test(source) || excluded.test(path) || depth > 16) return;
    const stat = lstatSync(source, { bigint: true, throwIfNoEntry: false });
    if (stat === undefined) return;
    // A link cannot change without its directory changing, and that is looked at.
    if (!stat.isSymbolicLink()) this.#witnesses.set(source, version(stat));
    if (stat.isSymbolicLink()) this.#copyLink(source, path, depth);
    else if (stat.isFile()) this.#copyFile(source, path, stat);
    else if (stat.isDirectory() && isPublic(stat)) {
      this.add({ kind: "directory", path, mode: 0o755 });
      for (const name of readdirSync(source).sort()) this.#copy(join(source, name), `${path}/${name}`, depth + 1);
    }
  }

  #copyLink(source: string, path: string, depth: number): void {
    const target = readlinkSync(source);
    const leadsTo = resolve(dirname(source), target);
    const bound = this.#binds.map((bind) => `/${bind.target}`);
    const inLayer = dirname(source) === dirname(`/${path}`);
    if (inLayer && (isBelow(leadsTo, bound) || isTaken(leadsTo))) {
      this.add({ kind: "link", path, target });
      return;
    }
    // The links of update-alternatives are only ever to programs: one that leads elsewhere is not copied but left out.
    if (path.startsWith("etc/alternatives/")) return;
    let real: string;
    try {
      real = realpathSync(source);
    } catch {
      return;
    }
    this.#copy(real, path, depth + 1);
  }

  #copyFile(source: string, path: string, stat: BigIntStats): void {
    if (!isPublic(stat) || stat.size > MAX_FILE_BYTES || this.#bytes + Number(stat.size) > MAX_TOTAL_BYTES) return;
    const content = readFileSync(source);
    // A key that somebody made readable by everybody is no less a key.
    if (content.includes("PRIVATE KEY-----")) return;
    this.#bytes += content.length;
    this.add({ kind: "file", path, content });
  }
}

/** Whether a path in /etc is one of those that are taken over. */
function isTaken(path: string): boolean {
  const [, etc, name] = path.split("/");
  if (etc !== "etc" || name === undefined || excluded.test(path)) return false;
  return configuration.some((pattern) => pattern.test(name));
}

function isBelow(path: string, directoryPaths: readonly string[]): boolean {
  return directoryPaths.some((directory) => path === directory || path.startsWith(`${directory}/`));
}

/** Readable by everybody: what is not, is a secret or of no use to anybody but the host. */
function isPublic(stat: BigIntStats): boolean {
  return (stat.mode & 0o004n) !== 0n;
}

function version(stat: BigIntStats | undefined): string {
  return stat === undefined ? "" : `${stat.dev}:${stat.ino}:${stat.mode}:${stat.size}:${stat.mtimeNs}:${stat.ctimeNs}`;
}

function versionOf(path: string): string {
  return version(lstatSync(path, { bigint: true, throwIfNoEntry: false }));
}

function digestOf(items: readonly SkeletonItem[]): string {
  const hash = createHash("sha256");
  for (const item of items) {
    const value = item.kind === "directory" ? item.mode : item.kind === "link" ? item.target : item.content.length;
    hash.update(JSON.stringify([item.kind, item.path, value]));
    if (item.kind === "file") hash.update(item.content);
  }
  return hash.digest("hex");
}

function writeSkeleton(items: readonly SkeletonItem[], directory: string): LayerSummary {
  mkdirSync(directory, { mode: 0o755 });
  let bytes = 0;
  for (const item of items) {
    const path = join(directory, item.path);
    switch (item.kind) {
      case "directory":
        mkdirSync(path, { recursive: true });
        chmodSync(path, item.mode);
        break;
      case "link":
        symlinkSync(item.target, path);
        break;
      case "file":
        writeFileSync(path, item.content, { flag: "wx" });
        chmodSync(path, 0o644);
        bytes += item.content.length;
        break;
    }
  }
  chmodSync(directory, 0o755);
  adoptTree(directory);
  return { entries: items.length, bytes, notes: [], rootNames: ["etc", "usr"] };
}

function exists(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}
