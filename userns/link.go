package userns

import (
	"os"
)

// device is an open link device, its interface down and unconfigured.
type device struct {
	file   *os.File // non-blocking, close-on-exec
	kind   string
	result LinkResult
}

// openers are the kinds in the order in which they are tried: the fastest first.
var openers = []struct {
	kind string
	open func(*Link) (*os.File, LinkResult, error)
}{
	{KindTAP, openTAP},
	{KindTAPPlain, openPlainTAP},
	{KindPacket, openPacket},
}

// openLink opens the kind that is asked for, or the first that works.
func openLink(l *Link) (*device, error) {
	var refused []Refusal
	var last error
	for _, o := range openers {
		if l.Kind != KindAuto && l.Kind != o.kind {
			continue
		}
		file, result, err := o.open(l)
		if err == nil {
			result.Refused = refused
			return &device{file, o.kind, result}, nil
		}
		refused = append(refused, Refusal{o.kind, err.Error()})
		last = &Error{Op: "open link " + o.kind, Err: err, Hint: doctorHint}
	}
	return nil, last
}
