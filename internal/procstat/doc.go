// Package procstat parses /proc/PID/stat (proc(5)): the parent, the start time and the processor time of a process. It imports none
// of our packages, and its functions may be called concurrently.
package procstat
