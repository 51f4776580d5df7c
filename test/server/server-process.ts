/** A server in a process of its own, to be killed. Its options are the first argument; it tells its address when it is up. */
import { Server, type ServerOptions } from "../../server/index.ts";

const server = await Server.start(JSON.parse(process.argv[2] ?? "{}") as ServerOptions);
process.send?.({ address: server.address, adminToken: server.adminToken, agentToken: server.agentToken });
