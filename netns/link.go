package netns

import "os"

// Device is an open link device: frames of the uplink are read from its file and written to it.
type Device struct {
	File   *os.File // non-blocking, close-on-exec
	Kind   string   // KindTAP, KindTAPPlain or KindPacket
	Result LinkResult
}

// openers are the kinds of devices in the order in which KindAuto tries them: the fastest first. The interface they make is
// down and unconfigured.
var openers = []struct {
	kind string
	open func(*Link) (*os.File, LinkResult, error)
}{
	{KindTAP, openTAP},
	{KindTAPPlain, openPlainTAP},
	{KindPacket, openPacket},
}

// openLink opens a device of the kind l.Kind or, with KindAuto, the first that works.
func openLink(l *Link) (*Device, error) {
	var refused []Refusal
	var last error
	for _, o := range openers {
		if l.Kind != KindAuto && l.Kind != o.kind {
			continue
		}
		file, result, err := o.open(l)
		if err == nil {
			result.Refused = refused
			return &Device{file, o.kind, result}, nil
		}
		refused = append(refused, Refusal{o.kind, err.Error()})
		last = &Error{Op: "open link " + o.kind, Err: err, Hint: HintDoctor}
	}
	return nil, last
}
