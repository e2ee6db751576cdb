// Package getopt reads a command line as GNU getopt_long(3) does, for the programs that stand in for ones written in C:
// their callers rely on its abbreviations, clusters and error texts, which no Go flag package has.
//
// # What is read
//
//	--name value   --name=value   --nam value (any unambiguous beginning)   -n value   -nvalue   -abc (a cluster)
//
// "--" ends the options. Operands are collected wherever they stand (Permute), as GNU does without POSIXLY_CORRECT, or
// the first of them ends the options (Strict), which is what a program that runs another one needs.
//
// # Errors
//
// The texts are getopt_long's own, "NAME: unrecognized option '--x'" and so on, since callers match on them.
package getopt
