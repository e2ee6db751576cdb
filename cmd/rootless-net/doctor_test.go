package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestDoctorArguments(t *testing.T) {
	for _, args := range [][]string{{"-o", "yaml"}, {"extra"}, {"--no-such-flag"}} {
		var out bytes.Buffer
		cmd := newDoctorCommand()
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		if err := cmd.Execute(); err == nil {
			t.Errorf("%v was accepted", args)
		}
		if strings.Contains(out.String(), "user-namespace") {
			t.Errorf("%v: the report was made all the same", args)
		}
	}
}
