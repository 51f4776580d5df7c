/** A process for network.test.ts: answers on TCP and UDP ports with the address that it was asked from. */
import { createSocket } from "node:dgram";
import { createServer } from "node:net";

const plain = (address = "") => address.replace(/^::ffff:/, "");
for (const port of process.argv.slice(2).map(Number)) {
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.end(`${plain(socket.remoteAddress)}\n`);
  });
  await new Promise<void>((resolve) => {
    server.listen(port, "::", resolve);
  });
  const datagrams = createSocket("udp6");
  datagrams.on("message", (_, from) => {
    process.stdout.write(`udp ${port} ${plain(from.address)}\n`);
    datagrams.send(plain(from.address), from.port, from.address);
  });
  await new Promise<void>((resolve) => {
    datagrams.bind(port, "::", resolve);
  });
}
process.stdout.write("ready\n");
