package gateway

import (
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"rootlessnet/tap"
)

// capture wraps dev so that every frame is also written to the file path in pcap format. On an error dev is closed.
func capture(dev tap.Device, path string, log *slog.Logger) (tap.Device, error) {
	// Non-blocking: opening a FIFO without a reader is an error and does not wait for one.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("packet capture: %w", err)
	}
	c, err := tap.NewCapture(dev, f, log)
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("packet capture: %w", err)
	}
	return c, nil
}
