package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestEveryFlagIsInTheManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/rootless-run.1")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.ReplaceAll(string(text), `\-`, "-")
	var o options
	newCommand(&o).Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(manual, "--"+f.Name) {
			t.Errorf("--%s is not in the manual", f.Name)
		}
		if f.Shorthand != "" && !f.Hidden && !strings.Contains(manual, ".BR -"+f.Shorthand+" ") {
			t.Errorf("-%s is not in the manual", f.Shorthand)
		}
	})
}
