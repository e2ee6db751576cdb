// Package clientaddr decides under which address a server inside a network namespace sees a client of a published port.
//
// A client is shown under its own address wherever the server's kernel can receive packets from it and answers them
// through the gateway. Where that is not possible, the client is shown as the gateway, with its own port if that is free:
//
//   - loopback and unspecified addresses: a kernel drops received packets with such a source ("martian", RFC 1812
//     5.3.7 and 4.2.2.11);
//   - link-local addresses: on the server's link they name another host;
//   - addresses of the server's own interfaces: a kernel drops received packets with its own address as source;
//   - addresses of the server's own subnets: it would look for the client on its link, where it is not;
//   - clients of the other address family.
package clientaddr
