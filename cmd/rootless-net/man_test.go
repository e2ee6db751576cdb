package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestEveryCommandAndFlagIsInTheManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/rootless-net.1")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.ReplaceAll(string(text), `\-`, "-")
	for _, cmd := range new(program).newCommand().Commands() {
		if !strings.Contains(manual, ".B rootless-net "+cmd.Name()) || !strings.Contains(manual, "\n.TP\n.B "+cmd.Name()) {
			t.Errorf("%s is not in the manual", cmd.Name())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(manual, "--"+f.Name) {
				t.Errorf("%s --%s is not in the manual", cmd.Name(), f.Name)
			}
		})
	}
}
