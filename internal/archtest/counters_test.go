package archtest_test

import (
	"go/ast"
	"go/token"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Counters have two kinds of names. Most are in the code as they are printed ("tcp.out"). Those that count by reason
// are a prefix ("drop.udp.") and a name from a table of strings (dropNames, reasonNames) of the package that counts; the test does not
// check where the two are joined.
var (
	counterName   = regexp.MustCompile(`^(now\.|drop\.)?(link|tcp|udp|loopback|dns|policy|flow|frame)\.[a-z0-9_-]+$`)
	counterPrefix = regexp.MustCompile(`^(drop\.(udp|frame)|policy)\.$`)
	reasonTable   = regexp.MustCompile(`^(drop|reason)Names$`)
	// documented matches a counter in the first column of a table of docs/counters.md.
	documented = regexp.MustCompile("`([a-z0-9_.-]+)`")
)

// reasonPrefix has the prefix of the counters of a package's reasons.
var reasonPrefix = map[string]string{
	"forwarder":     "drop.udp.",
	"forwarder/udp": "drop.udp.",
	"stack":         "drop.frame.",
	"policy":        "policy.",
}

// notReasons are entries of a table of reasons that are never counted.
var notReasons = []string{"policy.none"} // allowed

// TestCountersAreDocumented: docs/counters.md names every counter of the code, and no other.
func TestCountersAreDocumented(t *testing.T) {
	inCode, prefixes, used := map[string]string{}, map[string]string{}, map[string]bool{}
	for _, f := range sources(t) {
		if f.test || slices.Contains([]string{"bench", "e2e", "examples"}, top(f.dir)) || strings.HasPrefix(f.dir, "internal/nettest") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ImportSpec:
				return false
			case *ast.BasicLit:
				if text, ok := stringOf(n); ok && counterName.MatchString(text) {
					inCode[text] = f.name
				} else if ok && counterPrefix.MatchString(text) {
					prefixes[text] = f.name
				}
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if !reasonTable.MatchString(name.Name) || i >= len(n.Values) {
						continue
					}
					prefix, known := reasonPrefix[f.dir]
					if !known {
						t.Errorf("%s: %s holds reasons, but reasonPrefix of this test does not say under which prefix they are counted", f.name, name.Name)
					}
					used[prefix] = true
					for _, reason := range elements(n.Values[i]) {
						if counter := prefix + reason; !slices.Contains(notReasons, counter) {
							inCode[counter] = f.name
						}
					}
				}
			}
			return true
		})
	}
	for prefix, file := range prefixes {
		if !used[prefix] {
			t.Errorf("%s counts under %q, but no package has a table of reasons for it", file, prefix)
		}
	}
	for prefix := range used {
		if prefixes[prefix] == "" {
			t.Errorf("nothing counts under %q", prefix)
		}
	}
	if len(inCode) < 50 {
		t.Fatalf("found only %d counters in the code: this test does not recognise them any more", len(inCode))
	}
	text, err := os.ReadFile(path.Join("..", "..", "docs", "counters.md"))
	if err != nil {
		t.Fatal(err)
	}
	inDocs := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 { // not a row of a table
			continue
		}
		for _, m := range documented.FindAllStringSubmatch(cells[1], -1) {
			if inDocs[m[1]] {
				t.Errorf("docs/counters.md explains %s twice", m[1])
			}
			inDocs[m[1]] = true
		}
	}
	for name, file := range inCode {
		if !inDocs[name] {
			t.Errorf("docs/counters.md does not explain %s (%s)", name, file)
		}
	}
	for name := range inDocs {
		if inCode[name] == "" {
			t.Errorf("docs/counters.md explains %s, which the code does not count", name)
		}
	}
}

func stringOf(e ast.Expr) (text string, ok bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

// elements returns the strings of a composite literal, with or without keys.
func elements(e ast.Expr) (texts []string) {
	lit, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	for _, elt := range lit.Elts {
		if kv, ok := elt.(*ast.KeyValueExpr); ok {
			elt = kv.Value
		}
		if text, ok := stringOf(elt); ok {
			texts = append(texts, text)
		}
	}
	return texts
}
