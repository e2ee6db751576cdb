// Package getopt parses a command line as GNU getopt_long(3) does, for the programs that replace programs written in C. Their
// callers depend on getopt's abbreviations, clusters of short options and error texts, which Go's flag packages do not provide.
//
// # Syntax
//
//	--name value   --name=value   --nam value (any unambiguous prefix)   -n value   -nvalue   -abc (a cluster)
//
// "--" ends the options. With Permute, operands may be between options, as with GNU getopt without POSIXLY_CORRECT. With
// Strict, the first operand ends the options, as needed by a program that runs another one.
//
// # Errors
//
// The texts are those of getopt_long, such as "NAME: unrecognized option '--x'", because callers compare them.
//
// # Imports
//
// The standard library. The package has no state.
package getopt
