package archtest_test

import (
	"go/ast"
	"os"
	"regexp"
	"testing"
)

// TestScorecardIsDocumented: docs/scorecard.md has a line for every number of the scorecard's tests, and no other.
func TestScorecardIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/scorecard.md")
	if err != nil {
		t.Fatal(err)
	}
	listed, tested := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([0-9]{2}) \|`).FindAllStringSubmatch(string(text), -1) {
		if listed[m[1]] {
			t.Errorf("docs/scorecard.md has two lines %s", m[1])
		}
		listed[m[1]] = true
	}
	name := regexp.MustCompile(`^TestScorecard([0-9]{2})`)
	for _, f := range sources(t) {
		if !f.test || top(f.dir) != "e2e" {
			continue
		}
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			m := name.FindStringSubmatch(fn.Name.Name)
			if m == nil {
				continue
			}
			tested[m[1]] = true
			if !listed[m[1]] {
				t.Errorf("docs/scorecard.md has no line for %s (%s)", fn.Name.Name, f.name)
			}
		}
	}
	for number := range listed {
		if !tested[number] {
			t.Errorf("docs/scorecard.md has line %s, which no test in e2e has", number)
		}
	}
	if len(tested) == 0 {
		t.Fatal("no test of the scorecard was found")
	}
}
