// Package pasta reads what callers of pasta say to it: the command line, and the grammar of its port specifications.
//
// # Command line
//
//	pasta [OPTION]... [--] [COMMAND [ARG]...]     a command in namespaces of its own
//	pasta [OPTION]... PID                         the namespaces of a process
//	pasta [OPTION]... --netns PATH|NAME           a network namespace by its path, or by its name below /run/netns
//
// It is read as GNU getopt_long does when the first operand ends the options. Of an option that is repeated the last
// one wins, but for those that take several addresses, and for ports.
//
// # Ports
//
//	none | [[ADDR|*][%IF]/]ITEM{,ITEM}      ITEM = FIRST[-LAST][:TO[-TOLAST]] | ~FIRST[-LAST] | all | auto
//
// "all" is every port that is not ephemeral, and what a list stands for that names none; ~ leaves ports out. With "auto" a
// port is open while something listens where it leads. Ports of the namespace's loopback (-T, -U) have no address: they are
// heard on 127.0.0.1, ::1 and whatever else lo has.
package pasta
