import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { defaultLayerLimits } from "../../runtime/layer.ts";
import { unpackLayer } from "../../runtime/unpack.ts";
import { isRoot, oneFileLayer, sha256 } from "./image-fixture.ts";

const tar = oneFileLayer("usr/file", "content ".repeat(400_000));
const whole = gzipSync(tar);
const half = tar.length >> 1;

describe.skipIf(!isRoot)("unpackLayer", () => {
  async function unpack(blob: Buffer): Promise<number> {
    const directory = mkdtempSync(join(tmpdir(), "slipway-unpack-"));
    const path = join(directory, "blob");
    writeFileSync(path, blob);
    const fd = openSync(path, "r");
    try {
      const summary = await unpackLayer(
        {
          source: { fd, offset: 0, length: blob.length },
          directory: join(directory, "files"),
          digest: sha256(blob),
          diffId: sha256(tar),
          endMarker: "optional",
          mustBeRoot: false,
          limits: defaultLayerLimits,
        },
        () => {},
      );
      return summary.bytes;
    } finally {
      closeSync(fd);
      rmSync(directory, { recursive: true });
    }
  }

  test.for([
    ["one member", whole],
    ["two members", Buffer.concat([gzipSync(tar.subarray(0, half)), gzipSync(tar.subarray(half))])],
    ["zeros behind it, more than is read at once", Buffer.concat([whole, Buffer.alloc(900_000)])],
  ] as const)("reads gzip data to its end: %s", async ([, blob]) => {
    expect(await unpack(blob)).toBe(3_200_000);
  });

  test.for([
    ["something else behind it", Buffer.concat([whole, Buffer.alloc(900_000, 7)]), "its gzip data is broken"],
    ["cut off", whole.subarray(0, 1000), "it is truncated"],
    ["damaged", Buffer.concat([whole.subarray(0, 1000), Buffer.alloc(200_000, 9)]), "broken"],
  ] as const)("refuses gzip data with an end that is none: %s", async ([, blob, message]) => {
    await expect(unpack(blob)).rejects.toThrow(message);
  });
});
