// Command bench measures the performance of helpers for container networking, all in one run. It runs as an ordinary user in a test
// bed of its own: two network namespaces joined by a veth pair, with the client (or the command in the sandbox) in one and a server
// in the other. `make bench` compares rootless-run with no helper, `make compare` with every other helper of the machine.
//
// # What is compared
//
//   - none: the command in the host's network, directly.
//   - docker0: Docker's bridge network: a bridge, a veth pair, nftables masquerade and published ports (docker.go). On a host it
//     requires root; here the bench owns the namespaces.
//   - rootless-run, and the same with --datapath stack and --datapath splice.
//   - rootless-run-NAME: other builds of it in the directory ROOTLESSNET_PEERS, to compare a change with the build before it in one
//     run.
//   - pasta, slirp4netns and RootlessKit with its network and port drivers: those of PATH, and those in the directory
//     ROOTLESSNET_PEERS with names that begin with the program's name ("pasta-2024_12_11", "rootlesskit-3.0.1"). Of helpers that differ
//     from another one only in how they publish ports, only published ports are measured, unless -every is given.
//
// # What is measured
//
//   - tcp-out, tcp-in: received bytes of one TCP stream from and to the sandbox, in Gb/s; -8: of eight streams. The generator
//     writes and reads 128 KiB at a time, as iperf3 does. For each also processor seconds per GB, of the helper's processes
//     (.cpu-helper) and with those of client and server (.cpu).
//     iperf3-out, iperf3-in: the same by iperf3, if selected with -only.
//   - pub-in, pub-out: one stream to and from a server behind a published port. pub-source: 1 if the server saw the
//     client's own address.
//   - tcp-rr, udp-rr: round trips per second of one byte on one connection or flow; 50th and 99th percentile in µs. -16:
//     sixteen clients.
//   - tcp-crr: connect, one byte each way, reset; per second. pub-crr: the same to a published port.
//   - udp-1400, udp-9000: datagrams of that size sent as fast as one thread can; how many arrived per second, and the share of
//     those that did not arrive.
//   - http-1, -16, -64: pages of 1 KiB per second from an HTTP server behind a published port, on that many persistent connections.
//   - startup: wall time of `HELPER true`; for no helper that of `unshare -Urn true`, in ms.
//   - memory: of all processes of the helper with an idle command (.rss, .pss), with -conns idle connections
//     (.N-conns), and the difference per connection in KB (.conn).
//
// # How
//
// Each measurement is repeated -runs times, each time with all helpers one after the other, so that a disturbance of the machine
// affects all of them. The median is the result; minimum and maximum are shown beside it. A client connects, prints "ready", waits
// for "go" on standard input, warms up for -warm and then measures for -time; processor times are read before and after that.
// Clients reset their connections and every measurement uses another port, so that sockets in TIME_WAIT do not slow later ones. All
// processes that a measurement starts have a time limit and are ended after it.
//
// TCP has the machine's settings, except for the congestion control that `make compare` sets: settings.md has the reason. A helper's
// network namespace begins with the kernel's default congestion control; clients and servers set it on their sockets.
//
// # Output
//
// A table and the targets of the default configuration (targets.go) on stderr, and JSON (type Report) on stdout, from which
// `bench render` makes compare.md and compare.svg. A measurement that failed is a row with the error, and the others are taken
// nevertheless; the exit status is then 1, unless -lenient is given.
//
// # Limits
//
// Client, server and helper share the machine's cores: figures can be compared within one run only. Processor time is that of
// processes; it does not include the kernel's own threads, which matters mostly for docker0.
package main
