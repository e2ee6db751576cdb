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
//	none | auto | all | [[ADDR|*][%IF]/]ITEM{,ITEM}      ITEM = FIRST[-LAST][:TO[-TOLAST]] | ~FIRST[-LAST]
//
// "auto" follows what listens on the other side, "all" is every port that is not ephemeral, and items that only exclude
// stand for all but those.
package pasta
