package bindaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

func TestDockerError(t *testing.T) {
	addr := netip.MustParseAddrPort
	if got := DockerError("tcp", addr("0.0.0.0:8080"), syscall.EADDRINUSE).Error(); got != "failed to bind host port 0.0.0.0:8080/tcp: address already in use" {
		t.Error(got)
	}
	var used *InUseError
	if err := DockerError("udp", addr("[::]:53"), fmt.Errorf("bind: %w", syscall.EADDRINUSE)); !errors.As(err, &used) || *used != (InUseError{"udp", addr("[::]:53")}) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	low, _ := UnprivilegedStart()
	got := DockerError("tcp", addr("0.0.0.0:80"), syscall.EACCES).Error()
	if low > 80 && !strings.HasPrefix(got, `cannot expose privileged port 80, you might need to add "net.ipv4.ip_unprivileged_port_start=0" (currently `) {
		t.Error(got)
	}
	if start, ok := readStart("/nonexistent"); start != 1024 || ok {
		t.Errorf("default: %d, %v", start, ok)
	}
}

func TestPodmanError(t *testing.T) {
	ports := []uint16{8080, 80}
	const want = "cannot expose privileged port 80, you can add 'net.ipv4.ip_unprivileged_port_start=80' to /etc/sysctl.conf (currently 1024), " +
		"or choose a larger port number (>= 1024): listen tcp 0.0.0.0:80: permission denied"
	if got := PodmanError(fmt.Errorf("listen tcp 0.0.0.0:80: %w", syscall.EACCES), ports, 1024); got.Error() != want || !errors.Is(got, syscall.EACCES) {
		t.Errorf("got %v", got)
	}
	for _, err := range []error{
		PodmanError(syscall.EADDRINUSE, ports, 1024), PodmanError(syscall.EACCES, ports, 80), PodmanError(syscall.EACCES, ports, 0),
	} {
		if strings.Contains(err.Error(), "privileged") {
			t.Errorf("got %v", err)
		}
	}
}
