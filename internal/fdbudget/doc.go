// Package fdbudget divides the process's file descriptors (RLIMIT_NOFILE) among the parts of the program that open many of them.
//
// Each use may take up to a share of the limit, and all together never more than the limit less a reserve, which is for
// what must work even when all others are in use: the control socket, DNS, files of the state directory. The shares of the uses add up to more
// than the whole, because hardly any process needs all of them at once; the common total limits their sum.
//
// A use that gets no descriptor declines the connection, retries later, or closes what it has used least recently.
package fdbudget
