// Package fdbudget divides the process's file descriptors (RLIMIT_NOFILE) among those who open many of them.
//
// Each use may take up to a share of the limit, and all together never more than the limit less a reserve, which is for
// what must work even then: the control socket, DNS, files of the state directory. The shares of the uses add up to more
// than the whole, because hardly any process needs all of them at once; the common total keeps the sum right.
//
// What a use is refused it has to do without: it declines, retries later or gives up what it has used least recently.
package fdbudget
