import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import type { LookupAddress } from "node:dns";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { lookupIn } from "../../build/name-lookup.ts";
import { isRoot } from "../runtime/image-fixture.ts";

const server = "127.77.1.53";

function find(files: Parameters<typeof lookupIn>[0], name: string, family?: number): Promise<string[]> {
  const { promise, resolve, reject } = Promise.withResolvers<string[]>();
  lookupIn(files)(name, { all: true, ...(family !== undefined && { family }) }, (error, found) => {
    if (error === null) resolve((found as LookupAddress[]).map(({ address }) => address));
    else reject(error);
  });
  return promise;
}

describe.skipIf(!isRoot)("lookupIn", () => {
  let socket: Socket;
  const asked: string[] = [];
  beforeAll(async () => {
    socket = createSocket("udp4");
    socket.on("message", (query, { port, address }) => {
      const { answer, name } = answerTo(query);
      asked.push(name);
      socket.send(answer, port, address);
    });
    socket.bind(53, server);
    await once(socket, "listening");
  });
  afterAll(() => {
    socket.close();
  });

  test("asks the name servers of the network, after its hosts file", async () => {
    const files = {
      hosts: "10.1.2.3 Listed other # no\n::1 listed\n",
      resolvConf: `search in.test\nnameserver ${server}\n`,
    };
    expect(await find(files, "listed")).toEqual(["10.1.2.3", "::1"]);
    expect(await find(files, "listed", 6)).toEqual(["::1"]);
    expect(asked).toEqual([]);
    expect(await find(files, "known.test")).toEqual(["10.9.8.7"]);
    expect(new Set(asked)).toEqual(new Set(["known.test"]));
    expect(await find(files, "short")).toEqual(["10.9.8.7"]);
    expect(asked).toContain("short.in.test");
    await expect(find(files, "absent.test")).rejects.toThrow(
      'the name "absent.test" is not known in this build\'s network: ENOTFOUND',
    );
    await expect(find(files, "other", 6)).rejects.toThrow("no such address");
  });
});

/** Answers a question for an A record with 10.9.8.7 unless the name begins with `absent`. */
function answerTo(query: Buffer): { readonly answer: Buffer; readonly name: string } {
  const labels: string[] = [];
  let at = 12;
  for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
    labels.push(query.toString("latin1", at + 1, at + 1 + length));
    at += 1 + length;
  }
  const question = query.subarray(12, at + 5);
  const isA = query.readUInt16BE(at + 1) === 1;
  const isAbsent = labels[0] === "absent";
  const header = Buffer.alloc(12);
  query.copy(header, 0, 0, 2);
  header.writeUInt16BE(isAbsent ? 0x8183 : 0x8180, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(isA && !isAbsent ? 1 : 0, 6);
  const record = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 9, 8, 7]);
  return { answer: Buffer.concat([header, question, ...(isA && !isAbsent ? [record] : [])]), name: labels.join(".") };
}
