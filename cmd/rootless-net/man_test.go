package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestEveryFlagOfAttachIsInTheManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/rootless-net.1")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.ReplaceAll(string(text), `\-`, "-")
	new(program).attachCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && !strings.Contains(manual, "--"+f.Name) {
			t.Errorf("--%s is not in the manual", f.Name)
		}
	})
}
