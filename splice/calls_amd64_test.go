package splice

import "golang.org/x/sys/unix"

// callNumber reads the number of the system call that a stopped thread is about to make.
func callNumber(tid int) (uint64, error) {
	var r unix.PtraceRegs
	err := unix.PtraceGetRegs(tid, &r)
	return r.Orig_rax, err
}
