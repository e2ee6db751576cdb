// Command bench measures what a helper for container networking costs, in one run on ground of its own: an ordinary
// user, two network namespaces joined by a veth pair, the client (or the command in the sandbox) on one side and a server
// on the other. `make bench` compares rootless-run with no helper, `make compare` with every other helper of the machine.
//
// # Who is measured
//
//   - none: the command in the host's network, directly.
//   - docker0: a bridge, a veth pair, nftables masquerade and published ports (docker.go). On a machine this takes root;
//     the bench owns the namespaces that it measures in.
//   - rootless-run, and the same with --datapath stack and --datapath splice.
//   - rootless-run-NAME, other builds of it in the directory ROOTLESSNET_PEERS: what a change costs or gains is seen by comparing
//     it, in one run, with the build before it.
//   - pasta, slirp4netns and RootlessKit with its network and port drivers: those of PATH, and those in the directory
//     ROOTLESSNET_PEERS whose names begin so ("pasta-2024_12_11", "rootlesskit-3.0.1"). Of those that differ from
//     another only in how ports are published, only that is measured, unless -every is given.
//
// # What is measured
//
//   - tcp-out, tcp-in: one TCP stream from and to the sandbox, bytes that arrived, in Gb/s; -8: eight of them. The
//     generator writes and reads 128 KiB at a time, as iperf3 does. Below each: processor seconds for each GB, of the
//     helper's processes (.cpu-helper) and with those of client and server (.cpu).
//     iperf3-out, iperf3-in: the same by iperf3, if -only asks for it.
//   - pub-in, pub-out: one stream to and from a server behind a published port. pub-source: 1 if the server saw the
//     client's own address.
//   - tcp-rr, udp-rr: one byte there and back on a connection or flow, per second; 50th and 99th percentile in µs. -16:
//     by sixteen clients.
//   - tcp-crr: connect, one byte there and back, reset. pub-crr: the same to a published port.
//   - udp-1400, udp-9000: datagrams of that size sent as fast as one thread can; how many arrived in a second, and the
//     share that never did.
//   - http-1, -16, -64: pages of 1 KiB from an HTTP server behind a published port, on that many kept connections.
//   - startup: wall time of `HELPER true`; for no helper that of `unshare -Urn true`, in ms.
//   - memory: of all processes of the helper with an idle command (.rss, .pss), with -conns idle connections
//     (.N-conns), and the difference for each of them in KB (.conn).
//
// # How
//
// Each figure is taken -runs times, the helpers in turn, so that a disturbance of the machine hits all of them; the
// median counts, and the least and greatest are shown beside it. A client connects, says so, waits for the word, warms
// up for -warm and then measures for -time; processor times are read around that. Clients reset their connections and
// every measurement has another port, so that no TIME_WAIT slows whoever comes later. Everything a measurement starts is
// bounded in time and ended with it.
//
// TCP is the machine's, but for the congestion control that `make compare` sets: settings.md says why. A helper's own
// namespace begins with the machine's defaults all the same; our clients and servers set it on their sockets.
//
// # Output
//
// A table and the targets of the default configuration (targets.go) on stderr, and JSON (type Report) on stdout, of
// which `bench render` makes compare.md and compare.svg. A measurement that could not be taken is an error row, never an
// empty one, and does not stop the others; the exit status is 1 when there was one, unless -lenient is given.
//
// # Limits
//
// Client, server and helper share the machine's cores: figures of one run compare with each other and with nothing
// else. Processor time is that of processes: what the kernel does in threads of its own is missing, mostly for docker0.
package main
