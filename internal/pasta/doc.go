// Package pasta parses the command line of pasta, and the grammar of its port specifications.
//
// It imports package getopt of ours only, and opens no sockets; of the file system it checks only that the path of --netns exists.
// Its functions may be called concurrently. The texts of errors that callers of pasta look for are those of the original.
//
// # Command line
//
//	pasta [OPTION]... [--] [COMMAND [ARG]...]     a command in namespaces of its own
//	pasta [OPTION]... PID                         the namespaces of a process
//	pasta [OPTION]... --netns PATH|NAME           a network namespace by its path, or by its name below /run/netns
//
// It is parsed as GNU getopt_long does with "+": the first operand ends the options. Of a repeated option the last value is used,
// except for options that take several addresses, and for ports, whose values add up.
//
// # Ports
//
//	none | [[ADDR|*][%IF]/]ITEM{,ITEM}      ITEM = FIRST[-LAST][:TO[-TOLAST]] | ~FIRST[-LAST] | all | auto
//
// "all" means every port that is not ephemeral, and so does a list that names no port; ~ excludes ports. With "auto" a port is open
// while a program listens on the port that it is forwarded to. Ports of the namespace's loopback (-T, -U) have no address: they are
// open on 127.0.0.1, ::1 and every other address of lo.
package pasta
