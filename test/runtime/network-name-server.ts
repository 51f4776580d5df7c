/** A process for network-allow.test.ts: a name server that says what its names ask for. */
import { createSocket } from "node:dgram";
import { hostAddress, outsideAddress } from "./network-world.ts";

const A = 1;
const AAAA = 28;
let asked = 0;

/** What a name means: addresses, nothing, no such name, or silence. */
function answer(name: string, type: number): readonly string[] | "unknown" | "silence" {
  const four = (...addresses: string[]) => (type === A ? addresses : []);
  switch (name) {
    case "both.example.org":
      return type === A ? [outsideAddress[4]] : [outsideAddress[6]];
    case "short.example.org":
      return four(outsideAddress[4]);
    case "changing.example.org": // the first time an address that may be reached, later the metadata service
      if (type !== A) return [];
      return [asked++ === 0 ? outsideAddress[4] : "169.254.169.254"];
    case "metadata.example.org":
      return four("169.254.169.254", "100.100.100.200");
    case "host.example.org":
      return four(hostAddress[4]);
    case "many.example.org":
      return four(...Array.from({ length: 60 }, (_, i) => `192.0.2.${i + 1}`));
    case "empty.example.org":
      return [];
    case "silent.example.org":
      return "silence";
    default:
      return "unknown";
  }
}

function addressBytes(address: string): Buffer {
  if (!address.includes(":")) return Buffer.from(address.split(".").map(Number));
  const [head = "", tail = ""] = address.split("::");
  const groups = [head.split(":"), tail === "" ? [] : tail.split(":")];
  const middle = Array<string>(8 - groups.flat().length).fill("0");
  const all = [...(groups[0] ?? []), ...middle, ...(groups[1] ?? [])];
  return Buffer.from(all.map((group) => group.padStart(4, "0")).join(""), "hex");
}

const server = createSocket("udp4");
server.on("message", (query, from) => {
  const labels: string[] = [];
  let at = 12;
  for (let length = query[at] ?? 0; length !== 0; length = query[at] ?? 0) {
    labels.push(query.toString("latin1", at + 1, at + 1 + length));
    at += 1 + length;
  }
  const type = query.readUInt16BE(at + 1);
  const question = query.subarray(12, at + 5);
  const found = answer(labels.join(".").toLowerCase(), type);
  if (found === "silence") return;
  const addresses = found === "unknown" ? [] : found;
  const header = Buffer.alloc(12);
  query.copy(header, 0, 0, 2);
  header.writeUInt16BE(0x8180 | (found === "unknown" ? 3 : 0), 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(addresses.length, 6);
  const records = addresses.map((address) => {
    const data = addressBytes(address);
    const record = Buffer.alloc(12);
    record.writeUInt16BE(0xc00c, 0); // the question's name
    record.writeUInt16BE(data.length === 4 ? A : AAAA, 2);
    record.writeUInt16BE(1, 4);
    record.writeUInt32BE(1, 6);
    record.writeUInt16BE(data.length, 10);
    return Buffer.concat([record, data]);
  });
  server.send(Buffer.concat([header, question, ...records]), from.port, from.address);
});
server.bind(53, "0.0.0.0", () => process.stdout.write("ready\n"));
