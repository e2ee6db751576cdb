// Command testuser runs a program as an ordinary user. It is the -exec wrapper of `make test` and the starter of
// `make bench` and `make demo`:
//
//	testuser PROGRAM [ARG...]
//
// Started by an ordinary user it only execs PROGRAM. Started by root it
//
//   - finds the user named by TEST_USER (default "rootlessnet-test"), makes it with useradd where there is none, and
//     takes a bare numeric id where there is no useradd either;
//   - makes a private mount namespace in which /dev/net/tun is a fresh node of mode TUN_MODE (0666 or 0600; unset
//     leaves the host's), so that both kinds of host are exercised without touching this one;
//   - binds the source tree to a place the user can reach, whatever the modes of the directories above it, and copies
//     PROGRAM and the product's binaries (ROOTLESSNET_BIN) there;
//   - runs PROGRAM as that user, without supplementary groups, with a HOME and an XDG_RUNTIME_DIR of its own, passes
//     SIGINT, SIGTERM and SIGQUIT on (`go test` sends the last to get the stacks), and exits as PROGRAM did.
//
// Nothing is left except the user account and an empty lock file in /run.
//
// Limits: root without CAP_SYS_ADMIN (a container's root) cannot make the mount namespace; it prints that on stderr, and the
// program runs without it. Coverage profiles and fuzz corpora cannot be written into the tree from here.
package main
