// Command bench measures what a helper for container networking costs, as ratios to no helper at all, in one run on
// ground of its own: an ordinary user, two network namespaces joined by a veth pair, the client (or the command in the
// sandbox) on one side and a server on the other. `make bench` is the way to start it.
//
// # What is measured
//
//   - tcp-out, tcp-in: one TCP stream from and to the sandbox for -time, bytes that arrived, in Gb/s; the generator
//     writes and reads 128 KiB at a time, as iperf3 does. tcp-published: the same into a published port.
//     iperf3-out, iperf3-in: the same by iperf3, where it is installed.
//   - tcp-rr, udp-rr: one byte there and back on one connection or flow, one at a time, per second.
//   - tcp-crr: connect, one byte there and back, reset; one at a time, per second. The reset keeps TIME_WAIT sockets
//     from filling the ephemeral ports and slowing connect.
//   - startup: wall time of `HELPER true` over that of `unshare -Urn true`, in ms.
//   - idle-rss, idle-pss: memory of all processes of the helper with an idle command, in MB; conns-rss: the same with
//     -conns idle connections out of the sandbox.
//
// Each is taken -runs times, the helpers in turn, so that a disturbance of the machine hits all of them; the median
// counts, and the least and greatest are shown beside it.
//
// # Output
//
// A Markdown table on stderr, and JSON (type Report) on stdout. A measurement that could not be taken is an error row,
// never an empty one; the exit status is 1 when there was one.
//
// # Limits
//
// Client, server and helper share the machine's cores: figures of one run compare with each other and with nothing
// else.
package main
