package skip

import (
	"os"
	"testing"
)

// Missing skips the test because the machine lacks or does not permit something. Where ROOTLESSNET_CI is 1 nothing is skipped: the
// test fails. It must be called from the goroutine of the test, as testing.T.Skip.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("ROOTLESSNET_CI") == "1" {
		t.Fatalf("nothing is skipped in CI: "+format, args...)
	}
	t.Skipf("NOT TESTED: "+format, args...)
}
