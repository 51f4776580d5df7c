import { lstatSync, mkdirSync, openSync, closeSync, readdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { overlayXattrs } from "../../runtime/file-owners.ts";
import { fileAt } from "../../runtime/index.ts";
import { adoptUpper } from "../../runtime/upper-layer.ts";
import { TestHost } from "./host-fixture.ts";
import { describeTree, getXattr, isRoot } from "./image-fixture.ts";

describe.skipIf(!isRoot)("adoptUpper", () => {
  let host: TestHost;
  beforeAll(async () => {
    host = await TestHost.open();
  });
  afterAll(async () => {
    await host[Symbol.asyncDispose]();
  });

  test("makes a layer of what a container wrote, with the owners that it saw", async () => {
    const { stateDir } = host.host;
    const writableDir = join(stateDir, "kept");
    const topLayer = join(stateDir, "top");
    for (const name of ["dev", "proc", "sys", "usr"]) mkdirSync(join(topLayer, name), { recursive: true });
    const script = `
      mkdir -p /made/sub && echo x > /made/sub/file && chown 1000:1001 /made/sub/file && chown -R 7:8 /made/sub
      echo suid > /made/suid && chown 5:6 /made/suid && chmod 6755 /made/suid && ln /made/suid /made/link
      echo cap > /made/cap && /usr/sbin/setcap cap_net_raw+ep /made/cap && chown -h 3:3 /made/cap
      ln -s nowhere /made/symlink && chown -h 9:9 /made/symlink && mkfifo /made/fifo
      rm /etc/group && mkdir /etc/group && rm -r /etc/ssl && mkdir /etc/ssl && echo new > /etc/ssl/new
      python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/made/socket")'
      python3 -c 'import os; os.setxattr("/made/suid", "user.kept", b"1")'
      /usr/sbin/setcap cap_net_raw+ep /made/cap
      test ! -e /etc/hosts`;
    using range = host.host.claimLayerRange(host.range);
    const ended = await host.run(script, { writableDir, topLayer, uidRange: range });
    expect(ended).toMatchObject({ exitCode: 0, stderr: "" });
    const upper = join(writableDir, "upper");
    const fd = openSync(upper, "r");
    const { base, size } = range;
    expect(adoptUpper(fd, { base, size }).entries).toBeGreaterThan(10);
    closeSync(fd);
    const tree = describeTree(upper);
    expect(tree).toMatchObject({
      "made/sub": "d 7:8 755",
      "made/sub/file": "f 7:8 644 x\n",
      "made/suid": "f 5:6 6755 suid\n",
      "made/link": "f 5:6 6755 suid\n",
      "made/cap": "f 3:3 644 cap\n",
      "made/symlink": "l 9:9 nowhere",
      "made/fifo": "p 0:0 644",
      "etc/group": "d 0:0 755 opaque",
      "etc/ssl": "d 0:0 755 opaque",
      "etc/ssl/new": "f 0:0 644 new\n",
    });
    expect(Object.keys(tree).filter((name) => /socket|hosts|resolv|proc|dev/.test(name))).toEqual([]);
    expect(lstatSync(join(upper, "made/suid")).ino).toBe(lstatSync(join(upper, "made/link")).ino);
    // Of the first user namespace: version 2, 20 bytes.
    expect(getXattr(join(upper, "made/cap"), "security.capability")).toHaveLength(20);
    expect(getXattr(join(upper, "made/suid"), "user.kept")?.toString()).toBe("1");
    expect(getXattr(join(upper, "etc"), `${overlayXattrs()}origin`)).toBeUndefined();

    // It is a lower layer now, of another range of ids.
    const layer = join(stateDir, "layer");
    renameSync(upper, layer);
    using other = host.host.claimUidRange();
    const image = { ...host.image, layers: [...host.image.layers, layer] };
    const again = await host.run(
      'stat -c "%u:%g %a" /made/suid /made/sub/file; /usr/sbin/getcap /made/cap; ls /etc/ssl; test -d /etc/group',
      { image, uidRange: other },
    );
    expect(again).toMatchObject({ exitCode: 0, stdout: "5:6 6755\n7:8 644\n/made/cap cap_net_raw=ep\nnew\n" });
    expect(readdirSync(join(stateDir, "containers"))).toEqual([]);
  });

  test("refuses owners that no container of the range can have given", () => {
    const directory = join(host.directory, "strange");
    mkdirSync(join(directory, "file"), { recursive: true });
    const fd = fileAt.openRoot(directory);
    expect(() => adoptUpper(fd, { base: 1 << 28, size: 1 << 18 })).toThrow(
      '"file" cannot be kept: its owner 0 is none',
    );
    fileAt.closeFile(fd);
  });
});
