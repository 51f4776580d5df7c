/** Platforms, `linux/arm64/v8`, and the ARGs that every build has. */
import type { Platform } from "./configuration.ts";

/** What people write for what the specification calls otherwise (containerd/platforms, database.go). */
const architectures: Readonly<Record<string, Omit<Platform, "os">>> = {
  x86_64: { architecture: "amd64" },
  "x86-64": { architecture: "amd64" },
  aarch64: { architecture: "arm64" },
  i386: { architecture: "386" },
  armhf: { architecture: "arm", variant: "v7" },
  armel: { architecture: "arm", variant: "v6" },
};

const known = new Set(["386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x"]);

/** Reads `linux/amd64`, `arm64` or `linux/arm/v7`; undefined if it is no platform. */
export function parsePlatform(text: string): Platform | undefined {
  const parts = text.toLowerCase().split("/");
  const [first = "", second, third, ...more] = parts;
  if (more.length > 0 || parts.some((part) => !/^[a-z0-9_.-]+$/.test(part))) return undefined;
  const os = second === undefined ? (known.has(first) || first in architectures ? "linux" : first) : first;
  const name = second ?? (os === first ? hostArchitecture() : first);
  const found = Object.hasOwn(architectures, name) ? architectures[name] : undefined;
  const { architecture, variant } = found ?? { architecture: name, variant: undefined };
  const given = third ?? variant;
  // What every processor of the architecture has is not written.
  const isDefault = (architecture === "arm64" && given === "v8") || (architecture === "amd64" && given === "v1");
  return { os, architecture, ...(given !== undefined && !isDefault && { variant: given }) };
}

function hostArchitecture(): string {
  return process.arch === "arm64" ? "arm64" : "amd64";
}

/** This machine's. */
export function hostPlatform(): Platform {
  return { os: "linux", architecture: hostArchitecture() };
}

/** `linux/arm/v7` */
export function formatPlatform({ os, architecture, variant }: Platform): string {
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`;
}

/** The ARGs that FROM sees without a declaration, and a stage with one that has no value. */
export function platformArgs(target: Platform, stage: string): Map<string, string> {
  const build = hostPlatform();
  return new Map([
    ["BUILDPLATFORM", formatPlatform(build)],
    ["BUILDOS", build.os],
    ["BUILDARCH", build.architecture],
    ["BUILDVARIANT", build.variant ?? ""],
    ["TARGETPLATFORM", formatPlatform(target)],
    ["TARGETOS", target.os],
    ["TARGETARCH", target.architecture],
    ["TARGETVARIANT", target.variant ?? ""],
    ["TARGETSTAGE", stage],
  ]);
}
