package forwarder

import "time"

// The splice path's circuit breakers. Rules of the guest's own (packet filters, masquerading) may be in the way of
// handshakes on its loopback interface: each of them takes a retransmission, or fails and is then left to the stack path.
const (
	// SpliceFailures handshakes in a row that failed or were late open a breaker. There is one for outbound connections
	// of the guest's own, one for those that it forwards, and one for each published port.
	SpliceFailures = 3
	// SplicePause is how long connections then take the stack path. The next one tries the splice path again, and pays
	// for it with a second if nothing has changed.
	SplicePause = time.Minute
)
