/** Connection tracking by netlink. Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h of the kernel. */
import { EINVAL, ENOENT, EOPNOTSUPP } from "./linux.ts";
import { attribute, nested, type NetlinkMessage, u32 } from "./netlink.ts";
import { addressBytes, isIPv6 } from "./network-address.ts";
import { NFPROTO_IPV4, NFPROTO_IPV6 } from "./nftables.ts";

const IPCTNL_MSG_CT_DELETE = (1 << 8) | 2;
const CTA_FILTER_F_CTA_IP_SRC = 1;

/** Lets the kernel forget the connections that began at an address: what they send next is judged anew. */
export function forgetConnections(source: string): NetlinkMessage {
  const v6 = isIPv6(source);
  return {
    action: `forget the connections of ${source}`,
    type: IPCTNL_MSG_CT_DELETE,
    payload: Buffer.concat([
      Buffer.from([v6 ? NFPROTO_IPV6 : NFPROTO_IPV4, 0, 0, 0]),
      nested(1, nested(1, attribute(v6 ? 3 : 1, addressBytes(source)))), // CTA_TUPLE_ORIG, CTA_TUPLE_IP, source
      // Without a filter, a kernel would take the message to mean all connections of the host.
      nested(25, attribute(1, u32(CTA_FILTER_F_CTA_IP_SRC)), attribute(2, u32(0))),
    ]),
    tolerate: [ENOENT, EOPNOTSUPP, EINVAL],
  };
}
