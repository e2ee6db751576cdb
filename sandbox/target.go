package sandbox

import (
	"os"

	"rootlessnet/internal/watch"
	"rootlessnet/plan"
	"rootlessnet/userns"
)

// attachTarget is the namespace that Attach connects: entered by ns, or reached only by its device tap. The zero value is
// that of Run.
type attachTarget struct {
	ns      *userns.Target // nil with a TAP
	watch   *watch.Watch   // reports the end of ns; nil with a TAP
	outlive bool           // the end of ns does not end the sandbox
	tap     *os.File       // until the gateway has taken it over
}

// open opens the namespaces, which stay open as long as the sandbox: watch compares what a path names with them.
func (t *attachTarget) open(want plan.Target) (err error) {
	t.outlive = want.Outlive
	if want.TAP != nil {
		return nil
	}
	if t.ns, err = userns.OpenTarget(want.PID, want.NetNS, want.UserNS); err != nil {
		return err
	}
	t.watch, err = t.ns.Watch()
	return err
}

// ended is closed when the namespace ends; nil if the sandbox outlives it, or with a TAP.
func (t *attachTarget) ended() <-chan struct{} {
	if t.watch == nil || t.outlive {
		return nil
	}
	return t.watch.C()
}

// close may be called in any state. The watch uses the descriptors of ns and is closed first.
func (t *attachTarget) close() {
	if t.watch != nil {
		t.watch.Close()
	}
	if t.ns != nil {
		t.ns.Close()
	}
	if t.tap != nil {
		_ = t.tap.Close()
	}
}
