package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

func TestDoctorArguments(t *testing.T) {
	for _, args := range [][]string{{"-o", "yaml"}, {"extra"}, {"--no-such-flag"}} {
		var stdout, stderr bytes.Buffer
		p := program{stdout: &stdout, stderr: &stderr}
		if code := p.main(context.Background(), append([]string{"doctor"}, args...)); code != exitUsage {
			t.Errorf("%v: exit status %d, want %d", args, code, exitUsage)
		}
		if !strings.Contains(stderr.String(), "See 'rootless-net doctor --help'.") {
			t.Errorf("%v: %s", args, &stderr)
		}
		if stdout.Len() > 0 {
			t.Errorf("%v: the report was made nevertheless: %s", args, &stdout)
		}
	}
}
